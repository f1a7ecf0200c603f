// Measures in processes of their own: tests run with changed profiles there, and traces on more than one processor.

import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import type { Task } from './worker.ts';

const WORKER = fileURLToPath(new URL('./worker.ts', import.meta.url));

/** Runs one task in a process of its own. tap, which the tests import, prints where nobody reads. */
export function inWorker<T>(task: Task): Promise<T> {
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
