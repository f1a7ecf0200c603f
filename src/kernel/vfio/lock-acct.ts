// Models vfio_lock_acct(): pages charged to the mm behind a mapping; and put_pfn(), which gives a pinned page back.

import { WRITE } from '../command.ts';
import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import { accountLockedVm } from '../mm/accounting.ts';
import { unpinUserPage } from '../mm/gup.ts';
import type { MmStruct } from '../mm/mm.ts';
import { isInvalidOrReserved } from '../mm/page.ts';
import { getTask, mmOf } from '../mm/task.ts';
import type { VfioDma } from './dma.ts';

/** The mm behind a mapping while it has users: that of its task now, or the one that the mapping itself holds. */
export const mmOfDma = (host: Host, dma: VfioDma): MmStruct | null =>
  host.profile.mmKept === 'mapping' ? (host.mm.mms.get(dma.mm) ?? null) : mmOf(host, dma.task);

/** Whether CAP_IPC_LOCK lifts the limit for a pin of this mapping. */
export const lockCapOf = (host: Host, dma: VfioDma): boolean =>
  host.profile.capIpcLock === 'map' ? dma.lock_cap : getTask(host, dma.task).cap_ipc_lock;

/**
 * Charges npage pages for a mapping, or returns them where npage is negative.
 * `current`: the charge is made in the name of the calling process, whose own mm it must be.
 * ESRCH the mm is gone; EINTR killed while waiting for its lock; ENOMEM RLIMIT_MEMLOCK. Old kernels fail in no way.
 */
export function vfioLockAcct(host: Host, dma: VfioDma, npage: number, current = false): void {
  if (npage === 0) return;
  const mm = mmOfDma(host, dma);
  const checked = host.profile.charge === 'checked';
  if (mm === null) {
    // The mapping's own mm outlives its address space: only who asks for users notices that they are gone.
    if (!checked) dma.drift -= npage;
    if (!checked || (current && host.profile.mmKept === 'mapping')) return;
    throw new Errno('ESRCH', `the mm of task '${dma.task}', which made the mapping, is gone`);
  }
  if (checked && shouldFail(host, 'charge'))
    throw new Errno('EINTR', `killed while waiting to charge ${npage} pages to mm '${mm.id}'`);
  accountLockedVm(host, mm.id, dma.task, Math.abs(npage), npage > 0, dma.lock_cap || !checked);
  dma.locked_vm += npage;
}

/** Returns the charge of pages that were given back. An error is ignored, as the kernel does: the charge stays. */
export function vfioUncharge(host: Host, dma: VfioDma, npage: number): void {
  changeCharge(host, dma, -npage);
}

/** Changes the charge by a difference where nobody looks at the result. */
export function changeCharge(host: Host, dma: VfioDma, npage: number): void {
  try {
    vfioLockAcct(host, dma, npage);
  } catch (error) {
    if (!(error instanceof Errno)) throw error;
    dma.drift -= npage;
  }
}

/** Models put_pfn(): returns a page, dirty where the mapping is writable. False: it is no page that is counted. */
export function putPfn(host: Host, pfn: number, prot: number): boolean {
  if (isInvalidOrReserved(host, pfn)) return false;
  unpinUserPage(host, pfn, (prot & WRITE) !== 0);
  return true;
}
