// The trace as the Perfetto UI opens it: a track for each task, device and notifier, operations and pins as asynchronous slices.

import type { FastifyRequest } from 'fastify';
import type { Host, TraceEntry } from '../../kernel/host.ts';
import type { Fields } from '../../kernel/outcome.ts';
import { type JsonFields, printedFields } from '../parse.ts';
import { Events, type OpenSlice, type PerfettoEvent } from './events.ts';
import { Pins } from './pins.ts';

/** Who runs an operation that began before the first entry. */
export interface Runner {
  task: string | null;
  device: string | null;
}

export interface About {
  host: string;
  profile: string;
  /** Older entries of the span have been dropped, or are not asked for. */
  truncated: boolean;
  runners: ReadonlyMap<string, Runner>;
}

export interface PerfettoTrace {
  traceEvents: PerfettoEvent[];
  displayTimeUnit: 'ms';
  otherData: { host: string; profile: string; first_n: number; last_n: number; truncated: boolean };
}

/** An operation that has not ended: its slices, and the lane of its track that its thread is on. */
interface Running {
  id: string;
  name: string;
  track: string;
  wait: string | null;
  lane: number | null;
  /** Slices of the lane, innermost last. */
  stack: OpenSlice[];
  /** Callbacks that the operation is inside, innermost last. */
  callbacks: { slice: OpenSlice; calls: boolean }[];
  /** Ranges between start and end. */
  ranges: { id: string; key: string; name: string; mm: string }[];
}

const OPERATION_ID = /^[a-zA-Z][\w.-]*-([1-9]\d*)$/;
const HEAD = ['n', 'at', 'event', 'op'];

const text = (entry: TraceEntry, field: string): string => String(entry[field] ?? '');

function argsOf(entry: TraceEntry): JsonFields {
  const fields = printedFields(entry as unknown as Fields);
  return Object.fromEntries(Object.entries(fields).filter(([name, value]) => value !== null && !HEAD.includes(name)));
}

const trackOf = ({ task, device }: Runner): string => {
  if (task !== null) return `task ${task}`;
  return device === null ? 'kernel' : `device ${device}`;
};

class Export {
  readonly events = new Events();
  private readonly pins = new Pins(this.events);
  /** The command of each seq, as its last entry tells. */
  private readonly commands = new Map<number, TraceEntry>();
  private readonly running = new Map<string, Running>();
  private readonly locks = new Map<string, { id: string; track: number; lock: string }>();
  private readonly active = new Map<string, number>();
  private serial = 0;

  constructor(
    entries: readonly TraceEntry[],
    private readonly runners: ReadonlyMap<string, Runner>,
  ) {
    for (const entry of entries) if (entry.event === 'operation') this.commands.set(entry.seq, entry);
  }

  add(entry: TraceEntry): void {
    this.events.moveTo(entry.at);
    const run = this.runOf(entry);
    const waitsOn = entry.event === 'phase' ? (entry.blocked_on ?? null) : null;
    if (run.wait !== null && run.wait !== waitsOn) this.endWait(run);
    const handle = HANDLERS[entry.event];
    if (handle === undefined) this.instant(run, entry.event, entry);
    else handle(this, run, entry);
  }

  /** The operation, or the command, that an entry belongs to. */
  private runOf(entry: TraceEntry): Running {
    const command = this.commands.get(entry.seq);
    const own = `${command?.op ?? entry.op}-${entry.seq}`;
    const id = OPERATION_ID.test(entry.op) ? entry.op : own;
    const found = this.running.get(id);
    if (found !== undefined) return found;
    const seq = Number(OPERATION_ID.exec(id)?.[1]);
    const maker = this.commands.get(seq);
    const runner =
      maker === undefined
        ? (this.runners.get(id) ?? { task: null, device: null })
        : { task: (maker.task as string | null) ?? null, device: (maker.device as string | null) ?? null };
    const name = id.slice(0, id.lastIndexOf('-'));
    const run: Running = {
      id,
      name,
      track: trackOf(runner),
      wait: null,
      lane: null,
      stack: [],
      callbacks: [],
      ranges: [],
    };
    this.running.set(id, run);
    const args = { op: id, seq, request_id: maker === undefined ? null : maker.request_id };
    this.events.asyncBegin(this.events.track(run.track), 'operation', id, name, args);
    return run;
  }

  private instant(run: Running, name: string, entry: TraceEntry): void {
    this.events.instant(run.lane ?? this.events.track(run.track), entry.event, name, argsOf(entry));
  }

  mark(run: Running, name: string, entry: TraceEntry): void {
    this.events.asyncInstant(this.events.track(run.track), 'operation', run.id, name, argsOf(entry));
  }

