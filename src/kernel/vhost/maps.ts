// Models vhost_map_prefetch(), vhost_map_unprefetch() and vhost_uninit_vq_maps(): how the kernel's addresses of a ring come and go.

import { ERRNO } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, PAGE_SIZE, pageNumberOf } from '../lib/u64.ts';
import type { LockId } from '../lock.ts';
import { mightSleep } from '../lockdep.ts';
import { getMmuNotifier } from '../mm/mmu-notifier/call.ts';
import { checkWindow } from '../mm/mmu-notifier/secondary.ts';
import { isResident, PTE_WRITE } from '../mm/page-table.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import {
  AREAS,
  type Area,
  devOf,
  hasIotlb,
  mmuLock,
  ownerMm,
  type Retired,
  reportOnce,
  type VhostDev,
  type VhostMap,
  type Vq,
  vqOf,
} from './device.ts';

export type MapStep =
  /** Maps an area that is not mapped; a failure is silent. Precondition: the vq's mutex is held. */
  | { do: 'vhost_prefetch'; dev: string; vq: number; area: Area; cleanup?: true }
  | { do: 'vhost_gup'; dev: string; vq: number; area: Area; cleanup?: true }
  | { do: 'vhost_publish'; dev: string; vq: number; area: Area; map: VhostMap; cleanup?: true }
  /** Unpublishes every map of a vq outside a callback. */
  | { do: 'vhost_unpublish'; dev: string; vq: number; cleanup?: true }
  /** Waits for those inside the maps that the thread has unpublished, and frees them. */
  | { do: 'vhost_retire'; dev: string; vq: number; in_callback: boolean; cleanup?: true }
  | { do: 'vhost_free'; dev: string; vq: number; in_callback: boolean; cleanup?: true };

/** First byte of the kernel's linear map of memory (page_offset_base). */
const PAGE_OFFSET = 0xffff888000000000n;
/** The same for vmap(), from the number of the map. */
const VMALLOC_START = 0xffffc90000000000n;
const VMAP_STRIDE = 0x1000000n;

/** Steps under the lock of a vq's maps; RFC V2 has none: the mutex of the vq is theirs too. */
export function underMmuLock({ id, variant }: VhostDev, vq: number, steps: readonly Step[]): Step[] {
  if (variant === 'rfc2') return [...steps];
  const lock = mmuLock(id, vq);
  return [{ do: 'lock', lock, mode: 'W' }, ...steps, { do: 'unlock', lock, cleanup: true }];
}

/** What an accessor holds while it is inside a map; null: nothing that anybody waits for. */
export function readerLock({ id, switches }: VhostDev, vq: number, operation: string): LockId | null {
  if (switches.reader === 'rcu') return `rcu_read:${operation}`;
  if (switches.reader === 'ref') return `vhost_ref:${id}:${vq}`;
  return switches.reader === 'mmu_lock' ? mmuLock(id, vq) : null;
}

/** The owner's pages behind a notifier's mappings are those of all maps of its device. */
function mapSecondaries(host: Host, dev: VhostDev): void {
  if (dev.notifier === null) return;
  const { mappings } = getMmuNotifier(host, dev.notifier);
  mappings.clear();
  for (const { maps } of dev.vqs)
    for (const area of AREAS) {
      const map = maps[area];
      for (const [i, pfn] of (map?.pfns ?? []).entries()) {
        const page = (map as VhostMap).page + i;
        const writable = area === 'used' || (mappings.get(page)?.writable ?? false);
        mappings.set(page, { pfn, writable });
      }
    }
}

/** A notifier that has been registered anew knows the maps that are there. */
export const adoptMaps = mapSecondaries;

function setMap(host: Host, dev: VhostDev, vq: Vq, area: Area, map: VhostMap | null): void {
  vq.maps[area] = map;
  mapSecondaries(host, dev);
}

