// Brings a clone to the point where it can be started or tested: packages, generated database client, test runner, dist/.
// Plain JavaScript with nothing but Node's own modules, because it runs before anything is installed. Does what has changed only.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { delimiter, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../', import.meta.url));
const STAMPS = join(ROOT, '.setup');
const LEAST_NODE = [20, 19];
const KEPT_OUTPUT = 200_000;

/** Prisma downloads an engine and asks for updates unless it is told that there is one and that nobody wants to know. */
const QUIET_PRISMA = {
  PRISMA_SCHEMA_ENGINE_BINARY: join(STAMPS, 'schema-engine'),
  CHECKPOINT_DISABLE: '1',
  PRISMA_HIDE_UPDATE_MESSAGE: '1',
};

/** A reason why the set-up cannot go on, for people to read. */
export class SetupError extends Error {}

const say = (text) => process.stderr.write(`setup: ${text}\n`);
const path = (...parts) => join(ROOT, ...parts);
const read = (...parts) => readFileSync(path(...parts), 'utf8');
const hashOf = (...texts) => {
  const hash = createHash('sha256');
  for (const text of texts) hash.update(String(text.length)).update(':').update(text);
  return hash.digest('hex');
};

/** Does what is missing. Throws SetupError with a reason in plain words. */
export async function setup() {
  checkNode();
  if (pending() === undefined) return;
  await locked(async () => {
    for (let step = pending(); step !== undefined; step = pending()) {
      say(step.says);
      await step.run();
      writeFileSync(join(STAMPS, step.name), step.inputs());
      if (pending()?.name === step.name) throw new SetupError(`${step.name} changes whenever it is made`);
    }
  });
}

/** In the order in which one needs the other. `inputs` of a step may read what the steps before it have made. */
const STEPS = [
  {
    name: 'packages',
    says: 'looking at node_modules',
    inputs: () => hashOf(read('package-lock.json'), process.versions.modules, process.platform, process.arch),
    made: () => existsSync(path('node_modules/.package-lock.json')),
    run: install,
  },
  {
    name: 'client',
    says: 'generating the database client from prisma/schema.prisma',
    inputs: () =>
      hashOf(read('prisma/schema.prisma'), read('prisma.config.ts'), read('node_modules/prisma/package.json')),
    made: () => existsSync(path('src/store/generated/client.ts')),
    run: generate,
  },
  {
    name: 'runner',
    says: 'building the test runner',
    inputs: () => hashOf(JSON.stringify(JSON.parse(read('package.json')).tap), read('node_modules/tap/package.json')),
    made: () => !read('node_modules/@tapjs/test/test-built/dist/esm/index.js').includes('@tapjs/typescript'),
    run: buildRunner,
  },
  {
    name: 'dist',
    says: 'compiling src/ to dist/',
    inputs: () =>
      hashOf(
        ...sources('src').flatMap((name) => [name, read(name)]),
        read('tsconfig.json'),
        read('tsconfig.build.json'),
        read('node_modules/typescript/package.json'),
      ),
    made: () => existsSync(path('dist/server.js')),
    run: compile,
  },
];

/** First step that has something to do. */
function pending() {
  return STEPS.find(({ name, inputs, made }) => {
    const stamp = join(STAMPS, name);
    return !made() || !existsSync(stamp) || readFileSync(stamp, 'utf8') !== inputs();
  });
}

function sources(folder) {
  return readdirSync(path(folder), { withFileTypes: true })
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .flatMap((entry) => {
      const name = `${folder}/${entry.name}`;
      if (entry.isDirectory()) return sources(name);
      return name.endsWith('.ts') ? [name] : [];
    });
}

function checkNode() {
  const [major, minor] = process.versions.node.split('.').map(Number);
  if (major < LEAST_NODE[0] || (major === LEAST_NODE[0] && minor < LEAST_NODE[1])) {
    throw new SetupError(
      `this is Node ${process.versions.node}, and ${LEAST_NODE.join('.')} or newer is needed: see https://nodejs.org`,
    );
  }
}

