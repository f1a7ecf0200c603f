// The recorded traces of the mmu notifiers agree in process and over HTTP; the runner finds planted differences and refuses malformed files.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { main } from '../../src/cli/conformance/main.ts';
import { MmuInProcess } from '../../src/cli/conformance/mmu/in-process.ts';
import { replayMmu } from '../../src/cli/conformance/mmu/replay.ts';
import { readMmuTraces } from '../../src/cli/conformance/mmu/trace-reader.ts';

t.setTimeout(120_000);

const TRACES = join(import.meta.dirname, '../data/mmu-notifier/mmu-notifier-5.15.jsonl.gz');

// biome-ignore lint/suspicious/noExplicitAny: a recorded trace is taken apart to be damaged
type Json = any;

const parsed: Json[] = gunzipSync(readFileSync(TRACES))
  .toString()
  .trimEnd()
  .split('\n')
  .map((line) => JSON.parse(line));

async function run(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  const out: string[] = [];
  const err: string[] = [];
  const code = await main(
    argv,
    (text) => out.push(text),
    (text) => err.push(text),
  );
  return { code, out: out.join('\n'), err: err.join('\n') };
}

function file(t: Test, name: string, traces: Json[]): string {
  const path = join(t.testdirName, name);
  writeFileSync(path, traces.map((trace) => `${JSON.stringify(trace)}\n`).join(''));
  return path;
}

t.test('replay: all traces of the mmu notifiers of 5.15 agree in process', async (t) => {
  const { code, out } = await run(TRACES, '--in-process');
  t.match(out, /\n134 of 134 traces agree, \d+ operations compared$/);
  t.notMatch(out, /DIFFERENCE|skipped|left out/);
  t.equal(code, 0);
});

t.test('replay: traces of every feature of the mmu notifiers agree over HTTP', async (t) => {
  const { code, out } = await run(TRACES, '--http', '--limit', '40');
  t.match(out, /\n40 of 40 traces agree, \d+ operations compared$/);
  for (const feature of ['none', 'insert-in-callback', 'eagain-with-intervals', 'mm-release', 'self-deadlock'])
    t.match(out, new RegExp(`^${feature} .*100\\.0 %$`, 'm'), feature);
  t.notMatch(out, /DIFFERENCE|left out/);
  t.equal(code, 0);
});

/** Makes everything wrong that was recorded of an operation, but for what callbacks and other threads did. */
function falsify({ expect }: Json): void {
  expect.ret = 12345;
  if (expect.seq !== undefined) expect.seq = 777;
  if (expect.notifier !== undefined) expect.notifier = 'N77';
  if (expect.state !== undefined) expect.state = { mm_count: 77, subscriptions: false, users: {} };
  for (const event of expect.events) {
    if (event.type === 'callback') Object.assign(event, { target: 'N77', start: '0x7000', end: '0x8000', seq: 777 });
    for (const call of event.calls ?? []) falsify(call);
  }
}

t.test('replay: its answers do not depend on what was recorded', async (t) => {
  t.testdir();
  for (const trace of parsed.slice(0, 40)) {
    const falsified = structuredClone(trace);
    falsified.ops.forEach(falsify);
    const [one, two] = [...readMmuTraces(file(t, 'falsified.jsonl', [trace, falsified]))];
    if (one === undefined || two === undefined) throw new Error('two traces were written');
    const [own, other] = [
      await replayMmu(new MmuInProcess(), one.trace),
      await replayMmu(new MmuInProcess(), two.trace),
    ];
    t.equal(own.answers.length, trace.ops.length);
    t.same(other, own, `seed ${trace.seed}`);
  }
});

const set = (object: Json, field: string, value: unknown): void => void Object.assign(object, { [field]: value });

