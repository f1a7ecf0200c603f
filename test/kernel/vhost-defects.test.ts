// The defects of vhost's metadata maps as merged, each by its number and by its switch: what goes wrong, and who says so.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Switches, Variant } from '../../src/kernel/vhost/rules.ts';
import { at } from './page-machine.ts';
import { restored } from './restored.ts';
import { DESC, ERAS, EVENT_IDX, type Ring, USED, VhostMachine } from './vhost-machine.ts';

const errno = ({ refusal, ret }: Outcome): string | number => refusal?.errno ?? ret;

/** The merged version, and a repaired one with that one defect switched on; then the repaired one itself. */
const withDefect = (switches: Partial<Switches>, more: Ring = {}): VhostMachine[] => [
  new VhostMachine({ ...more, variant: 'merged' }),
  new VhostMachine({ ...more, variant: 'fixed', switches }),
];
const without = (more: Ring = {}): VhostMachine[] =>
  (['fixed', 'spinlock'] as const).map((variant) => new VhostMachine({ ...more, variant }));

t.test(
  'defect 1: a notifier that is unregistered in set_num misses an end, and nothing is ever mapped again',
  async (t) => {
    for (const [profile] of ERAS)
      for (const m of withDefect({ registration: 'per_ioctl', count: 'overlap_now' }, { profile })) {
        m.round();
        m.backend(false);
        const open = m.invalidate(USED, 1, { stop_at: 'after_start' });
        const setting = m.setNum(8, 0, { stop_at: 'after_unregister' });
        m.resume(open);
        t.strictSame(m.codes(), ['COUNTER_DRIFT']);
        t.equal(m.resume(setting)?.ret, 0);
        m.backend(true);
        m.round();
        t.strictSame([m.vq().invalidate_count, m.mapped()], [1, []]);
      }
    for (const m of without()) {
      m.round();
      m.backend(false);
      const open = m.invalidate(USED, 1, { stop_at: 'after_start' });
      m.setNum(8);
      m.resume(open);
      m.backend(true);
      m.round();
      t.strictSame([m.mapped(), m.codes()], [['desc', 'avail', 'used'], []]);
    }
  },
);

t.test('defect 2: areas that move between start and end make the counter negative', async (t) => {
  for (const variant of ['merged', 'fixed'] as const) {
    const m = new VhostMachine({ variant, switches: { registration: 'once', count: 'overlap_now' } });
    const open = m.invalidate(10, 1, { stop_at: 'after_start' });
    m.setAddr(8);
    m.resume(open);
    t.strictSame([m.vq().invalidate_count, m.codes()], [-1, ['COUNTER_DRIFT']]);
  }
});

t.test(
  'defect 3: while the notifier is unregistered for one vq, the maps of another go stale: USE_AFTER_FREE',
  async (t) => {
    for (const m of withDefect({ registration: 'per_ioctl' }, { nvqs: 2 })) {
      m.round({}, 0);
      m.round({}, 1);
      m.backend(false, 1);
      const setting = m.setNum(8, 1, { stop_at: 'after_unregister' });
      const freed = m.pfn('A', USED);
      m.dontneed(USED, 1);
      t.strictSame([m.behind('used'), m.counts(freed)], [[freed], [0, 0]]);
      m.put('used', 4, [1]);
      t.strictSame(m.codes(), ['USE_AFTER_FREE']);
      m.resume(setting);
    }
    for (const m of without({ nvqs: 2 })) {
      m.round({}, 0);
      m.round({}, 1);
      m.backend(false, 1);
      m.setNum(8, 1);
      m.dontneed(USED, 1);
      t.strictSame([m.mapped(0), m.mapped(1), m.codes()], [['desc', 'avail'], [], []]);
    }
  },
);

t.test('defect 3: a page that is used again behind a map that nobody took away is STALE_SECONDARY', async (t) => {
  const m = new VhostMachine({ nvqs: 2 });
  m.round();
  m.backend(false, 1);
  m.setNum(8, 1, { stop_at: 'after_unregister' });
  m.run({ op: 'gup', task: 'A', addr: at(USED), npage: 1, flags: 4, gup: 'g' });
  m.dontneed(USED, 1);
  m.get('used', 0, 2);
  t.strictSame(m.codes(), ['STALE_SECONDARY'], 'somebody else still has the page');
});

