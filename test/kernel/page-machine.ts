// A host with tasks, files and subscribers, for the tests of operations on pages: what each subscriber was told, and when.

import type { Command } from '../../src/kernel/command.ts';
import type { TraceEntry } from '../../src/kernel/host.ts';
import { addressOf, pageNumberOf } from '../../src/kernel/lib/u64.ts';
import type { MmStruct } from '../../src/kernel/mm/mm.ts';
import { type CallbackName, PLAIN_CALLBACKS, type Script } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import { PTE_TYPE_MASK, PTE_WRITE } from '../../src/kernel/mm/page-table.ts';
import { mmOf } from '../../src/kernel/mm/task.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { Machine, RW, setup } from './machine.ts';

/** First page of the areas of these tests. */
export const BASE = 0x7f0000000;
export const at = (page: number): bigint => addressOf(BASE + page);
export const bytes = (npage: number): bigint => BigInt(npage) * 4096n;

const TYPES = ['none', 'present', 'swap', 'migration', 'exclusive', 'private', 'hwpoison'];
/** Callbacks of these tests' subscribers, unless they say otherwise. */
const STARTS_AND_ENDS: CallbackName[] = ['invalidate_range_start', 'invalidate_range_end'];

type Stopping = { stop_at?: Phase };

export class PageMachine {
  private marked = 0;

  constructor(
    readonly m: Machine,
    tasks: readonly string[] = ['A', 'B'],
  ) {
    for (const task of tasks) m.task(task);
  }

  get host(): Machine['host'] {
    return this.m.host;
  }

  run(command: Command): Outcome {
    return this.m.run(command);
  }

  anon(task: string, page: number, npage: number, prot = RW): Outcome {
    return this.map(task, page, npage, { kind: 'anon' }, prot);
  }

  file(task: string, page: number, npage: number, file: string, { shared = true, pgoff = 0, prot = RW } = {}): Outcome {
    return this.map(task, page, npage, { kind: 'file', file, pgoff, shared }, prot);
  }

  private map(
    task: string,
    page: number,
    npage: number,
    backing: Extract<Command, { op: 'mmap' }>['backing'],
    prot: number,
  ): Outcome {
    return this.run({ op: 'mmap', task, addr: at(page), length: bytes(npage), prot, backing, noreplace: false });
  }

  munmap(task: string, page: number, npage: number, stopping: Stopping = {}): Outcome {
    return this.run({ op: 'munmap', task, addr: at(page), length: bytes(npage), ...stopping });
  }

  read(task: string, page: number, stopping: Stopping = {}): Outcome {
    return this.run({ op: 'access', task, addr: at(page), write: false, ...stopping });
  }

  write(task: string, page: number, stopping: Stopping = {}): Outcome {
    return this.run({ op: 'access', task, addr: at(page), write: true, ...stopping });
  }

  mm(task: string): MmStruct {
    const mm = mmOf(this.host, task);
    if (mm === null) throw new Error(`${task} has exited`);
    return mm;
  }

  /** The pfn in the entry of a page; the slot of a swap entry. */
  pfn(task: string, page: number): number {
    return this.mm(task).page_table.pfn(BASE + page);
  }

  /** The entry of a page in words. */
  entry(task: string, page: number): string {
    const flags = this.mm(task).page_table.flags(BASE + page);
    const type = TYPES[flags & PTE_TYPE_MASK] as string;
    return type === 'present' ? ((flags & PTE_WRITE) === 0 ? 'read-only' : 'writable') : type;
  }

  /** refcount and mapcount. */
  counts(pfn: number): [number, number] {
    return [this.host.mm.pages.refcount(pfn), this.host.mm.pages.mapcount(pfn)];
  }

  /** Writes the bytes of a mapped page, as its task would. */
  fill(task: string, page: number, byte: number): void {
    this.write(task, page);
    const data = new Uint8Array(4096).fill(byte);
    this.host.mm.pages.bytes.set(this.pfn(task, page), { data, version: this.host.seq });
  }

  /** First byte of a mapped page. */
  byte(task: string, page: number): number {
    return this.host.mm.pages.bytes.get(this.pfn(task, page))?.data[0] ?? 0;
  }

  /** Registers a subscriber of a task's mm. */
  watch(
    task: string,
    id = `N-${task}`,
    callbacks: CallbackName[] = STARTS_AND_ENDS,
    scripts: Partial<Record<CallbackName, Script>> = {},
  ): void {
    this.run({
      op: 'register_mmu_notifier',
      mm: this.mm(task).id,
      id,
      callbacks: PLAIN_CALLBACKS.filter((name) => callbacks.includes(name)),
      handler: { kind: 'script', scripts },
    });
  }

  /** From here on told() and trace() count. */
  mark(): void {
    this.marked = this.host.trace.next - 1;
  }

  trace(...events: string[]): TraceEntry[] {
    const { items } = this.host.trace.since(this.marked, 100_000);
    return items.filter(({ event }) => events.length === 0 || events.includes(event));
  }

  /** Calls of subscribers since the mark: "<subscriber>.<callback> <event> <first>-<end>", pages from BASE. */
  told(): string[] {
    return this.trace('notify').map(
      ({ notifier, callback, mmu_event, start, end }) =>
        `${notifier}.${callback} ${mmu_event} ${pageNumberOf(start as bigint) - BASE}-${pageNumberOf(end as bigint) - BASE}`,
    );
  }

  /** Locks held in each call since the mark, by class. */
  locksHeld(): string[] {
    return this.trace('notify').map(({ locks_held }) =>
      (locks_held as string[]).map((lock) => lock.slice(0, lock.indexOf(':'))).join(' '),
    );
  }

  /** The pairs since the mark, whoever listens: "<mm> <event> <first>-<end>". */
  pairs(): string[] {
    return this.trace('invalidate_start').map(
      ({ mm, mmu_event, start, end }) =>
        `${mm} ${mmu_event} ${pageNumberOf(start as bigint) - BASE}-${pageNumberOf(end as bigint) - BASE}`,
    );
  }

  /** What an operation waits for; null where it does not. */
  waitsFor(outcome: Outcome): string | null {
    return this.host.operations.get(outcome.parked as string)?.blocked_on ?? null;
  }

  resume(outcome: Outcome, stopping: Stopping = {}): Outcome | null {
    this.run({ op: 'resume_operation', operation: outcome.parked as string, ...stopping });
    return this.outcomeOf(outcome);
  }

  step(outcome: Outcome): Outcome | null {
    this.run({ op: 'step_operation', operation: outcome.parked as string });
    return this.outcomeOf(outcome);
  }

  /** The outcome of an operation that had to wait; null while it goes on. */
  outcomeOf({ parked }: Outcome): Outcome | null {
    return this.host.operations.get(parked as string)?.outcome ?? null;
  }
}

export const pageMachine = (profile = '5.15', tasks?: readonly string[]): PageMachine =>
  new PageMachine(new Machine({ profile }), tasks);

/** With a container and a device, so that pages can be pinned: pin(task, page) holds a FOLL_PIN of it. */
export function pinning(profile = '5.15', tasks?: readonly string[]): PageMachine & { pin: (page: number) => void } {
  const m = setup({ profile });
  const machine = new PageMachine(m, tasks ?? []);
  let iova = 0x10000n;
  return Object.assign(machine, {
    /** Of task T. */
    pin(page: number): void {
      m.map(iova, bytes(1), RW, { vaddr: at(page) });
      const { refusal } = m.pin([iova], { prot: RW });
      if (refusal !== undefined) throw new Error(`pin: ${refusal.detail}`);
      iova += bytes(1);
    },
  });
}
