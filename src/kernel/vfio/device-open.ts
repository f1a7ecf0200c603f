// Models vfio_assert_device_open() and the list of open devices whose driver is told of unmaps (6.0 and later).

import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { warnOnce } from '../mm/warn-once.ts';
import type { Container } from './container.ts';
import type { Device } from './device.ts';
import type { Iommu } from './iommu.ts';
import { enclosingOperations } from './notifier.ts';
import { blocksOf, chainUnregister, listAdd } from './notifier-chain.ts';

/** Models vfio_assert_device_open(): WARNs once in the life of the machine. */
export function assertDeviceOpen(host: Host, device: Device, caller: string): boolean {
  if (device.open_count > 0) return true;
  warnOnce(host, 'vfio_assert_device_open', `device-not-open-once: ${device.id}`, [caller]);
  return false;
}

/**
 * Whether device_list_lock can be taken while iommu->lock is held. EDEADLK: a walk over the list holds it and will want
 * iommu->lock; inside one of its callbacks nobody else can release it, and another thread would block the callback's unpin.
 */
export function requireDeviceListLock(
  host: Host,
  container: Container,
  iommu: Iommu,
  wants: string,
  where: string,
): void {
  const holder = iommu.notifier.readers[0];
  if (holder === undefined) return;
  const inside = enclosingOperations(host).includes(holder);
  const cycle = inside
    ? `${wants} waits for device_list_lock; ${holder} holds it and waits for ${host.call.notification}; its handler waits for ${wants}`
    : `${wants} holds iommu->lock and waits for device_list_lock; ${holder} holds it while its callback waits for iommu->lock`;
  splat(host, 'DEADLOCK', where, `listener-lock: ${cycle}`, ['vfio_notify_dma_unmap', 'vfio_dma_do_unmap']);
  throw new Errno('EDEADLK', `${wants} in container '${container.id}' would deadlock: ${cycle}`, {
    hint: 'let the unmap finish first; the cycle is in dmesg',
  });
}

/** Models vfio_iommu_type1_register_device(): a device whose driver has a dma_unmap op is told of unmaps first. EDEADLK. */
export function registerDevice(host: Host, container: Container, iommu: Iommu, device: Device): void {
  if (device.listener === null) return;
  requireDeviceListLock(host, container, iommu, `opening device '${device.id}'`, 'vfio_iommu_type1_register_device');
  listAdd(iommu.notifier, device.listener);
}

/** Models vfio_iommu_type1_unregister_device(). EDEADLK. */
export function unregisterDevice(host: Host, container: Container, iommu: Iommu, device: Device): void {
  if (device.listener === null || !blocksOf(iommu.notifier).includes(device.listener)) return;
  requireDeviceListLock(host, container, iommu, `closing device '${device.id}'`, 'vfio_iommu_type1_unregister_device');
  chainUnregister(iommu.notifier, device.listener);
}
