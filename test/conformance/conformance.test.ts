// All recorded traces agree in process, and of every era and feature some over HTTP; the runner finds planted differences and refuses malformed files.

import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync, gzipSync } from 'node:zlib';
import t, { type Test } from 'tap';
import { InProcess } from '../../src/cli/conformance/in-process.ts';
import { main } from '../../src/cli/conformance/main.ts';
import { replay } from '../../src/cli/conformance/replay.ts';
import { select } from '../../src/cli/conformance/select.ts';
import { readTraces } from '../../src/cli/conformance/trace-reader.ts';

t.setTimeout(240_000);

const DATA = join(import.meta.dirname, '../data/type1');
const PLAIN = join(DATA, 'type1-5.15.jsonl.gz');
const files = readdirSync(DATA)
  .filter((name) => name.endsWith('.gz'))
  .map((name) => join(DATA, name));
/** As many traces as two busy cores replay over HTTP in half a minute; `--all --http` replays them all. */
const OVER_HTTP = 240;

interface Run {
  code: number;
  out: string;
  err: string;
}

async function run(...argv: string[]): Promise<Run> {
  const out: string[] = [];
  const err: string[] = [];
  const code = await main(
    argv,
    (text) => out.push(text),
    (text) => err.push(text),
  );
  return { code, out: out.join('\n'), err: err.join('\n') };
}

// biome-ignore lint/suspicious/noExplicitAny: a recorded trace is taken apart to be damaged
type Json = any;

const lines = gunzipSync(readFileSync(PLAIN)).toString().trimEnd().split('\n');
const parsed: Json[] = lines.map((line) => JSON.parse(line));

/** Writes traces to a file of the test's directory. */
function file(t: Test, name: string, content: string): string {
  const path = join(t.testdirName, name);
  writeFileSync(path, name.endsWith('.gz') ? gzipSync(content) : content);
  return path;
}

/** The first operation for which `wanted` holds, with its trace: a copy that can be changed. */
function copyOf(wanted: (op: Json, trace: Json) => boolean): { trace: Json; op: Json; i: number } {
  for (const trace of parsed) {
    const i = trace.ops.findIndex((op: Json) => wanted(op, trace));
    if (i < 0) continue;
    const copy = structuredClone(trace);
    return { trace: copy, op: copy.ops[i], i };
  }
  throw new Error('no such operation in the traces');
}

t.test('replay: all traces of all eras, with every feature, agree in process', async (t) => {
  const { code, out } = await run();
  t.match(out, /^== in process ==/);
  t.match(out, /\n635 of 635 traces agree, 25767 operations compared$/);
  for (const [era, traces] of Object.entries({ '4.10': 167, '5.15': 301, '6.18': 167 }))
    t.match(out, new RegExp(`\\n${era.replace('.', '\\.')} +${traces} +${traces} +100\\.0 %\\n`), era);
  t.notMatch(out, /DIFFERENCE|skipped/);
  t.match(out, /left out, not expressible, pin_pages with a null device pointer: 12\n/);
  t.match(out, /compared loosely: 21020 places, 5 of them differ/);
  t.equal(code, 0);
});

t.test('replay: the first traces of every era and set of features agree over HTTP', async (t) => {
  const { code, out } = await run('--http', '--limit', String(OVER_HTTP));
  t.match(out, new RegExp(`\\n${OVER_HTTP} of ${OVER_HTTP} traces agree, \\d+ operations compared$`));
  t.match(out, `skipped, --limit: ${635 - OVER_HTTP} traces\n`);
  t.notMatch(out, /DIFFERENCE/);
  const features = new Set(files.flatMap((path) => [...readTraces(path)].flatMap(({ trace }) => trace.features)));
  for (const feature of features) t.match(out, new RegExp(`\\n${feature} +\\d+ +\\d+ +100\\.0 %`), feature);
  t.equal(code, 0);
});