/** get_user_pages_fast() that never faults: the pages that are there, up to the first one that is not, or not writable. */
function fastPages(host: Host, dev: VhostDev, first: number, npage: number, write: boolean): number[] {
  const mm = ownerMm(host, dev);
  const pfns: number[] = [];
  if (mm === null) return pfns;
  for (let page = first; page < first + npage; page++) {
    const flags = mm.page_table.flags(page);
    if (!isResident(flags) || (write && (flags & PTE_WRITE) === 0)) break;
    pfns.push(mm.page_table.pfn(page));
  }
  return pfns;
}

/** Whether the pages lie behind each other in the kernel's linear map. */
const areContiguous = (pfns: readonly number[]): boolean => pfns.every((pfn, i) => pfn === (pfns[0] as number) + i);

/** Takes a map away from those who come; those who are inside are noted. `dirtied`: its pages are marked already. */
export function unpublish(
  host: Host,
  operation: ThreadOperation,
  dev: VhostDev,
  { vq: n, area }: { vq: number; area: Area },
): VhostMap | null {
  const vq = dev.vqs[n] as Vq;
  const map = vq.maps[area];
  if (map === null) return null;
  setMap(host, dev, vq, area, null);
  for (const accessor of dev.accessors) if (accessor.map.id === map.id) accessor.revoked = true;
  dev.retired.push({ by: operation.id, vq: n, area, map });
  return map;
}

/** set_page_dirty() of every page of a map. */
export function dirtyMap(host: Host, operation: ThreadOperation, dev: VhostDev, map: VhostMap): void {
  const { pages } = host.mm;
  for (const pfn of map.pfns) {
    if (pages.refcount(pfn) > 0) pages.setDirty(pfn, host.seq);
    else report(host, operation, 'USE_AFTER_FREE', `vhost device ${dev.id} marks page ${pfn} dirty, which is free`, []);
  }
  for (const accessor of dev.accessors) if (accessor.map.id === map.id) accessor.dirtied = true;
  map.written = [];
}

/** What waits until nobody is inside the maps that were unpublished. */
function waitForReaders(
  host: Host,
  operation: ThreadOperation,
  dev: VhostDev,
  vq: number,
  inCallback: boolean,
): Step[] {
  const { reader } = dev.switches;
  if (reader === 'rcu') {
    mightSleep(host, operation, 'waits for a grace period of RCU');
    if (inCallback)
      reportOnce(host, operation, dev, 'GRACE_PERIOD_IN_START', `vhost device ${dev.id} waits for RCU inside a start`);
    const readers = [...host.consumers.vhost.devs.values()].flatMap(({ accessors }) => accessors);
    return readers
      .map((accessor) => `rcu_read:${accessor.operation}`)
      .filter((lock) => host.locks.has(lock))
      .flatMap((lock): Step[] => [
        { do: 'lock', lock, mode: 'W' },
        { do: 'unlock', lock, cleanup: true },
      ]);
  }
  const lock = reader === 'ref' ? readerLock(dev, vq, operation.id) : null;
  if (lock === null || !host.locks.has(lock)) return [];
  return [
    { do: 'lock', lock, mode: 'W' },
    { do: 'unlock', lock, cleanup: true },
  ];
}

/** The steps that take all maps of a vq away outside a callback. */
export const uninitMaps = (dev: VhostDev, vq: number): Step[] => [
  ...underMmuLock(dev, vq, [{ do: 'vhost_unpublish', dev: dev.id, vq }]),
  { do: 'vhost_retire', dev: dev.id, vq, in_callback: false },
];

export const prefetchAll = ({ id: dev }: VhostDev, vq: number): Step[] =>
  AREAS.map((area) => ({ do: 'vhost_prefetch', dev, vq, area }));

