// The SQL that changes the database. Rows with bytes go in as bound values, rows of the projection as one JSON text: measured, see
// docs/decisions/store.md.

import { hex } from '../kernel/lib/u64.ts';
import type {
  ContainerRow,
  DeviceRow,
  GroupRow,
  NotifierRow,
  Projection,
  TaskRow,
  VfioDmaRow,
  VfioPfnRow,
} from '../kernel/projection.ts';
import type { HostRow, IdempotencyRow, JournalRow, Manifest, Section } from '../service/ports.ts';
import { Prisma } from './generated/client.ts';
import type { Life } from './lives.ts';

/** Rows of one statement: SQLite binds 32,766 values, and the event loop gets a turn between two statements. */
const ROWS_OF_VALUES = 512;
const ROWS_OF_JSON = 8192;
/** Rows that one statement deletes of a life that ended. */
export const ROWS_OF_SWEEP = 2000;

const LIFE_TABLES = ['journal', 'idempotency_key', 'checkpoint_section', 'checkpoint_manifest'] as const;
const OBJECT_TABLES = ['task', 'container', 'vfio_group', 'device', 'notifier'] as const;
const PROJECTED_TABLES = [...OBJECT_TABLES, 'vfio_dma', 'vfio_pfn'] as const;

function* chunksOf<T>(rows: T[], length: number): Iterable<T[]> {
  for (let first = 0; first < rows.length; first += length) yield rows.slice(first, first + length);
}

const valuesOf = (rows: unknown[][]): Prisma.Sql => Prisma.join(rows.map((row) => Prisma.sql`(${Prisma.join(row)})`));

export const upsertHost = (row: HostRow): Prisma.Sql => Prisma.sql`
  INSERT INTO host (id, generation, options, created_at)
  VALUES (${row.id}, ${row.generation}, ${row.options}, ${row.created_at})
  ON CONFLICT (id) DO UPDATE SET generation = excluded.generation, options = excluded.options, created_at = excluded.created_at`;

export const deleteHost = (host: string): Prisma.Sql => Prisma.sql`DELETE FROM host WHERE id = ${host}`;

export const insertJournal = (rows: JournalRow[]): Prisma.Sql[] =>
  [...chunksOf(rows, ROWS_OF_VALUES)].map(
    (chunk) => Prisma.sql`
      INSERT INTO journal (host, generation, seq, at, request_id, op, call, digest, revision)
      VALUES ${valuesOf(
        chunk.map((r) => [r.host, r.generation, r.seq, r.at, r.request_id, r.op, r.call, r.digest, r.revision]),
      )}`,
  );

export const upsertIdempotency = (rows: IdempotencyRow[]): Prisma.Sql[] =>
  [...chunksOf(rows, ROWS_OF_VALUES)].map(
    (chunk) => Prisma.sql`
      INSERT INTO idempotency_key (host, generation, key, body_hash, seq, operation, answer)
      VALUES ${valuesOf(chunk.map((r) => [r.host, r.generation, r.key, r.body_hash, r.seq, r.operation, r.answer]))}
      ON CONFLICT (host, generation, key) DO UPDATE SET
        body_hash = excluded.body_hash, seq = excluded.seq, operation = excluded.operation, answer = excluded.answer`,
  );

/** Deletes rows of a life, at most `limit` of each table, and notes the life in ended_life when some are left. */
export const endLife = (life: Life, limit: number): Prisma.Sql[] => [
  Prisma.sql`DELETE FROM projection WHERE host = ${life.host}`,
  ...LIFE_TABLES.map((table) => deleteSome(table, of(life), limit)),
  ...PROJECTED_TABLES.map((table) => deleteSome(table, Prisma.sql`host = ${life.host}`, limit)),
  Prisma.sql`
    INSERT INTO ended_life (host, generation) SELECT ${life.host}, ${life.generation}
    WHERE ${anyIn(LIFE_TABLES, of(life))} OR ${anyIn(PROJECTED_TABLES, Prisma.sql`host = ${life.host}`)}`,
];

