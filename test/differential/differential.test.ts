// The same commands on two kernels: each kind of difference with a real example of two profiles, and the behaviour that makes it.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { Host } from '../../src/kernel/host.ts';
import { runDifferential } from '../../src/service/differential/differential.ts';
import { differingAtEnd } from '../../src/service/differential/state.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';
import { DIFFERENTIAL_SLICE_MS, MAX_DIFFERENTIAL_COMMANDS, MAX_SHOWN_ENTRIES } from '../../src/service/limits.ts';
import {
  ack,
  builtin,
  detach,
  differential,
  inHandler,
  itemsOf,
  type Line,
  listen,
  map,
  named,
  PAGE,
  pin,
  pinRange,
  RW,
  seenIn,
  summaryOf,
  unmap,
  unpin,
} from './commands.ts';

const causesOf = (found: { causes: { behaviour: string; proof: string }[] | null }): string[] =>
  (found.causes ?? []).map(({ behaviour, proof }) => `${behaviour} ${proof}`);

/** Two mappings with a pin each, and an unmap of both whose handlers unpin one page a call, in the order of 5.15. */
const TWO_HANDLERS: readonly Line[] = [
  map(0n, 1),
  map(PAGE, 1),
  listen(),
  pin([0, 1]),
  unmap(0n, 2),
  inHandler(1, unpin([0])),
  ack(1),
  inHandler(2, unpin([1])),
  ack(2),
];

t.test('the same profile twice: nothing differs, whatever the commands do', async (t) => {
  const everything: Line[] = [
    ...TWO_HANDLERS,
    map(0n, 8),
    pin([1, 3, 4]),
    pin([99]),
    unmap(PAGE, 1),
    unmap(0n, 8),
    inHandler(3, unpin([1, 3])),
    { op: 'notification_timeout', notification: 'notification-3' },
    ack(3),
    inHandler(4, unpin([4])),
    ack(4),
    map(0n, 8),
    pin([5]),
    { op: 'mmap', task: 'qemu', addr: 0x1000n, length: PAGE, prot: RW, backing: { kind: 'anon' }, noreplace: false },
    ...detach,
  ];
  for (const profile of ['4.10', '5.4', '5.8', '5.15', '6.18']) {
    const report = await differential([profile, profile], everything);
    t.match(report, { equal: true, commands: everything.length, written_for: profile }, profile);
    t.strictSame(seenIn(report), [], profile);
  }
});

t.test('a refusal: endOfSpace hides the mapping that ends at 2^64 until 6.18: EINVAL against success', async (t) => {
  const last = 2 ** 52 - 1;
  const report = await differential(['5.15', '6.18'], [map(2n ** 64n - PAGE, 1), listen(), pin([last]), pin([last])]);
  const found = named(report, 'pin_pages: EINVAL / ok');
  t.match(found, { kind: 'refusal', position: 3, times: 2, answers: [{ ret: -22, errno: 'EINVAL' }, { ret: 1 }] });
  t.match(found, { command: { op: 'pin_pages', device: 'mdev0', user_pfn: [last] }, notification: null });
  t.strictSame(causesOf(found), ['endOfSpace removes']);
  t.match(named(report, 'state: locked_vm').answers, [{ of: 'task qemu', locked_vm: 0 }, { locked_vm: 1 }]);
});

t.test('a refusal after a wait: the bisect test fails on a restart: EINVAL up to 5.8, success from 5.15', async (t) => {
  const report = await differential(
    ['5.8', '5.15'],
    [
      map(0n, 4),
      listen(),
      pin([1]),
      unmap(0n, 4),
      inHandler(1, unpin([1])),
      inHandler(1, unmap(0n, 4)),
      inHandler(1, map(0n, 8)),
      ack(1),
    ],
  );
  const found = named(report, 'unmap_dma: EINVAL / ok');
  t.match(found, { position: 4, times: 1 });
  t.strictSame(causesOf(found), ['bisectOnRestart removes']);
});

