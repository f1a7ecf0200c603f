// Models dup_mmap() and copy_page_range(): the child of a fork gets the areas, and what it cannot find out by faults.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_TASKS } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { entryKindOf } from './entry-kinds.ts';
import { ANON_ENTRY } from './fault.ts';
import { underLock } from './lock-steps.ts';
import { anyMm, type MmId, MmStruct, mmdrop } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { maybeDmaPinned } from './page.ts';
import { copyPage } from './page-bytes.ts';
import { KIND_ANON, MAX_MAPCOUNT } from './page-frames.ts';
import {
  flagsAt,
  leafIndex,
  PTE_ANON_EXCLUSIVE,
  PTE_DIRTY,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  pfnAt,
  requirePageTables,
  setPte,
  walkPageRange,
} from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { addTask, getTask, newTask, requireMm, taskFields, threadGroupOf } from './task.ts';
import {
  findVma,
  isCowMapping,
  linkVmaAlone,
  openVma,
  VM_DONTCOPY,
  VM_LOCKED,
  VM_PFNMAP,
  VM_SHARED,
  VM_WIPEONFORK,
  VM_WRITE,
  type Vma,
  vmaAt,
} from './vma.ts';
import { exitMmap } from './zap.ts';

export type ForkStep =
  /** The child's address space: without users until it is complete. */
  | { do: 'mm_init'; child: MmId; cleanup?: true }
  /** The area of the parent at or after `page`, and then those after it. */
  | { do: 'dup_vma'; mm: MmId; child: MmId; page: number; cleanup?: true }
  | { do: 'copy_page_range'; mm: MmId; child: MmId; start: number; end: number; cleanup?: true }
  /** The child's copy of an area with operations of its own is opened, whether its entries could be copied or not. */
  | { do: 'open_vma'; mm: MmId; page: number; cleanup: true }
  /** From here until the next, a pin that does not wait finds nothing. */
  | { do: 'write_protect_seq'; mm: MmId; odd: boolean; cleanup?: true }
  /** The child is a task, or, where fork has failed, nothing. */
  | { do: 'fork_done'; task: string; child: MmId; as: string; cleanup: true };

interface Copying {
  parent: MmStruct;
  child: MmStruct;
  vma: Vma;
}

/** The child gets a page of its own at once: who pinned the parent's would otherwise lose it at the next write. ENOMEM. */
function copyPresentPage(host: Host, { child, vma }: Copying, page: number, pfn: number): void {
  const { pages } = host.mm;
  const copy = pages.alloc(KIND_ANON, host.seq);
  pages.addNewAnonRmap(copy, host.seq);
  copyPage(host, pfn, copy);
  setPte(host, child, page, copy, (vma.flags & VM_WRITE) === 0 ? ANON_ENTRY & ~PTE_WRITE : ANON_ENTRY);
}

/** Whether a page that may be pinned is copied at once (page_needs_cow_for_dma). */
function copiesAtOnce(host: Host, { parent, vma }: Copying, flags: number, pfn: number): boolean {
  const { forkPinned } = host.profile;
  if (forkPinned === 'shared' || !isCowMapping(vma.flags)) return false;
  if (!parent.has_pinned || !maybeDmaPinned(host, pfn)) return false;
  return forkPinned === 'copied' || (flags & PTE_ANON_EXCLUSIVE) !== 0;
}

/** Models copy_present_pte(). ENOMEM. */
function copyPresentEntry(host: Host, copying: Copying, page: number): void {
  const { parent, child, vma } = copying;
  const { pages } = host.mm;
  const flags = parent.page_table.flags(page);
  const pfn = parent.page_table.pfn(page);
  const counted = (flags & PTE_SPECIAL) === 0;
  if (counted && copiesAtOnce(host, copying, flags, pfn)) {
    copyPresentPage(host, copying, page, pfn);
    return;
  }
  if (counted && pages.mapcount(pfn) >= MAX_MAPCOUNT)
    throw new Errno('ENOMEM', `page ${pfn} is mapped ${MAX_MAPCOUNT} times, the most a page can be`);
  if (counted) pages.addRmap(pfn, host.seq);
  const shared = isCowMapping(vma.flags) ? flags & ~(PTE_WRITE | PTE_ANON_EXCLUSIVE) : flags;
  if (shared !== flags) setPte(host, parent, page, pfn, shared);
  const clean = (vma.flags & VM_SHARED) === 0 ? 0 : PTE_DIRTY;
  setPte(host, child, page, pfn, shared & ~(PTE_YOUNG | clean));
}

/** Models copy_pte_range() for all of an area. ENOMEM; EBUSY: as the kind of an entry says. */
function copyEntries(host: Host, copying: Copying, start: number, end: number): void {
  const { parent, child } = copying;
  walkPageRange(parent, start, end, (_index, leaf, i, page) => {
    if (!child.page_table.leaves.has(leafIndex(page))) requirePageTables(host, 1);
    const flags = flagsAt(leaf, i);
    const type = flags & PTE_TYPE_MASK;
    const done = type !== PTE_PRESENT && entryKindOf(type).fork(host, { ...copying, page, flags, pfn: pfnAt(leaf, i) });
    if (!done) copyPresentEntry(host, copying, page);
  });
}

