// Models __get_user_pages() and its callers of mm/gup.c, as a thread: references to pages, which somebody holds and gives back.

import type { Command } from '../command.ts';
import { Errno, type ErrnoName, NoSuchObject } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { addressOf, hex, isPageAligned, pageNumberOf } from '../lib/u64.ts';
import { MAX_GUP_PAGES, MAX_GUPS, TASK_SIZE_PAGES } from '../limits.ts';
import { holds, isDying, mmapLock, pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, requireRoomToRun, runOperation } from '../thread.ts';
import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_DEFAULT,
  FAULT_FLAG_REMOTE,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
  VM_FAULT_ERROR,
  VM_FAULT_HWPOISON,
  VM_FAULT_OOM,
  VM_FAULT_RETRY,
} from './fault-flags.ts';
import {
  FOLL_FAST_ONLY,
  FOLL_FORCE,
  FOLL_GET,
  FOLL_HWPOISON,
  FOLL_KNOWN,
  FOLL_NOFAULT,
  FOLL_NOWAIT,
  FOLL_PIN,
  FOLL_REMOTE,
  FOLL_TOUCH,
  FOLL_TRIED,
  FOLL_WRITE,
} from './gup-flags.ts';
import { anyMm, type MmId, type MmStruct } from './mm.ts';
import { isZeroPage } from './page.ts';
import { KIND_ANON } from './page-frames.ts';
import { PTE_DIRTY, PTE_PRESENT, PTE_SPECIAL, PTE_TYPE_MASK, PTE_WRITE, printPage } from './page-table.ts';
import { waitsForPtl } from './ptl.ts';
import { requireMm } from './task.ts';
import { isCowMapping, VM_IO, VM_MAYREAD, VM_PFNMAP, VM_READ, VM_WRITE, type Vma, vmaAt } from './vma.ts';

/** References that one call took, and nobody has given back yet. */
export interface Gup {
  id: string;
  mm: MmId;
  /** First page of the call. */
  page: number;
  flags: number;
  pfns: number[];
  /** The call goes on: its references cannot be given back yet. */
  busy: boolean;
}

interface Wanted {
  gup: string;
  mm: MmId;
  page: number;
  npage: number;
}

export type GupStep =
  /** The page after those that are done; `flags`: of its fault; `faults`: of this page so far. */
  | { do: 'gup_page'; wanted: Wanted; flags: number; faults: number; cleanup?: true }
  | { do: 'gup_faulted'; wanted: Wanted; flags: number; faults: number; cleanup?: true }
  /** mmap_lock was dropped, and is taken again. */
  | { do: 'gup_retry'; wanted: Wanted; flags: number; faults: number; cleanup?: true }
  | { do: 'gup_done'; gup: string; cleanup: true }
  | { do: 'put_gup_pages'; gup: string; dirty: PutGup['dirty']; cleanup?: true }
  | { do: 'put_gup_page'; gup: string; dirty: boolean; cleanup?: true }
  /** What could not be given back is still held. */
  | { do: 'put_gup_ended'; gup: string; cleanup: true };

type GupCommand = Extract<Command, { op: 'gup' }>;
type PutGup = Extract<Command, { op: 'put_gup' }>;

/** Faults of one page that come back without having made it suitable. */
const MAX_FAULTS_OF_GUP = 1024;

export function getGup(host: Host, id: string): Gup {
  const gup = host.mm.gups.get(id);
  if (gup === undefined) throw new NoSuchObject('gup', id);
  return gup;
}

/**
 * Models check_vma_flags(). EFAULT: no area; one of device memory; one that forbids the access, unless it is forced on what is
 * copied on write, or may be read some day.
 */
function checkVma(mm: MmStruct, page: number, flags: number): Vma {
  const vma = vmaAt(mm, page);
  if (vma === null) throw new Errno('EFAULT', `vaddr ${printPage(page)}: nothing is mapped`);
  if ((vma.flags & (VM_IO | VM_PFNMAP)) !== 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: device memory (VM_IO or VM_PFNMAP)`);
  const write = (flags & FOLL_WRITE) !== 0;
  const force = (flags & FOLL_FORCE) !== 0;
  const allowed = write
    ? (vma.flags & VM_WRITE) !== 0 || (force && isCowMapping(vma.flags))
    : (vma.flags & VM_READ) !== 0 || (force && (vma.flags & VM_MAYREAD) !== 0);
  if (!allowed)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the area may not be ${write ? 'written' : 'read'}`);
  return vma;
}