/** One set-up at a time in a clone: the others wait, and find its work done. */
async function locked(work) {
  mkdirSync(STAMPS, { recursive: true });
  const lock = join(STAMPS, 'lock');
  for (let waits = 0; !takeLock(lock); waits++) {
    if (waits === 0) say('another set-up is running here, waiting for it');
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  try {
    await work();
  } finally {
    rmSync(lock, { force: true });
  }
}

function takeLock(lock) {
  try {
    writeFileSync(lock, String(process.pid), { flag: 'wx' });
    return true;
  } catch (error) {
    if (error.code !== 'EEXIST') throw error;
  }
  try {
    const owner = Number(readFileSync(lock, 'utf8'));
    if (owner > 0) process.kill(owner, 0);
  } catch (error) {
    // The owner was killed (ESRCH), or has just given the lock back (ENOENT).
    if (error.code === 'ESRCH') rmSync(lock, { force: true });
  }
  return false;
}

async function install() {
  if (isInstalled() && (await addonLoads())) return;
  say('installing packages (npm ci): a minute or two, when the SQLite addon has to be compiled');
  const npm = npmCommand();
  const nodedir = await nodeHeaders(npm);
  const { code, output } = await run(npm[0], [...npm.slice(1), 'ci', '--include=dev', '--loglevel=error'], {
    ...engineFile(),
    ...(nodedir === null ? {} : { npm_config_nodedir: nodedir }),
  });
  if (code !== 0) throw new SetupError(/gyp ERR!/.test(output) ? whyAddonFailed() : whyInstallFailed(output));
  if (!(await addonLoads())) throw new SetupError(whyAddonFailed());
}

/** Whether somebody else, `npm install` for one, has installed just what the lock says. */
function isInstalled() {
  if (!existsSync(path('node_modules/.package-lock.json'))) return false;
  const installed = JSON.parse(read('node_modules/.package-lock.json')).packages;
  const { '': _root, ...wanted } = JSON.parse(read('package-lock.json')).packages;
  return (
    Object.keys(installed).every((name) => wanted[name] !== undefined) &&
    Object.entries(wanted).every(([name, { version, optional }]) =>
      installed[name] === undefined ? optional === true : installed[name].version === version,
    )
  );
}

/** The addon is the one package that is made for this version of Node and this system. */
async function addonLoads() {
  const program = "new (require('better-sqlite3'))(':memory:').close()";
  return (await run(process.execPath, ['-e', program], {}, false)).code === 0;
}

/** npm as this process was started by it, or from the PATH. */
function npmCommand() {
  const script = process.env.npm_execpath;
  if (script !== undefined && /npm-cli\.c?js$/.test(script)) return [process.execPath, script];
  return process.platform === 'win32' ? ['npm.cmd'] : ['npm'];
}

/** Folder whose include/node has the headers of this Node, so that nothing is downloaded to compile; null: leave it to npm. */
async function nodeHeaders(npm) {
  if (process.env.npm_config_nodedir) return null;
  const prefix = dirname(dirname(process.execPath));
  const header = join(prefix, 'include/node/node_version.h');
  if (!existsSync(join(prefix, 'include/node/node.h')) || !existsSync(header)) return null;
  const text = readFileSync(header, 'utf8');
  const [major, minor] = process.versions.node.split('.');
  const has = (name, value) => new RegExp(`#define NODE_${name}_VERSION ${value}\\b`).test(text);
  if (!has('MAJOR', major) || !has('MINOR', minor)) return null;
  const { output } = await run(npm[0], [...npm.slice(1), 'config', 'get', 'nodedir'], {}, false);
  return /^(undefined|null)?$/m.test(output.trim().split('\n').at(-1) ?? '') ? prefix : null;
}

function whyAddonFailed() {
  const missing = [
    ['python3', ['python3', 'python']],
    ['make', ['make', 'gmake']],
    ['g++', ['g++', 'c++', 'clang++']],
  ].filter(([, names]) => !names.some(onPath));
  return [
    'the SQLite addon (better-sqlite3) could not be installed. Where no prebuilt one can be fetched it is compiled, which takes',
    'python3, make, g++ and the headers of Node (in include/node beside bin/node, or fetched from nodejs.org).',
    missing.length > 0
      ? `Missing here: ${missing.map(([name]) => name).join(', ')}. On Debian and Ubuntu: apt-get install python3 make g++. On macOS: xcode-select --install.`
      : 'The three programs are here, so see the lines above: often it is the headers, which npm_config_nodedir=/path can point to.',
  ].join('\n');
}

function whyInstallFailed(output) {
  if (/spawn \S*npm\S* ENOENT/.test(output)) return 'npm is not found: it comes with Node, see https://nodejs.org';
  if (/E(NOTFOUND|AI_AGAIN|CONNREFUSED|CONNRESET|TIMEDOUT|NETUNREACH|HOSTUNREACH|SOCKETTIMEOUT)/.test(output)) {
    return 'the npm registry cannot be reached, and packages come from there the first time: see the lines above, `npm config get registry` and `npm config get proxy`.';
  }
  if (/EUSAGE/.test(output)) {
    return 'package.json and package-lock.json do not agree: `npm install`, then `npm run lock:platforms`, writes the lock anew.';
  }
  return 'npm ci failed: the lines above say why.';
}

const onPath = (name) =>
  (process.env.PATH ?? '')
    .split(delimiter)
    .some((folder) => existsSync(join(folder, name)) || existsSync(join(folder, `${name}.exe`)));

/** Stands for the engine that Prisma would download: it wants a file to be there, and never starts it for what is done here. */
function engineFile() {
  mkdirSync(STAMPS, { recursive: true });
  writeFileSync(QUIET_PRISMA.PRISMA_SCHEMA_ENGINE_BINARY, '');
  return QUIET_PRISMA;
}

async function generate() {
  await mustRun('prisma generate', [path('node_modules/prisma/build/index.js'), 'generate'], engineFile());
}

async function buildRunner() {
  await mustRun('tap build', [path('node_modules/tap/dist/esm/run.mjs'), 'build']);
}

async function compile() {
  rmSync(path('dist'), { recursive: true, force: true });
  await mustRun('tsc', [path('node_modules/typescript/bin/tsc'), '-p', path('tsconfig.build.json')]);
}

async function mustRun(name, args, env = {}) {
  const { code } = await run(process.execPath, args, env);
  if (code !== 0) throw new SetupError(`${name} failed: the lines above say why.`);
}

/** Runs a program whose output goes to stderr, since stdout belongs to what is started afterwards. */
function run(file, args, env = {}, shown = true) {
  return new Promise((resolve) => {
    const child = spawn(file, args, { cwd: ROOT, env: { ...process.env, ...env }, stdio: ['ignore', 'pipe', 'pipe'] });
    const stop = (signal) => {
      child.kill(signal);
      process.exit(signal === 'SIGINT' ? 130 : 143);
    };
    process.once('SIGINT', stop).once('SIGTERM', stop);
    let output = '';
    const take = (chunk) => {
      output = (output + chunk).slice(-KEPT_OUTPUT);
      if (shown) process.stderr.write(chunk);
    };
    child.stdout.on('data', take);
    child.stderr.on('data', take);
    const end = (code) => {
      process.off('SIGINT', stop).off('SIGTERM', stop);
      resolve({ code, output });
    };
    child.on('error', (error) => {
      output += String(error);
      end(1);
    });
    child.on('close', end);
  });
}

/** setup(), with the reason on stderr and exit code 2 when it cannot. */
export async function setupOrExit() {
  try {
    await setup();
  } catch (error) {
    if (!(error instanceof SetupError)) throw error;
    say(error.message);
    process.exit(2);
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await setupOrExit();