export const forkSteps: Handlers<ForkStep> = {
  mm_init(host, _operation, { child }) {
    const mm = new MmStruct(child);
    mm.users = 0;
    host.mm.zombies.set(child, mm);
  },

  dup_vma(host, operation, { mm: id, child: childId, page }) {
    const child = anyMm(host, childId);
    const vma = findVma(anyMm(host, id), page);
    if (vma === null) return;
    const { start, end, flags } = vma;
    const next: Step = { do: 'dup_vma', mm: id, child: childId, page: end };
    if ((flags & VM_DONTCOPY) !== 0) {
      pushSteps(operation, [next]);
      return;
    }
    const wiped = (flags & VM_WIPEONFORK) !== 0;
    linkVmaAlone(host, child, { ...vma, flags: flags & ~VM_LOCKED, anon_vma: wiped ? null : vma.anon_vma });
    if (wiped || (vma.anon_vma === null && (flags & VM_PFNMAP) === 0)) {
      pushSteps(operation, [next]);
      return;
    }
    const copy: Step = { do: 'copy_page_range', mm: id, child: childId, start, end };
    if (!isCowMapping(flags)) {
      const open: Step = { do: 'open_vma', mm: childId, page: start, cleanup: true };
      pushSteps(operation, vma.ops === null ? [copy, next] : [copy, open, next]);
      return;
    }
    const range = { mm: id, start, end, event: 'PROTECTION_PAGE', blockable: true, owner: null } as const;
    pushSteps(operation, [
      ...invalidation(range, [
        { do: 'write_protect_seq', mm: id, odd: true },
        copy,
        { do: 'phase', phase: 'after_pte_set' },
        { do: 'write_protect_seq', mm: id, odd: false, cleanup: true },
      ]),
      next,
    ]);
  },

  open_vma(host, _operation, { mm: id, page }) {
    const mm = anyMm(host, id);
    const vma = vmaAt(mm, page);
    if (vma !== null) openVma(host, mm, vma);
  },

  copy_page_range(host, operation, step) {
    const { mm, child, start, end } = step;
    if (waitsForPtl(host, operation, step, step)) return;
    const parent = anyMm(host, mm);
    const vma = findVma(parent, start) as Vma;
    try {
      copyEntries(host, { parent, child: anyMm(host, child), vma }, start, end);
    } catch (error) {
      // Whatever stops the copy, the caller of fork() is told that there is no memory.
      if (error instanceof Errno) throw new Errno('ENOMEM', error.message);
      throw error;
    }
  },

  write_protect_seq(host, _operation, { mm: id, odd }) {
    const mm = anyMm(host, id);
    if ((mm.write_protect_seq % 2 === 1) !== odd) mm.write_protect_seq++;
  },

  fork_done(host, { thread }, { task, child, as }) {
    const { zombies, mms, tasks } = host.mm;
    const mm = zombies.get(child) as MmStruct;
    if (thread.error === null && !tasks.has(as)) {
      zombies.delete(child);
      mm.users = 1;
      mms.set(child, mm);
      thread.fields = taskFields(host, forkTask(host, task, as, mm));
      return;
    }
    // Whoever looks at it through a reverse map keeps it until then.
    exitMmap(host, mm);
    mmdrop(host, mm);
    if (thread.error === null) throw new Errno('EEXIST', `task '${as}' was made meanwhile`);
  },
};

/** The child: a process of its own, with the limit and the capabilities of its parent. */
function forkTask(host: Host, parentId: string, id: string, mm: MmStruct): ReturnType<typeof newTask> {
  const parent = getTask(host, parentId);
  const { rlimit_memlock } = threadGroupOf(host, parent);
  const { cap_ipc_lock, cap_sys_rawio } = parent;
  const capable = cap_sys_rawio === true ? { cap_sys_rawio } : {};
  const body = { rlimit_memlock, cap_ipc_lock, ...capable, thread_of: null };
  host.mm.thread_groups.set(id, { rlimit_memlock, threads: [] });
  return addTask(host, newTask(host.mm.next_pid++, id, mm.id, id, body));
}

/**
 * Makes task `child` with a copy of the address space. One PROTECTION_PAGE of the parent for each private area with anonymous
 * pages; nothing for shared ones, and nothing to the child. Fields: as put_task.
 * ESRCH: the task has exited. EEXIST: `child` exists. EAGAIN: MAX_TASKS. EINTR: killed while it waited. ENOMEM: no page, page table
 * or mapcount is left, or a page could not be copied now.
 */
export function fork(host: Host, { task, child, stop_at }: Extract<Command, { op: 'fork' }>): Done {
  const { mm: memory } = host;
  const { id: mm } = requireMm(host, task);
  if (memory.tasks.has(child)) throw new Errno('EEXIST', `task '${child}' exists`);
  if (memory.tasks.size >= MAX_TASKS)
    throw new Errno('EAGAIN', `tasks: the host has ${MAX_TASKS}, the most it can hold`);
  const made = `mm-${memory.next_mm++}`;
  const inner = mmapLock(made);
  const steps: Step[] = [
    { do: 'lock', lock: inner, mode: 'W' },
    { do: 'dup_vma', mm, child: made, page: 0 },
    { do: 'unlock', lock: inner, cleanup: true },
  ];
  return runOperation(
    host,
    { kind: 'fork', locals: { task, mm } },
    [
      { do: 'mm_init', child: made },
      ...underLock(mmapLock(mm), 'W', steps),
      { do: 'fork_done', task, child: made, as: child, cleanup: true },
    ],
    stop_at ?? null,
  );
}
