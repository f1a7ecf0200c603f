// A thread of the emulated kernel that can stop between any two steps. What it has still to do is plain data, so that a
// checkpoint can hold it and a restart goes on in the middle.

import { Errno, type ErrnoExtra, type ErrnoName } from './errno.ts';
import { type Host, trace } from './host.ts';
import { MAX_STEPS } from './limits.ts';
import { type HeldLock, stopWaiting } from './lock.ts';
import type { CallbackFrame } from './mm/mmu-notifier/call.ts';
import {
  block,
  enlist,
  finishOperation,
  getOperation,
  isDetached,
  type Locals,
  newOperation,
  type Operation,
  requireRoomForOperation,
} from './operation.ts';
import { type Done, type Fields, type Outcome, refusalOf } from './outcome.ts';
import type { Phase } from './phase.ts';
import { performStep, type Step } from './steps.ts';

export interface Thread {
  /** What is still to do, the next step last. */
  steps: Step[];
  /** Phase at which it stops next; null: none. */
  stop_at: Phase | null;
  /** It stops at the next phase, whichever that is. */
  stepping: boolean;
  /** Locks taken and not yet released, in order. */
  held: HeldLock[];
  /** Pages of which it holds a reference, one for each mention. */
  pages: number[];
  /** Callbacks of notifiers that it is inside, outermost first. */
  callbacks: CallbackFrame[];
  /** What the last callback returned. */
  returned: number;
  /** Set while the steps that only clean up are run: what the operation will be refused with. */
  error: ({ errno: ErrnoName; detail: string } & ErrnoExtra) | null;
  /** What the operation answers with. */
  ret: number;
  fields: Fields;
}

/** An operation that runs as a thread. */
export type ThreadOperation = Operation & { thread: Thread };

export const newThread = (steps: readonly Step[], stop_at: Phase | null = null): Thread => ({
  steps: [...steps].reverse(),
  stop_at,
  stepping: false,
  held: [],
  pages: [],
  callbacks: [],
  returned: 0,
  error: null,
  ret: 0,
  fields: {},
});

/**
 * Ends an operation from outside: it gives up what it waits for, unwinds, and is refused. Where a client carries out a callback
 * that it is inside, it does so after that.
 */
export function abortThread(host: Host, operation: ThreadOperation, error: Errno): void {
  failThread(operation.thread, error);
  if (operation.blocked_on?.startsWith('vaddr:') === true) schedule(host, operation);
  else stopWaiting(host, operation);
}

/** Puts steps before all that the thread has still to do; the first of them is done next. What cleaning up takes, cleans up. */
export function pushSteps({ thread }: ThreadOperation, steps: readonly Step[]): void {
  for (let i = steps.length - 1; i >= 0; i--) {
    const step = steps[i] as Step;
    thread.steps.push(thread.error === null ? step : { ...step, cleanup: true });
  }
}

/**
 * Starts an operation as a thread and runs it until it ends, stops or waits; and with it all that it wakes.
 * EBUSY: MAX_PARKED_OPERATIONS. Throws what the operation is refused with. The answer has `parked` where it has not ended, `detached` where only another request can
 * let it go on.
 */
export function runOperation(host: Host, started: Locals, steps: readonly Step[], stop_at: Phase | null): Done {
  requireRoomToRun(host, stop_at);
  const operation = newOperation(host, started, newThread(steps, stop_at)) as ThreadOperation;
  schedule(host, operation);
  runThreads(host);
  return answerOf(operation);
}

/** EBUSY: a thread that may stop or wait would be one operation too many. */
export function requireRoomToRun(host: Host, stop_at: Phase | null): void {
  if (stop_at !== null || mayHaveToWait(host)) requireRoomForOperation(host);
}

/** Whether a lock is taken, or a client answers callbacks. */
function mayHaveToWait({ locks, mm }: Host): boolean {
  if (locks.size > 0) return true;
  for (const { handler } of mm.mmu_notifiers.values())
    if (handler.kind === 'poll' || handler.kind === 'webhook') return true;
  return false;
}

/** What the command that ran an operation answers. */
export function answerOf(operation: Operation): Done {
  const { outcome, id } = operation;
  if (outcome === null) return { ret: 0, fields: {}, parked: id };
  const { ret, fields, created, refusal } = outcome;
  if (refusal !== undefined) {
    const { errno, detail, hint, at_index, left, io_error } = refusal;
    if (errno === 'NOT_FOUND') throw new Error(`operation ${id} ended with NOT_FOUND`);
    throw new Errno(errno, detail, extraOf({ hint, at_index, left, io_error }));
  }
  return { ret, fields, ...(created === undefined ? {} : { created }) };
}

