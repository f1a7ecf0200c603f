// What subscribers have mapped for their devices, against what the page table says: the base rule of the contract.

import type { Command } from '../../command.ts';
import { consumerOf } from '../../consumers.ts';
import { Errno } from '../../errno.ts';
import type { Host } from '../../host.ts';
import { addressOf, hex, pageNumberOf } from '../../lib/u64.ts';
import type { Done } from '../../outcome.ts';
import type { Handlers } from '../../steps.ts';
import { runOperation, type ThreadOperation } from '../../thread.ts';
import { report } from '../../violation.ts';
import { anyMm, type MmStruct } from '../mm.ts';
import { PTE_DEVICE_EXCLUSIVE, PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE } from '../page-table.ts';
import { getMmuNotifier } from './call.ts';
import type { MmuRange } from './range.ts';
import type { ActiveRange, CallbackName, MmuNotifier, SecondaryMapping } from './subscriptions.ts';

/** Whether the page table does not give what a secondary mapping of the page gives. */
export function isStale(mm: MmStruct, page: number, { pfn, writable, exclusive }: SecondaryMapping): boolean {
  const flags = mm.page_table.flags(page);
  const type = flags & PTE_TYPE_MASK;
  const given = type === PTE_PRESENT ? exclusive !== 'only' : type === PTE_DEVICE_EXCLUSIVE && exclusive !== undefined;
  if (!given || mm.page_table.pfn(page) !== pfn) return true;
  return writable && (flags & PTE_WRITE) === 0;
}

const isWithin = (page: number, { start, end }: { start: number; end: number }): boolean => page >= start && page < end;

/** Looks at the range or at all mappings, whichever are fewer. */
function* mappingsWithin({ mappings }: MmuNotifier, range: MmuRange): Iterable<[number, SecondaryMapping]> {
  if (mappings.size <= range.end - range.start) {
    for (const entry of mappings) if (isWithin(entry[0], range)) yield entry;
    return;
  }
  for (let page = range.start; page < range.end; page++) {
    const mapping = mappings.get(page);
    if (mapping !== undefined) yield [page, mapping];
  }
}

/** What a subscriber has mapped: by itself, or, where it belongs to a consumer, as that says. */
function secondariesOf(host: Host, notifier: MmuNotifier, range: MmuRange): Iterable<[number, SecondaryMapping]> {
  if (notifier.handler.kind !== 'consumer') return mappingsWithin(notifier, range);
  const { secondaries } = consumerOf(notifier.handler.consumer);
  return secondaries?.(host, notifier, range) ?? mappingsWithin(notifier, range);
}

/** After an end: what a subscriber still maps in the range must be what the page table maps. */
export function checkSecondaries(host: Host, operation: ThreadOperation, range: MmuRange): void {
  const mm = anyMm(host, range.mm);
  for (const notifier of host.mm.mmu_notifiers.values()) {
    if (notifier.mm !== range.mm) continue;
    for (const [page, mapping] of secondariesOf(host, notifier, range))
      if (isStale(mm, page, mapping))
        report(
          host,
          operation,
          'STALE_SECONDARY',
          `${notifier.id} still maps ${hex(addressOf(page))} to page ${mapping.pfn} after the end`,
          [],
        );
  }
}

/** A secondary mapping is made: not between a start and its end. */
export function addSecondary(
  host: Host,
  operation: ThreadOperation,
  notifier: MmuNotifier,
  page: number,
  mapping: SecondaryMapping,
): void {
  notifier.mappings.set(page, mapping);
  checkWindow(host, operation, notifier, page);
}

/** Whether a subscriber's callback has returned from the start of a range: until then it may still be mapping. */
function hasBeenTold(host: Host, { id }: MmuNotifier, { operation }: ActiveRange): boolean {
  const { thread } = host.operations.get(operation) ?? {};
  if (thread === undefined) return true;
  if (thread.callbacks.some(({ notifier, callback }) => notifier === id && STARTS.includes(callback))) return false;
  return !thread.steps.some(
    (step) =>
      (step.do === 'start_intervals' || step.do === 'start_plain') && step.subs.indexOf(id, Math.max(step.at, 0)) >= 0,
  );
}

const STARTS: readonly CallbackName[] = ['invalidate_range_start', 'invalidate'];

/** A secondary mapping has been made: SPTE_IN_WINDOW where that is between a start and its end. */
export function checkWindow(host: Host, operation: ThreadOperation, notifier: MmuNotifier, page: number): void {
  const active = anyMm(host, notifier.mm).subscriptions?.active.find(
    (range) => isWithin(page, range) && hasBeenTold(host, notifier, range),
  );
  if (active !== undefined)
    report(
      host,
      operation,
      'SPTE_IN_WINDOW',
      `${notifier.id} maps ${hex(addressOf(page))} while ${active.operation} invalidates it`,
      [],
    );
}

export type SecondaryStep = { do: 'map_secondary'; notifier: string; page: number; writable: boolean; cleanup?: true };

/**
 * A subscriber maps what the page table maps now. Fields: pfn.
 * EFAULT: the page is not present, or not writable where `writable` is asked for.
 */
export function mapSecondary(
  host: Host,
  { mm: named, id, addr, writable, task }: Extract<Command, { op: 'map_secondary' }>,
): Done {
  const { mm } = getMmuNotifier(host, id, named);
  return runOperation(
    host,
    { kind: 'map_secondary', locals: { task: task ?? null, mm } },
    [{ do: 'map_secondary', notifier: id, page: pageNumberOf(addr), writable }],
    null,
  );
}

/** ENOENT: the subscriber does not map the page. */
export function unmapSecondary(host: Host, { mm, id, addr }: Extract<Command, { op: 'unmap_secondary' }>): Done {
  if (!getMmuNotifier(host, id, mm).mappings.delete(pageNumberOf(addr)))
    throw new Errno('ENOENT', `notifier '${id}' does not map ${hex(addr)}`);
  return { ret: 0, fields: { id } };
}

export const secondarySteps: Handlers<SecondaryStep> = {
  map_secondary(host, operation, { notifier: id, page, writable }) {
    const notifier = getMmuNotifier(host, id);
    const { page_table } = anyMm(host, notifier.mm);
    const flags = page_table.flags(page);
    if ((flags & PTE_TYPE_MASK) !== PTE_PRESENT || (writable && (flags & PTE_WRITE) === 0))
      throw new Errno('EFAULT', `addr: ${hex(addressOf(page))} is not ${writable ? 'writable' : 'present'}`);
    const pfn = page_table.pfn(page);
    addSecondary(host, operation, notifier, page, { pfn, writable });
    operation.thread.fields = { id, pfn };
  },
};
