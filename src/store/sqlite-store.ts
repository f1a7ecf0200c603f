// The store on one SQLite file: WAL, synchronous=FULL, one connection, one transaction at a time.

import { dirname } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { PrismaBetterSqlite3 } from '@prisma/adapter-better-sqlite3';
import type { Database as Connection } from 'better-sqlite3';
import type { Projection } from '../kernel/projection.ts';
import type { Commit, HostRow, IdempotencyRow, JournalRow, Manifest, Section, Store } from '../service/ports.ts';
import { type Prisma, PrismaClient } from './generated/client.ts';
import type { IdempotencyKeyModel } from './generated/models/IdempotencyKey.ts';
import { type Life, type Lives, planCommit } from './lives.ts';
import { checkManifest, checkParts, missingSection } from './preconditions.ts';
import { Serial } from './serial.ts';
import { lockDatabase, makeFolder, migrateDatabase } from './sqlite-file.ts';
import * as statements from './statements.ts';

/** How long a statement waits for another program that writes to the file, with the process standing still meanwhile. */
const BUSY_TIMEOUT_MS = 2000;
/** Prisma's own limits on a transaction: only one that hangs may meet them. */
const TRANSACTION_OPTIONS = { maxWait: 60_000, timeout: 600_000 };
/** Bytes of a checkpoint that are read in one go. */
const SECTION_BYTES_READ = 4 * 1024 * 1024;

interface Opened {
  lock: Connection;
  prisma: PrismaClient;
}

export class SqliteStore implements Store {
  private opened: Opened | null = null;
  private lives: Lives = new Map();
  private readonly serial = new Serial();
  private sweeping: Promise<void> | null = null;

  constructor(private readonly file: string) {}

  async open(): Promise<void> {
    if (this.opened !== null) throw new Error(`the database ${this.file} is open already`);
    makeFolder(dirname(this.file));
    const lock = lockDatabase(this.file);
    try {
      await migrateDatabase(this.file);
      const prisma = await connect(this.file);
      try {
        this.lives = await readLives(prisma);
      } catch (error) {
        await prisma.$disconnect();
        throw error;
      }
      this.opened = { lock, prisma };
    } catch (error) {
      lock.close();
      throw error;
    }
    this.startSweep();
  }

  /** What was called before is still done. */
  async close(): Promise<void> {
    const { opened } = this;
    if (opened === null) return;
    this.opened = null;
    await this.sweeping;
    await this.serial.run(async () => {
      await opened.prisma.$disconnect();
      opened.lock.close();
    });
  }

  hosts(): Promise<HostRow[]> {
    return this.run(async (prisma) => {
      const rows = await prisma.host.findMany({ orderBy: { id: 'asc' } });
      return rows.map((row) => ({
        id: row.id,
        generation: Number(row.generation),
        options: row.options,
        created_at: Number(row.createdAt),
      }));
    });
  }

  commit(commit: Commit): Promise<void> {
    return this.run(async (prisma) => {
      const plan = planCommit(this.lives, commit);
      await this.transaction(prisma, [
        ...plan.ended.flatMap((life) => statements.endLife(life, statements.ROWS_OF_SWEEP)),
        ...commit.deleteHosts.map(statements.deleteHost),
        ...plan.begun.flatMap(statements.beginLife),
        ...commit.upsertHosts.map(statements.upsertHost),
        ...statements.insertJournal(plan.journal),
        ...statements.upsertIdempotency(plan.idempotency),
      ]);
      this.lives = plan.lives;
      if (plan.ended.length > 0) this.startSweep();
    });
  }

  journal(host: string, generation: number, since: number, limit: number): Promise<JournalRow[]> {
    return this.run(async (prisma) => {
      if (!this.isAlive({ host, generation })) return [];
      const rows = await prisma.journal.findMany({
        where: { host, generation, seq: { gt: since } },
        orderBy: { seq: 'asc' },
        take: limit,
      });
      return rows.map((row) => ({
        host,
        generation,
        seq: Number(row.seq),
        at: Number(row.at),
        request_id: row.requestId,
        op: row.op,
        call: row.call,
        digest: row.digest,
        revision: Number(row.revision),
      }));
    });
  }

