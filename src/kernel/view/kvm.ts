// What GETs show of virtual machines: memslots, SPTEs, counters, mappings. Pure: nothing here changes a host.

import { NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { cacheFields } from '../kvm/cache.ts';
import { mapFields } from '../kvm/map.ts';
import { memslotFields } from '../kvm/memslot.ts';
import { getVm, type Memslot, type Vm } from '../kvm/vm.ts';
import { addressOf } from '../lib/u64.ts';
import { MAX_SHOWN_DIRTY_RUNS } from '../limits.ts';
import { anyMm } from '../mm/mm.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import type { Fields } from '../outcome.ts';
import { byId, type Listed, listed } from './page.ts';

const showVm = (vm: Vm): Fields => ({
  id: vm.id,
  task: vm.task,
  mm: vm.mm,
  notifier: vm.notifier,
  zone_device_bug: vm.zone_device_bug,
  early_put: vm.early_put,
  allow_unsafe_mappings: vm.allow_unsafe_mappings,
  memslots: vm.memslots.size,
  sptes: vm.sptes.size,
  maps: vm.maps.size,
  caches: vm.caches.size,
});

export const listVms = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.consumers.kvm.vms, after), limit, ({ id }) => id, showVm);
export const viewVm = (host: Host, id: string): Fields => showVm(getVm(host, id));

/** Runs of [first gfn, pages] that the dirty log has; at most MAX_SHOWN_DIRTY_RUNS. */
function dirtyRuns({ dirty_bitmap, base_gfn }: Memslot): number[][] {
  const runs: number[][] = [];
  for (const page of [...(dirty_bitmap?.keys() ?? [])].sort((a, b) => a - b)) {
    const last = runs.at(-1) as [number, number] | undefined;
    if (last !== undefined && last[0] + last[1] === base_gfn + page) last[1]++;
    else if (runs.length === MAX_SHOWN_DIRTY_RUNS) break;
    else runs.push([base_gfn + page, 1]);
  }
  return runs;
}

const showMemslot = (vm: Vm, slot: Memslot): Fields => ({
  ...memslotFields(vm.id, slot),
  dirty: slot.dirty_bitmap === null ? null : dirtyRuns(slot),
});

const after = (key: number | null, other: number): boolean => key === null || other > key;

export const listMemslots = (host: Host, id: string, last: number | null, limit: number): Listed<number> => {
  const vm = getVm(host, id);
  const slots = [...vm.memslots.values()].filter((slot) => after(last, slot.id)).sort((a, b) => a.id - b.id);
  return listed(
    slots,
    limit,
    (slot) => slot.id,
    (slot) => showMemslot(vm, slot),
  );
};

export function viewMemslot(host: Host, id: string, slot: number): Fields {
  const vm = getVm(host, id);
  const found = vm.memslots.get(slot);
  if (found === undefined) throw new NoSuchObject('memslot', String(slot));
  return showMemslot(vm, found);
}

export const listSptes = (host: Host, id: string, last: number | null, limit: number): Listed<number> => {
  const vm = getVm(host, id);
  const mm = anyMm(host, vm.mm);
  const sptes = [...vm.sptes].filter(([gfn]) => after(last, gfn)).sort(([a], [b]) => a - b);
  return listed(
    sptes,
    limit,
    ([gfn]) => gfn,
    ([gfn, { page, ...spte }]) => ({
      gfn,
      hva: addressOf(page),
      ...spte,
      stale: isStale(mm, page, spte),
    }),
  );
};

/** The hull of the open invalidations: `unit` says what its ends are. */
function showHull({ profile }: Host, { mmu_notifier_range, mmu_notifier_count }: Vm): Fields | null {
  if (mmu_notifier_range === null || mmu_notifier_count === 0) return null;
  const { start, end } = mmu_notifier_range;
  const unit = profile.kvmRetryRange;
  return unit === 'gfn' ? { unit, start, end } : { unit, start: addressOf(start), end: addressOf(end) };
}

export function viewMmuState(host: Host, id: string): Fields {
  const vm = getVm(host, id);
  return {
    mmu_notifier_seq: vm.mmu_notifier_seq,
    mmu_notifier_count: vm.mmu_notifier_count,
    mmu_notifier_range: showHull(host, vm),
    mn_active_invalidate_count: vm.mn_active_invalidate_count,
    tlb_flushes: vm.tlb_flushes,
    updaters: [...vm.updaters, ...vm.synchronizers.keys()],
    async_pf: vm.async_pf.map(({ vcpu, gfn, worker, done }) => ({ vcpu, gfn, worker, done })),
    leaked: [...host.consumers.kvm.leaked].map(([pfn, references]) => ({ pfn, references })),
  };
}

export const listHostMaps = (host: Host, id: string, last: string | null, limit: number): Listed<string> =>
  listed(
    byId(getVm(host, id).maps, last),
    limit,
    (map) => map.id,
    (map) => mapFields(id, map),
  );

export const listPfnCaches = (host: Host, id: string, last: string | null, limit: number): Listed<string> =>
  listed(
    byId(getVm(host, id).caches, last),
    limit,
    (cache) => cache.id,
    (cache) => cacheFields(id, cache),
  );
