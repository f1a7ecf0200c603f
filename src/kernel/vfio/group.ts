// Models struct vfio_group: /dev/vfio/N, its binding to a container, and who uses it.

import type { Command } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { MAX_GROUPS } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { type Container, containerOf, getContainer, requireAlive, requireOpen } from './container.ts';
import {
  emptyChain,
  type Iommu,
  type NotifierChain,
  vfioIommuType1AttachGroup,
  vfioIommuType1DetachGroup,
  vfioIommuType1Release,
} from './iommu.ts';

export interface Group {
  id: string;
  kind: 'mdev';
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

/** Makes a group and opens it. ENOSPC: more than MAX_GROUPS. EEXIST: made with another body. */
export function putGroup(host: Host, { group: id, kind }: Extract<Command, { op: 'put_group' }>): Done {
  const existing = host.vfio.groups.get(id);
  if (existing !== undefined) {
    if (existing.kind !== kind) throw new Errno('EEXIST', `group '${id}' exists with kind ${existing.kind}`);
    return { ret: 0, created: false, fields: { id } };
  }
  if (host.vfio.groups.size >= MAX_GROUPS)
    throw new Errno('ENOSPC', `groups: the host has ${MAX_GROUPS}, the most it can hold`);
  host.vfio.groups.set(id, {
    id,
    kind,
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

/** Models vfio_group_fops_open(). EBUSY: open already, or still bound to a container. */
export function openGroup(host: Host, { group: id }: Extract<Command, { op: 'open_group' }>): Done {
  const group = getGroup(host, id);
  containerOf(host, group.container);
  if (group.fd_open) throw new Errno('EBUSY', `group '${id}' is open already`);
  if (group.container !== null)
    throw new Errno('EBUSY', `group '${id}' is still bound to container '${group.container}' by its open devices`);
  if (group.notifier.blocks.length > 0) {
    splat(
      host,
      'WARN',
      'vfio_group_fops_open',
      `group notifier chain not empty (${group.notifier.blocks.join(', ')})`,
      [],
    );
    group.notifier = emptyChain();
  }
  group.fd_open = true;
  return { ret: 0, fields: {} };
}

/** Models vfio_group_fops_release(): with devices open, the binding lives until the last of them closes. EIO, EBADF. */
export function closeGroup(host: Host, { group: id }: Extract<Command, { op: 'close_group' }>): Done {
  const group = getGroup(host, id);
  containerOf(host, group.container);
  requireGroupFd(group);
  group.fd_open = false;
  vfioGroupTryDissolveContainer(host, group);
  return { ret: 0, fields: {} };
}

/** Models vfio_group_set_container(). EIO container dead; EBADF group or container fd closed; EINVAL bound already. */
export function setContainer(host: Host, command: Extract<Command, { op: 'set_container' }>): Done {
  const group = getGroup(host, command.group);
  const container = getContainer(host, command.container);
  containerOf(host, group.container);
  requireAlive(container);
  requireGroupFd(group);
  if (group.container_users > 0)
    throw new Errno('EINVAL', `group '${group.id}' is bound to container '${group.container}' already`);
  requireOpen(container);
  if (container.iommu !== null) vfioIommuType1AttachGroup(container.iommu, group.id);
  group.container = container.id;
  group.container_users = 1;
  container.groups.push(group.id);
  return { ret: 0, fields: {} };
}

/** Models vfio_group_unset_container(). EIO; EBADF; EINVAL not bound; EBUSY a device is open. */
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
  group.container_users = 0;
  unbind(host, group);
  return { ret: 0, fields: {} };
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
  if (container.iommu !== null) vfioIommuType1DetachGroup(host, container, container.iommu, group.id);
  group.container = null;
  container.groups = container.groups.filter((id) => id !== group.id);
  if (container.groups.length === 0 && container.iommu !== null)
    vfioIommuType1Release(host, container, container.iommu);
}

/**
 * Models vfio_group_add_container_user(): what every call through a device needs of its group. EINVAL: no container, or no
 * iommu. The user is taken and dropped within one call, so nothing is counted here unless the call waits: holdContainerUser.
 */
export function vfioGroupAddContainerUser(host: Host, group: Group): { container: Container; iommu: Iommu } {
  if (group.container === null)
    throw new Errno('EINVAL', `group '${group.id}' is not bound to a container`, { hint: 'SET_CONTAINER first' });
  const container = getContainer(host, group.container);
  if (container.iommu === null)
    throw new Errno('EINVAL', `container '${container.id}' has no iommu`, { hint: 'SET_IOMMU first' });
  return { container, iommu: container.iommu };
}

/** A call of a device of the group begins to wait: it keeps its user until it returns, and with it the binding. */
export function holdContainerUser(host: Host, id: string): void {
  getGroup(host, id).container_users++;
}

/** A call that waited has returned. */
export function dropContainerUser(host: Host, id: string): void {
  vfioGroupTryDissolveContainer(host, getGroup(host, id));
}
