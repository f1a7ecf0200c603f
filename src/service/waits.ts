// Clients that wait: for a commit, or for an operation to end. Closing either tells all of them why.

import type { Answer } from './answer.ts';

interface Waiter<T> {
  resolve(value: T): void;
  reject(error: Error): void;
}

/** How far a host's journal is durable, and who waits for more. */
export class CommitWaits {
  private waiting: (Waiter<void> & { seq: number })[] = [];
  private closed: Error | null = null;

  constructor(private reached: number) {}

  get committed(): number {
    return this.reached;
  }

  /** Resolves when everything up to `seq` is durable. */
  until(seq: number): Promise<void> {
    if (seq <= this.reached) return Promise.resolve();
    if (this.closed !== null) return Promise.reject(this.closed);
    return new Promise((resolve, reject) => this.waiting.push({ seq, resolve, reject }));
  }

  reach(seq: number): void {
    this.reached = seq;
    if (this.waiting.length === 0) return;
    const ready = this.waiting.filter((waiter) => waiter.seq <= seq);
    if (ready.length === 0) return;
    this.waiting = this.waiting.filter((waiter) => waiter.seq > seq);
    for (const waiter of ready) waiter.resolve();
  }

  close(error: Error): void {
    this.closed = error;
    for (const waiter of this.waiting.splice(0)) waiter.reject(error);
  }
}

/** Who waits for which operation. */
export class OperationWaits {
  private readonly waiting = new Map<string, Waiter<Answer>[]>();
  private closed: Error | null = null;

  until(operation: string): Promise<Answer> {
    if (this.closed !== null) return Promise.reject(this.closed);
    return new Promise((resolve, reject) => {
      const waiters = this.waiting.get(operation);
      if (waiters === undefined) this.waiting.set(operation, [{ resolve, reject }]);
      else waiters.push({ resolve, reject });
    });
  }

  end(operation: string, answer: Answer): void {
    const waiters = this.waiting.get(operation);
    this.waiting.delete(operation);
    for (const waiter of waiters ?? []) waiter.resolve(answer);
  }

  get size(): number {
    return this.waiting.size;
  }

  close(error: Error): void {
    this.closed = error;
    for (const waiters of this.waiting.values()) for (const waiter of waiters) waiter.reject(error);
    this.waiting.clear();
  }
}
