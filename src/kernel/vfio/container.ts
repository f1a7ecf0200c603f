// Models struct vfio_container: what an open /dev/vfio/vfio stands for, and its ioctls that concern no mapping.

import type { Command } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import type { Bug, Host } from '../host.ts';
import { MAX_CONTAINERS } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { vfioIommuType1AttachGroup } from './attach.ts';
import { lacksSysRawio } from './group.ts';
import { requireGroupLock } from './group-lock.ts';
import { type Iommu, vfioIommuType1Open } from './iommu.ts';
import { wakeVaddrWaiters } from './vaddr.ts';

export interface Container {
  id: string;
  fd_open: boolean;
  groups: string[];
  iommu: Iommu | null;
  /** Its back end is the one of noiommu groups, which has nothing but a name. */
  noiommu?: true;
  /** The BUG that killed it. */
  dead: Bug | null;
}

const VFIO_TYPE1_IOMMU = 1;
const VFIO_TYPE1v2_IOMMU = 3;
const VFIO_TYPE1_NESTING_IOMMU = 6;
const VFIO_NOIOMMU_IOMMU = 8;

/** Extension whose answer depends on the container from 6.3 on: no mdev group may be attached. */
const UPDATE_VADDR = 10;
/** Coherent: needs an iommu object; 1 when no domain says otherwise. */
const DMA_CC = 4;

export function getContainer(host: Host, id: string): Container {
  const container = host.vfio.containers.get(id);
  if (container === undefined) throw new NoSuchObject('container', id);
  return container;
}

/** Refuses every change of a container that died of a BUG: its iommu lock is held for ever. */
export function requireAlive(container: Container): void {
  if (container.dead !== null)
    throw new Errno('EIO', `container '${container.id}' is dead: ${container.dead.text}`, {
      hint: 'the emulated kernel hit a BUG while holding iommu->lock; see dmesg, then reset the host or use another container',
    });
}

/** The container behind a group or device for a mutating call, or null: EIO if it is dead. */
export function containerOf(host: Host, id: string | null): Container | null {
  if (id === null) return null;
  const container = getContainer(host, id);
  requireAlive(container);
  return container;
}

/**
 * open("/dev/vfio/vfio"), under a new id or one whose container is gone. EIO: it died. EBADF: closed, but groups still hold it.
 * ENOSPC: more than MAX_CONTAINERS.
 */
export function putContainer(host: Host, { container: id }: Extract<Command, { op: 'put_container' }>): Done {
  const existing = host.vfio.containers.get(id);
  if (existing !== undefined && !isGone(existing)) {
    requireAlive(existing);
    requireOpen(existing);
    return { ret: 0, created: false, fields: { id } };
  }
  if (existing !== undefined) host.vfio.containers.delete(id);
  else requireRoom(host);
  host.vfio.containers.set(id, { id, fd_open: true, groups: [], iommu: null, dead: null });
  return { ret: 0, created: true, fields: { id } };
}

/** Whether nobody refers to it any more (fd closed, no group): only its id remains, which answers EBADF until it is used again. */
export const isGone = ({ fd_open, groups, dead }: Container): boolean =>
  !fd_open && groups.length === 0 && dead === null;

/** ENOSPC: MAX_CONTAINERS. The id of a container that is gone makes room. */
function requireRoom(host: Host): void {
  const { containers } = host.vfio;
  if (containers.size < MAX_CONTAINERS) return;
  for (const container of containers.values())
    if (isGone(container)) {
      containers.delete(container.id);
      return;
    }
  throw new Errno('ENOSPC', `containers: the host has ${MAX_CONTAINERS}, the most it can hold`);
}

export function requireOpen(container: Container): void {
  if (!container.fd_open)
    throw new Errno('EBADF', `container '${container.id}': its file descriptor is closed`, {
      hint: 'the iommu object lives on until its last group leaves; then the id can be used again',
    });
}

/** Models vfio_fops_release(): the iommu object stays while groups are attached. EIO, EBADF. */
export function closeContainer(
  host: Host,
  { container: id, notify_only }: Extract<Command, { op: 'close_container' }>,
): Done {
  const container = getContainer(host, id);
  requireAlive(container);
  requireOpen(container);
  container.fd_open = notify_only === true;
  if (container.iommu !== null) {
    container.iommu.container_open = false;
    wakeVaddrWaiters(host, container.iommu);
  }
  return { ret: 0, fields: {} };
}

