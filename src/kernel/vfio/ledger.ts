// A ledger beside the kernel's records: which device pinned which iova, when, and whether its notifier has run since.
// The kernel's pins have no owner. This serves the leak report and the built-in drivers; it never decides an errno.

import type { Host } from '../host.ts';
import type { PageNumber } from '../lib/u64.ts';
import type { Container } from './container.ts';
import type { VfioDma } from './dma.ts';
import type { Iommu } from './iommu.ts';
import { firstPfn, nextPfn } from './pfn-list.ts';

/** The command that pinned. */
export interface PinSource {
  seq: number;
  request_id: string;
}

/** Consecutive pages of one device with the same number of references. */
export interface LedgerRun {
  iova: number;
  npage: number;
  references: number;
  first: PinSource;
  last: PinSource;
  /** A notifier of the device was called for these pages after they were pinned. */
  notified: boolean;
}

/** Runs of one device, sorted by iova, in leaves of 512 pages so that a change moves few of them. */
export interface DeviceLedger {
  leaves: Map<number, LedgerRun[]>;
}

/** What a vfio_dma that was removed with records in it leaves behind for ever. */
export interface LeakedMapping {
  container: string;
  iova: PageNumber;
  npage: number;
  task: string;
  /** mm that stays charged, and for how many pages; null when it was gone already. */
  mm: string | null;
  charged: number;
  seq: number;
  /** Host pages that stay pinned, one entry a record. */
  pfns: number[];
  runs: (LedgerRun & { device: string })[];
}

const LEAF_PAGES = 512;
const leafOf = (iova: number): number => Math.floor(iova / LEAF_PAGES);

const contains = (run: LedgerRun, iova: number): boolean => iova >= run.iova && iova < run.iova + run.npage;