t.test(
  'a notifier whose type or priority is named is one without them in 6.18, and the same calls follow',
  async (t) => {
    for (const more of [{ explicit: true }, { explicit: true, priority: 1 }]) {
      const report = await differential(
        ['5.15', '6.18'],
        [listen(builtin('unpin_all'), more), map(0n, 4), pin([1]), unmap(0n, 4)],
      );
      const names = report.comparisons[0]?.differences.map(({ name }) => `${name}`) ?? [];
      const refused = names.filter((name) => /register_notifier|pin_pages/.test(name));
      t.strictSame(refused, [], JSON.stringify(more));
    }
  },
);

t.test('a field: an unmap meets a foreign mm: nothing is unmapped up to 5.15, all of it in 6.18', async (t) => {
  const report = await differential(
    ['5.15', '6.18'],
    [
      { op: 'put_task', task: 'other', rlimit_memlock: 0x10000n, cap_ipc_lock: false, thread_of: null },
      map(0n, 4),
      unmap(0n, 4, { task: 'other' }),
    ],
  );
  const found = named(report, 'unmap_dma: size');
  t.match(found, {
    kind: 'field',
    position: 3,
    answers: [
      { ret: 0, size: 0n },
      { ret: 0, size: 4n * PAGE },
    ],
  });
  t.strictSame(causesOf(found), ['foreignMmUnmap removes']);
  t.match(named(report, 'state: mappings').answers, [{ of: 'container vfio0', mappings: 1 }, { mappings: 0 }]);
});

t.test('a return value: unpin_pages counts up to 5.15 and returns nothing in 6.18', async (t) => {
  const report = await differential(['5.15', '6.18'], [map(0n, 4), listen(), pin([0, 1]), unpin([0, 1])]);
  t.strictSame(summaryOf(report), [['unpin_pages: ret', 4, ['pinForm']]]);
  t.match(named(report, 'unpin_pages: ret'), { kind: 'return-value', answers: [{ ret: 2 }, { ret: 0 }] });
});

t.test(
  'a splat: leftover pins are warned about at detach in 4.10, at the removal of their mapping in 5.15',
  async (t) => {
    const report = await differential(['4.10', '5.15'], [map(0n, 4), listen(), pin([1]), ...detach]);
    const old = named(report, 'unset_container: WARN pins-left-at-detach, only in 4.10');
    const young = named(report, 'unset_container: WARN mapping-removed-with-pins, only in 5.15');
    t.match(old.answers, [{ splats: 1, where: 'vfio_sanity_check_pfn_list', text: /4\.10\.0/ }, { splats: 0 }]);
    t.match(young.answers, [{ splats: 0 }, { splats: 1, where: 'vfio_remove_dma', text: /5\.15\.85/ }]);
    for (const found of [old, young]) {
      t.match(found, { kind: 'splat', position: 5 });
      t.strictSame(causesOf(found), ['leftoverCheck removes']);
    }
    const dma_avail = named(report, 'state: dma_avail');
    t.match(dma_avail, { position: 0, command: null, answers: [{ dma_avail: null }, { dma_avail: 65535 }] });
    t.strictSame(causesOf(dma_avail), ['dmaEntryLimit removes'], 'the hosts differ before the first command');
  },
);

t.test(
  'a BUG: a block that is registered twice closes the chain to a loop in 5.4, and is left out in 5.15',
  async (t) => {
    const all = builtin('unpin_all');
    const report = await differential(['5.15', '5.4'], [map(0n, 4), listen(all), listen(all), pin([1]), unmap(0n, 4)]);
    const killed = named(report, 'unmap_dma: ok / EIO');
    t.match(killed, { position: 5, answers: [{ ret: 0 }, { ret: -5, errno: 'EIO' }] });
    t.match(named(report, 'unmap_dma: BUG at notifier_call_chain, only in 5.4'), { kind: 'splat', position: 5 });
    t.match(named(report, 'state: dead_container').answers, [{ dead_container: false }, { dead_container: true }]);
    for (const found of seenIn(report)) t.strictSame(causesOf(found), ['doubleRegister removes'], found.name);
  },
);