t.test(
  'defect 3: a registration that fails is ignored: maps without a notifier, and one unregistration too many',
  async (t) => {
    for (const m of withDefect({ registration: 'per_ioctl', registration_result: 'ignored' })) {
      m.run({ op: 'signal', task: 'A', fatal: false });
      m.backend(false);
      t.equal(errno(m.setNum(8)), 0);
      t.strictSame([m.codes(), m.dev.notifier], [['REGISTRATION_IGNORED'], null]);
      m.backend(true);
      m.round();
      m.dontneed(USED, 1);
      t.strictSame(m.mapped(), ['desc', 'avail', 'used']);
      m.mark();
      m.put('used', 4, [1]);
      m.setAddr(0);
      t.strictSame(
        [...new Set(m.codes())].filter((code) => code !== 'LOST_DIRTY'),
        ['USE_AFTER_FREE', 'REGISTRATION_IGNORED'],
      );
    }
    const checked = new VhostMachine({ variant: 'merged', switches: { registration_result: 'checked' } });
    checked.run({ op: 'signal', task: 'A', fatal: false });
    t.equal(errno(checked.setAddr(0)), 'EINTR');
    checked.round();
    t.strictSame([checked.mapped(), checked.dev.notifier, checked.codes()], [[], null, []], 'nothing is mapped then');
  },
);

t.test('defect 4: the structure of every map that goes leaks', async (t) => {
  for (const m of withDefect({ map_struct: 'leaked' })) {
    m.round();
    m.dontneed(USED, 1);
    t.ok(m.codes(true).includes('LEAKED_MAP'));
    t.equal(m.dev.leaked_maps, 1);
    m.setAddr(0);
    t.equal(m.dev.leaked_maps, 3);
    t.strictSame(m.run({ op: 'close_vhost_dev', dev: 'v' }).fields, { id: 'v', leaked_maps: 3 });
  }
  for (const m of without()) {
    m.round();
    m.setAddr(0);
    t.strictSame(m.run({ op: 'close_vhost_dev', dev: 'v' }).fields, { id: 'v', leaked_maps: 0 });
  }
});

t.test('defect 5: maps that go outside a callback lose what was written: LOST_DIRTY', async (t) => {
  for (const m of withDefect({ teardown: 'clean' })) {
    m.round();
    m.put('used', 4, [1]);
    m.setAddr(8);
    t.strictSame([m.codes(), m.host.mm.pages.isDirty(m.pfn('A', USED))], [['LOST_DIRTY'], false]);
  }
  for (const m of without()) {
    m.round();
    m.put('used', 4, [1]);
    m.setAddr(8);
    t.strictSame([m.codes(), m.host.mm.pages.isDirty(m.pfn('A', USED))], [[], true]);
  }
});

t.test('defect 6: pages are marked dirty before the accessors have left: WRITE_AFTER_DIRTY', async (t) => {
  for (const m of withDefect({ dirty_mark: 'before_readers' })) {
    m.round();
    const page = m.pfn('A', USED);
    const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
    const zap = m.dontneed(USED, 1);
    t.match(m.waitsFor(zap), /^(rcu_read|vhost_ref):/);
    t.equal(m.host.mm.pages.isDirty(page), true);
    m.resume(write);
    t.strictSame([m.codes(), m.outcomeOf(zap)?.ret], [['WRITE_AFTER_DIRTY'], 0]);
  }
  const m = new VhostMachine({ variant: 'fixed' });
  m.round();
  const page = m.pfn('A', USED);
  const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
  const zap = m.dontneed(USED, 1, { stop_at: 'after_start' });
  t.equal(m.waitsFor(zap), 'vhost_ref:v:0');
  t.equal(m.host.mm.pages.isDirty(page), false);
  m.resume(write);
  t.equal(m.host.mm.pages.isDirty(page), true, 'when the start returns');
  m.resume(zap);
  t.strictSame(m.codes(), []);
});

