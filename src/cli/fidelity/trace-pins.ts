// Measures which recorded traces pin a behaviour: those that no longer agree when its row gets another value.

import type { Profile } from '../../kernel/profile.ts';
import { compareAnswers } from '../conformance/compare.ts';
import { InProcess } from '../conformance/in-process.ts';
import { replay } from '../conformance/replay.ts';
import type { RecordedTrace } from '../conformance/trace.ts';
import { bent, otherValues, type Table, watched } from './rows.ts';

/** One row in one profile. */
export interface Pin {
  /** Traces that disagree when the row has at least one of the values that it has elsewhere. */
  traces: number;
  /** The same for each of those values, by its text. */
  against: Record<string, number>;
}

/** Rows and profiles without recorded traces are not in it. */
export interface TracePins {
  /** Recorded traces of each profile. */
  traces: Record<string, number>;
  rows: Record<string, Record<string, Pin>>;
}

/**
 * Whether a trace agrees with a host whose profile is changed; stops at the first difference. `from` is the operation
 * before which nothing can differ; `done` is told of each that agrees.
 */
export async function agrees(
  { trace, recorded }: RecordedTrace,
  bend: (profile: Profile) => Profile,
  from = 0,
  done: () => void = () => {},
): Promise<boolean> {
  let differs = false;
  try {
    const { answers, stopped } = await replay(new InProcess(bend), trace, {
      inState: (i) => i >= from,
      inMore: (own, i) => {
        const expected = recorded.answers[i];
        if (i >= from && own !== null && expected !== undefined)
          differs = compareAnswers(expected, own, trace).differences.length > 0;
        done();
        return !differs;
      },
    });
    return !differs && stopped === null && answers.length === trace.ops.length;
  } catch {
    // A host with a value that does not fit its other ones: its layout is refused, or it breaks.
    return false;
  }
}

/** For each row that a replay asks for, the operation in which it does so first. Throws if the trace does not agree. */
async function rowsAskedFor(recorded: RecordedTrace): Promise<Map<string, number>> {
  const asked = new Map<string, number>();
  let op = 0;
  const note = (row: string): void => {
    if (!asked.has(row)) asked.set(row, op);
  };
  const agree = await agrees(
    recorded,
    (profile) => watched(profile, note),
    0,
    () => op++,
  );
  if (agree) return asked;
  const { file, line } = recorded.trace;
  throw new Error(`${file}:${line}: this trace does not agree, see npm run conformance`);
}

/**
 * Measures all rows of a table on traces. Only a row that a replay asks for can change it, so only these are changed.
 * Throws if a trace does not agree as it is: there would be nothing to measure against.
 */
export async function tracePins(recordings: Iterable<RecordedTrace>, table: Table): Promise<TracePins> {
  const pins: TracePins = { traces: {}, rows: {} };
  for (const recorded of recordings) {
    const { era } = recorded.trace;
    const asked = await rowsAskedFor(recorded);
    pins.traces[era] = (pins.traces[era] ?? 0) + 1;
    for (const [row, behaviour] of Object.entries(table)) {
      const pin = pinOf(pins, row, era);
      let pinned = false;
      for (const [text, value] of otherValues(behaviour, era)) {
        const from = asked.get(row);
        const disagrees = from !== undefined && !(await agrees(recorded, (profile) => bent(profile, row, value), from));
        pin.against[text] = (pin.against[text] ?? 0) + (disagrees ? 1 : 0);
        pinned ||= disagrees;
      }
      if (pinned) pin.traces++;
    }
  }
  return pins;
}

function pinOf({ rows }: TracePins, row: string, era: string): Pin {
  rows[row] ??= {};
  rows[row][era] ??= { traces: 0, against: {} };
  return rows[row][era];
}

/** Measurements of disjoint sets of traces as one. */
export function addPins(parts: TracePins[]): TracePins {
  const sum: TracePins = { traces: {}, rows: {} };
  for (const { traces, rows } of parts) {
    for (const [era, count] of Object.entries(traces)) sum.traces[era] = (sum.traces[era] ?? 0) + count;
    for (const [row, eras] of Object.entries(rows))
      for (const [era, { traces: some, against }] of Object.entries(eras)) {
        const pin = pinOf(sum, row, era);
        pin.traces += some;
        for (const [text, count] of Object.entries(against)) pin.against[text] = (pin.against[text] ?? 0) + count;
      }
  }
  return sum;
}
