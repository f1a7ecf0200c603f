// Models execve() as far as memory notices: de_thread() and exec_mmap() of fs/exec.c, and what the mappings of a task then refer to.

import type { Command } from './command.ts';
import type { Host } from './host.ts';
import { mmput } from './mm/exit.ts';
import { execMmap } from './mm/task.ts';
import type { Done } from './outcome.ts';
import { requireRoomToRun } from './thread.ts';
import { followTask } from './vfio/dma-task.ts';

/**
 * A task runs another program. The other threads of its process end; it leads the process from now on, under the pid of the one
 * that did; its address space is a new and empty one. Mappings stay: they refer to a task, so where that is the caller they are
 * backed by its new address space, or to the old address space itself, which is gone. Fields: id, pid, mm.
 * ESRCH: it has exited. EBUSY: MAX_PARKED_OPERATIONS.
 */
export function exec(host: Host, { task: id }: Extract<Command, { op: 'exec' }>): Done {
  requireRoomToRun(host, null);
  const {
    task: { pid, mm },
    last,
  } = execMmap(host, id);
  if (last !== null) mmput(host, id, last, null);
  followTask(host, id, mm);
  return { ret: 0, fields: { id, pid, mm } };
}
