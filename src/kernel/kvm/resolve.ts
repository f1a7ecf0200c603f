// Models hva_to_pfn(): the page behind a page of host virtual memory, got fast, slowly, or from the page table of device memory.

import { ERRNO } from '../errno.ts';
import type { Host } from '../host.ts';
import { mmapLock } from '../lock.ts';
import { FAULT_FLAG_DEFAULT } from '../mm/fault-flags.ts';
import { getUserPage, getUserPageFastOnly, isRemapped, permits } from '../mm/gup-page.ts';
import { anyMm } from '../mm/mm.ts';
import { PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE } from '../mm/page-table.ts';
import { vmaAt } from '../mm/vma.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { cacheResolved, type Refresh } from './cache.ts';
import { type Fault, faultResolved } from './fault.ts';
import { type MapRequest, mapResolved } from './map.ts';
import { hasStructPage, isReservedPfn } from './pfn.ts';
import { getVm, type Vm } from './vm.ts';

/** Who asked, and goes on with what is found. */
export type Asker = ({ by: 'fault' } & Fault) | ({ by: 'map' } & MapRequest) | ({ by: 'cache' } & Refresh);

/** What is looked for. `nowait`: not if it takes waiting. `map_writable`: a read is glad to hear that the page may be written. */
export interface Wanted {
  vm: string;
  page: number;
  write: boolean;
  nowait: boolean;
  map_writable: boolean;
  asker: Asker;
}

/** A pfn, of which the thread has a reference where it was `got`; or one of the pfns that stand for an error (KVM_PFN_ERR_*). */
export type Found =
  | { pfn: number; writable: boolean; got: boolean }
  | { error: 'FAULT' | 'HWPOISON' | 'RO_FAULT' | 'NEEDS_IO' | 'SIGPENDING' };

export type ResolveStep =
  | { do: 'hva_to_pfn'; wanted: Wanted; cleanup?: true }
  /** get_user_pages() has answered. */
  | { do: 'hva_to_pfn_slow'; wanted: Wanted; cleanup?: true }
  /** Under mmap_lock. */
  | { do: 'hva_to_pfn_area'; wanted: Wanted; cleanup?: true }
  | { do: 'hva_to_pfn_fixed'; wanted: Wanted; cleanup?: true }
  | { do: 'hva_to_pfn_done'; wanted: Wanted; found: Found; cleanup?: true };

const lastGot = ({ thread }: ThreadOperation): number => thread.pages.at(-1) as number;

const done = (wanted: Wanted, found: Found): Step => ({ do: 'hva_to_pfn_done', wanted, found });

/** Ends the look at the area. */
const unlocked = (wanted: Wanted, found: Found, mm: string): Step[] => [
  { do: 'unlock', lock: mmapLock(mm), cleanup: true },
  done(wanted, found),
];

/** The page is in the page table. A page with a struct page is got, unless it is reserved, or the kernel does not guess. */
function remapped(host: Host, operation: ThreadOperation, vm: Vm, { page, write }: Wanted): Found {
  const { page_table } = anyMm(host, vm.mm);
  const { kvmRemappedReadOnly, kvmUncountedPage } = host.profile;
  const writable = kvmRemappedReadOnly === 'writable' || (page_table.flags(page) & PTE_WRITE) !== 0;
  if (write && !writable) return { error: 'RO_FAULT' };
  const pfn = page_table.pfn(page);
  if (kvmUncountedPage === 'unreferenced' || !hasStructPage(host, pfn) || isReservedPfn(host, vm, pfn))
    return { pfn, writable, got: false };
  if (host.mm.pages.refcount(pfn) <= 0 && kvmUncountedPage === 'EFAULT') return { error: 'FAULT' };
  host.mm.pages.get(pfn, host.seq);
  operation.thread.pages.push(pfn);
  return { pfn, writable, got: true };
}