  oldestJournalSeq(host: string, generation: number): Promise<number | null> {
    return this.run(async (prisma) => {
      if (!this.isAlive({ host, generation })) return null;
      const oldest = await prisma.journal.findFirst({
        where: { host, generation },
        orderBy: { seq: 'asc' },
        select: { seq: true },
      });
      return oldest === null ? null : Number(oldest.seq);
    });
  }

  idempotency(host: string, generation: number, key: string): Promise<IdempotencyRow | null> {
    return this.run(async (prisma) => {
      if (!this.isAlive({ host, generation })) return null;
      const row = await prisma.idempotencyKey.findUnique({
        where: { host_generation_key: { host, generation, key } },
      });
      return row === null ? null : idempotencyRow(row);
    });
  }

  unansweredIdempotency(host: string, generation: number): Promise<IdempotencyRow[]> {
    return this.run(async (prisma) => {
      if (!this.isAlive({ host, generation })) return [];
      const rows = await prisma.idempotencyKey.findMany({
        where: { host, generation, answer: null },
        orderBy: [{ seq: 'asc' }, { key: 'asc' }],
      });
      return rows.map(idempotencyRow);
    });
  }

  /** A life that ended meanwhile needs no checkpoint: nothing is written. */
  writeSections(host: string, generation: number, seq: number, sections: Section[]): Promise<void> {
    return this.run(async (prisma) => {
      if (!this.isAlive({ host, generation })) return;
      await this.transaction(prisma, statements.upsertSections({ host, generation }, seq, sections));
    });
  }

  /** A life that ended meanwhile needs no checkpoint: nothing is written. */
  writeManifest(manifest: Manifest): Promise<void> {
    return this.run(async (prisma) => {
      const { host, generation } = manifest;
      if (!this.isAlive(manifest)) return;
      const newest = await newestManifest(prisma, manifest);
      const pieces = await prisma.checkpointSection.findMany({
        where: { host, generation },
        select: { key: true, seq: true },
      });
      checkManifest(
        manifest,
        newest,
        pieces.map(({ key, seq }) => ({ key, seq: Number(seq) })),
      );
      await this.transaction(prisma, statements.replaceManifest(manifest));
    });
  }

  manifest(host: string, generation: number): Promise<Manifest | null> {
    return this.run(async (prisma) =>
      this.isAlive({ host, generation }) ? newestManifest(prisma, { host, generation }) : null,
    );
  }

  /** The pieces in the order of their keys, some megabytes at a time; throws when one of them is missing. */
  async *sections(manifest: Manifest): AsyncIterable<Section> {
    const wanted = Object.entries(manifest.sections).sort(([a], [b]) => (a < b ? -1 : 1));
    const lengths = await this.run((prisma) => sectionLengths(prisma, manifest));
    for (let next = 0; next < wanted.length; ) {
      const batch: [key: string, seq: number][] = [];
      for (let bytes = 0; next < wanted.length && bytes < SECTION_BYTES_READ; next++) {
        const [key, seq] = wanted[next] as [string, number];
        batch.push([key, seq]);
        bytes += lengths.get(`${seq} ${key}`) ?? 0;
      }
      const rows = await this.run((prisma) => readSections(prisma, manifest, batch));
      const bytesOf = new Map(rows.map(({ key, bytes }) => [key, bytes]));
      for (const [key] of batch) {
        const bytes = bytesOf.get(key);
        if (bytes === undefined) throw missingSection(manifest, key);
        yield { key, bytes };
      }
    }
  }

  trim(host: string, generation: number, upTo: number, keepKeys: number, limit: number): Promise<number> {
    return this.run(async (prisma) => {
      const life = { host, generation };
      if (!this.isAlive(life)) return 0;
      const rows = await prisma.$executeRaw(statements.trimJournal(life, upTo, limit));
      const excess = (await prisma.idempotencyKey.count({ where: life })) - keepKeys;
      const count = Math.min(excess, limit - rows);
      return count > 0 ? rows + (await prisma.$executeRaw(statements.trimIdempotency(life, count))) : rows;
    });
  }

  /** A life that ended meanwhile is not shown any more: nothing is written. */
  project(host: string, generation: number, seq: number, parts: Projection[]): Promise<void> {
    return this.run(async (prisma) => {
      const life = { host, generation };
      if (!this.isAlive(life)) return;
      checkParts(parts);
      const shown = await prisma.projection.findUnique({ where: { host } });
      await this.transaction(prisma, [
        ...(shown === null ? statements.clearProjection(host) : []),
        ...parts.flatMap((part) => statements.replacePart(host, part)),
        statements.upsertProjection(life, seq),
      ]);
    });
  }

