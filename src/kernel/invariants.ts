// What must hold of a host after every command, recomputed from scratch: nothing here trusts a counter it can count itself.

import { checkConsumers, consumerPins } from './consumers.ts';
import type { Host } from './host.ts';
import { checkRbTree } from './lib/rbtree.ts';
import { printRange } from './lib/u64.ts';
import { checkMm } from './mm/check.ts';
import { FOLL_PIN } from './mm/gup-flags.ts';
import { isInvalidOrReserved } from './mm/page.ts';
import { containerUserOf } from './operation.ts';
import type { Container } from './vfio/container.ts';
import { mappingsOf, type VfioDma } from './vfio/dma.ts';
import { chargeOf } from './vfio/domain.ts';
import type { Iommu } from './vfio/iommu.ts';
import { checkPfnList, firstPfn, nextPfn } from './vfio/pfn-list.ts';

type Say = (text: string) => void;

/** Every violation, in words; empty when the host is sound. */
export function violations(host: Host): string[] {
  const found: string[] = [];
  const say = (text: string): void => void found.push(text);
  let mappings = 0;
  let records = 0;
  for (const container of host.vfio.containers.values()) {
    if (container.iommu === null) continue;
    const seen = checkIommu(host, container, container.iommu, say);
    mappings += seen.mappings;
    records += seen.records;
  }
  if (mappings !== host.vfio.dmas.links.liveCount)
    say(`${host.vfio.dmas.links.liveCount} vfio_dma exist, ${mappings} are in a container's dma_list`);
  if (records !== host.vfio.pfns.count) say(`${host.vfio.pfns.count} vfio_pfn exist, ${records} are in a pfn_list`);
  checkUsers(host, say);
  checkPins(host, say);
  checkCharges(host, say);
  checkOperations(host, say);
  return [...found, ...checkMm(host), ...checkConsumers(host)];
}

function checkIommu(
  host: Host,
  container: Container,
  iommu: Iommu,
  say: (text: string) => void,
): { mappings: number; records: number } {
  const { dmas, pfns } = host.vfio;
  const where = `container ${container.id}`;
  // Not strictly: a mapping that ends at 2^64 is not found by the overlap test, so the same range can be mapped twice.
  const isBefore = (a: number, b: number): boolean => dmas.at(a).iova <= dmas.at(b).iova;
  for (const text of checkRbTree(dmas.links, iommu.dma_list, iommu.dma_entry_limit - iommu.dma_avail, isBefore))
    say(`${where} dma_list: ${text}`);
  const hidden = hiddenIovas(host, iommu);
  let mappings = 0;
  let records = 0;
  let invalid = 0;
  let before: VfioDma | null = null;
  const references = new Map<number, number>();
  for (const dma of mappingsOf(dmas, iommu.dma_list)) {
    mappings++;
    if (dma.container !== container.id)
      say(`${where}: mapping ${printRange(dma.iova, dma.npage)} says container ${dma.container}`);
    // What no lookup finds overlaps others unseen.
    const isHidden = hidden.has(dma.iova);
    if (!isHidden && before !== null && before.iova + before.npage > dma.iova)
      say(`${where}: mappings overlap at ${printRange(dma.iova, dma.npage)}`);
    if (!isHidden) before = dma;
    if (dma.vaddr_invalid) invalid++;
    const at: Say = (text) => say(`${where} ${printRange(dma.iova, dma.npage)}: ${text}`);
    records += checkRecords(host, dma, references, at);
    checkMapped(host, iommu, dma, at);
    for (const text of checkPfnList(pfns, dma.pfn_list))
      say(`${where} ${printRange(dma.iova, dma.npage)} pfn_list: ${text}`);
  }
  checkLedger(iommu, references, (text) => say(`${where}: ${text}`));
  const unscoped = [...iommu.external_groups, ...(iommu.domain?.groups ?? [])].filter(
    (group) => !group.pinned_page_dirty_scope,
  );
  if (unscoped.length !== iommu.num_non_pinned_groups)
    say(`${where}: num_non_pinned_groups ${iommu.num_non_pinned_groups}, counted ${unscoped.length}`);
  if (iommu.dma_avail + mappings !== iommu.dma_entry_limit)
    say(
      `${where}: dma_avail ${iommu.dma_avail} + ${mappings} mappings is not dma_entry_limit ${iommu.dma_entry_limit}`,
    );
  if (invalid !== iommu.vaddr_invalid_count)
    say(`${where}: vaddr_invalid_count ${iommu.vaddr_invalid_count}, counted ${invalid}`);
  return { mappings, records };
}

/** Where mappings begin that end at 2^64 unfound: no lookup finds them, nor what hangs below them with the same iova. */
function hiddenIovas({ vfio: { dmas } }: Host, iommu: Iommu): Set<number> {
  const hidden = new Set<number>();
  for (const dma of mappingsOf(dmas, iommu.dma_list)) if (dmas.endOf(dma) === 0) hidden.add(dma.iova);
  return hidden;
}

/** The records of one mapping: inside it, referenced. A record with an offset in its page may begin a page too early. */
function checkRecords(host: Host, dma: VfioDma, references: Map<number, number>, say: Say): number {
  const { pfns } = host.vfio;
  let records = 0;
  for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot)) {
    records++;
    const iova = pfns.iova(slot);
    const ref_count = pfns.ref_count(slot);
    const first = pfns.offset(slot) === 0 ? dma.iova : dma.iova - 1;
    if (iova < first || iova >= dma.iova + dma.npage) say(`record of iova page ${iova} lies outside`);
    if (ref_count < 1) say(`record of iova page ${iova} has ref_count 0`);
    references.set(iova, (references.get(iova) ?? 0) + ref_count);
  }
  return records;
}

