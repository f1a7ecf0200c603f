// What two hosts hold, compared: counters after every command, every record and page once at the end.

import type { Host } from '../../kernel/host.ts';
import { addressOf, hex, sizeOf } from '../../kernel/lib/u64.ts';
import type { Value } from '../../kernel/outcome.ts';
import { type Container, isGone } from '../../kernel/vfio/container.ts';
import { mappingsOf, type VfioDma } from '../../kernel/vfio/dma.ts';
import { blocksOf } from '../../kernel/vfio/notifier-chain.ts';
import { firstPfn, nextPfn, type PfnSlab } from '../../kernel/vfio/pfn-list.ts';
import { listFrames } from '../../kernel/view/tasks.ts';
import { MAX_COMPARED_RECORDS } from '../limits.ts';

export interface StateDifference {
  /** What differs: `locked_vm`, `dma_avail`, ... */
  what: string;
  /** Of which object; '' for the host. */
  subject: string;
  values: [Value, Value];
}

const PAGES_AT_A_TIME = 1000;
/** Records, or mappings, between two places to rest. */
const RECORDS_AT_A_TIME = 1000;

function* unequal(what: string, subject: string, a: Value, b: Value): Generator<StateDifference> {
  if (a !== b) yield { what, subject, values: [a, b] };
}

/** The counters that differ now. */
export function* differingCounters(a: Host, b: Host): Generator<StateDifference> {
  yield* unequal('pinned_records', '', a.vfio.pfns.count, b.vfio.pfns.count);
  yield* unequal('pinned_pages', '', a.mm.pages.pinned, b.mm.pages.pinned);
  yield* unequal('leaked_mappings', '', a.vfio.leaked.length, b.vfio.leaked.length);
  yield* unequal('dead', '', a.dead !== null, b.dead !== null);
  for (const id of union(a.mm.tasks, b.mm.tasks))
    yield* unequal('locked_vm', `task ${id}`, lockedVm(a, id), lockedVm(b, id));
  for (const id of union(a.vfio.containers, b.vfio.containers)) {
    const [first, second] = [countersOf(a, id), countersOf(b, id)];
    for (const what of Object.keys(first))
      yield* unequal(what, `container ${id}`, first[what] as Value, second[what] as Value);
  }
}

function* union(a: ReadonlyMap<string, unknown>, b: ReadonlyMap<string, unknown>): Iterable<string> {
  yield* a.keys();
  for (const id of b.keys()) if (!a.has(id)) yield id;
}

/** Of a process; a thread has that of its leader. */
function lockedVm({ mm }: Host, id: string): number | null {
  const task = mm.tasks.get(id);
  if (task === undefined || task.leader !== id || task.mm === null) return null;
  return mm.mms.get(task.mm)?.locked_vm ?? null;
}

function countersOf(host: Host, id: string): Record<string, Value> {
  const container = host.vfio.containers.get(id);
  const iommu = container?.iommu ?? null;
  const hasLimit = host.profile.dmaEntryLimit;
  return {
    iommu: iommu !== null,
    dma_avail: iommu === null || !hasLimit ? null : iommu.dma_avail,
    mappings: iommu === null ? 0 : iommu.dma_entry_limit - iommu.dma_avail,
    listeners: iommu === null ? '' : blocksOf(iommu.notifier).join(', '),
    dirty_page_tracking: iommu?.dirty_page_tracking ?? false,
    dead_container: (container ?? null) !== null && container?.dead !== null,
  };
}

/** Counters of the pages that a pin returned: what pins it leaves on them. */
export function* differingPages(a: Host, b: Host, pfns: Iterable<number>): Generator<StateDifference> {
  for (const pfn of pfns) {
    const [first, second] = [pageOf(a, pfn), pageOf(b, pfn)];
    for (const what of Object.keys(first))
      yield* unequal(what, `page ${pfn}`, first[what] as Value, second[what] as Value);
  }
}

/** A pin counts 1 or 1024 in the raw counter, so what is compared is the number of pins and the references beyond them. */
function pageOf(host: Host, pfn: number): Record<string, Value> {
  const { pages } = host.mm;
  const pins = pages.pinCount(pfn);
  return {
    page_pins: pins,
    page_references: pages.refcount(pfn) - pins * host.profile.pinBias,
    page_dirty: pages.isDirty(pfn),
  };
}