  private isAlive({ host, generation }: Life): boolean {
    return this.lives.get(host) === generation;
  }

  private run<T>(work: (prisma: PrismaClient) => Promise<T>): Promise<T> {
    const { opened } = this;
    if (opened === null) return Promise.reject(new Error(`the database ${this.file} is closed`));
    return this.serial.run(() => work(opened.prisma));
  }

  /** All statements or none. Preconditions: called inside run(). */
  private async transaction(prisma: PrismaClient, list: Prisma.Sql[]): Promise<void> {
    if (list.length === 0) return;
    try {
      await prisma.$transaction(list.map((statement) => prisma.$executeRaw(statement)));
    } catch (error) {
      await this.settle(prisma);
      throw error;
    }
  }

  /** After a transaction that failed: nothing of it may stay open, and what it did is read from the file. */
  private async settle(prisma: PrismaClient): Promise<void> {
    // Fails when the transaction is rolled back already, which is the rule.
    await prisma.$executeRawUnsafe('ROLLBACK').catch(() => undefined);
    this.lives = await readLives(prisma);
  }

  /** Deletes what lives that ended have left, in pieces between other work. */
  private startSweep(): void {
    this.sweeping ??= this.sweep().finally(() => {
      this.sweeping = null;
    });
  }

  private async sweep(): Promise<void> {
    // Nothing of these rows is seen, and the next sweep tries again: a failure here concerns nobody.
    try {
      while (this.opened !== null) {
        const left = await this.run(async (prisma) => {
          const life = await prisma.endedLife.findFirst();
          if (life === null) return false;
          const { host, generation } = life;
          const ended = { host, generation: Number(generation) };
          await this.transaction(prisma, statements.sweepLife(ended, statements.ROWS_OF_SWEEP));
          return true;
        });
        if (!left) return;
        await nextTurn();
      }
    } catch {}
  }
}

async function connect(file: string): Promise<PrismaClient> {
  const adapter = new PrismaBetterSqlite3({ url: file, timeout: BUSY_TIMEOUT_MS });
  const prisma = new PrismaClient({ adapter, errorFormat: 'minimal', transactionOptions: TRANSACTION_OPTIONS });
  await prisma.$queryRaw`PRAGMA synchronous = FULL`;
  return prisma;
}

async function readLives(prisma: PrismaClient): Promise<Lives> {
  const rows = await prisma.host.findMany({ select: { id: true, generation: true } });
  return new Map(rows.map(({ id, generation }) => [id, Number(generation)]));
}

async function newestManifest(prisma: PrismaClient, { host, generation }: Life): Promise<Manifest | null> {
  const row = await prisma.checkpointManifest.findFirst({ where: { host, generation }, orderBy: { seq: 'desc' } });
  if (row === null) return null;
  return {
    host,
    generation,
    seq: Number(row.seq),
    revision: Number(row.revision),
    sections: JSON.parse(row.sections) as Record<string, number>,
  };
}

/** Bytes of each piece that the store has of a life, by `<seq> <key>`. */
async function sectionLengths(prisma: PrismaClient, { host, generation }: Life): Promise<Map<string, number>> {
  const rows = await prisma.$queryRaw<{ key: string; seq: bigint; length: bigint }[]>`
    SELECT key, seq, length(bytes) AS length FROM checkpoint_section WHERE host = ${host} AND generation = ${generation}`;
  return new Map(rows.map(({ key, seq, length }) => [`${seq} ${key}`, Number(length)]));
}

async function readSections(
  prisma: PrismaClient,
  { host, generation }: Life,
  batch: [key: string, seq: number][],
): Promise<{ key: string; bytes: Uint8Array }[]> {
  return prisma.$queryRaw`
    SELECT key, bytes FROM checkpoint_section
    WHERE host = ${host} AND generation = ${generation}
      AND (key, seq) IN (SELECT value ->> 0, value ->> 1 FROM json_each(${JSON.stringify(batch)}))`;
}

const idempotencyRow = (row: IdempotencyKeyModel): IdempotencyRow => ({
  host: row.host,
  generation: Number(row.generation),
  key: row.key,
  body_hash: row.bodyHash,
  seq: Number(row.seq),
  operation: row.operation,
  answer: row.answer,
});
