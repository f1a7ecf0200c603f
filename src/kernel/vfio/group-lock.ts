// Models container->group_lock where calls into the back end hold it for reading (4.10 to 4.12), and attach and detach take it for writing.

import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import type { Container } from './container.ts';
import { enclosingOperations } from './notifier.ts';

/**
 * Whether the lock can be taken for writing. EDEADLK: an unmap holds it for reading while its handler runs. Inside the handler
 * nobody else can release it; beside it the writer would wait, and the handler's unpin behind the writer.
 */
export function requireGroupLock(host: Host, container: Container, wants: string, where: string): void {
  if (!host.profile.groupLockAroundCalls) return;
  for (const { id, kind, state, locals } of host.operations.values()) {
    if (kind !== 'unmap_dma' || state === 'done' || locals.container !== container.id) continue;
    const cycle = enclosingOperations(host).includes(id)
      ? `${wants} waits for group_lock; ${id} holds it and waits for ${host.call.notification}; its handler waits for ${wants}`
      : `${wants} waits for group_lock; ${id} holds it until its handler returns; the handler's unpin waits behind ${wants}`;
    splat(host, 'DEADLOCK', where, `group-lock: ${cycle}`, ['vfio_fops_unl_ioctl']);
    throw new Errno('EDEADLK', `${wants} in container '${container.id}' would deadlock: ${cycle}`, {
      hint: 'let the unmap finish first; the cycle is in dmesg',
    });
  }
}
