// Runs the tour of README.md as a reader pastes it, in one shell against a new service, and compares what it promises.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { ROOT } from './project-files.ts';

t.setTimeout(120_000);

const BASE_URL = 'http://127.0.0.1:7180';
const EXPECTED = '# -> ';

interface Chunk {
  commands: string[];
  expected: string[];
}

/** The shell blocks that talk to the service, cut behind every run of `# -> ` lines. */
function chunksOf(markdown: string): Chunk[] {
  const lines = [...markdown.matchAll(/^```sh\n([\s\S]*?)^```$/gm)]
    .map((match) => match[1] as string)
    .filter((block) => block.includes('curl'))
    .flatMap((block) => block.trimEnd().split('\n'));
  const chunks: Chunk[] = [];
  for (const line of lines) {
    let last = chunks.at(-1);
    if (line.startsWith(EXPECTED)) {
      if (last === undefined) throw new Error(`nothing before ${line}`);
      last.expected.push(line.slice(EXPECTED.length));
      continue;
    }
    if (last === undefined || last.expected.length > 0) {
      last = { commands: [], expected: [] };
      chunks.push(last);
    }
    last.commands.push(line);
  }
  return chunks;
}

/** What a `# -> ` line promises: its text somewhere in the output, with `...` for whatever lies between. */
function promise(expected: string): RegExp {
  const parts = expected.split('...').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
  return new RegExp(parts.join('[\\s\\S]*?'));
}

async function startService(folder: string): Promise<{ child: ChildProcess; url: string; ended: Promise<unknown[]> }> {
  const child = spawn(process.execPath, ['--import=tsx', 'src/server.ts'], {
    cwd: ROOT,
    env: {
      ...process.env,
      HOST: '127.0.0.1',
      PORT: '0',
      DATABASE_URL: `file:${folder}/emulator.db`,
      LOG_LEVEL: 'warn',
      API_TOKEN: undefined,
      NODE_OPTIONS: undefined,
    },
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(child, 'close');
  let output = '';
  for await (const chunk of child.stdout ?? []) {
    output += chunk;
    const url = /listening on (http:\/\/\S+:\d+)/.exec(output)?.[1];
    if (url === undefined) continue;
    child.stdout?.resume();
    return { child, url, ended };
  }
  throw new Error(`the service does not listen: ${output}`);
}

async function bash(script: string): Promise<string> {
  const child = spawn('bash', ['-u'], { stdio: ['pipe', 'pipe', 'pipe'] });
  let output = '';
  child.stdout.on('data', (data) => {
    output += data;
  });
  child.stderr.on('data', (data) => {
    output += data;
  });
  child.stdin.end(script);
  await once(child, 'close');
  return output;
}

t.test('a promise is compared, not only printed', async (t) => {
  t.match('{"ret":0,"seq":7}', promise('{"ret":0,"seq":...}'));
  t.notMatch('{"ret":-22,"seq":7}', promise('{"ret":0,"seq":...}'));
  t.strictSame(chunksOf('```sh\ncurl a\n# -> 1\n# -> 2\ncurl b\n```\n```sh\nnpm start\n```\n'), [
    { commands: ['curl a'], expected: ['1', '2'] },
    { commands: ['curl b'], expected: [] },
  ]);
});

t.test('the tour of README.md does what it says', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'readme-'));
  const { child, url, ended } = await startService(folder);
  t.teardown(async () => {
    child.kill('SIGTERM');
    await ended;
    rmSync(folder, { recursive: true, force: true });
  });

  const chunks = chunksOf(readFileSync(join(ROOT, 'README.md'), 'utf8'));
  t.ok(chunks.filter((chunk) => chunk.expected.length > 0).length >= 10, 'the tour promises something at ten places');
  const mark = (i: number): string => `====== chunk ${i} ======`;
  const script = chunks.map(({ commands }, i) => `echo; echo '${mark(i)}'\n${commands.join('\n')}\n`).join('');
  const output = await bash(script.replaceAll(BASE_URL, url));

  for (const [i, { commands, expected }] of chunks.entries()) {
    const from = output.indexOf(mark(i));
    const until = output.indexOf(mark(i + 1));
    const said = output.slice(from + mark(i).length, until === -1 ? undefined : until);
    for (const line of expected) t.match(said, promise(line), `${(commands.at(-1) as string).slice(0, 60)} -> ${line}`);
    t.notMatch(said, /"status":(4|5)\d\d/, `${(commands.at(-1) as string).slice(0, 60)}: nothing is refused`);
  }

  const invariants = (await (await fetch(`${url}/v1/hosts/default/invariants`)).json()) as { ok: boolean };
  t.equal(invariants.ok, true, 'the invariants hold at its end');
});