t.test('a page that keeps its pin: the shared zero page in 5.8, and no more in 5.15', async (t) => {
  const report = await differential(['5.8', '5.15'], [map(0n, 4, { flags: 1 }), listen(), pin([1]), unpin([1])]);
  t.match(named(report, 'state: page_pins'), { position: 3, answers: [{ page_pins: 1 }, { page_pins: 0 }] });
  t.strictSame(summaryOf(report), [
    ['state: page_pins', 3, ['zeroPagePin']],
    ['state: pinned_pages', 3, ['zeroPagePin']],
  ]);
});

t.test('a wait: a pin sleeps until the vaddr is valid in 5.15; 6.18 refuses to invalidate it with EBUSY', async (t) => {
  const report = await differential(
    ['5.15', '6.18'],
    [map(0n, 4), listen(), unmap(0n, 4, { flags: 4 }), pin([1]), map(0n, 4, { flags: 4 })],
  );
  t.match(named(report, 'unmap_dma: ok / EBUSY'), { kind: 'refusal', position: 3 });
  const wait = named(report, 'pin_pages: waits / does not wait');
  t.match(wait, {
    kind: 'wait',
    position: 4,
    answers: [
      { waited: true, ret: 1 },
      { waited: false, ret: 1 },
    ],
  });
  t.strictSame(causesOf(wait), ['invalidVaddr removes']);
  const without = await differential(['5.15', '6.18'], [map(0n, 4), listen(), unmap(0n, 4, { flags: 4 }), pin([1])]);
  t.match(named(without, 'pin_pages: waits / ok').answers, [{ waits: true }, { ret: 1 }], 'it never comes back');
});

t.test('notifications in another order: handlers are played when they are called, not by their ids', async (t) => {
  const three: Line[] = [
    ...[0n, PAGE, 2n * PAGE].map((iova) => map(iova, 1)),
    listen(),
    pin([0, 1, 2]),
    unmap(0n, 3),
    ...[1, 2, 3].flatMap((n) => [inHandler(n, unpin([n - 1])), ack(n)]),
  ];
  const report = await differential(['5.15', '5.4'], three);
  const found = named(report, 'unmap_dma: notifications in another order');
  t.match(found, { kind: 'notification', position: 6 });
  const order = found.answers.map(({ calls }) => (calls as { iova: bigint }[]).map(({ iova }) => iova));
  t.strictSame(order, [
    [0n, PAGE, 2n * PAGE],
    [PAGE, 2n * PAGE, 0n],
  ]);
  t.strictSame(causesOf(found), ['unmapOrder removes']);
  t.notOk(
    seenIn(report).some(({ name }) => /BUG|EIO|waits/.test(name)),
    'each handler unpinned the page of its own mapping',
  );
  t.strictSame([report.comparisons[0]?.handlers, report.comparisons[0]?.left_out], [[], []]);
});

