// npm run fidelity: measures what pins each behaviour and writes docs/reference/fidelity.md; with --check, whether the page says so.

import { fork } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { claimsIn, renderPage } from './page.ts';
import { TABLE } from './rows.ts';
import { AGAINST_TEXTS, MAILS } from './sources.ts';
import type { TestPins, Titles } from './test-claim.ts';
import { addPins, type TracePins } from './trace-pins.ts';
import type { Task } from './worker.ts';

const PAGE = fileURLToPath(new URL('../../../docs/reference/fidelity.md', import.meta.url));
const WORKER = fileURLToPath(new URL('./worker.ts', import.meta.url));
/** Processes that share the traces: as many as the smallest machine that builds this has processors. */
const PARTS = 2;

/** Runs one task in a process of its own. tap, which the tests import, prints where nobody reads. */
function inWorker<T>(task: Task): Promise<T> {
  return new Promise((resolve, reject) => {
    const child = fork(WORKER, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    // tap sends messages of its own.
    child.on('message', (message: { done?: T; failed?: string }) => {
      if (message.done !== undefined) resolve(message.done);
      else if (message.failed !== undefined) reject(new Error(message.failed));
    });
    child.once('error', reject);
    child.once('exit', (code) => reject(new Error(`${task.measure}: the measuring process ended with ${code}`)));
    child.send(task);
  });
}

async function measureTraces(): Promise<TracePins> {
  const parts = Array.from({ length: PARTS }, (_, part) =>
    inWorker<TracePins>({ measure: 'traces', part, parts: PARTS }),
  );
  return addPins(await Promise.all(parts));
}

const checkClaims = (claims: TestPins): Promise<{ titles: Titles; wrong: string[] }> =>
  inWorker({ measure: 'claims', claims });

/** The first line in which two texts differ. */
function firstDifference(is: string, wanted: string): string {
  const [have, want] = [is.split('\n'), wanted.split('\n')];
  const at = want.findIndex((line, i) => line !== have[i]);
  const line = at < 0 ? want.length : at;
  return `line ${line + 1}:\n  is       ${have[line] ?? ''}\n  must be  ${want[line] ?? ''}`;
}

/** The whole command. Returns its exit code. */
export async function main(argv: readonly string[], warn: (text: string) => void, page = PAGE): Promise<number> {
  const checks = argv.includes('--check');
  const is = checks ? readFileSync(page, 'utf8') : '';
  const tests = checks ? claimsIn(is) : await inWorker<TestPins>({ measure: 'tests' });
  const [traces, { titles, wrong }] = await Promise.all([measureTraces(), checkClaims(tests)]);
  for (const each of wrong) warn(each);
  const wanted = renderPage({ table: TABLE, traces, tests, titles, mails: MAILS, againstTexts: AGAINST_TEXTS });
  if (!checks) writeFileSync(page, wanted);
  else if (is !== wanted)
    warn(
      `docs/reference/fidelity.md is not what was measured: run \`npm run fidelity\`\n${firstDifference(is, wanted)}`,
    );
  return wrong.length > 0 || (checks && is !== wanted) ? 1 : 0;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  process.exitCode = await main(process.argv.slice(2), console.error);
