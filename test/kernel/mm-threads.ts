// A host whose memory operations can be stopped, with subscribers that are scripts: for the cases of the host mm.

import type { Command } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import { type Host, type TraceEntry, trace } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import { releaseHolder } from '../../src/kernel/lock.ts';
import { anyMm, type MmStruct } from '../../src/kernel/mm/mm.ts';
import type { CallbackName, Handler } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import { mmOf } from '../../src/kernel/mm/task.ts';
import { type Vma, vmaAt } from '../../src/kernel/mm/vma.ts';
import type { Operation } from '../../src/kernel/operation.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { runThreads } from '../../src/kernel/thread.ts';

export const PAGE = 0x1000n;
/** Address of page n of the tests' memory. */
export const at = (n: number): bigint => 0x7f0000000000n + BigInt(n) * PAGE;
const pageOf = (n: number): number => Number(at(n) >> 12n);
export const READ = 1;
export const RW = 3;

/** The profiles by the names that the document gives them. */
export const P53 = '5.4';
export const P58 = '5.8';
export const P515 = '5.15';
export const P614 = '6.18';

/** A command without its task: that is always 'T', unless it is named. */
type Body<C extends Command> = C extends Command ? Omit<C, 'task'> & { task?: string } : never;

const scriptsOf = (answers: Partial<Record<CallbackName, number>>): Extract<Handler, { kind: 'script' }>['scripts'] =>
  Object.fromEntries(Object.entries(answers).map(([name, returns]) => [name, { actions: [], returns }]));

export class MmHost {
  readonly host: Host;
  private clock = 0;

  constructor(profile: string, total_pages = 1 << 16) {
    this.host = createHost(
      'test',
      {
        profile,
        template: 'empty',
        dma_entry_limit: 65535,
        notifier_timeout_ms: 10_000,
        total_pages,
        fixes: [],
        ttl_s: null,
      },
      0,
    );
    this.task('T');
  }

  /** Executes a command in the name of task T, and checks every invariant. */
  run(command: Body<Extract<Command, { task: string }>> | Exclude<Command, { task: string }>): Outcome {
    const outcome = execute(this.host, {
      at: ++this.clock,
      request_id: `request-${this.clock}`,
      notification: null,
      command: { task: 'T', ...command } as Command,
    });
    this.check();
    return outcome;
  }

  check(): void {
    const found = violations(this.host);
    if (found.length > 0) throw new Error(`invariants: ${found.join('; ')}`);
  }

  task(id: string): void {
    this.run({ op: 'put_task', task: id, rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null });
  }

  mmap(first: number, npage: number, backing: Extract<Command, { op: 'mmap' }>['backing'] = { kind: 'anon' }): Outcome {
    const length = BigInt(npage) * PAGE;
    return this.run({ op: 'mmap', addr: at(first), length, prot: RW, backing, noreplace: false });
  }

  touch(page: number, write: boolean, task = 'T'): Outcome {
    return this.run({ op: 'access', task, addr: at(page), write });
  }

  gup(page: number, flags: number, npage = 1): Outcome {
    return this.run({ op: 'gup', addr: at(page), npage, flags });
  }

  range(op: 'munmap', first: number, npage: number, stop_at?: 'after_start'): Outcome {
    const stop = stop_at === undefined ? {} : { stop_at };
    return this.run({ op, addr: at(first), length: BigInt(npage) * PAGE, ...stop });
  }

  madvise(advice: 'DONTNEED' | 'FREE' | 'DONTFORK' | 'WIPEONFORK', first: number, npage: number): Outcome {
    return this.run({ op: 'madvise', addr: at(first), length: BigInt(npage) * PAGE, advice });
  }

  mm(task = 'T'): MmStruct {
    return mmOf(this.host, task) as MmStruct;
  }

  vma(page: number, task = 'T'): Vma | null {
    return vmaAt(this.mm(task), pageOf(page));
  }

  /** The type and flags of an entry, and the pfn in it; null where it is none. */
  pte(page: number, task = 'T'): { flags: number; pfn: number } | null {
    const { page_table } = this.mm(task);
    const flags = page_table.flags(pageOf(page));
    return flags === 0 ? null : { flags, pfn: page_table.pfn(pageOf(page)) };
  }

  pfn(page: number, task = 'T'): number | null {
    return this.pte(page, task)?.pfn ?? null;
  }

  operation(outcome: Outcome): Operation {
    return this.host.operations.get(outcome.parked ?? '') as Operation;
  }

  /** Lets a stopped operation go on to its end; what it ended with. */
  resume(outcome: Outcome): Outcome {
    this.run({ op: 'resume_operation', operation: outcome.parked as string });
    return this.operation(outcome).outcome as Outcome;
  }

  /** Somebody outside of the memory side takes a page's lock, or any other. */
  hold(lock: string): void {
    this.host.locks.set(lock, { id: lock, holders: [{ by: 'task:other', mode: 'W' }], waiters: [] });
  }
  letGo(lock: string): void {
    releaseHolder(this.host, lock, 'task:other');
    runThreads(this.host);
    this.check();
  }

  /** Registers a notifier for the mm of task T, with what its callbacks answer. */
  plain(id: string, callbacks: readonly CallbackName[], answers: Partial<Record<CallbackName, number>> = {}): void {
    const handler: Handler = { kind: 'script', scripts: scriptsOf(answers) };
    this.run({ op: 'register_mmu_notifier', mm: this.mm().id, id, callbacks: [...callbacks], handler });
  }

  interval(id: string, first: number, npage: number, answer = 1): void {
    const handler: Handler = { kind: 'script', scripts: scriptsOf({ invalidate: answer }) };
    const length = BigInt(npage) * PAGE;
    this.run({ op: 'insert_interval_notifier', mm: this.mm().id, id, start: at(first), length, handler });
  }

  /** From here on, events() tells what happens. */
  mark(): void {
    trace(this.host, 'mark', 'test');
  }

  private since(): TraceEntry[] {
    const all = this.host.trace.since(0, 1_000_000).items;
    return all.slice(all.findLastIndex(({ event }) => event === 'mark') + 1);
  }

  /** Ranges that were started since the mark: "EVENT mm first+npage". */
  started(): string[] {
    return this.since()
      .filter(({ event }) => event === 'invalidate_start')
      .map((entry) => {
        const first = Number(((entry.start as bigint) - at(0)) / PAGE);
        return `${entry.mmu_event} ${entry.mm} ${first}+${Number(((entry.end as bigint) - (entry.start as bigint)) / PAGE)}`;
      });
  }

  ended(): number {
    return this.since().filter(({ event }) => event === 'invalidate_end').length;
  }

  /** Callbacks, changes of entries, and releases of mmap_lock since the mark, in order. */
  sequence(): string[] {
    return this.since().flatMap((entry) => {
      if (entry.event === 'notify') return [`${entry.notifier}.${entry.callback}`];
      if (entry.event === 'pte') return [`pte ${entry.change}`];
      if (entry.event === 'invalidate_start') return [`start ${entry.mmu_event}`];
      if (entry.event === 'invalidate_end') return ['end'];
      return [];
    });
  }

  /** What happened to a lock since the mark. */
  lockEvents(lock: string): string[] {
    return this.since()
      .filter((entry) => entry.event === 'lock' && entry.lock === lock)
      .map(({ state }) => state as string);
  }

  zombie(id: string): MmStruct {
    return anyMm(this.host, id);
  }
}
