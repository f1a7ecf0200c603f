// Compares a machine's own answers about mmu notifiers with the recorded ones, place by place.

import { type Comparison, equal } from '../compare.ts';
import type { Answer, AnswerEvent } from './trace.ts';

/** Compares the answers to one operation of a trace. `got` is complete: nothing of it follows from `expected`. */
export function compareMmuAnswers(expected: Answer, got: Answer): Comparison {
  const result: Comparison = { differences: [], loose: { compared: 0, differing: 0 } };
  compareCall(result, expected, got, '');
  if (expected.state === undefined || got.state === undefined) return result;
  const [want, have] = [expected.state, got.state] as [Record<string, unknown>, Record<string, unknown>];
  const before = result.differences.length;
  for (const part of new Set([...Object.keys(want), ...Object.keys(have)]))
    if (!equal(want[part], have[part]))
      result.differences.push({ place: `state.${part}`, expected: want[part], got: have[part] });
  if (expected.ret !== null) return result;
  // After a call that never returned, the state is what the dying call left behind: no real caller can read it.
  const states = result.differences.splice(before);
  countLoose(result, states.length > 0);
  return result;
}

function countLoose({ loose }: Comparison, differs: boolean): void {
  loose.compared++;
  if (differs) loose.differing++;
}

function compareCall(result: Comparison, expected: Answer, got: Answer, at: string): void {
  const { differences } = result;
  for (const field of ['ret', 'seq', 'notifier'] as const)
    if (expected[field] !== got[field])
      differences.push({ place: `${at}${field}`, expected: expected[field], got: got[field] });
  const [want, have] = [expected.events, got.events].map((events) => withoutVainWaits(events)) as [
    AnswerEvent[],
    AnswerEvent[],
  ];
  if (want.length < expected.events.length || have.length < got.events.length)
    countLoose(result, expected.events.length !== got.events.length);
  const outlines = [want.map(outlineOf), have.map(outlineOf)];
  if (!equal(outlines[0], outlines[1]))
    differences.push({ place: `${at}events`, expected: outlines[0], got: outlines[1] });
  for (const [k, event] of want.entries()) {
    const own = have[k];
    if (!('calls' in event) || own === undefined || !('calls' in own)) continue;
    if (event.calls.length !== own.calls.length)
      differences.push({ place: `${at}calls`, expected: event.calls.length, got: own.calls.length });
    for (const [j, call] of event.calls.entries()) {
      const mine = own.calls[j];
      if (mine !== undefined) compareCall(result, call.answer, mine.answer, `${at}call ${call.op}: `);
    }
  }
}

/**
 * A deadlock is recorded when nobody is left to wake the sleeper, and refused by the emulated host when it arises: the waits
 * before it are nobody's but the recorder's.
 */
const withoutVainWaits = (events: AnswerEvent[]): AnswerEvent[] =>
  events.at(-1)?.type === 'DEADLOCK' ? events.filter(({ type }) => type !== 'wait') : events;

/** An event without the calls made inside it. */
function outlineOf(event: AnswerEvent): unknown {
  if (!('calls' in event)) return event;
  const { calls: _, ...outline } = event;
  return outline;
}