/** The ledger has as many references of each page as the records of all mappings have. */
function checkLedger(iommu: Iommu, references: Map<number, number>, say: (text: string) => void): void {
  const owned = new Map<number, number>();
  for (const { leaves } of iommu.ledger.values())
    for (const runs of leaves.values())
      for (const run of runs)
        for (let iova = run.iova; iova < run.iova + run.npage; iova++)
          owned.set(iova, (owned.get(iova) ?? 0) + run.references);
  for (const [iova, count] of references)
    if (owned.get(iova) !== count) say(`iova page ${iova} has ${count} references, the ledger ${owned.get(iova) ?? 0}`);
  for (const iova of owned.keys()) if (!references.has(iova)) say(`the ledger has iova page ${iova}, no record does`);
}

/** What an IOMMU maps: the whole mapping while there is a domain, in order, and nothing without one. */
function checkMapped(host: Host, iommu: Iommu, dma: VfioDma, say: (text: string) => void): void {
  if (iommu.domain === null && dma.mapped.length > 0) say('pages are mapped for an IOMMU that is not there');
  let end: number = dma.iova;
  for (const { iova, npage } of dma.mapped) {
    if (iova !== end || npage < 1) say(`chunk at iova page ${iova} does not follow ${end}`);
    end = iova + npage;
  }
  const isHidden = host.vfio.dmas.endOf(dma) === 0;
  if (iommu.domain !== null && dma.mapped.length === 0 && !isHidden) say('no page is mapped for the IOMMU');
  if (dma.mapped.length > 0 && end !== dma.iova + dma.npage)
    say(`only ${end - dma.iova} of ${dma.npage} pages are mapped`);
  if ((dma.bitmap !== null) !== iommu.dirty_page_tracking) say('a dirty bitmap without a dirty log, or none with one');
}

function checkUsers(host: Host, say: (text: string) => void): void {
  const { groups, containers, devices } = host.vfio;
  const waiting = new Map<string, number>();
  for (const operation of host.operations.values()) {
    const user = containerUserOf(operation);
    if (user !== null && operation.state !== 'done') waiting.set(user, (waiting.get(user) ?? 0) + 1);
  }
  for (const group of groups.values()) {
    const open = group.devices.reduce((sum, id) => sum + (devices.get(id)?.open_count ?? 0), 0);
    const users = open + (waiting.get(group.id) ?? 0) + (group.container !== null && group.fd_open ? 1 : 0);
    if (users !== group.container_users)
      say(`group ${group.id}: container_users ${group.container_users}, counted ${users}`);
    const bound = group.container !== null && containers.get(group.container)?.groups.includes(group.id);
    if (group.container !== null && !bound) say(`group ${group.id}: its container ${group.container} does not know it`);
  }
}

/**
 * Every page is pinned once for each record of it, each leaked one, and each iova that an IOMMU maps to it; pages that are never
 * released at least so often.
 */
function checkPins(host: Host, say: (text: string) => void): void {
  const { pfns, containers, dmas, leaked } = host.vfio;
  const expected = new Map<number, number>();
  const count = (pfn: number): void => void expected.set(pfn, (expected.get(pfn) ?? 0) + 1);
  for (const { iommu } of containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(dmas, iommu.dma_list)) {
      for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot)) count(pfns.pfn(slot));
      for (const { pfn, npage } of dma.mapped) for (let i = 0; i < npage; i++) count(pfn + i);
    }
  }
  for (const mapping of leaked) for (const pfn of mapping.pfns) count(pfn);
  for (const pfn of consumerPins(host)) count(pfn);
  for (const { pfns: held, flags } of host.mm.gups.values())
    if ((flags & FOLL_PIN) !== 0) for (const pfn of held) count(pfn);
  for (const [pfn, pins] of expected)
    if (!isInvalidOrReserved(host, pfn) && host.mm.pages.pinCount(pfn) !== pins)
      say(`page ${pfn}: pin_count ${host.mm.pages.pinCount(pfn)}, ${pins} records and mapped iovas`);
}

/**
 * The charge of every mapping: one page for each record of a normal page, or for each normal page that an IOMMU maps; and
 * locked_vm of every mm: what its mappings are charged, what leaked, and what others added.
 */
function checkCharges(host: Host, say: (text: string) => void): void {
  const { containers, dmas, leaked } = host.vfio;
  const charged = new Map<string, number>();
  const charge = (mm: string | null, npage: number): void => {
    if (mm !== null) charged.set(mm, (charged.get(mm) ?? 0) + npage);
  };
  for (const { iommu } of containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(dmas, iommu.dma_list)) {
      charge(dma.mm, dma.locked_vm);
      const expected = chargeOf(host, iommu, dma) + dma.drift;
      if (host.mm.mms.has(dma.mm) && dma.locked_vm !== expected)
        say(`mapping ${printRange(dma.iova, dma.npage)}: charged ${dma.locked_vm}, not ${expected}`);
    }
  }
  for (const { mm, charged: npage } of leaked) charge(mm, npage);
  for (const mm of host.mm.mms.values()) {
    const expected = (charged.get(mm.id) ?? 0) + mm.adjusted;
    if (mm.locked_vm !== expected) say(`mm ${mm.id}: locked_vm ${mm.locked_vm}, charged ${expected}`);
  }
}

function checkOperations(host: Host, say: (text: string) => void): void {
  for (const [id, { operation }] of host.vfio.notifications) {
    const waiting = host.operations.get(operation);
    if (waiting?.blocked_on !== `notification:${id}`) say(`notification ${id}: ${operation} does not wait for it`);
  }
  for (const operation of host.operations.values())
    if (operation.state === 'running') say(`operation ${operation.id} runs between commands`);
}
