// What GETs show of address spaces and of who subscribes to their invalidations. Pure: nothing here changes a host.

import { NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { MAX_SHOWN_SECONDARY } from '../limits.ts';
import type { MmStruct } from '../mm/mm.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import type { Action, Handler, MmuNotifier, Script } from '../mm/mmu-notifier/subscriptions.ts';
import type { Fields, Value } from '../outcome.ts';
import { byId, type Listed, listed } from './page.ts';

/** With users, or kept by something. NOT_FOUND. */
function getMm({ mm: memory }: Host, id: string): MmStruct {
  const mm = memory.mms.get(id) ?? memory.zombies.get(id);
  if (mm === undefined) throw new NoSuchObject('mm', id);
  return mm;
}

function showMm(host: Host, mm: MmStruct): Fields {
  const { id, users, count, locked_vm, pinned_vm, rss, has_pinned, vmas, page_table, subscriptions } = mm;
  return {
    id,
    alive: host.mm.mms.has(id),
    users,
    count,
    tasks: [...host.mm.tasks.values()].filter((task) => task.mm === id).map((task) => task.id),
    locked_vm,
    pinned_vm,
    rss,
    has_pinned,
    areas: vmas.areas.length,
    page_tables: page_table.leaves.size,
    notifiers: [...host.mm.mmu_notifiers.values()].filter((notifier) => notifier.mm === id).map((each) => each.id),
    invalidate_seq: subscriptions?.invalidate_seq ?? null,
    active_invalidate_ranges: subscriptions?.active_invalidate_ranges ?? 0,
  };
}

export const viewMm = (host: Host, id: string): Fields => showMm(host, getMm(host, id));

export const listMms = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(
    byId(new Map([...host.mm.mms, ...host.mm.zombies]), after),
    limit,
    ({ id }) => id,
    (mm) => showMm(host, mm),
  );

/** struct mmu_notifier_subscriptions, with the operations that are inside it or wait for it. */
export function viewSubscriptions(host: Host, id: string): Fields {
  const { subscriptions } = getMm(host, id);
  return {
    mm: id,
    list: [...(subscriptions?.list ?? [])],
    has_itree: subscriptions?.has_itree ?? false,
    intervals: [...(subscriptions?.intervals ?? [])],
    deferred: [...(subscriptions?.deferred ?? [])],
    invalidate_seq: subscriptions?.invalidate_seq ?? null,
    active_invalidate_ranges: subscriptions?.active_invalidate_ranges ?? 0,
    active: (subscriptions?.active ?? []).map(({ operation, start, end }) => ({
      operation,
      start: addressOf(start),
      end: addressOf(end),
    })),
    waiting: [...(subscriptions?.waiting ?? [])],
    srcu_readers: [...host.mm.srcu.readers],
    synchronizing: host.mm.srcu.waiting.map(({ operation, notifier }) => operation ?? notifier),
  };
}

function showAction(action: Action): Value {
  if (action.action === 'dirty_lock' || action.action === 'dirty')
    return { action: action.action, addr: addressOf(action.page) };
  return { ...action };
}

const showScript = ({ actions, returns }: Script): Value => ({ actions: actions.map(showAction), returns });

/** Without the secret of a webhook. */
function showHandler(handler: Handler): Value {
  if (handler.kind === 'webhook') return { kind: 'webhook', url: handler.url };
  if (handler.kind === 'consumer') return { ...handler };
  if (handler.kind !== 'script') return { kind: handler.kind };
  const scripts = Object.entries(handler.scripts).map(([name, script]) => [name, showScript(script)]);
  return { kind: 'script', callbacks: Object.fromEntries(scripts) };
}

function showMmuNotifier(host: Host, notifier: MmuNotifier): Fields {
  const { id, mm: mmId, kind, handler, calls, mappings } = notifier;
  const mm = host.mm.mms.get(mmId) ?? host.mm.zombies.get(mmId);
  const shown = [...mappings].sort(([a], [b]) => a - b).slice(0, MAX_SHOWN_SECONDARY);
  return {
    id,
    mm: mmId,
    kind,
    registered: notifier.grabbed && !notifier.leaving,
    ...(notifier.kind === 'plain'
      ? {
          callbacks: [...notifier.callbacks],
          ops: notifier.ops,
          users: notifier.users,
          open_starts: notifier.open_starts,
        }
      : {
          start: notifier.start,
          length: notifier.last - notifier.start + 1n,
          invalidate_seq: notifier.invalidate_seq,
        }),
    delivery: showHandler(handler),
    calls: { ...calls },
    secondary_count: mappings.size,
    secondary: shown.map(([page, mapping]) => ({
      addr: addressOf(page),
      ...mapping,
      stale: mm === undefined || isStale(mm, page, mapping),
    })),
  };
}

export function listMmuNotifiers(host: Host, mm: string, after: string | null, limit: number): Listed<string> {
  getMm(host, mm);
  return listed(
    byId(host.mm.mmu_notifiers, after).filter((notifier) => notifier.mm === mm),
    limit,
    ({ id }) => id,
    (notifier) => showMmuNotifier(host, notifier),
  );
}

export function viewMmuNotifier(host: Host, mm: string, id: string): Fields {
  getMm(host, mm);
  const notifier = host.mm.mmu_notifiers.get(id);
  if (notifier === undefined || notifier.mm !== mm) throw new NoSuchObject('mmu notifier', id);
  return showMmuNotifier(host, notifier);
}
