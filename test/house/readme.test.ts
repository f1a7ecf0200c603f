// Runs the tour of README.md as a reader pastes it, in one shell against a new service, and compares what it promises;
// then the shell and SQL lines of the how-to pages.

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Database from 'better-sqlite3';
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
    .filter((block) => /^(H=|V=|c |for )/m.test(block))
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
  const url = await new Promise<string>((resolve, reject) => {
    let output = '';
    child.stdout.on('data', (chunk) => {
      output += chunk;
      const found = /listening on (http:\/\/\S+:\d+)/.exec(output)?.[1];
      if (found !== undefined) resolve(found);
    });
    child.once('close', () => reject(new Error(`the service does not listen: ${output}`)));
  });
  return { child, url, ended };
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
  t.strictSame(chunksOf('```sh\nc a\n# -> 1\n# -> 2\nc b\n```\n```sh\nnpm start\n```\n'), [
    { commands: ['c a'], expected: ['1', '2'] },
    { commands: ['c b'], expected: [] },
  ]);
});

/** Code blocks of one language in a document. */
const blocksOf = (file: string, language: string): string[] =>
  [
    ...readFileSync(join(ROOT, file), 'utf8').matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, 'gm')),
  ].map((match) => match[1] as string);

const folder = mkdtempSync(join(tmpdir(), 'readme-'));
const { child, url, ended } = await startService(folder);
t.teardown(async () => {
  child.kill('SIGTERM');
  await ended;
  rmSync(folder, { recursive: true, force: true });
});

async function call(method: string, path: string, body?: object): Promise<Record<string, unknown>> {
  const response = await fetch(`${url}/v1/hosts/${path}`, {
    method,
    ...(body === undefined ? {} : { headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }),
  });
  const answer = (await response.json()) as Record<string, unknown>;
  if (!response.ok) throw new Error(`${method} ${path}: ${JSON.stringify(answer)}`);
  return answer;
}