/** Makes everything wrong that was recorded of an operation, but for what a listener did. */
function falsify({ expect }: Json): void {
  const { events } = expect;
  for (const field of Object.keys(expect)) delete expect[field];
  Object.assign(expect, { ret: 12345, size: '0x7', pages: [7, 7, 7], events });
  expect.state = { mappings: [], locked_vm: {}, pages: [[7, 7, 1]], dma_avail: 7 };
  for (const event of events) {
    if (event.type === 'notify') Object.assign(event, { listener: 'L7', iova: '0x7', size: '0x7' });
    for (const call of event.calls ?? []) falsify(call);
  }
}

t.test('replay: its answers do not depend on what was recorded', async (t) => {
  t.testdir();
  for (const trace of parsed.slice(0, 20)) {
    const falsified = structuredClone(trace);
    falsified.ops.forEach(falsify);
    const path = file(t, 'falsified.jsonl', `${JSON.stringify(trace)}\n${JSON.stringify(falsified)}\n`);
    const [true_, false_] = [...readTraces(path)];
    if (true_ === undefined || false_ === undefined) throw new Error('two traces were written');
    const [one, two] = [await replay(new InProcess(), true_.trace), await replay(new InProcess(), false_.trace)];
    t.equal(one.stopped, null);
    t.equal(one.answers.length, trace.ops.length);
    t.same(two, one, `seed ${trace.seed}`);
  }
});

