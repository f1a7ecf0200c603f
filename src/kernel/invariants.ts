// What must hold of a host after every command, recomputed from scratch: nothing here trusts a counter it can count itself.

import type { Host } from './host.ts';
import { checkRbTree } from './lib/rbtree.ts';
import { printRange, wrappedEnd } from './lib/u64.ts';
import { checkMm } from './mm/check.ts';
import { isInvalidOrReserved } from './mm/page.ts';
import { mmOf } from './mm/task.ts';
import type { Container } from './vfio/container.ts';
import { mappingsOf, type VfioDma } from './vfio/dma.ts';
import type { Iommu } from './vfio/iommu.ts';
import { ledgerRuns } from './vfio/ledger.ts';
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
  return [...found, ...checkMm(host)];
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
    const sayOfRecords: Say = (text) => say(`${where} ${printRange(dma.iova, dma.npage)}: ${text}`);
    records += checkRecords(host, iommu, dma, isHidden ? () => undefined : sayOfRecords);
    for (const text of checkPfnList(pfns, dma.pfn_list))
      say(`${where} ${printRange(dma.iova, dma.npage)} pfn_list: ${text}`);
  }
  if (iommu.dma_avail + mappings !== iommu.dma_entry_limit)
    say(
      `${where}: dma_avail ${iommu.dma_avail} + ${mappings} mappings is not dma_entry_limit ${iommu.dma_entry_limit}`,
    );
  if (invalid !== iommu.vaddr_invalid_count)
    say(`${where}: vaddr_invalid_count ${iommu.vaddr_invalid_count}, counted ${invalid}`);
  return { mappings, records };
}

/** Where mappings begin that end at 2^64: no lookup finds them, nor what hangs below them with the same iova. */
function hiddenIovas({ vfio }: Host, iommu: Iommu): Set<number> {
  const hidden = new Set<number>();
  for (const { iova, npage } of mappingsOf(vfio.dmas, iommu.dma_list))
    if (wrappedEnd(iova, npage) === 0) hidden.add(iova);
  return hidden;
}

/** The records of one mapping: inside it, referenced, and owned in the ledger as often as they are referenced. */
function checkRecords(host: Host, iommu: Iommu, dma: VfioDma, say: (text: string) => void): number {
  const { pfns } = host.vfio;
  const owned = new Map<number, number>();
  for (const device of iommu.ledger.keys())
    for (const run of ledgerRuns(iommu, device, dma.iova, dma.npage))
      for (let iova = run.iova; iova < run.iova + run.npage; iova++)
        owned.set(iova, (owned.get(iova) ?? 0) + run.references);
  let records = 0;
  for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot)) {
    records++;
    const iova = pfns.iova(slot);
    const ref_count = pfns.ref_count(slot);
    if (iova < dma.iova || iova >= dma.iova + dma.npage) say(`record of iova page ${iova} lies outside`);
    if (ref_count < 1) say(`record of iova page ${iova} has ref_count 0`);
    if (owned.get(iova) !== ref_count)
      say(`record of iova page ${iova} has ref_count ${ref_count}, the ledger ${owned.get(iova) ?? 0}`);
    owned.delete(iova);
  }
  for (const iova of owned.keys()) say(`the ledger has iova page ${iova}, no record does`);
  return records;
}

function checkUsers(host: Host, say: (text: string) => void): void {
  const { groups, containers, devices } = host.vfio;
  const waiting = new Map<string, number>();
  for (const { kind, state, locals } of host.operations.values())
    if (kind !== 'unmap_dma' && state !== 'done') waiting.set(locals.group, (waiting.get(locals.group) ?? 0) + 1);
  for (const group of groups.values()) {
    const open = group.devices.reduce((sum, id) => sum + (devices.get(id)?.open_count ?? 0), 0);
    const users = open + (waiting.get(group.id) ?? 0) + (group.container !== null && group.fd_open ? 1 : 0);
    if (users !== group.container_users)
      say(`group ${group.id}: container_users ${group.container_users}, counted ${users}`);
    const bound = group.container !== null && containers.get(group.container)?.groups.includes(group.id);
    if (group.container !== null && !bound) say(`group ${group.id}: its container ${group.container} does not know it`);
  }
}

/** Every page is pinned once for each record and each leaked record of it; pages that are never released at least so often. */
function checkPins(host: Host, say: (text: string) => void): void {
  const { pfns, containers, dmas, leaked } = host.vfio;
  const expected = new Map<number, number>();
  const count = (pfn: number): void => void expected.set(pfn, (expected.get(pfn) ?? 0) + 1);
  for (const { iommu } of containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(dmas, iommu.dma_list))
      for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot)) count(pfns.pfn(slot));
  }
  for (const mapping of leaked) for (const pfn of mapping.pfns) count(pfn);
  for (const [pfn, pins] of expected)
    if (!isInvalidOrReserved(host, pfn) && host.mm.pages.pinCount(pfn) !== pins)
      say(`page ${pfn}: pin_count ${host.mm.pages.pinCount(pfn)}, ${pins} records`);
}

/** locked_vm of every mm: one page for each record of a normal page, what leaked, and what others added. */
function checkCharges(host: Host, say: (text: string) => void): void {
  const { pfns, containers, dmas, leaked } = host.vfio;
  const charged = new Map<string, number>();
  const charge = (mm: string | null, npage: number): void => {
    if (mm !== null) charged.set(mm, (charged.get(mm) ?? 0) + npage);
  };
  for (const { iommu } of containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(dmas, iommu.dma_list)) {
      const mm = mmOf(host, dma.task)?.id ?? null;
      for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot))
        if (!isInvalidOrReserved(host, pfns.pfn(slot))) charge(mm, 1);
    }
  }
  for (const { mm, charged: npage } of leaked) charge(mm, npage);
  // Uncharging finds no mm through a leader that has exited while its other threads live: the charge stays.
  const orphaned = new Set<string>();
  for (const { mm, leader } of host.mm.tasks.values()) if (mm !== null && mmOf(host, leader) === null) orphaned.add(mm);
  for (const mm of host.mm.mms.values()) {
    if (orphaned.has(mm.id)) continue;
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
