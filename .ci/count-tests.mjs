// Counts the test points that tap recorded and prints them as one line: node count-tests.mjs FOLDER FAILED_STEPS
// A file without a closing plan counts as one failure, and so does an empty folder. Exit code 1 when anything failed.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const [folder, failedSteps] = process.argv.slice(2);
let passed = 0;
let failed = 0;
let skipped = 0;

const files = existsSync(folder)
  ? readdirSync(folder, { recursive: true, withFileTypes: true }).filter(
      (entry) => entry.isFile() && entry.name.endsWith('.tap'),
    )
  : [];
for (const file of files) {
  const text = readFileSync(join(file.parentPath ?? file.path, file.name), 'utf8');
  let points = 0;
  for (const [, not, rest] of text.matchAll(/^(not )?ok\b(.*)$/gm)) {
    points++;
    if (/# (skip|todo)\b/i.test(rest)) skipped++;
    else if (not) failed++;
    else passed++;
  }
  if (points === 0 || !/^1\.\.\d+/m.test(text)) failed++;
}
if (failed === 0) failed = Number(failedSteps) + (files.length === 0 ? 1 : 0);

console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
if (failed > 0) process.exitCode = 1;
