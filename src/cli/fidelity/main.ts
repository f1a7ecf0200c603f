// npm run fidelity: measures what pins each behaviour and writes docs/reference/fidelity.md; with --check, whether the page says so.

import { readFileSync, writeFileSync } from 'node:fs';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { inWorker } from './in-worker.ts';
import { claimsIn, renderPage } from './page.ts';
import { TABLE } from './rows.ts';
import { AGAINST_TEXTS, MAILS } from './sources.ts';
import type { TestPins, Titles } from './test-claim.ts';
import { addPins, type TracePins } from './trace-pins.ts';

const PAGE = fileURLToPath(new URL('../../../docs/reference/fidelity.md', import.meta.url));
/** Processes that share the traces: as many as the smallest machine that builds this has processors. */
const PARTS = 2;

export interface Measured {
  traces: TracePins;
  tests: TestPins;
  titles: Titles;
  /** Claims that do not hold. */
  wrong: string[];
}

async function measureTraces(): Promise<TracePins> {
  const parts = Array.from({ length: PARTS }, (_, part) =>
    inWorker<TracePins>({ measure: 'traces', part, parts: PARTS }),
  );
  return addPins(await Promise.all(parts));
}

/** Measures the traces and, where there are claims, these; else which tests to name. */
async function measureAll(claims: TestPins | null): Promise<Measured> {
  const tests = claims ?? (await inWorker<TestPins>({ measure: 'tests' }));
  const [traces, { titles, wrong }] = await Promise.all([
    measureTraces(),
    inWorker<{ titles: Titles; wrong: string[] }>({ measure: 'claims', claims: tests }),
  ]);
  return { traces, tests, titles, wrong };
}

/** The first line in which two texts differ. */
function firstDifference(is: string, wanted: string): string {
  const [have, want] = [is.split('\n'), wanted.split('\n')];
  const at = want.findIndex((line, i) => line !== have[i]);
  const line = at < 0 ? want.length : at;
  return `line ${line + 1}:\n  is       ${have[line] ?? ''}\n  must be  ${want[line] ?? ''}`;
}

/** The whole command. Returns its exit code. */
export async function main(
  argv: readonly string[],
  warn: (text: string) => void,
  page = PAGE,
  measure = measureAll,
): Promise<number> {
  const checks = argv.includes('--check');
  const is = checks ? readFileSync(page, 'utf8') : '';
  const { wrong, ...measured } = await measure(checks ? claimsIn(is) : null);
  for (const each of wrong) warn(each);
  const wanted = renderPage({ table: TABLE, ...measured, mails: MAILS, againstTexts: AGAINST_TEXTS });
  if (!checks) writeFileSync(page, wanted);
  else if (is !== wanted)
    warn(
      `docs/reference/fidelity.md is not what was measured: run \`npm run fidelity\`\n${firstDifference(is, wanted)}`,
    );
  return wrong.length > 0 || (checks && is !== wanted) ? 1 : 0;
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  process.exitCode = await main(process.argv.slice(2), console.error);
