// The store port: one suite, run against every store.

import { join } from 'node:path';
import Database from 'better-sqlite3';
import t, { type Test } from 'tap';
import type { Projection, VfioDmaRow, VfioPfnRow } from '../../src/kernel/projection.ts';
import type { Commit, HostRow, IdempotencyRow, JournalRow, Manifest, Section, Store } from '../../src/service/ports.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { storeOfUrl } from '../../src/store/open-store.ts';

const NOTHING: Commit = { deleteHosts: [], upsertHosts: [], journal: [], idempotency: [] };
const U64_MAX = 2n ** 64n - 1n;

const host = (id: string, generation = 1, options = '{"profile":"5.15"}'): HostRow => ({
  id,
  generation,
  options,
  created_at: 1_700_000_000_123,
});

/** Bytes of every value, different for each seed. */
const bytes = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + seed * 31) & 0xff);

const row = (of: string, seq: number, generation = 1): JournalRow => ({
  host: of,
  generation,
  seq,
  at: 1_700_000_000_000 + seq,
  request_id: `request-${seq}`,
  op: 'pin_pages',
  call: bytes(seq % 5 === 0 ? 0 : 300, seq),
  digest: bytes(16, seq + 1),
  revision: 3,
});

const key = (of: string, name: string, seq: number, answered = true, generation = 1): IdempotencyRow => ({
  host: of,
  generation,
  key: name,
  body_hash: bytes(32, seq),
  seq,
  operation: answered ? null : `unmap-${seq}`,
  answer: answered ? bytes(40, seq + 2) : null,
});

const range = (first: number, end: number): number[] => Array.from({ length: end - first }, (_, i) => first + i);
const seqs = (rows: { seq: number }[]): number[] => rows.map(({ seq }) => seq);

async function readAll(store: Store, manifest: Manifest): Promise<Section[]> {
  const sections: Section[] = [];
  for await (const { key, bytes } of store.sections(manifest)) sections.push({ key, bytes: new Uint8Array(bytes) });
  return sections;
}

const dmaRow = (slot: number, npinned = 0): VfioDmaRow => ({
  slot,
  container: 'vfio0',
  iova: `0x${(slot * 0x100000).toString(16)}`,
  vaddr: '0xfffffffffffff000',
  size: '0x8000000000000000',
  prot: 3,
  task: 'qemu',
  npinned,
});

const pfnRow = (slot: number, ref_count = 1): VfioPfnRow => ({
  slot,
  dma_slot: 2,
  iova: `0x${(slot * 0x1000).toString(16)}`,
  pfn: 2 ** 52 - 1 - slot,
  ref_count,
});

const objects = (lockedVm: number): Projection => ({
  part: 'objects',
  tasks: [
    {
      id: 'qemu',
      pid: 4242,
      mm: 'mm-1',
      thread_of: null,
      alive: true,
      rlimit_memlock: U64_MAX - 1n,
      cap_ipc_lock: false,
      locked_vm: lockedVm,
    },
    {
      id: 'thread',
      pid: 4243,
      mm: null,
      thread_of: 'qemu',
      alive: false,
      rlimit_memlock: null,
      cap_ipc_lock: true,
      locked_vm: null,
    },
  ],
  containers: [{ id: 'vfio0', iommu_type: 'TYPE1v2', dma_avail: 65535, dead: null }],
  groups: [{ id: '26', kind: 'mdev', container: 'vfio0', open: true }],
  devices: [{ id: 'mdev0', group: '26', open: true }],
  notifiers: [
    {
      id: 'n1',
      device: 'mdev0',
      container: 'vfio0',
      type: 1,
      priority: -5,
      delivery: 'webhook "quoted"',
      registered: true,
    },
  ],
});

/** The projected rows of a host as SQL or the memory store shows them. */
interface Shown {
  seq: number | null;
  locked_vm: number | null;
  dma: [slot: number, npinned: number][];
  pfn: [slot: number, ref_count: number][];
}

interface Kind {
  name: string;
  /** The same database at each call. */
  store(folder: string): Store;
  shown(folder: string, store: Store, host: string): Shown;
}

