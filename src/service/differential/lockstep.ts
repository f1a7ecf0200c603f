// Two kernels side by side, command by command: every difference as soon as both have answered.

import type { Fields, Value } from '../../kernel/outcome.ts';
import { differencesOf, type Found } from './compare.ts';
import { itemAt, type Kernel } from './item.ts';
import type { Observation } from './observation.ts';
import { Player } from './player.ts';
import type { Recording } from './recording.ts';
import { differingAtEnd, differingCounters, differingPages, type StateDifference } from './state.ts';

/** Where a difference is: the command, 0 for the host as it was made, null for what is found when all are done, and the one with which it was seen. */
export interface Place {
  position: number | null;
  seen_at: number;
}

export type Sink = (place: Place, found: Found) => void;

/** Plays the first `until` commands on both kernels. Yields after each command. */
export function* lockstep(
  recording: Recording,
  kernels: readonly [Kernel, Kernel],
  until: number,
  sink: Sink,
): Generator<void, [Player, Player]> {
  const pair = new Pair(recording, kernels, sink);
  pair.begin();
  for (let position = 1; position <= until; position++) yield* pair.step(position);
  yield* pair.end(until, until === recording.plan.items.length);
  return [pair.a, pair.b];
}

class Pair {
  readonly a: Player;
  readonly b: Player;
  /** Positions whose answers are not known on both sides yet. */
  private readonly open = new Set<number>();
  /** What differs by how much, by counter and object: reported again only when that changes. */
  private counters = new Map<string, string>();
  private readonly pages = new Map<string, string>();

  constructor(
    private readonly recording: Recording,
    [a, b]: readonly [Kernel, Kernel],
    private readonly sink: Sink,
  ) {
    this.a = new Player(recording, a);
    this.b = new Player(recording, b);
  }

  /** What differs before the first command: the template was made on both. */
  begin(): void {
    this.compareCounters({ position: 0, seen_at: 0 });
  }

  *step(position: number): Generator<void> {
    yield* this.a.step(position);
    yield* this.b.step(position);
    this.open.add(position);
    this.compareAnswers(position, false);
    this.compareCounters({ position, seen_at: position });
  }

  *end(last: number, isWhole: boolean): Generator<void> {
    this.a.end();
    this.b.end();
    this.compareAnswers(last, true);
    if (!isWhole) return;
    for (const difference of differingAtEnd(this.a.host, this.b.host)) {
      if (difference === null) yield;
      else if (!this.isKnown(difference)) this.sink({ position: null, seen_at: last }, foundOf(difference));
    }
  }

  private compareAnswers(seen_at: number, isLast: boolean): void {
    for (const position of this.open) {
      const [first, second] = [this.a.seen.get(position), this.b.seen.get(position)];
      if (first === undefined || second === undefined) continue;
      if (!isLast && (first.state === 'waits' || second.state === 'waits')) continue;
      this.open.delete(position);
      this.a.seen.delete(position);
      this.b.seen.delete(position);
      const { op } = itemAt(this.recording.plan, position).command;
      for (const found of differencesOf(op, first, second)) this.sink({ position, seen_at }, found);
      if (op === 'pin_pages') this.comparePages({ position, seen_at }, first, second);
    }
  }

  private compareCounters(place: Place): void {
    const counters = new Map<string, string>();
    for (const difference of differingCounters(this.a.host, this.b.host)) {
      const key = keyOf(difference);
      const gap = gapOf(difference.values);
      counters.set(key, gap);
      if (this.counters.get(key) !== gap) this.sink(place, foundOf(difference));
    }
    this.counters = counters;
  }

  private comparePages(place: Place, first: Observation, second: Observation): void {
    const [mine, theirs] = [first.fields.phys_pfn, second.fields.phys_pfn] as (number[] | undefined)[];
    if (first.errno !== null || second.errno !== null || mine === undefined || theirs === undefined) return;
    const both = new Set(mine.filter((pfn, i) => theirs[i] === pfn));
    for (const difference of differingPages(this.a.host, this.b.host, both)) {
      const key = keyOf(difference);
      const gap = gapOf(difference.values);
      if (this.pages.get(key) === gap) continue;
      this.pages.set(key, gap);
      this.sink(place, foundOf(difference));
    }
  }

  private isKnown(difference: StateDifference): boolean {
    const key = keyOf(difference);
    return (this.counters.get(key) ?? this.pages.get(key)) === gapOf(difference.values);
  }
}

const keyOf = ({ what, subject }: StateDifference): string => `${what} ${subject}`;

/** By how much numbers differ, so that a constant difference is one, whatever is added to both. */
const gapOf = ([a, b]: [Value, Value]): string =>
  typeof a === 'number' && typeof b === 'number'
    ? String(a - b)
    : typeof a === 'number' || typeof b === 'number'
      ? `${a === null} ${b === null}`
      : JSON.stringify([a, b]);

function foundOf({ what, subject, values }: StateDifference): Found {
  const of: Fields = subject === '' ? {} : { of: subject };
  const answers: [Fields, Fields] = [
    { ...of, [what]: values[0] },
    { ...of, [what]: values[1] },
  ];
  return { kind: 'state', aspect: `state ${what}`, name: `state: ${what}`, answers };
}
