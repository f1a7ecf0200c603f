// Models the secondary page tables of a virtual machine: what the guest reaches without a fault, and how it is taken away.

import { Errno } from '../errno.ts';
import { type Host, trace } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { MAX_SPTES } from '../limits.ts';
import { getMmuNotifier } from '../mm/mmu-notifier/call.ts';
import { checkWindow } from '../mm/mmu-notifier/secondary.ts';
import type { SecondaryMapping } from '../mm/mmu-notifier/subscriptions.ts';
import type { ThreadOperation } from '../thread.ts';
import { setPfnDirty } from './pfn.ts';
import { gfnRanges, gfnToMemslot, type Spte, type Vm } from './vm.ts';

/** Calls `visit` for each gfn of [first, past) that is mapped. It may drop it. */
function eachSpte({ sptes }: Vm, first: number, past: number, visit: (gfn: number, spte: Spte) => void): void {
  if (sptes.size < past - first) {
    for (const [gfn, spte] of sptes) if (gfn >= first && gfn < past) visit(gfn, spte);
    return;
  }
  for (let gfn = first; gfn < past; gfn++) {
    const spte = sptes.get(gfn);
    if (spte !== undefined) visit(gfn, spte);
  }
}

/** kvm_flush_remote_tlbs(). */
export function flushRemoteTlbs(host: Host, operation: ThreadOperation, vm: Vm): void {
  vm.tlb_flushes++;
  trace(host, 'tlb_flush', operation.id, { vm: vm.id });
}

/** The page is told that the guest may have written it. */
function dropSpte(host: Host, operation: ThreadOperation, vm: Vm, gfn: number, { pfn, writable, page }: Spte): void {
  vm.sptes.delete(gfn);
  trace(host, 'spte', operation.id, { vm: vm.id, change: 'drop', gfn, addr: addressOf(page), pfn });
  if (writable && host.profile.kvmDirtyMark === 'zap') setPfnDirty(host, vm, pfn);
}

/** Drops the gfns of [first, past). Whether there were any. Precondition: mmu_lock. */
export function zapGfns(host: Host, operation: ThreadOperation, vm: Vm, first: number, past: number): boolean {
  const before = vm.sptes.size;
  eachSpte(vm, first, past, (gfn, spte) => dropSpte(host, operation, vm, gfn, spte));
  return vm.sptes.size < before;
}

/** Drops what stands for [start, end) of host virtual memory, through every memslot. Precondition: mmu_lock. */
export function unmapHvaRange(
  host: Host,
  operation: ThreadOperation,
  vm: Vm,
  range: { start: number; end: number },
): void {
  let flush = false;
  for (const { first, past } of gfnRanges(vm, range)) flush = zapGfns(host, operation, vm, first, past) || flush;
  if (flush) flushRemoteTlbs(host, operation, vm);
}

/** kvm_arch_flush_shadow_all(). Precondition: mmu_lock. */
export function flushShadowAll(host: Host, operation: ThreadOperation, vm: Vm): void {
  for (const [gfn, spte] of vm.sptes) dropSpte(host, operation, vm, gfn, spte);
  flushRemoteTlbs(host, operation, vm);
}

/** Marks a guest page in the dirty log of its memslot (mark_page_dirty). */
export function markGfnDirty(vm: Vm, gfn: number): void {
  const slot = gfnToMemslot(vm, gfn);
  slot?.dirty_bitmap?.set(gfn - slot.base_gfn, true);
}

/** kvm_mmu_slot_remove_write_access(): the next write of each page is seen. Precondition: mmu_lock. */
export function removeWriteAccess(host: Host, operation: ThreadOperation, vm: Vm, first: number, past: number): void {
  let flush = false;
  eachSpte(vm, first, past, (_gfn, spte) => {
    if (!spte.writable) return;
    if (host.profile.kvmDirtyMark === 'zap') setPfnDirty(host, vm, spte.pfn);
    spte.writable = false;
    flush = true;
  });
  if (flush) flushRemoteTlbs(host, operation, vm);
}

/** Maps a page for the guest, whatever was there. Precondition: mmu_lock. ENOMEM: MAX_SPTES. */
export function setSpte(
  host: Host,
  operation: ThreadOperation,
  vm: Vm,
  gfn: number,
  { pfn, writable, page }: Omit<Spte, 'accessed'>,
): void {
  const old = vm.sptes.get(gfn);
  if (old === undefined && vm.sptes.size >= MAX_SPTES)
    throw new Errno('ENOMEM', `vm '${vm.id}' maps ${MAX_SPTES} pages, the most it can`);
  if (old !== undefined && old.pfn !== pfn) dropSpte(host, operation, vm, gfn, old);
  if (old !== undefined && (old.pfn !== pfn || (old.writable && !writable))) flushRemoteTlbs(host, operation, vm);
  vm.sptes.set(gfn, { pfn, writable, accessed: true, page });
  trace(host, 'spte', operation.id, { vm: vm.id, change: 'set', gfn, addr: addressOf(page), pfn, writable });
  if (writable) markGfnDirty(vm, gfn);
  checkWindow(host, operation, getMmuNotifier(host, vm.notifier), page);
}

/** A page of host virtual memory gets another read-only page behind it. Precondition: mmu_lock. */
export function repointHva(host: Host, operation: ThreadOperation, vm: Vm, page: number, pfn: number): void {
  for (const { first } of gfnRanges(vm, { start: page, end: page + 1 })) {
    const spte = vm.sptes.get(first);
    if (spte === undefined) continue;
    dropSpte(host, operation, vm, first, spte);
    vm.sptes.set(first, { pfn, writable: false, accessed: false, page });
    flushRemoteTlbs(host, operation, vm);
  }
}

/** Whether the guest has used a page of [start, end) since it was last asked. Precondition: mmu_lock. */
export function ageHvaRange(vm: Vm, range: { start: number; end: number }, clear: boolean): boolean {
  let young = false;
  for (const { first, past } of gfnRanges(vm, range))
    eachSpte(vm, first, past, (_gfn, spte) => {
      young ||= spte.accessed;
      if (clear) spte.accessed = false;
    });
  return young;
}

/** What stands for pages of [start, end), by page number. */
export function* sptesOf(vm: Vm, range: { start: number; end: number }): Iterable<[number, SecondaryMapping]> {
  for (const { first, past } of gfnRanges(vm, range)) {
    const found: [number, SecondaryMapping][] = [];
    eachSpte(vm, first, past, (_gfn, { page, pfn, writable }) => found.push([page, { pfn, writable }]));
    yield* found;
  }
}
