// Idempotency keys of one host: a retried request gets the first one's reply, however the first one ended or still runs.

import type { Answer } from './answer.ts';
import { decodeAnswer, encodeAnswer } from './codec.ts';
import { IdempotencyMismatch } from './errors.ts';
import type { IdempotencyRow } from './ports.ts';

export interface Key {
  key: string;
  body_hash: Uint8Array;
}

interface InFlight {
  body_hash: Uint8Array;
  /** Whether the key belongs to this request: false where the store knows it with another hash, or could not be asked. */
  owned: Promise<boolean>;
  answer: Promise<Answer>;
}

const sameHash = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;
const asReplay = (answer: Answer): Answer => ({ ...answer, replayed: true });

export class IdempotencyKeys {
  private readonly inFlight = new Map<string, InFlight>();
  /** Rows whose reply is an operation's end, by operation. */
  private readonly unanswered = new Map<string, IdempotencyRow>();

  constructor(
    /** The row as committed, or null. */
    private readonly lookUp: (key: string) => Promise<IdempotencyRow | null>,
    /** The reply of an operation that an earlier request started. */
    private readonly operationEnd: (operation: string) => Promise<Answer>,
  ) {}

  /**
   * Runs a request unless its key was used before; then gives the first reply. The key is taken before anything else can run,
   * so of two requests at once only one runs.
   * IdempotencyMismatch: the key was used with another body.
   */
  async once(key: Key, run: () => Promise<Answer>): Promise<Answer> {
    for (;;) {
      const first = this.inFlight.get(key.key);
      if (first === undefined) return await this.take(key, run);
      if (sameHash(first.body_hash, key.body_hash)) return asReplay(await first.answer);
      if (await first.owned) throw new IdempotencyMismatch(key.key);
      // Whoever held the key had no right to it; its reservation ends before this one is looked at again.
      await first.answer.catch(() => undefined);
    }
  }

  private take({ key, body_hash }: Key, run: () => Promise<Answer>): Promise<Answer> {
    const row = this.lookUp(key);
    const mine = row.then((found) => found === null || sameHash(found.body_hash, body_hash));
    const answer = Promise.all([row, mine])
      .then(([found, owned]) => {
        if (!owned) throw new IdempotencyMismatch(key);
        return found === null ? run() : this.replay(found);
      })
      .finally(() => this.inFlight.delete(key));
    this.inFlight.set(key, { body_hash, owned: mine.catch(() => false), answer });
    return answer;
  }

  private async replay(row: IdempotencyRow): Promise<Answer> {
    if (row.answer !== null) return { ...decodeAnswer(row.answer), replayed: true };
    if (row.operation === null) throw new Error(`idempotency key '${row.key}' has neither an answer nor an operation`);
    return asReplay(await this.operationEnd(row.operation));
  }

  /** Remembers a row whose answer is an operation's end. */
  expect(row: IdempotencyRow): void {
    if (row.operation !== null && row.answer === null) this.unanswered.set(row.operation, row);
  }

  /** The row that an operation's end completes, with the answer in it; null where nobody used a key. */
  complete(operation: string, answer: Answer): IdempotencyRow | null {
    const row = this.unanswered.get(operation);
    if (row === undefined) return null;
    this.unanswered.delete(operation);
    return { ...row, answer: encodeAnswer(answer) };
  }
}