/** The next rows of a life that ended. Its host may live again: what a newer projection wrote is not touched. */
export function sweepLife(life: Life, limit: number): Prisma.Sql[] {
  const projected = Prisma.sql`EXISTS (SELECT 1 FROM projection WHERE host = ${life.host})`;
  const leftover = Prisma.sql`host = ${life.host} AND NOT ${projected}`;
  return [
    ...LIFE_TABLES.map((table) => deleteSome(table, of(life), limit)),
    ...PROJECTED_TABLES.map((table) => deleteSome(table, leftover, limit)),
    Prisma.sql`
      DELETE FROM ended_life WHERE ${of(life)}
      AND NOT (${anyIn(LIFE_TABLES, of(life))} OR ${anyIn(PROJECTED_TABLES, leftover)})`,
  ];
}

/** Deletes all that is left of an older life with the same generation, so that nothing of it is seen or swept later. */
export const beginLife = (life: Life): Prisma.Sql[] => [
  ...LIFE_TABLES.map((table) => Prisma.sql`DELETE FROM ${Prisma.raw(table)} WHERE ${of(life)}`),
  ...PROJECTED_TABLES.map(
    (table) => Prisma.sql`
      DELETE FROM ${Prisma.raw(table)}
      WHERE host = ${life.host} AND EXISTS (SELECT 1 FROM ended_life WHERE ${of(life)})`,
  ),
  Prisma.sql`DELETE FROM ended_life WHERE ${of(life)}`,
];

const of = ({ host, generation }: Life): Prisma.Sql => Prisma.sql`host = ${host} AND generation = ${generation}`;

const deleteSome = (table: string, where: Prisma.Sql, limit: number): Prisma.Sql => Prisma.sql`
  DELETE FROM ${Prisma.raw(table)}
  WHERE rowid IN (SELECT rowid FROM ${Prisma.raw(table)} WHERE ${where} LIMIT ${limit})`;

const anyIn = (tables: readonly string[], where: Prisma.Sql): Prisma.Sql =>
  Prisma.join(
    tables.map((table) => Prisma.sql`EXISTS (SELECT 1 FROM ${Prisma.raw(table)} WHERE ${where})`),
    ' OR ',
  );

export const upsertSections = ({ host, generation }: Life, seq: number, sections: Section[]): Prisma.Sql[] =>
  [...chunksOf(sections, ROWS_OF_VALUES)].map(
    (chunk) => Prisma.sql`
      INSERT INTO checkpoint_section (host, generation, key, seq, bytes)
      VALUES ${valuesOf(chunk.map(({ key, bytes }) => [host, generation, key, seq, bytes]))}
      ON CONFLICT (host, generation, key, seq) DO UPDATE SET bytes = excluded.bytes`,
  );

/** Writes the manifest and deletes the older ones, and every section up to its seq that it does not name. */
export function replaceManifest({ host, generation, seq, revision, sections }: Manifest): Prisma.Sql[] {
  const json = JSON.stringify(sections);
  return [
    Prisma.sql`
      INSERT INTO checkpoint_manifest (host, generation, seq, revision, sections)
      VALUES (${host}, ${generation}, ${seq}, ${revision}, ${json})
      ON CONFLICT (host, generation, seq) DO UPDATE SET revision = excluded.revision, sections = excluded.sections`,
    Prisma.sql`DELETE FROM checkpoint_manifest WHERE host = ${host} AND generation = ${generation} AND seq < ${seq}`,
    Prisma.sql`
      DELETE FROM checkpoint_section
      WHERE host = ${host} AND generation = ${generation} AND seq <= ${seq}
        AND (key, seq) NOT IN (SELECT key, value FROM json_each(${json}))`,
  ];
}

export const trimJournal = ({ host, generation }: Life, upTo: number, limit: number): Prisma.Sql => Prisma.sql`
  DELETE FROM journal WHERE rowid IN (
    SELECT rowid FROM journal WHERE host = ${host} AND generation = ${generation} AND seq <= ${upTo} ORDER BY seq LIMIT ${limit})`;

export const trimIdempotency = ({ host, generation }: Life, count: number): Prisma.Sql => Prisma.sql`
  DELETE FROM idempotency_key WHERE rowid IN (
    SELECT rowid FROM idempotency_key WHERE host = ${host} AND generation = ${generation} ORDER BY seq LIMIT ${count})`;

/** States the seq that the projected rows are true for. */
export const upsertProjection = ({ host, generation }: Life, seq: number): Prisma.Sql => Prisma.sql`
  INSERT INTO projection (host, generation, seq) VALUES (${host}, ${generation}, ${seq})
  ON CONFLICT (host) DO UPDATE SET generation = excluded.generation, seq = excluded.seq`;