const sqlite: Kind = {
  name: 'sqlite',
  store: (folder) => storeOfUrl(`file:${join(folder, 'deep/er/emulator.db')}`),
  shown(folder, _store, of) {
    const sql = new Database(join(folder, 'deep/er/emulator.db'), { readonly: true });
    const pairs = (statement: string) => sql.prepare<[string], [number, number]>(statement).raw().all(of);
    const one = (statement: string) => sql.prepare<[string], number>(statement).pluck().get(of) ?? null;
    const shown: Shown = {
      seq: one('SELECT seq FROM projection WHERE host = ?'),
      locked_vm: one("SELECT locked_vm FROM task WHERE host = ? AND id = 'qemu'"),
      dma: pairs('SELECT slot, npinned FROM vfio_dma WHERE host = ? ORDER BY slot'),
      pfn: pairs('SELECT slot, ref_count FROM vfio_pfn WHERE host = ? ORDER BY slot'),
    };
    sql.close();
    return shown;
  },
};

const memoryStores = new Map<string, MemoryStore>();
const memory: Kind = {
  name: 'memory',
  store(folder) {
    const store = memoryStores.get(folder) ?? new MemoryStore();
    memoryStores.set(folder, store);
    return store;
  },
  shown(_folder, store, of) {
    const rows = (store as MemoryStore).projected(of);
    const sorted = <T extends { slot: number }>(slots: Map<number, T> | undefined): T[] =>
      [...(slots?.values() ?? [])].sort((a, b) => a.slot - b.slot);
    return {
      seq: rows?.seq ?? null,
      locked_vm: rows?.objects?.tasks[0]?.locked_vm ?? null,
      dma: sorted(rows?.dma).map(({ slot, npinned }) => [slot, npinned]),
      pfn: sorted(rows?.pfn).map(({ slot, ref_count }) => [slot, ref_count]),
    };
  },
};

/** Runs a test on a store of its own, which is open and is closed afterwards. */
function on(
  t: Test,
  kind: Kind,
  title: string,
  run: (t: Test, store: Store, folder: string) => Promise<void>,
): Promise<unknown> {
  return t.test(title, async (t) => {
    const folder = t.testdir();
    const store = kind.store(folder);
    await store.open();
    t.teardown(() => store.close());
    await run(t, store, folder);
  });
}

/** A second store on the same database, after the first is closed. */
async function reopened(kind: Kind, store: Store, folder: string): Promise<Store> {
  await store.close();
  const again = kind.store(folder);
  await again.open();
  return again;
}

