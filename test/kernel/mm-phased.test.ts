// A random test of operations that stop at their phases: several tasks, files, pins and subscribers; after every command all that
// must hold is recomputed. PHASED_SEED replays one run, PHASED_RUNS makes more of them.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { addressOf } from '../../src/kernel/lib/u64.ts';
import { FOLL_GET, FOLL_NOWAIT, FOLL_PIN, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import type { CallbackName, Script } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import { flagsAt, isResident, PTE_TYPE_MASK, PTRS_PER_PTE, pfnAt } from '../../src/kernel/mm/page-table.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { PHASES } from '../../src/kernel/phase.ts';
import type { ProfileName } from '../../src/kernel/profile.ts';
import { type Machine, RW, setup } from './machine.ts';
import { randomFrom } from './mm-machine.ts';
import { at, BASE, bytes } from './page-machine.ts';

const SEED = Number(process.env.PHASED_SEED ?? 20_240_611);
const RUNS = process.env.PHASED_SEED === undefined ? Number(process.env.PHASED_RUNS ?? 60) : 1;
const STEPS = 100;
const PROFILES: readonly ProfileName[] = ['4.10', '5.4', '5.8', '5.15', '6.18'];
/** Pages of each area: anonymous, shared file, private file. */
const AREA = 6;
const SPAN = 3 * AREA;

/** What the runs together must have come to. */
const SOMETIMES = [
  'an operation waits for a page lock',
  'an operation waits for a page-table lock',
  'an operation waits for an mmap_lock',
  'an operation waits for i_mmap',
  'an operation waits for a mutex',
  'a migration moves a page',
  'a migration is EAGAIN',
  'a merge succeeds',
  'a merge is EFAULT',
  'reclaim frees a page',
  'reclaim keeps a pinned page',
  'reclaim keeps a referenced page',
  'reclaim keeps a dirty page',
  'reclaim keeps a locked page',
  'a swapped-out page is accessed',
  'mkclean cleans an entry',
  'an access beyond the end of a file',
  'a deadlock is refused',
  'a task exits while operations are stopped',
  'a task exits with locks held',
  'a truncate finds a page that was mapped again',
  'a fork copies a swap entry',
  'a pin is held while its page is swapped out or moved',
] as const;
type Situation = (typeof SOMETIMES)[number];

const reached = new Set<Situation>();

t.setTimeout(600_000);

class Run {
  readonly m: Machine;
  readonly log: string[] = [];
  readonly pinned: bigint[] = [];
  private notifiers = 0;

  constructor(
    readonly seed: number,
    private readonly random: (n: number) => number,
  ) {
    this.m = setup({ profile: this.pick(PROFILES) });
    for (const task of ['A', 'B']) this.m.task(task);
    this.m.task('A2', 64, false, 'A');
    this.run({ op: 'put_file', file: 'f', size: bytes(AREA) });
    for (const task of ['T', 'A', 'B']) this.lay(task);
    for (const task of ['T', 'A', 'B'])
      for (let page = 0; page < AREA; page++) this.run({ op: 'access', task, addr: at(page), write: true });
    this.m.map(0x10000n, bytes(SPAN), RW, { vaddr: at(0) });
  }

  pick<T>(from: readonly T[]): T {
    return from[this.random(from.length)] as T;
  }

  chance(percent: number): boolean {
    return this.random(100) < percent;
  }

  private lay(task: string): void {
    for (const [i, backing] of [
      { kind: 'anon' } as const,
      { kind: 'file', file: 'f', pgoff: 0, shared: true } as const,
      { kind: 'file', file: 'f', pgoff: 0, shared: false } as const,
    ].entries()) {
      const addr = at(i * AREA);
      this.run({ op: 'mmap', task, addr, length: bytes(AREA), prot: RW, backing, noreplace: false });
    }
  }

  /** Executes a command; the machine checks every invariant after it. */
  run(command: Command): Outcome {
    this.log.push(
      JSON.stringify(command, (_key, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value)),
    );
    const outcome = this.m.start(command);
    this.observe(command, outcome);
    for (const operation of this.m.host.operations.values())
      if (operation.state === 'done' && operation.outcome !== null && operation.finished_seq === this.m.host.seq)
        this.observe({ op: operation.kind } as Command, operation.outcome);
    return outcome;
  }

  private observe({ op }: Command, { ret, fields, refusal, parked }: Outcome): void {
    const { host } = this.m;
    for (const { state, blocked_on } of host.operations.values()) {
      if (state !== 'blocked') continue;
      if (blocked_on?.startsWith('page_lock:')) reached.add('an operation waits for a page lock');
      if (blocked_on?.startsWith('ptl:')) reached.add('an operation waits for a page-table lock');
      if (blocked_on?.startsWith('mmap_lock:')) reached.add('an operation waits for an mmap_lock');
      if (blocked_on?.startsWith('i_mmap:')) reached.add('an operation waits for i_mmap');
      if (blocked_on?.startsWith('mutex:')) reached.add('an operation waits for a mutex');
    }
    if (refusal?.errno === 'EDEADLK') reached.add('a deadlock is refused');
    if (parked !== undefined) return;
    if (op === 'migrate') {
      if (ret === 0) reached.add('a migration moves a page');
      if (refusal?.errno === 'EAGAIN') reached.add('a migration is EAGAIN');
    }
    if (op === 'ksm_merge') {
      if (ret === 0) reached.add('a merge succeeds');
      if (refusal?.errno === 'EFAULT') reached.add('a merge is EFAULT');
    }
    if (op === 'mkclean' && ret > 0) reached.add('mkclean cleans an entry');
    if (op === 'reclaim' && ret === 1) reached.add('reclaim frees a page');
    if (op === 'reclaim' && fields.kept !== null && fields.kept !== undefined)
      for (const kept of ['pinned', 'referenced', 'dirty', 'locked'] as const)
        if (fields.kept === kept) reached.add(`reclaim keeps a ${kept} page`);
    if (op === 'access' && fields.fault === 'SIGBUS') reached.add('an access beyond the end of a file');
  }

  /** A page that some page table names, or that a file caches. */
  private anyPfn(): number {
    const { mm } = this.m.host;
    const pfns: number[] = [];
    for (const { page_table } of mm.mms.values())
      for (const leaf of page_table.leaves.values())
        for (let i = 0; i < PTRS_PER_PTE; i++) if (isResident(flagsAt(leaf, i))) pfns.push(pfnAt(leaf, i));
    for (const file of mm.files.values()) pfns.push(...file.pages.values());
    for (const pfn of mm.swap.cache.keys()) pfns.push(pfn);
    return pfns.length === 0 ? 1 : this.pick(pfns.filter((pfn) => pfn < 1000 || pfn > 3000).concat(pfns.slice(0, 1)));
  }

  private stopping(): { stop_at?: (typeof PHASES)[number] } {
    return this.chance(55) ? { stop_at: this.pick(PHASES) } : {};
  }

  private script(): Script {
    const actions: Script['actions'] = [];
    if (this.chance(30)) actions.push({ action: 'lock', lock: this.pick(['mutex:a', 'mutex:b']), hold: false });
    if (this.chance(20)) actions.push({ action: 'sleep' });
    if (this.chance(15))
      actions.push({ action: this.pick(['dirty', 'dirty_lock'] as const), page: BASE + this.random(SPAN) });
    if (this.chance(50)) actions.push({ action: 'drop' });
    return { actions, returns: 0 };
  }

  private register(task: string): Command {
    const callbacks: CallbackName[] = ['invalidate_range_start', 'invalidate_range_end'];
    if (this.m.host.profile.invalidateRangeCallback && this.chance(40)) callbacks.push('invalidate_range');
    if (this.m.host.profile.changePteCallback && this.chance(20)) callbacks.push('change_pte');
    const scripts = Object.fromEntries(callbacks.map((name) => [name, this.script()]));
    const mm = this.m.host.mm.tasks.get(task)?.mm ?? 'mm-1';
    const id = `N${this.notifiers++}`;
    return { op: 'register_mmu_notifier', mm, id, callbacks, handler: { kind: 'script', scripts } };
  }

  private anyNotifier(): string {
    return this.pick([...this.m.host.mm.mmu_notifiers.keys(), 'none']);
  }

  private command(): Command {
    const task = this.pick(['A', 'A', 'B', 'A2', 'T', this.m.host.mm.tasks.has('C') ? 'C' : 'A']);
    const page = this.random(SPAN);
    const addr = at(page);
    const length = bytes(1 + this.random(SPAN - page));
    const stopping = this.stopping();
    const pfn = this.anyPfn();
    const commands: [weight: number, make: () => Command][] = [
      [36, () => ({ op: 'access', task, addr, write: this.chance(60), ...stopping })],
      [10, () => ({ op: 'reclaim', pfn, ...stopping })],
      [8, () => ({ op: 'migrate', pfn, ...stopping })],
      [8, () => ({ op: 'mkclean', pfn, ...stopping })],
      [
        10,
        () => ({
          op: 'ksm_merge',
          task,
          addr: at(this.random(AREA)),
          with: { task: this.pick(['A', 'B']), addr: at(this.random(AREA)) },
          ...stopping,
        }),
      ],
      [4, () => ({ op: 'truncate', file: 'f', size: BigInt(this.random(AREA * 4096 + 1)), ...stopping })],
      [3, () => ({ op: 'truncate', file: 'f', size: bytes(AREA), ...stopping })],
      [
        8,
        () => ({
          op: 'punch_hole',
          file: 'f',
          offset: BigInt(this.random(8192)),
          length: BigInt(1 + this.random(16384)),
          ...stopping,
        }),
      ],
      [3, () => ({ op: 'migrate_vma', task, addr, length: bytes(1), owner: 'gpu', ...stopping })],
      [4, () => ({ op: 'munmap', task, addr, length, ...stopping })],
      [4, () => ({ op: 'mprotect', task, addr, length, prot: this.pick([1, 3, 3]), ...stopping })],
      [4, () => ({ op: 'madvise', task, addr, length, advice: this.pick(['DONTNEED', 'FREE']), ...stopping })],
      [1, () => ({ op: 'mlock', task, addr, length, lock: this.chance(50) })],
      [1, () => ({ op: 'clear_soft_dirty', task, ...stopping })],
      [1, () => ({ op: 'oom_reap', task: 'B', ...stopping })],
      [
        1,
        () => ({
          op: 'mremap',
          task,
          addr: at(page),
          old_length: bytes(1),
          new_length: bytes(1),
          new_addr: at(SPAN + page),
          ...stopping,
        }),
      ],
      [5, () => ({ op: 'lock', task, lock: this.chance(50) ? `page_lock:${pfn}` : this.pick(['mutex:a', 'mutex:b']) })],
      [6, () => this.unlock(task)],
      [3, () => this.register(task)],
      [1, () => ({ op: 'unregister_mmu_notifier', id: this.anyNotifier() })],
      [3, () => ({ op: 'map_secondary', id: this.anyNotifier(), addr, writable: this.chance(50) })],
      [4, () => this.pinOrUnpin(page)],
      [
        4,
        () => ({
          op: 'gup',
          task,
          addr,
          npage: 1 + this.random(2),
          flags: this.pick([FOLL_GET, FOLL_PIN]) | this.pick([0, FOLL_WRITE]) | this.pick([0, 0, FOLL_NOWAIT]),
          ...stopping,
        }),
      ],
      [
        4,
        () => ({
          op: 'put_gup',
          gup: this.anyGup(),
          dirty: this.pick(['no', 'set_page_dirty', 'set_page_dirty_lock']),
        }),
      ],
      [1, () => ({ op: 'fork', task: this.pick(['A', 'B']), child: this.pick(['C', 'D', 'E']), ...stopping })],
      [1, () => ({ op: 'exit', task: this.pick(['A2', 'B', 'C', 'D']), ...stopping })],
    ];
    let at_ = this.random(commands.reduce((sum, [weight]) => sum + weight, 0));
    for (const [weight, make] of commands) {
      if (at_ < weight) return make();
      at_ -= weight;
    }
    throw new Error('no command');
  }

  private unlock(task: string): Command {
    const held = this.m.host.mm.tasks.get(task)?.locks ?? [];
    return { op: 'unlock', task, lock: held.length === 0 ? 'mutex:a' : this.pick(held).lock };
  }

  private anyGup(): string {
    return this.pick([...this.m.host.mm.gups.keys(), 'none']);
  }

  private pinOrUnpin(page: number): Command {
    const iova = 0x10000n + bytes(page);
    const contiguous = this.m.host.profile.pinForm === 'user_pfn' ? {} : { contiguous: { iova } };
    const entries = {
      user_pfn: this.m.host.profile.pinForm === 'user_pfn' ? [Number(iova >> 12n)] : [],
      npage: 1,
      ...contiguous,
    };
    if (this.chance(50)) return { op: 'unpin_pages', device: 'D1', ...entries };
    return { op: 'pin_pages', device: 'D1', ...entries, prot: this.pick([1, 3]) };
  }

  private stopped(): string[] {
    return [...this.m.host.operations.values()].filter(({ state }) => state === 'stopped').map(({ id }) => id);
  }

  step(): void {
    const stopped = this.stopped();
    if (stopped.length > 0 && this.chance(stopped.length * 12)) {
      const operation = this.pick(stopped);
      this.run(
        this.chance(60)
          ? { op: 'step_operation', operation }
          : { op: 'resume_operation', operation, ...this.stopping() },
      );
      return;
    }
    const command = this.command();
    const { swap } = this.m.host.mm;
    if (command.op === 'access' && swap.slots.size > 0) {
      const mm = this.m.host.mm.mms.get(this.m.host.mm.tasks.get(command.task)?.mm ?? '');
      if (((mm?.page_table.flags(Number(command.addr >> 12n)) ?? 0) & PTE_TYPE_MASK) === 2)
        reached.add('a swapped-out page is accessed');
    }
    if (command.op === 'fork') {
      const mm = this.m.host.mm.mms.get(this.m.host.mm.tasks.get(command.task)?.mm ?? '');
      for (let page = 0; page < AREA; page++)
        if (((mm?.page_table.flags(BASE + page) ?? 0) & PTE_TYPE_MASK) === 2) reached.add('a fork copies a swap entry');
    }
    if ((command.op === 'reclaim' || command.op === 'migrate') && this.m.host.mm.pages.pinCount(command.pfn) > 0)
      reached.add('a pin is held while its page is swapped out or moved');
    if (command.op === 'exit') {
      const task = this.m.host.mm.tasks.get(command.task);
      if (task !== undefined && task.mm !== null && stopped.length > 0)
        reached.add('a task exits while operations are stopped');
      if ((task?.locks.length ?? 0) > 0) reached.add('a task exits with locks held');
    }
    this.run(command);
    if (this.log.length % 40 === 0) this.noteRemapped();
  }

  private noteRemapped(): void {
    const { items } = this.m.host.trace.since(0, 100_000);
    let unlocked = true;
    for (const { event, op, lock, state } of items) {
      if (!/^(truncate|punch_hole)-/.test(op) || event !== 'lock') continue;
      if (/^page_lock:/.test(lock as string)) unlocked = state === 'released';
      else if (/^i_mmap:/.test(lock as string) && state === 'held' && !unlocked)
        reached.add('a truncate finds a page that was mapped again');
    }
  }

  /** Everything that was stopped goes on, everything that is held is released: nothing may be left waiting. */
  quiesce(): void {
    for (let round = 0; round < 10_000; round++) {
      const [operation] = this.stopped();
      const holder = [...this.m.host.mm.tasks.values()].find(({ locks }) => locks.length > 0);
      if (operation !== undefined) this.run({ op: 'resume_operation', operation });
      else if (holder !== undefined) this.run({ op: 'unlock', task: holder.id, lock: holder.locks[0]?.lock as string });
      else break;
    }
    const open = [...this.m.host.operations.values()].filter(({ state }) => state !== 'done');
    if (open.length > 0)
      throw new Error(`left: ${open.map(({ id, blocked_on }) => `${id} on ${blocked_on}`).join(', ')}`);
    if (this.m.host.locks.size > 0) throw new Error(`locks left: ${[...this.m.host.locks.keys()].join(', ')}`);
  }

  /** All tasks end and the file is emptied: nothing may be left in use. */
  tearDown(): void {
    this.m.run({
      op: 'unmap_dma',
      container: 'C',
      task: 'T',
      iova: 0x10000n,
      size: bytes(SPAN),
      flags: 0,
      argsz: null,
      bitmap: null,
    });
    for (const id of [...this.m.host.mm.mmu_notifiers.keys()]) this.run({ op: 'unregister_mmu_notifier', id });
    for (const [id, { mm, leader }] of this.m.host.mm.tasks)
      if (mm !== null && leader === id) this.run({ op: 'exit', task: id });
    for (const { id, mm } of this.m.host.mm.tasks.values()) if (mm !== null) this.run({ op: 'exit', task: id });
    this.run({ op: 'truncate', file: 'f', size: 0n });
    for (const gup of [...this.m.host.mm.gups.keys()]) this.run({ op: 'put_gup', gup, dirty: 'no' });
    const { pages, swap, mms, zombies } = this.m.host.mm;
    // Pages that were locked when their last entry went are left in the swap cache to reclaim.
    for (const pfn of [...swap.cache.keys()]) this.run({ op: 'reclaim', pfn });
    if (swap.slots.size > 0 || pages.used > 0 || pages.pinned > 0 || mms.size > 0 || zombies.size > 0)
      throw new Error(
        `left: ${swap.slots.size} slots, ${pages.used} pages, ${pages.pinned} pinned, ${mms.size} + ${zombies.size} mms`,
      );
  }
}

function perform(seed: number): string | null {
  const run = new Run(seed, randomFrom(seed));
  try {
    for (let step = 0; step < STEPS && run.m.host.dead === null; step++) run.step();
    if (run.m.host.dead !== null) return null;
    run.quiesce();
    run.tearDown();
    return null;
  } catch (error) {
    // A BUG (a registration in an address space that has just lost its users) ends every thread where it stands.
    if (run.m.host.dead !== null) return null;
    const { message, stack } = error as Error;
    return [
      `PHASED_SEED=${seed} (${run.m.host.profile.name}), step ${run.log.length}: ${message}`,
      stack,
      ...run.log,
    ].join('\n');
  }
}

t.test(`${RUNS} runs of operations that stop at their phases keep every invariant (from seed ${SEED})`, async (t) => {
  for (let i = 0; i < RUNS; i++) {
    const failure = perform(SEED + i);
    t.equal(failure, null, `seed ${SEED + i}`);
    if (failure !== null) return;
  }
});

t.test('the runs came to every situation that they must come to', async (t) => {
  if (RUNS < 60) return;
  for (const situation of SOMETIMES) t.ok(reached.has(situation), situation);
});

t.test('a seed replays: the same commands, the same trace', async (t) => {
  const traceOf = (seed: number): unknown[] => {
    const run = new Run(seed, randomFrom(seed));
    for (let step = 0; step < 40; step++) run.step();
    return [run.log, run.m.host.trace.since(0, 100_000).items];
  };
  t.strictSame(traceOf(SEED), traceOf(SEED));
  t.equal(addressOf(BASE), at(0));
});
