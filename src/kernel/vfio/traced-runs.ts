// Pins and unpins in the trace: which pages, as runs, without a string for each page.

import { type Host, trace } from '../host.ts';
import { addressOf, hex, sizeOf } from '../lib/u64.ts';
import { MAX_TRACED_RUNS } from '../limits.ts';
import { type Entries, pageAt } from './pin.ts';

/** The first `npage` pages as `<iova>+<size>`, in the order of the call; runs beyond MAX_TRACED_RUNS are only counted. */
function runsOf(entries: Entries, npage: number): { iovas: string[]; more: number } {
  const iovas: string[] = [];
  let more = 0;
  for (let i = 0; i < npage; ) {
    const first = i;
    const start = pageAt(entries, i);
    while (++i < npage && pageAt(entries, i) === start + (i - first));
    if (iovas.length < MAX_TRACED_RUNS) iovas.push(`${hex(addressOf(start))}+${hex(sizeOf(i - first))}`);
    else more++;
  }
  return { iovas, more };
}

export function tracePages(host: Host, event: 'pin' | 'unpin', device: string, entries: Entries, npage: number): void {
  trace(host, event, host.call.command.op, { device, npage, ...runsOf(entries, npage) });
}
