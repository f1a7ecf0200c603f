// Models struct gfn_to_pfn_cache: a mapping of a guest page that holds no reference, and that an invalidation revokes.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_HOST_MAPS } from '../limits.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import type { Found } from './resolve.ts';
import { callerOf, getLiveVm, getVm, gfnToMemslot, type PfnCache, pageOfGfn } from './vm.ts';
import { underVmSrcu } from './vm-srcu.ts';

export type CacheCommand =
  /** kvm_gpc_activate() and kvm_gpc_refresh(). */
  | { op: 'refresh_pfn_cache'; vm: string; cache: string; gfn: number; stop_at?: Phase }
  /** kvm_gpc_deactivate(). */
  | { op: 'delete_pfn_cache'; vm: string; cache: string };

/** A refresh on its way. `seq`: where the sequence stood before the page was looked for. */
export interface Refresh {
  vm: string;
  cache: string;
  gfn: number;
  page: number;
  seq: number;
  tries: number;
}

export type CacheStep =
  | { do: 'gpc_refresh'; vm: string; cache: string; gfn: number; tries: number; cleanup?: true }
  | { do: 'gpc_validate'; refresh: Refresh; pfn: number; cleanup?: true }
  | { do: 'gpc_refreshed'; vm: string; cache: string; cleanup: true };

/** Refreshes that an invalidation has overtaken, before the caller is told. */
const MAX_TRIES = 1024;

export const cacheFields = (vm: string, { active: _active, ...cache }: PfnCache): Fields => ({ vm, ...cache });

/**
 * Makes a cache valid, or fills it again. Fields: id, gfn, pfn, valid.
 * EOPNOTSUPP: the profile has none. ESRCH, EBUSY: the vm; a refresh goes on. ENOSPC: MAX_HOST_MAPS. EFAULT: no page can be got.
 * EAGAIN: an invalidation stays open that the kernel would look at for ever.
 */
export function refreshPfnCache(host: Host, command: Extract<CacheCommand, { op: 'refresh_pfn_cache' }>): Done {
  const { vm: id, cache, gfn, stop_at } = command;
  if (!host.profile.kvmPfnCache)
    throw new Errno('EOPNOTSUPP', `${host.profile.release} has no gfn_to_pfn_cache as it is modelled`);
  const vm = getLiveVm(host, id);
  const created = !vm.caches.has(cache);
  if (created && vm.caches.size >= MAX_HOST_MAPS)
    throw new Errno('ENOSPC', `vm '${id}' has ${MAX_HOST_MAPS} caches, the most it keeps`);
  if (vm.caches.get(cache)?.active === true) throw new Errno('EBUSY', `cache '${cache}' is being refreshed`);
  vm.caches.set(cache, { id: cache, gfn, page: 0, pfn: null, valid: false, active: true });
  const done = runOperation(
    host,
    { kind: 'refresh_pfn_cache', locals: callerOf(host, vm) },
    underVmSrcu(id, [
      { do: 'gpc_refresh', vm: id, cache, gfn, tries: 0 },
      { do: 'gpc_refreshed', vm: id, cache, cleanup: true },
    ]),
    stop_at ?? null,
  );
  return { ...done, created };
}

/** EINVAL: there is no such cache. EBUSY: it is being refreshed. */
export function deletePfnCache(host: Host, { vm: id, cache }: Extract<CacheCommand, { op: 'delete_pfn_cache' }>): Done {
  const vm = getVm(host, id);
  const found = vm.caches.get(cache);
  if (found === undefined) throw new Errno('EINVAL', `cache '${cache}' does not exist`);
  if (found.active) throw new Errno('EBUSY', `cache '${cache}' is being refreshed`);
  vm.caches.delete(cache);
  return { ret: 0, fields: { id: cache } };
}

/** The reference is dropped at once: from here on the notifier keeps the cache true. */
export function cacheResolved(_host: Host, operation: ThreadOperation, refresh: Refresh, found: Found): void {
  if (!('pfn' in found)) throw new Errno('EFAULT', `gfn ${refresh.gfn}: no page can be got (${found.error})`);
  const { pfn } = found;
  pushSteps(operation, [
    { do: 'phase', phase: 'after_gup', fields: { vm: refresh.vm, gfn: refresh.gfn, pfn } },
    { do: 'kvm_release_pfn', vm: refresh.vm, pfn, cleanup: true },
    { do: 'gpc_validate', refresh, pfn },
  ]);
}

export const cacheSteps: Handlers<CacheStep> = {
  gpc_refresh(host, operation, { vm: id, cache, gfn, tries }) {
    const vm = getVm(host, id);
    const slot = gfnToMemslot(vm, gfn);
    if (slot === null || slot.invalid) throw new Errno('EFAULT', `gfn ${gfn} is in no memslot`);
    if (tries >= MAX_TRIES)
      throw new Errno(
        'EAGAIN',
        `cache '${cache}': an invalidation of the mm is open, and the kernel looks again for ever`,
      );
    const page = pageOfGfn(slot, gfn);
    const kept = vm.caches.get(cache);
    if (kept !== undefined) kept.page = page;
    const asker = { by: 'cache', vm: id, cache, gfn, page, seq: vm.mmu_notifier_seq, tries } as const;
    const wanted = { vm: id, page, write: true, nowait: false, map_writable: false, asker };
    const look: Step[] = [
      { do: 'phase', phase: 'after_seq_snapshot', fields: { vm: id, gfn } },
      { do: 'hva_to_pfn', wanted },
    ];
    pushSteps(operation, look);
  },

  gpc_validate(host, operation, { refresh, pfn }) {
    const { vm: id, cache: name, gfn, page, seq, tries } = refresh;
    const vm = getVm(host, id);
    if (vm.mn_active_invalidate_count > 0 || vm.mmu_notifier_seq !== seq) {
      pushSteps(operation, [{ do: 'gpc_refresh', vm: id, cache: name, gfn, tries: tries + 1 }]);
      return;
    }
    const cache: PfnCache = { id: name, gfn, page, pfn, valid: true, active: true };
    vm.caches.set(name, cache);
    operation.thread.fields = cacheFields(id, cache);
  },

  gpc_refreshed(host, { thread }, { vm, cache: name }) {
    const { caches } = getVm(host, vm);
    const cache = caches.get(name);
    if (cache === undefined) return;
    cache.active = false;
    if (thread.error !== null && cache.pfn === null) caches.delete(name);
  },
};
