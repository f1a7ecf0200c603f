// npm run db:migration -- name: writes what prisma/schema.prisma has and the committed migrations have not as a new migration.

import { mkdirSync, writeFileSync } from 'node:fs';
import { committedMigrations, MIGRATIONS_FOLDER, missingMigration } from '../src/store/schema-engine.ts';

const name = process.argv[2];
if (name === undefined || !/^[a-z0-9_]+$/.test(name)) {
  console.error('usage: npm run db:migration -- name_in_snake_case');
  process.exit(2);
}
const migrations = committedMigrations();
const sql = await missingMigration(migrations);
if (sql === '') {
  console.log('The migrations agree with prisma/schema.prisma: nothing to write.');
} else {
  const folderName = `${String(migrations.length + 1).padStart(4, '0')}_${name}`;
  const folder = new URL(`${folderName}/`, MIGRATIONS_FOLDER);
  mkdirSync(folder, { recursive: true });
  writeFileSync(new URL('migration.sql', folder), sql);
  console.log(`wrote prisma/migrations/${folderName}/migration.sql: read it before you commit it`);
}
