// What a client gets for a command, and what it says about itself when it asks.

import type { Host } from '../kernel/host.ts';
import type { Operation } from '../kernel/operation.ts';
import type { Outcome } from '../kernel/outcome.ts';

export interface RequestContext {
  request_id: string;
  /** The notification inside whose handler the call is made (X-Notification); null: another thread. */
  notification: string | null;
  /** Idempotency-Key with a hash of method, path and body; null: none. */
  idempotency: { key: string; body_hash: Uint8Array } | null;
  /** Prefer: respond-async: answer as soon as the operation is parked, not when it ends. */
  respond_async: boolean;
}

export interface Answer {
  /** Position in the journal of the command, also where an operation ended it at a later one. */
  seq: number;
  /** Of the command, or of the operation once it finished. */
  outcome: Outcome;
  /** Set when answered before the operation's end: because of respond_async, or because only another request lets it go on. */
  operation: string | null;
  /** The first reply to an earlier request with the same idempotency key. */
  replayed: boolean;
  /** Of the first request: differs from the asking one's on a replay. */
  request_id: string;
  /** Kernel that the host behaves as. */
  profile: string;
}

/** The answer that a finished operation gives to the client who started it; null while it runs. */
export function answerOf(host: Host, operation: Operation): Answer | null {
  const { outcome, seq, request_id } = operation;
  const profile = host.profile.name;
  return outcome === null ? null : { seq, outcome, operation: null, replayed: false, request_id, profile };
}

/** The answer that a client gets whose operation is stopped, or waits for a lock: the operation itself. */
export function detachedAnswer(host: Host, { id, seq, request_id }: Operation): Answer {
  const outcome: Outcome = { ret: 0, fields: {}, parked: id, finished: [], emitted: [] };
  return { seq, outcome, operation: id, replayed: false, request_id, profile: host.profile.name };
}

/** What the clients of operations that the last command finished or detached are answered with. */
export function endingsOf(host: Host, { finished, detached = [] }: Outcome): { id: string; answer: Answer }[] {
  const stopped = detached.map((id) => ({ id, answer: detachedAnswer(host, host.operations.get(id) as Operation) }));
  return [...answersOf(host, finished), ...stopped];
}

/** The answers of the operations that the last command finished. Throws where an id has no outcome: a defect of the kernel. */
function answersOf(host: Host, finished: readonly string[]): { id: string; answer: Answer }[] {
  return finished.map((id) => {
    const operation = host.operations.get(id);
    const answer = operation === undefined ? null : answerOf(host, operation);
    if (answer === null) throw new Error(`operation ${id} is said to be finished and has no outcome`);
    return { id, answer };
  });
}
