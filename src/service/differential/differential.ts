// A differential run: the same commands on two or more kernels, each compared with the first. It changes nothing anywhere.

import { setImmediate as nextTurn } from 'node:timers/promises';
import { HostUnavailable, TooManyCommands } from '../errors.ts';
import {
  DIFFERENTIAL_SLICE_MS,
  MAX_DIFFERENTIAL_COMMANDS,
  MAX_DIFFERENTIAL_MS,
  MAX_SHOWN_DIFFERENCES,
} from '../limits.ts';
import { explain, spotOf } from './causes.ts';
import { type Kernel, type Plan, withIds } from './item.ts';
import { lockstep } from './lockstep.ts';
import { type Recording, record } from './recording.ts';
import { comparisonOf, Firsts, type Report } from './report.ts';

export interface DifferentialSettings {
  /** At least two names; each is compared with the first. */
  profiles: readonly string[];
  /** Whether the causes of differences are looked for. */
  causes: boolean;
  /** Aborted when the service stops or nobody waits for the report any more. */
  signal: AbortSignal;
}

/**
 * Runs the commands of a plan under the profiles and says where they differ. Other work has its turn every few milliseconds.
 * TooManyCommands: more than MAX_DIFFERENTIAL_COMMANDS, or they take longer than MAX_DIFFERENTIAL_MS. HostUnavailable: aborted.
 */
export async function runDifferential(
  given: Plan,
  { profiles, causes, signal }: DifferentialSettings,
): Promise<Report> {
  if (given.items.length > MAX_DIFFERENTIAL_COMMANDS) throw new TooManyCommands('commands', MAX_DIFFERENTIAL_COMMANDS);
  const plan = { ...given, items: withIds(given.items) };
  const slices = new Slices(signal);
  const recording = await slices.run(record(plan));
  const [first, ...others] = profiles.map((profile): Kernel => ({ profile, behaviours: {} }));
  if (first === undefined || others.length === 0) throw new Error('a differential run takes two profiles or more');
  const comparisons: Report['comparisons'] = [];
  for (const other of others) comparisons.push(await compare(slices, recording, [first, other], causes));
  return {
    written_for: plan.options.profile,
    profiles: [...profiles],
    commands: plan.items.length,
    equal: comparisons.every(({ equal }) => equal),
    comparisons,
  };
}

async function compare(
  slices: Slices,
  recording: Recording,
  kernels: readonly [Kernel, Kernel],
  causes: boolean,
): Promise<Report['comparisons'][number]> {
  const firsts = new Firsts();
  const known = new Set<string>();
  const { plan } = recording;
  const players = await slices.run(
    lockstep(recording, kernels, plan.items.length, (place, found) => {
      firsts.add(place, found);
      known.add(spotOf(place, found.aspect));
    }),
  );
  const differences = firsts.inOrder();
  if (causes && differences.length > 0) {
    const explained = differences.slice(0, MAX_SHOWN_DIFFERENCES);
    const isInTime = await slices.runWhileInTime(explain(recording, kernels, explained, known));
    // Half a search proves nothing.
    if (!isInTime) for (const difference of explained) difference.causes = null;
  }
  return comparisonOf(plan, kernels, players, differences);
}

/** Runs work that can rest between two commands. */
class Slices {
  private readonly end = performance.now() + MAX_DIFFERENTIAL_MS;

  constructor(private readonly signal: AbortSignal) {}

  /** TooManyCommands: it takes too long. */
  async run<T>(work: Generator<void, T>): Promise<T> {
    for (;;) {
      const result = this.slice(work);
      if (result.done === true) return result.value;
      if (performance.now() > this.end) throw new TooManyCommands('milliseconds', MAX_DIFFERENTIAL_MS);
      await this.rest();
    }
  }

  /** False: the time was over before the work was. */
  async runWhileInTime(work: Generator<void>): Promise<boolean> {
    while (performance.now() < this.end) {
      if (this.slice(work).done === true) return true;
      await this.rest();
    }
    return false;
  }

  private slice<T>(work: Generator<void, T>): IteratorResult<void, T> {
    const until = performance.now() + DIFFERENTIAL_SLICE_MS;
    for (;;) {
      const result = work.next();
      if (result.done === true || performance.now() > until) return result;
    }
  }

  private async rest(): Promise<void> {
    await nextTurn();
    if (this.signal.aborted) throw new HostUnavailable(null, 'draining');
  }
}