/**
 * Models vfio_ioctl_set_iommu().
 * EIO dead; EBADF closed; EDEADLK (4.10); EINVAL no group attached or already set; ENODEV no back end knows the number; EINVAL an extension
 * that is not a type; EPERM noiommu without CAP_SYS_RAWIO; EINVAL the iova ranges of the groups exclude each other, and then none is attached.
 */
export function setIommu(host: Host, command: Extract<Command, { op: 'set_iommu' }>): Done {
  const container = getContainer(host, command.container);
  requireAlive(container);
  requireOpen(container);
  requireGroupLock(host, container, 'set_iommu', 'vfio_ioctl_set_iommu');
  if (container.groups.length === 0)
    throw new Errno('EINVAL', `container '${container.id}' has no group`, {
      hint: 'SET_CONTAINER comes before SET_IOMMU',
    });
  if (container.iommu !== null)
    throw new Errno('EINVAL', `container '${container.id}' has an iommu already: type ${container.iommu.type}`);
  const { type } = command;
  if (container.noiommu === true)
    throw new Errno('EINVAL', `container '${container.id}' has the noiommu back end already`);
  if (host.vfio.groups.get(container.groups[0] as string)?.kind === 'noiommu')
    return setNoiommu(host, container, command);
  if (!host.profile.extensions.includes(type)) throw new Errno('ENODEV', `type ${type}: no back end answers to it`);
  if (type !== VFIO_TYPE1_IOMMU && type !== VFIO_TYPE1v2_IOMMU && type !== VFIO_TYPE1_NESTING_IOMMU)
    throw new Errno('EINVAL', `type ${type} is an extension, not an iommu type`);
  const limit = host.profile.dmaEntryLimit ? host.options.dma_entry_limit : Number.MAX_SAFE_INTEGER;
  const iommu = vfioIommuType1Open(type, type !== VFIO_TYPE1_IOMMU, limit);
  for (const id of container.groups) {
    const group = host.vfio.groups.get(id);
    if (group !== undefined) vfioIommuType1AttachGroup(host, container, iommu, group, command.task);
  }
  container.iommu = iommu;
  return { ret: 0, fields: {} };
}

/** The back end of noiommu groups. ENODEV another number; EPERM the caller lacks CAP_SYS_RAWIO. */
function setNoiommu(host: Host, container: Container, { type, task }: Extract<Command, { op: 'set_iommu' }>): Done {
  if (type !== VFIO_NOIOMMU_IOMMU) throw new Errno('ENODEV', `type ${type}: noiommu groups take ${VFIO_NOIOMMU_IOMMU}`);
  if (lacksSysRawio(host, task)) throw new Errno('EPERM', `task '${task}' lacks CAP_SYS_RAWIO`);
  container.noiommu = true;
  return { ret: 0, fields: {} };
}

/** The iommu object of a container for an ioctl that changes it. EIO, EBADF, ENOTTY noiommu, EINVAL when SET_IOMMU was not done. */
export function requireIommu(container: Container): Iommu {
  requireAlive(container);
  return readIommu(container);
}

/** The iommu object of a container for an ioctl that only asks, which a dead container still answers. EBADF, ENOTTY noiommu, EINVAL. */
export function readIommu(container: Container): Iommu {
  requireOpen(container);
  if (container.noiommu === true)
    throw new Errno('ENOTTY', `container '${container.id}' has the noiommu back end, which knows no such ioctl`);
  if (container.iommu === null)
    throw new Errno('EINVAL', `container '${container.id}' has no iommu`, { hint: 'attach a group, then SET_IOMMU' });
  return container.iommu;
}

/** VFIO_CHECK_EXTENSION. EINVAL without a back end, as the recorded traces answer. */
export function checkExtension(host: Host, container: Container, extension: number): number {
  if (container.noiommu === true && container.fd_open) return extension === VFIO_NOIOMMU_IOMMU ? 1 : 0;
  const { external_groups } = readIommu(container);
  if (extension === UPDATE_VADDR && host.profile.invalidVaddr === 'EBUSY') return external_groups.length === 0 ? 1 : 0;
  return host.profile.extensions.includes(extension) || extension === DMA_CC ? 1 : 0;
}
