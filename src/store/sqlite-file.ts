// The file of an SQLite database: where it lies, that it is ours alone while the process lives, that its schema is this release's.

import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import Database, { type Database as Connection } from 'better-sqlite3';
import { StoreInUse } from '../service/ports.ts';
import { applyMigrations, committedMigrations, type Migration } from './schema-engine.ts';

/** Path of `file:./data/emulator.db` (from the working directory), `file:/data/emulator.db` or `file:///data/emulator.db`. */
export function fileOfUrl(url: string): string {
  if (/[?#]/.test(url)) throw new Error(`DATABASE_URL ${url}: parameters are not supported`);
  if (url.startsWith('file://')) return fileURLToPath(url);
  const path = url.slice('file:'.length);
  if (path === '' || path.endsWith('/')) throw new Error(`DATABASE_URL ${url} names no file`);
  return resolve(path);
}

/** Creates the folder with what is missing above it, and makes the new names durable. */
export function makeFolder(folder: string): void {
  try {
    const first = mkdirSync(folder, { recursive: true });
    if (first === undefined) return;
    for (let made = folder; ; made = dirname(made)) {
      syncFolder(dirname(made));
      if (made === first) return;
    }
  } catch (error) {
    throw new Error(`the folder ${folder} of the database cannot be created: ${reason(error)}`, { cause: error });
  }
}

function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/**
 * Takes the database for this process: an exclusive lock on a second, empty SQLite file beside it, which the system drops when the
 * process ends in whatever way. The database itself stays open to other readers.
 */
export function lockDatabase(file: string): Connection {
  const real = existsSync(file) ? realpathSync(file) : join(realpathSync(dirname(file)), basename(file));
  let lock: Connection | null = null;
  try {
    lock = new Database(`${real}.lock`, { timeout: 0 });
    lock.exec('BEGIN EXCLUSIVE');
    return lock;
  } catch (error) {
    lock?.close();
    if (codeOf(error).startsWith('SQLITE_BUSY')) throw new StoreInUse(file);
    const hint = codeOf(error).startsWith('SQLITE_CANTOPEN') ? ` (${real}.lock: is the folder writable?)` : '';
    throw new Error(`the database ${file} cannot be locked: ${reason(error)}${hint}`, { cause: error });
  }
}

/** Brings the schema up to this release. Preconditions: the database is locked. */
export async function migrateDatabase(file: string): Promise<void> {
  const migrations = committedMigrations();
  const applied = inspect(file);
  for (const { name, checksum } of applied) {
    const known = migrations.find((migration) => migration.name === name);
    if (known === undefined) {
      throw new Error(
        `the database ${file} was written by a newer release: this one does not know its migration ${name}`,
      );
    }
    if (known.checksum !== checksum) {
      throw new Error(`the database ${file} was made with another form of the migration ${name}`);
    }
  }
  if (applied.length === migrations.length) return;
  try {
    await applyMigrations(file, migrations);
  } catch (error) {
    throw new Error(`the database ${file} cannot be migrated: ${reason(error)}`, { cause: error });
  }
}

/** The migrations that the database has; throws when it cannot be written or is not one of ours. */
function inspect(file: string): Pick<Migration, 'name' | 'checksum'>[] {
  let connection: Connection | null = null;
  try {
    connection = new Database(file);
    const mode = connection.pragma('journal_mode = WAL', { simple: true });
    if (mode !== 'wal') throw new Error(`its file system gives journal mode ${mode} instead of WAL`);
    connection.exec('BEGIN IMMEDIATE; ROLLBACK');
    const tables = connection
      .prepare<[], string>("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
      .pluck()
      .all();
    if (tables.length === 0) return [];
    if (!tables.includes('_prisma_migrations')) throw new Error('it has the tables of another program');
    return connection
      .prepare<[], Pick<Migration, 'name' | 'checksum'>>(
        'SELECT migration_name AS name, checksum FROM _prisma_migrations WHERE rolled_back_at IS NULL ORDER BY 1',
      )
      .all();
  } catch (error) {
    throw new Error(`the database ${file} cannot be opened: ${reason(error)}`, { cause: error });
  } finally {
    connection?.close();
  }
}

const codeOf = (error: unknown): string => {
  const code = (error as { code?: unknown }).code;
  return typeof code === 'string' ? code : '';
};

const reason = (error: unknown): string => (error instanceof Error ? error.message : String(error));
