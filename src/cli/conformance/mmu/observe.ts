// From what a host shows of its mmu notifiers to what a recorded trace says of the same thing.

import type { Splat } from '../machine.ts';
import type { PendingCallback } from './machine.ts';
import type { OwnCallback } from './trace.ts';

export interface DmesgLine {
  kind: 'WARN' | 'BUG' | 'DEADLOCK' | null;
  where: string | null;
  text: string;
}

/** A splat by the name that its text begins with. Rules of the contract that were broken have none in the kernel. */
export function splatOf({ kind, where, text }: DmesgLine): (Splat & { what: string })[] {
  if (kind === null || where === null) return [];
  if (kind === 'DEADLOCK') {
    const cause = /waits for \S+: ([a-z-]+)/.exec(text)?.[1] ?? where;
    return [{ kind, where, what: cause.replaceAll('-', ' ') }];
  }
  const label = / at \w+: ([A-Za-z0-9_-]+):/.exec(text)?.[1] ?? where;
  return /^[A-Z_]+$/.test(label) ? [] : [{ kind, where, what: label }];
}

/** What each callback is told, as it is recorded. */
const TOLD: Readonly<Record<string, readonly ('target' | 'start' | 'end' | 'blockable' | 'event' | 'seq')[]>> = {
  alloc_notifier: [],
  free_notifier: ['target'],
  release: ['target'],
  invalidate: ['target', 'start', 'end', 'blockable', 'event', 'seq'],
  invalidate_range_start: ['target', 'start', 'end', 'blockable', 'event'],
  invalidate_range_end: ['target', 'start', 'end', 'blockable', 'event'],
  invalidate_range: ['target', 'start', 'end'],
  clear_flush_young: ['target', 'start', 'end'],
  clear_young: ['target', 'start', 'end'],
  test_young: ['target', 'start'],
  change_pte: ['target', 'start'],
};

export function ownCallback(pending: PendingCallback, target: string): OwnCallback {
  const { callback, start, end, blockable, event, cur_seq: seq } = pending;
  const all = { target, start, end, blockable, event, seq };
  const told = Object.fromEntries((TOLD[callback] ?? []).map((field) => [field, all[field] ?? undefined]));
  return { type: 'callback', callback, ...told };
}