const isPresent = (host: Host, { mm }: Vm, page: number): boolean =>
  (anyMm(host, mm).page_table.flags(page) & PTE_TYPE_MASK) === PTE_PRESENT;

export const resolveSteps: Handlers<ResolveStep> = {
  hva_to_pfn(host, operation, { wanted }) {
    const vm = getVm(host, wanted.vm);
    const { page, write, nowait, map_writable } = wanted;
    if ((write || map_writable) && getUserPageFastOnly(host, operation, anyMm(host, vm.mm), page)) {
      pushSteps(operation, [done(wanted, { pfn: lastGot(operation), writable: true, got: true })]);
      return;
    }
    pushSteps(operation, [...getUserPage(vm.mm, page, write, nowait), { do: 'hva_to_pfn_slow', wanted }]);
  },

  hva_to_pfn_slow(host, operation, { wanted }) {
    const vm = getVm(host, wanted.vm);
    const { returned } = operation.thread;
    const { page, write, map_writable } = wanted;
    if (returned === 1) {
      const pfn = lastGot(operation);
      const upgraded = !write && map_writable && getUserPageFastOnly(host, operation, anyMm(host, vm.mm), page);
      const found = done(wanted, { pfn: lastGot(operation), writable: write || upgraded, got: true });
      pushSteps(operation, upgraded ? [{ do: 'put_page', pfn, cleanup: true }, found] : [found]);
      return;
    }
    if (returned === -ERRNO.EINTR && host.profile.kvmFatalSignal === 'EINTR') {
      pushSteps(operation, [done(wanted, { error: 'SIGPENDING' })]);
      return;
    }
    const lock = mmapLock(vm.mm);
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'R' },
      ...(returned === -ERRNO.EHWPOISON
        ? unlocked(wanted, { error: 'HWPOISON' }, vm.mm)
        : [{ do: 'hva_to_pfn_area', wanted } as const]),
      { do: 'unlock', lock, cleanup: true },
    ]);
  },

  hva_to_pfn_area(host, operation, { wanted }) {
    const vm = getVm(host, wanted.vm);
    const { page, write, nowait, asker } = wanted;
    const vma = vmaAt(anyMm(host, vm.mm), page);
    const pins = asker.by === 'map' && host.profile.kvmMapReference === 'pin';
    const unsafe = pins && !vm.allow_unsafe_mappings;
    if (vma !== null && isRemapped(vma) && !unsafe) {
      if (isPresent(host, vm, page))
        pushSteps(operation, unlocked(wanted, remapped(host, operation, vm, wanted), vm.mm));
      else
        pushSteps(operation, [
          { do: 'fixup_user_fault', mm: vm.mm, page, write, flags: FAULT_FLAG_DEFAULT, faults: 0, unlocked: false },
          { do: 'hva_to_pfn_fixed', wanted },
        ]);
      return;
    }
    const needsIo = vma !== null && !isRemapped(vma) && nowait && permits(vma, write);
    pushSteps(operation, unlocked(wanted, { error: needsIo ? 'NEEDS_IO' : 'FAULT' }, vm.mm));
  },

  hva_to_pfn_fixed(host, operation, { wanted }) {
    const vm = getVm(host, wanted.vm);
    const { returned } = operation.thread;
    if (returned === 1) {
      pushSteps(operation, [{ do: 'hva_to_pfn_area', wanted }]);
      return;
    }
    const found: Found =
      returned < 0 || !isPresent(host, vm, wanted.page) ? { error: 'FAULT' } : remapped(host, operation, vm, wanted);
    pushSteps(operation, unlocked(wanted, found, vm.mm));
  },

  hva_to_pfn_done(host, operation, { wanted, found }) {
    const { asker } = wanted;
    if (asker.by === 'fault') faultResolved(host, operation, asker, found);
    else if (asker.by === 'map') mapResolved(host, operation, asker, found);
    else cacheResolved(host, operation, asker, found);
  },
};
