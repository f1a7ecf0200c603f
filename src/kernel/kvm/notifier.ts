// Models the mmu_notifier_ops of KVM: an invalidation takes SPTEs away at its start, and is counted until its end.

import { killHost } from '../bug.ts';
import type { ConsumerCallback } from '../consumer.ts';
import { type Host, splat } from '../host.ts';
import { anyMm } from '../mm/mm.ts';
import type { MmuRange } from '../mm/mmu-notifier/range.ts';
import type { CallbackName } from '../mm/mmu-notifier/subscriptions.ts';
import { PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE } from '../mm/page-table.ts';
import type { Profile } from '../profile.ts';
import type { Handlers, Step } from '../steps.ts';
import { schedule, type ThreadOperation } from '../thread.ts';
import { ageHvaRange, flushRemoteTlbs, flushShadowAll, repointHva, unmapHvaRange } from './spte.ts';
import { getVm, gfnRanges, INVALIDATIONS, mmuLock, overlapsMemslot, type Vm } from './vm.ts';

export type NotifierStep =
  /** All under mmu_lock. */
  | { do: 'kvm_invalidate_begin'; vm: string; range: MmuRange; cleanup?: true }
  | { do: 'kvm_invalidate_end'; vm: string; cleanup?: true }
  | { do: 'kvm_change_pte'; vm: string; page: number; pfn: number | null; cleanup?: true }
  | { do: 'kvm_age'; vm: string; range: MmuRange; callback: CallbackName; cleanup?: true }
  | { do: 'kvm_flush_shadow_all'; vm: string; cleanup?: true }
  /** The invalidation does not hold updates of the memslots up any more. */
  | { do: 'kvm_invalidated'; vm: string; cleanup?: true };

/** Callbacks of KVM's notifier: what the profile's kernel has. */
export const kvmCallbacks = ({ changePteCallback }: Profile): CallbackName[] => [
  'invalidate_range_start',
  'invalidate_range_end',
  'clear_flush_young',
  'clear_young',
  'test_young',
  ...(changePteCallback ? (['change_pte'] as const) : []),
  'release',
];

const underMmuLock = (vm: string, step: Step): Step[] => [
  { do: 'lock', lock: mmuLock(vm), mode: 'W' },
  step,
  { do: 'unlock', lock: mmuLock(vm), cleanup: true },
];

const countsAll = ({ profile }: Host): boolean => profile.kvmCountedRanges === 'all';

/** The vm of a notifier. */
const vmOf = (host: Host, of: { handler: { kind: string } }): Vm =>
  getVm(host, (of.handler as { kind: 'consumer'; of: string }).of);

/** Only what overlaps a memslot is counted, but in old kernels; the memslots stay as they are until it has ended. */
const rangeStart: ConsumerCallback = (host, operation, notifier, { range }) => {
  const vm = vmOf(host, notifier);
  if (range === null) return [];
  vm.invalidators.push(operation.id);
  if (!countsAll(host)) vm.mn_active_invalidate_count++;
  if (!countsAll(host) && !overlapsMemslot(vm, range)) return [];
  if (host.profile.kvmPfnCache)
    for (const cache of vm.caches.values())
      if (cache.page >= range.start && cache.page < range.end) cache.valid = false;
  return underMmuLock(vm.id, { do: 'kvm_invalidate_begin', vm: vm.id, range });
};

const rangeEnd: ConsumerCallback = (host, operation, notifier, { range }) => {
  const vm = vmOf(host, notifier);
  if (range === null) return [];
  const at = vm.invalidators.indexOf(operation.id);
  if (at >= 0) vm.invalidators.splice(at, 1);
  const counted = countsAll(host) || overlapsMemslot(vm, range);
  return [
    ...(counted ? underMmuLock(vm.id, { do: 'kvm_invalidate_end', vm: vm.id }) : []),
    ...(countsAll(host) ? [] : [{ do: 'kvm_invalidated', vm: vm.id } as const]),
  ];
};

const young: ConsumerCallback = (host, _operation, notifier, { range, callback }) => {
  const vm = vmOf(host, notifier);
  return range === null ? [] : underMmuLock(vm.id, { do: 'kvm_age', vm: vm.id, range, callback });
};