for (const kind of [sqlite, memory]) {
  t.test(kind.name, async (t) => {
    await on(t, kind, 'an empty store: nothing is found', async (t, store) => {
      t.same(await store.hosts(), []);
      t.same(await store.journal('a', 1, 0, 10), []);
      t.equal(await store.oldestJournalSeq('a', 1), null);
      t.equal(await store.idempotency('a', 1, 'k'), null);
      t.same(await store.unansweredIdempotency('a', 1), []);
      t.equal(await store.manifest('a', 1), null);
      t.equal(await store.trim('a', 1, 100, 0, 100), 0);
      await store.commit(NOTHING);
      t.same(await store.hosts(), []);
    });

    await on(t, kind, 'commit: hosts are created, changed and listed by id', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('b'), host('a'), host('Z.9_-')] });
      t.same(await store.hosts(), [host('Z.9_-'), host('a'), host('b')]);
      await store.commit({ ...NOTHING, upsertHosts: [host('b', 1, '{"ttl_s":5}')] });
      t.same((await store.hosts())[2], host('b', 1, '{"ttl_s":5}'));
    });

    await on(t, kind, 'journal: rows come back byte for byte, ascending, in pages', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a'), host('b')] });
      const rows = range(1, 701).map((seq) => row('a', seq));
      await store.commit({ ...NOTHING, journal: [...rows.slice(0, 600), row('b', 1)] });
      await store.commit({ ...NOTHING, journal: rows.slice(600) });
      t.same(seqs(await store.journal('a', 1, 0, 3)), [1, 2, 3]);
      t.same(seqs(await store.journal('a', 1, 698, 100)), [699, 700]);
      t.same(await store.journal('a', 1, 700, 10), []);
      const back = (await store.journal('a', 1, 0, 10_000)).map((r) => ({
        ...r,
        call: new Uint8Array(r.call),
        digest: new Uint8Array(r.digest),
      }));
      t.strictSame(back, rows);
      t.same(seqs(await store.journal('b', 1, 0, 10)), [1]);
      t.equal(await store.oldestJournalSeq('a', 1), 1);
    });

    await on(t, kind, 'journal: numbers beyond 32 bit and a full 8-bit text survive', async (t, store) => {
      const wide: JournalRow = {
        ...row('a', 2 ** 53 - 1),
        at: 8.64e15,
        request_id: `"'\\ \u{1f600} é`,
        revision: 2 ** 31 + 5,
      };
      await store.commit({ ...NOTHING, upsertHosts: [host('a')], journal: [wide] });
      const [back] = await store.journal('a', 1, 2 ** 53 - 2, 1);
      t.equal(back?.seq, wide.seq);
      t.equal(back?.at, wide.at);
      t.equal(back?.request_id, wide.request_id);
      t.equal(back?.revision, wide.revision);
    });

    await on(t, kind, 'commit: a duplicate seq is an error and nothing of the commit is left', async (t, store) => {
      await store.commit({
        ...NOTHING,
        upsertHosts: [host('a'), host('gone')],
        journal: [row('a', 1), row('gone', 1)],
      });
      for (const journal of [
        [row('a', 2), row('a', 1)],
        [row('a', 2), row('a', 2)],
      ]) {
        await t.rejects(
          store.commit({
            deleteHosts: ['gone'],
            upsertHosts: [host('b'), host('a', 1, 'changed')],
            journal,
            idempotency: [key('a', 'k', 2)],
          }),
        );
        t.same(await store.hosts(), [host('a'), host('gone')]);
        t.same(seqs(await store.journal('a', 1, 0, 10)), [1]);
        t.same(seqs(await store.journal('gone', 1, 0, 10)), [1]);
        t.equal(await store.idempotency('a', 1, 'k'), null);
      }
      await store.commit({ ...NOTHING, journal: [row('a', 2)] });
      t.same(seqs(await store.journal('a', 1, 0, 10)), [1, 2], 'the next commit works');
    });

    await on(t, kind, 'commit: a row of a life that is not there is an error', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a', 3)] });
      await t.rejects(store.commit({ ...NOTHING, journal: [row('b', 1)] }), { message: /host b has no generation 1/ });
      await t.rejects(store.commit({ ...NOTHING, idempotency: [key('a', 'k', 1)] }), { message: /no generation 1/ });
      await t.rejects(store.commit({ ...NOTHING, upsertHosts: [host('a', 2)] }), { message: /generation 2 begins/ });
      t.same(await store.hosts(), [host('a', 3)]);
    });

    await on(
      t,
      kind,
      'idempotency: inserted, answered later, found by key, unanswered ones listed',
      async (t, store) => {
        const open = key('a', 'k1', 5, false);
        await store.commit({
          ...NOTHING,
          upsertHosts: [host('a'), host('b')],
          idempotency: [open, key('a', 'k2', 6), key('a', 'k3', 7, false), key('b', 'k1', 1)],
        });
        const found = await store.idempotency('a', 1, 'k1');
        t.equal(found?.operation, 'unmap-5');
        t.equal(found?.answer, null);
        t.strictSame(new Uint8Array(found?.body_hash ?? []), open.body_hash);
        t.equal(await store.idempotency('a', 1, 'k9'), null);
        t.equal(await store.idempotency('a', 2, 'k1'), null);
        t.same(seqs(await store.unansweredIdempotency('a', 1)), [5, 7]);
        t.same(await store.unansweredIdempotency('b', 1), []);
        await store.commit({ ...NOTHING, idempotency: [key('a', 'k1', 5, true)] });
        t.same(seqs(await store.unansweredIdempotency('a', 1)), [7]);
        const answered = await store.idempotency('a', 1, 'k1');
        t.equal(answered?.operation, null);
        t.strictSame(new Uint8Array(answered?.answer ?? []), bytes(40, 7));
        t.strictSame(new Uint8Array((await store.idempotency('b', 1, 'k1'))?.answer ?? []), bytes(40, 3));
      },
    );

    await on(
      t,
      kind,
      'a new generation: rows of the older one are gone, its late writes are ignored',
      async (t, store, folder) => {
        await fill(store, 'a', 1);
        await fill(store, 'b', 1);
        await store.commit({ ...NOTHING, upsertHosts: [host('a', 2)], journal: [row('a', 4, 1), row('a', 1, 2)] });
        t.same(seqs(await store.journal('a', 2, 0, 10)), [1], 'rows of the life that this commit ends are left out');
        t.equal(await store.idempotency('a', 2, 'k1'), null);
        for (const generation of [1, 2]) t.equal(await store.manifest('a', generation), null);
        t.same(await store.journal('a', 1, 0, 10), []);
        t.equal(await store.oldestJournalSeq('a', 1), null);
        t.same(kind.shown(folder, store, 'a'), { seq: null, locked_vm: null, dma: [], pfn: [] });

        await store.writeSections('a', 1, 9, [{ key: 'x', bytes: bytes(1, 1) }]);
        await store.writeManifest({ host: 'a', generation: 1, seq: 9, revision: 1, sections: { x: 9 } });
        await store.project('a', 1, 9, [objects(9)]);
        t.equal(await store.trim('a', 1, 100, 0, 100), 0);
        for (const generation of [1, 2]) t.equal(await store.manifest('a', generation), null);
        t.equal(kind.shown(folder, store, 'a').seq, null);
        await untouched(t, kind, store, folder, 'b');
      },
    );

    await on(
      t,
      kind,
      'deleteHosts: every row of the host is gone, and a host of the same name starts empty',
      async (t, store, folder) => {
        await fill(store, 'a', 1);
        await fill(store, 'b', 1);
        await store.commit({ ...NOTHING, deleteHosts: ['a', 'never-there'] });
        t.same(await store.hosts(), [host('b')]);
        t.same(await store.journal('a', 1, 0, 10), []);
        t.same(kind.shown(folder, store, 'a'), { seq: null, locked_vm: null, dma: [], pfn: [] });
        await store.commit({ ...NOTHING, upsertHosts: [host('a', 1)], journal: [row('a', 1)] });
        t.same(seqs(await store.journal('a', 1, 0, 10)), [1]);
        t.equal(await store.idempotency('a', 1, 'k1'), null);
        t.equal(await store.manifest('a', 1), null);
        await fill(store, 'a', 1, 2);
        await store.commit({ ...NOTHING, deleteHosts: ['a'], upsertHosts: [host('a', 1)] });
        t.same(await store.hosts(), [host('a'), host('b')]);
        t.same(await store.journal('a', 1, 0, 10), [], 'deleted and created in one commit');
        t.equal(kind.shown(folder, store, 'a').seq, null);
        await untouched(t, kind, store, folder, 'b');
      },
    );

    await on(t, kind, 'checkpoints: valid with the manifest only, superseded pieces are dropped', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a')] });
      await store.writeSections('a', 1, 10, [
        { key: 'pages', bytes: bytes(5000, 1) },
        { key: 'rest', bytes: bytes(10, 2) },
      ]);
      t.equal(await store.manifest('a', 1), null);
      const first: Manifest = { host: 'a', generation: 1, seq: 10, revision: 2, sections: { rest: 10, pages: 10 } };
      await store.writeManifest(first);
      t.same(await store.manifest('a', 1), first);
      t.strictSame(await readAll(store, first), [
        { key: 'pages', bytes: bytes(5000, 1) },
        { key: 'rest', bytes: bytes(10, 2) },
      ]);

      await store.writeSections('a', 1, 20, [{ key: 'rest', bytes: bytes(0, 3) }]);
      await store.writeSections('a', 1, 20, [{ key: 'abandoned', bytes: bytes(1, 1) }]);
      t.same(await store.manifest('a', 1), first, 'pieces of the next checkpoint change nothing');
      t.strictSame((await readAll(store, first))[1], { key: 'rest', bytes: bytes(10, 2) });
      const second: Manifest = { host: 'a', generation: 1, seq: 20, revision: 3, sections: { rest: 20, pages: 10 } };
      await store.writeManifest(second);
      t.same(await store.manifest('a', 1), second);
      t.strictSame(await readAll(store, second), [
        { key: 'pages', bytes: bytes(5000, 1) },
        { key: 'rest', bytes: bytes(0, 3) },
      ]);
      await t.rejects(readAll(store, first), {
        message: /section rest at seq 10 of the checkpoint at seq 10 is missing/,
      });
      await t.rejects(
        store.writeManifest({ ...second, seq: 30, sections: { abandoned: 20 } }),
        { message: /section abandoned at seq 20 .* is missing/ },
        'a piece that no manifest named is dropped too',
      );
      await t.rejects(store.writeManifest(first), { message: /at seq 20 is newer/ });
      t.same(await store.manifest('a', 1), second);
      await store.writeSections('a', 1, 20, [{ key: 'rest', bytes: bytes(4, 4) }]);
      t.strictSame((await readAll(store, second))[1]?.bytes, bytes(4, 4), 'the same piece again replaces it');
    });

    await on(t, kind, 'checkpoints: one of 12 MiB in pieces of all sizes is read whole', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a')] });
      const sections = range(0, 700).map((i) => ({
        key: `s${String(i).padStart(4, '0')}`,
        bytes: bytes(i % 100 === 0 ? 1_500_000 : i, i),
      }));
      await store.writeSections('a', 1, 1, sections);
      const manifest = {
        host: 'a',
        generation: 1,
        seq: 1,
        revision: 1,
        sections: Object.fromEntries(sections.map((s) => [s.key, 1])),
      };
      await store.writeManifest(manifest);
      const back = await readAll(store, manifest);
      t.equal(back.length, sections.length);
      t.equal(
        back.findIndex((s, i) => s.key !== sections[i]?.key || Buffer.compare(s.bytes, sections[i].bytes) !== 0),
        -1,
      );
    });

    await on(t, kind, 'trim: oldest journal rows and oldest keys, at most `limit` a call', async (t, store) => {
      await store.commit({
        ...NOTHING,
        upsertHosts: [host('a'), host('b')],
        journal: [...range(1, 11).map((seq) => row('a', seq)), row('b', 1)],
        idempotency: [...range(1, 7).map((seq) => key('a', `k${seq}`, seq)), key('b', 'k1', 1)],
      });
      t.equal(await store.trim('a', 1, 5, 4, 3), 3);
      t.equal(await store.oldestJournalSeq('a', 1), 4);
      t.ok(await store.idempotency('a', 1, 'k1'));
      t.equal(await store.trim('a', 1, 5, 4, 3), 3);
      t.equal(await store.oldestJournalSeq('a', 1), 6);
      t.equal(await store.idempotency('a', 1, 'k1'), null);
      t.ok(await store.idempotency('a', 1, 'k2'));
      t.equal(await store.trim('a', 1, 5, 4, 3), 1);
      t.equal(await store.idempotency('a', 1, 'k2'), null);
      t.ok(await store.idempotency('a', 1, 'k3'));
      t.equal(await store.trim('a', 1, 5, 4, 3), 0);
      t.same(seqs(await store.journal('a', 1, 0, 100)), [6, 7, 8, 9, 10]);
      t.same(seqs(await store.journal('b', 1, 0, 100)), [1]);
      t.ok(await store.idempotency('b', 1, 'k1'));
    });

    await on(t, kind, 'project: a part replaces exactly its slots, and the seq is stated', async (t, store, folder) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a'), host('b')] });
      const pfns = (first: number, end: number, of: number[], refs: number): Projection => ({
        part: 'pfn',
        first_slot: first,
        end_slot: end,
        rows: of.map((slot) => pfnRow(slot, refs)),
      });
      await store.project('b', 1, 1, [objects(1), pfns(0, 8, [3], 9)]);
      await store.project('a', 1, 4, [
        objects(7),
        { part: 'dma', first_slot: 0, end_slot: 8, rows: [dmaRow(2), dmaRow(5)] },
        pfns(0, 4, [0, 1, 3], 1),
        pfns(4, 8, [4, 7], 1),
        pfns(8, 12, [8], 1),
      ]);
      t.same(kind.shown(folder, store, 'a'), {
        seq: 4,
        locked_vm: 7,
        dma: [
          [2, 0],
          [5, 0],
        ],
        pfn: [
          [0, 1],
          [1, 1],
          [3, 1],
          [4, 1],
          [7, 1],
          [8, 1],
        ],
      });
      await store.project('a', 1, 9, [
        pfns(4, 8, [5], 2),
        { part: 'dma', first_slot: 5, end_slot: 6, rows: [dmaRow(5, 3)] },
      ]);
      t.same(kind.shown(folder, store, 'a'), {
        seq: 9,
        locked_vm: 7,
        dma: [
          [2, 0],
          [5, 3],
        ],
        pfn: [
          [0, 1],
          [1, 1],
          [3, 1],
          [5, 2],
          [8, 1],
        ],
      });
      await store.project('a', 1, 10, []);
      t.equal(kind.shown(folder, store, 'a').seq, 10);
      await t.rejects(store.project('a', 1, 11, [objects(1), pfns(0, 4, [4], 1)]), {
        message: /pfn slot 4 lies outside of \[0, 4\)/,
      });
      t.match(kind.shown(folder, store, 'a'), { seq: 10, locked_vm: 7 });
      t.same(kind.shown(folder, store, 'b').pfn, [[3, 9]]);
    });

    await on(t, kind, 'calls at the same time: each is whole and in the order of the calls', async (t, store) => {
      await store.commit({ ...NOTHING, upsertHosts: [host('a')] });
      const commits = range(1, 31).map((seq) =>
        store.commit({ ...NOTHING, journal: [row('a', 2 * seq), row('a', 2 * seq + 1)] }),
      );
      const read = store.journal('a', 1, 0, 1000);
      const duplicate = store.commit({ ...NOTHING, journal: [row('a', 100), row('a', 2)] });
      const more = store.commit({ ...NOTHING, journal: [row('a', 101)] });
      await t.rejects(duplicate);
      await Promise.all([...commits, more]);
      t.same(seqs(await read), range(2, 62));
      t.same(seqs(await store.journal('a', 1, 61, 10)), [101]);
    });

    await on(
      t,
      kind,
      'close: what was called before is done, calls after it fail, reopening finds everything',
      async (t, store, folder) => {
        await fill(store, 'a', 1);
        const late = store.commit({ ...NOTHING, journal: [row('a', 4)] });
        const again = await reopened(kind, store, folder);
        t.teardown(() => again.close());
        await late;
        if (again !== store) await t.rejects(store.hosts(), { message: /closed/ });
        t.same(await again.hosts(), [host('a')]);
        t.same(seqs(await again.journal('a', 1, 0, 10)), [1, 2, 3, 4]);
        t.ok(await again.idempotency('a', 1, 'k1'));
        const manifest = await again.manifest('a', 1);
        t.equal(manifest?.seq, 3);
        t.equal(kind.shown(folder, again, 'a').seq, 3);
        await again.close();
        await t.rejects(again.commit(NOTHING), { message: /closed/ });
      },
    );

    await on(t, kind, 'open: a second time is an error', async (t, store) => {
      await t.rejects(store.open(), { message: /open already/ });
      t.same(await store.hosts(), []);
    });
  });
}