/** Whether the entry gives what is wanted. A forced write takes the private page that its fault has left read-only. */
function isSuitable(host: Host, mm: MmStruct, page: number, flags: number): boolean {
  const entry = mm.page_table.flags(page);
  if ((entry & PTE_TYPE_MASK) !== PTE_PRESENT) return false;
  if ((flags & FOLL_WRITE) === 0 || (entry & PTE_WRITE) !== 0) return true;
  const own = (entry & PTE_DIRTY) !== 0 && (entry & PTE_SPECIAL) === 0;
  return (flags & FOLL_FORCE) !== 0 && own && host.mm.pages.kind(mm.page_table.pfn(page)) === KIND_ANON;
}

/** Whether the reference of a pin is taken at all. */
const isCounted = (host: Host, pfn: number): boolean =>
  !(isZeroPage(host, pfn) && host.profile.zeroPagePin === 'never-taken');

/** Models try_grab_page(). ENOMEM: the counter has overflowed, or the page is free. */
function grab(host: Host, gup: Gup, pfn: number): void {
  const { pages } = host.mm;
  const pinned = (gup.flags & FOLL_PIN) !== 0;
  const taken = pinned
    ? !isCounted(host, pfn) || pages.pin(pfn, host.profile.pinBias, host.seq)
    : pages.tryGet(pfn, host.seq);
  if (!taken) {
    splat(host, 'WARN', 'try_grab_page', 'page_ref_count(page) <= 0', ['follow_page_pte', '__get_user_pages']);
    throw new Errno('ENOMEM', `page ${pfn}: its counter is ${pages.refcount(pfn)}`);
  }
  gup.pfns.push(pfn);
}

const takesReferences = (flags: number): boolean => (flags & (FOLL_GET | FOLL_PIN)) !== 0;

/** EINVAL: both kinds of reference at once. */
function requireOneKind(host: Host, flags: number): void {
  if ((flags & FOLL_GET) === 0 || (flags & FOLL_PIN) === 0) return;
  splat(host, 'WARN', 'follow_page_pte', '(flags & (FOLL_PIN | FOLL_GET)) == (FOLL_PIN | FOLL_GET)', [
    'follow_page_mask',
    '__get_user_pages',
  ]);
  throw new Errno('EINVAL', 'flags: FOLL_GET and FOLL_PIN exclude each other');
}

/** The flags of a fault that GUP starts. */
function faultFlags(flags: number): number {
  let fault = FAULT_FLAG_DEFAULT;
  if ((flags & FOLL_REMOTE) !== 0) fault |= FAULT_FLAG_REMOTE;
  if ((flags & FOLL_NOWAIT) !== 0) fault |= FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT;
  if ((flags & FOLL_TRIED) !== 0) fault |= FAULT_FLAG_TRIED;
  return fault;
}

function errnoOf(fault: number, flags: number): ErrnoName {
  if ((fault & VM_FAULT_OOM) !== 0) return 'ENOMEM';
  return (fault & VM_FAULT_HWPOISON) !== 0 && (flags & FOLL_HWPOISON) !== 0 ? 'EHWPOISON' : 'EFAULT';
}

/**
 * get_user_pages(): references to the pages of [addr, addr + npage), held until put_gup. ret: pages; 0 means "retry later", as
 * FOLL_NOWAIT may answer. Fields: id (null where nothing is held), pfns.
 * ESRCH: the task has exited. EINVAL: addr, flags. EOPNOTSUPP: FOLL_PIN before it existed. E2BIG: MAX_GUP_PAGES. ENOSPC: MAX_GUPS.
 * EEXIST: the id. Then page by page, unless one is done already: EFAULT; EINTR: a fatal signal; EINVAL: FOLL_GET with FOLL_PIN;
 * ENOMEM; EHWPOISON.
 */