t.test(
  'the eleventh call in vain is the BUG of both kernels; NOTIFY_STOP keeps the second listener quiet only before 6.0',
  async (t) => {
    const stuck = await differential(['5.15', '6.18'], [map(0n, 4), listen(builtin('ignore')), pin([1]), unmap(0n, 4)]);
    t.strictSame(seenIn(stuck), []);
    const second: Command[] = [
      { op: 'put_group', group: '27', kind: 'mdev' },
      { op: 'put_device', device: 'mdev1', group: '27' },
      { op: 'set_container', group: '27', container: 'vfio0', task: null },
      { op: 'open_device', device: 'mdev1' },
    ];
    const stopped = await differential(
      ['5.15', '6.18'],
      [
        map(0n, 4),
        ...second,
        listen({ kind: 'poll' }, { priority: 1 }),
        listen({ kind: 'poll' }, {}, 'mdev1'),
        pin([1]),
        unmap(0n, 4),
        inHandler(1, unpin([1])),
        ack(1, { ret: 0x8001 }),
      ],
    );
    const found = named(stopped, 'unmap_dma: notifications less in 5.15');
    t.match(found, { kind: 'notification', position: 9, answers: [{ notifications: 1 }, { notifications: 2 }] });
    t.match(stopped.comparisons[0], {
      handlers: [
        { profile: '6.18', rule: 'not-recorded', position: 9, call: { device: 'mdev1', attempt: 1 }, times: 1 },
      ],
      translated: [{ profile: '6.18', what: /^register_notifier: without priority/, position: 6 }],
    });
  },
);

t.test('a handler is played again where a kernel calls it more often than the recording', async (t) => {
  // In 5.15 the first unmap ends at the other mm; in 6.18 it goes on and calls the handler, which the second of 5.15 called too.
  const report = await differential(
    ['5.15', '6.18'],
    [
      { op: 'put_task', task: 'other', rlimit_memlock: 0x10000n, cap_ipc_lock: false, thread_of: null },
      map(0n, 4),
      listen(),
      pin([1, 2]),
      unmap(0n, 4, { task: 'other' }),
      unmap(0n, 4),
      inHandler(1, unpin([1])),
      ack(1),
      inHandler(2, unpin([2])),
      ack(2),
    ],
  );
  t.match(named(report, 'unmap_dma: notifications only in 6.18'), { position: 5 });
  t.match(report.comparisons[0], {
    handlers: [{ profile: '6.18', rule: 'as-before', position: 5, times: 2 }],
    left_out: [{ profile: '6.18', what: 'its handler is not called', position: 7, times: 4 }],
  });
  t.notOk(seenIn(report).some(({ name }) => /BUG|EIO/.test(name)));
});

t.test('a listener that always unpinned all does so in a call that was not recorded', async (t) => {
  // 5.4 takes the mapping at the root first; its handler unpins the lowest page too, whose mapping is then never announced.
  const pages = [0n, PAGE, 2n * PAGE].map((iova) => map(iova, 1));
  const handlers = [inHandler(1, unpin([1])), ack(1), inHandler(2, unpin([2, 0])), ack(2)];
  const report = await differential(['5.4', '5.15'], [...pages, listen(), pin([0, 1, 2]), unmap(0n, 3), ...handlers]);
  t.match(report.comparisons[0], {
    handlers: [{ profile: '5.15', rule: 'as-always', position: 6, call: { iova: 0n, attempt: 1 }, times: 1 }],
    left_out: [],
  });
  t.notOk(seenIn(report).some(({ name }) => /BUG|EIO/.test(name)));
});

t.test('pins are said in the form of each kernel; a run that is refused takes the runs before it back', async (t) => {
  const lines = [map(0n, 8), listen(), pin([0, 1, 3, 3]), pin([4, 99]), pin([]), pin(Array(513).fill(7))];
  const report = await differential(['5.15', '6.18'], lines);
  const accepted = seenIn(report).filter(({ position }) => position === 3 || position === 4 || position === 5);
  t.strictSame(accepted, [], 'the split pin returns the same pages, the refused one the same errno, index and zeros');
  t.notOk(
    seenIn(report).some(({ kind }) => kind === 'state'),
    'nothing is left pinned of the refused one',
  );
  t.match(report.comparisons[0], {
    translated: [
      { what: 'pin_pages: user_pfn that is not contiguous as several ranges', position: 3, times: 2 },
      { what: 'pin_pages: user_pfn as iova and npage', position: 5, times: 2 },
    ],
    left_out: [],
  });
});