/** Changes that the runner must find, each with the place it must name. */
const PLANTED: [string, (op: Json) => boolean, (op: Json) => void, RegExp][] = [
  ['ret', ({ op }) => op === 'read_retry', ({ expect }) => set(expect, 'ret', 2), /read_retry: ret/],
  ['errno', ({ expect }) => expect.ret === -75, ({ expect }) => set(expect, 'ret', -22), /interval_insert: ret/],
  ['a sequence', ({ op }) => op === 'read_begin', ({ expect }) => void expect.seq++, /read_begin: seq/],
  [
    'the object that get returns',
    ({ expect }) => expect.notifier === 'N8',
    ({ expect }) => set(expect, 'notifier', 'N9'),
    /get: notifier/,
  ],
  [
    'order of callbacks',
    ({ expect }) => expect.events.length === 2 && expect.events[0].target !== expect.events[1].target,
    ({ expect }) => void expect.events.reverse(),
    /: events/,
  ],
  [
    'what a callback is told',
    ({ expect }) => expect.events[0]?.callback === 'invalidate',
    ({ expect }) => void expect.events[0].seq++,
    /invalidate_start: events/,
  ],
  [
    'a missing WARN',
    ({ expect }) => expect.events.some(({ type }: Json) => type === 'WARN'),
    ({ expect }) =>
      set(
        expect,
        'events',
        expect.events.filter(({ type }: Json) => type !== 'WARN'),
      ),
    /: events/,
  ],
  [
    'an answer inside a callback',
    ({ expect }) => expect.events[0]?.calls?.[0]?.op === 'set_seq',
    ({ expect }) => set(expect.events[0].calls[0].expect, 'ret', 1),
    /: call set_seq: ret/,
  ],
  [
    'a call that returned',
    ({ op }) => op === 'invalidate_end',
    ({ expect }) => set(expect, 'ret', null),
    /invalidate_end: ret/,
  ],
  ...(
    [
      ['mm_count', (state: Json) => void state.mm_count++],
      ['seq', (state: Json) => void state.seq++],
      ['active_ranges', (state: Json) => void state.active_ranges++],
      ['listeners', (state: Json) => void state.listeners.push('N5')],
      ['intervals', (state: Json) => void state.intervals.push('I7')],
      ['deferred', (state: Json) => void state.deferred.push('I7')],
      ['interval_seq', (state: Json) => set(state.interval_seq, 'I7', 1)],
      ['users', (state: Json) => set(state.users, 'N11', 9)],
      ['has_intervals', (state: Json) => set(state, 'has_intervals', !state.has_intervals)],
    ] as const
  ).map(([part, plant]): (typeof PLANTED)[number] => [
    `state.${part}`,
    ({ expect }) => expect.state?.subscriptions === true && expect.state.intervals.length < 3,
    ({ expect }) => plant(expect.state),
    new RegExp(`: state\\.${part}`),
  ]),
];

t.test('runner: every planted difference is found and exits 1', async (t) => {
  t.testdir();
  for (const [what, wanted, plant, found] of PLANTED) {
    const source = parsed.find((trace) => trace.ops.some(wanted));
    const trace = structuredClone(source);
    plant(trace.ops.find(wanted));
    const { code, out } = await run(file(t, 'planted.jsonl', [trace]), '--in-process');
    t.match(out, new RegExp(`DIFFERENCE \\w*${found.source}`), what);
    t.equal(code, 1, what);
  }
});

const MALFORMED: [string, (trace: Json) => void, RegExp][] = [
  ['an unknown operation', (trace) => set(trace.ops[0], 'op', 'migrate'), /ops\[0\]\/op: no operation 'migrate'/],
  ['an unknown argument', (trace) => set(trace.ops[0].args, 'x', 1), /ops\[0\]\/args/],
  ['an event of no known type', (trace) => set(trace.ops[0].expect, 'events', [{ type: 'x' }]), /ops\[0\]\/expect/],
  ['no model', (trace) => void delete trace.model, /model/],
];

t.test('runner: a malformed trace is refused with its place and exits 2', async (t) => {
  t.testdir();
  for (const [what, damage, problem] of MALFORMED) {
    const trace = structuredClone(parsed[0]);
    damage(trace);
    const { code, err } = await run(file(t, 'malformed.jsonl', [parsed[1], trace]), '--in-process');
    t.match(err, /malformed\.jsonl:2: /, what);
    t.match(err, problem, what);
    t.equal(code, 2, what);
  }
});
