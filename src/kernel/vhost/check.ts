// What must hold of vhost's maps after every command, and what must hold once no page of an owner is being invalidated.

import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import type { ThreadOperation } from '../thread.ts';
import { reportDrift } from './callbacks.ts';
import { AREAS, type VhostDev } from './device.ts';

type Say = (text: string) => void;

/** Nobody invalidates anything of an mm: no vq may count an invalidation. */
export function checkCounts(host: Host, operation: ThreadOperation, mm: string): void {
  for (const dev of host.consumers.vhost.devs.values()) {
    if (dev.mm !== mm) continue;
    for (const [n, vq] of dev.vqs.entries()) {
      if (vq.invalidate_count === 0) vq.drifted = false;
      else reportDrift(host, operation, dev, n, 'nothing is being invalidated');
    }
  }
}

/** A map whose notifier is registered shows what the page table maps, except where that is being changed right now. */
function checkMaps(host: Host, dev: VhostDev, say: Say): void {
  const mm = dev.mm === null ? undefined : host.mm.mms.get(dev.mm);
  const notifier = dev.notifier === null ? undefined : host.mm.mmu_notifiers.get(dev.notifier);
  if (dev.notifier !== null && notifier === undefined) say(`its notifier ${dev.notifier} is missing`);
  if (notifier === undefined || mm === undefined || dev.switches.registration !== 'once') return;
  const sound = dev.switches.count === 'recorded' && dev.variant !== 'rfc2';
  for (const [n, { maps }] of dev.vqs.entries())
    for (const area of AREAS)
      for (const [i, pfn] of (maps[area]?.pfns ?? []).entries()) {
        const page = (maps[area]?.page ?? 0) + i;
        if (sound && isStale(mm, page, { pfn, writable: area === 'used' }))
          say(`vq ${n} ${area}: page ${pfn} is not what the page table maps at ${hex(addressOf(page))}`);
      }
}

export function checkVhost(host: Host): string[] {
  const found: string[] = [];
  for (const dev of host.consumers.vhost.devs.values()) {
    const say: Say = (text) => void found.push(`vhost device ${dev.id}: ${text}`);
    for (const { operation, vq, area } of dev.accessors)
      if ((host.operations.get(operation)?.state ?? 'done') === 'done') say(`${operation} has left vq ${vq} ${area}`);
    for (const { by, vq, area } of dev.retired)
      if ((host.operations.get(by)?.state ?? 'done') === 'done') say(`vq ${vq} ${area}: ${by} has not freed its map`);
    if (dev.switches.count === 'recorded')
      for (const [n, { invalidate_count }] of dev.vqs.entries()) {
        const counted = dev.open.flatMap(({ hits }) => hits).filter(({ vq }) => vq === n).length;
        if (counted !== invalidate_count) say(`vq ${n}: invalidate_count ${invalidate_count}, counted ${counted}`);
      }
    checkMaps(host, dev, say);
  }
  return found;
}
