// Models cmp_and_merge_page() of mm/ksm.c: two anonymous pages of equal bytes become one that nobody writes in place.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { pageNumberOf } from '../lib/u64.ts';
import { mmapLock, pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { READ_ENTRY } from './fault.ts';
import { clearPteAt, tracePte } from './fault-steps.ts';
import { anyMm, type MmId } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { pagesIdentical } from './page-bytes.ts';
import { KIND_ANON, KIND_KSM, MAX_MAPCOUNT } from './page-frames.ts';
import { isResident, PTE_ANON_EXCLUSIVE, PTE_DIRTY, PTE_WRITE, printPage, setPte } from './page-table.ts';
import { underPtl } from './ptl.ts';
import { under } from './rmap.ts';
import { inSwapCache, tryToFreeSwap } from './swap.ts';
import { requireMm } from './task.ts';
import { getPage } from './unmap-page.ts';

/** A place in an address space, and the page that the scanner found there. */
interface Place {
  mm: MmId;
  page: number;
}
interface Found extends Place {
  pfn: number;
}

export type KsmStep =
  /** Finds the page at the place it is to be merged with, then the page itself. */
  | { do: 'ksm_get_tree_page'; at: Place; tree: Place; cleanup?: true }
  | { do: 'ksm_get_page'; at: Place; tree: Found; cleanup?: true }
  | { do: 'ksm_merge_pages'; at: Found; tree: Found; cleanup?: true }
  /** Merges a page with `kpage`; null: the page itself becomes the stable one. */
  | { do: 'ksm_merge_one'; at: Found; kpage: number | null; cleanup?: true }
  | { do: 'ksm_locked'; at: Found; kpage: number | null; cleanup?: true }
  | { do: 'ksm_write_protect'; at: Found; cleanup?: true }
  | { do: 'ksm_protect'; cleared: number; at: Found; flags: number; cleanup?: true }
  /** Both entries are set after change_pte, whose callbacks find none (set_pte_at_notify). */
  | { do: 'ksm_protect_set'; cleared: number; at: Found; flags: number; cleanup?: true }
  | { do: 'ksm_protected'; at: Found; kpage: number | null; cleanup?: true }
  | { do: 'ksm_replace'; at: Found; kpage: number; cleanup?: true }
  | { do: 'ksm_replace_set'; cleared: number; at: Found; kpage: number; cleanup?: true }
  | { do: 'ksm_replaced'; at: Found; kpage: number; cleanup?: true }
  /** break_cow(): a stable page that could not be merged with anything is given up. */
  | { do: 'ksm_break_cow'; at: Found; cleanup: true };

/**
 * Merges the page at `addr` with the one at `with`. Where `with` is merged already, the page at `addr` is replaced by it;
 * otherwise the page at `addr` becomes the stable page, and the one at `with` is replaced. Fields: pfn, the stable page.
 * ESRCH: a task has exited. EINVAL: the same page twice. EFAULT: no anonymous page there; its lock is taken; others have
 * references of it (pins, gets); it was changed meanwhile; the bytes differ.
 */
export function ksmMerge(host: Host, command: Extract<Command, { op: 'ksm_merge' }>): Done {
  const { task, addr, with: other, stop_at } = command;
  const at: Place = { mm: requireMm(host, task).id, page: pageNumberOf(addr) };
  const tree: Place = { mm: requireMm(host, other.task).id, page: pageNumberOf(other.addr) };
  if (at.mm === tree.mm && at.page === tree.page)
    throw new Errno('EINVAL', `with: ${printPage(tree.page)} is the page itself`);
  return runOperation(
    host,
    { kind: 'ksm_merge', locals: { task: null, mm: at.mm } },
    [
      { do: 'mmgrab', mm: at.mm },
      { do: 'mmgrab', mm: tree.mm },
      ...under([mmapLock(tree.mm)], 'R', [{ do: 'ksm_get_tree_page', at, tree }]),
      { do: 'mmdrop', mm: tree.mm, cleanup: true },
      { do: 'mmdrop', mm: at.mm, cleanup: true },
    ],
    stop_at ?? null,
  );
}

/** The anonymous page at a place, with a reference for the thread. EFAULT: there is none. */
function scan(host: Host, operation: ThreadOperation, { mm: id, page }: Place): Found {
  const { page_table } = anyMm(host, id);
  if (!isResident(page_table.flags(page))) throw new Errno('EFAULT', `vaddr ${printPage(page)}: no page`);
  const pfn = page_table.pfn(page);
  const kind = host.mm.pages.kind(pfn);
  if (kind !== KIND_ANON && kind !== KIND_KSM)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: page ${pfn} is not anonymous`);
  getPage(host, operation, pfn);
  return { mm: id, page, pfn };
}

/** Whether the entry is what write-protecting it leaves: read-only and clean. */
function isProtected(host: Host, { mm, page, pfn }: Found): boolean {
  const { page_table } = anyMm(host, mm);
  const flags = page_table.flags(page);
  return isResident(flags) && page_table.pfn(page) === pfn && (flags & (PTE_WRITE | PTE_DIRTY)) === 0;
}

/** Whether write-protecting the page has come to its end: it is also no page of this entry alone any more. */
const isShareable = (host: Host, found: Found): boolean =>
  isProtected(host, found) &&
  (host.profile.anonReuse !== 'exclusive' ||
    (anyMm(host, found.mm).page_table.flags(found.page) & PTE_ANON_EXCLUSIVE) === 0);

/** One event over the page of a place, and what changes its entry. */
const clearing = ({ mm, page }: Place, step: Step): Step[] =>
  invalidation(
    { mm, start: page, end: page + 1, event: 'CLEAR', blockable: true, owner: null },
    underPtl(mm, page, [step]),
  );

const isStable = (host: Host, { pfn }: Found): boolean => host.mm.pages.kind(pfn) === KIND_KSM;

export const ksmSteps: Handlers<KsmStep> = {
  ksm_get_tree_page(host, operation, { at, tree }) {
    const found = scan(host, operation, tree);
    pushSteps(operation, [
      { do: 'unlock', lock: mmapLock(tree.mm), cleanup: true },
      ...under([mmapLock(at.mm)], 'R', [{ do: 'ksm_get_page', at, tree: found }]),
      { do: 'put_page', pfn: found.pfn, cleanup: true },
    ]);
  },

  ksm_get_page(host, operation, { at, tree }) {
    const found = scan(host, operation, at);
    pushSteps(operation, [
      { do: 'unlock', lock: mmapLock(at.mm), cleanup: true },
      { do: 'ksm_merge_pages', at: found, tree },
      { do: 'put_page', pfn: found.pfn, cleanup: true },
    ]);
  },

  ksm_merge_pages(host, operation, { at, tree }) {
    operation.thread.fields = { pfn: isStable(host, tree) ? tree.pfn : at.pfn };
    if (at.pfn === tree.pfn) return;
    const merge = (place: Found, kpage: number | null): Step[] =>
      under([mmapLock(place.mm)], 'R', [{ do: 'ksm_merge_one', at: place, kpage }]);
    if (isStable(host, tree)) pushSteps(operation, merge(at, tree.pfn));
    else if (isStable(host, at)) pushSteps(operation, merge(tree, at.pfn));
    else pushSteps(operation, [...merge(at, null), ...merge(tree, at.pfn), { do: 'ksm_break_cow', at, cleanup: true }]);
  },

  ksm_merge_one(_host, operation, { at, kpage }) {
    pushSteps(operation, [
      { do: 'trylock', lock: pageLock(at.pfn), mode: 'W' },
      { do: 'ksm_locked', at, kpage },
      { do: 'unlock', lock: pageLock(at.pfn), cleanup: true },
    ]);
  },

  ksm_locked(host, operation, { at, kpage }) {
    if (operation.thread.returned === 0) throw new Errno('EFAULT', `page ${at.pfn} is locked`);
    if (host.mm.pages.kind(at.pfn) !== KIND_ANON) throw new Errno('EFAULT', `page ${at.pfn} is not to be merged`);
    pushSteps(operation, [...clearing(at, { do: 'ksm_write_protect', at }), { do: 'ksm_protected', at, kpage }]);
  },

  /**
   * write_protect_page(): an entry that is read-only and clean is taken as it is, whoever has references; but not one that is
   * marked as the only one of its page, where there is such a mark.
   */
  ksm_write_protect(host, operation, { at }) {
    const mm = anyMm(host, at.mm);
    const flags = mm.page_table.flags(at.page);
    if (!isResident(flags) || mm.page_table.pfn(at.page) !== at.pfn) return;
    const own = host.profile.anonReuse === 'exclusive' && (flags & PTE_ANON_EXCLUSIVE) !== 0;
    if (isProtected(host, at) && !own) return;
    clearPteAt(host, operation, mm, at.page);
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'ksm_protect', cleared: at.pfn, at, flags },
    ]);
  },

  /** Only now, when no entry lets a new reference in, are those that exist counted: mappings, the scanner's, the swap cache's. */
  ksm_protect(host, operation, { at, flags }) {
    const { pages } = host.mm;
    const expected = pages.mapcount(at.pfn) + 1 + Number(inSwapCache(host, at.pfn));
    const alone = pages.refcount(at.pfn) === expected;
    const entry = alone ? flags & ~(PTE_WRITE | PTE_DIRTY | PTE_ANON_EXCLUSIVE) : flags;
    if (alone && (flags & PTE_DIRTY) !== 0) pages.setPteDirty(at.pfn, host.seq);
    pushSteps(operation, [
      ...(alone ? [{ do: 'change_pte', mm: at.mm, page: at.page, pfn: at.pfn } as const] : []),
      { do: 'ksm_protect_set', cleared: at.pfn, at, flags: entry, cleanup: true },
      { do: 'phase', phase: 'after_pte_set' },
    ]);
  },

  ksm_protect_set(host, operation, { at, flags }) {
    setPte(host, anyMm(host, at.mm), at.page, at.pfn, flags);
    tracePte(host, operation, at.page, 'set', at.pfn);
  },

  ksm_protected(host, operation, { at, kpage }) {
    const { pages } = host.mm;
    if (!isShareable(host, at))
      throw new Errno('EFAULT', `page ${at.pfn}: others have references of it (ref_count ${pages.refcount(at.pfn)})`);
    if (kpage === null) {
      pages.setKind(at.pfn, KIND_KSM, host.seq);
      pages.setPteDirty(at.pfn, host.seq);
      return;
    }
    if (!pagesIdentical(host, at.pfn, kpage)) throw new Errno('EFAULT', `pages ${at.pfn} and ${kpage} differ`);
    pushSteps(operation, [...clearing(at, { do: 'ksm_replace', at, kpage }), { do: 'ksm_replaced', at, kpage }]);
  },

  /** replace_page(): one read-only page takes the place of another with the same bytes, so nobody is told under the lock. */
  ksm_replace(host, operation, { at, kpage }) {
    if (!isProtected(host, at) || host.mm.pages.mapcount(kpage) >= MAX_MAPCOUNT) return;
    clearPteAt(host, operation, anyMm(host, at.mm), at.page);
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'change_pte', mm: at.mm, page: at.page, pfn: kpage },
      { do: 'ksm_replace_set', cleared: at.pfn, at, kpage, cleanup: true },
      { do: 'phase', phase: 'after_pte_set' },
    ]);
  },

  ksm_replace_set(host, operation, { at, kpage }) {
    const { pages } = host.mm;
    pages.addRmap(kpage, host.seq);
    setPte(host, anyMm(host, at.mm), at.page, kpage, READ_ENTRY);
    tracePte(host, operation, at.page, 'set', kpage);
    pages.removeRmap(at.pfn, false, host.seq);
    if (pages.mapcount(at.pfn) === 0) tryToFreeSwap(host, at.pfn);
  },

  ksm_replaced(host, _operation, { at, kpage }) {
    if (!isProtected(host, { ...at, pfn: kpage }))
      throw new Errno('EFAULT', `vaddr ${printPage(at.page)} was changed while its page was merged`);
  },

  ksm_break_cow(host, operation, { at }) {
    if (operation.thread.error === null || !isStable(host, at) || !isProtected(host, at)) return;
    const { mm, page } = at;
    pushSteps(operation, under([mmapLock(mm)], 'R', [{ do: 'fault', mm, page, write: true }]));
  },
};
