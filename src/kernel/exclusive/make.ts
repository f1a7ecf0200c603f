// Models make_device_exclusive_range() of mm/rmap.c, 5.15: pages of a process leave every page table, for a device to use.

import type { Host } from '../host.ts';
import { trace } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { holds, pageLock, release } from '../lock.ts';
import { isExclusiveEntry, makeExclusiveEntry } from '../mm/exclusive-entry.ts';
import { FAULT_FLAG_REMOTE } from '../mm/fault-flags.ts';
import { clearPteAt } from '../mm/fault-steps.ts';
import { FOLL_GET, FOLL_REMOTE, FOLL_WRITE } from '../mm/gup-flags.ts';
import { anyMm, type MmId } from '../mm/mm.ts';
import { invalidation } from '../mm/mmu-notifier/invalidation.ts';
import { KIND_ANON, KIND_KSM } from '../mm/page-frames.ts';
import { isResident, PTE_WRITE } from '../mm/page-table.ts';
import { underPtl } from '../mm/ptl.ts';
import { exclusiveEntriesOf, inMm, rmapLocks, rmapOf, under } from '../mm/rmap.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { deviceOf, type Grant, type Reason, type Slot } from './device.ts';

/** One call. */
export interface Asked {
  device: string;
  /** Where its slots are. */
  grant: string;
  mm: MmId;
  page: number;
  npage: number;
}

/** One entry that maps a page of the call. */
interface Entry {
  mm: MmId;
  page: number;
  pfn: number;
}

export type MakeStep =
  | { do: 'exclusive_gup'; at: Asked; cleanup?: true }
  /** The pages that GUP found become the thread's; they hide its error. */
  | { do: 'exclusive_got'; at: Asked; cleanup: true }
  | { do: 'exclusive_pages'; at: Asked; cleanup?: true }
  /** After the trylock. */
  | { do: 'exclusive_page_locked'; at: Asked; i: number; cleanup?: true }
  | { do: 'exclusive_each'; at: Asked; i: number; cleanup?: true }
  | { do: 'exclusive_entry'; at: Asked; i: number; entry: Entry; cleanup?: true }
  | { do: 'exclusive_protect'; at: Asked; i: number; entry: Entry; cleanup?: true }
  | { do: 'exclusive_set'; cleared: number; entry: Entry; flags: number; cleanup?: true }
  | { do: 'exclusive_judge'; at: Asked; i: number; cleanup?: true }
  /** What the call still holds is released, and its slots are forgotten, unless a grant has both. */
  | { do: 'exclusive_release'; at: Asked; cleanup: true };

const gupOf = ({ id }: ThreadOperation): string => `exclusive-${id}`;

const grantOf = (host: Host, { device, grant }: Asked): Grant | undefined => deviceOf(host, device).grants.get(grant);

const slotOf = (host: Host, at: Asked, i: number): Slot => grantOf(host, at)?.slots[i] as Slot;

/**
 * The steps of one call. `then` is done with the slots at hand; `thread.ret`: pages that GUP has found, granted or not. Precondition:
 * mmap_lock is held for reading. EFAULT, ENOMEM: GUP finds no page.
 */
export const makeExclusiveSteps = (at: Asked, then: readonly Step[]): Step[] => [
  { do: 'exclusive_gup', at },
  { do: 'exclusive_got', at, cleanup: true },
  { do: 'phase', phase: 'after_gup' },
  { do: 'exclusive_pages', at },
  ...then,
  { do: 'exclusive_release', at, cleanup: true },
];

/** The thread gives a page of the call back. */
function putSlot(host: Host, operation: ThreadOperation, { pfn }: Slot): void {
  const { pages } = operation.thread;
  if (holds(operation, pageLock(pfn))) release(host, operation, pageLock(pfn));
  const at = pages.lastIndexOf(pfn);
  if (at < 0) return;
  pages.splice(at, 1);
  host.mm.pages.put(pfn, host.seq);
}

function reject(host: Host, operation: ThreadOperation, slot: Slot, reason: Reason): void {
  slot.reason = reason;
  putSlot(host, operation, slot);
}