/** Without the fields that are undefined. */
function extraOf({
  hint,
  at_index,
  left,
  io_error,
}: { [K in keyof ErrnoExtra]?: ErrnoExtra[K] | undefined }): ErrnoExtra {
  return {
    ...(hint === undefined ? {} : { hint }),
    ...(at_index === undefined ? {} : { at_index }),
    ...(left === undefined ? {} : { left }),
    ...(io_error === undefined ? {} : { io_error }),
  };
}

/** The operation goes on when the threads before it have stopped or ended. */
export function schedule(host: Host, operation: ThreadOperation): void {
  operation.state = 'running';
  operation.blocked_on = null;
  host.runnable.push(operation);
}

/** Runs every thread that can go on, in the order in which they became able to. */
export function runThreads(host: Host): void {
  for (let next = host.runnable.shift(); next !== undefined; next = host.runnable.shift()) runThread(host, next);
}

function runThread(host: Host, operation: ThreadOperation): void {
  const { thread } = operation;
  while (operation.state === 'running') {
    const step = thread.steps.pop();
    if (step === undefined) {
      finishThread(host, operation);
      return;
    }
    if (thread.error !== null && step.cleanup !== true) continue;
    if (++host.steps > MAX_STEPS)
      throw new Error(`${operation.id} and what it woke took ${MAX_STEPS} steps: a livelock`);
    try {
      performStep(host, operation, step);
    } catch (error) {
      failThread(thread, error);
    }
    if (host.opened.length > 0) pushSteps(operation, host.opened.splice(0));
  }
  if (isDetached(operation) && !host.detached.includes(operation.id)) host.detached.push(operation.id);
}

/** The steps that are left are passed over, but for those that clean up. The first error is the one that counts. */
function failThread(thread: Thread, error: unknown): void {
  const { refusal } = refusalOf(error);
  if (thread.error !== null) return;
  const { errno, detail, hint, at_index, left, io_error } = refusal;
  if (errno === 'NOT_FOUND') throw error;
  thread.error = { errno, detail, ...extraOf({ hint, at_index, left, io_error }) };
}

function finishThread(host: Host, operation: ThreadOperation): void {
  const { thread } = operation;
  if (thread.held.length > 0 || thread.pages.length > 0)
    throw new Error(`${operation.id} ends with ${thread.held.length} locks and ${thread.pages.length} pages`);
  const { error } = thread;
  const result =
    error === null
      ? { ret: thread.ret, fields: thread.fields }
      : refusalOf(new Errno(error.errno, error.detail, extraOf(error)));
  const outcome: Outcome = { ...result, finished: [], emitted: [] };
  finishOperation(host, operation, outcome);
}

/** Parks the thread; whoever lets it go on schedules it. */
export function park(host: Host, operation: ThreadOperation, blockedOn: string): void {
  block(host, operation, operation.phase, blockedOn);
}

/** The thread comes to a phase: it is traced, and the thread stops here where it was asked to. */
export function enterPhase(host: Host, operation: ThreadOperation, phase: Phase, fields: Fields): void {
  const { thread } = operation;
  operation.phase = phase;
  trace(host, 'phase', operation.id, {
    phase,
    ...(fields as Record<string, string | number | boolean | bigint | null>),
  });
  if (!thread.stepping && thread.stop_at !== phase) return;
  thread.stepping = false;
  thread.stop_at = null;
  operation.state = 'stopped';
  enlist(host, operation);
}

function getStopped(host: Host, id: string): ThreadOperation {
  const operation = getOperation(host, id);
  if (operation.state !== 'stopped' || operation.thread === undefined)
    throw new Errno('EBUSY', `operation '${id}' is ${operation.state}: only a stopped one can go on`, {
      hint: operation.blocked_on === null ? 'see GET of the operation' : `it waits for ${operation.blocked_on}`,
    });
  return operation as ThreadOperation;
}

/** Lets a stopped operation run to its next phase. EBUSY: it is not stopped. */
export function stepOperation(host: Host, id: string): Done {
  const operation = getStopped(host, id);
  operation.thread.stepping = true;
  return goOn(host, operation);
}

/** Lets a stopped operation run to its end, or to the next `stop_at`. EBUSY: it is not stopped. */
export function resumeOperation(host: Host, id: string, stop_at: Phase | null): Done {
  const operation = getStopped(host, id);
  operation.thread.stop_at = stop_at;
  return goOn(host, operation);
}

/** The refusal of an operation that ends now is shown inside it: this command itself succeeds. */
function goOn(host: Host, operation: ThreadOperation): Done {
  schedule(host, operation);
  runThreads(host);
  const { id, kind, state, phase, blocked_on } = operation;
  return { ret: 0, fields: { id, kind, state, phase, blocked_on } };
}