t.test('what a kernel has no form for is left out there, and said', async (t) => {
  const young = await differential(
    ['5.15', '6.18'],
    [
      listen({ kind: 'poll' }, { id: 'kvm', type: 1 }),
      { op: 'unregister_notifier', device: 'mdev0', notifier: 'kvm', type: null },
      map(0n, 4),
      listen(),
      { op: 'pin_pages', device: 'mdev0', user_pfn: [1], npage: 2, prot: 1 },
    ],
  );
  t.strictSame(seenIn(young), []);
  t.match(young.comparisons[0]?.left_out, [
    { profile: '6.18', position: 1, what: /type 1/ },
    { profile: '6.18', position: 2, what: /'kvm'/ },
    { profile: '6.18', position: 5, what: /npage 2 with 1 entries/ },
  ]);
  const old = await differential(['6.18', '5.15'], [map(0n, 4), listen(), pinRange(0x1800n, 1), pinRange(0x1000n, 2)]);
  t.match(old.comparisons[0], {
    left_out: [{ profile: '5.15', position: 3, what: /0x1800 is not page aligned/ }],
    translated: [{ profile: '5.15', position: 4, what: 'pin_pages: iova and npage as user_pfn', times: 1 }],
  });
});

t.test('a command in the wrong form stays as it was made: EOPNOTSUPP where the recording has it', async (t) => {
  const report = await differential(['5.15', '6.18'], [map(0n, 4), listen(), pinRange(0x1000n, 1)]);
  t.match(named(report, 'pin_pages: EOPNOTSUPP / ok'), { position: 3 });
});

t.test('operations and blocks whose ids have a seq in them are the same on every kernel', async (t) => {
  const { notifier: _, ...device } = listen() as Extract<Command, { op: 'register_notifier' }>;
  const anonymous = { ...device, notifier: { events: 1, type: 0, priority: 0, delivery: { kind: 'poll' as const } } };
  const report = await differential(
    ['5.15', '6.18'],
    [
      map(0n, 8),
      anonymous,
      pin([1, 3, 5]),
      pin([6]),
      { op: 'unregister_notifier', device: 'mdev0', notifier: 'notifier-2', type: null },
      listen(),
      unpin([1, 3, 5]),
      { op: 'unregister_notifier', device: 'mdev0', notifier: 'nb-mdev0', type: null },
    ],
  );
  t.strictSame(
    summaryOf(report).map(([name]) => name),
    ['unpin_pages: ret'],
  );
  const killed = await differential(
    ['5.15', '5.15'],
    [map(0n, 4), listen(), unmap(0n, 4, { flags: 4 }), pin([1]), { op: 'kill_operation', operation: 'pin_pages-4' }],
  );
  t.strictSame(seenIn(killed), []);
});

t.test('three profiles: the first is compared with each of the others', async (t) => {
  const report = await differential(['5.15', '5.8', '6.18'], [map(0n, 4), listen(), pin([1]), unpin([1])]);
  t.strictSame(
    report.comparisons.map(({ profiles, equal }) => [profiles, equal]),
    [
      [['5.15', '5.8'], true],
      [['5.15', '6.18'], false],
    ],
  );
});

t.test('fixes hold under every profile; causes are left out where they are not asked for', async (t) => {
  const lines = [map(2n ** 64n - PAGE, 1), listen(), pin([2 ** 52 - 1])];
  const fixed = await differential(['5.15', '6.18'], lines, { fixes: ['end_of_space'] });
  t.strictSame(seenIn(fixed), []);
  const quick = await differential(['5.15', '6.18'], lines, {}, false);
  t.ok(seenIn(quick).length > 0 && seenIn(quick).every(({ causes }) => causes === null));
});

t.test('an answer shows the beginning of a long list and says how long it is', async (t) => {
  const pages = Array.from({ length: 100 }, (_, i) => i);
  const last = 2 ** 52 - 100;
  const lines = [map(2n ** 64n - 100n * PAGE, 100), listen(), pin(pages.map((i) => last + i))];
  const { answers } = named(await differential(['5.15', '6.18'], lines), 'pin_pages: EINVAL / ok');
  const shown = answers[1].phys_pfn as unknown[];
  t.equal(shown.length, MAX_SHOWN_ENTRIES + 1);
  t.match(shown.at(-1), '... (100 entries)');
});

