// What must hold of device-exclusive pages after every command and at every phase, recomputed (host-mm F.6).

import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import { pageLock } from '../lock.ts';
import { anyMm } from '../mm/mm.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import { type ExclusiveDevice, secondaryOf } from './device.ts';
import { holderOf } from './grant.ts';

type Say = (text: string) => void;

export function checkExclusivePages(host: Host): string[] {
  const found: string[] = [];
  const holders = new Set<string>();
  for (const device of host.consumers.exclusive.devices.values()) {
    const say: Say = (text) => void found.push(`exclusive device ${device.id}: ${text}`);
    if (!host.mm.mmu_notifiers.has(device.notifier)) say('has no notifier');
    checkGrants(host, device, say);
    checkMappings(host, device, say);
    for (const grant of device.grants.keys()) holders.add(holderOf(device.id, grant));
  }
  for (const { id, holders: held } of host.locks.values())
    for (const { by } of held)
      if (by.startsWith('grant:') && !holders.has(by)) found.push(`${id} is held by ${by}, which does not exist`);
  return found;
}

/** While a grant is held, its pages are locked by it and nobody maps them. */
function checkGrants(host: Host, { id, grants }: ExclusiveDevice, say: Say): void {
  for (const grant of grants.values())
    for (const { granted, pfn, page } of grant.slots) {
      if (!granted) continue;
      const mapcount = host.mm.pages.mapcount(pfn);
      if (mapcount !== 0) say(`page ${pfn} at ${hex(addressOf(page))} is granted and mapped ${mapcount} times`);
      const holders = host.locks.get(pageLock(pfn))?.holders ?? [];
      if (!grant.busy && !holders.some(({ by }) => by === holderOf(id, grant.id)))
        say(`page ${pfn} at ${hex(addressOf(page))} is granted and not locked by ${grant.id}`);
    }
}

/** The page table gives what each mapping gives, unless an invalidation goes on there, or the driver did not look. */
function checkMappings(host: Host, { mm: id, mappings }: ExclusiveDevice, say: Say): void {
  if (mappings.size === 0) return;
  const mm = anyMm(host, id);
  const active = mm.subscriptions?.active ?? [];
  for (const [page, mapping] of mappings) {
    if (!mapping.checked || active.some(({ start, end }) => page >= start && page < end)) continue;
    if (isStale(mm, page, secondaryOf(mapping)))
      say(`maps page ${mapping.pfn} for ${mapping.access} accesses, which ${hex(addressOf(page))} does not give`);
  }
}