t.test('defect 7: a start waits for a grace period of RCU, and so for the readers of every other device', async (t) => {
  const m = new VhostMachine({ nvqs: 2 });
  m.round({}, 0);
  m.round({}, 1);
  m.mark();
  const reader = m.get('desc', 0, 1, { stop_at: 'inside_map' }, 1);
  const zap = m.dontneed(USED, 1);
  t.equal(m.waitsFor(zap), `rcu_read:${reader.parked}`, 'though the reader is in another ring');
  m.resume(reader);
  t.equal(m.outcomeOf(zap)?.ret, 0);
  t.ok(m.codes(true).includes('GRACE_PERIOD_IN_START'));
  for (const fixed of without({ nvqs: 2 })) {
    fixed.round({}, 0);
    fixed.round({}, 1);
    const inside = fixed.get('desc', 0, 1, { stop_at: 'inside_map' }, 1);
    t.equal(errno(fixed.dontneed(USED, 1)), 0, 'who reads another ring is not waited for');
    fixed.resume(inside);
    t.strictSame(fixed.codes(true), []);
  }
});

t.test('defect 8: a start that may not block is refused without a look at what it hits', async (t) => {
  for (const m of withDefect({ blockable_check: 'always' })) {
    t.match(m.invalidate(20, 1, {}, false), { ret: -11 });
    t.ok(m.codes().includes('NEEDLESS_EAGAIN'));
  }
  for (const m of without()) {
    t.equal(errno(m.invalidate(20, 1, {}, false)), 0);
    t.strictSame(m.codes(), []);
  }
});

t.test('defect 9: the areas move although the ioctl is refused', async (t) => {
  for (const m of withDefect({ failed_ioctl: 'sets_uaddr' })) {
    m.run({ op: 'vhost_set_features', dev: 'v', task: 'A', features: EVENT_IDX });
    t.equal(errno(m.setNum(16)), 'EBUSY');
    t.strictSame([m.vq().uaddrs.used.size, m.codes()], [70, ['UADDR_OF_FAILED_IOCTL']]);
  }
  for (const m of without()) {
    m.run({ op: 'vhost_set_features', dev: 'v', task: 'A', features: EVENT_IDX });
    t.equal(errno(m.setNum(16)), 'EBUSY');
    t.strictSame([m.vq().uaddrs.used.size, m.codes()], [68, []]);
  }
});

for (const [profile, era] of ERAS)
  t.test(`defect 10 (${era}, ${profile}): a start that can fail beside an end`, async (t) => {
    const endsAll = profile === '5.15' || profile === '6.18';
    const m = new VhostMachine({ profile });
    m.round();
    t.equal(errno(m.invalidate(USED, 1, {}, false)), 'EAGAIN');
    t.equal(m.codes().includes('FALLIBLE_WITH_END'), endsAll);
    t.equal(m.codes().includes('COUNTER_DRIFT'), endsAll, 'the core has called the end of a start that failed');
    t.equal(m.vq().invalidate_count, endsAll ? -1 : 0);
    const other = new VhostMachine({ profile, variant: 'spinlock' });
    other.watch('A', 'N', ['invalidate_range_start'], { invalidate_range_start: { actions: [], returns: -11 } });
    other.mark();
    t.equal(errno(other.invalidate(USED, 1, {}, false)), 'EAGAIN');
    t.equal(other.vq().invalidate_count, endsAll ? 0 : 1, "another's failure leaves the count raised");
    t.equal(other.codes().includes('COUNTER_DRIFT'), !endsAll);
  });

t.test('defect 11: pages beyond the size of an area are read and written unchecked', async (t) => {
  for (const m of withDefect({ page_count: 'size' }, { num: 32, desc: at(DESC) + 0xf00n })) {
    m.round();
    m.get('desc', 0x0, 0x100);
    t.strictSame(m.codes(), []);
    m.get('desc', 0xff, 2);
    t.strictSame(m.codes(), ['UNCHECKED_PAGE']);
  }
});

