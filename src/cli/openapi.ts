// Writes openapi/openapi.json from the routes, or with --check says whether it is up to date.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { buildApp } from '../app.ts';
import { documentText } from '../http/openapi.ts';
import { readSettings } from '../settings.ts';

const file = fileURLToPath(new URL('../../openapi/openapi.json', import.meta.url));
const { http, close } = await buildApp(readSettings({ DATABASE_URL: 'memory:', LOG_LEVEL: 'silent' }, []));
const text = documentText(http.swagger());
await close();

if (!process.argv.includes('--check')) {
  writeFileSync(file, text);
} else if (readFileSync(file, 'utf8') !== text) {
  console.error('openapi/openapi.json is not what the routes say: run `npm run openapi`');
  process.exitCode = 1;
}
