// Pins in the Perfetto export: one asynchronous slice for each call, from the pin to the unpin of its last page.

import type { JsonFields } from '../parse.ts';
import type { Events } from './events.ts';

interface Pin {
  id: string;
  name: string;
  tid: number;
  /** References that are left. */
  left: number;
}

const PAGE = 0x1000n;

/** The pages of runs printed as `<iova>+<size>`, as a trace entry names them. */
function* pagesOf(iovas: readonly string[]): Iterable<bigint> {
  for (const run of iovas) {
    const [start, size] = run.split('+').map(BigInt) as [bigint, bigint];
    for (let iova = start; iova < start + size; iova += PAGE) yield iova;
  }
}

export class Pins {
  /** References by device and page, the one taken last at the end. */
  private readonly held = new Map<string, Pin[]>();
  private readonly open = new Set<Pin>();
  private count = 0;

  constructor(private readonly events: Events) {}

  pin(device: string, iovas: readonly string[], npage: number, args: JsonFields): void {
    const tid = this.events.track(`device ${device}`);
    const pin: Pin = { id: `pin-${++this.count}`, name: `pin ${npage} pages`, tid, left: npage };
    this.events.asyncBegin(tid, 'pin', pin.id, pin.name, args);
    this.open.add(pin);
    for (const page of pagesOf(iovas)) {
      const key = `${device} ${page}`;
      const pins = this.held.get(key);
      if (pins === undefined) this.held.set(key, [pin]);
      else pins.push(pin);
    }
  }

  /** The reference taken first goes first; what was pinned before the trace begins is passed over. */
  unpin(device: string, iovas: readonly string[]): void {
    for (const page of pagesOf(iovas)) {
      const key = `${device} ${page}`;
      const pins = this.held.get(key);
      const pin = pins?.shift();
      if (pins?.length === 0) this.held.delete(key);
      if (pin === undefined || --pin.left > 0) continue;
      this.events.asyncEnd(pin.tid, 'pin', pin.id, pin.name);
      this.open.delete(pin);
    }
  }

  close(): void {
    for (const { tid, id, name } of this.open) this.events.asyncEnd(tid, 'pin', id, name, { open: true });
  }
}
