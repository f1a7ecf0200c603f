// What only the SQLite store has: a file of its own, migrations, a lock, rows that other programs can see.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import Database from 'better-sqlite3';
import t, { type Test } from 'tap';
import type { Commit, JournalRow, Store } from '../../src/service/ports.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { openStore, storeOfUrl } from '../../src/store/open-store.ts';
import { applyMigrations, committedMigrations, missingMigration } from '../../src/store/schema-engine.ts';
import { fileOfUrl } from '../../src/store/sqlite-file.ts';

const NOTHING: Commit = { deleteHosts: [], upsertHosts: [], journal: [], idempotency: [] };
const host = (id: string, generation = 1) => ({ id, generation, options: '{}', created_at: 1 });
const row = (of: string, seq: number, generation = 1): JournalRow => ({
  host: of,
  generation,
  seq,
  at: seq,
  request_id: 'r',
  op: 'map_dma',
  call: new Uint8Array(100),
  digest: new Uint8Array(16),
  revision: 1,
});
const range = (first: number, end: number): number[] => Array.from({ length: end - first }, (_, i) => first + i);

async function opened(t: Test, file: string): Promise<Store> {
  const store = await openStore(`file:${file}`);
  t.teardown(() => store.close());
  return store;
}

/** All rows that a statement gives to another program. */
function sql<Row>(file: string, statement: string): Row[] {
  const connection = new Database(file, { readonly: true });
  try {
    return connection.prepare<[], Row>(statement).all();
  } finally {
    connection.close();
  }
}

const count = (file: string, table: string): number =>
  sql<{ n: number }>(file, `SELECT count(*) AS n FROM ${table}`)[0]?.n ?? -1;

t.test('DATABASE_URL: paths from the working directory and from the root, memory, and nothing else', async (t) => {
  t.equal(fileOfUrl('file:./data/emulator.db'), join(process.cwd(), 'data/emulator.db'));
  t.equal(fileOfUrl('file:x.db'), join(process.cwd(), 'x.db'));
  t.equal(fileOfUrl('file:/var/lib/x.db'), '/var/lib/x.db');
  t.equal(fileOfUrl('file:///var/lib/a%20b.db'), '/var/lib/a b.db');
  t.ok(storeOfUrl('memory:') instanceof MemoryStore);
  for (const url of ['file:', 'file:./data/', 'file:x.db?mode=ro', 'mysql://user:secret@h/x', 'x.db', '']) {
    t.throws(() => storeOfUrl(url), { message: /DATABASE_URL/ }, `'${url}' is refused`);
  }
  t.throws(
    () => storeOfUrl('mysql://user:secret@h/x'),
    { message: 'DATABASE_URL mysql: is not supported: use file:<path> or memory:' },
    'a password is not repeated',
  );
});

t.test('migrations: they lead to prisma/schema.prisma', async (t) => {
  t.equal(await missingMigration(committedMigrations()), '');
  t.match(await missingMigration([]), /CREATE TABLE "vfio_pfn"/, 'and the comparison sees a difference');
});

t.test('migrations: applied once, all or nothing', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const migrations = committedMigrations();
  const broken = { name: '9999_broken', sql: 'CREATE TABLE new (a INT); CREATE TABLE host (a INT);', checksum: '' };
  await t.rejects(applyMigrations(file, [...migrations, broken]), { message: /table host already exists/ });
  t.equal(count(file, 'sqlite_schema'), 0, 'a failure leaves an empty database');
  t.same(
    await applyMigrations(file, migrations),
    migrations.map(({ name }) => name),
  );
  t.same(await applyMigrations(file, migrations), []);
  await t.rejects(applyMigrations(file, [...migrations, broken]), { message: /table host already exists/ });
  t.equal(count(file, "sqlite_schema WHERE name = 'new'"), 0);
  t.same(
    sql(file, 'SELECT migration_name, checksum FROM _prisma_migrations'),
    migrations.map(({ name, checksum }) => ({ migration_name: name, checksum })),
  );
});