/** All that differs when no command follows, as far as MAX_COMPARED_RECORDS go. Yields null now and then: a place to rest. */
export function* differingAtEnd(a: Host, b: Host): Generator<StateDifference | null> {
  yield* differingCounters(a, b);
  for (const id of union(a.vfio.containers, b.vfio.containers)) yield* differingMappings(a, b, id);
  let after: number | null = null;
  for (let seen = 0; seen < MAX_COMPARED_RECORDS; seen += PAGES_AT_A_TIME) {
    const known: { items: { pfn?: Value }[]; next: number | null }[] = [a, b].map((host) =>
      listFrames(host, after, PAGES_AT_A_TIME),
    );
    const last = Math.min(...known.map(({ next }) => next ?? Number.POSITIVE_INFINITY));
    const pfns = known.flatMap(({ items }) => items.map(({ pfn }) => pfn as number)).filter((pfn) => pfn <= last);
    yield* differingPages(
      a,
      b,
      [...new Set(pfns)].sort((x, y) => x - y),
    );
    yield null;
    if (last === Number.POSITIVE_INFINITY) return;
    after = last;
  }
}

function* differingMappings(a: Host, b: Host, id: string): Generator<StateDifference | null> {
  const [first, second] = [yield* mappingsIn(a, id), yield* mappingsIn(b, id)];
  let records = 0;
  for (const key of new Set([...first.keys(), ...second.keys()])) {
    const subject = `container ${id} mapping ${key}`;
    const [one, other] = [first.get(key), second.get(key)];
    yield* unequal('mapping', subject, one !== undefined, other !== undefined);
    if (one === undefined || other === undefined) continue;
    yield* unequal('vaddr_invalid', subject, one.vaddr_invalid, other.vaddr_invalid);
    yield* unequal('npinned', subject, one.pfn_list.count, other.pfn_list.count);
    records += one.pfn_list.count + 1;
    if (records > MAX_COMPARED_RECORDS) return;
    yield* differingRecords(a, b, one, other, `container ${id}`);
    yield null;
  }
}

function* mappingsIn(host: Host, id: string): Generator<null, Map<string, VfioDma>> {
  const container: Container | undefined = host.vfio.containers.get(id);
  const iommu = container === undefined || isGone(container) ? null : container.iommu;
  const found = new Map<string, VfioDma>();
  if (iommu !== null)
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
      found.set(`${hex(addressOf(dma.iova))} size ${hex(sizeOf(dma.npage))}`, dma);
      if (found.size % RECORDS_AT_A_TIME === 0) yield null;
    }
  return found;
}

/** Both lists are in the order of their iovas: the lower one of two that differ is in its list alone. */
function* differingRecords(
  a: Host,
  b: Host,
  one: VfioDma,
  other: VfioDma,
  where: string,
): Generator<StateDifference | null> {
  const [first, second] = [a.vfio.pfns, b.vfio.pfns];
  let slot = firstPfn(first, one.pfn_list);
  let beside = firstPfn(second, other.pfn_list);
  for (let seen = 1; slot !== 0 || beside !== 0; seen++) {
    const order = orderOf(first, slot, second, beside);
    const [mine, theirs] = [order <= 0 ? slot : 0, order >= 0 ? beside : 0];
    if (mine === 0 || theirs === 0 || !isSameRecord(first, mine, second, theirs)) {
      const iova = mine === 0 ? iovaOf(second, theirs) : iovaOf(first, mine);
      yield* unequal('record', `${where} iova ${iova}`, recordOf(first, mine), recordOf(second, theirs));
    }
    if (mine !== 0) slot = nextPfn(first, slot);
    if (theirs !== 0) beside = nextPfn(second, beside);
    if (seen % RECORDS_AT_A_TIME === 0) yield null;
  }
}

/** Of two records by iova; where a list is at its end, the other one's comes first. */
function orderOf(first: PfnSlab, slot: number, second: PfnSlab, beside: number): number {
  if (slot === 0) return 1;
  if (beside === 0) return -1;
  return first.iova(slot) - second.iova(beside) || first.offset(slot) - second.offset(beside);
}

const isSameRecord = (first: PfnSlab, slot: number, second: PfnSlab, beside: number): boolean =>
  first.pfn(slot) === second.pfn(beside) && first.ref_count(slot) === second.ref_count(beside);

const iovaOf = (pfns: PfnSlab, slot: number): string => hex(addressOf(pfns.iova(slot)) + BigInt(pfns.offset(slot)));

const recordOf = (pfns: PfnSlab, slot: number): string | null =>
  slot === 0 ? null : `pfn ${pfns.pfn(slot)}, ref_count ${pfns.ref_count(slot)}`;