/** Deletes all projected rows of a host: what is there belongs to an older life. */
export const clearProjection = (host: string): Prisma.Sql[] =>
  PROJECTED_TABLES.map((table) => Prisma.sql`DELETE FROM ${Prisma.raw(table)} WHERE host = ${host}`);

/** Replaces what the part covers: all objects of the host, or the slots of one table from first_slot up to end_slot. */
export function replacePart(host: string, part: Projection): Prisma.Sql[] {
  if (part.part === 'objects') {
    return [
      ...OBJECT_TABLES.map((table) => Prisma.sql`DELETE FROM ${Prisma.raw(table)} WHERE host = ${host}`),
      ...insertRows(host, 'task', TASK, part.tasks),
      ...insertRows(host, 'container', CONTAINER, part.containers),
      ...insertRows(host, 'vfio_group', GROUP, part.groups),
      ...insertRows(host, 'device', DEVICE, part.devices),
      ...insertRows(host, 'notifier', NOTIFIER, part.notifiers),
    ];
  }
  const table = part.part === 'dma' ? 'vfio_dma' : 'vfio_pfn';
  return [
    Prisma.sql`
      DELETE FROM ${Prisma.raw(table)}
      WHERE host = ${host} AND slot >= ${part.first_slot} AND slot < ${part.end_slot}`,
    ...(part.part === 'dma' ? insertRows(host, table, DMA, part.rows) : insertRows(host, table, PFN, part.rows)),
  ];
}

/** Column of the table, and the value of a row in it. */
type Columns<Row> = [column: string, value: (row: Row) => string | number | boolean | null][];

const TASK: Columns<TaskRow> = [
  ['id', (row) => row.id],
  ['pid', (row) => row.pid],
  ['mm', (row) => row.mm],
  ['thread_of', (row) => row.thread_of],
  ['alive', (row) => row.alive],
  ['rlimit_memlock', (row) => (row.rlimit_memlock === null ? null : hex(row.rlimit_memlock))],
  ['cap_ipc_lock', (row) => row.cap_ipc_lock],
  ['locked_vm', (row) => row.locked_vm],
];
const CONTAINER: Columns<ContainerRow> = [
  ['id', (row) => row.id],
  ['iommu_type', (row) => row.iommu_type],
  ['dma_avail', (row) => row.dma_avail],
  ['dead', (row) => row.dead],
];
const GROUP: Columns<GroupRow> = [
  ['id', (row) => row.id],
  ['kind', (row) => row.kind],
  ['container', (row) => row.container],
  ['open', (row) => row.open],
];
const DEVICE: Columns<DeviceRow> = [
  ['id', (row) => row.id],
  ['vfio_group', (row) => row.group],
  ['open', (row) => row.open],
];
const NOTIFIER: Columns<NotifierRow> = [
  ['id', (row) => row.id],
  ['device', (row) => row.device],
  ['container', (row) => row.container],
  ['type', (row) => row.type],
  ['priority', (row) => row.priority],
  ['delivery', (row) => row.delivery],
  ['registered', (row) => row.registered],
];
const DMA: Columns<VfioDmaRow> = [
  ['slot', (row) => row.slot],
  ['container', (row) => row.container],
  ['iova', (row) => row.iova],
  ['vaddr', (row) => row.vaddr],
  ['size', (row) => row.size],
  ['prot', (row) => row.prot],
  ['task', (row) => row.task],
  ['npinned', (row) => row.npinned],
];
const PFN: Columns<VfioPfnRow> = [
  ['slot', (row) => row.slot],
  ['dma_slot', (row) => row.dma_slot],
  ['iova', (row) => row.iova],
  ['pfn', (row) => row.pfn],
  ['ref_count', (row) => row.ref_count],
];

function insertRows<Row>(host: string, table: string, columns: Columns<Row>, rows: Row[]): Prisma.Sql[] {
  const names = columns.map(([name]) => name).join(', ');
  const picked = columns.map((_, i) => `value ->> ${i}`).join(', ');
  return [...chunksOf(rows, ROWS_OF_JSON)].map((chunk) => {
    const json = JSON.stringify(chunk.map((row) => columns.map(([, value]) => value(row))));
    return Prisma.sql`
      INSERT INTO ${Prisma.raw(table)} (host, ${Prisma.raw(names)})
      SELECT ${host}, ${Prisma.raw(picked)} FROM json_each(${json})`;
  });
}
