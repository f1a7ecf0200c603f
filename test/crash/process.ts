// A real service process on a real file, started and killed at will, and requests to it that may never be answered.

import { type ChildProcess, spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';

const SERVER = fileURLToPath(new URL('../../src/server.ts', import.meta.url));
const TSX = import.meta.resolve('tsx');

export interface Reply {
  status: number;
  replayed: boolean;
  body: Record<string, unknown>;
}

export class ServiceProcess {
  private constructor(
    private readonly child: ChildProcess,
    readonly url: string,
    private readonly exited: Promise<number | null>,
  ) {}

  /** Starts the service on a free port; resolves when it accepts requests, or null when it was killed before. */
  static async start(
    database: string,
    settings: Record<string, string> = {},
    killAfterMs?: number,
  ): Promise<ServiceProcess | null> {
    const env = {
      ...process.env,
      PORT: '0',
      HOST: '127.0.0.1',
      DATABASE_URL: `file:${database}`,
      LOG_LEVEL: 'warn',
      ...settings,
    };
    const child = spawn(process.execPath, [`--import=${TSX}`, SERVER], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
    // A test that ends early leaves no process behind.
    process.once('exit', () => child.kill('SIGKILL'));
    const timer = killAfterMs === undefined ? undefined : setTimeout(() => child.kill('SIGKILL'), killAfterMs);
    let text = '';
    const listening = new Promise<string | null>((resolve) => {
      const read = (chunk: Buffer): void => {
        text += chunk.toString();
        const url = /listening on (http:\/\/[\d.:]+)/.exec(text)?.[1];
        if (url !== undefined) resolve(url);
      };
      child.stdout?.on('data', read);
      child.stderr?.on('data', read);
      void exited.then(() => resolve(null));
    });
    const url = await listening;
    clearTimeout(timer);
    if (url !== null) return new ServiceProcess(child, url, exited);
    await exited;
    if (child.signalCode !== 'SIGKILL') throw new Error(`the service did not start: ${text}`);
    return null;
  }

  /** kill -9: nothing in the process gets to run. */
  async kill(): Promise<void> {
    this.child.kill('SIGKILL');
    await this.exited;
  }

  /** Ends it as an operator does; resolves with its exit code. */
  async stop(): Promise<number | null> {
    this.child.kill('SIGTERM');
    return this.exited;
  }

  /** One request; null when the connection broke before a whole answer arrived. */
  async request(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<Reply | null> {
    try {
      const response = await fetch(`${this.url}${path}`, {
        method,
        headers: { ...(body === undefined ? {} : { 'content-type': 'application/json' }), ...headers },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
      });
      const text = await response.text();
      return {
        status: response.status,
        replayed: response.headers.get('idempotent-replayed') === 'true',
        body: text === '' ? {} : (JSON.parse(text) as Record<string, unknown>),
      };
    } catch {
      return null;
    }
  }
}