export function gup(host: Host, command: GupCommand): Done {
  const { task, addr, npage, flags, stop_at } = command;
  const mm = requireMm(host, task);
  const { gups } = host.mm;
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  if ((flags & ~FOLL_KNOWN) !== 0) throw new Errno('EINVAL', `flags: unknown bits in 0x${(flags >>> 0).toString(16)}`);
  if ((flags & FOLL_PIN) !== 0 && host.profile.pinBias === 1)
    throw new Errno('EOPNOTSUPP', `kernel ${host.profile.name} has no FOLL_PIN`);
  if (npage < 0 || npage > MAX_GUP_PAGES)
    throw new Errno('E2BIG', `npage ${npage}: a call takes ${MAX_GUP_PAGES} pages at most`);
  if (gups.size >= MAX_GUPS) throw new Errno('ENOSPC', `gups: ${MAX_GUPS} are held, the most a host keeps`);
  const id = command.gup ?? `gup-${host.mm.next_gup++}`;
  if (gups.has(id)) throw new Errno('EEXIST', `gup '${id}' is held`);
  if (npage === 0) return { ret: 0, fields: { id: null, pfns: [] } };
  const page = pageNumberOf(addr);
  requireRoomToRun(host, stop_at ?? null);
  const wanted: Wanted = { gup: id, mm: mm.id, page, npage };
  const lock = mmapLock(mm.id);
  const fast = (flags & FOLL_FAST_ONLY) !== 0;
  const walk: Step[] = fast
    ? []
    : [
        { do: 'lock', lock, mode: 'R', killable: true },
        { do: 'require_lock', lock },
        { do: 'gup_page', wanted, flags: faultFlags(flags), faults: 0 },
        { do: 'phase', phase: 'after_gup' },
        { do: 'unlock', lock, cleanup: true },
      ];
  if (fast) requireOneKind(host, flags);
  if ((flags & FOLL_PIN) !== 0) mm.has_pinned = true;
  gups.set(id, { id, mm: mm.id, page, flags, pfns: [], busy: true });
  if (fast) gupFast(host, mm, wanted);
  const steps: Step[] = [...walk, { do: 'gup_done', gup: id, cleanup: true }];
  return runOperation(host, { kind: 'gup', locals: { task, mm: mm.id } }, steps, stop_at ?? null);
}

/** Models __get_user_pages_fast(): neither areas nor locks are looked at, and what is not there ends the walk. */
function gupFast(host: Host, mm: MmStruct, { gup: id, page: first, npage }: Wanted): void {
  const held = getGup(host, id);
  const { flags } = held;
  if ((flags & FOLL_PIN) !== 0 && mm.write_protect_seq % 2 === 1) return;
  for (let page = first; page < Math.min(first + npage, TASK_SIZE_PAGES); page++) {
    const entry = mm.page_table.flags(page);
    if ((entry & PTE_SPECIAL) !== 0 || !isSuitable(host, mm, page, flags & FOLL_WRITE)) return;
    const pfn = mm.page_table.pfn(page);
    if (host.mm.pages.refcount(pfn) <= 0) return;
    grab(host, held, pfn);
  }
}