t.test('a long run lets other work have its turn, ends when nobody waits for it, and has a bound', async (t) => {
  const pair = [pin([1]), unpin([1])];
  const lines = [map(0n, 4), listen(), ...Array.from({ length: 4000 }, () => pair).flat()];
  let turns = 0;
  let longest = 0;
  let last = performance.now();
  const timer = setInterval(() => {
    turns++;
    longest = Math.max(longest, performance.now() - last);
    last = performance.now();
  }, 1);
  const report = await differential(['5.15', '6.18'], lines);
  clearInterval(timer);
  t.equal(named(report, 'unpin_pages: ret').times, 4000);
  t.ok(turns > 3, `${turns} turns, the longest after ${Math.round(longest)} ms, slices of ${DIFFERENTIAL_SLICE_MS} ms`);

  const options = { ...DEFAULT_HOST_OPTIONS, fixes: [], template: 'default' as const };
  const plan = { items: itemsOf(lines), options };
  const gone = AbortSignal.abort();
  await t.rejects(runDifferential(plan, { profiles: ['5.15', '6.18'], causes: true, signal: gone }), {
    name: 'HostUnavailable',
  });
  const many = { items: Array(MAX_DIFFERENTIAL_COMMANDS + 1).fill(plan.items[0]), options };
  const { signal } = new AbortController();
  await t.rejects(runDifferential(many, { profiles: ['5.15', '6.18'], causes: true, signal }), {
    name: 'TooManyCommands',
    limit: MAX_DIFFERENTIAL_COMMANDS,
  });
});

t.test(
  'the state at the end: many records of one mapping are compared with rests, and the one that differs is named',
  async (t) => {
    const [a, b] = ['a', 'b'].map((name) => {
      const host = createHost(name, { ...DEFAULT_HOST_OPTIONS, template: 'default' }, 0);
      const run = (command: Command): unknown =>
        execute(host, { at: 0, request_id: 'r', notification: null, command }).refusal?.detail;
      const first = Array.from({ length: 10 }, (_, i) => Array.from({ length: 512 }, (_, k) => i * 512 + k));
      const last = name === 'a' ? [6000, 6001] : [6001, 6001];
      for (const line of [map(0n, 8192), listen(), ...[...first, last].map((pages) => pin(pages))])
        t.equal(run(line as Command), undefined);
      return host;
    }) as [Host, Host];
    const found = [...differingAtEnd(a, b)];
    const before = found.slice(
      0,
      found.findIndex((each) => each?.what === 'record'),
    );
    t.equal(before.filter((each) => each === null).length, 5, 'once in a thousand records');
    const records = found.filter((each) => each?.what === 'record');
    t.same(
      records.map((each) => each?.subject),
      ['container vfio0 iova 0x1770000', 'container vfio0 iova 0x1771000'],
    );
    t.equal(records[0]?.values[1], null);
    t.match(records[1]?.values, [/ref_count 1$/, /ref_count 2$/]);
    t.same(
      [...differingAtEnd(a, a)].filter((each) => each !== null),
      [],
      'a host does not differ from itself',
    );
  },
);

t.test('a registration that names type or priority is one that a 6.x driver makes without them', async (t) => {
  for (const priority of [0, 1]) {
    const lines = [map(0n, 1), listen({ kind: 'poll' }, { explicit: true, priority }), pin([0])];
    const report = await differential(['5.15', '6.18'], lines);
    const [comparison] = report.comparisons;
    t.same(
      comparison?.differences.filter(({ kind }) => kind === 'refusal'),
      [],
      `priority ${priority}`,
    );
  }
});
