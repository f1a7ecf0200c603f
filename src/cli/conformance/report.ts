// Adds up the comparison of many traces and prints it: agreement per feature, op and errno, and the first difference of each kind.

import { ERRNO } from '../../kernel/errno.ts';
import type { Comparison, Difference } from './compare.ts';
import { NO_FEATURE } from './select.ts';

interface Tally {
  agree: number;
  all: number;
}

interface FirstDifference extends Difference {
  kind: string;
  where: string;
  args: unknown;
  times: number;
}

/** A trace as a report needs it. */
interface Replayed {
  file: string;
  line: number;
  era: string;
  seed: number;
  features: string[];
  ops: { op: string; args: unknown }[];
}

/** The machine's own answers; null: an operation that cannot be expressed, and was left out. */
interface Answers<A> {
  answers: (A | null)[];
  leftOut: Map<string, number>;
  stopped: string | null;
}

const NAMES = new Map<number, string>(Object.entries(ERRNO).map(([name, value]) => [value, name]));

/** ret as the table shows it: the errno's name, 'ok', or 'never returned'. */
const retName = (ret: number | null): string =>
  ret === null ? 'never returned' : ret < 0 ? (NAMES.get(-ret) ?? `errno ${-ret}`) : 'ok';

export class Report {
  private readonly eras = new Map<string, Tally>();
  private readonly traces = new Map<string, Tally>();
  private readonly ops = new Map<string, Tally>();
  private readonly skipped = new Map<string, number>();
  private readonly leftOut = new Map<string, number>();
  private readonly firsts = new Map<string, FirstDifference>();
  private readonly loose = { compared: 0, differing: 0 };
  private total: Tally = { agree: 0, all: 0 };

  constructor(private readonly backend: string) {}

  get failed(): boolean {
    return this.firsts.size > 0;
  }

  /** Number of operations compared, calls inside notifications not counted. */
  get compared(): number {
    return [...this.ops.values()].reduce((sum, { all }) => sum + all, 0);
  }

  skip(reason: string): void {
    this.skipped.set(reason, (this.skipped.get(reason) ?? 0) + 1);
  }

  /** Compares a finished replay with its recording. */
  add<A extends { ret: number | null }>(
    trace: Replayed,
    recorded: readonly A[],
    { answers, leftOut, stopped }: Answers<A>,
    compare: (expected: A, got: A) => Comparison,
  ): void {
    let differences = 0;
    for (const [reason, times] of leftOut) this.leftOut.set(reason, (this.leftOut.get(reason) ?? 0) + times);
    for (const [i, own] of answers.entries()) {
      const [expected, input] = [recorded[i], trace.ops[i]];
      if (own === null || expected === undefined || input === undefined) continue;
      const comparison = compare(expected, own);
      this.count(comparison, expected.ret, input.op);
      differences += comparison.differences.length;
      for (const difference of comparison.differences)
        this.note(difference, `${input.op}: ${difference.place}`, at(trace, i), input.args);
    }
    if (stopped !== null || answers.length < trace.ops.length) {
      differences++;
      const last = answers.length;
      this.note(
        { place: 'replay', expected: `${trace.ops.length} operations`, got: stopped ?? 'the call never returned' },
        `replay stopped: ${stopped ?? 'a call never returned'}`,
        at(trace, last),
        trace.ops[last]?.args,
      );
    }
    const agrees = differences === 0;
    tally(this.eras, trace.era, agrees);
    for (const feature of trace.features.length > 0 ? trace.features : [NO_FEATURE])
      tally(this.traces, feature, agrees);
    this.total = { agree: this.total.agree + (agrees ? 1 : 0), all: this.total.all + 1 };
  }

  private count({ differences, loose }: Comparison, ret: number | null, op: string): void {
    tally(this.ops, `${op}\t${retName(ret)}`, differences.length === 0);
    this.loose.compared += loose.compared;
    this.loose.differing += loose.differing;
  }

  private note(difference: Difference, kind: string, where: string, args: unknown): void {
    const first = this.firsts.get(kind);
    if (first !== undefined) first.times++;
    else this.firsts.set(kind, { ...difference, kind, where, args, times: 1 });
  }

  print(): string {
    const lines = [`== ${this.backend} ==`, '', ...table(['era', 'traces', 'agree', ''], rowsOf(this.eras)), ''];
    lines.push(...table(['feature', 'traces', 'agree', ''], rowsOf(this.traces)), '');
    lines.push(...table(['op', 'recorded', 'calls', 'agree', ''], rowsOf(this.ops)), '');
    for (const [reason, traces] of [...this.skipped].sort()) lines.push(`skipped, ${reason}: ${traces} traces`);
    for (const [reason, times] of [...this.leftOut].sort())
      lines.push(`left out, not expressible, ${reason}: ${times}`);
    lines.push(`compared loosely: ${this.loose.compared} places, ${this.loose.differing} of them differ`);
    for (const { kind, where, times, args, expected, got } of this.firsts.values())
      lines.push('', `DIFFERENCE ${kind} (${times} times), first at ${where}`, ...shown({ args, expected, got }));
    lines.push('', `${this.total.agree} of ${this.total.all} traces agree, ${this.compared} operations compared`);
    return lines.join('\n');
  }
}

const at = ({ file, line, seed }: Replayed, op: number): string => `${file}:${line} seed ${seed} op ${op}`;

const shown = (values: Record<string, unknown>): string[] =>
  Object.entries(values).map(([name, value]) => `  ${name.padEnd(9)}${JSON.stringify(value) ?? 'nothing'}`);

function tally(map: Map<string, Tally>, key: string, agrees: boolean): void {
  const { agree, all } = map.get(key) ?? { agree: 0, all: 0 };
  map.set(key, { agree: agree + (agrees ? 1 : 0), all: all + 1 });
}

const rowsOf = (map: Map<string, Tally>): string[][] =>
  [...map]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, { agree, all }]) => [...key.split('\t'), `${all}`, `${agree}`, percent(agree, all)]);

/** Rounded down, so that 100 % means all. */
const percent = (agree: number, all: number): string => `${(Math.floor((1000 * agree) / all) / 10).toFixed(1)} %`;

function table(head: string[], rows: string[][]): string[] {
  const widths = head.map((title, i) => Math.max(title.length, ...rows.map((row) => row[i]?.length ?? 0)));
  return [head, ...rows].map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
}