/** Changes that the runner must find, each with the place it must name. */
const PLANTED: [string, (op: Json) => boolean, (op: Json) => void, RegExp][] = [
  [
    'ret',
    (op) => op.op === 'map_dma' && op.expect.ret === 0,
    (op) => {
      op.expect.ret = -22;
    },
    /DIFFERENCE map_dma: ret .*\n {2}args .*\n {2}expected -22\n {2}got {6}0/,
  ],
  [
    'another errno',
    (op) => op.expect.err === 'EEXIST',
    (op) => {
      op.expect.ret = -28;
    },
    /DIFFERENCE map_dma: ret/,
  ],
  [
    'a call that never returned',
    (op) => op.op === 'unmap_dma' && op.expect.ret === 0,
    (op) => {
      op.expect.ret = null;
    },
    /DIFFERENCE unmap_dma: ret/,
  ],
  [
    'unmapped size',
    (op) => op.op === 'unmap_dma' && op.expect.size === '0x1000',
    (op) => {
      op.expect.size = '0x2000';
    },
    /DIFFERENCE unmap_dma: size/,
  ],
  [
    'output page',
    (op) => op.op === 'pin_pages' && op.expect.ret === 2,
    (op) => {
      op.expect.pages[1]++;
    },
    /DIFFERENCE pin_pages: pages/,
  ],
  [
    'output page of a rolled-back pin',
    (op) => op.op === 'pin_pages' && op.expect.pages?.[1] === 0,
    (op) => {
      op.expect.pages[1] = 5;
    },
    /DIFFERENCE pin_pages: pages/,
  ],
  [
    'events word',
    (op) => op.op === 'register_notifier' && op.expect.events_word === 0,
    (op) => {
      op.expect.events_word = 1;
    },
    /DIFFERENCE register_notifier: events_word/,
  ],
  [
    'capability',
    (op) => op.op === 'get_info' && op.expect.caps?.length === 2,
    (op) => {
      op.expect.caps[1].avail++;
    },
    /DIFFERENCE get_info: caps/,
  ],
  [
    'argsz of get_info',
    (op) => op.op === 'get_info' && op.expect.ret === 0,
    (op) => {
      op.expect.argsz++;
    },
    /DIFFERENCE get_info: argsz/,
  ],
  [
    'extension',
    (op) => op.op === 'check_extension' && op.expect.ret === 1,
    (op) => {
      op.expect.ret = 0;
    },
    /DIFFERENCE check_extension: ret/,
  ],
  [
    'missing notification',
    (op) => op.expect.events[0]?.type === 'notify',
    (op) => {
      op.expect.events.shift();
    },
    /DIFFERENCE unmap_dma: /,
  ],
  [
    'notified range',
    (op) => op.expect.events[0]?.type === 'notify',
    (op) => {
      op.expect.events[0].size = '0x123000';
    },
    /DIFFERENCE unmap_dma: events/,
  ],
  [
    'notified listener',
    (op) => op.expect.events[0]?.type === 'notify',
    (op) => {
      op.expect.events[0].listener = 'L9';
    },
    /DIFFERENCE unmap_dma: events/,
  ],
  [
    'answer inside a notification',
    (op) => op.expect.events[0]?.calls?.[0]?.expect.ret === 1,
    (op) => {
      op.expect.events[0].calls[0].expect.ret = 2;
    },
    /DIFFERENCE unmap_dma: call unpin_pages: ret/,
  ],
  [
    'missing WARN',
    (op) => op.expect.events[0]?.type === 'WARN',
    (op) => {
      op.expect.events = [];
    },
    /DIFFERENCE \w+: events/,
  ],
  [
    'other WARN',
    (op) => op.expect.events[0]?.type === 'WARN',
    (op) => {
      op.expect.events[0].what = 'locked-vm-underflow';
    },
    /DIFFERENCE \w+: events/,
  ],
  [
    'ref_count',
    (op) => op.expect.state.mappings[0]?.pins[0]?.[2] === 1,
    (op) => {
      op.expect.state.mappings[0].pins[0][2] = 2;
    },
    /DIFFERENCE \w+: state\.mappings/,
  ],
  [
    'owner of a mapping',
    (op) => op.expect.state.mappings[0]?.owner === 'A',
    (op) => {
      op.expect.state.mappings[0].owner = 'B';
    },
    /DIFFERENCE \w+: state\.mappings/,
  ],
  [
    'missing mapping',
    (op) => op.expect.state.mappings.length === 2,
    (op) => {
      op.expect.state.mappings.pop();
    },
    /DIFFERENCE \w+: state\.mappings/,
  ],
  [
    'locked_vm',
    (op) => op.expect.state.locked_vm.A === 3,
    (op) => {
      op.expect.state.locked_vm.A = 2;
    },
    /DIFFERENCE \w+: state\.locked_vm/,
  ],
  [
    'locked_vm of a process that is gone',
    (op) => op.expect.state.locked_vm.B === null,
    (op) => {
      op.expect.state.locked_vm.B = 0;
    },
    /DIFFERENCE \w+: state\.locked_vm/,
  ],
  [
    'page references',
    (op) => op.expect.state.pages[0]?.[1] === 1 && op.expect.state.pages[0][0] < 80,
    (op) => {
      op.expect.state.pages[0][1] = 2;
    },
    /DIFFERENCE \w+: state\.pages/,
  ],
  [
    'dirty',
    (op) => op.expect.state.pages[0]?.[2] === 1,
    (op) => {
      op.expect.state.pages[0][2] = 0;
    },
    /DIFFERENCE \w+: state\.pages/,
  ],
  [
    'a page that nobody pinned',
    (op) => op.expect.state.pages.length === 0,
    (op) => {
      op.expect.state.pages.push([3, 1, 0]);
    },
    /DIFFERENCE \w+: state\.pages/,
  ],
  [
    'dma_avail',
    (op) => op.expect.state.dma_avail === 65534,
    (op) => {
      op.expect.state.dma_avail = 65535;
    },
    /DIFFERENCE \w+: state\.dma_avail/,
  ],
  [
    'listeners',
    (op) => op.expect.state.listeners === 1,
    (op) => {
      op.expect.state.listeners = 2;
    },
    /DIFFERENCE \w+: state\.listeners/,
  ],
];

t.test('runner: every planted difference is found and exits 1', async (t) => {
  t.testdir();
  for (const [what, wanted, plant, found] of PLANTED) {
    const { trace, op, i } = copyOf(wanted);
    plant(op);
    const path = file(t, 'planted.jsonl', `${JSON.stringify(trace)}\n`);
    const { code, out } = await run(path);
    t.equal(code, 1, what);
    t.match(out, found, `${what}: named`);
    t.match(out, `${path}:1 seed ${trace.seed} op ${i}`, `${what}: with its place`);
    t.match(out, '0 of 1 traces agree');
  }
});

t.test('runner: a planted difference is found over HTTP too', async (t) => {
  t.testdir();
  const { trace, op } = copyOf((op) => op.expect.state.locked_vm.A === 3);
  op.expect.state.locked_vm.A = 2;
  const { code, out } = await run(file(t, 'planted.jsonl.gz', JSON.stringify(trace)), '--http');
  t.equal(code, 1);
  t.match(out, /DIFFERENCE \w+: state\.locked_vm \(1 times\)/);
});