/** Maps four pages in the template's machine and pins them, the first one twice. */
async function pinFour(host: string): Promise<void> {
  const mapping = { task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x4000', flags: ['READ', 'WRITE'] };
  await call('POST', `${host}/containers/vfio0/map_dma`, mapping);
  await call('POST', `${host}/devices/mdev0/notifiers`, {
    id: 'n0',
    events: ['DMA_UNMAP'],
    type: 'IOMMU',
    delivery: { kind: 'builtin', behavior: 'unpin_all' },
  });
  await call('POST', `${host}/devices/mdev0/pin_pages`, { user_pfn: [0, 0, 1, 2, 3], prot: ['READ'] });
}

/** Runs the chunks in one shell; what each of them printed. */
async function outputsOf(chunks: readonly Chunk[]): Promise<string[]> {
  const mark = (i: number): string => `====== chunk ${i} ======`;
  const script = chunks.map(({ commands }, i) => `echo; echo '${mark(i)}'\n${commands.join('\n')}\n`).join('');
  const output = await bash(script.replaceAll(BASE_URL, url));
  return chunks.map((_, i) => {
    const until = output.indexOf(mark(i + 1));
    return output.slice(output.indexOf(mark(i)) + mark(i).length, until === -1 ? undefined : until);
  });
}

t.test('the tour of README.md does what it says', async (t) => {
  const chunks = chunksOf(readFileSync(join(ROOT, 'README.md'), 'utf8'));
  t.ok(chunks.filter((chunk) => chunk.expected.length > 0).length >= 10, 'the tour promises something at ten places');
  const outputs = await outputsOf(chunks);

  for (const [i, { commands, expected }] of chunks.entries()) {
    const said = outputs[i] as string;
    for (const line of expected) t.match(said, promise(line), `${(commands.at(-1) as string).slice(0, 60)} -> ${line}`);
    t.notMatch(said, /"status":(4|5)\d\d/, `${(commands.at(-1) as string).slice(0, 60)}: nothing is refused`);
  }
  t.match(await call('GET', 'default/invariants'), { ok: true }, 'the invariants hold at its end');
});

t.test('docs/how-to/port-a-driver.md: its shell lines say what it promises', async (t) => {
  const chunks = chunksOf(readFileSync(join(ROOT, 'docs/how-to/port-a-driver.md'), 'utf8'));
  t.equal(chunks.filter(({ expected }) => expected.length > 0).length, 2);
  const outputs = await outputsOf(chunks);
  for (const [i, { expected }] of chunks.entries())
    for (const line of expected) t.match(outputs[i], promise(line), line);
});

t.test('docs/how-to/mmu-notifier-contract.md: its shell lines say what they promise', async (t) => {
  const chunks = chunksOf(readFileSync(join(ROOT, 'docs/how-to/mmu-notifier-contract.md'), 'utf8'));
  t.ok(chunks.filter(({ expected }) => expected.length > 0).length >= 15, 'it promises something at every step');
  const outputs = await outputsOf(chunks);
  for (const [i, { commands, expected }] of chunks.entries()) {
    const what = (commands.at(-1) as string).slice(0, 60);
    for (const line of expected) t.match(outputs[i], promise(line), `${what} -> ${line}`);
    t.notMatch(outputs[i], /"status":(4|5)\d\d/, `${what}: nothing is refused`);
  }
});

t.test('docs/explanation/mails.md: every answer is the one that it quotes', async (t) => {
  const page = readFileSync(join(ROOT, 'docs/explanation/mails.md'), 'utf8');
  const chunks = chunksOf(page);
  const mails = page.split(/^## /m).filter((section) => /^\*Re: \[/m.test(section));
  t.equal(mails.length, 5, 'five mails');
  for (const mail of mails) t.ok(chunksOf(mail).length >= 4, `${mail.split('\n')[0]}: it asks and is answered`);
  const outputs = await outputsOf(chunks);
  for (const [i, { commands, expected }] of chunks.entries())
    for (const line of expected)
      t.match(outputs[i], promise(line), `${(commands.at(-1) as string).slice(0, 60)} -> ${line}`);
});

t.test('docs/how-to/sql.md: its queries run on the database of a running service', async (t) => {
  await pinFour('default');
  const [shell] = blocksOf('docs/how-to/sql.md', 'sh');
  const sync = (shell as string).split('\n').find((line) => line.startsWith('curl')) as string;
  t.match(await bash(sync.replaceAll(BASE_URL, url)), /"ret":0/);

  const database = new Database(join(folder, 'emulator.db'), { readonly: true });
  const queries = blocksOf('docs/how-to/sql.md', 'sql')
    .join('\n')
    .split(';')
    .filter((query) => query.trim() !== '');
  const [byMapping, shared] = queries.map((query) => database.prepare(query).all());
  t.match(byMapping, [{ container: 'vfio0', iova: '0x0', size: '0x4000', records: 4, references: 5 }]);
  t.strictSame(shared, [], 'four iovas, four pages');
  database.close();
});

t.test('docs/how-to/replay.md: its shell lines find where two runs part', async (t) => {
  for (const host of ['run-16', 'run-17']) {
    await call('PUT', host, { template: 'default' });
    await pinFour(host);
  }
  const [shell] = blocksOf('docs/how-to/replay.md', 'sh').map((block) => block.replaceAll(BASE_URL, url));
  t.equal(await bash(shell as string), '', 'equal runs: nothing to show');
  await call('POST', 'run-16/devices/mdev0/unpin_pages', { user_pfn: [1] });
  await call('POST', 'run-17/devices/mdev0/unpin_pages', { user_pfn: [2] });
  const difference = await bash(shell as string);
  t.match(difference, /^< .*"op":"unpin_pages".*"user_pfn":\[1\]/m);
  t.match(difference, /^> .*"op":"unpin_pages".*"user_pfn":\[2\]/m);
  t.notMatch(difference, /pin_pages.*\[0,0,1,2,3\]/, 'what is equal is not shown');
});
