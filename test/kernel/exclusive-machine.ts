// A host whose task A has given memory to devices that can have pages to themselves: for the tests of src/kernel/exclusive.

import { pageNumberOf } from '../../src/kernel/lib/u64.ts';
import type { IntervalNotifier } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { Machine } from './machine.ts';
import { at, BASE, bytes, PageMachine } from './page-machine.ts';

/** What the profiles that have such devices follow, by the names of the document. */
export const P515 = '5.15';
export const P614 = '6.18';

type DeviceOptions = { kind?: 'interval' | 'plain'; owner_filter?: boolean; task?: string };

export class ExclusiveMachine extends PageMachine {
  /** Opens a device that watches all of the task's memory. */
  open(
    device = 'D',
    { kind = 'interval', owner_filter = kind === 'interval', task = 'A' }: DeviceOptions = {},
  ): Outcome {
    const space = { start: 0n, length: 2n ** 64n - 4096n };
    return this.run({ op: 'put_exclusive_device', device, task, kind, owner_filter, ...space });
  }

  make(page: number, npage: number, { device = 'D', grant = 'g', stop_at }: Making = {}): Outcome {
    const stopping = stop_at === undefined ? {} : { stop_at };
    const range = { start: at(page), length: bytes(npage) };
    return this.run({ op: 'make_device_exclusive', device, grant, ...range, ...stopping });
  }

  program(sequence?: number, { device = 'D', grant = 'g' } = {}): Outcome {
    return this.run({ op: 'map_exclusive_grant', device, grant, ...(sequence === undefined ? {} : { sequence }) });
  }

  drop({ device = 'D', grant = 'g' } = {}): Outcome {
    return this.run({ op: 'drop_exclusive_grant', device, grant });
  }

  /** What a driver does: read_begin, make exclusive, map if nothing has happened since, drop the grant. */
  take(page: number, npage: number, device = 'D'): Outcome {
    const sequence = this.begin(device);
    const made = this.make(page, npage, { device, grant: 'taken' });
    if (made.ret > 0) {
      this.program(sequence, { device, grant: 'taken' });
      this.drop({ device, grant: 'taken' });
    }
    return made;
  }

  begin(device = 'D'): number {
    return this.run({ op: 'interval_read_begin', id: `exclusive-${device}` }).fields.sequence as number;
  }

  retry(sequence: number, device = 'D'): number {
    return this.run({ op: 'interval_read_retry', id: `exclusive-${device}`, sequence }).ret;
  }

  ownSequence(device = 'D'): number {
    return (this.host.mm.mmu_notifiers.get(`exclusive-${device}`) as IntervalNotifier).invalidate_seq;
  }

  /** HMM_DMIRROR_EXCLUSIVE and HMM_DMIRROR_CHECK_EXCLUSIVE. */
  dmirror(page: number, npage: number, device = 'D'): Outcome {
    return this.run({ op: 'dmirror_exclusive', device, start: at(page), length: bytes(npage) });
  }

  check_exclusive(page: number, npage: number, device = 'D'): string {
    return errno(this.run({ op: 'check_exclusive', device, start: at(page), length: bytes(npage) }));
  }

  mirror(page: number, npage: number, asked: { fault?: boolean; write?: boolean; device?: string } = {}): Outcome {
    const { fault = false, write = false, device = 'D' } = asked;
    const range = { start: at(page), length: bytes(npage) };
    return this.run({ op: 'mirror_range', device, ...range, fault, write });
  }

  /** First byte of a page as the device reads it; 'EFAULT' where it has not mapped the page. */
  deviceReads(page: number, device = 'D'): number | string {
    const outcome = this.run({ op: 'device_access', device, addr: at(page), write: false, length: 1 });
    return outcome.refusal?.errno ?? (Buffer.from(outcome.fields.data as string, 'base64')[0] as number);
  }

  deviceWrites(page: number, byte: number, device = 'D'): string {
    const data = Buffer.from([byte]).toString('base64');
    return errno(this.run({ op: 'device_access', device, addr: at(page), write: true, data }));
  }

  cpuReads(task: string, page: number): number {
    const { fields } = this.run({ op: 'access', task, addr: at(page), write: false, length: 1 });
    return Buffer.from(fields.data as string, 'base64')[0] as number;
  }

  cpuWrites(task: string, page: number, byte: number): void {
    this.run({ op: 'access', task, addr: at(page), write: true, data: Buffer.from([byte]).toString('base64') });
  }

  faults(task: string, page: number, flags: number, write = false): Outcome {
    return this.run({ op: 'access', task, addr: at(page), write, flags });
  }

  /** Slots of a call as 'granted' or the reason. */
  slots({ fields }: Outcome): (string | null)[] {
    return (fields.slots as { granted: boolean; reason: string | null }[]).map(({ granted, reason }) =>
      granted ? 'granted' : reason,
    );
  }

  /** What the device has mapped, as '<page> <access>'. */
  mapped(device = 'D'): string[] {
    const mappings = this.host.consumers.exclusive.devices.get(device)?.mappings ?? [];
    return [...mappings].map(([page, { access }]) => `${page - BASE} ${access}`);
  }

  /** Ranges since the mark, with their owners: 'EXCLUSIVE/D 0-1'. */
  events(): string[] {
    return this.trace('invalidate_start').map(
      ({ mmu_event, owner, start, end }) =>
        `${mmu_event}/${owner} ${pageNumberOf(start as bigint) - BASE}-${pageNumberOf(end as bigint) - BASE}`,
    );
  }

  codes(): string[] {
    return this.host.violations.since(0, 10_000).items.map(({ code }) => code);
  }

  /** Locks of a subscriber's callbacks since the mark. */
  lockOf(pfn: number): string | undefined {
    return this.host.locks.get(`page_lock:${pfn}`)?.holders[0]?.by;
  }
}

type Making = { device?: string; grant?: string; stop_at?: Phase };

export const errno = ({ refusal, ret }: Outcome): string => refusal?.errno ?? String(ret);

/** Task A with `npage` anonymous pages that it has written, each with the byte page + 1, and device D. */
export function exclusiveMachine(profile: string, npage = 4, options: DeviceOptions = {}): ExclusiveMachine {
  const m = new ExclusiveMachine(new Machine({ profile }), ['A', 'B']);
  m.anon('A', 0, npage);
  for (let page = 0; page < npage; page++) m.cpuWrites('A', page, page + 1);
  m.open('D', options);
  m.mark();
  return m;
}
