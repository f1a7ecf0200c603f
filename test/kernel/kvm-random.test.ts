// Random guests: faults, changes of memory and of memslots, stopped and resumed anywhere, keep every invariant of KVM.

import t from 'tap';
import type { Phase } from '../../src/kernel/phase.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { G, KvmHost } from './kvm-machine.ts';
import { randomFrom } from './mm-machine.ts';
import { at, PAGE } from './mm-threads.ts';

const STOPS: readonly (Phase | undefined)[] = [
  undefined,
  undefined,
  'after_seq_snapshot',
  'after_gup',
  'before_insert',
  'after_start',
  'before_end',
  'slot_invalid',
];
const STEPS = 300;

/** Does one thing to a guest of 16 pages. */
function act(m: KvmHost, random: (n: number) => number): void {
  const page = random(16);
  const stop = STOPS[random(STOPS.length)];
  const rest = stop === undefined ? {} : { stop_at: stop };
  const range = { addr: at(page), length: PAGE, ...rest };
  const stopped = [...m.host.operations.values()].filter(({ state }) => state === 'stopped');
  switch (random(10)) {
    case 0:
    case 1:
    case 2:
      return void m.fault(page, random(2) === 0, rest);
    case 3:
      return void m.run({ op: 'access', addr: at(page), write: random(2) === 0, ...rest });
    case 4:
      return void m.run({ op: 'madvise', advice: 'DONTNEED', ...range });
    case 5:
      return void m.run({ op: 'mprotect', prot: random(2) === 0 ? 1 : 3, ...range });
    case 6:
      return void m.slot(0, G, 0, random(2) === 0 ? 0 : 16, 0, stop);
    case 7:
      return void m.run({ op: 'ksm_merge', addr: at(page), with: { task: 'T', addr: at(random(16)) }, ...rest });
    case 8:
      return void m.run({
        op: 'invalidate',
        mm: m.mm().id,
        start: at(page),
        end: at(page + 1),
        event: 'CLEAR',
        blockable: true,
        ...rest,
      });
    default: {
      const next = stopped[random(stopped.length)];
      if (next !== undefined)
        m.run({ op: random(2) === 0 ? 'step_operation' : 'resume_operation', operation: next.id });
    }
  }
}

/** Lets everything that is stopped go on to its end. */
function finish(m: KvmHost): void {
  for (let left = 10_000; left > 0; left--) {
    const next = [...m.host.operations.values()].find(({ state }) => state === 'stopped');
    if (next === undefined) return;
    m.run({ op: 'resume_operation', operation: next.id });
  }
}

for (const profile of PROFILE_NAMES)
  t.test(`random guests of ${profile} map nothing that the host does not, and nobody waits for ever`, async (t) => {
    const reached = new Set<unknown>();
    for (let seed = 1; seed <= 12; seed++) {
      const random = randomFrom(seed * 7919);
      const m = KvmHost.withMemory(profile);
      let seq = 0;
      for (let i = 0; i < STEPS; i++) {
        act(m, random);
        if (m.vm.mmu_notifier_seq < seq) t.fail(`seed ${seed}: the sequence went back`);
        seq = m.vm.mmu_notifier_seq;
      }
      finish(m);
      const waiting = [...m.host.operations.values()].filter(({ state }) => state !== 'done').map(({ id }) => id);
      const codes = m.codes().filter((code) => code === 'SPTE_IN_WINDOW' || code === 'STALE_SECONDARY');
      const { mmu_notifier_count, mn_active_invalidate_count, readers, updaters } = m.vm;
      t.strictSame(
        [waiting, codes, mmu_notifier_count, mn_active_invalidate_count, readers, updaters],
        [[], [], 0, 0, [], []],
        `seed ${seed}, sequence ${seq}`,
      );
      for (const { event, retry, state, lock } of m.host.trace.since(0, 1_000_000).items) {
        if (event === 'kvm_fault') reached.add(retry);
        if (event === 'lock' && lock === 'spinlock:mmu_lock:V') reached.add(state);
      }
    }
    for (const each of [null, 'mmu_notifier_count', 'mmu_notifier_seq', 'waits'])
      t.ok(reached.has(each), `it has come to ${each}`);
  });