/** One row of every kind. */
async function fill(store: Store, id: string, generation: number, firstSeq = 1): Promise<void> {
  await store.commit({
    ...NOTHING,
    upsertHosts: [host(id, generation)],
    journal: range(firstSeq, 4).map((seq) => row(id, seq, generation)),
    idempotency: [key(id, 'k1', 1, true, generation), key(id, 'k2', 2, false, generation)],
  });
  await store.writeSections(id, generation, 3, [{ key: 'all', bytes: bytes(100, 1) }]);
  await store.writeManifest({ host: id, generation, seq: 3, revision: 1, sections: { all: 3 } });
  await store.project(id, generation, 3, [
    objects(5),
    { part: 'dma', first_slot: 0, end_slot: 4, rows: [dmaRow(1)] },
    { part: 'pfn', first_slot: 0, end_slot: 4, rows: [pfnRow(2)] },
  ]);
}

/** What fill() wrote is all there. */
async function untouched(t: Test, kind: Kind, store: Store, folder: string, id: string): Promise<void> {
  t.same(seqs(await store.journal(id, 1, 0, 10)), [1, 2, 3]);
  t.same(seqs(await store.unansweredIdempotency(id, 1)), [2]);
  const manifest = await store.manifest(id, 1);
  t.equal(manifest?.seq, 3);
  if (manifest !== null) t.strictSame(await readAll(store, manifest), [{ key: 'all', bytes: bytes(100, 1) }]);
  t.same(kind.shown(folder, store, id), { seq: 3, locked_vm: 5, dma: [[1, 0]], pfn: [[2, 1]] });
}
