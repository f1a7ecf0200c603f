// Which behaviour makes a difference: the commands are played again with single rows of the table of behaviours exchanged, and
// what is gone then, or there then, was made by that row. Nothing is guessed.

import { BEHAVIOURS, type BehaviourName, type Profile, profileWith } from '../../kernel/profile.ts';
import { MAX_CAUSE_COMMANDS } from '../limits.ts';
import type { Kernel, Plan } from './item.ts';
import { lockstep, type Place } from './lockstep.ts';
import type { Recording } from './recording.ts';

/** A row whose exchange changes the difference. */
export interface Cause {
  behaviour: BehaviourName;
  /**
   * 'removes': with the first kernel's value in the second, the difference is not there. 'creates': with the second kernel's
   * value in the first, it is there although nothing else differs.
   */
  proof: 'removes' | 'creates';
}

/** A difference to be explained. */
export interface Explained {
  place: Place;
  aspect: string;
  /** null: not looked for, because it comes too late in a long run. */
  causes: Cause[] | null;
}

export const behavesAs = ({ options }: Plan, { profile, behaviours }: Kernel): Profile => ({
  ...profileWith(profile, options.fixes),
  ...behaviours,
});

/** Rows in which two kernels differ. The release is a name and no behaviour. */
export function differingRows(a: Profile, b: Profile): BehaviourName[] {
  return (Object.keys(BEHAVIOURS) as BehaviourName[]).filter(
    (row) => row !== 'release' && JSON.stringify(a[row]) !== JSON.stringify(b[row]),
  );
}

const spot = ({ position }: Place, aspect: string): string => `${position ?? 'end'} ${aspect}`;

/** Fills in the causes of the differences between two kernels. Yields after each command. */
export function* explain(
  recording: Recording,
  [a, b]: readonly [Kernel, Kernel],
  differences: readonly Explained[],
): Generator<void> {
  const [mine, theirs] = [behavesAs(recording.plan, a), behavesAs(recording.plan, b)];
  const rows = differingRows(mine, theirs);
  // Both passes together play two kernels twice for each row.
  const affordable = Math.floor(MAX_CAUSE_COMMANDS / Math.max(1, 4 * rows.length));
  const explained = differences.filter(({ place }) => place.seen_at <= affordable);
  for (const difference of explained) difference.causes = [];
  for (const row of rows) {
    const bent = { ...b, behaviours: { ...b.behaviours, [row]: mine[row] } };
    const there = yield* differencesAt(recording, [a, bent], explained);
    if (there === null) continue;
    for (const { place, aspect, causes } of explained)
      if (!there.has(spot(place, aspect))) causes?.push({ behaviour: row, proof: 'removes' });
  }
  const unexplained = explained.filter(({ causes }) => causes?.length === 0);
  if (unexplained.length === 0) return;
  for (const row of rows) {
    const bent = { ...a, behaviours: { ...a.behaviours, [row]: theirs[row] } };
    const there = yield* differencesAt(recording, [a, bent], unexplained);
    if (there === null) continue;
    for (const { place, aspect, causes } of unexplained)
      if (there.has(spot(place, aspect))) causes?.push({ behaviour: row, proof: 'creates' });
  }
}

/** What differs at the places of the given differences; null: no kernel can have that row with the others. */
function* differencesAt(
  recording: Recording,
  kernels: readonly [Kernel, Kernel],
  differences: readonly Explained[],
): Generator<void, Set<string> | null> {
  const there = new Set<string>();
  const until = Math.max(0, ...differences.map(({ place }) => place.seen_at));
  const work = lockstep(recording, kernels, until, (place, { aspect }) => void there.add(spot(place, aspect)));
  for (;;) {
    try {
      if (work.next().done === true) return there;
    } catch {
      return null;
    }
    yield;
  }
}
