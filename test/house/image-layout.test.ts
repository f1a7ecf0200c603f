// The image without an engine: lays out what Dockerfile copies, builds as it builds, and starts its CMD as another user
// in a folder that cannot be written to.

import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t, { type Test } from 'tap';
import { flatten, readDockerfile, type Stage } from './dockerfile-text.ts';
import { projectFiles, ROOT } from './project-files.ts';

t.setTimeout(240_000);

const NOBODY = 65534;
const asRoot = process.getuid?.() === 0;
const another = asRoot ? { uid: NOBODY, gid: NOBODY } : {};

/** Words of a command with exactly this environment: the test runner adds its own to whatever is started directly. */
const withOnly = (env: Record<string, string | undefined>, words: string[]): string[] => [
  'env',
  '-i',
  ...Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`])),
  ...words,
];

const stages = readDockerfile(readFileSync(join(ROOT, 'Dockerfile'), 'utf8'));
const runtime = flatten(stages, 'runtime');
const top = mkdtempSync(join(tmpdir(), 'image-'));
chmodSync(top, 0o755);
const image = join(top, 'app');
const build = join(top, 'build');
const data = join(top, 'data');
const scratch = join(top, 'tmp');
const running = new Set<ChildProcess>();
t.teardown(() => {
  for (const child of running) child.kill('SIGKILL');
  if (!asRoot) spawnSync('chmod', ['-R', 'u+w', image]);
  rmSync(top, { recursive: true, force: true });
});

/** What .dockerignore lets into the context: it starts with `*`, so only what is named again. */
const context = new Set(
  readFileSync(join(ROOT, '.dockerignore'), 'utf8')
    .split('\n')
    .filter((line) => line.startsWith('!'))
    .map((line) => line.slice(1)),
);

/** Lays out a stage; returns what it could not do. */
function layOut(stage: Stage, folder: string, from: (name: string) => string): string[] {
  const faults: string[] = [];
  for (const step of stage.steps) {
    if (step.kind === 'run') {
      const fault = run(step.command, folder, stage.env);
      if (fault !== null) faults.push(fault);
      continue;
    }
    for (const source of step.sources) {
      const path = source.replace(/^\/app\//, '');
      const destination = step.destination.endsWith('/')
        ? join(folder, step.destination, path)
        : join(folder, step.destination);
      if (step.from === null && !context.has(path)) faults.push(`COPY ${path}: not in the build context`);
      const ours = projectFiles().filter((file) => file === path || file.startsWith(`${path}/`));
      if (step.from === null)
        for (const file of ours) copy(join(ROOT, file), join(destination, file.slice(path.length)));
      else if (path === 'node_modules') copyProductionPackages(destination);
      else if (existsSync(join(from(step.from), path)))
        cpSync(join(from(step.from), path), destination, { recursive: true });
      else faults.push(`COPY --from=${step.from} ${source}: is not there`);
      if (step.from === null && ours.length === 0) faults.push(`COPY ${path}: no such file`);
    }
  }
  return faults;
}

function copy(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true });
  copyFileSync(from, to);
}

/** RUN: what reaches for registries is stood in for by what is installed here, the rest is executed. */
function run(command: string, folder: string, env: Map<string, string>): string | null {
  if (command.startsWith('apt-get update') || command === 'npm prune --omit=dev --omit=optional') return null;
  if (command.startsWith('mkdir /data')) return null;
  if (command === 'npm ci') {
    symlinkSync(join(ROOT, 'node_modules'), join(folder, 'node_modules'));
    return null;
  }
  const { PATH, HOME } = process.env;
  const [program, ...words] = withOnly({ PATH, HOME, ...Object.fromEntries(env) }, ['sh', '-c', command]);
  const ran = spawnSync(program as string, words, { cwd: folder, encoding: 'utf8' });
  return ran.status === 0 ? null : `RUN ${command}: ${ran.stdout}${ran.stderr}`;
}

/** What npm prune --omit=dev --omit=optional leaves, read off the lock file; hard links where the file system allows. */
function copyProductionPackages(destination: string): void {
  const lock = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; optional?: boolean; devOptional?: boolean }>;
  };
  mkdirSync(destination, { recursive: true });
  for (const [path, { dev, optional, devOptional }] of Object.entries(lock.packages)) {
    if (
      dev ||
      optional ||
      devOptional ||
      !/^node_modules\/(@[^/]+\/)?[^/]+$/.test(path) ||
      !existsSync(join(ROOT, path))
    )
      continue;
    const target = join(destination, path.slice('node_modules/'.length));
    mkdirSync(dirname(target), { recursive: true });
    const linked = spawnSync('cp', ['-al', join(ROOT, path), target]);
    if (linked.status !== 0) execFileSync('cp', ['-a', join(ROOT, path), dirname(target)]);
  }
}

/** The node that the other user may execute. */
function nodeForAll(): string {
  if (spawnSync(process.execPath, ['--version'], another).status === 0) return process.execPath;
  const node = join(top, 'node');
  copyFileSync(process.execPath, node);
  chmodSync(node, 0o755);
  return node;
}

interface Started {
  child: ChildProcess;
  output: () => string;
  ended: Promise<number | null>;
}

function start(folder: string, words: string[], env: Record<string, string>, user: object = another): Started {
  const own = [words[0] === 'node' ? nodeForAll() : (words[0] as string), ...words.slice(1)];
  const [program, ...rest] = withOnly({ PATH: '/usr/bin:/bin', TMPDIR: scratch, ...env }, own);
  const child = spawn(program as string, rest, { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'], ...user });
  running.add(child);
  let output = '';
  for (const stream of [child.stdout, child.stderr])
    stream?.on('data', (chunk) => {
      output += chunk;
    });
  const ended = once(child, 'close').then(([code]) => {
    running.delete(child);
    return code as number | null;
  });
  return { child, output: () => output, ended };
}

/** Waits for the line that says where it listens. */
async function listening(t: Test, started: Started): Promise<string> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const url = /listening on (http:\/\/\S+:\d+)/.exec(started.output())?.[1];
    if (url !== undefined) return url;
    if (Date.now() > deadline || started.child.exitCode !== null) {
      t.fail(`it does not listen:\n${started.output()}`);
      throw new Error('not listening');
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

t.test('the image of Dockerfile, from its own files alone', async (t) => {
  mkdirSync(build);
  mkdirSync(image);
  for (const folder of [data, scratch]) {
    mkdirSync(folder);
    chmodSync(folder, 0o777);
  }
  const faults = [...layOut(flatten(stages, 'driver'), build, () => build), ...layOut(runtime, image, () => build)];
  t.strictSame(faults, [], 'every RUN ends well and every COPY finds what it names');
  for (const name of ['tap', 'fast-check', '@biomejs/biome', 'dclint'])
    t.notOk(existsSync(join(image, 'node_modules', name)), `${name} is not in it`);
  if (!asRoot) spawnSync('find', [image, '-type', 'd', '-exec', 'chmod', 'a-w', '{}', '+']);
});

t.test('HOST=0.0.0.0 without a decision about authentication: exit code 2 and API_TOKEN named', async (t) => {
  const words = runtime.last.get('CMD') as string[];
  const started = start(image, words, { ...Object.fromEntries(runtime.env), PORT: '0', DATABASE_URL: 'memory:' });
  t.equal(await started.ended, 2, 'exit code 2');
  t.match(started.output(), /API_TOKEN/);
});

t.test('starts as another user on a folder it cannot write to, is healthy, exits 0 on SIGTERM', async (t) => {
  t.throws(
    () => execFileSync('sh', ['-c', `: > ${image}/planted`], { stdio: 'pipe', ...another }),
    'the folder cannot be written to',
  );
  const env = {
    ...Object.fromEntries(runtime.env),
    HOST: '127.0.0.1',
    PORT: '0',
    DATABASE_URL: `file:${data}/emulator.db`,
  };
  const started = start(image, runtime.last.get('CMD') as string[], env);
  const url = await listening(t, started);
  t.equal((await fetch(`${url}/healthz`)).status, 200);
  t.ok(existsSync(join(data, 'emulator.db')), 'the database is in the volume');

  const check = runtime.last.get('HEALTHCHECK')?.join(' ') as string;
  const words = JSON.parse(check.slice(check.indexOf('['))) as string[];
  const port = new URL(url).port;
  t.equal(await start(image, words, { PORT: port }).ended, 0, 'HEALTHCHECK says healthy');

  await t.test('the driver of docker-compose.yml pins, unpins in its webhook and ends with 0', async (t) => {
    const driver = flatten(stages, 'driver');
    const mock = start(build, driver.last.get('CMD') as string[], { EMULATOR_URL: url, DRIVER_PORT: '0' }, {});
    const code = await mock.ended;
    if (code !== 0) t.comment(mock.output());
    t.equal(code, 0, 'exit code 0');
    t.match(mock.output(), /DMA_UNMAP 0x100000 \+ 0x100000: unpinned 16 pages/);
    t.match(mock.output(), /ok: nothing was leaked/);
  });

  started.child.kill('SIGTERM');
  const code = await started.ended;
  if (code !== 0) t.comment(started.output());
  t.equal(code, 0, 'exit code 0');
  t.equal(await start(image, words, { PORT: port }).ended, 1, 'HEALTHCHECK says unhealthy once it is gone');
});
