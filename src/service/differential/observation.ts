// What a caller sees of one command: what it returned, whom it called, and what the kernel log said of it.

import type { DmesgEntry } from '../../kernel/host.ts';
import type { Fields, Notification, Outcome } from '../../kernel/outcome.ts';

export interface Splat {
  kind: 'WARN' | 'BUG' | 'DEADLOCK';
  /** Kernel function that raised it. */
  where: string;
  /** What it is about, the same in every profile; null: it has no name. */
  label: string | null;
  text: string;
}

/** A call of a listener, by a notification or of a built-in driver. */
export type Called = Pick<Notification, 'device' | 'notifier' | 'iova' | 'size' | 'attempt'>;

export interface Observation {
  /** 'waits': its operation has not ended. 'left-out': it was not executed, `reason` says why. */
  state: 'done' | 'waits' | 'left-out';
  reason: string | null;
  /** Whether it had to wait for anything. */
  parked: boolean;
  ret: number;
  /** Name of the errno; null: accepted. */
  errno: string | null;
  detail: string | null;
  at_index: number | null;
  /** What it returned, or what the kernel filled in although it refused. */
  fields: Fields;
  splats: Splat[];
  called: Called[];
}

export const newObservation = (): Observation => ({
  state: 'waits',
  reason: null,
  parked: false,
  ret: 0,
  errno: null,
  detail: null,
  at_index: null,
  fields: {},
  splats: [],
  called: [],
});

export function leaveOut(seen: Observation, reason: string): void {
  seen.state = 'left-out';
  seen.reason = reason;
}

/** The outcome of the whole command is known. */
export function finish(seen: Observation, { ret, fields, refusal }: Pick<Outcome, 'ret' | 'fields' | 'refusal'>): void {
  seen.state = 'done';
  seen.ret = ret;
  seen.errno = refusal?.errno ?? null;
  seen.detail = refusal?.detail ?? null;
  seen.at_index = refusal?.at_index ?? null;
  seen.fields = refusal === undefined ? fields : (refusal.left ?? {});
}

/** Functions have other names in other kernels, so a splat is known by its label where it has one. */
export const splatOf = ({ kind, where, text }: DmesgEntry): Splat | null =>
  kind === null || where === null
    ? null
    : { kind, where, label: /: at \w+: ([a-z0-9-]+):/.exec(text)?.[1] ?? null, text };

/** Two parts of a command that was split: what they did together. */
export function joined(
  parts: readonly Outcome[],
  entries: readonly number[],
): Pick<Outcome, 'ret' | 'fields' | 'refusal'> {
  const at = parts.findIndex(({ refusal }) => refusal !== undefined);
  const refused = parts[at];
  const warnings = parts.flatMap(({ fields }) => (fields.warnings as string[] | undefined) ?? []);
  if (refused?.refusal !== undefined) {
    const before = entries.slice(0, at).reduce((sum, count) => sum + count, 0);
    const { refusal } = refused;
    const zeros = new Array<number>(entries.reduce((sum, count) => sum + count, 0)).fill(0);
    const left = refusal.left === undefined ? {} : { left: { phys_pfn: zeros } };
    const at_index = refusal.at_index === undefined ? {} : { at_index: before + refusal.at_index };
    return { ret: refused.ret, fields: {}, refusal: { ...refusal, ...at_index, ...left } };
  }
  const pfns = parts.flatMap(({ fields }) => (fields.phys_pfn as number[] | undefined) ?? []);
  const fields: Fields = {
    ...(pfns.length === 0 ? {} : { phys_pfn: pfns }),
    ...(warnings.length === 0 ? {} : { warnings: [...new Set(warnings)] }),
  };
  return { ret: parts.reduce((sum, { ret }) => sum + ret, 0), fields };
}
