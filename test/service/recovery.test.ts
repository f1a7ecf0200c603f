// Hosts out of their store: checkpoints and journal give the host that was, bit for bit, or it is quarantined and says why.

import { createHash } from 'node:crypto';
import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import type { Host } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import { sections } from '../../src/kernel/snapshot.ts';
import { encode } from '../../src/service/codec.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';
import { CHECKPOINT_WRITE_BYTES } from '../../src/service/limits.ts';
import type { HostRow, JournalRow, Section } from '../../src/service/ports.ts';
import { SEMANTICS_REVISION } from '../../src/service/revision.ts';
import type { Service } from '../../src/service/service.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import {
  ack,
  FaultyStore,
  ManualClock,
  map,
  notifier,
  pin,
  settle,
  startService,
  stateOf,
  submit,
  unmap,
  unpin,
} from './bench.ts';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);
console.log(`# seed ${seed}`);

/** Numbers from a seed (mulberry32). */
function randomOf(state: number): (below: number) => number {
  let a = state;
  return (below) => {
    a = (a + 0x6d2b79f5) | 0;
    let x = Math.imul(a ^ (a >>> 15), a | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** Everything that a host is, by section; a list with nothing in it is as good as none. */
function fingerprint(host: Host): Record<string, string> {
  const hashes: Record<string, string> = {};
  for (const { key, data } of sections(host)) {
    const section = data();
    if (Array.isArray(section) && section.length === 0) continue;
    hashes[key] = createHash('sha256').update(encode(section)).digest('hex').slice(0, 12);
  }
  return { ...hashes, options: JSON.stringify(host.options), seq: `${host.seq}` };
}

const fingerprintOf = async (service: Service): Promise<Record<string, string>> =>
  (await service.read('default', fingerprint)).value;

async function newStore(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await store.open();
  return store;
}

/** One command of a driver, a guest or an administrator, most of them sensible. */
function randomCommand(random: (below: number) => number, host: Host): Command {
  const iova = BigInt(random(8)) * 0x10000n;
  const pages = (): number[] => Array.from({ length: 1 + random(5) }, () => random(140));
  const pending = [...host.vfio.notifications.keys()][0];
  const choices: (() => Command)[] = [
    () => map(iova),
    () => map(iova, 1 + random(40)),
    () => unmap(iova),
    () => unmap(iova, 1 + random(40)),
    ...Array.from({ length: 6 }, () => () => pin(...pages())),
    () => unpin(...pages()),
    ...Array.from({ length: 3 }, () => () => notifier({ kind: 'poll' })),
    () => ({ op: 'unregister_notifier', device: 'mdev0', notifier: 'n1', type: null }),
    () => ack(pending ?? 'notification-1'),
    () => ({
      op: 'put_task',
      task: `t${random(5)}`,
      rlimit_memlock: 2n ** BigInt(random(64)),
      cap_ipc_lock: false,
      thread_of: null,
    }),
    () => ({ op: 'munmap', task: 'qemu', addr: 0x7f0000000000n + iova, length: 4096n }),
    () => ({ op: 'patch_host', dma_entry_limit: 10 + random(10) }),
    () => ({ op: 'adjust_locked_vm', task: 'qemu', delta: random(9) - 4 }),
    () => ({ op: 'notification_timeout', notification: pending ?? 'notification-1' }),
  ];
  return (choices[random(choices.length)] as () => Command)();
}

t.test('checkpoints at any moment and kills at any moment give the host that was, bit for bit', async (t) => {
  let withTail = 0;
  let inUnmap = 0;
  for (let round = 0; round < 12; round++) {
    const random = randomOf(seed + round);
    const store = await newStore();
    let service = await startService(store);
    await submit(service, { op: 'patch_host', notifier_timeout_ms: 2 ** 31 });
    for (let step = 0; step < 150; step++) {
      const { value: command } = await service.read('default', (host) => randomCommand(random, host));
      await submit(service, command, { respond_async: true });
      if (random(25) === 0) await service.checkpoint('default');
      const { value: parked } = await service.read('default', ({ vfio }) => vfio.notifications.size);
      if (random(parked > 0 ? 8 : 30) !== 0) continue;
      const before = await fingerprintOf(service);
      const [row] = await store.hosts();
      const manifest = await store.manifest('default', row?.generation ?? 0);
      if (manifest !== null && `${manifest.seq}` !== before.seq) withTail++;
      if (parked > 0) inUnmap++;
      // The first service is left where it is, as by kill -9: nothing of it runs any more, since its clock stands still.
      service = await startService(store);
      t.strictSame(service.readiness().quarantined, [], `seed ${seed} round ${round} step ${step}`);
      t.strictSame(await fingerprintOf(service), before, `seed ${seed} round ${round} step ${step}`);
      t.strictSame((await service.read('default', violations)).value, []);
    }
    await service.stop();
  }
  t.ok(withTail > 0, `${withTail} restarts with a checkpoint and a tail of journal`);
  t.ok(inUnmap > 0, `${inUnmap} restarts in the middle of an unmap`);
});

t.test(
  'a checkpoint writes only the sections that changed, in bounded transactions, and the journal is trimmed after',
  async (t) => {
    const memory = await newStore();
    const written: Section[][] = [];
    const write = memory.writeSections.bind(memory);
    memory.writeSections = (host, generation, seq, pieces) => {
      written.push(pieces);
      return write(host, generation, seq, pieces);
    };
    const service = await startService(memory, { journalKeep: 10 });
    t.teardown(() => service.stop());
    await submit(service, notifier());
    for (let i = 0; i < 40; i++) await submit(service, map(BigInt(i) * 0x200000n, 512));
    for (let i = 0; i < 40; i++)
      await submit(service, pin(...Array.from({ length: 512 }, (_, page) => i * 512 + page)));
    await service.checkpoint('default');
    const sizes = written.map((pieces) => pieces.reduce((sum, { bytes }) => sum + bytes.byteLength, 0));
    for (const [i, pieces] of written.entries())
      t.ok(
        pieces.length === 1 || (sizes[i] ?? 0) <= CHECKPOINT_WRITE_BYTES,
        `${pieces.length} sections, ${sizes[i]} bytes`,
      );
    t.ok(sizes.reduce((a, b) => a + b, 0) > 20_480 * 16, 'the records are in it');
    t.equal((await service.journal('default', 0, 1000)).items.length, 10);
    const first = written.flat().length;
    written.length = 0;
    await submit(service, pin(0));
    await service.checkpoint('default');
    const again = written.flat().map(({ key }) => key);
    t.ok(again.length < first / 2, `${again.length} of ${first} sections: ${again.join(' ')}`);
    written.length = 0;
    await service.checkpoint('default');
    t.strictSame(written, [], 'nothing has changed');
    const before = await fingerprintOf(service);
    t.strictSame(await fingerprintOf(await startService(memory)), before);
  },
);

t.test('checkpoints follow by themselves, by commands and by bytes', async (t) => {
  for (const checkpoints of [{ commands: 10 }, { bytes: 1000 }]) {
    const memory = await newStore();
    const service = await startService(memory, { checkpoints });
    for (let i = 0; i < 25; i++) await submit(service, map(BigInt(i) * 0x10000n));
    await settle(50);
    const [row] = await memory.hosts();
    const manifest = await memory.manifest('default', row?.generation ?? 0);
    t.ok((manifest?.seq ?? 0) >= 10, `${JSON.stringify(checkpoints)}: at seq ${manifest?.seq}`);
    await service.stop();
  }
});

t.test(
  'a restart in the middle of an unmap: the notification and its key go on, the client gets its reply',
  async (t) => {
    for (const stop of [true, false]) {
      const store = await newStore();
      const first = await startService(store);
      for (const command of [notifier(), map(0n), pin(1, 2)]) await submit(first, command);
      const lost = submit(first, unmap(0n), { key: 'k', request_id: 'before' });
      t.equal(await stateOf(lost), 'pending');
      if (stop) await first.stop();
      if (stop) await t.rejects(lost, { name: 'HostUnavailable' });
      if (stop) await store.open();
      const clock = new ManualClock();
      const second = await startService(store, { clock });
      t.teardown(() => second.stop());
      const retry = submit(second, unmap(0n), { key: 'k', request_id: 'after' });
      t.equal(await stateOf(retry), 'pending');
      const [again] = await second.notifications('default', 'mdev0', 0, new AbortController().signal);
      t.match(again, { id: 'notification-1', attempt: 1, seq: 4 });
      clock.advance(9_999);
      await settle();
      t.equal((await second.journal('default', 4, 10)).items.length, 0, 'the time starts anew');
      await submit(second, unpin(1, 2));
      await submit(second, ack('notification-1'));
      t.match(await retry, { seq: 4, request_id: 'before', replayed: true, outcome: { fields: { size: 65536n } } });
      t.match(await submit(second, unmap(0n), { key: 'k' }), { seq: 4, replayed: true });
    }
  },
);

t.test('options of a patch after the checkpoint do not reach back into the checkpoint', async (t) => {
  const store = await newStore();
  const service = await startService(store);
  await submit(service, { op: 'patch_host', dma_entry_limit: 5 });
  await service.checkpoint('default');
  await submit(service, { op: 'put_container', container: 'c' });
  await submit(service, { op: 'put_device_in_container', device: 'd', container: 'c', notifier: null });
  await submit(service, { op: 'patch_host', dma_entry_limit: 9 });
  const before = await fingerprintOf(service);
  const [row] = await store.hosts();
  t.match(JSON.parse(row?.options ?? ''), { dma_entry_limit: 9, created_with: { dma_entry_limit: 65535 } });
  const again = await startService(store);
  t.strictSame(again.readiness().quarantined, []);
  t.strictSame(await fingerprintOf(again), before);
});

t.test(
  'after a switch of checkpoints whose answer got lost, the next one does not build on pieces that are gone',
  async (t) => {
    const memory = await newStore();
    const store = new FaultyStore(memory);
    const service = await startService(store);
    t.teardown(() => service.stop());
    await submit(service, { op: 'patch_host', dma_entry_limit: 5 });
    await service.checkpoint('default');
    await submit(service, { op: 'patch_host', dma_entry_limit: 6 });
    store.fate = 'after';
    store.failAt = store.calls.length + 2;
    await t.rejects(service.checkpoint('default'), /writeManifest/);
    await submit(service, { op: 'patch_host', dma_entry_limit: 5 });
    await service.checkpoint('default');
    const before = await fingerprintOf(service);
    const again = await startService(memory);
    t.strictSame(again.readiness().quarantined, []);
    t.strictSame(await fingerprintOf(again), before);
  },
);

/** A store whose journal rows are changed on their way out. */
async function tampered(
  change: (row: JournalRow) => JournalRow | null,
): Promise<{ store: MemoryStore; service: Service }> {
  const store = await newStore();
  const first = await startService(store);
  for (const command of [notifier(), map(0n), pin(1)]) await submit(first, command, { key: command.op });
  const journal = store.journal.bind(store);
  let active = true;
  store.journal = async (...args) => {
    const rows = await journal(...args);
    return active ? rows.map(change).filter((row) => row !== null) : rows;
  };
  const service = await startService(store);
  active = false;
  return { store, service };
}

const bad: [string, (row: JournalRow) => JournalRow | null, RegExp, number][] = [
  [
    'another digest',
    (row) => (row.seq === 2 ? { ...row, digest: new Uint8Array(16), revision: 77 } : row),
    /journal seq 2 \(map_dma\) has another outcome.*instead of 0{32}/,
    77,
  ],
  ['a gap', (row) => (row.seq === 2 ? null : row), /journal seq 3 \(pin_pages\) follows seq 1/, SEMANTICS_REVISION],
  [
    'bytes that are no call',
    (row) => (row.seq === 3 ? { ...row, call: row.call.slice(0, 9) } : row),
    /journal seq 3 \(pin_pages\) can't be executed/,
    SEMANTICS_REVISION,
  ],
];

for (const [what, change, reason, revision] of bad) {
  t.test(`${what} in the journal quarantines the host: 503, listed, and reset and delete work`, async (t) => {
    const { service } = await tampered(change);
    t.teardown(() => service.stop());
    t.match(service.readiness(), {
      ready: true,
      draining: false,
      quarantined: [{ host: 'default', reason, revision }],
    });
    for (const request of [
      () => submit(service, map(0n)),
      () => service.read('default', () => null),
      () => service.journal('default', 0, 1),
      () => service.notifications('default', 'mdev0', 0, new AbortController().signal),
      () => service.sync('default'),
    ])
      await t.rejects((request as () => Promise<unknown>)(), {
        name: 'HostUnavailable',
        reason: 'quarantined',
        retry_after_s: 60,
      });
    t.match(await service.host('default'), { state: 'quarantined', counters: null, quarantined: { reason, revision } });
    t.match(await service.resetHost('default'), { seq: 0, state: 'alive', quarantined: null });
    t.strictSame(service.readiness().quarantined, []);
    t.match(await submit(service, map(0n), { key: 'map_dma' }), { seq: 1, replayed: false });
  });
}

t.test('a quarantined host can be deleted; other hosts are served', async (t) => {
  const { service } = await tampered((row) => ({ ...row, digest: new Uint8Array(16) }));
  t.teardown(() => service.stop());
  await service.createHost('other', {
    profile: '5.15',
    template: 'default',
    dma_entry_limit: 1,
    notifier_timeout_ms: 1,
    total_pages: 2 ** 24,
    fixes: [],
    ttl_s: null,
  });
  t.match(await submit(service, map(0n), {}, 'other'), { outcome: { ret: 0 } });
  t.match(await service.deleteHost('default'), { items: null });
  t.strictSame(
    (await service.hosts()).map(({ id }) => id),
    ['other'],
  );
});

t.test(
  'a host whose options are none, or of a profile that nobody knows, is quarantined: only DELETE is left',
  async (t) => {
    for (const [change, reason] of [
      [() => '{', /the options can't be read/],
      [() => 'null', /the options can't be read/],
      [() => '{}', /the options can't be read/],
      [(text: string) => text.replace('"ttl_s":null', '"ttl_s":"soon"'), /ttl_s/],
      [(text: string) => text.replaceAll('5.15', '9.99'), /profile '9\.99'/],
    ] as [(text: string) => string, RegExp][]) {
      const store = await newStore();
      const first = await startService(store);
      await first.createHost('other', DEFAULT_HOST_OPTIONS);
      await first.stop();
      await store.open();
      const [row] = await store.hosts();
      const changed = { ...row, options: change(row?.options ?? '') } as HostRow;
      await store.commit({ deleteHosts: [], upsertHosts: [changed], journal: [], idempotency: [] });
      const service = await startService(store);
      t.match(service.readiness().quarantined, [{ host: 'default', reason }], String(reason));
      t.match(await service.hosts(), [{ id: 'default', state: 'quarantined' }, { id: 'other' }]);
      for (const refused of [
        () => service.createHost('default', { ...DEFAULT_HOST_OPTIONS, template: 'default' }),
        () => service.resetHost('default'),
        () => submit(service, map(0n)),
      ])
        await t.rejects(refused() as Promise<unknown>, { name: 'HostUnavailable', message: /quarantined/ });
      await service.deleteHost('default');
      t.match(await service.createHost('default', DEFAULT_HOST_OPTIONS), { created: true });
      await service.stop();
    }
  },
);

t.test(
  'text with a lone surrogate is executed as it will be read again, so that a restart finds the same outcome',
  async (t) => {
    const store = await newStore();
    const first = await startService(store);
    const make = (secret: string): Command => ({
      op: 'put_device_in_container',
      device: 'dx',
      container: 'vfio0',
      notifier: {
        id: 'nx',
        events: 1,
        type: 0,
        priority: 0,
        delivery: { kind: 'webhook', url: 'http://127.0.0.1/', secret },
      },
    });
    for (const length of [1, 100])
      for (const unit of ['\ud800', '\ud801', '\udfff', '\ufffd']) await submit(first, make(unit.repeat(length)));
    const before = await fingerprintOf(first);
    // As a kill leaves it: no last checkpoint.
    await store.close();
    await first.stop().catch(() => {});
    await store.open();
    const second = await startService(store);
    t.teardown(() => second.stop());
    t.strictSame(second.readiness().quarantined, []);
    t.strictSame(await fingerprintOf(second), before);
  },
);

t.test('a checkpoint that is damaged, or of a later revision, quarantines the host', async (t) => {
  const damages: [(store: MemoryStore) => void, RegExp][] = [
    [
      (store) => {
        const manifest = store.manifest.bind(store);
        store.manifest = async (...args) => {
          const found = await manifest(...args);
          return found && { ...found, revision: SEMANTICS_REVISION + 1 };
        };
      },
      new RegExp(`semantics revision ${SEMANTICS_REVISION + 1} is a later one`),
    ],
    [
      (store) => {
        const read = store.sections.bind(store);
        store.sections = async function* (manifest) {
          for await (const section of read(manifest)) if (section.key !== 'host') yield section;
        };
      },
      /sections are missing: host/,
    ],
    [
      (store) => {
        const read = store.sections.bind(store);
        store.sections = async function* (manifest) {
          for await (const { key, bytes } of read(manifest)) yield { key, bytes: bytes.subarray(0, bytes.length - 1) };
        };
      },
      /the checkpoint can't be read/,
    ],
  ];
  for (const [damage, reason] of damages) {
    const store = await newStore();
    const first = await startService(store);
    await submit(first, map(0n));
    await first.stop();
    await store.open();
    damage(store);
    const service = await startService(store);
    t.match(service.readiness().quarantined, [{ host: 'default', reason }]);
    await service.stop();
  }
});

t.test('a store that fails while hosts are read is asked again, and in the end the host is quarantined', async (t) => {
  const memory = await newStore();
  const first = await startService(memory);
  await submit(first, map(0n));
  await first.stop();
  for (const { times, quarantined } of [
    { times: 1, quarantined: 0 },
    { times: 3, quarantined: 1 },
  ]) {
    await memory.open();
    const store = new FaultyStore(memory);
    store.failAt = 2;
    store.sticky = true;
    const clock = new ManualClock();
    const starting = startService(store, { clock });
    for (let i = 1; i < times; i++) {
      await settle();
      clock.advance(1000);
    }
    await settle();
    store.failAt = 0;
    clock.advance(1000);
    const service = await starting;
    t.equal(service.readiness().quarantined.length, quarantined);
    await service.stop();
  }
});