t.test('runner: references of reserved pages are compared loosely and counted', async (t) => {
  t.testdir();
  const reserved = (trace: Json) => (page: [number]) => trace.memory_model.pages.kinds[page[0]] === 'reserved';
  const { trace, op } = copyOf(({ expect }, trace) => expect.state.pages.some(reserved(trace)));
  op.expect.state.pages.find(reserved(trace))[1] += 1;
  const { code, out } = await run(file(t, 'loose.jsonl', JSON.stringify(trace)));
  t.equal(code, 0);
  t.match(out, /compared loosely: \d+ places, 1 of them differ/);
});

t.test('runner: a trace of a kernel that is no profile is a difference', async (t) => {
  t.testdir();
  const other = { ...structuredClone(parsed[0]), era: '3.10' };
  const { code, out } = await run(file(t, 'other.jsonl', JSON.stringify(other)));
  t.equal(code, 1);
  t.match(out, /DIFFERENCE replay stopped: no profile 3\.10/);
});

t.test('runner: traces can be selected by their features', async (t) => {
  t.testdir();
  const of = (...features: string[]): string => JSON.stringify({ ...parsed[0], features });
  const path = file(t, 'features.jsonl', [of(), of('inject'), of('inject', 'dma-rw'), of('dma-rw')].join('\n'));
  const runs: [string[], number, RegExp?][] = [
    [[], 4],
    [['--all'], 4],
    [['--features', 'inject'], 2, /\nskipped, features dma-rw: 1 traces\nskipped, features none: 1 traces\n/],
    [['--features', 'none'], 1],
    [['--features=none,dma-rw'], 3],
    [['--without-features', 'inject'], 2, /\nskipped, without inject: 2 traces\n/],
    [['--features', 'dma-rw', '--without-features', 'inject'], 1],
    [['--features', 'dma-rw', '--limit', '1'], 1, /\nskipped, --limit: 1 traces\n/],
  ];
  for (const [options, count, skipped = /agree/] of runs) {
    const { code, out } = await run(path, ...options);
    t.equal(code, 0, options.join(' '));
    t.match(out, new RegExp(`\\n${count} of ${count} traces agree`), options.join(' '));
    t.match(out, skipped);
  }
});

t.test('runner: a limit takes the first of every era and set of features, then the second of each', async (t) => {
  t.testdir();
  const of = (...features: string[]): string => JSON.stringify({ ...parsed[0], features });
  const lines = [of(), of(), of('inject'), of('inject', 'dma-rw'), of('dma-rw', 'inject'), of()];
  const path = file(t, 'kinds.jsonl', lines.join('\n'));
  const taken = (limit: number | null): number[] => {
    const skip = select([path], { features: null, withoutFeatures: [], limit });
    return [...readTraces(path)]
      .map(({ trace }) => trace)
      .filter((trace) => skip(trace) === null)
      .map(({ line }) => line);
  };
  t.same(
    [taken(3), taken(4), taken(5), taken(6), taken(null)],
    [
      [1, 3, 4],
      [1, 2, 3, 4],
      [1, 2, 3, 4, 5],
      [1, 2, 3, 4, 5, 6],
      [1, 2, 3, 4, 5, 6],
    ],
  );
});