t.test('defect 12: a reader that only retries has touched the page all the same', async (t) => {
  for (const variant of ['merged', 'fixed'] as const) {
    const m = new VhostMachine({ variant, switches: { reader: 'seqlock' } });
    m.round();
    const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
    t.equal(errno(m.dontneed(USED, 1)), 0, 'the start does not wait');
    t.strictSame(m.codes(), ['ACCESSOR_IN_REVOKED_MAP']);
    const done = m.resume(write);
    t.ok(m.codes().includes('USE_AFTER_FREE'));
    t.equal(done?.fields.through, 'copy', 'and writes once more');
    t.equal(m.entry('A', USED), 'writable');
  }
  for (const variant of ['merged', 'fixed', 'spinlock'] as Variant[]) {
    const m = new VhostMachine({ variant });
    m.round();
    const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
    const zap = m.dontneed(USED, 1);
    const blocked = {
      merged: `rcu_read:${write.parked}`,
      fixed: 'vhost_ref:v:0',
      spinlock: 'spinlock:vhost_mmu_lock:v:0',
    };
    t.equal(m.waitsFor(zap), blocked[variant as 'merged']);
    m.resume(write);
    t.equal(m.outcomeOf(zap)?.ret, 0);
    t.notOk(m.codes().includes('ACCESSOR_IN_REVOKED_MAP'));
  }
});

t.test('defect 13: the speculation barrier of copy_user goes with it', async (t) => {
  for (const m of withDefect({ speculation_barrier: 'none' })) {
    m.round();
    t.strictSame(m.codes(true), ['NO_SPECULATION_BARRIER']);
  }
  for (const m of without()) {
    m.round();
    t.strictSame(m.codes(true), []);
  }
});

t.test('a checkpoint in the middle of it all goes on as if nothing had happened', async (t) => {
  for (const variant of ['merged', 'fixed', 'spinlock'] as const) {
    const m = new VhostMachine({ variant });
    m.round();
    const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
    const zap = m.dontneed(USED, 1);
    const after = restored(m.m);
    after.run({ op: 'resume_operation', operation: write.parked as string });
    m.resume(write);
    t.strictSame(after.host.consumers.vhost, m.host.consumers.vhost);
    t.equal(after.host.operations.get(zap.parked as string)?.outcome?.ret, 0);
    t.equal(after.host.trace.next, m.host.trace.next);
  }
});

/** Small numbers from a seed, the same on every run. */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
}

t.test('an access through a map and one by copy cannot be told apart', async (t) => {
  const seed = 20190307;
  t.comment(`seed ${seed}`);
  for (const [profile] of ERAS)
    for (const variant of ['merged', 'fixed', 'spinlock'] as const) {
      const next = random(seed);
      const mapped = new VhostMachine({ profile, variant });
      const copied = new VhostMachine({ profile, variant, features: 2 ** 33 });
      const answers: unknown[][] = [[], []];
      const ways = new Set<unknown>();
      for (let i = 0; i < 150; i++) {
        const [kind, area, off, byte] = [next(8), (['desc', 'avail', 'used'] as const)[next(3)], next(20), next(256)];
        for (const [j, m] of [mapped, copied].entries()) {
          if (kind < 2) m.round();
          else if (kind === 2) m.dontneed(next(1) + (byte % 3), 1);
          else if (kind === 3) m.run({ op: 'migrate', pfn: m.pfn('A', byte % 3) });
          else if (kind === 4 && i % 30 === 0) m.fork(`C${i}`);
          else if (kind === 5 && area === 'used') m.put(area, off, [byte]);
          else {
            const { fields } = m.get(area as 'desc', off % 10, 10);
            answers[j]?.push(fields.data);
            if (j === 0) ways.add(fields.through);
          }
        }
      }
      t.strictSame(answers[0], answers[1], `${profile} ${variant}`);
      t.strictSame([...ways].sort(), ['copy', 'map'], 'both ways were taken');
      t.strictSame(mapped.codes(), []);
    }
});
