// Writes openapi/openapi.json from the routes, or with --check says whether it is up to date.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { openapiText } from './openapi-text.ts';

const file = fileURLToPath(new URL('../../openapi/openapi.json', import.meta.url));
const text = await openapiText();

if (!process.argv.includes('--check')) {
  writeFileSync(file, text);
} else if (readFileSync(file, 'utf8') !== text) {
  console.error('openapi/openapi.json is not what the routes say: run `npm run openapi`');
  process.exitCode = 1;
}
