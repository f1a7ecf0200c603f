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

/** Where, and what about: one name for a difference in any pair of kernels. */
export const spotOf = ({ position }: Place, aspect: string): string => `${position ?? 'end'} ${aspect}`;

const order = ({ position }: Place): number => position ?? Number.MAX_SAFE_INTEGER;

/** What differs between a kernel and another one with a row exchanged. */
interface Bent {
  there: Set<string>;
  /** Position of the first difference that the two kernels themselves do not have: behind it, nothing is proved. */
  strays: number;
}

/**
 * Fills in the causes of the differences between two kernels, of which `known` names all. A row proves nothing behind the first
 * difference that only its exchange makes: rows that belong together make a kernel that does not work when they are parted.
 * Yields after each command.
 */
export function* explain(
  recording: Recording,
  [a, b]: readonly [Kernel, Kernel],
  differences: readonly Explained[],
  known: ReadonlySet<string>,
): Generator<void> {
  const [mine, theirs] = [behavesAs(recording.plan, a), behavesAs(recording.plan, b)];
  const rows = differingRows(mine, theirs);
  // Both passes together play two kernels twice for each row.
  const affordable = Math.floor(MAX_CAUSE_COMMANDS / Math.max(1, 4 * rows.length));
  const explained = differences.filter(({ place }) => place.seen_at <= affordable);
  for (const difference of explained) difference.causes = [];
  for (const row of rows) {
    const bent = { ...b, behaviours: { ...b.behaviours, [row]: mine[row] } };
    const seen = yield* differencesAt(recording, [a, bent], explained, known);
    for (const { place, aspect, causes } of explained)
      if (order(place) < seen.strays && !seen.there.has(spotOf(place, aspect)))
        causes?.push({ behaviour: row, proof: 'removes' });
  }
  const unexplained = explained.filter(({ causes }) => causes?.length === 0);
  if (unexplained.length === 0) return;
  for (const row of rows) {
    const bent = { ...a, behaviours: { ...a.behaviours, [row]: theirs[row] } };
    const seen = yield* differencesAt(recording, [a, bent], unexplained, known);
    for (const { place, aspect, causes } of unexplained)
      if (order(place) < seen.strays && seen.there.has(spotOf(place, aspect)))
        causes?.push({ behaviour: row, proof: 'creates' });
  }
}

/** What differs at the places of the given differences. Where no kernel can have that row with the others, nothing is proved. */
function* differencesAt(
  recording: Recording,
  kernels: readonly [Kernel, Kernel],
  differences: readonly Explained[],
  known: ReadonlySet<string>,
): Generator<void, Bent> {
  const bent: Bent = { there: new Set(), strays: Number.POSITIVE_INFINITY };
  const until = Math.max(0, ...differences.map(({ place }) => place.seen_at));
  const work = lockstep(recording, kernels, until, (place, { aspect }) => {
    const spot = spotOf(place, aspect);
    bent.there.add(spot);
    if (!known.has(spot)) bent.strays = Math.min(bent.strays, order(place));
  });
  for (;;) {
    try {
      if (work.next().done === true) return bent;
    } catch {
      return { ...bent, strays: -1 };
    }
    yield;
  }
}
