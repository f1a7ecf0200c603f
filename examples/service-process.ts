// Starts the service as a process of its own, in a temporary directory, on a free port of 127.0.0.1, with a throw-away
// database, and ends it again.

import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const START_MS = 60_000;
/** A little more than the service takes for itself after SIGTERM. */
const STOP_MS = 10_000;

/** What node is given to run the service: its source where there is one, what was built of it otherwise. */
function command(): string[] {
  const source = fileURLToPath(new URL('../src/server.ts', import.meta.url));
  if (existsSync(source)) return [`--import=${import.meta.resolve('tsx')}`, source];
  return [fileURLToPath(new URL('../dist/server.js', import.meta.url))];
}

export class ServiceProcess {
  private constructor(
    private readonly child: ChildProcess,
    private readonly directory: string,
    readonly url: string,
  ) {}

  /**
   * Resolves when the service accepts requests; throws with its output if it ends before that. `settings` are environment
   * variables beside those that make it throw-away; relative paths in them lie in the temporary directory.
   */
  static async start(settings: Record<string, string> = {}): Promise<ServiceProcess> {
    const directory = await mkdtemp(join(tmpdir(), 'vfio-mdev-demo-'));
    const { API_TOKEN: _, ...inherited } = process.env;
    const throwAway = { HOST: '127.0.0.1', PORT: '0', DATABASE_URL: 'memory:', LOG_LEVEL: 'warn' };
    const env = { ...inherited, ...throwAway, ...settings };
    const child = spawn(process.execPath, command(), { cwd: directory, env, stdio: ['ignore', 'pipe', 'pipe'] });
    try {
      return new ServiceProcess(child, directory, await listening(child));
    } catch (error) {
      child.kill('SIGKILL');
      await rm(directory, { recursive: true, force: true });
      throw error;
    }
  }

  async stop(): Promise<void> {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const ended = new Promise((resolve) => this.child.once('exit', resolve));
      this.child.kill('SIGTERM');
      const late = setTimeout(() => this.child.kill('SIGKILL'), STOP_MS);
      await ended;
      clearTimeout(late);
    }
    await rm(this.directory, { recursive: true, force: true });
  }
}

/** Waits for the line with the address. What the service prints is kept, to be shown if it ends instead. */
function listening(child: ChildProcess): Promise<string> {
  return new Promise((resolve, reject) => {
    let output = '';
    const late = setTimeout(() => fail(`does not listen after ${START_MS / 1000} s`), START_MS);
    const fail = (why: string) => {
      clearTimeout(late);
      reject(new Error(`the service ${why}:\n${output.trimEnd()}`));
    };
    const read = (chunk: Buffer) => {
      output = (output + chunk.toString('utf8')).slice(-16_384);
      const url = /listening on (http:\/\/[^\s"]+).*\n/.exec(output)?.[1];
      if (url === undefined) return;
      clearTimeout(late);
      resolve(url);
    };
    child.stdout?.on('data', read);
    child.stderr?.on('data', read);
    child.once('error', (error) => fail(`can't be started (${error.message})`));
    child.once('exit', (code, signal) => fail(`ended with ${signal ?? `exit code ${code}`}`));
  });
}
