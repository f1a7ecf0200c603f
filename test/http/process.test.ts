// The process: settings, exit codes, the line that says where it listens, signals. Real processes on free ports.

import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, writeFileSync } from 'node:fs';
import http from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { readSettings, StartError } from '../../src/settings.ts';

const SERVER = fileURLToPath(new URL('../../src/server.ts', import.meta.url));
const START_MS = 60_000;
/** The time that a stop may take; this one has little to do. */
const STOP_MS = 5_000;

interface Process {
  child: ChildProcess;
  output: () => { stdout: string; stderr: string };
  exited: Promise<{ code: number | null; signal: string | null }>;
}

const running = new Set<ChildProcess>();
t.teardown(() => {
  for (const child of running) child.kill('SIGKILL');
});

function run(env: Record<string, string>, args: string[] = []): Process {
  const clean = Object.fromEntries(
    Object.entries(process.env).filter(
      ([name]) => !['API_TOKEN', 'HOST', 'ALLOW_ANONYMOUS', 'WEBHOOK_ALLOW'].includes(name),
    ),
  );
  const child = spawn(process.execPath, ['--import=tsx', SERVER, ...args], {
    env: { ...clean, DATABASE_URL: 'memory:', PORT: '0', LOG_LEVEL: 'info', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  running.add(child);
  let stdout = '';
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    stdout += chunk.toString();
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  const exited = new Promise<{ code: number | null; signal: string | null }>((resolve) =>
    child.once('close', (code, signal) => {
      running.delete(child);
      resolve({ code, signal });
    }),
  );
  return { child, output: () => ({ stdout, stderr }), exited };
}

/** The address that a process says it listens on. */
async function listening({ child, output, exited }: Process): Promise<string> {
  const found = (): string | undefined => /listening on (http:\/\/[^\s"]+)/.exec(output().stdout)?.[1];
  const line = new Promise<string>((resolve) => {
    const look = (): void => {
      const url = found();
      if (url !== undefined) resolve(url);
    };
    child.stdout?.on('data', look);
    look();
  });
  const late = new Promise<never>((_, reject) =>
    setTimeout(() => reject(new Error('does not listen')), START_MS).unref(),
  );
  const ended = exited.then(({ code }) => Promise.reject(new Error(`ended with ${code}: ${output().stderr}`)));
  return Promise.race([line, late, ended]);
}

/** Everything that refuses these settings, from readSettings() itself. */
function errorsOf(env: Record<string, string>, args: string[] = []): readonly string[] {
  try {
    readSettings(env, args);
    return [];
  } catch (error) {
    if (error instanceof StartError) return error.errors;
    throw error;
  }
}

t.test('defaults, variables and flags: flags win, empty variables count as unset', (t) => {
  t.same(readSettings({}, []), {
    HOST: '127.0.0.1',
    PORT: 7180,
    DATABASE_URL: 'file:./data/emulator.db',
    LOG_LEVEL: 'info',
    API_TOKEN: null,
    ALLOW_ANONYMOUS: false,
    WEBHOOK_ALLOW: [],
    JOURNAL_KEEP: 1_000_000,
    CHECKPOINT_COMMANDS: 20_000,
  });
  const env = { HOST: '0.0.0.0', PORT: '1', API_TOKEN: '', ALLOW_ANONYMOUS: '1', LOG_LEVEL: '', UNRELATED: 'x' };
  t.match(readSettings(env, ['--port', '2', '--webhook-allow=a.example, 10.0.0.0/8', '--journal-keep=5']), {
    HOST: '0.0.0.0',
    PORT: 2,
    API_TOKEN: null,
    ALLOW_ANONYMOUS: true,
    WEBHOOK_ALLOW: ['a.example', '10.0.0.0/8'],
    JOURNAL_KEEP: 5,
    LOG_LEVEL: 'info',
  });
  t.equal(readSettings({}, ['--allow-anonymous', '--host', '::']).ALLOW_ANONYMOUS, true);
  t.equal(readSettings({ HOST: '0.0.0.0', API_TOKEN: 'abc' }, []).API_TOKEN, 'abc');
  t.equal(readSettings({}, ['--api-token=abc==']).API_TOKEN, 'abc==');
  for (const HOST of ['127.0.0.1', '127.9.9.9', 'localhost', '::1']) t.same(errorsOf({ HOST }), [], HOST);
  t.end();
});

t.test('each setting is refused by name', (t) => {
  const wrong: [Record<string, string>, RegExp][] = [
    [{ PORT: 'x' }, /^PORT: 'x' must be integer/],
    [{ PORT: '65536' }, /^PORT: .*<= 65535/],
    [{ PORT: '-1' }, /^PORT: /],
    [{ HOST: 'a b' }, /^HOST: /],
    [{ HOST: '0.0.0.0' }, /^HOST: 0\.0\.0\.0 is not loopback: set API_TOKEN/],
    [{ HOST: 'example.org' }, /^HOST: /],
    [{ HOST: '127.example.org' }, /^HOST: /],
    [{ DATABASE_URL: 'mysql://x' }, /^DATABASE_URL: 'mysql:\/\/x' must be file:/],
    [{ DATABASE_URL: 'file:' }, /^DATABASE_URL: /],
    [{ LOG_LEVEL: 'loud' }, /^LOG_LEVEL: 'loud' must be one of trace, /],
    [{ ALLOW_ANONYMOUS: 'maybe' }, /^ALLOW_ANONYMOUS: /],
    [{ WEBHOOK_ALLOW: '10.0.0.0/99' }, /^WEBHOOK_ALLOW: '10\.0\.0\.0\/99' is neither/],
    [{ JOURNAL_KEEP: '0' }, /^JOURNAL_KEEP: /],
  ];
  for (const [env, expected] of wrong) t.match(errorsOf(env), [expected], JSON.stringify(env));
  t.match(errorsOf({ API_TOKEN: 'has space' }), [/^API_TOKEN: must be/]);
  t.notMatch(errorsOf({ API_TOKEN: 'has space' }).join(), 'has space', 'a token is not printed');
  t.match(errorsOf({}, ['--prot', '1']), [/^--prot: is not a flag/, /^1: is not a flag/]);
  t.match(errorsOf({}, ['--port']), [/^--port: needs a value/]);
  t.end();
});

t.test('exit code 2 and every error, when the settings do not fit', async (t) => {
  const { exited, output } = run({ PORT: '99999', LOG_LEVEL: 'loud', HOST: '0.0.0.0', WEBHOOK_ALLOW: '!' }, [
    '--nonsense',
  ]);
  t.equal((await exited).code, 2);
  const { stderr } = output();
  for (const name of ['PORT', 'LOG_LEVEL', 'HOST', 'WEBHOOK_ALLOW', '--nonsense'])
    t.match(stderr, new RegExp(`^${name}: `, 'm'));
  t.notMatch(stderr, /at .*\.ts/, 'no stack');
});

t.test('exit code 2 when the database can not be opened, or the port is taken', async (t) => {
  const directory = mkdtempSync(join(t.testdir(), 'd-'));
  const file = join(directory, 'not-a-directory');
  writeFileSync(file, 'x');
  const unopened = run({ DATABASE_URL: `file:${file}/emulator.db` });
  const taken = createServer().listen(0, '127.0.0.1');
  await new Promise((resolve) => taken.once('listening', resolve));
  const deaf = run({ PORT: String((taken.address() as AddressInfo).port) });
  t.equal((await unopened.exited).code, 2);
  t.match(unopened.output().stderr, /^DATABASE_URL: /);
  t.equal((await deaf.exited).code, 2);
  t.match(deaf.output().stderr, /^HOST, PORT: .*EADDRINUSE/);
  taken.close();
});

t.test('exit code 2 when another process has the database', async (t) => {
  const database = `file:${join(t.testdir(), 'emulator.db')}`;
  const first = run({ DATABASE_URL: database });
  await listening(first);
  const second = run({ DATABASE_URL: database });
  t.equal((await second.exited).code, 2);
  t.match(second.output().stderr, /^DATABASE_URL: .*in use/);
  first.child.kill('SIGINT');
  t.equal((await first.exited).code, 0);
});

t.test('one line says where, at every log level; logs are JSON lines', async (t) => {
  const levels = ['info', 'fatal', 'silent'];
  const processes = levels.map((LOG_LEVEL) => run({ LOG_LEVEL }));
  for (const [i, each] of processes.entries()) {
    const url = await listening(each);
    t.match(url, /^http:\/\/127\.0\.0\.1:[1-9]\d*$/, levels[i] as string);
    t.equal((await fetch(`${url}/healthz`)).status, 200);
    each.child.kill('SIGTERM');
    t.equal((await each.exited).code, 0);
    const lines = each.output().stdout.trim().split('\n');
    t.equal(lines.filter((line) => line.includes('listening on http://')).length, 1);
    for (const line of lines) t.type(JSON.parse(line), 'object', line);
    if (levels[i] !== 'info') t.equal(lines.length, 1, 'and nothing else');
  }
});

/** A request whose reply is awaited later; null: the connection broke. */
const later = (url: string, init: RequestInit = {}): Promise<number | null> =>
  fetch(url, init).then(
    async (response) => {
      await response.text();
      return response.status;
    },
    () => null,
  );

const post = (body: unknown): RequestInit => ({
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify(body),
});

t.test(
  'SIGTERM with requests of every kind open: they are answered, repeats change nothing, exit code 0 in time',
  async (t) => {
    const database = `file:${join(t.testdir(), 'emulator.db')}`;
    const one = run({ DATABASE_URL: database });
    const url = await listening(one);
    const at = `${url}/v1/hosts/default`;
    await later(`${at}`, { ...post({ notifier_timeout_ms: 600_000 }), method: 'PATCH' });
    await later(
      `${at}/containers/vfio0/map_dma`,
      post({ task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x1000', flags: ['READ'] }),
    );
    await later(`${at}/devices/mdev0/notifiers`, post({ id: 'n0', events: ['DMA_UNMAP'], delivery: { kind: 'poll' } }));
    await later(`${at}/devices/mdev0/pin_pages`, post({ user_pfn: [0], prot: ['READ'] }));
    const unmap = later(`${at}/containers/vfio0/unmap_dma`, post({ iova: '0x0', size: '0x1000' }));
    const pending = await fetch(`${at}/devices/mdev0/notifications?wait_ms=10000`);
    t.match(await pending.json(), { items: [{ attempt: 1 }] });
    const poll = later(`${at}/devices/none-such-has-any/notifications?wait_ms=60000`);
    t.equal(await poll, 404);
    await later(`${at}/devices/mdev1`, { ...post({ group: null }), method: 'PUT' });
    const longPoll = later(`${at}/devices/mdev1/notifications?wait_ms=60000`);
    const agent = new http.Agent({ keepAlive: true });
    await new Promise<void>((resolve, reject) => {
      http.get(`${url}/healthz`, { agent }, (response) => response.resume().once('end', resolve)).once('error', reject);
    });
    const unfinished = http.request(`${at}/sync`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'content-length': 100 },
    });
    unfinished.on('error', () => {});
    unfinished.write('{');
    await new Promise((resolve) => setTimeout(resolve, 200));

    const started = Date.now();
    one.child.kill('SIGTERM');
    setTimeout(() => one.child.kill('SIGTERM'), 20);
    setTimeout(() => one.child.kill('SIGINT'), 40);
    const { code, signal } = await one.exited;
    t.same({ code, signal }, { code: 0, signal: null });
    t.ok(Date.now() - started < STOP_MS, `stopped in ${Date.now() - started} ms`);
    t.equal(await unmap, 503, 'a client that waits for an operation is told to come back');
    t.ok([200, 503].includes((await longPoll) ?? 0), 'a long poll ends');
    agent.destroy();
    t.equal(await later(`${url}/healthz`), null, 'nothing is accepted any more');

    const two = run({ DATABASE_URL: database });
    const again = await listening(two);
    const operations = await (await fetch(`${again}/v1/hosts/default/operations`)).json();
    t.match(
      operations,
      { items: [{ kind: 'unmap_dma', state: 'blocked', phase: 'notify' }] },
      'the unmap goes on after a restart',
    );
    two.child.kill('SIGTERM');
    t.equal((await two.exited).code, 0);
  },
);