t.test('runner: a malformed file is refused with file and line, and exits 2', async (t) => {
  t.testdir();
  const good = lines[0] as string;
  const damaged = (change: (trace: Json) => void): string => {
    const copy = structuredClone(parsed[0]);
    change(copy);
    return JSON.stringify(copy);
  };
  const bad: [string, string, RegExp][] = [
    ['half a line', good.slice(0, 1000), /: not JSON: /],
    ['an empty line', '', /: not JSON: /],
    ['not an object', '[]', /: trace: must be object/],
    [
      'no memory_model',
      damaged((trace) => {
        delete trace.memory_model;
      }),
      /: trace: must have required propert/,
    ],
    [
      'an unknown field',
      damaged((trace) => {
        trace.colour = 'red';
      }),
      /: trace\S*: /,
    ],
    [
      'an unknown operation',
      damaged((trace) => {
        trace.ops[2].op = 'fly';
      }),
      /: ops\[2\]\/op: no operation 'fly'/,
    ],
    [
      'a number for an address',
      damaged((trace) => {
        trace.ops[4].args.iova = 4096;
      }),
      /: ops\[4\]\/args\/iova: must be string/,
    ],
    [
      'an address of 17 digits',
      damaged((trace) => {
        trace.ops[4].args.iova = '0x10000000000000000';
      }),
      /: ops\[4\]\/args\/iova: must match/,
    ],
    [
      'no expectation',
      damaged((trace) => {
        delete trace.ops[1].expect;
      }),
      /: ops\[1\]: must have required propert/,
    ],
    [
      'an unknown event',
      damaged((trace) => {
        trace.ops[1].expect.events = [{ type: 'PANIC' }];
      }),
      /: ops\[1\]\/expect\/events\/0: /,
    ],
    [
      'a device of no group',
      damaged((trace) => {
        trace.memory_model.devices.D0.group = 'G7';
      }),
      /: memory_model\/devices\/D0: no group 'G7'/,
    ],
    [
      'an area with too few pages',
      damaged((trace) => {
        trace.memory_model.processes.A.vmas[0].npages = 65;
      }),
      /: memory_model\/processes\/A\/vmas\[0\]: npages is 65, but 64 pages are listed/,
    ],
  ];
  for (const [what, line, problem] of bad) {
    const path = file(t, 'bad.jsonl', `${good}\n${line}\n${good}\n`);
    const { code, out, err } = await run(path, '--in-process');
    t.equal(code, 2, what);
    t.ok(err.startsWith(`${path}:2: `), `${what}: names file and line in ${JSON.stringify(err)}`);
    t.match(err, problem, `${what}: says what is wrong`);
    t.equal(out, '', `${what}: no result is printed`);
  }
  for (const [name, content] of [
    ['empty.jsonl', ''],
    ['bad.jsonl.gz', 'x'],
  ] as const) {
    const path = join(t.testdirName, name);
    writeFileSync(path, content);
    const { code, err } = await run(path);
    t.equal(code, 2, name);
    t.ok(err.startsWith(`${path}: `), err);
  }
});

t.test('runner: a service that does not answer, or not as one, exits 2', async (t) => {
  const { code, err } = await run(PLAIN, '--http', 'http://127.0.0.1:1');
  t.equal(code, 2);
  t.match(err, 'http://127.0.0.1:1: ');
  t.match(err, 'ECONNREFUSED');
});

t.test('runner: the process exits with the code', async (t) => {
  t.testdir();
  const script = join(import.meta.dirname, '../../src/cli/conformance/main.ts');
  const { trace, op } = copyOf((op) => op.expect.state.locked_vm.A === 3);
  const good = file(t, 'good.jsonl', JSON.stringify(trace));
  op.expect.state.locked_vm.A = 2;
  const bad = file(t, 'bad.jsonl', JSON.stringify(trace));
  for (const [path, expected] of [
    [good, 0],
    [bad, 1],
    [join(t.testdirName, 'none.jsonl'), 2],
  ] as const) {
    const { status, stdout, stderr } = spawnSync(process.execPath, ['--import=tsx', script, path], {
      encoding: 'utf8',
    });
    t.equal(status, expected, stderr);
    t.match(stdout + stderr, [/1 of 1 traces agree/, /0 of 1 traces agree/, /none\.jsonl: ENOENT/][expected] as RegExp);
  }
});

t.test('runner: bad usage exits 2 and prints the usage', async (t) => {
  for (const argv of [
    ['--fast'],
    ['--features', ''],
    ['--all', '--features', 'inject'],
    ['--all', '--limit', '3'],
    [PLAIN, '--limit', '0'],
    [PLAIN, '--limit', 'x'],
  ]) {
    const { code, err } = await run(...argv);
    t.equal(code, 2, argv.join(' '));
    t.match(err, 'usage: npm run conformance', argv.join(' '));
  }
  const missing = await run('/nowhere/traces.jsonl');
  t.equal(missing.code, 2);
  t.match(missing.err, '/nowhere/traces.jsonl: ENOENT');
});
