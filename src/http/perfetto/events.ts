// Events of the Chrome JSON trace format, as https://ui.perfetto.dev opens it, each later than the one before.

import type { JsonFields } from '../parse.ts';

/** M: metadata; b, e, n: begin, end and instant of an asynchronous slice; B, E: of a track; i: instant; C: counter; s, f: flow. */
export interface PerfettoEvent {
  name: string;
  ph: 'M' | 'b' | 'e' | 'n' | 'B' | 'E' | 'i' | 'C' | 's' | 'f';
  /** Microseconds since the epoch. */
  ts: number;
  pid: number;
  tid: number;
  cat?: string;
  id?: string;
  /** Of the end of a flow: it belongs to the slice that encloses it. */
  bp?: 'e';
  /** Of an instant: it is one of its track. */
  s?: 't';
  args?: JsonFields;
}

/** The whole machine is one process of the viewer. */
const PID = 1;

/** A slice of a track; `tid` is its lane. */
export interface OpenSlice {
  tid: number;
  name: string;
}

/** Writes events. Entries of one millisecond are spread over its microseconds, so that their order can be seen. */
export class Events {
  readonly written: PerfettoEvent[] = [];
  private ts = 0;
  /** Tracks by name; lanes beyond the first have names of their own. */
  private readonly tracks = new Map<string, number>();
  /** Depth of the open slices of each lane. */
  private readonly depth = new Map<number, number>();

  /** What is written next happened at `ms`, or right after what was written last. */
  moveTo(ms: number): void {
    this.ts = Math.max(this.ts, ms * 1000 - 1);
  }

  private write(event: Omit<PerfettoEvent, 'ts' | 'pid'>): void {
    this.ts++;
    const { name, ph, tid, ...rest } = event;
    this.written.push({ name, ph, ts: this.ts, pid: PID, tid, ...rest });
  }

  track(name: string): number {
    let tid = this.tracks.get(name);
    if (tid === undefined) {
      tid = this.tracks.size + 1;
      this.tracks.set(name, tid);
    }
    return tid;
  }

  /** The first lane of a track on which nothing is open. */
  freeLane(track: string): number {
    for (let lane = 1; ; lane++) {
      const tid = this.track(lane === 1 ? track : `${track} #${lane}`);
      if ((this.depth.get(tid) ?? 0) === 0) return tid;
    }
  }

  begin(tid: number, cat: string, name: string, args: JsonFields): OpenSlice {
    this.depth.set(tid, (this.depth.get(tid) ?? 0) + 1);
    this.write({ name, ph: 'B', tid, cat, args });
    return { tid, name };
  }

  end({ tid, name }: OpenSlice, args: JsonFields = {}): void {
    this.depth.set(tid, (this.depth.get(tid) ?? 0) - 1);
    this.write({ name, ph: 'E', tid, args });
  }

  instant(tid: number, cat: string, name: string, args: JsonFields): void {
    this.write({ name, ph: 'i', tid, cat, s: 't', args });
  }

  asyncBegin(tid: number, cat: string, id: string, name: string, args: JsonFields): void {
    this.write({ name, ph: 'b', tid, cat, id, args });
  }

  asyncInstant(tid: number, cat: string, id: string, name: string, args: JsonFields): void {
    this.write({ name, ph: 'n', tid, cat, id, args });
  }

  asyncEnd(tid: number, cat: string, id: string, name: string, args: JsonFields = {}): void {
    this.write({ name, ph: 'e', tid, cat, id, args });
  }

  counter(name: string, value: number): void {
    this.write({ name, ph: 'C', tid: 0, cat: 'counter', args: { value } });
  }

  flowStart(tid: number, id: string): void {
    this.write({ name: 'callback', ph: 's', tid, cat: 'flow', id });
  }

  flowEnd(tid: number, id: string): void {
    this.write({ name: 'callback', ph: 'f', tid, cat: 'flow', id, bp: 'e' });
  }

  /** Names of the process and of every track, in the order in which they came up. */
  metadata(process: string): PerfettoEvent[] {
    const event = (name: string, tid: number, args: JsonFields): PerfettoEvent => ({
      name,
      ph: 'M',
      ts: 0,
      pid: PID,
      tid,
      args,
    });
    const tracks = [...this.tracks].flatMap(([name, tid]) => [
      event('thread_name', tid, { name }),
      event('thread_sort_index', tid, { sort_index: tid }),
    ]);
    return [event('process_name', 0, { name: process }), ...tracks];
  }
}
