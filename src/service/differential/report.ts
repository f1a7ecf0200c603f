// What a differential run says: of each pair of kernels the first difference of each kind, and what had to be said otherwise.

import type { Fields, Value } from '../../kernel/outcome.ts';
import { BEHAVIOURS } from '../../kernel/profile.ts';
import { MAX_SHOWN_DIFFERENCES, MAX_SHOWN_ENTRIES, MAX_SHOWN_TEXT } from '../limits.ts';
import { behavesAs, type Cause, type Explained } from './causes.ts';
import type { Found, Kind } from './compare.ts';
import type { Rule } from './improvise.ts';
import { itemAt, type Kernel, type Plan } from './item.ts';
import type { Place } from './lockstep.ts';
import type { Note, Player } from './player.ts';

/** The first difference of its name, and how often there is one. */
export interface First extends Explained {
  kind: Kind;
  name: string;
  answers: [Fields, Fields];
  times: number;
}

export interface Report {
  /** Kernel that the commands were written for. */
  written_for: string;
  profiles: string[];
  commands: number;
  equal: boolean;
  comparisons: Comparison[];
}

export type Comparison = Fields & { profiles: string[]; equal: boolean; differences: Fields[] };

/** Collects differences: the first of each name, in the order of the commands. */
export class Firsts {
  private readonly byName = new Map<string, First>();

  add(place: Place, { kind, aspect, name, answers }: Found): void {
    const known = this.byName.get(name);
    if (known === undefined)
      this.byName.set(name, {
        kind,
        aspect,
        name,
        place,
        answers: [clipped(answers[0]), clipped(answers[1])],
        times: 1,
        causes: null,
      });
    else {
      known.times++;
      // An operation that ends late may be the earlier command.
      if (order(place) >= order(known.place)) return;
      Object.assign(known, { place, aspect, answers: [clipped(answers[0]), clipped(answers[1])] });
    }
  }

  inOrder(): First[] {
    return [...this.byName.values()].sort((a, b) => order(a.place) - order(b.place));
  }
}

const order = ({ position }: Place): number => position ?? Number.POSITIVE_INFINITY;

/** A copy without the ends of long lists and texts, which says how long they are. */
function clip(value: Value): Value {
  if (typeof value === 'string')
    return value.length > MAX_SHOWN_TEXT ? `${value.slice(0, MAX_SHOWN_TEXT)}... (${value.length} characters)` : value;
  if (Array.isArray(value)) {
    const shown = value.slice(0, MAX_SHOWN_ENTRIES).map(clip);
    return value.length > MAX_SHOWN_ENTRIES ? [...shown, `... (${value.length} entries)`] : shown;
  }
  if (typeof value !== 'object' || value === null) return value;
  return clipped(value);
}

function clipped(fields: Fields): Fields {
  const copy: Fields = {};
  for (const [key, value] of Object.entries(fields)) if (value !== undefined) copy[key] = clip(value);
  return copy;
}

const RULES: Record<Rule, string> = {
  'as-always':
    'a handler call that was not recorded: unpins all that its device has pinned in the range, as the listener always did',
  'as-before':
    'a handler call that was not recorded: answered as the same listener answered the call that is most like it',
  'not-recorded': 'a handler call like none that was recorded: answered NOTIFY_DONE, nothing unpinned',
  'left-waiting': 'too many handler calls that were not recorded: left without an answer',
};

const showCause = (plan: Plan, kernels: readonly [Kernel, Kernel], { behaviour, proof }: Cause): Fields => ({
  behaviour,
  meaning: BEHAVIOURS[behaviour].meaning,
  values: kernels.map((kernel) => behavesAs(plan, kernel)[behaviour] as Value),
  proof,
});

function showDifference(
  plan: Plan,
  kernels: readonly [Kernel, Kernel],
  { kind, name, place, answers, times, causes }: First,
): Fields {
  const item = place.position === null || place.position === 0 ? null : itemAt(plan, place.position);
  return {
    kind,
    name: name.replace('{0}', kernels[0].profile).replace('{1}', kernels[1].profile),
    position: place.position,
    command: item === null ? null : clipped({ ...item.command } as unknown as Fields),
    notification: item?.notification ?? null,
    answers,
    times,
    causes: causes?.map((cause) => showCause(plan, kernels, cause)) ?? null,
  };
}

const showNotes = (plan: Plan, profile: string, notes: ReadonlyMap<string, Note>): Fields[] =>
  [...notes].map(([what, { position, times }]) => ({
    profile,
    what,
    position,
    command: clipped({ ...itemAt(plan, position).command } as unknown as Fields),
    times,
  }));

/** What one pair of kernels makes of the commands. */
export function comparisonOf(
  plan: Plan,
  kernels: readonly [Kernel, Kernel],
  players: readonly [Player, Player],
  differences: readonly First[],
): Comparison {
  const named = kernels.map(({ profile }, i) => ({ profile, player: players[i] as Player }));
  const shown = differences.slice(0, MAX_SHOWN_DIFFERENCES);
  return {
    profiles: kernels.map(({ profile }) => profile),
    equal: differences.length === 0,
    differences: shown.map((difference) => showDifference(plan, kernels, difference)),
    ...(shown.length < differences.length ? { truncated: true } : {}),
    translated: named.flatMap(({ profile, player }) => showNotes(plan, profile, player.translated)),
    left_out: named.flatMap(({ profile, player }) => showNotes(plan, profile, player.leftOut)),
    handlers: named.flatMap(({ profile, player }) =>
      [...player.rules].map(([rule, { position, times, call }]) => {
        const { device, notifier, iova, size, attempt } = call;
        return { profile, rule, what: RULES[rule], position, call: { device, notifier, iova, size, attempt }, times };
      }),
    ),
  };
}
