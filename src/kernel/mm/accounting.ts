// Models __account_locked_vm() of mm/util.c: pages charged against RLIMIT_MEMLOCK of one mm.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import type { MmId } from './mm.ts';
import { taskRlimitPages } from './task.ts';
import { warnOnce } from './warn-once.ts';

/**
 * Charges (or returns) npage pages of an mm under the limit of a task. locked_vm counts modulo 2^64: below 0 it is huge, so
 * an increment that leaves it there is over every limit, and one that carries it back to 0 or above is small again.
 * `path`: the callers, innermost first, for the splat of an underflow.
 * ESRCH: the mm is gone. ENOMEM: over the limit, unless lockCap. A return never fails, and warns once of an underflow.
 */
export function accountLockedVm(
  host: Host,
  mmId: MmId,
  task: string,
  npage: number,
  inc: boolean,
  lockCap: boolean,
  path: readonly string[] = ['vfio_lock_acct'],
): void {
  const mm = host.mm.mms.get(mmId);
  if (mm === undefined) throw new Errno('ESRCH', `mm '${mmId}' is gone`);
  if (inc) {
    const locked_vm = mm.locked_vm + npage;
    const limit = taskRlimitPages(host, task);
    if (!lockCap && (locked_vm < 0 || locked_vm > limit))
      throw new Errno(
        'ENOMEM',
        `task '${task}': locked_vm ${mm.locked_vm} + ${npage} pages is over RLIMIT_MEMLOCK of ${limit} pages`,
      );
    mm.locked_vm = locked_vm;
    return;
  }
  if (host.profile.underflowWarning && mm.locked_vm >= 0 && npage > mm.locked_vm)
    warnOnce(host, '__account_locked_vm', 'pages > locked_vm', path);
  mm.locked_vm -= npage;
}