/** Index of the first run that ends after iova. */
function indexOf(runs: readonly LedgerRun[], iova: number): number {
  const last = runs.at(-1);
  if (last === undefined || iova >= last.iova + last.npage) return runs.length;
  let low = 0;
  let high = runs.length - 1;
  while (low < high) {
    const middle = (low + high) >>> 1;
    const run = runs[middle] as LedgerRun;
    if (run.iova + run.npage <= iova) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Joins the run at `index` to its left neighbour when they touch and are alike. */
function joinLeft(runs: LedgerRun[], index: number): void {
  const left = runs[index - 1];
  const run = runs[index];
  if (left === undefined || run === undefined || left.iova + left.npage !== run.iova) return;
  if (left.references !== run.references || left.notified !== run.notified) return;
  left.npage += run.npage;
  if (run.first.seq < left.first.seq) left.first = run.first;
  if (run.last.seq > left.last.seq) left.last = run.last;
  runs.splice(index, 1);
}

/** Cuts out one page of the run at `index` as a run of its own; returns its index. */
function isolate(runs: LedgerRun[], index: number, iova: number): number {
  const run = runs[index] as LedgerRun;
  const before = iova - run.iova;
  const after = run.npage - before - 1;
  const pieces: LedgerRun[] = [];
  if (before > 0) pieces.push({ ...run, npage: before });
  pieces.push({ ...run, iova, npage: 1 });
  if (after > 0) pieces.push({ ...run, iova: iova + 1, npage: after });
  if (pieces.length > 1) runs.splice(index, 1, ...pieces);
  return index + (before > 0 ? 1 : 0);
}

/** The runs of a leaf, made where there are none yet. */
function runsFor(iommu: Iommu, device: string, leaf: number): LedgerRun[] {
  let ledger = iommu.ledger.get(device);
  if (ledger === undefined) {
    ledger = { leaves: new Map() };
    iommu.ledger.set(device, ledger);
  }
  let runs = ledger.leaves.get(leaf);
  if (runs === undefined) {
    runs = [];
    ledger.leaves.set(leaf, runs);
  }
  return runs;
}

/** One reference more of a device on a page. */
export function ledgerPin(iommu: Iommu, device: string, iova: number, source: PinSource): void {
  const runs = runsFor(iommu, device, leafOf(iova));
  const index = indexOf(runs, iova);
  const run = runs[index];
  if (run === undefined || !contains(run, iova)) {
    const left = runs[index - 1];
    if (left !== undefined && left.iova + left.npage === iova && left.references === 1 && !left.notified) {
      left.npage++;
      left.last = source;
    } else {
      runs.splice(index, 0, { iova, npage: 1, references: 1, first: source, last: source, notified: false });
    }
    return;
  }
  const at = isolate(runs, index, iova);
  const page = runs[at] as LedgerRun;
  page.references++;
  page.last = source;
  page.notified = false;
  joinLeft(runs, at);
}

/** Takes one reference off a page of the run at `index`. Pages that leave at an end of their run cut nothing. */
function dropReference(runs: LedgerRun[], index: number, iova: number): void {
  const run = runs[index] as LedgerRun;
  const isFirst = iova === run.iova;
  if (run.references > 1) {
    const at = isolate(runs, index, iova);
    (runs[at] as LedgerRun).references--;
    joinLeft(runs, at);
  } else if (run.npage === 1) {
    runs.splice(index, 1);
  } else if (isFirst || iova === run.iova + run.npage - 1) {
    run.npage--;
    if (isFirst) run.iova++;
  } else {
    runs.splice(isolate(runs, index, iova), 1);
  }
}

/** The runs of the leaf of a page, if the device holds a reference on it. */
function runsHolding(iommu: Iommu, device: string, iova: number): LedgerRun[] | null {
  const runs = iommu.ledger.get(device)?.leaves.get(leafOf(iova));
  if (runs === undefined) return null;
  const run = runs[indexOf(runs, iova)];
  return run !== undefined && contains(run, iova) ? runs : null;
}

/** One reference less on a page: of the device itself if it holds one, else of any other that does. */
export function ledgerUnpin(iommu: Iommu, device: string, iova: number): void {
  let owner = device;
  let runs = runsHolding(iommu, device, iova);
  if (runs === null)
    for (owner of iommu.ledger.keys()) {
      runs = runsHolding(iommu, owner, iova);
      if (runs !== null) break;
    }
  if (runs === null) throw new Error(`ledger: nobody holds iova page ${iova}`);
  dropReference(runs, indexOf(runs, iova), iova);
  if (runs.length > 0) return;
  const leaves = iommu.ledger.get(owner)?.leaves;
  leaves?.delete(leafOf(iova));
  if (leaves?.size === 0) iommu.ledger.delete(owner);
}

/** The leaves that hold pages of [start, start + npage): looked up one by one, or among all where those are fewer. */
function* leavesIn({ leaves }: DeviceLedger, start: number, npage: number): Iterable<LedgerRun[]> {
  const first = leafOf(start);
  const last = leafOf(start + npage - 1);
  if (last - first < leaves.size) {
    for (let leaf = first; leaf <= last; leaf++) {
      const runs = leaves.get(leaf);
      if (runs !== undefined) yield runs;
    }
    return;
  }
  for (const [leaf, runs] of leaves) if (leaf >= first && leaf <= last) yield runs;
}

/** The runs of a device that overlap [start, start + npage), cut to it, ascending. */
export function ledgerRuns(iommu: Iommu, device: string, start: number, npage: number): LedgerRun[] {
  const ledger = iommu.ledger.get(device);
  if (ledger === undefined) return [];
  const end = start + npage;
  const found: LedgerRun[] = [];
  for (const runs of leavesIn(ledger, start, npage)) {
    for (const run of runs) {
      const first = Math.max(run.iova, start);
      const last = Math.min(run.iova + run.npage, end);
      if (first < last) found.push({ ...run, iova: first, npage: last - first });
    }
  }
  return found.sort((a, b) => a.iova - b.iova);
}

/** Cuts the run that reaches across a page in two, so that one run begins there. */
function cutAt(runs: LedgerRun[], iova: number): void {
  const index = indexOf(runs, iova);
  const run = runs[index];
  if (run === undefined || run.iova >= iova) return;
  const before = iova - run.iova;
  runs.splice(index, 1, { ...run, npage: before }, { ...run, iova, npage: run.npage - before });
}

/** A notifier of the device is called for [start, start + npage): a run may reach beyond it, into the next mapping. */
export function ledgerNotified(iommu: Iommu, device: string, start: number, npage: number): void {
  const ledger = iommu.ledger.get(device);
  if (ledger === undefined) return;
  for (const runs of leavesIn(ledger, start, npage)) {
    cutAt(runs, start);
    cutAt(runs, start + npage);
    for (const run of runs) if (run.iova >= start && run.iova < start + npage) run.notified = true;
  }
}

/** A device that holds a reference on a page. */
function ownerOf(iommu: Iommu, iova: number): string {
  for (const device of iommu.ledger.keys()) if (runsHolding(iommu, device, iova) !== null) return device;
  throw new Error(`ledger: nobody holds iova page ${iova}`);
}

/** The runs of a mapping's records, taken off the ledger. Records with an offset in their page may lie outside the mapping. */
function takeRuns(host: Host, iommu: Iommu, dma: VfioDma): LeakedMapping['runs'] {
  const { pfns } = host.vfio;
  const runs: LeakedMapping['runs'] = [];
  const left = new Map<number, number>();
  let isAligned = true;
  for (let slot = firstPfn(pfns, dma.pfn_list); slot !== 0; slot = nextPfn(pfns, slot)) {
    if (pfns.offset(slot) !== 0) isAligned = false;
    left.set(pfns.iova(slot), (left.get(pfns.iova(slot)) ?? 0) + pfns.ref_count(slot));
  }
  if (isAligned)
    for (const device of iommu.ledger.keys())
      for (const run of ledgerRuns(iommu, device, dma.iova, dma.npage)) runs.push({ ...run, device });
  for (const [iova, references] of left)
    for (let n = references; n > 0; n--) {
      const device = ownerOf(iommu, iova);
      const [run] = ledgerRuns(iommu, device, iova, 1) as [LedgerRun];
      if (!isAligned) runs.push({ ...run, device, references: 1 });
      ledgerUnpin(iommu, device, iova);
    }
  return runs;
}

/** What a mapping that goes away leaves behind: records, and charges that nobody will return. Before the records are dropped. */
export function leakMapping(host: Host, container: Container, dma: VfioDma, iommu: Iommu): void {
  const { vfio } = host;
  if (dma.pfn_list.root === 0 && dma.locked_vm === 0) return;
  const pfns: number[] = [];
  for (let slot = firstPfn(vfio.pfns, dma.pfn_list); slot !== 0; slot = nextPfn(vfio.pfns, slot))
    pfns.push(vfio.pfns.pfn(slot));
  const { iova, npage, task, mm, locked_vm: charged } = dma;
  const runs = takeRuns(host, iommu, dma);
  vfio.leaked.push({
    container: container.id,
    iova,
    npage,
    task,
    mm: host.mm.mms.has(mm) ? mm : null,
    charged,
    seq: host.seq,
    pfns,
    runs,
  });
}

/** Pages of a mapping that stay pinned, and `charged` for how many, although nothing knows of them any more. */
export function leakPages(host: Host, container: Container, dma: VfioDma, pfns: number[], charged: number): void {
  const { iova, npage, task, mm } = dma;
  dma.locked_vm -= charged;
  host.vfio.leaked.push({
    container: container.id,
    iova,
    npage,
    task,
    mm: host.mm.mms.has(mm) ? mm : null,
    charged,
    seq: host.seq,
    pfns,
    runs: [],
  });
}