t.test('open: what cannot be a database of ours is refused in plain words', async (t) => {
  const folder = t.testdir({
    'text.db': 'this is no database '.repeat(100),
    blocked: 'a file where a folder should be',
  });
  await t.rejects(openStore(`file:${join(folder, 'text.db')}`), {
    message: /text\.db cannot be opened: file is not a database/,
  });
  await t.rejects(openStore(`file:${join(folder, 'blocked/x.db')}`), {
    message: /the folder .*blocked of the database cannot be created/,
  });
  mkdirSync(join(folder, 'folder.db'));
  await t.rejects(openStore(`file:${join(folder, 'folder.db')}`), {
    message: /folder\.db cannot be opened: unable to open/,
  });
  mkdirSync(join(folder, 'locked.db.lock'));
  await t.rejects(openStore(`file:${join(folder, 'locked.db')}`), {
    message: /locked\.db cannot be locked: unable to open/,
  });

  const foreign = join(folder, 'foreign.db');
  new Database(foreign).exec('CREATE TABLE cats (name TEXT)').close();
  await t.rejects(openStore(`file:${foreign}`), { message: /foreign\.db .*tables of another program/ });
  t.same(sql(foreign, "SELECT name FROM sqlite_schema WHERE name <> 'cats'"), [], 'and it is left alone');
});

t.test('open: a schema of a newer or a different release is refused, and nothing is changed', async (t) => {
  const file = join(t.testdir(), 'x.db');
  await (await openStore(`file:${file}`)).close();
  const edit = new Database(file);
  t.teardown(() => edit.close());
  edit.exec(`INSERT INTO _prisma_migrations (id, checksum, migration_name, applied_steps_count, finished_at)
    VALUES ('x', 'y', '0999_from_the_future', 1, 1)`);
  await t.rejects(openStore(`file:${file}`), { message: /newer release.* 0999_from_the_future/ });
  edit.exec("DELETE FROM _prisma_migrations WHERE id = 'x'; UPDATE _prisma_migrations SET checksum = 'other'");
  await t.rejects(openStore(`file:${file}`), { message: /another form of the migration 0001_init/ });
  edit.exec(`UPDATE _prisma_migrations SET checksum = '${committedMigrations()[0]?.checksum}'`);
  await (await openStore(`file:${file}`)).close();
});

