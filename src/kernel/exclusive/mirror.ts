// Models hmm_range_fault() of mm/hmm.c and the reader around it: what a process has mapped, as its device sees it.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import { MAX_MIRROR_ATTEMPTS } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import { FAULT_FLAG_REMOTE, VM_FAULT_ERROR } from '../mm/fault-flags.ts';
import { isRemapped } from '../mm/gup-page.ts';
import { anyMm, type MmId } from '../mm/mm.ts';
import { getInterval } from '../mm/mmu-notifier/interval.ts';
import { leafIndex, PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE, PTRS_PER_PTE } from '../mm/page-table.ts';
import { waitsForPtl } from '../mm/ptl.ts';
import { VM_READ, VM_WRITE, vmaAt } from '../mm/vma.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { callerOf, deviceMutex, deviceOf, getOpenDevice, requirePages } from './device.ts';
import type { ExclusiveCommand } from './exclusive.ts';
import { addMapping } from './grant.ts';

/** What is asked for. `fault`: pages that are missing are brought in; `write`: so that they can be written. */
interface Range {
  device: string;
  mm: MmId;
  page: number;
  npage: number;
  fault: boolean;
  write: boolean;
}

/** One page as the walk has found it; null: not valid. */
type Found = { pfn: number; writable: boolean } | null;

interface Walk {
  range: Range;
  attempt: number;
  /** What read_begin() has answered. */
  sequence: number;
  found: Found[];
}

export type MirrorStep =
  | { do: 'mirror_begin'; at: Range; attempt: number; cleanup?: true }
  | { do: 'mirror_began'; at: Range; attempt: number; cleanup?: true }
  /** The page after those that are found. Precondition: mmap_lock is held for reading. */
  | { do: 'mirror_page'; at: Range; walk: Walk; cleanup?: true }
  /** Brings in every page of [page, end), missing or not, before anybody looks again. */
  | { do: 'mirror_fault'; at: Range; walk: Walk; page: number; end: number; cleanup?: true }
  | { do: 'mirror_faulted'; at: Range; walk: Walk; page: number; end: number; cleanup?: true }
  /** Under the device's mutex. */
  | { do: 'mirror_done'; at: Range; walk: Walk; cleanup?: true };

/**
 * hmm_range_fault(): a snapshot, which touches nothing, or with `fault` a request, which brings pages in and maps them for the
 * device. ret: pages that are valid. Fields: pages.
 * ENODEV. EBUSY, ESRCH: the device. EINVAL: a plain notifier; the range. E2BIG: MAX_EXCLUSIVE_PAGES. Of a request: EFAULT: no area, one that may not
 * be read, device memory; a fault fails. EPERM: a write to an area that may not be written, before any fault. EBUSY: it has
 * collided MAX_MIRROR_ATTEMPTS times. ENOMEM: MAX_DEVICE_MAPPINGS.
 */
export function mirrorRange(host: Host, command: Extract<ExclusiveCommand, { op: 'mirror_range' }>): Done {
  const device = getOpenDevice(host, command.device);
  if (device.kind === 'plain')
    throw new Errno(
      'EINVAL',
      `exclusive device '${device.id}' has a plain notifier: nothing tells it that it collides`,
    );
  const { fault, write, stop_at } = command;
  const at: Range = {
    device: device.id,
    mm: device.mm,
    ...requirePages(command.start, command.length),
    fault,
    write: fault && write,
  };
  return runOperation(
    host,
    { kind: 'mirror_range', locals: callerOf(host, device) },
    [
      { do: 'mirror_begin', at, attempt: 1 },
      { do: 'unlock', lock: mmapLock(at.mm), cleanup: true },
      { do: 'unlock', lock: deviceMutex(at.device), cleanup: true },
    ],
    stop_at ?? null,
  );
}

/** What the entry of a page gives; 'faults': not what is wanted. */
function lookAt(host: Host, { mm, write }: Range, page: number): Found | 'faults' {
  const { page_table } = anyMm(host, mm);
  const flags = page_table.flags(page);
  if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT) return 'faults';
  const writable = (flags & PTE_WRITE) !== 0;
  return write && !writable ? 'faults' : { pfn: page_table.pfn(page), writable };
}

/** A walk that has collided begins again. EBUSY: too often. */
function again({ range: at, attempt }: Walk): MirrorStep {
  if (attempt >= MAX_MIRROR_ATTEMPTS)
    throw new Errno('EBUSY', `start ${hex(addressOf(at.page))}: ${attempt} attempts have collided`);
  return { do: 'mirror_begin', at, attempt: attempt + 1 };
}

