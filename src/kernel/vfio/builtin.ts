// Built-in vendor drivers: what a notifier's callback does when nobody outside is to be asked.

import type { Delivery } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../limits.ts';
import { containerOf } from './container.ts';
import { getDevice, groupOf } from './device.ts';
import type { Iommu } from './iommu.ts';
import { type LedgerRun, ledgerRuns } from './ledger.ts';
import { NOTIFY_DONE, NOTIFY_OK, NOTIFY_STOP } from './notifier.ts';
import { pinPages } from './pin.ts';
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

function unpinInCalls(host: Host, iommu: Iommu, device: string, entries: readonly number[]): void {
  for (let i = 0; i < entries.length; i += PIN_PAGES_MAX_ENTRIES) {
    const call = entries.slice(i, i + PIN_PAGES_MAX_ENTRIES);
    vfioIommuType1UnpinPages(host, iommu, device, call, call.length);
  }
}

/** Whether a pin of the device could sleep until a vaddr is valid again. */
function mayPinSleep(host: Host, device: string): boolean {
  const group = groupOf(host, getDevice(host, device));
  return (containerOf(host, group?.container ?? null)?.iommu?.vaddr_invalid_count ?? 0) > 0;
}

/**
 * Pins again what was unpinned; a refusal leaves the rest unpinned, as a driver that gives up would. It does not sleep in
 * its callback: while a vaddr is invalid it gives up too.
 */
function pinInCalls(host: Host, device: string, entries: readonly number[]): void {
  for (let i = 0; i < entries.length; i += PIN_PAGES_MAX_ENTRIES) {
    const user_pfn = entries.slice(i, i + PIN_PAGES_MAX_ENTRIES);
    try {
      if (mayPinSleep(host, device)) return;
      pinPages(host, { op: 'pin_pages', device, user_pfn, npage: user_pfn.length, prot: 0 });
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
      unpin((run) => run.references);
      pinInCalls(
        host,
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

/** The delay of a slow driver is over: it unpins all before it acknowledges. */
export function finishSlowBuiltin(host: Host, iommu: Iommu, device: string, range: Range): void {
  unpinInCalls(
    host,
    iommu,
    device,
    entriesOf(ledgerRuns(iommu, device, range.iova, range.npage), (run) => run.references),
  );
}
