// Compares a machine's own answers with the recorded ones, place by place.

import type { Answer, AnswerEvent, State, Trace } from './trace.ts';

/** A place where answers differ. */
export interface Difference {
  /** What differs: 'ret', 'pages', 'events', 'state.mappings', ... */
  place: string;
  expected: unknown;
  got: unknown;
}

export interface Comparison {
  differences: Difference[];
  /** Places that are compared loosely (README of the recorded traces, section 6), and how many of them differ. */
  loose: { compared: number; differing: number };
}

/** Compares the answers to one operation of a trace. `got` is complete: nothing of it follows from `expected`. */
export function compareAnswers(expected: Answer, got: Answer, trace: Trace): Comparison {
  const result: Comparison = { differences: [], loose: { compared: 0, differing: 0 } };
  compareCall(result, expected, got, '');
  if (expected.state !== undefined && got.state !== undefined) {
    const states = compareStates(expected.state, got.state, trace, result);
    // After a call that never returned, the state is what the dying call left behind: no real caller can read it.
    if (expected.ret === null) countLoose(result, states.length > 0);
    else result.differences.push(...states);
  }
  if (!dependsOnTreeShape(trace)) return result;
  countLoose(result, result.differences.length > 0);
  return { ...result, differences: [] };
}

function countLoose(result: Comparison, differs: boolean): void {
  result.loose.compared++;
  if (differs) result.loose.differing++;
}

/** Mappings that end at 2^64 are found or not found depending on the shape of the tree, up to 6.17. */
const dependsOnTreeShape = ({ era, features }: Trace): boolean => era !== '6.18' && features.includes('top-of-space');

/** The IOMMU path takes and drops look-ahead references; each drop marks the page dirty. */
const hasLooseDirty = ({ features }: Trace): boolean => features.includes('iommu-domain');

/** References of reserved pages and of the zero page are leaked or returned in ways that no caller sees. */
const hasLoosePins = ({ memory_model }: Trace, id: number): boolean => {
  const kind = memory_model.pages.kinds[String(id)];
  return kind === 'reserved' || kind === 'zero';
};

function compareCall(result: Comparison, expected: Answer, got: Answer, at: string): void {
  const { differences } = result;
  if (expected.ret !== got.ret) differences.push({ place: `${at}ret`, expected: expected.ret, got: got.ret });
  for (const field of new Set([...Object.keys(expected.out), ...Object.keys(got.out)])) {
    const [want, have] = [expected.out[field], got.out[field]];
    const same = field === 'pages' ? sameSlots(want, have) : equal(want, have);
    if (!same) differences.push({ place: `${at}${field}`, expected: want, got: have });
  }
  const outlines = [expected.events.map(outlineOf), got.events.map(outlineOf)];
  if (!equal(outlines[0], outlines[1]))
    differences.push({ place: `${at}events`, expected: outlines[0], got: outlines[1] });
  for (const [k, event] of expected.events.entries()) {
    const own = got.events[k];
    if (!('calls' in event) || own === undefined || !('calls' in own)) continue;
    for (const [j, call] of event.calls.entries()) {
      const mine = own.calls[j];
      if (call.answer === null || mine?.answer == null) continue;
      compareCall(result, call.answer, mine.answer, `${at}call ${call.op}: `);
    }
  }
}

/** Output arrays start as zeros, so a shorter one means zeros after its end. */
function sameSlots(want: unknown, have: unknown): boolean {
  const [a, b] = [want ?? [], have ?? []] as [number[], number[]];
  return Array.from({ length: Math.max(a.length, b.length) }, (_, i) => (a[i] ?? 0) === (b[i] ?? 0)).every(Boolean);
}

/** An event without the calls made inside it. */
function outlineOf(event: AnswerEvent): unknown {
  if (!('calls' in event)) return event;
  const { calls: _, ...outline } = event;
  return outline;
}

function compareStates(expected: State, got: State, trace: Trace, result: Comparison): Difference[] {
  const differences: Difference[] = [];
  const parts: (keyof State)[] = ['mappings', 'locked_vm', 'dma_avail', 'listeners', 'dirty_tracking'];
  for (const part of parts)
    if (!equal(expected[part], got[part]))
      differences.push({ place: `state.${part}`, expected: expected[part], got: got[part] });
  const pages = [expected.pages, got.pages].map((list) => new Map(list.map((page) => [page[0], page])));
  for (const id of new Set([...expected.pages, ...got.pages].map((page) => page[0]))) {
    const [want, have] = pages.map((map) => map.get(id) ?? [id, 0, 0]) as [State['pages'][0], State['pages'][0]];
    const [pins, dirty] = [want[1] !== have[1], want[2] !== have[2]];
    const [loosePins, looseDirty] = [hasLoosePins(trace, id), hasLooseDirty(trace)];
    if (loosePins) countLoose(result, pins);
    if (looseDirty) countLoose(result, dirty);
    if ((pins && !loosePins) || (dirty && !looseDirty))
      differences.push({ place: 'state.pages', expected: want, got: have });
  }
  return differences;
}

/** Deep equality of JSON values; a field that is undefined is absent. */
export function equal(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) !== Array.isArray(b)) return false;
  const keys = new Set([...Object.keys(a), ...Object.keys(b)]);
  const [x, y] = [a as Record<string, unknown>, b as Record<string, unknown>];
  for (const key of keys) if (!equal(x[key], y[key])) return false;
  return true;
}