  note = (run: Running, name: string, entry: TraceEntry): void => this.instant(run, name, entry);

  beginWait(run: Running, on: string): void {
    if (run.wait === on) return;
    run.wait = on;
    this.events.asyncBegin(this.events.track(run.track), 'operation', run.id, `waits for ${on}`, { blocked_on: on });
  }

  private endWait(run: Running): void {
    this.events.asyncEnd(this.events.track(run.track), 'operation', run.id, `waits for ${run.wait}`);
    run.wait = null;
  }

  /** A slice of the thread that runs the operation. */
  push(run: Running, cat: string, name: string, args: JsonFields): OpenSlice {
    run.lane ??= this.events.freeLane(run.track);
    const slice = this.events.begin(run.lane, cat, name, args);
    run.stack.push(slice);
    return slice;
  }

  pop(run: Running, args: JsonFields): void {
    const slice = run.stack.pop();
    if (slice !== undefined) this.events.end(slice, args);
    if (run.stack.length === 0) run.lane = null;
  }

  hold(run: Running, entry: TraceEntry): void {
    const lock = text(entry, 'lock');
    const track = this.events.track(run.track);
    const id = `lock-${++this.serial}`;
    this.locks.set(`${lock} ${run.id} ${id}`, { id, track, lock });
    this.events.asyncBegin(track, 'lock', id, lock, argsOf(entry));
  }

  /** Of this operation, or, where it was kept for the task, of whoever took it. */
  release(run: Running, entry: TraceEntry): void {
    const lock = text(entry, 'lock');
    const keys = [...this.locks.keys()];
    const key =
      keys.find((each) => each.startsWith(`${lock} ${run.id} `)) ?? keys.find((each) => each.startsWith(`${lock} `));
    const held = key === undefined ? undefined : this.locks.get(key);
    if (key === undefined || held === undefined) return;
    this.locks.delete(key);
    this.events.asyncEnd(held.track, 'lock', held.id, held.lock);
  }

  openRange(run: Running, entry: TraceEntry): void {
    const id = `range-${++this.serial}`;
    const name = text(entry, 'mmu_event');
    const mm = text(entry, 'mm');
    run.ranges.push({ id, key: rangeKey(entry), name, mm });
    this.events.asyncBegin(this.events.track(run.track), 'invalidate', id, name, argsOf(entry));
    this.countActive(mm, 1);
  }

  closeRange(run: Running, key: string | null): void {
    const at = run.ranges.findLastIndex((range) => key === null || range.key === key);
    const [range] = at < 0 ? [] : run.ranges.splice(at, 1);
    if (range === undefined) return;
    this.events.asyncEnd(this.events.track(run.track), 'invalidate', range.id, range.name);
    this.countActive(range.mm, -1);
  }

  private countActive(mm: string, by: number): void {
    const value = (this.active.get(mm) ?? 0) + by;
    this.active.set(mm, value);
    this.events.counter(`active ranges ${mm}`, value);
  }

  /** A flow leads from the slice of the event, or of the call, to the slice of the callback. */
  callback(run: Running, entry: TraceEntry): void {
    const name = text(entry, 'callback') || 'DMA_UNMAP';
    const notifier = text(entry, 'notifier');
    const calls = run.stack.length === 0;
    if (calls) this.push(run, 'call', `call ${notifier}.${name}`, {});
    const flow = `flow-${++this.serial}`;
    this.events.flowStart(run.lane as number, flow);
    const slice = this.events.begin(this.events.freeLane(`notifier ${notifier}`), 'callback', name, argsOf(entry));
    this.events.flowEnd(slice.tid, flow);
    run.callbacks.push({ slice, calls });
  }

  callbackReturn(run: Running, args: JsonFields): void {
    const inner = run.callbacks.pop();
    if (inner === undefined) return;
    this.events.end(inner.slice, args);
    if (inner.calls) this.pop(run, args);
  }

  pinned(entry: TraceEntry): void {
    const device = text(entry, 'device');
    const iovas = entry.iovas as string[];
    if (entry.event === 'pin') this.pins.pin(device, iovas, Number(entry.npage), argsOf(entry));
    else this.pins.unpin(device, iovas);
  }

  /** The end of a command: of all that it started but for what it parked. */
  endCommand(entry: TraceEntry): void {
    for (const run of [...this.running.values()])
      if (run.id.endsWith(`-${entry.seq}`) && run.id !== entry.parked) this.finish(run, argsOf(entry));
  }

