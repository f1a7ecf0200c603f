// Built-in vendor drivers: what a notifier's callback does when nobody outside is to be asked.

import type { Delivery } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../limits.ts';
import { containerOf } from './container.ts';
import { getDevice, groupOf } from './device.ts';
import { vfioFindDmaOfPage } from './dma.ts';
import type { Iommu } from './iommu.ts';
import { type LedgerRun, ledgerRuns } from './ledger.ts';
import { NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP } from './notifier.ts';
import { lowerBound } from './pfn-list.ts';
import { type Entries, pinPages } from './pin.ts';
import { vfioIommuType1UnpinPages } from './unpin.ts';

type Builtin = Extract<Delivery, { kind: 'builtin' }>;
interface Range {
  iova: number;
  npage: number;
}

/** Every page of the runs, each `references(run)` times. */
function entriesOf(runs: readonly LedgerRun[], references: (run: LedgerRun) => number): number[] {
  const entries: number[] = [];
  for (const run of runs)
    for (let page = run.iova; page < run.iova + run.npage; page++)
      for (let n = references(run); n > 0; n--) entries.push(page);
  return entries;
}

/** The calls that name these pages: arrays of up to 512, or one page a call where a range is named. */
function* callsOf(host: Host, iommu: Iommu, pages: readonly number[]): Iterable<Entries> {
  const step = host.profile.pinForm === 'user_pfn' ? PIN_PAGES_MAX_ENTRIES : 1;
  for (let i = 0; i < pages.length; i += step) {
    const user_pfn = pages.slice(i, i + step);
    if (step > 1) yield { user_pfn, npage: user_pfn.length };
    else yield { user_pfn: [], npage: 1, contiguous: { iova: iovaOfRecord(host, iommu, pages[i] as number) } };
  }
}

/** The iova under which a page is recorded: a driver may have pinned it with an offset, and must unpin it with the same. */
function iovaOfRecord({ vfio: { dmas, pfns } }: Host, iommu: Iommu, page: number): bigint {
  const dma = vfioFindDmaOfPage(dmas, iommu.dma_list, page);
  const slot = dma === null ? 0 : lowerBound(pfns, dma.pfn_list, page);
  const offset = slot !== 0 && pfns.iova(slot) === page ? pfns.offset(slot) : 0;
  return addressOf(page) + BigInt(offset);
}

function unpinInCalls(host: Host, iommu: Iommu, device: string, pages: readonly number[]): void {
  for (const call of callsOf(host, iommu, pages)) vfioIommuType1UnpinPages(host, iommu, device, call);
}

/** Whether a pin of the device could sleep until a vaddr is valid again. */
function mayPinSleep(host: Host, device: string): boolean {
  if (host.profile.invalidVaddr !== 'waits') return false;
  const group = groupOf(host, getDevice(host, device));
  return (containerOf(host, group?.container ?? null)?.iommu?.vaddr_invalid_count ?? 0) > 0;
}

/**
 * Pins again what was unpinned; a refusal leaves the rest unpinned, as a driver that gives up would. It does not sleep in
 * its callback: while a vaddr is invalid it gives up too.
 */
function pinInCalls(host: Host, device: string, calls: readonly Entries[]): void {
  for (const call of calls) {
    try {
      if (mayPinSleep(host, device)) return;
      pinPages(host, { op: 'pin_pages', device, prot: 0, ...call });
    } catch (error) {
      if (error instanceof Errno) return;
      throw error;
    }
  }
}

/** Runs a built-in driver's callback for one vfio_dma and returns what it returns to the chain. */
export function runBuiltin(
  host: Host,
  iommu: Iommu,
  device: string,
  { behavior, n }: Builtin,
  range: Range,
  attempt: number,
): number {
  const runs = ledgerRuns(iommu, device, range.iova, range.npage);
  const unpin = (references: (run: LedgerRun) => number): void =>
    unpinInCalls(host, iommu, device, entriesOf(runs, references));
  switch (behavior) {
    case 'unpin_all':
    case 'slow':
      unpin((run) => run.references);
      return NOTIFY_OK;
    case 'unpin_one_reference':
      unpin(() => 1);
      return NOTIFY_OK;
    case 'unpin_on_nth':
      if (attempt >= n) unpin((run) => run.references);
      return NOTIFY_OK;
    case 'repin':
      repin(
        host,
        iommu,
        device,
        entriesOf(runs, (run) => run.references),
      );
      return NOTIFY_OK;
    case 'stop':
      return NOTIFY_STOP;
    case 'ignore':
      return NOTIFY_DONE;
  }
}

function repin(host: Host, iommu: Iommu, device: string, pages: readonly number[]): void {
  const calls = [...callsOf(host, iommu, pages)];
  for (const call of calls) vfioIommuType1UnpinPages(host, iommu, device, call);
  pinInCalls(host, device, calls);
}

/** The delay of a slow driver is over: it unpins all before it acknowledges. */
export function finishSlowBuiltin(host: Host, iommu: Iommu, device: string, range: Range): void {
  unpinInCalls(
    host,
    iommu,
    device,
    entriesOf(ledgerRuns(iommu, device, range.iova, range.npage), (run) => run.references),
  );
}