export const makeSteps: Handlers<MakeStep> = {
  /** get_user_pages_remote() without `locked`: its faults wait, whatever for. */
  exclusive_gup(host, operation, { at }) {
    const { device, grant, mm, page, npage } = at;
    const gup = gupOf(operation);
    deviceOf(host, device).grants.set(grant, { id: grant, slots: [], busy: true });
    const flags = FOLL_GET | FOLL_WRITE | FOLL_REMOTE;
    host.mm.gups.set(gup, { id: gup, mm, page, flags, pfns: [], busy: true });
    pushSteps(operation, [{ do: 'gup_page', wanted: { gup, mm, page, npage }, flags: FAULT_FLAG_REMOTE, faults: 0 }]);
  },

  exclusive_got(host, operation, { at }) {
    const { thread } = operation;
    const pfns = host.mm.gups.get(gupOf(operation))?.pfns ?? [];
    host.mm.gups.delete(gupOf(operation));
    const grant = grantOf(host, at);
    if (grant === undefined || pfns.length === 0) return;
    thread.pages.push(...pfns);
    thread.error = null;
    thread.ret = pfns.length;
    grant.slots = pfns.map((pfn, i) => ({
      page: at.page + i,
      pfn,
      granted: false,
      reason: null,
      valid: false,
      failed: false,
    }));
  },

  exclusive_pages(host, operation, { at }) {
    const slots = grantOf(host, at)?.slots ?? [];
    pushSteps(
      operation,
      slots.flatMap(({ pfn }, i): Step[] => [
        { do: 'trylock', lock: pageLock(pfn), mode: 'W' },
        { do: 'exclusive_page_locked', at, i },
      ]),
    );
  },

  /** Whoever has locked the page is not waited for. */
  exclusive_page_locked(host, operation, { at, i }) {
    const slot = slotOf(host, at, i);
    const { pfn } = slot;
    const kind = host.mm.pages.kind(pfn);
    if (operation.thread.returned === 0) reject(host, operation, slot, 'page_locked');
    else if (kind !== KIND_ANON && kind !== KIND_KSM) reject(host, operation, slot, 'not_anon');
    else
      pushSteps(operation, [
        ...under(rmapLocks(host, pfn), 'R', [{ do: 'exclusive_each', at, i }]),
        { do: 'exclusive_judge', at, i },
      ]);
  },

  exclusive_each(host, operation, { at, i }) {
    const { pfn } = slotOf(host, at, i);
    const entries = [...rmapOf(host, pfn), ...exclusiveEntriesOf(host, pfn)];
    pushSteps(
      operation,
      entries.flatMap(({ mm, page }) => inMm(host, mm, [{ do: 'exclusive_entry', at, i, entry: { mm, page, pfn } }])),
    );
  },

  exclusive_entry(host, operation, { at, i, entry }) {
    if (slotOf(host, at, i).failed) return;
    const { mm, page } = entry;
    const range = { mm, start: page, end: page + 1, event: 'EXCLUSIVE', blockable: true, owner: at.device } as const;
    const change = underPtl(mm, page, [{ do: 'exclusive_protect', at, i, entry }]);
    pushSteps(operation, invalidation(range, change));
  },

  /** An entry that names another page by now is passed over; one that is exclusive already ends the walk. */
  exclusive_protect(host, operation, { at, i, entry }) {
    const slot = slotOf(host, at, i);
    const { mm: id, page, pfn } = entry;
    const mm = anyMm(host, id);
    if (isExclusiveEntry(mm, page, pfn)) slot.failed = true;
    const flags = mm.page_table.flags(page);
    if (!isResident(flags) || mm.page_table.pfn(page) !== pfn) return;
    if (id === at.mm && page === slot.page && (flags & PTE_WRITE) !== 0) slot.valid = true;
    clearPteAt(host, operation, mm, page);
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'exclusive_set', cleared: pfn, entry, flags, cleanup: true },
      { do: 'phase', phase: 'after_pte_set' },
    ]);
  },

  exclusive_set(host, operation, { entry: { mm, page, pfn }, flags }) {
    makeExclusiveEntry(host, anyMm(host, mm), page, pfn, flags);
    trace(host, 'pte', operation.id, { change: 'exclusive', addr: addressOf(page), entry: pfn });
  },

  /** Entries of a page that is not granted stay as they are: the next fault restores them. */
  exclusive_judge(host, operation, { at, i }) {
    const slot = slotOf(host, at, i);
    if (!slot.valid || slot.failed) reject(host, operation, slot, 'replaced');
    else if (host.mm.pages.mapcount(slot.pfn) > 0) reject(host, operation, slot, 'still_mapped');
    else slot.granted = true;
  },

  exclusive_release(host, operation, { at }) {
    const grant = grantOf(host, at);
    if (grant?.busy !== true) return;
    for (const slot of grant.slots) putSlot(host, operation, slot);
    deviceOf(host, at.device).grants.delete(grant.id);
  },
};