export const gupSteps: Handlers<GupStep> = {
  gup_page(host, operation, step) {
    const { wanted, flags, faults } = step;
    const held = getGup(host, wanted.gup);
    const page = wanted.page + held.pfns.length;
    if (held.pfns.length === wanted.npage) return;
    const mm = anyMm(host, wanted.mm);
    const vma = checkVma(mm, page, held.flags);
    if (isDying(host, operation)) throw new Errno('EINTR', `${operation.id}: a fatal signal is pending`);
    requireOneKind(host, held.flags);
    if (waitsForPtl(host, operation, { mm: wanted.mm, start: page, end: page + 1 }, step)) return;
    if (isSuitable(host, mm, page, held.flags)) {
      const pfn = mm.page_table.pfn(page);
      if (takesReferences(held.flags)) grab(host, held, pfn);
      else held.pfns.push(pfn);
      const touches = FOLL_TOUCH | FOLL_WRITE;
      if ((held.flags & touches) === touches && !isZeroPage(host, pfn)) host.mm.pages.setDirty(pfn, host.seq);
      pushSteps(operation, [{ do: 'gup_page', wanted, flags: flags & ~FAULT_FLAG_TRIED, faults: 0 }]);
      return;
    }
    if ((held.flags & FOLL_NOFAULT) !== 0)
      throw new Errno('EFAULT', `vaddr ${printPage(page)}: it takes a fault, and FOLL_NOFAULT forbids one`);
    if (faults >= MAX_FAULTS_OF_GUP)
      throw new Errno('EFAULT', `vaddr ${hex(addressOf(page))}: ${faults} faults have not brought it in`);
    const write = (held.flags & FOLL_WRITE) !== 0;
    const force = (vma.flags & (write ? VM_WRITE : VM_READ)) === 0;
    pushSteps(operation, [
      { do: 'fault', mm: wanted.mm, page, write, flags, ...(force ? { force } : {}) },
      { do: 'gup_faulted', wanted, flags, faults: faults + 1 },
    ]);
  },

  gup_faulted(host, operation, { wanted, flags, faults }) {
    const { returned } = operation.thread;
    const held = getGup(host, wanted.gup);
    if ((returned & VM_FAULT_ERROR) !== 0)
      throw new Errno(
        errnoOf(returned, held.flags),
        `vaddr ${printPage(wanted.page + held.pfns.length)}: the fault answers 0x${returned.toString(16)}`,
      );
    if ((returned & VM_FAULT_RETRY) === 0) {
      pushSteps(operation, [{ do: 'gup_page', wanted, flags, faults }]);
      return;
    }
    const lock = mmapLock(wanted.mm);
    if (holds(operation, lock)) return;
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'R', killable: true },
      { do: 'require_lock', lock },
      { do: 'gup_retry', wanted, flags: flags | FAULT_FLAG_TRIED, faults },
    ]);
  },

  gup_retry(_host, operation, { wanted, flags, faults }) {
    pushSteps(operation, [{ do: 'gup_page', wanted, flags, faults }]);
  },

  /** Pages that are done hide the error that ended the walk. */
  gup_done(host, { thread }, { gup: id }) {
    const held = getGup(host, id);
    const { pfns, flags } = held;
    const keeps = pfns.length > 0 && takesReferences(flags);
    if (!keeps) host.mm.gups.delete(id);
    held.busy = false;
    if (pfns.length > 0) thread.error = null;
    thread.ret = pfns.length;
    thread.fields = { id: keeps ? id : null, pfns: [...pfns] };
  },

  put_gup_pages(host, operation, { gup: id, dirty }) {
    const { pages } = host.mm;
    const [pfn] = getGup(host, id).pfns;
    if (pfn === undefined) {
      host.mm.gups.delete(id);
      return;
    }
    const again: Step = { do: 'put_gup_pages', gup: id, dirty };
    const put: Step = { do: 'put_gup_page', gup: id, dirty: dirty !== 'no' };
    if (dirty !== 'set_page_dirty_lock' || pages.isDirty(pfn)) {
      pushSteps(operation, [put, again]);
      return;
    }
    const lock = pageLock(pfn);
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'W' },
      { do: 'set_page_dirty', pfn },
      { do: 'unlock', lock, cleanup: true },
      put,
      again,
    ]);
  },

  put_gup_page(host, _operation, { gup: id, dirty }) {
    const { pages } = host.mm;
    const held = getGup(host, id);
    const pfn = held.pfns.shift() as number;
    if (dirty && !isZeroPage(host, pfn)) pages.setDirty(pfn, host.seq);
    if ((held.flags & FOLL_PIN) === 0) pages.put(pfn, host.seq);
    else if (isCounted(host, pfn)) pages.unpin(pfn, host.profile.pinBias, false, host.seq);
  },

  put_gup_ended(host, _operation, { gup: id }) {
    const held = host.mm.gups.get(id);
    if (held !== undefined) held.busy = false;
  },
};

/**
 * Gives references back: put_page() or unpin_user_page(), after set_page_dirty(), or set_page_dirty_lock(), which takes the lock
 * of each page that is not dirty yet. EBUSY: the call that takes them goes on, or another gives them back.
 */
export function putGup(host: Host, { gup: id, dirty, task }: PutGup): Done {
  const held = getGup(host, id);
  if (held.busy) throw new Errno('EBUSY', `gup '${id}' is being taken or given back`);
  requireRoomToRun(host, null);
  held.busy = true;
  return runOperation(
    host,
    { kind: 'put_gup', locals: { task: task ?? null, mm: null } },
    [
      { do: 'put_gup_pages', gup: id, dirty },
      { do: 'put_gup_ended', gup: id, cleanup: true },
    ],
    null,
  );
}
