// Models struct vfio_group: /dev/vfio/N, its binding to a container, and who uses it.

import type { AddressRange, Command, GroupKind } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { hex } from '../lib/u64.ts';
import { MAX_GROUPS, MAX_RESERVED_REGIONS } from '../limits.ts';
import { getTask, hasSysRawio } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import { vfioIommuType1AttachGroup } from './attach.ts';
import { type Container, containerOf, getContainer, requireAlive, requireOpen } from './container.ts';
import { requireGroupLock } from './group-lock.ts';
import { type Iommu, refuseSecondAttach, vfioIommuType1DetachGroup, vfioIommuType1Release } from './iommu.ts';
import { blocksOf, emptyChain, type NotifierChain } from './notifier-chain.ts';

export interface Group {
  id: string;
  kind: GroupKind;
  /** Of an IOMMU-backed group: iovas that it can't map, and those between which it can. */
  reserved: AddressRange[];
  aperture: AddressRange;
  fd_open: boolean;
  container: string | null;
  /** One for the binding, one for each open device and each call that waits; the binding is dissolved when it reaches 0. */
  container_users: number;
  devices: string[];
  /** Group notifiers (KVM association). */
  notifier: NotifierChain;
}

export function getGroup(host: Host, id: string): Group {
  const group = host.vfio.groups.get(id);
  if (group === undefined) throw new NoSuchObject('group', id);
  return group;
}

/** The interrupt range of x86: what an IOMMU-backed group reserves unless it says otherwise. */
const MSI_RANGE: AddressRange = { start: 0xfee00000n, last: 0xfeefffffn };
const WHOLE_SPACE: AddressRange = { start: 0n, last: 0xffffffffffffn };

const printRanges = (ranges: readonly AddressRange[]): string =>
  ranges.map(({ start, last }) => `${hex(start)}-${hex(last)}`).join(', ');

/**
 * Makes a group and opens it. An mdev group has neither reserved regions nor aperture.
 * EEXIST: made with another body. EINVAL: a range that ends before it begins. E2BIG: more than MAX_RESERVED_REGIONS.
 * ENOSPC: more than MAX_GROUPS.
 */
export function putGroup(host: Host, command: Extract<Command, { op: 'put_group' }>): Done {
  const { group: id, kind } = command;
  const reserved = command.reserved ?? (kind === 'iommu' ? [{ ...MSI_RANGE }] : []);
  const aperture = command.aperture ?? { ...WHOLE_SPACE };
  const existing = host.vfio.groups.get(id);
  if (existing !== undefined) {
    const body = (group: Pick<Group, 'kind' | 'reserved' | 'aperture'>): string =>
      `kind ${group.kind}, reserved ${printRanges(group.reserved)}, aperture ${printRanges([group.aperture])}`;
    if (body(existing) !== body({ kind, reserved, aperture }))
      throw new Errno('EEXIST', `group '${id}' exists with ${body(existing)}`);
    return { ret: 0, created: false, fields: { id } };
  }
  for (const { start, last } of [...reserved, aperture])
    if (last < start) throw new Errno('EINVAL', `range ${hex(start)}-${hex(last)} ends before it begins`);
  if (reserved.length > MAX_RESERVED_REGIONS)
    throw new Errno('E2BIG', `reserved: ${reserved.length} regions, the limit is ${MAX_RESERVED_REGIONS}`);
  if (host.vfio.groups.size >= MAX_GROUPS)
    throw new Errno('ENOSPC', `groups: the host has ${MAX_GROUPS}, the most it can hold`);
  host.vfio.groups.set(id, {
    id,
    kind,
    reserved,
    aperture,
    fd_open: true,
    container: null,
    container_users: 0,
    devices: [],
    notifier: emptyChain(),
  });
  return { ret: 0, created: true, fields: { id } };
}

export function requireGroupFd(group: Group): void {
  if (!group.fd_open) throw new Errno('EBADF', `group '${group.id}': its file descriptor is closed`);
}

