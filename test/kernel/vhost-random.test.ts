// Random operations of a ring's owner, of the kernel and of vhost's worker, stopped at their phases and resumed in any order.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { addressOf } from '../../src/kernel/lib/u64.ts';
import type { Switches, Variant } from '../../src/kernel/vhost/rules.ts';
import { at, BASE, bytes } from './page-machine.ts';
import { ERAS, VhostMachine } from './vhost-machine.ts';

/** Small numbers from a seed, the same on every run. */
function random(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

const STOPS = [
  'before_start',
  'after_start',
  'after_gup',
  'inside_map',
  'after_pte_clear',
  'after_pte_set',
  'before_end',
] as const;
/** Pages that operations are about: both rings, and what lies around them. */
const PAGES = 14;

function operation(m: VhostMachine, next: (below: number) => number): Command {
  const page = next(PAGES);
  const range = { task: 'A', addr: at(page), length: bytes(1 + next(3)) };
  const stop = next(3) === 0 ? {} : { stop_at: STOPS[next(STOPS.length)] as (typeof STOPS)[number] };
  const pfn = m.entry('A', page) === 'none' ? null : m.pfn('A', page);
  const vq = next(2);
  const shift = next(3);
  const inside = next(2) === 0 ? ({ stop_at: 'inside_map' } as const) : stop;
  const area = (['desc', 'avail', 'used'] as const)[next(3)] as 'used';
  // Half of all is the worker's, and the owner's writes that let it map the used ring again.
  switch (next(2) === 0 ? 9 + next(10) : next(20)) {
    case 0:
      return { op: 'madvise', ...range, advice: 'DONTNEED', ...stop };
    case 1:
      return {
        op: 'invalidate',
        mm: m.mm('A').id,
        start: range.addr,
        end: range.addr + range.length,
        event: 'CLEAR',
        blockable: m.dev.variant === 'fixed' || next(4) > 0,
        ...stop,
      };
    case 2:
      return { op: 'ksm_merge', task: 'A', addr: at(page), with: { task: 'A', addr: at(next(PAGES)) }, ...stop };
    case 3:
      return pfn === null ? { op: 'access', task: 'A', addr: at(page), write: true } : { op: 'migrate', pfn, ...stop };
    case 4:
      return pfn === null ? { op: 'clear_soft_dirty', task: 'A', ...stop } : { op: 'reclaim', pfn, ...stop };
    case 5:
      return { op: 'mprotect', ...range, prot: next(4) === 0 ? 1 : 3, ...stop };
    case 6:
      return { op: 'access', task: 'A', addr: at(page), write: next(2) === 0, ...stop };
    case 7:
      return {
        op: 'vhost_set_vring_addr',
        dev: 'v',
        vq,
        task: 'A',
        flags: 0,
        desc: at(8 * vq + shift),
        avail: at(8 * vq + 1 + shift),
        used: at(8 * vq + 2 + shift),
        ...stop,
      };
    case 8:
      return { op: 'vhost_set_backend', dev: 'v', vq, task: 'A', active: next(4) > 0 };
    case 9:
    case 10:
    case 15:
    case 16:
      return { op: 'vhost_round', dev: 'v', vq, ...stop };
    case 11:
      return { op: 'vhost_access', dev: 'v', vq, area, off: next(16), write: false, length: 4, ...inside };
    case 12:
    case 13:
    case 14:
      return {
        op: 'vhost_access',
        dev: 'v',
        vq,
        area: 'used',
        off: 4 + next(16),
        write: true,
        data: 'AQI=',
        ...inside,
      };
    case 17:
    case 18:
      return { op: 'access', task: 'A', addr: at(8 * vq + next(3)), write: true };
    default:
      return { op: 'fork', task: 'A', child: `C${m.host.seq}`, ...stop };
  }
}

/** What is stopped now. */
const stopped = (m: VhostMachine): string[] =>
  [...m.host.operations.values()].filter(({ state }) => state === 'stopped').map(({ id }) => id);

const SEEDS = [1, 2, 3];

/** Plays random commands until everything has ended; counts them by their names. Throws where an invariant does not hold. */
function play(m: VhostMachine, seed: number, done = new Map<string, number>()): Map<string, number> {
  const next = random(seed);
  const history: string[] = [];
  for (let i = 0; i < 400; i++) {
    const waiting = stopped(m);
    const resumes = waiting.length > 3 || (waiting.length > 0 && next(2) === 0);
    const command: Command = resumes
      ? {
          op: next(2) === 0 ? 'step_operation' : 'resume_operation',
          operation: waiting[next(waiting.length)] as string,
        }
      : operation(m, next);
    history.push(command.op);
    try {
      m.run(command);
    } catch (error) {
      throw new Error(`seed ${seed}, command ${i}: ${history.slice(-12).join(' ')}: ${error}`);
    }
    done.set(command.op, (done.get(command.op) ?? 0) + 1);
  }
  for (let left = stopped(m); left.length > 0; left = stopped(m))
    m.run({ op: 'resume_operation', operation: left[0] as string });
  return done;
}

/** Operations that have not ended, and what they wait for. */
const hanging = (m: VhostMachine): [string, string | null][] =>
  [...m.host.operations.values()].filter(({ state }) => state !== 'done').map(({ id, blocked_on }) => [id, blocked_on]);

for (const variant of ['fixed', 'spinlock'] as Variant[])
  t.test(
    `no interleaving of phases makes ${variant} break a rule, and every map shows what the page table does`,
    async (t) => {
      const done = new Map<string, number>();
      let waits = 0;
      for (const [profile] of ERAS)
        for (const seed of SEEDS) {
          const where = `${profile} seed ${seed}`;
          const m = new VhostMachine({ profile, variant, nvqs: 2 });
          play(m, seed, done);
          waits += m.trace('lock').filter(({ lock, state }) => /vhost_/.test(String(lock)) && state === 'waits').length;
          t.strictSame([hanging(m), m.codes()], [[], []], `${where}: everything has ended, no rule was broken`);
          t.strictSame([m.vq(0).invalidate_count, m.vq(1).invalidate_count], [0, 0], where);
          for (let n = 0; n < 2; n++) {
            for (const page of [0, 1, 2])
              m.run({ op: 'mprotect', task: 'A', addr: addressOf(BASE + 8 * n + page), length: bytes(1), prot: 3 });
            m.setAddr(8 * n, n);
            m.backend(true, n);
            for (const page of [0, 1, 2]) m.write('A', 8 * n + page);
            m.round({}, n);
            t.strictSame(m.mapped(n), ['desc', 'avail', 'used'], `${where}: everything can be mapped again`);
          }
        }
      for (const op of [
        'vhost_round',
        'vhost_access',
        'ksm_merge',
        'migrate',
        'reclaim',
        'fork',
        'vhost_set_vring_addr',
      ])
        t.ok((done.get(op) ?? 0) > 10, `${op} took place`);
      t.ok(waits > 10, `starts have waited for accessors ${waits} times`);
    },
  );

t.test('the same interleavings find the defects of the versions before, and single ones', async (t) => {
  const found = (variant: Variant, switches: Partial<Switches> = {}): string[] => {
    const codes = SEEDS.flatMap((seed) => {
      const m = new VhostMachine({ variant, switches, nvqs: 2 });
      play(m, seed);
      return m.codes(true);
    });
    return [...new Set(codes)];
  };
  const merged = found('merged');
  for (const code of ['LOST_DIRTY', 'COUNTER_DRIFT', 'FALLIBLE_WITH_END', 'NEEDLESS_EAGAIN', 'LEAKED_MAP'])
    t.ok(merged.includes(code), `merged: ${code}`);
  const rfc2 = found('rfc2');
  for (const code of ['SLEEP_IN_ATOMIC', 'LOCK_INVERSION', 'DEADLOCK']) t.ok(rfc2.includes(code), `rfc2: ${code}`);
  t.strictSame(found('fixed', { dirty_mark: 'before_readers' }), ['WRITE_AFTER_DIRTY']);
  t.strictSame(found('fixed', { teardown: 'clean' }), ['LOST_DIRTY']);
  t.ok(found('fixed', { reader: 'seqlock' }).includes('ACCESSOR_IN_REVOKED_MAP'));
  t.ok(found('spinlock', { blockable_check: 'overlap_first' }).includes('FALLIBLE_WITH_END'));
});
