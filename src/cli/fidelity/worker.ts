// One measuring process: gets its share as a message, answers with what it has measured.

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { readTraces } from '../conformance/trace-reader.ts';
import { TABLE } from './rows.ts';
import type { TestPins } from './test-claim.ts';
import { checkTests, measuredFiles, measureTests } from './test-pins.ts';
import { tracePins } from './trace-pins.ts';

export type Task =
  | { measure: 'traces'; part: number; parts: number }
  | { measure: 'tests'; folder?: string }
  | { measure: 'claims'; folder?: string; claims: TestPins };

const TRACES = fileURLToPath(new URL('../../../test/data/type1/', import.meta.url));
const TESTS = fileURLToPath(new URL('../../../test/kernel/', import.meta.url));

function* tracesOf(
  part: number,
  parts: number,
): Iterable<ReturnType<typeof readTraces> extends Iterable<infer R> ? R : never> {
  let n = 0;
  const files = readdirSync(TRACES).filter((file) => file.endsWith('.jsonl.gz'));
  for (const file of files.sort())
    for (const recorded of readTraces(join(TRACES, file))) if (n++ % parts === part) yield recorded;
}

async function perform(task: Task): Promise<unknown> {
  if (task.measure === 'traces') return tracePins(tracesOf(task.part, task.parts), TABLE);
  const { folder = TESTS } = task;
  const files = measuredFiles(folder);
  return task.measure === 'tests' ? measureTests(folder, files, TABLE) : checkTests(folder, files, TABLE, task.claims);
}

// Hosts with values that do not fit refuse very often; nobody looks at the stacks.
Error.stackTraceLimit = 0;
process.once('message', async (task: Task) => {
  const answer = await perform(task).then(
    (done) => ({ done }),
    (error: Error) => ({ failed: error.message }),
  );
  process.send?.(answer, undefined, {}, () => process.exit());
});