t.test('open: the database is taken by one process, and free again as soon as that is killed', async (t) => {
  const file = join(t.testdir(), 'sub/x.db');
  const program = `
    import { openStore } from ${JSON.stringify(String(new URL('../../src/store/open-store.ts', import.meta.url)))};
    const store = await openStore(${JSON.stringify(`file:${file}`)});
    await store.commit({ deleteHosts: [], upsertHosts: [{ id: 'a', generation: 1, options: '', created_at: 1 }], journal: [], idempotency: [] });
    console.log('open');
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ['--import=tsx', '--input-type=module', '-e', program], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  await t.rejects(openStore(`file:${file}`), {
    name: 'StoreInUse',
    message: `the database ${file} is in use by another process`,
  });
  t.same(sql(file, 'SELECT id FROM host'), [{ id: 'a' }], 'people can read it meanwhile');
  const exit = once(child, 'exit');
  child.kill('SIGKILL');
  await exit;
  const store = await opened(t, file);
  t.same(await store.hosts(), [{ id: 'a', generation: 1, options: '', created_at: 1 }]);
  await t.rejects(openStore(`file:${file}`), { name: 'StoreInUse' }, 'a second store in this process');
  const link = join(t.testdirName, 'link.db');
  symlinkSync(file, link);
  await t.rejects(openStore(`file:${link}`), { name: 'StoreInUse' }, 'the same file by another name');
});

t.test('durability: write-ahead log, every commit synced', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  const { prisma } = Reflect.get(store, 'opened') as {
    prisma: { $queryRawUnsafe(statement: string): Promise<Record<string, unknown>[]> };
  };
  t.same(await prisma.$queryRawUnsafe('PRAGMA synchronous'), [{ synchronous: 2n }]);
  t.same(await prisma.$queryRawUnsafe('PRAGMA journal_mode'), [{ journal_mode: 'wal' }]);
});

t.test('SQL: tables and columns as people expect them, while the store is open', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  await store.commit({ ...NOTHING, upsertHosts: [host('h')], journal: [row('h', 7)] });
  await store.project('h', 1, 7, [
    {
      part: 'objects',
      tasks: [
        {
          id: 'qemu',
          pid: 4242,
          mm: 'mm-1',
          thread_of: null,
          alive: true,
          rlimit_memlock: 2n ** 64n - 4096n,
          cap_ipc_lock: false,
          locked_vm: 3,
        },
        {
          id: 't2',
          pid: 4243,
          mm: null,
          thread_of: 'qemu',
          alive: false,
          rlimit_memlock: null,
          cap_ipc_lock: true,
          locked_vm: null,
        },
      ],
      containers: [{ id: 'vfio0', iommu_type: 'TYPE1v2', dma_avail: 65534, dead: 'BUG: "quoted"' }],
      groups: [{ id: '26', kind: 'mdev', container: 'vfio0', open: true }],
      devices: [{ id: 'mdev0', group: null, open: false }],
      notifiers: [
        { id: 'n', device: 'mdev0', container: null, type: 1, priority: -5, delivery: 'poll', registered: true },
      ],
    },
    {
      part: 'dma',
      first_slot: 0,
      end_slot: 2,
      rows: [
        {
          slot: 1,
          container: 'vfio0',
          iova: '0xfffffffffffff000',
          vaddr: '0x7f0000000000',
          size: '0x1000',
          prot: 3,
          task: 'qemu',
          npinned: 1,
        },
      ],
    },
    {
      part: 'pfn',
      first_slot: 0,
      end_slot: 16,
      rows: [{ slot: 9, dma_slot: 1, iova: '0xfffffffffffff000', pfn: 2 ** 52 - 1, ref_count: 2 }],
    },
  ]);
  t.same(sql(file, 'SELECT host, generation, seq, op, length(call) AS call FROM journal'), [
    { host: 'h', generation: 1, seq: 7, op: 'map_dma', call: 100 },
  ]);
  t.same(sql(file, 'SELECT * FROM projection'), [{ host: 'h', generation: 1, seq: 7 }]);
  t.same(sql(file, 'SELECT * FROM task ORDER BY id'), [
    {
      host: 'h',
      id: 'qemu',
      pid: 4242,
      mm: 'mm-1',
      thread_of: null,
      alive: 1,
      rlimit_memlock: '0xfffffffffffff000',
      cap_ipc_lock: 0,
      locked_vm: 3,
    },
    {
      host: 'h',
      id: 't2',
      pid: 4243,
      mm: null,
      thread_of: 'qemu',
      alive: 0,
      rlimit_memlock: null,
      cap_ipc_lock: 1,
      locked_vm: null,
    },
  ]);
  t.same(sql(file, 'SELECT * FROM container'), [
    { host: 'h', id: 'vfio0', iommu_type: 'TYPE1v2', dma_avail: 65534, dead: 'BUG: "quoted"' },
  ]);
  t.same(sql(file, 'SELECT * FROM vfio_group'), [{ host: 'h', id: '26', kind: 'mdev', container: 'vfio0', open: 1 }]);
  t.same(sql(file, 'SELECT * FROM device'), [{ host: 'h', id: 'mdev0', vfio_group: null, open: 0 }]);
  t.same(sql(file, 'SELECT * FROM notifier'), [
    { host: 'h', id: 'n', device: 'mdev0', container: null, type: 1, priority: -5, delivery: 'poll', registered: 1 },
  ]);
  t.same(
    sql(
      file,
      'SELECT d.vaddr, d.npinned, p.iova, p.pfn, p.ref_count FROM vfio_dma d JOIN vfio_pfn p ON p.host = d.host AND p.dma_slot = d.slot',
    ),
    [{ vaddr: '0x7f0000000000', npinned: 1, iova: '0xfffffffffffff000', pfn: 2 ** 52 - 1, ref_count: 2 }],
  );
});

t.test('commit: another program that holds the write lock makes it fail whole, the next one works', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  await store.commit({ ...NOTHING, upsertHosts: [host('a')], journal: [row('a', 1)] });
  const other = new Database(file);
  t.teardown(() => other.close());
  other.exec('BEGIN IMMEDIATE');
  await t.rejects(store.commit({ ...NOTHING, upsertHosts: [host('b')], journal: [row('a', 2)] }));
  t.same(await store.hosts(), [host('a')], 'reads go on meanwhile');
  other.exec('ROLLBACK');
  await store.commit({ ...NOTHING, upsertHosts: [host('b')], journal: [row('a', 2), row('b', 1)] });
  t.same((await store.journal('a', 1, 0, 10)).length, 2);
});

const LIFE_TABLES = [
  'journal',
  'idempotency_key',
  'checkpoint_section',
  'checkpoint_manifest',
  'vfio_dma',
  'vfio_pfn',
  'task',
];
/** More rows than one commit deletes. */
const MANY = 15_000;

async function fillMany(store: Store, id: string): Promise<void> {
  await store.commit({
    ...NOTHING,
    upsertHosts: [host(id)],
    journal: range(1, MANY + 1).map((seq) => row(id, seq)),
    idempotency: range(1, MANY + 1).map((seq) => ({
      host: id,
      generation: 1,
      key: `k${seq}`,
      body_hash: new Uint8Array(32),
      seq,
      operation: null,
      answer: null,
    })),
  });
  await store.writeSections(
    id,
    1,
    MANY,
    range(0, MANY).map((i) => ({ key: `s${i}`, bytes: new Uint8Array(8) })),
  );
  await store.project(id, 1, MANY, [
    {
      part: 'pfn',
      first_slot: 0,
      end_slot: 1e6,
      rows: range(0, MANY).map((slot) => ({ slot, dma_slot: 0, iova: '0x1000', pfn: 1, ref_count: 1 })),
    },
  ]);
}

async function swept(file: string, of: string): Promise<boolean> {
  for (let tries = 0; tries < 200; tries++) {
    const left = LIFE_TABLES.reduce((sum, table) => sum + count(file, `${table} WHERE host = '${of}'`), 0);
    if (left === 0 && count(file, 'ended_life') === 0) return true;
    await sleep(20);
  }
  return false;
}

t.test('deleteHosts: a large host is invisible at once, its rows go in pieces, after a restart too', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  await fillMany(store, 'a');
  await store.commit({ ...NOTHING, upsertHosts: [host('b')], journal: [row('b', 1)] });
  await store.commit({ ...NOTHING, deleteHosts: ['a'] });
  t.ok(count(file, 'journal') > 1, 'some rows are left');
  t.same(await store.journal('a', 1, 0, 10), []);
  await store.close();
  t.ok(count(file, 'ended_life') === 1, 'the store was closed before all rows were deleted');
  const again = await opened(t, file);
  t.ok(await swept(file, 'a'));
  t.same(await again.hosts(), [host('b')]);
  t.equal((await again.journal('b', 1, 0, 10)).length, 1);
});

t.test('deleteHosts: a host of the same generation that begins while rows are left never sees them', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  await fillMany(store, 'a');
  const deleted = store.commit({ ...NOTHING, deleteHosts: ['a'] });
  const begun = store.commit({ ...NOTHING, upsertHosts: [host('a')], journal: [row('a', MANY)] });
  const projected = store.project('a', 1, 1, []);
  await Promise.all([deleted, begun, projected]);
  t.equal((await store.journal('a', 1, 0, 10)).length, 1);
  t.same(await store.unansweredIdempotency('a', 1), []);
  t.equal(count(file, 'vfio_pfn'), 0);
  t.equal(count(file, 'ended_life'), 0);
  await sleep(50);
  t.equal((await store.journal('a', 1, 0, 10)).length, 1, 'and nobody deletes its own');
});

t.test('a new generation of a large host: projected anew while the rows of the older one go', async (t) => {
  const file = join(t.testdir(), 'x.db');
  const store = await opened(t, file);
  await fillMany(store, 'a');
  const pfn = { slot: 3, dma_slot: 0, iova: '0x2000', pfn: 9, ref_count: 4 };
  const reset = store.commit({ ...NOTHING, upsertHosts: [host('a', 2)], journal: [row('a', 1, 2)] });
  const projected = store.project('a', 2, 1, [{ part: 'pfn', first_slot: 0, end_slot: 16, rows: [pfn] }]);
  await Promise.all([reset, projected]);
  t.same(sql(file, 'SELECT slot, ref_count FROM vfio_pfn'), [{ slot: 3, ref_count: 4 }]);
  for (let tries = 0; tries < 200 && count(file, 'ended_life') > 0; tries++) await sleep(20);
  t.equal(count(file, 'ended_life'), 0);
  for (const table of ['journal', 'vfio_pfn']) t.equal(count(file, table), 1, `${table}: only the new row`);
  for (const table of ['idempotency_key', 'checkpoint_section']) t.equal(count(file, table), 0, `${table}: empty`);
  t.equal((await store.journal('a', 2, 0, 10)).length, 1);
});
