// Models vfio_iommu_type1_attach_group(): a group joins the back end of its container.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { mmOf } from '../mm/task.ts';
import { type Operation, requireRoomForOperation, settle, startOperation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import type { Container } from './container.ts';
import type { VfioDma } from './dma.ts';
import { addDomain, rangesWith, vfioIommuReplay } from './domain.ts';
import { type Group, getGroup } from './group.ts';
import type { Iommu, Type1Group } from './iommu.ts';
import { callerOf } from './pin-remote.ts';
import { sleepForVaddr } from './vaddr.ts';

/** Locals of a SET_CONTAINER that waits until every vaddr is valid. */
export interface AttachLocals {
  container: string;
  group: string;
  task: string | null;
}

/**
 * Attaches a group. An mdev group always succeeds: existing mappings are usable at once. An IOMMU-backed one shares the domain
 * of those before it; the first one pins and maps every existing mapping.
 * EBUSY a vaddr is invalid (6.x); EINVAL ranges, as rangesWith; ENODEV no calling process; the errors of the replay.
 * Returns an operation when the replay must wait for a vaddr. EBUSY: MAX_PARKED_OPERATIONS.
 */
export function vfioIommuType1AttachGroup(
  host: Host,
  container: Container,
  iommu: Iommu,
  group: Group,
  task: string | null,
): Operation | null {
  if (host.profile.invalidVaddr === 'EBUSY' && iommu.vaddr_invalid_count > 0)
    throw new Errno(
      'EBUSY',
      `container '${container.id}': ${iommu.vaddr_invalid_count} mappings have an invalid vaddr`,
    );
  const record: Type1Group = { id: group.id, pinned_page_dirty_scope: group.kind === 'mdev' };
  if (group.kind === 'mdev') {
    iommu.external_groups.push(record);
    return null;
  }
  const ranges = rangesWith(host, iommu, group);
  if (iommu.domain !== null) {
    iommu.domain.groups.push(record);
    iommu.iova_list = ranges;
  } else {
    if (iommu.vaddr_invalid_count > 0) {
      requireRoomForOperation(host);
      const locals = { container: container.id, group: group.id, task };
      const operation = startOperation(host, { kind: 'set_container', locals });
      sleepForVaddr(host, iommu, operation);
      return operation;
    }
    const callerFor = (dma: VfioDma) => {
      const caller = task ?? dma.task;
      if (mmOf(host, caller) === null) throw new Errno('ENODEV', `task '${caller}', which attaches, has no mm`);
      return callerOf(host, caller);
    };
    vfioIommuReplay(host, container, iommu, callerFor);
    addDomain(host, iommu, group, record, ranges);
  }
  iommu.num_non_pinned_groups++;
  return null;
}

/** A vaddr has changed: the attach goes on, or sleeps again. */
export function continueAttach(
  host: Host,
  operation: Operation,
  finish: (host: Host, container: Container, group: Group) => void,
): void {
  if (operation.kind !== 'set_container') throw new Error(`${operation.id} is no attach`);
  const { container: id, group: groupId, task } = operation.locals;
  settle(host, operation, (): Done => {
    const container = host.vfio.containers.get(id);
    const iommu = container?.iommu ?? null;
    if (container === undefined || iommu === null || !iommu.container_open)
      throw new Errno('EFAULT', `container '${id}' was closed while an attach waited for a vaddr`);
    if (iommu.vaddr_invalid_count > 0) {
      sleepForVaddr(host, iommu, operation);
      return { ret: 0, fields: {}, parked: operation.id };
    }
    const group = getGroup(host, groupId);
    vfioIommuType1AttachGroup(host, container, iommu, group, task);
    finish(host, container, group);
    return { ret: 0, fields: {} };
  });
}
