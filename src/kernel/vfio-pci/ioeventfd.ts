// Models VFIO_DEVICE_IOEVENTFD: an eventfd whose signal writes to a BAR, without user space in between.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { hex } from '../lib/u64.ts';
import { VFIO_PCI_IOEVENTFD_MAX } from '../limits.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import {
  barOf,
  getVfioPci,
  type Ioeventfd,
  isMemoryEnabled,
  memoryLock,
  ROM_REGION,
  type VfioPciDevice,
} from './device.ts';
import { setupBarmap } from './mmap.ts';
import { isGated, mmio } from './mmio.ts';
import { openDevice } from './zap.ts';

export type IoeventfdCommand =
  | { op: 'vfio_pci_put_ioeventfd'; device: string; ioeventfd: string; bar: number; pos: bigint; data: string }
  | { op: 'vfio_pci_delete_ioeventfd'; device: string; ioeventfd: string }
  /** The eventfd is signalled, in a context that may not sleep. */
  | { op: 'vfio_pci_signal_ioeventfd'; device: string; ioeventfd: string; stop_at?: Phase };

export type IoeventfdStep =
  /** memory_lock was free, or not: then a kernel thread waits for it. */
  | { do: 'vfio_pci_ioeventfd_locked'; device: string; ioeventfd: string; cleanup?: true }
  | { do: 'vfio_pci_ioeventfd_write'; device: string; ioeventfd: string; deferred: boolean; cleanup?: true };

export const ioeventfdFields = ({ id, bar, pos, bytes }: Ioeventfd): Fields => ({
  id,
  bar,
  pos,
  data: toBase64(bytes),
});

function getIoeventfd({ id, ioeventfds }: VfioPciDevice, name: string): Ioeventfd {
  const found = ioeventfds.get(name);
  if (found === undefined) throw new NoSuchObject(`ioeventfd of ${id}`, name);
  return found;
}

/** EINVAL: not 1, 2, 4 or 8 aligned bytes; no BAR; beyond its end; in the MSI-X table. */
function checkTarget(device: VfioPciDevice, index: number, pos: bigint, size: number): void {
  if (![1, 2, 4, 8].includes(size) || pos % BigInt(size || 1) !== 0n)
    throw new Errno('EINVAL', `data: ${size} bytes at ${hex(pos)} are no access`);
  const bar = index < ROM_REGION ? barOf(device, index) : null;
  if (bar === null) throw new Errno('EINVAL', `bar: ${device.id} has no BAR${index}`);
  const end = pos + BigInt(size);
  if (end > bar.length) throw new Errno('EINVAL', `pos: ${hex(pos)} + ${size} bytes is beyond BAR${index}`);
  const { msix } = bar;
  if (msix !== null && pos < msix.offset + msix.length && end > msix.offset)
    throw new Errno('EINVAL', `pos: ${hex(pos)} is in the MSI-X table`);
}

/**
 * Makes an ioeventfd. ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: as checkTarget(). EBUSY, ENOMEM: as setupBarmap(). EEXIST:
 * the id is taken by another, or another writes the same. ENOSPC: VFIO_PCI_IOEVENTFD_MAX.
 */
function put(host: Host, command: Extract<IoeventfdCommand, { op: 'vfio_pci_put_ioeventfd' }>): Done {
  const { ioeventfd: id, bar, pos, data } = command;
  const device = getVfioPci(host, command.device);
  const bytes = fromBase64(data);
  if (bytes === null) throw new Errno('EINVAL', 'data: no base64');
  checkTarget(device, bar, pos, bytes.length);
  setupBarmap(host, device, bar);
  const isSame = (other: Ioeventfd): boolean =>
    other.bar === bar && other.pos === pos && toBase64(other.bytes) === data;
  const made = device.ioeventfds.get(id);
  if (made !== undefined && isSame(made)) return { ret: 0, created: false, fields: ioeventfdFields(made) };
  if (made !== undefined || [...device.ioeventfds.values()].some(isSame))
    throw new Errno('EEXIST', `ioeventfd '${id}': it, or another with this write, exists`);
  if (device.ioeventfds.size >= VFIO_PCI_IOEVENTFD_MAX)
    throw new Errno('ENOSPC', `ioeventfds: ${device.id} has ${VFIO_PCI_IOEVENTFD_MAX}, the most it can have`);
  const fresh = { id, bar, pos, bytes };
  device.ioeventfds.set(id, fresh);
  return { ret: 0, created: true, fields: ioeventfdFields(fresh) };
}

/** ENODEV: as getVfioPci(). NOT_FOUND. */
function remove(
  host: Host,
  { device: id, ioeventfd }: Extract<IoeventfdCommand, { op: 'vfio_pci_delete_ioeventfd' }>,
): Done {
  const device = getVfioPci(host, id);
  getIoeventfd(device, ioeventfd);
  device.ioeventfds.delete(ioeventfd);
  return { ret: 0, fields: { id: ioeventfd } };
}

/**
 * Signals the eventfd. Fields: done, whether the device was written; deferred, whether a thread had to do it. While the memory
 * is disabled the write is dropped, where the profile tests that; nobody is told. ENODEV, NOT_FOUND.
 */
function signal(host: Host, command: Extract<IoeventfdCommand, { op: 'vfio_pci_signal_ioeventfd' }>): Done {
  const { op, ioeventfd, stop_at } = command;
  const device = getVfioPci(host, command.device);
  const { bar } = getIoeventfd(device, ioeventfd);
  const lock = memoryLock(device);
  const tests = host.profile.vfioPciIoeventfdTest && isGated(device, bar);
  return runOperation(
    host,
    { kind: op, locals: { task: null, mm: null } },
    tests
      ? [
          { do: 'trylock', lock, mode: 'R' },
          { do: 'vfio_pci_ioeventfd_locked', device: device.id, ioeventfd },
          { do: 'unlock', lock, cleanup: true },
        ]
      : [{ do: 'vfio_pci_ioeventfd_write', device: device.id, ioeventfd, deferred: false }],
    stop_at ?? null,
  );
}

export const ioeventfdCommands = {
  vfio_pci_put_ioeventfd: put,
  vfio_pci_delete_ioeventfd: remove,
  vfio_pci_signal_ioeventfd: signal,
};

export const ioeventfdSteps: Handlers<IoeventfdStep> = {
  vfio_pci_ioeventfd_locked(host, operation, { device, ioeventfd }) {
    const deferred = operation.thread.returned === 0;
    const lock = memoryLock(openDevice(host, device));
    pushSteps(operation, [
      ...(deferred ? [{ do: 'lock', lock, mode: 'R' } as const] : []),
      { do: 'vfio_pci_ioeventfd_write', device, ioeventfd, deferred },
    ]);
  },

  /** Gone meanwhile: a signal in flight is nobody's any more. */
  vfio_pci_ioeventfd_write(host, operation, { device: id, ioeventfd, deferred }) {
    const device = openDevice(host, id);
    const found = device.ioeventfds.get(ioeventfd);
    const tests = host.profile.vfioPciIoeventfdTest && found !== undefined && isGated(device, found.bar);
    const done = found !== undefined && (!tests || isMemoryEnabled(host, device));
    operation.thread.fields = { done, deferred };
    if (!done) return;
    const { bar, pos, bytes } = found;
    mmio(host, operation, device, { region: bar, pos: Number(pos), write: true }, bytes);
  },
};
