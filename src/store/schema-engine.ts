// Prisma's schema engine as WebAssembly: applies the committed migrations without a binary, and writes new ones by comparing.

import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { PrismaBetterSqlite3 } from '@prisma/adapter-better-sqlite3';
import { bindMigrationAwareSqlAdapterFactory, type SqlDriverAdapter } from '@prisma/driver-adapter-utils';
import type { MigrationList, SchemaEngine } from '@prisma/schema-engine-wasm/schema_engine_bg';
import * as engineModule from '@prisma/schema-engine-wasm/schema_engine_bg';

/** Node's global, which its types for Node 20 leave out. */
declare const WebAssembly: {
  instantiate(
    bytes: Uint8Array,
    imports: Record<string, Record<string, unknown>>,
  ): Promise<{ instance: { exports: Record<string, unknown> } }>;
};

/** The folder prisma/ of the package: two levels above both src/store and dist/store. */
const PRISMA_FOLDER = new URL('../../prisma/', import.meta.url);
export const MIGRATIONS_FOLDER = new URL('migrations/', PRISMA_FOLDER);
const SCHEMA_FILE = new URL('schema.prisma', PRISMA_FOLDER);
const FILTERS = { externalTables: [], externalEnums: [] };

export interface Migration {
  name: string;
  sql: string;
  /** As _prisma_migrations holds it: SHA-256 of the script in hex. */
  checksum: string;
}

/** The committed migrations in the order in which they are applied. */
export function committedMigrations(folder: URL = MIGRATIONS_FOLDER): Migration[] {
  if (!existsSync(folder)) return [];
  return readdirSync(folder, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
    .sort()
    .map((name) => {
      const sql = readFileSync(new URL(`${name}/migration.sql`, folder), 'utf8');
      return { name, sql, checksum: createHash('sha256').update(sql).digest('hex') };
    });
}

/** Applies what is missing, all of it or nothing: a process that is killed half-way leaves the database as it was. */
export async function applyMigrations(file: string, migrations: Migration[]): Promise<string[]> {
  const connection: { adapter: SqlDriverAdapter | null } = { adapter: null };
  const engine = await startEngine(file, connection);
  try {
    const { appliedMigrationNames } = await engine.applyMigrations({
      migrationsList: migrationList(migrations),
      filters: FILTERS,
    });
    await connection.adapter?.executeScript('COMMIT');
    return appliedMigrationNames;
  } finally {
    await connection.adapter?.dispose();
    engine.free();
  }
}

/** SQL that leads from the committed migrations to prisma/schema.prisma; '' when they agree. */
export async function missingMigration(migrations: Migration[]): Promise<string> {
  const engine = await startEngine(':memory:', { adapter: null });
  try {
    const { exitCode, stdout } = await engine.diff({
      from: { tag: 'migrations', ...migrationList(migrations) },
      to: { tag: 'schemaDatamodel', files: [schemaFile()] },
      script: true,
      exitCode: true,
      filters: FILTERS,
    });
    return exitCode === 0 ? '' : (stdout ?? '');
  } finally {
    engine.free();
  }
}

/** The engine keeps one connection; its work lies in a transaction that only a COMMIT of ours ends. */
async function startEngine(file: string, connection: { adapter: SqlDriverAdapter | null }): Promise<SchemaEngine> {
  await loadEngine();
  const factory = new PrismaBetterSqlite3({ url: file });
  const { path, content } = schemaFile();
  return engineModule.SchemaEngine.new(
    { datamodels: [[path, content]] },
    () => undefined,
    bindMigrationAwareSqlAdapterFactory({
      provider: factory.provider,
      adapterName: factory.adapterName,
      connectToShadowDb: async () => runningScripts(await factory.connectToShadowDb()),
      connect: async () => {
        const adapter = runningScripts(await factory.connect());
        await adapter.executeScript('BEGIN IMMEDIATE');
        connection.adapter = adapter;
        return adapter;
      },
    }),
  );
}

/** The engine sends whole scripts as one query, which better-sqlite3 refuses to prepare. */
function runningScripts(adapter: SqlDriverAdapter): SqlDriverAdapter {
  const executeRaw = adapter.executeRaw.bind(adapter);
  adapter.executeRaw = async (query) => {
    if (query.args.length > 0) return executeRaw(query);
    await adapter.executeScript(query.sql);
    return 0;
  };
  return adapter;
}

let loaded: Promise<void> | null = null;

/** Instantiates the engine by hand, because Node 20 cannot import a .wasm file as the package expects. */
function loadEngine(): Promise<void> {
  loaded ??= (async () => {
    const glue = import.meta.resolve('@prisma/schema-engine-wasm/schema_engine_bg');
    const bytes = readFileSync(fileURLToPath(glue.replace(/\.js$/, '.wasm')));
    const { instance } = await WebAssembly.instantiate(bytes, {
      './schema_engine_bg.js': { ...engineModule },
    });
    engineModule.__wbg_set_wasm(instance.exports);
    (instance.exports.__wbindgen_start as () => void)();
  })();
  return loaded;
}

function migrationList(migrations: Migration[]): MigrationList {
  return {
    baseDir: fileURLToPath(MIGRATIONS_FOLDER),
    lockfile: { path: './migration_lock.toml', content: 'provider = "sqlite"\n' },
    shadowDbInitScript: '',
    migrationDirectories: migrations.map(({ name, sql }) => ({
      path: name,
      migrationFile: { path: 'migration.sql', content: { tag: 'ok', value: sql } },
    })),
  };
}

function schemaFile(): { path: string; content: string } {
  return { path: fileURLToPath(SCHEMA_FILE), content: readFileSync(SCHEMA_FILE, 'utf8') };
}
