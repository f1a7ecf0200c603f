// Replays one trace on a machine and records the machine's own answers. Nothing that the recorded kernel answered is in reach.

import { faultsOf, translate } from './commands.ts';
import { hostOptions, Inexpressible, layoutOf, leaderOf, threadsOf } from './layout.ts';
import { type Backend, isParked, type Machine, type Reply, type Returned } from './machine.ts';
import type { Answer, AnswerEvent, InputOp, NestedCall, Trace } from './trace.ts';

/** What a trace calls splats whose text begins with no name. */
const UNNAMED: Readonly<Record<string, string>> = { __account_locked_vm: 'locked-vm-underflow' };

/** NOTIFY_DONE: what is answered to a notification that the recording does not have. */
const NOTIFY_DONE = 0;

/** The machine's answer to one operation of a trace; null: it cannot be expressed, and was left out. */
export type OwnAnswer = Answer | null;

export interface Replay {
  /** One for each operation; fewer when the replay had to stop. */
  answers: OwnAnswer[];
  /** Operations left out although the recording has them, as reason and number. */
  leftOut: Map<string, number>;
  /** Why the replay could not go on. */
  stopped: string | null;
}

/** How much of a replay is wanted, asked for each operation by its index. */
export interface Interest {
  /** Whether the state after the operation is read. */
  inState(i: number): boolean;
  /** Whether the replay goes on after an operation that was answered so. */
  inMore(own: OwnAnswer, i: number): boolean;
}

const INTEREST_IN_ALL: Interest = { inState: () => true, inMore: () => true };

export async function replay(backend: Backend, trace: Trace, interest: Interest = INTEREST_IN_ALL): Promise<Replay> {
  const result: Replay = { answers: [], leftOut: new Map(), stopped: null };
  let machine: Machine | null = null;
  try {
    machine = await backend.begin(hostOptions(trace.era, trace.memory_model), trace.memory_model);
    await layOut(machine, trace);
    const player = new Player(machine, trace, result.leftOut);
    for (const [i, op] of trace.ops.entries()) {
      const answer = await player.perform(op, null);
      if (answer !== null && interest.inState(i)) answer.state = await machine.state();
      result.answers.push(answer);
      if (answer?.ret === null || !interest.inMore(answer, i)) break;
    }
  } catch (error) {
    if (!(error instanceof Inexpressible)) throw error;
    result.stopped = error.message;
  } finally {
    await machine?.end();
  }
  return result;
}

async function layOut(machine: Machine, trace: Trace): Promise<void> {
  const withBytes = trace.ops.some(({ op }) => op === 'dma_rw');
  for (const command of layoutOf(trace.memory_model, withBytes)) {
    const reply = await machine.call(command, null);
    if (isParked(reply) || reply.errno !== null)
      throw new Error(
        `seed ${trace.seed}: the layout's ${command.op} was refused: ${JSON.stringify({ command, reply }, hexed)}`,
      );
  }
  const splats = await machine.splats();
  if (splats.length > 0) throw new Error(`seed ${trace.seed}: the layout raised ${JSON.stringify(splats)}`);
}

const hexed = (_key: string, value: unknown): unknown =>
  typeof value === 'bigint' ? `0x${value.toString(16)}` : value;

/** Whether a call in which this happened never returns. */
const isFatal = (event: AnswerEvent): boolean =>
  event.type === 'BUG' ||
  event.type === 'DEADLOCK' ||
  ('calls' in event && event.calls.some(({ answer }) => answer?.ret === null));

class Player {
  private readonly exited = new Set<string>();

  constructor(
    private readonly machine: Machine,
    private readonly trace: Trace,
    private readonly leftOut: Map<string, number>,
  ) {}

  /** Performs one operation to its end, those made inside its notifications included. */
  async perform(input: InputOp, inside: string | null): Promise<OwnAnswer> {
    let step: ReturnType<typeof translate>;
    try {
      this.requireLive(input);
      step = translate(input, this.trace.memory_model);
    } catch (error) {
      if (!(error instanceof Inexpressible) || !error.harmless) throw error;
      this.leftOut.set(error.message, (this.leftOut.get(error.message) ?? 0) + 1);
      return null;
    }
    const events: AnswerEvent[] = [];
    for (const fault of faultsOf(input)) await this.machine.call(fault, null);
    const returned =
      'ask' in step
        ? await this.machine.ask(step)
        : await this.finish(await this.machine.call(step, inside), input, events);
    await this.takeSplats(events);
    if (events.some(isFatal)) return { ret: null, out: {}, events };
    const size = input.op === 'unmap_dma' && returned.out.size === undefined ? { size: input.args.size } : {};
    return { ret: returned.ret, out: { ...returned.out, ...size }, events };
  }

  /** A limit or capability of a task that has exited: the kernel never looks at it again. */
  private requireLive({ op, args }: InputOp): void {
    if (op === 'exit_process')
      for (const thread of threadsOf(this.trace.memory_model, args.process)) this.exited.add(thread);
    if (op === 'exit_thread') this.exited.add(args.thread);
    const thread = op === 'set_rlimit' ? leaderOf(args.process) : op === 'set_cap' ? args.thread : null;
    if (thread !== null && this.exited.has(thread)) throw new Inexpressible(`${op} of a task that has exited`, true);
  }

  /** Plays what happens while a call is interrupted, until it comes back. */
  private async finish(first: Reply, input: InputOp, events: AnswerEvent[]): Promise<Returned> {
    let reply = first;
    for (let k = 0; isParked(reply); k++) {
      await this.takeSplats(events);
      const { operation, notification } = reply;
      const calls: NestedCall[] = [];
      if (notification === null) {
        const script = input.scripts.exchange(k, 'wait');
        events.push({ type: 'wait', calls });
        if (script === null) throw new Inexpressible(`${input.op} that sleeps for ever`);
        await this.nest(script.calls, null, calls);
        if (script.killed) await this.machine.call({ op: 'kill_operation', operation }, null);
      } else {
        const { id, device, listener, iova, size } = notification;
        const script = input.scripts.exchange(k, { listener, iova, size });
        events.push({ type: 'notify', listener, iova, size, calls });
        const stuck = await this.nest(script?.calls ?? [], id, calls);
        if (stuck) return { ret: 0, errno: null, out: {} };
        const ret = script?.returns ?? NOTIFY_DONE;
        await this.machine.call(
          { op: 'ack_notification', device, notification: id, ret, reason: 'ack', detail: null },
          null,
        );
      }
      reply = await this.machine.resume(operation);
    }
    return reply;
  }

  /** Makes the calls of an interruption; true when one of them never returned. */
  private async nest(script: InputOp[], inside: string | null, calls: NestedCall[]): Promise<boolean> {
    for (const call of script) {
      const answer = await this.perform(call, inside);
      calls.push({ op: call.op, answer });
      if (answer?.ret === null) return true;
    }
    return false;
  }

  private async takeSplats(events: AnswerEvent[]): Promise<void> {
    for (const { kind, where, label } of await this.machine.splats())
      events.push({ type: kind, what: label ?? UNNAMED[where] ?? where });
  }
}