/** Whether `task` is one that a noiommu group or its back end refuses. null: a caller who may do anything. */
export const lacksSysRawio = (host: Host, task: string | null): boolean =>
  task !== null && !hasSysRawio(getTask(host, task));

function requireSysRawio(host: Host, { id, kind }: Group, task: string | null): void {
  if (kind === 'noiommu' && lacksSysRawio(host, task))
    throw new Errno('EPERM', `group '${id}' is noiommu: task '${task}' lacks CAP_SYS_RAWIO`);
}

/** Models vfio_group_fops_open(). EPERM: noiommu without CAP_SYS_RAWIO. EBUSY: open already, or still bound to a container. */
export function openGroup(host: Host, { group: id, task }: Extract<Command, { op: 'open_group' }>): Done {
  const group = getGroup(host, id);
  if (task !== undefined) getTask(host, task);
  containerOf(host, group.container);
  requireSysRawio(host, group, task ?? null);
  if (group.fd_open) throw new Errno('EBUSY', `group '${id}' is open already`);
  if (group.container !== null)
    throw new Errno('EBUSY', `group '${id}' is still bound to container '${group.container}' by its open devices`);
  if (host.profile.groupChainCheck === 'open' && group.notifier.head !== null) {
    warnOfListeners(host, group, 'vfio_group_fops_open');
    group.notifier = emptyChain();
  }
  group.fd_open = true;
  return { ret: 0, fields: {} };
}

function warnOfListeners(host: Host, group: Group, where: string): void {
  const left = blocksOf(group.notifier);
  if (left.length > 0) splat(host, 'WARN', where, `group notifier chain not empty (${left.join(', ')})`, []);
}

/** Models vfio_group_fops_release(): with devices open, the binding lives until the last of them closes. EIO, EBADF, EDEADLK. */
export function closeGroup(host: Host, { group: id }: Extract<Command, { op: 'close_group' }>): Done {
  const group = getGroup(host, id);
  containerOf(host, group.container);
  requireGroupFd(group);
  requireMayDissolve(host, group, 'vfio_group_fops_release');
  if (host.profile.groupChainCheck === 'close') warnOfListeners(host, group, 'vfio_group_fops_release');
  group.fd_open = false;
  vfioGroupTryDissolveContainer(host, group);
  return { ret: 0, fields: {} };
}

/**
 * Models vfio_group_set_container(). `task` is the caller, whose limit a replay uses; without it each mapping's own task.
 * EIO container dead; EBADF group or container fd closed; EINVAL bound already; EPERM noiommu without CAP_SYS_RAWIO; EDEADLK (4.10);
 * EPERM noiommu groups and others in one container; the errors of vfioIommuType1AttachGroup.
 */
export function setContainer(host: Host, command: Extract<Command, { op: 'set_container' }>): Done {
  const group = getGroup(host, command.group);
  const container = getContainer(host, command.container);
  containerOf(host, group.container);
  requireAlive(container);
  requireGroupFd(group);
  if (group.container_users > 0)
    throw new Errno('EINVAL', `group '${group.id}' is bound to container '${group.container}' already`);
  if (command.task !== null) getTask(host, command.task);
  requireSysRawio(host, group, command.task);
  requireOpen(container);
  requireGroupLock(host, container, 'set_container', 'vfio_group_set_container');
  requireAlike(host, container, group);
  refuseSecondAttach(host, group.id);
  if (container.iommu !== null) {
    const waiting = vfioIommuType1AttachGroup(host, container, container.iommu, group, command.task);
    if (waiting !== null) return { ret: 0, fields: {}, parked: waiting.id };
  }
  bind(container, group);
  return { ret: 0, fields: {} };
}

