// Replays one trace of the mmu notifiers and records the machine's own answers. Nothing that was recorded is in reach but
// what callbacks and other threads did.

import { callOf, type Names } from './commands.ts';
import type { MmuBackend, MmuMachine, PendingCallback, Returned, Standing } from './machine.ts';
import { ownCallback } from './observe.ts';
import type { Answer, AnswerEvent, InputOp, MmuTrace, NestedCall, State } from './trace.ts';

export interface MmuReplay {
  /** One for each operation; fewer when a call never returned. */
  answers: Answer[];
  leftOut: Map<string, number>;
  stopped: string | null;
}

export async function replayMmu(backend: MmuBackend, trace: MmuTrace): Promise<MmuReplay> {
  const machine = await backend.begin({
    profile: trace.era,
    template: 'empty',
    dma_entry_limit: 65535,
    notifier_timeout_ms: 600_000,
    total_pages: 16_777_216,
    fixes: [],
    ttl_s: null,
  });
  const answers: Answer[] = [];
  try {
    const player = new Player(machine, trace);
    for (const op of trace.ops) {
      const answer = await player.performOnTop(op);
      answers.push(answer);
      if (answer.ret === null) break;
    }
  } finally {
    await machine.end();
  }
  return { answers, leftOut: new Map(), stopped: null };
}

class Player implements Names {
  /** The operation that keeps each range open. */
  readonly ranges = new Map<string, string>();
  /** The objects of mmu_notifier_get() by the machine's ids: alloc_notifier of the recording names them. */
  private readonly objects = new Map<string, string>();

  constructor(
    readonly machine: MmuMachine,
    readonly trace: MmuTrace,
  ) {}

  readonly nameOf = (id: string): string => this.objects.get(id) ?? id;
  readonly idOf = (name: string): string => {
    for (const [id, object] of this.objects) if (object === name) return id;
    return name;
  };

  /** One operation, what the kernel does behind it, and the state then. */
  async performOnTop(input: InputOp): Promise<Answer> {
    const answer = await this.perform(input, null);
    if (answer.ret !== null) await this.settle(input, answer.events);
    return { ...answer, state: this.named(await this.machine.state()) };
  }

  /** Grace periods end with a top-level operation, and notifiers are freed. */
  private async settle(input: InputOp, events: AnswerEvent[]): Promise<void> {
    for (let [next] = await this.machine.pending(); next !== undefined; [next] = await this.machine.pending())
      await this.finish(next.operation, input, events);
  }

  /** Performs one operation until it ends, or is between a start and its end. */
  async perform(input: InputOp, inside: string | null): Promise<Answer> {
    const events: AnswerEvent[] = [];
    const command = callOf(input, this);
    const first = await this.machine.call(command, inside);
    const operation = command.op === 'resume_operation' ? command.operation : first;
    const standing: Standing =
      typeof operation === 'string'
        ? await this.finish(operation, input, events)
        : { state: 'done', returned: operation };
    await this.takeSplats(events);
    if (input.op === 'invalidate_start' && typeof operation === 'string') this.ranges.set(input.args.range, operation);
    if (standing.state === 'blocked' || events.some(isFatal)) return { ret: null, events };
    const returned: Returned = standing.state === 'done' ? standing.returned : { ret: 0, errno: null, fields: {} };
    return { ret: returned.ret, ...this.outputOf(input, returned), events };
  }

  private outputOf({ op }: InputOp, { ret, fields }: Returned): Pick<Answer, 'seq' | 'notifier'> {
    if (op === 'read_begin') return { seq: fields.sequence as number };
    return op === 'get' && ret >= 0 ? { notifier: this.nameOf(fields.id as string) } : {};
  }

  /** Plays what happens while an operation is interrupted; blocked: nobody will ever let it go on. */
  private async finish(operation: string, { scripts }: InputOp, events: AnswerEvent[]): Promise<Standing> {
    for (;;) {
      await this.takeSplats(events);
      const standing = await this.machine.standing(operation);
      if (standing.state !== 'blocked') return standing;
      const calls: NestedCall[] = [];
      const k = events.filter((event) => 'calls' in event).length;
      if (standing.callback === null) {
        const script = scripts.exchange(k, 'wait');
        events.push({ type: 'wait', calls });
        if (script === null || (await this.nest(script.calls, null, calls)) || script.calls.length === 0)
          return standing;
      } else if (await this.handle(standing.callback, scripts, k, events, calls)) return standing;
    }
  }

  /** One callback. True: it never returns. */
  private async handle(
    callback: PendingCallback,
    scripts: InputOp['scripts'],
    k: number,
    events: AnswerEvent[],
    calls: NestedCall[],
  ): Promise<boolean> {
    const own = ownCallback(callback, this.nameOf(callback.notifier));
    const script = scripts.exchange(k, own);
    events.push({ ...own, calls });
    if (await this.nest(script?.calls ?? [], callback.id, calls)) return true;
    const returns = script?.returns ?? 0;
    if (typeof returns === 'string') {
      this.objects.delete(this.idOf(returns));
      this.objects.set(callback.notifier, returns);
    }
    const ret = typeof returns === 'string' ? 0 : returns;
    await this.machine.call(
      { op: 'ack_mmu_notification', notification: callback.id, ret, reason: 'ack', detail: null },
      null,
    );
    return false;
  }

  /** Makes the calls of an interruption; true when one of them never returned. */
  private async nest(script: InputOp[], inside: string | null, calls: NestedCall[]): Promise<boolean> {
    for (const call of script) {
      const answer = await this.perform(call, inside);
      calls.push({ op: call.op, answer });
      if (answer.ret === null) return true;
    }
    return false;
  }

  private async takeSplats(events: AnswerEvent[]): Promise<void> {
    for (const { kind, what } of await this.machine.splats()) events.push({ type: kind, what });
  }

  private named({ listeners, users, ...state }: State): State {
    const named = Object.fromEntries(Object.entries(users).map(([id, count]) => [this.nameOf(id), count]));
    return { ...state, ...(listeners === undefined ? {} : { listeners: listeners.map(this.nameOf) }), users: named };
  }
}

/** Whether a call in which this happened never returns. */
const isFatal = (event: AnswerEvent): boolean => event.type === 'BUG' || event.type === 'DEADLOCK';
