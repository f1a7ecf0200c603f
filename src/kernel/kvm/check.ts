// What must hold of every virtual machine after every command and at every phase, recomputed (host-mm C.7).

import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import { isRemapped } from '../mm/gup-page.ts';
import { anyMm } from '../mm/mm.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import { vmaAt } from '../mm/vma.ts';
import { INVALIDATIONS, pageOfGfn, type Vm } from './vm.ts';

type Say = (text: string) => void;

export function checkKvm(host: Host): string[] {
  const found: string[] = [];
  for (const vm of host.consumers.kvm.vms.values()) {
    const say: Say = (text) => void found.push(`vm ${vm.id}: ${text}`);
    if (!host.mm.mmu_notifiers.has(vm.notifier)) say('has no notifier');
    checkSptes(host, vm, say);
    checkCounts(host, vm, say);
    checkSlots(vm, say);
  }
  return found;
}

/** The page table gives what each SPTE gives, or an invalidation that covers it goes on. */
function checkSptes(host: Host, vm: Vm, say: Say): void {
  const mm = anyMm(host, vm.mm);
  const active = mm.subscriptions?.active ?? [];
  for (const [gfn, spte] of vm.sptes) {
    const { page } = spte;
    const slots = [...vm.memslots.values()].filter(
      ({ base_gfn, npages }) => gfn >= base_gfn && gfn < base_gfn + npages,
    );
    if (!slots.some((slot) => pageOfGfn(slot, gfn) === page))
      say(`gfn ${gfn} maps ${hex(addressOf(page))}, its memslot does not`);
    if (spte.writable && slots.some(({ readonly }) => readonly)) say(`gfn ${gfn} of a read-only memslot is writable`);
    if (active.some(({ start, end }) => page >= start && page < end)) continue;
    const vma = vmaAt(mm, page);
    // Old kernels take device memory for writable whatever its entry says.
    const blind = host.profile.kvmRemappedReadOnly === 'writable' && vma !== null && isRemapped(vma);
    if (isStale(mm, page, blind ? { ...spte, writable: false } : spte))
      say(`gfn ${gfn} maps page ${spte.pfn}, which ${hex(addressOf(page))} does not map so`);
  }
}

/** Whether a thread is inside a callback of the vm's notifier: it is counted before or after. */
const isInside = (host: Host, { notifier }: Vm): boolean =>
  [...host.operations.values()].some(
    ({ state, thread }) => state !== 'done' && thread?.callbacks.some((frame) => frame.notifier === notifier) === true,
  );

/** Starts less ends: of all ranges, or of those that overlap a memslot. */
function checkCounts(host: Host, vm: Vm, say: Say): void {
  const notifier = host.mm.mmu_notifiers.get(vm.notifier);
  const { mmu_notifier_count, mn_active_invalidate_count, mmu_notifier_range } = vm;
  if (mmu_notifier_count < 0 && host.dead === null) say(`mmu_notifier_count ${mmu_notifier_count}`);
  if (notifier?.kind !== 'plain' || isInside(host, vm) || host.dead !== null) return;
  const { open_starts } = notifier;
  const all = host.profile.kvmCountedRanges === 'all' ? mmu_notifier_count : mn_active_invalidate_count;
  if (all !== open_starts) say(`counts ${all} invalidations, its notifier has ${open_starts} open`);
  if (mmu_notifier_count > open_starts) say(`mmu_notifier_count ${mmu_notifier_count}, ${open_starts} are open`);
  const hull = host.profile.kvmRetryRange !== 'any' && mmu_notifier_count > 0;
  if (hull && mmu_notifier_range === null) say('has open invalidations and no hull');
}

function checkSlots({ memslots, updaters, id, sptes }: Vm, say: Say): void {
  const slots = [...memslots.values()].sort((a, b) => a.base_gfn - b.base_gfn);
  for (const [i, slot] of slots.entries()) {
    const next = slots[i + 1];
    if (next !== undefined && slot.base_gfn + slot.npages > next.base_gfn)
      say(`slots ${slot.id} and ${next.id} overlap`);
  }
  if (slots.length === 0 && sptes.size > 0) say(`${sptes.size} SPTEs and no memslot`);
  if (new Set(updaters).size !== updaters.length) say(`an update waits twice for ${INVALIDATIONS}${id}`);
}
