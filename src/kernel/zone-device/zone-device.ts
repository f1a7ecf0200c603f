// Models the removal of memory that belongs to a device (memunmap_pages): nobody maps it any more, and it waits for who holds it.

import type { Consumer } from '../consumer.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_REMOVED_PAGES } from '../limits.ts';
import { getLayout, layoutPfn } from '../mm/layout.ts';
import type { MmStruct } from '../mm/mm.ts';
import { invalidation } from '../mm/mmu-notifier/invalidation.ts';
import { KIND_REMOVED, KIND_ZONE_DEVICE } from '../mm/page-frames.ts';
import type { Vma } from '../mm/vma.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Step } from '../steps.ts';
import { park, pushSteps, runOperation, schedule, type ThreadOperation } from '../thread.ts';

export interface ZoneDeviceState {
  /** Removals that wait for the last reference of a page, by operation. */
  waiting: Map<string, number>;
}

/** The device with the pages [pfn, pfn + npage) is unbound from its driver. */
export type ZoneDeviceCommand = { op: 'remove_device_pages'; pfn: number; npage: number; stop_at?: Phase };

export type ZoneDeviceStep =
  /** No fault maps the pages from here on; their idle reference is the removal's. */
  | { do: 'kill_device_pages'; pfn: number; npage: number; cleanup?: true }
  | { do: 'unmap_device_pages'; pfn: number; npage: number; cleanup?: true }
  | { do: 'drain_device_pages'; pfn: number; npage: number; cleanup?: true };

/** Pages of [start, end) of an area that map the device's. */
type Run = { mm: string; start: number; end: number };

/**
 * Removes the memory of a device. It ends when nobody refers to any of the pages. Fields: pfn, npage.
 * EINVAL: npage; a page that is not a device's, or whose removal has begun. E2BIG: MAX_REMOVED_PAGES.
 */
function removeDevicePages(host: Host, { pfn, npage, stop_at }: ZoneDeviceCommand): Done {
  if (!Number.isSafeInteger(npage) || npage < 1) throw new Errno('EINVAL', `npage: ${npage} is not a count from 1`);
  if (npage > MAX_REMOVED_PAGES)
    throw new Errno('E2BIG', `npage ${npage}: a removal takes ${MAX_REMOVED_PAGES} pages at most`);
  for (let page = pfn; page < pfn + npage; page++)
    if (host.mm.pages.kind(page) !== KIND_ZONE_DEVICE)
      throw new Errno('EINVAL', `page ${page} is not of kind 'zone_device', or its removal has begun`);
  const lock = `i_mmap:device-${pfn}`;
  return runOperation(
    host,
    { kind: 'remove_device_pages', locals: { task: null, mm: null } },
    [
      { do: 'kill_device_pages', pfn, npage },
      { do: 'lock', lock, mode: 'W' },
      { do: 'unmap_device_pages', pfn, npage },
      { do: 'unlock', lock, cleanup: true },
      { do: 'drain_device_pages', pfn, npage },
    ],
    stop_at ?? null,
  );
}

/** The parts of an area that map pages of [pfn, pfn + npage). */
function runsOf(host: Host, mm: MmStruct, vma: Vma, pfn: number, npage: number): Run[] {
  if (vma.kind !== 'pages' || vma.layout === null) return [];
  const layout = getLayout(host.mm, vma.layout);
  const runs: Run[] = [];
  for (let page = vma.start; page < vma.end; page++) {
    const found = layoutPfn(layout, page - vma.origin);
    if (found < pfn || found >= pfn + npage) continue;
    const last = runs.at(-1);
    if (last?.end === page) last.end++;
    else runs.push({ mm: mm.id, start: page, end: page + 1 });
  }
  return runs;
}

export const zoneDevice: Consumer<ZoneDeviceCommand, ZoneDeviceStep, ZoneDeviceState> = {
  newState: () => ({ waiting: new Map() }),
  commands: { remove_device_pages: removeDevicePages },
  steps: {
    kill_device_pages(host, { thread }, { pfn, npage }) {
      for (let page = pfn; page < pfn + npage; page++) {
        host.mm.pages.changeKept(page, KIND_REMOVED, host.seq);
        thread.pages.push(page);
      }
    },

    /** unmap_mapping_range(). */
    unmap_device_pages(host, operation, { pfn, npage }) {
      const runs = [...host.mm.mms.values()].flatMap((mm) =>
        mm.vmas.areas.flatMap((vma) => runsOf(host, mm, vma, pfn, npage)),
      );
      const steps = runs.flatMap((run): Step[] =>
        invalidation({ ...run, event: 'CLEAR', blockable: true, owner: null }, [{ do: 'zap', ...run }]),
      );
      pushSteps(operation, steps);
    },

    drain_device_pages(host, operation, step) {
      const { pfn, npage } = step;
      const { pages } = host.mm;
      for (let page = pfn; page < pfn + npage; page++) {
        if (pages.refcount(page) === 1) continue;
        host.consumers.zone_device.waiting.set(operation.id, page);
        pushSteps(operation, [step]);
        park(host, operation, `page_idle:${page}`);
        return;
      }
      for (const page of operation.thread.pages.splice(0)) pages.put(page, host.seq);
      operation.thread.fields = { pfn, npage };
    },
  },
  callbacks: {},

  settle(host) {
    const { waiting } = host.consumers.zone_device;
    for (const [id, page] of waiting) {
      const operation = host.operations.get(id);
      if (operation?.state !== 'blocked') waiting.delete(id);
      else if (host.mm.pages.refcount(page) === 1) {
        waiting.delete(id);
        schedule(host, operation as ThreadOperation);
      }
    }
  },

  check: (host) =>
    [...host.consumers.zone_device.waiting]
      .filter(([id, page]) => host.operations.get(id)?.blocked_on !== `page_idle:${page}`)
      .map(([id, page]) => `${id} does not wait for page ${page}`),
};