const hasCollided = (host: Host, { range, sequence }: Walk): boolean =>
  getInterval(host, deviceOf(host, range.device).notifier).invalidate_seq !== sequence;

const foundFields = (page: number, found: Found): Fields => ({
  addr: addressOf(page),
  valid: found !== null,
  writable: found?.writable ?? false,
  pfn: found?.pfn ?? null,
});

export const mirrorSteps: Handlers<MirrorStep> = {
  mirror_begin(host, operation, { at, attempt }) {
    const { notifier } = deviceOf(host, at.device);
    pushSteps(operation, [
      { do: 'may_wait_for_end', what: 'begins to read', removes: false },
      { do: 'read_begin', notifier },
      { do: 'mirror_began', at, attempt },
    ]);
  },

  mirror_began(_host, operation, { at, attempt }) {
    const walk: Walk = { range: at, attempt, sequence: operation.thread.fields.sequence as number, found: [] };
    pushSteps(operation, [
      { do: 'phase', phase: 'after_seq_snapshot' },
      { do: 'lock', lock: mmapLock(at.mm), mode: 'R' },
      { do: 'mirror_page', at, walk },
    ]);
  },

  mirror_page(host, operation, step) {
    const { at, walk } = step;
    const page = at.page + walk.found.length;
    const lock = mmapLock(at.mm);
    if (page >= at.page + at.npage) {
      pushSteps(operation, [
        { do: 'unlock', lock, cleanup: true },
        { do: 'phase', phase: 'before_insert' },
        { do: 'lock', lock: deviceMutex(at.device), mode: 'W' },
        { do: 'mirror_done', at, walk },
        { do: 'unlock', lock: deviceMutex(at.device), cleanup: true },
      ]);
      return;
    }
    const next = (found: Found): void => {
      walk.found.push(found);
      pushSteps(operation, [{ do: 'mirror_page', at, walk }]);
    };
    const mm = anyMm(host, at.mm);
    const vma = vmaAt(mm, page);
    if (vma === null || isRemapped(vma) || (vma.flags & VM_READ) === 0) {
      if (at.fault) throw new Errno('EFAULT', `start ${hex(addressOf(page))}: no area of ordinary memory to read`);
      next(null);
      return;
    }
    if (waitsForPtl(host, operation, { mm: at.mm, start: page, end: page + 1 }, step)) return;
    const found = lookAt(host, at, page);
    if (found !== 'faults') {
      next(found);
      return;
    }
    if (!at.fault) {
      next(null);
      return;
    }
    if (at.write && (vma.flags & VM_WRITE) === 0)
      throw new Errno('EPERM', `start ${hex(addressOf(page))}: the area may not be written`);
    const end = Math.min(at.page + at.npage, vma.end, (leafIndex(page) + 1) * PTRS_PER_PTE);
    pushSteps(operation, [{ do: 'mirror_fault', at, walk, page, end }]);
  },

  mirror_fault(_host, operation, { at, walk, page, end }) {
    pushSteps(operation, [
      { do: 'fault', mm: at.mm, page, write: at.write, flags: FAULT_FLAG_REMOTE },
      { do: 'mirror_faulted', at, walk, page, end },
    ]);
  },

  /** After its faults the walk goes on where it was, unless something was invalidated since it began. */
  mirror_faulted(host, operation, { at, walk, page, end }) {
    const { returned } = operation.thread;
    if ((returned & VM_FAULT_ERROR) !== 0)
      throw new Errno('EFAULT', `start ${hex(addressOf(page))}: the fault answers 0x${returned.toString(16)}`);
    if (page + 1 < end) {
      pushSteps(operation, [{ do: 'mirror_fault', at, walk, page: page + 1, end }]);
      return;
    }
    if (hasCollided(host, walk))
      pushSteps(operation, [{ do: 'unlock', lock: mmapLock(at.mm), cleanup: true }, again(walk)]);
    else pushSteps(operation, [{ do: 'mirror_page', at, walk }]);
  },

  mirror_done(host, operation, { at, walk }) {
    const { found } = walk;
    if (hasCollided(host, walk)) {
      pushSteps(operation, [{ do: 'unlock', lock: deviceMutex(at.device), cleanup: true }, again(walk)]);
      return;
    }
    const device = deviceOf(host, at.device);
    for (const [i, page] of found.entries())
      if (page !== null && at.fault) {
        const access = page.writable ? 'write' : 'read';
        addMapping(host, operation, device, at.page + i, { pfn: page.pfn, access, checked: true });
      }
    operation.thread.ret = found.filter((page) => page !== null).length;
    operation.thread.fields = { pages: found.map((page, i) => foundFields(at.page + i, page)) };
  },
};
