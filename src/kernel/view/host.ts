// What GETs show of a host as a whole: its counters, its operations and its leaks. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { violations } from '../invariants.ts';
import { addressOf, sizeOf } from '../lib/u64.ts';
import { getOperation, type Operation } from '../operation.ts';
import type { Fields, Outcome, Value } from '../outcome.ts';
import { isGone } from '../vfio/container.ts';
import { mappingsOf } from '../vfio/dma.ts';
import { leftoverText } from '../vfio/iommu.ts';
import { type LeakedMapping, type LedgerRun, ledgerRuns } from '../vfio/ledger.ts';
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
  const container: Value = operation.locals.container;
  const shown = outcome === null ? { result: null } : showOutcome(outcome);
  return { id, kind, state, phase, blocked_on, container, seq, at, request_id, finished_seq, ...shown };
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

function showLeaked(leaked: LeakedMapping): Fields[] {
  const warn = `WARNING: at vfio_remove_dma: ${leftoverText(leaked.container, leaked, leaked.pfns.length)}`;
  return leaked.runs.map((run) => ({
    ...showRun(run, run.device, leaked.container),
    state: 'leaked',
    leaked_seq: leaked.seq,
    warn,
  }));
}

/**
 * References that are left, per device and iova range: `pinned` ones would leak if their mapping went away now, `leaked` ones
 * belong to a mapping that is gone and stay until the machine is reset.
 */
export function leaks(host: Host): Fields {
  const items: Fields[] = host.vfio.leaked.flatMap(showLeaked);
  for (const { id, iommu } of host.vfio.containers.values()) {
    if (iommu === null) continue;
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) {
      if (dma.pfn_list.root === 0) continue;
      const warn = `WARNING: at vfio_remove_dma: ${leftoverText(id, dma, dma.pfn_list.count)}`;
      for (const device of iommu.ledger.keys())
        for (const run of ledgerRuns(iommu, device, dma.iova, dma.npage))
          items.push({ ...showRun(run, device, id), state: 'pinned', leaked_seq: null, warn });
    }
  }
  const references = items.reduce((sum, item) => sum + (item.references as number) * (item.npage as number), 0);
  return { items, references };
}

/** GET /invariants. */
export function invariants(host: Host): Fields {
  const found = violations(host);
  return { ok: found.length === 0, violations: found };
}