  finish(run: Running, args: JsonFields): void {
    if (run.wait !== null) this.endWait(run);
    while (run.callbacks.length > 0) this.callbackReturn(run, {});
    while (run.stack.length > 0) this.pop(run, {});
    while (run.ranges.length > 0) this.closeRange(run, null);
    this.events.asyncEnd(this.events.track(run.track), 'operation', run.id, run.name, args);
    this.running.delete(run.id);
  }

  /** What is open at the end of the trace is closed there. */
  close(): void {
    for (const run of [...this.running.values()]) this.finish(run, { open: true });
    for (const { id, track, lock } of this.locks.values())
      this.events.asyncEnd(track, 'lock', id, lock, { open: true });
    this.pins.close();
  }
}

const rangeKey = (entry: TraceEntry): string => `${entry.mm} ${entry.start} ${entry.end} ${entry.mmu_event}`;

type Handle = (to: Export, run: Running, entry: TraceEntry) => void;

/** What becomes of each kind of entry; others are instants of their task's track. */
const HANDLERS: Readonly<Record<string, Handle>> = {
  operation: (to, _run, entry) => to.endCommand(entry),
  phase(to, run, entry) {
    if (entry.phase === 'done') return to.finish(run, argsOf(entry));
    to.mark(run, text(entry, 'phase'), entry);
    if (typeof entry.blocked_on === 'string') to.beginWait(run, entry.blocked_on);
  },
  lock(to, run, entry) {
    if (entry.state === 'held') return to.hold(run, entry);
    if (entry.state === 'released') return to.release(run, entry);
    to.mark(run, `${text(entry, 'state')} ${text(entry, 'lock')}`, entry);
    if (entry.state === 'waits') to.beginWait(run, text(entry, 'lock'));
  },
  invalidate_start(to, run, entry) {
    to.openRange(run, entry);
    to.push(run, 'invalidate', `invalidate_range_start ${text(entry, 'mmu_event')}`, argsOf(entry));
  },
  invalidate_started(to, run, entry) {
    to.pop(run, argsOf(entry));
    if (entry.ret !== 0 && entry.blockable === false) to.closeRange(run, rangeKey(entry));
  },
  invalidate_end: (to, run, entry) =>
    void to.push(run, 'invalidate', `invalidate_range_end ${text(entry, 'mmu_event')}`, argsOf(entry)),
  invalidate_ended(to, run, entry) {
    to.pop(run, argsOf(entry));
    to.closeRange(run, rangeKey(entry));
  },
  notify: (to, run, entry) => to.callback(run, entry),
  notify_return: (to, run, entry) => to.callbackReturn(run, argsOf(entry)),
  pte: (to, run, entry) => to.note(run, `pte ${text(entry, 'change')}`, entry),
  mmio: (to, run, entry) => to.note(run, `mmio ${entry.write === true ? 'write' : 'read'}`, entry),
  pin: (to, _run, entry) => to.pinned(entry),
  unpin: (to, _run, entry) => to.pinned(entry),
  counter: (to, _run, entry) =>
    to.events.counter(
      entry.mm === null ? text(entry, 'counter') : `${text(entry, 'counter')} ${text(entry, 'mm')}`,
      Number(entry.value),
    ),
};

/** Entries of the trace, in order, as one document. */
export function perfettoOf(
  entries: readonly TraceEntry[],
  { host, profile, truncated, runners }: About,
): PerfettoTrace {
  const to = new Export(entries, runners);
  for (const entry of entries) to.add(entry);
  to.close();
  return {
    traceEvents: [...to.events.metadata(`host ${host} (${profile})`), ...to.events.written],
    displayTimeUnit: 'ms',
    otherData: { host, profile, first_n: entries[0]?.n ?? 0, last_n: entries.at(-1)?.n ?? 0, truncated },
  };
}

/** Who runs the operations that a host knows. */
const runnersOf = ({ operations }: Host): Map<string, Runner> =>
  new Map(
    [...operations.values()].map(({ id, locals }) => [
      id,
      {
        task: 'task' in locals ? locals.task : null,
        device: 'command' in locals && 'device' in locals.command ? locals.command.device : null,
      },
    ]),
  );

/** The newest entries, or those after `since`. */
export async function showPerfetto(
  request: FastifyRequest,
  since: number | undefined,
  limit: number,
): Promise<PerfettoTrace> {
  const { host } = request.params as { host: string };
  const { seq, value } = await request.server.service.read(host, (state) => {
    const { items, truncated } = state.trace.since(since ?? Math.max(0, state.trace.next - 1 - limit), limit);
    const about = { host, profile: state.profile.name, truncated: truncated || (items[0]?.n ?? 1) > 1 + (since ?? 0) };
    return { items, about: { ...about, runners: runnersOf(state) } };
  });
  request.logged = { host, seq };
  return perfettoOf(value.items, value.about);
}
