// What GETs show of a host as a whole: its counters, its operations and its leaks. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { violations } from '../invariants.ts';
import { addressOf, sizeOf } from '../lib/u64.ts';
import { MAX_SHOWN_LEAKS } from '../limits.ts';
import { containerOf, getOperation, type MemoryLocals, type Operation } from '../operation.ts';
import type { Fields, Outcome, Value } from '../outcome.ts';
import { isGone } from '../vfio/container.ts';
import { mappingsOf } from '../vfio/dma.ts';
import { leftoverWarning } from '../vfio/iommu.ts';
import { type LedgerRun, ledgerRuns } from '../vfio/ledger.ts';
import { type Listed, listed } from './page.ts';

export function viewHost(host: Host): Fields {
  const { options, mm, vfio, dead } = host;
  return {
    id: host.id,
    ...options,
    fixes: [...options.fixes],
    release: host.profile.release,
    created_at: host.created_at,
    seq: host.seq,
    state: dead === null ? 'alive' : 'dead',
    dead: dead === null ? null : { ...dead },
    counters: {
      tasks: mm.tasks.size,
      containers: [...vfio.containers.values()].filter((container) => !isGone(container)).length,
      groups: vfio.groups.size,
      devices: vfio.devices.size,
      notifiers: vfio.notifiers.size,
      mappings: vfio.dmas.links.liveCount,
      pinned_records: vfio.pfns.count,
      pinned_pages: mm.pages.pinned,
      operations_waiting: [...host.operations.values()].filter(({ state }) => state !== 'done').length,
    },
  };
}

/** The part of an outcome that a finished operation shows: its result, or the problem it ended with. */
function showOutcome(outcome: Outcome): Fields {
  if (outcome.refusal === undefined) return { result: { ret: outcome.ret, ...outcome.fields } };
  const { left, ...refusal } = outcome.refusal;
  return { problem: { ret: outcome.ret, ...refusal, ...left } as Fields };
}

export function showOperation(operation: Operation): Fields {
  const { id, kind, state, phase, blocked_on, seq, at, request_id, outcome, finished_seq } = operation;
  const container: Value = containerOf(operation);
  const { task = null, mm = null } = operation.locals as Partial<MemoryLocals>;
  const locks_held = (operation.thread?.held ?? []).map(({ lock, mode }) => ({ lock, mode }));
  const shown = outcome === null ? { result: null } : showOutcome(outcome);
  const where = { container, task, mm, locks_held };
  return { id, kind, state, phase, blocked_on, ...where, seq, at, request_id, finished_seq, ...shown };
}

export const viewOperation = (host: Host, id: string): Fields => showOperation(getOperation(host, id));

/** Operations in the order in which they started. */
export function listOperations(host: Host, after: number | null, limit: number): Listed<number> {
  const started = [...host.operations.values()].filter(({ seq }) => after === null || seq > after);
  return listed(started, limit, ({ seq }) => seq, showOperation);
}

const showRun = (run: LedgerRun, device: string, container: string): Fields => ({
  device,
  container,
  iova: addressOf(run.iova),
  size: sizeOf(run.npage),
  npage: run.npage,
  references: run.references,
  first_pin: { ...run.first },
  last_pin: { ...run.last },
  notified: run.notified,
});

interface Leak {
  run: LedgerRun;
  device: string;
  container: string;
  state: 'pinned' | 'leaked';
  leaked_seq: number | null;
  warn: string;
}

function warnOf(host: Host, container: string, mapping: Parameters<typeof leftoverWarning>[2], count: number): string {
  const { where, text } = leftoverWarning(host, container, mapping, count);
  return `WARNING: at ${where}: ${text}`;
}

/** Every run of references that is left: leaked ones first, then what is pinned, by container and mapping. */
function* leaksOf(host: Host): Iterable<Leak> {
  for (const mapping of host.vfio.leaked) {
    const { container, runs, seq, pfns } = mapping;
    const warn = warnOf(host, container, mapping, pfns.length);
    for (const run of runs) yield { run, device: run.device, container, state: 'leaked', leaked_seq: seq, warn };
  }
  for (const { id: container, iommu } of host.vfio.containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
      if (dma.pfn_list.root === 0) continue;
      const warn = warnOf(host, container, dma, dma.pfn_list.count);
      for (const device of iommu.ledger.keys())
        for (const run of ledgerRuns(iommu, device, dma.iova, dma.npage))
          yield { run, device, container, state: 'pinned', leaked_seq: null, warn };
    }
  }
}

/**
 * References that are left, per device and iova range: `pinned` ones would leak if their mapping went away now, `leaked` ones
 * belong to a mapping that is gone and stay until the machine is reset. `references` counts all; of the ranges the first
 * MAX_SHOWN_LEAKS are shown, and `truncated` says that there are more.
 */
export function leaks(host: Host): Fields {
  const items: Fields[] = [];
  let references = 0;
  let ranges = 0;
  for (const { run, device, container, ...about } of leaksOf(host)) {
    references += run.references * run.npage;
    ranges++;
    if (items.length < MAX_SHOWN_LEAKS) items.push({ ...showRun(run, device, container), ...about });
  }
  return { items, references, ...(ranges > items.length ? { truncated: true } : {}) };
}

/** GET /invariants. */
export function invariants(host: Host): Fields {
  const found = violations(host);
  return { ok: found.length === 0, violations: found };
}