/** Between a start and its end the SPTE is gone already: nothing is left to do. */
const changePte: ConsumerCallback = (host, _operation, notifier, { range }, pfn) => {
  const vm = vmOf(host, notifier);
  if (range === null) return [];
  if (host.profile.kvmChangePte === 'in-invalidation') {
    if (vm.mn_active_invalidate_count === 0)
      splat(host, 'WARN', 'kvm_mmu_notifier_change_pte', '!kvm->mn_active_invalidate_count', [
        '__mmu_notifier_change_pte',
      ]);
    if (vm.mmu_notifier_count === 0) return [];
  }
  return underMmuLock(vm.id, { do: 'kvm_change_pte', vm: vm.id, page: range.start, pfn });
};

const released: ConsumerCallback = (host, _operation, notifier) => {
  const vm = vmOf(host, notifier);
  return underMmuLock(vm.id, { do: 'kvm_flush_shadow_all', vm: vm.id });
};

export const notifierCallbacks: Partial<Record<CallbackName, ConsumerCallback>> = {
  invalidate_range_start: rangeStart,
  invalidate_range_end: rangeEnd,
  clear_flush_young: young,
  clear_young: young,
  test_young: young,
  change_pte: changePte,
  release: released,
};

/** Widens the hull: it is not made smaller again before all invalidations have ended. */
function addRange(vm: Vm, { start, end }: { start: number; end: number }): void {
  const hull = vm.mmu_notifier_range;
  vm.mmu_notifier_range =
    hull === null ? { start, end } : { start: Math.min(hull.start, start), end: Math.max(hull.end, end) };
}

export const notifierSteps: Handlers<NotifierStep> = {
  kvm_invalidate_begin(host, operation, { vm: id, range }) {
    const vm = getVm(host, id);
    const { kvmRetryRange } = host.profile;
    vm.mmu_notifier_count++;
    if (vm.mmu_notifier_count === 1) vm.mmu_notifier_range = null;
    if (kvmRetryRange === 'hva') addRange(vm, range);
    if (kvmRetryRange === 'gfn')
      for (const { first, past } of gfnRanges(vm, range)) addRange(vm, { start: first, end: past });
    unmapHvaRange(host, operation, vm, range);
  },

  /** The sequence moves before the count: who looks between sees one of them. */
  kvm_invalidate_end(host, operation, { vm: id }) {
    const vm = getVm(host, id);
    vm.mmu_notifier_seq++;
    vm.mmu_notifier_count--;
    if (vm.mmu_notifier_count < 0)
      throw killHost(host, operation, 'kvm_mmu_notifier_invalidate_range_end', 'kvm->mmu_notifier_count < 0', [
        '__mmu_notifier_invalidate_range_end',
      ]);
  },

  kvm_invalidated(host, _operation, { vm: id }) {
    const vm = getVm(host, id);
    vm.mn_active_invalidate_count--;
    if (vm.mn_active_invalidate_count !== 0) return;
    for (const updater of vm.updaters.splice(0)) {
      const operation = host.operations.get(updater);
      if (operation?.blocked_on === `${INVALIDATIONS}${id}`) schedule(host, operation as ThreadOperation);
    }
  },

  /** A page that may be written is dropped and faulted in again; any other takes the place of the old one. */
  kvm_change_pte(host, operation, { vm: id, page, pfn }) {
    const vm = getVm(host, id);
    if (host.profile.kvmChangePte === 'counts') vm.mmu_notifier_seq++;
    const flags = anyMm(host, vm.mm).page_table.flags(page);
    const readOnly = (flags & (PTE_TYPE_MASK | PTE_WRITE)) === PTE_PRESENT;
    if (pfn !== null && readOnly) repointHva(host, operation, vm, page, pfn);
    else unmapHvaRange(host, operation, vm, { start: page, end: page + 1 });
  },

  kvm_age(host, operation, { vm: id, range, callback }) {
    const vm = getVm(host, id);
    const used = ageHvaRange(vm, range, callback !== 'test_young');
    if (used && callback === 'clear_flush_young') flushRemoteTlbs(host, operation, vm);
    operation.thread.returned = used ? 1 : 0;
  },

  kvm_flush_shadow_all(host, operation, { vm }) {
    flushShadowAll(host, operation, getVm(host, vm));
  },
};
