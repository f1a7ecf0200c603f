// What GETs show of vhost devices, their virtqueues and maps. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import type { Fields } from '../outcome.ts';
import { AREAS, type Area, getDev, getVq, ownerMm, type VhostDev, type VhostMap, type Vq } from '../vhost/device.ts';
import { byId, type Listed, listed } from './page.ts';

const showDev = (dev: VhostDev): Fields => ({
  id: dev.id,
  variant: dev.variant,
  switches: { ...dev.switches },
  features: dev.features,
  mm: dev.mm,
  notifier: dev.notifier,
  nvqs: dev.vqs.length,
  calls: dev.calls,
  leaked_maps: dev.leaked_maps,
  accessors: dev.accessors.map(({ operation, vq, area, revoked, dirtied }) => ({
    operation,
    vq,
    area,
    revoked,
    dirtied,
  })),
});

/** ENODEV: the profile has none. NOT_FOUND. */
export const viewVhostDev = (host: Host, id: string): Fields => showDev(getDev(host, id));

/** None where the profile has none. */
export const listVhostDevs = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.consumers.vhost.devs, after), limit, ({ id }) => id, showDev);

const showVq = (vq: Vq, n: number): Fields => ({
  vq: n,
  num: vq.num,
  desc: vq.desc,
  avail: vq.avail,
  used: vq.used,
  log: vq.log,
  backend: vq.backend,
  last_avail_idx: vq.last_avail_idx,
  last_used_idx: vq.last_used_idx,
  invalidate_count: vq.invalidate_count,
  areas: AREAS.map((area) => ({
    area,
    addr: vq.uaddrs[area].addr,
    size: BigInt(vq.uaddrs[area].size),
    write: vq.uaddrs[area].write,
    mapped: vq.maps[area] !== null,
    prefetched: vq.prefetched[area],
  })),
});

export const viewVq = (host: Host, id: string, n: number): Fields => showVq(getVq(getDev(host, id), n), n);

export const listVqs = (host: Host, id: string, after: number | null, limit: number): Listed<number> =>
  listed(
    [...getDev(host, id).vqs.entries()].filter(([n]) => after === null || n > after),
    limit,
    ([n]) => n,
    ([n, vq]) => showVq(vq, n),
  );

function showMap(host: Host, dev: VhostDev, area: Area, { kva, page, offset, pfns, written }: VhostMap): Fields {
  const mm = ownerMm(host, dev);
  return {
    area,
    kva,
    addr: addressOf(page) + BigInt(offset),
    pfns: [...pfns],
    written: written.map((i) => pfns[i] as number),
    stale: pfns.some((pfn, i) => mm === null || isStale(mm, page + i, { pfn, writable: area === 'used' })),
  };
}

/** The maps of a vq that are published. */
export function viewVhostMaps(host: Host, id: string, n: number): Fields {
  const dev = getDev(host, id);
  const { maps } = getVq(dev, n);
  const items = AREAS.flatMap((area) => {
    const map = maps[area];
    return map === null ? [] : [showMap(host, dev, area, map)];
  });
  return { items };
}