export const mapSteps: Handlers<MapStep> = {
  vhost_prefetch(host, operation, { dev: id, vq: n, area }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    if (vq.maps[area] !== null || hasIotlb(dev)) return;
    pushSteps(operation, underMmuLock(dev, n, [{ do: 'vhost_gup', dev: id, vq: n, area }]));
  },

  /** EFAULT, ENOMEM: not shown to anybody but in the state of the vq. As merged, some have the wrong sign. */
  vhost_gup(host, operation, { dev: id, vq: n, area }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    const { addr, size, write } = vq.uaddrs[area];
    vq.prefetched[area] = -ERRNO.EFAULT;
    const watched = dev.notifier !== null || dev.switches.registration_result === 'ignored';
    if (vq.invalidate_count > 0 || size === 0 || !watched) return;
    const page = pageNumberOf(addr);
    const offset = Number(addr & 0xfffn);
    const span = dev.switches.page_count === 'span' ? offset + size : size;
    const npage = Math.ceil(span / PAGE_SIZE);
    const pfns = fastPages(host, dev, page, npage, write);
    if (pfns.length < npage || (dev.variant !== 'rfc2' && !areContiguous(pfns))) {
      if (dev.variant === 'merged') vq.prefetched[area] = ERRNO.EFAULT;
      return;
    }
    const number = dev.next_map++;
    const base =
      dev.variant === 'rfc2'
        ? VMALLOC_START + BigInt(number) * VMAP_STRIDE
        : PAGE_OFFSET + addressOf(pfns[0] as number);
    const map: VhostMap = { id: number, kva: base + BigInt(offset), page, offset, pfns, written: [] };
    pushSteps(operation, [
      { do: 'phase', phase: 'after_gup' },
      { do: 'vhost_publish', dev: id, vq: n, area, map },
    ]);
  },

  vhost_publish(host, operation, { dev: id, vq: n, area, map }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    vq.prefetched[area] = 0;
    setMap(host, dev, vq, area, map);
    if (dev.notifier === null) return;
    const notifier = getMmuNotifier(host, dev.notifier);
    for (const i of map.pfns.keys()) checkWindow(host, operation, notifier, map.page + i);
  },

  vhost_unpublish(host, operation, { dev: id, vq }) {
    const dev = devOf(host, id);
    for (const area of AREAS) unpublish(host, operation, dev, { vq, area });
  },

  vhost_retire(host, operation, { dev: id, vq, in_callback }) {
    const dev = devOf(host, id);
    if (!dev.retired.some((retired) => retired.by === operation.id && retired.vq === vq)) return;
    pushSteps(operation, [
      ...waitForReaders(host, operation, dev, vq, in_callback),
      { do: 'vhost_free', dev: id, vq, in_callback, cleanup: true },
    ]);
  },

  vhost_free(host, operation, { dev: id, vq, in_callback }) {
    const dev = devOf(host, id);
    const isMine = (retired: Retired): boolean => retired.by === operation.id && retired.vq === vq;
    const mine = dev.retired.filter(isMine);
    dev.retired = dev.retired.filter((retired) => !isMine(retired));
    for (const { area, map } of mine) freeMap(host, operation, dev, area, map, in_callback);
  },
};

function freeMap(
  host: Host,
  operation: ThreadOperation,
  dev: VhostDev,
  area: Area,
  map: VhostMap,
  inCallback: boolean,
): void {
  const { dirty_mark, teardown, map_struct } = dev.switches;
  const marks = inCallback ? dirty_mark === 'after_readers' && dev.variant !== 'rfc2' : teardown === 'dirty';
  if (area === 'used' && marks) dirtyMap(host, operation, dev, map);
  const lost = map.written.filter((i) => !host.mm.pages.isDirty(map.pfns[i] as number));
  for (const i of lost)
    report(
      host,
      operation,
      'LOST_DIRTY',
      `vhost device ${dev.id} has written ${hex(addressOf(map.page + i))} through a map that goes, and page ${map.pfns[i]} is not marked dirty`,
      [],
    );
  if (map_struct === 'freed') return;
  dev.leaked_maps++;
  reportOnce(host, operation, dev, 'LEAKED_MAP', `vhost device ${dev.id} frees the pages of a map, not its structure`);
}