/** EPERM: noiommu groups share a container with none of another kind. */
function requireAlike({ vfio }: Host, { id, groups }: Container, { kind }: Group): void {
  const other = groups[0] === undefined ? undefined : vfio.groups.get(groups[0]);
  if (other !== undefined && (other.kind === 'noiommu') !== (kind === 'noiommu'))
    throw new Errno('EPERM', `container '${id}' holds group '${other.id}' of kind ${other.kind}: noiommu does not mix`);
}

/** The group counts as one user of the container from now on. */
export function bind(container: Container, group: Group): void {
  group.container = container.id;
  group.container_users = 1;
  container.groups.push(group.id);
}

/** Models vfio_group_unset_container(). EIO; EBADF; EINVAL not bound; EBUSY a device is open; EDEADLK (4.10). */
export function unsetContainer(host: Host, { group: id }: Extract<Command, { op: 'unset_container' }>): Done {
  const group = getGroup(host, id);
  containerOf(host, group.container);
  requireGroupFd(group);
  if (group.container_users === 0) throw new Errno('EINVAL', `group '${id}' is not bound to a container`);
  if (group.container_users !== 1)
    throw new Errno(
      'EBUSY',
      `group '${id}' has ${group.container_users - 1} users: open device fds, and calls of its devices that wait`,
      {
        hint: 'close its devices; a pin or registration that waits counts until it returns',
      },
    );
  requireMayDissolve(host, group, 'vfio_group_unset_container');
  group.container_users = 0;
  unbind(host, group);
  return { ret: 0, fields: {} };
}

/** EDEADLK: the last user of the group's binding leaves, and the lock that this takes is held. */
export function requireMayDissolve(host: Host, group: Group, where: string): void {
  if (group.container_users === 1)
    requireGroupLock(host, getContainer(host, group.container as string), `detaching group '${group.id}'`, where);
}

/** Models vfio_group_try_dissolve_container(): one user less; the last one unbinds. */
export function vfioGroupTryDissolveContainer(host: Host, group: Group): void {
  if (group.container_users === 0) return;
  group.container_users--;
  if (group.container_users === 0) unbind(host, group);
}

/** Models __vfio_group_unset_container(). */
function unbind(host: Host, group: Group): void {
  const container = getContainer(host, group.container as string);
  if (container.iommu !== null) vfioIommuType1DetachGroup(host, container, container.iommu, group);
  group.container = null;
  container.groups = container.groups.filter((id) => id !== group.id);
  if (container.groups.length > 0) return;
  delete container.noiommu;
  if (container.iommu !== null) vfioIommuType1Release(host, container, container.iommu);
}

/**
 * Models vfio_group_add_container_user(): what every call through a device needs of its group. EINVAL: no container; EPERM,
 * later ENOTTY: noiommu; EINVAL: no iommu. The user is taken and dropped within one call, so nothing is counted here unless the call waits: holdContainerUser.
 */
export function vfioGroupAddContainerUser(host: Host, group: Group): { container: Container; iommu: Iommu } {
  if (group.container === null)
    throw new Errno('EINVAL', `group '${group.id}' is not bound to a container`, { hint: 'SET_CONTAINER first' });
  const container = getContainer(host, group.container);
  if (group.kind === 'noiommu')
    throw new Errno(host.profile.noiommuUser, `group '${group.id}' is noiommu: nothing is mapped or pinned through it`);
  if (container.iommu === null)
    throw new Errno('EINVAL', `container '${container.id}' has no iommu`, { hint: 'SET_IOMMU first' });
  return { container, iommu: container.iommu };
}

/** A call of a device of the group begins to wait: it keeps its user until it returns, and with it the binding. */
export function holdContainerUser(host: Host, id: string): void {
  getGroup(host, id).container_users++;
}

/** A call that waited has returned. One that its container's death ended has dropped its user then. */
export function dropContainerUser(host: Host, id: string): void {
  const group = getGroup(host, id);
  if (group.container !== null && getContainer(host, group.container).dead === null)
    vfioGroupTryDissolveContainer(host, group);
}
