// What differs between two observations of one command: each difference with the aspect that it is about and both answers.

import { hex } from '../../kernel/lib/u64.ts';
import type { Fields, Value } from '../../kernel/outcome.ts';
import type { Called, Observation, Splat } from './observation.ts';

export type Kind = 'refusal' | 'return-value' | 'field' | 'wait' | 'splat' | 'notification' | 'state';

export interface Found {
  kind: Kind;
  /** What a cause has to remove: the same for all differences of one place that are about the same thing. */
  aspect: string;
  /** The kind in detail: of all with the same name the first is shown. {0} and {1} stand for the two kernels. */
  name: string;
  answers: [Fields, Fields];
}

/** How a command ended, in one word: `ok`, an errno, `waits`. */
const endOf = ({ state, errno }: Observation): string => (state === 'waits' ? 'waits' : (errno ?? 'ok'));

/** Fields that say what is compared elsewhere: the calls of an unmap, warnings that are splats too; and the profile itself. */
const COMPARED_ELSEWHERE: ReadonlySet<string> = new Set(['notifications', 'warnings', 'profile']);

/** Everything that a caller sees to differ. Nothing where one of the two was left out: that is said apart. */
export function* differencesOf(op: string, a: Observation, b: Observation): Generator<Found> {
  if (a.state === 'left-out' || b.state === 'left-out') return;
  const [first, second] = [endOf(a), endOf(b)];
  if (first !== second) {
    const answers: [Fields, Fields] = [wholeAnswer(a), wholeAnswer(b)];
    yield { kind: 'refusal', aspect: `${op} result`, name: `${op}: ${first} / ${second}`, answers };
  } else {
    yield* fieldDifferences(op, a, b);
  }
  // An unmap waits for whom it calls, which is compared below.
  const sameCalls = (a.called.length === 0) === (b.called.length === 0);
  if (a.parked !== b.parked && first === second && sameCalls)
    yield {
      kind: 'wait',
      aspect: `${op} wait`,
      name: `${op}: ${a.parked ? 'waits' : 'does not wait'} / ${b.parked ? 'waits' : 'does not wait'}`,
      answers: [
        { waited: a.parked, ...wholeAnswer(a) },
        { waited: b.parked, ...wholeAnswer(b) },
      ],
    };
  yield* splatDifferences(op, a.splats, b.splats);
  yield* callDifferences(op, a.called, b.called);
}

function wholeAnswer({ state, ret, errno, detail, at_index, fields }: Observation): Fields {
  if (state === 'waits') return { waits: true };
  return {
    ret,
    ...(errno === null ? {} : { errno, detail: detail ?? '' }),
    ...(at_index === null ? {} : { at_index }),
    ...fields,
  };
}

function* fieldDifferences(op: string, a: Observation, b: Observation): Generator<Found> {
  const head = ({ ret, errno, detail }: Observation): Fields => ({
    ret,
    ...(errno === null ? {} : { errno, detail: detail ?? '' }),
  });
  if (a.ret !== b.ret)
    yield { kind: 'return-value', aspect: `${op} ret`, name: `${op}: ret`, answers: [wholeAnswer(a), wholeAnswer(b)] };
  const [first, second]: Fields[] = [a, b].map(({ at_index, fields }) => ({ at_index, ...fields }));
  for (const field of new Set([...Object.keys(first as Fields), ...Object.keys(second as Fields)])) {
    if (COMPARED_ELSEWHERE.has(field)) continue;
    const values = [first?.[field] ?? null, second?.[field] ?? null] as const;
    if (isEqual(values[0], values[1])) continue;
    yield {
      kind: 'field',
      aspect: `${op} field ${field}`,
      name: `${op}: ${field}`,
      answers: [
        { ...head(a), [field]: values[0] },
        { ...head(b), [field]: values[1] },
      ],
    };
  }
}

export function isEqual(a: Value, b: Value): boolean {
  if (a === b || typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return a === b;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const [left, right] = [a as Fields, b as Fields];
  const keys = Object.keys(left);
  return (
    keys.length === Object.keys(right).length &&
    keys.every((key) => key in right && isEqual(left[key] as Value, right[key] as Value))
  );
}

const nameOf = ({ kind, where, label }: Splat): string => `${kind} ${label ?? `at ${where}`}`;

/** Splats that one kernel prints and the other does not, each name as often as it has more of them. */
function* splatDifferences(op: string, a: readonly Splat[], b: readonly Splat[]): Generator<Found> {
  if (a.length === 0 && b.length === 0) return;
  for (const name of new Set([...a, ...b].map(nameOf))) {
    const [mine, theirs] = [a, b].map((splats) => splats.filter((splat) => nameOf(splat) === name)) as [
      Splat[],
      Splat[],
    ];
    if (mine.length === theirs.length) continue;
    const shown = (splats: Splat[]): Fields => ({
      splats: splats.length,
      ...(splats[0] === undefined ? {} : { kind: splats[0].kind, where: splats[0].where, text: splats[0].text }),
    });
    const which = mine.length > theirs.length ? '{0}' : '{1}';
    yield {
      kind: 'splat',
      aspect: `${op} splat ${name}`,
      name: `${op}: ${name}, ${mine.length > 0 && theirs.length > 0 ? 'more' : 'only'} in ${which}`,
      answers: [shown(mine), shown(theirs)],
    };
  }
}

const callName = ({ device, notifier, iova, size, attempt }: Called): string =>
  `${device} ${notifier} ${hex(iova)} ${hex(size)} ${attempt}`;

/** Calls of listeners: missing ones, or others in order. */
function* callDifferences(op: string, a: readonly Called[], b: readonly Called[]): Generator<Found> {
  const [first, second] = [a.map(callName), b.map(callName)];
  if (first.length === second.length && first.every((name, i) => name === second[i])) return;
  const isReordered = first.length === second.length && [...first].sort().join() === [...second].sort().join();
  const what = isReordered
    ? 'in another order'
    : first.length === 0
      ? 'only in {1}'
      : second.length === 0
        ? 'only in {0}'
        : first.length === second.length
          ? 'of other mappings'
          : `${first.length > second.length ? 'more' : 'less'} in {0}`;
  const shown = (calls: readonly Called[]): Fields => ({
    notifications: calls.length,
    calls: calls.map((call) => ({ ...call })),
  });
  yield {
    kind: 'notification',
    aspect: `${op} notifications`,
    name: `${op}: notifications ${what}`,
    answers: [shown(a), shown(b)],
  };
}
