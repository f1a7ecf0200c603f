// Conformance cases of vhost's metadata maps, by number: for each profile that has them, and each variant that they tell apart.

import t from 'tap';
import { execute } from '../../src/kernel/execute.ts';
import { MAX_PARKED_OPERATIONS } from '../../src/kernel/limits.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Variant } from '../../src/kernel/vhost/rules.ts';
import { at } from './page-machine.ts';
import { ACCESS_PLATFORM, AVAIL, DESC, ERAS, EVENT_IDX, USED, VhostMachine } from './vhost-machine.ts';

const errno = ({ refusal, ret }: Outcome): string | number => refusal?.errno ?? ret;
const through = ({ fields }: Outcome): unknown => fields.through;
const VARIANTS: Variant[] = ['rfc2', 'merged', 'fixed', 'spinlock'];
const has = (profile: string, variant: Variant): boolean => variant !== 'rfc2' || profile !== '6.18';

t.test('put_vhost_dev (4.10): ENODEV, as every command of vhost', async (t) => {
  const m = new VhostMachine({ profile: '4.10' });
  t.equal(errno(m.run({ op: 'put_vhost_dev', dev: 'v', variant: 'fixed', nvqs: 1, switches: {} })), 'ENODEV');
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'v', task: 'A' })), 'ENODEV');
  t.equal(errno(m.round()), 'ENODEV');
  t.equal(errno(m.run({ op: 'close_vhost_dev', dev: 'v' })), 'ENODEV');
});

t.test('put_vhost_dev (P614): rfc2 is EOPNOTSUPP, its callback does not exist any more', async (t) => {
  const m = new VhostMachine({ profile: '6.18', variant: 'rfc2' });
  t.equal(errno(m.run({ op: 'put_vhost_dev', dev: 'v', variant: 'rfc2', nvqs: 1, switches: {} })), 'EOPNOTSUPP');
});

for (const [profile, era] of ERAS)
  for (const variant of VARIANTS.filter((name) => has(profile, name))) {
    const where = `(${era}, ${profile}, ${variant})`;

    t.test(`D-1 ${where}: a round over resident pages makes three maps and keeps no reference`, async (t) => {
      const m = new VhostMachine({ profile, variant });
      const round = m.round();
      t.strictSame(round.fields, { ran: true, heads: [], copies: 0, prefetch: { desc: 0, avail: 0, used: 0 } });
      t.strictSame(m.mapped(), ['desc', 'avail', 'used']);
      for (const [page, area] of [
        [DESC, 'desc'],
        [AVAIL, 'avail'],
        [USED, 'used'],
      ] as const) {
        t.strictSame(m.behind(area), [m.pfn('A', page)]);
        t.strictSame(m.counts(m.pfn('A', page)), [1, 1]);
      }
      t.strictSame(m.codes(), []);
    });

    t.test(
      `D-2 ${where}: a used page that is not resident is copied to, which faults it in, and mapped next time`,
      async (t) => {
        const m = new VhostMachine({ profile, variant });
        m.dontneed(USED, 1);
        const round = m.round();
        t.strictSame(round.fields.prefetch, { desc: 0, avail: 0, used: variant === 'merged' ? 14 : -14 });
        t.strictSame([errno(round), m.mapped(), m.entry('A', USED)], [0, ['desc', 'avail'], 'none'], 'silent');
        t.equal(through(m.put('used', 4, [1, 2, 3])), 'copy');
        t.equal(m.entry('A', USED), 'writable');
        m.round();
        t.strictSame(m.behind('used'), [m.pfn('A', USED)]);
        const read = m.get('used', 4, 3);
        t.strictSame([read.fields.through, read.fields.data], ['map', 'AQID']);
        t.strictSame(m.codes(), variant === 'rfc2' ? ['SLEEP_IN_ATOMIC', 'LOCK_INVERSION'] : []);
      },
    );

    if (variant !== 'rfc2')
      t.test(
        `D-3 ${where}: a used page that fork left read-only is not mapped; a copied write breaks COW`,
        async (t) => {
          const m = new VhostMachine({ profile, variant });
          m.round();
          m.fork();
          t.strictSame(m.mapped(), [], 'the fork has taken all maps');
          m.round();
          t.strictSame(m.mapped(), ['desc', 'avail'], 'a write map would imply a writable entry');
          t.equal(m.entry('A', USED), 'read-only');
          const old = m.pfn('A', USED);
          t.equal(through(m.put('used', 4, [7])), 'copy');
          t.not(m.pfn('A', USED), old);
          m.round();
          t.strictSame(m.behind('used'), [m.pfn('A', USED)]);
          t.strictSame(m.codes(), []);
        },
      );

    t.test(
      `D-5 ${where}: the page behind a used map that moves is dirty, and the new one is mapped next`,
      async (t) => {
        const m = new VhostMachine({ profile, variant });
        m.round();
        const old = m.pfn('A', USED);
        t.equal(through(m.put('used', 4, [9])), 'map');
        t.equal(
          m.host.mm.pages.isDirty(old),
          variant === 'rfc2',
          'RFC V2 marks after the round, the others in the callback',
        );
        const moving = m.run({ op: 'migrate', pfn: old, stop_at: 'after_start' });
        t.equal(m.host.mm.pages.isDirty(old), true, 'when the start returns');
        t.equal(errno(m.resume(moving) as Outcome), 0);
        const moved = m.pfn('A', USED);
        t.not(moved, old);
        m.round();
        t.strictSame(m.behind('used'), [moved]);
        t.equal(m.get('used', 4, 1).fields.data, 'CQ==');
        t.strictSame([...new Set(m.codes())], variant === 'rfc2' ? ['SLEEP_IN_ATOMIC', 'LOCK_INVERSION'] : []);
      },
    );

    t.test(`D-15 ${where}: set_num 0, 3, 0x10000 is EINVAL; with a backend EBUSY`, async (t) => {
      const m = new VhostMachine({ profile, variant });
      t.equal(errno(m.setNum(8)), 'EBUSY');
      m.backend(false);
      for (const num of [0, 3, 0x10000]) t.equal(errno(m.setNum(num)), 'EINVAL', `num ${num}`);
      t.equal(errno(m.setNum(0x8000)), 0);
      t.strictSame([m.vq().num, m.vq().uaddrs.desc.size], [0x8000, 0x80000]);
    });

    t.test(`D-17 ${where}: with a device IOTLB nothing is mapped`, async (t) => {
      const m = new VhostMachine({ profile, variant, features: ACCESS_PLATFORM });
      t.equal(m.round().fields.copies, 1);
      t.strictSame(m.mapped(), []);
      t.equal(through(m.get('desc', 0, 16)), 'copy');
    });
  }

for (const [profile, era] of ERAS)
  for (const variant of ['merged', 'fixed', 'spinlock'] as const) {
    const where = `(${era}, ${profile}, ${variant})`;

    t.test(`D-6 ${where}: between start and end nothing is mapped, accesses copy`, async (t) => {
      const m = new VhostMachine({ profile, variant });
      m.round();
      const open = m.invalidate(DESC, 3, { stop_at: 'after_start' });
      t.strictSame([m.mapped(), m.vq().invalidate_count], [[], 3]);
      t.strictSame(m.round().fields.prefetch, { desc: -14, avail: -14, used: -14 });
      t.equal(through(m.get('avail', 0, 2)), 'copy');
      m.resume(open);
      t.equal(m.vq().invalidate_count, 0);
      m.round();
      t.strictSame(m.mapped(), ['desc', 'avail', 'used']);
      t.strictSame(m.codes(), []);
    });

    t.test(`D-7 ${where}: of two invalidations that overlap the second end allows maps again`, async (t) => {
      const m = new VhostMachine({ profile, variant });
      const first = m.invalidate(USED, 1, { stop_at: 'after_start' });
      const second = m.invalidate(USED, 1, { stop_at: 'after_start' });
      t.equal(m.vq().invalidate_count, 2);
      m.resume(first);
      m.round();
      t.strictSame([m.mapped().includes('used'), m.vq().invalidate_count], [false, 1]);
      m.resume(second);
      m.round();
      t.strictSame([m.mapped().includes('used'), m.vq().invalidate_count], [true, 0]);
      t.strictSame(m.codes(), []);
    });
  }

/** The ring lies in a shared file, which the OOM reaper leaves alone; task A has an anonymous page elsewhere. */
function ringInFile(profile: string, variant: Variant): VhostMachine {
  const m = new VhostMachine({ profile, variant, untouched: true });
  m.munmap('A', 0, 24);
  m.file('A', 0, 8, 'ring');
  for (const page of [DESC, AVAIL, USED]) m.write('A', page);
  m.anon('A', 100, 1);
  m.write('A', 100);
  m.round();
  m.mark();
  return m;
}

for (const [profile, era] of ERAS) {
  t.test(`D-9 (${era}, ${profile}): an OOM reap that hits no area: merged EAGAIN, fixed and spinlock 0`, async (t) => {
    const merged = ringInFile(profile, 'merged');
    t.equal(errno(merged.run({ op: 'oom_reap', task: 'A' })), 'EAGAIN');
    t.equal(merged.entry('A', 100), 'writable', 'the area is left');
    t.ok(merged.codes().includes('NEEDLESS_EAGAIN'));
    t.equal(merged.codes().includes('FALLIBLE_WITH_END'), merged.host.profile.failedStart === 'ends-all');
    for (const variant of ['fixed', 'spinlock'] as const) {
      const m = ringInFile(profile, variant);
      t.equal(errno(m.run({ op: 'oom_reap', task: 'A' })), 0);
      t.strictSame([m.entry('A', 100), m.mapped(), m.codes()], ['none', ['desc', 'avail', 'used'], []]);
    }
  });

  t.test(
    `D-9 (${era}, ${profile}): one that hits an area: fixed EAGAIN, spinlock 0, for it need not sleep`,
    async (t) => {
      const fixed = new VhostMachine({ profile, variant: 'fixed' });
      fixed.round();
      t.equal(errno(fixed.run({ op: 'oom_reap', task: 'A' })), 'EAGAIN');
      t.strictSame([fixed.mapped(), fixed.vq().invalidate_count], [['desc', 'avail', 'used'], 0]);
      const spinlock = new VhostMachine({ profile, variant: 'spinlock' });
      spinlock.round();
      t.equal(errno(spinlock.run({ op: 'oom_reap', task: 'A' })), 0);
      t.strictSame([spinlock.mapped(), spinlock.codes()], [[], []]);
    },
  );

  t.test(`D-10 (${era}, ${profile}, merged): set_addr between start and end makes the counter drift`, async (t) => {
    const m = new VhostMachine({ profile });
    m.round();
    const open = m.invalidate(USED, 1, { stop_at: 'after_start' });
    t.equal(m.vq().invalidate_count, 1);
    m.setAddr(8);
    t.strictSame(m.codes(), []);
    m.resume(open);
    t.strictSame([m.vq().invalidate_count, m.codes()], [1, ['COUNTER_DRIFT']], 'the end hits nothing any more');
    for (const page of [8, 9, 10]) m.write('A', page);
    m.round();
    m.round();
    t.strictSame(m.mapped(), [], 'never mapped again');
  });

  t.test(
    `D-10 (${era}, ${profile}, merged): the other way round it gets negative, and maps are made too early`,
    async (t) => {
      const m = new VhostMachine({ profile, switches: { registration: 'once' } });
      for (const page of [8, 9, 10]) m.write('A', page);
      const open = m.invalidate(10, 1, { stop_at: 'after_start' });
      m.setAddr(8);
      m.resume(open);
      t.strictSame([m.vq().invalidate_count, m.codes().includes('COUNTER_DRIFT')], [-1, true]);
      m.mark();
      const again = m.invalidate(10, 1, { stop_at: 'after_start' });
      t.equal(m.vq().invalidate_count, 0);
      m.round();
      t.ok(m.mapped().includes('used'));
      t.ok(m.codes().includes('SPTE_IN_WINDOW'));
      m.resume(again);
    },
  );

  for (const variant of ['fixed', 'spinlock'] as const)
    t.test(`D-10 (${era}, ${profile}, ${variant}): set_addr between start and end resets the count`, async (t) => {
      const m = new VhostMachine({ profile, variant });
      for (const page of [8, 9, 10]) m.write('A', page);
      m.round();
      const open = m.invalidate(USED, 1, { stop_at: 'after_start' });
      m.setAddr(8);
      t.equal(m.vq().invalidate_count, 0);
      m.resume(open);
      t.equal(m.vq().invalidate_count, 0);
      m.round();
      t.strictSame([m.mapped(), m.codes()], [['desc', 'avail', 'used'], []]);
      const other = m.invalidate(USED, 1, { stop_at: 'after_start' });
      m.setAddr(0);
      t.equal(m.vq().invalidate_count, 1, 'where the new areas are being invalidated');
      m.round();
      t.strictSame(m.mapped(), [], 'the count is of the whole vq');
      m.resume(other);
      t.strictSame([m.vq().invalidate_count, m.codes()], [0, []]);
    });

  t.test(
    `D-11 (${era}, ${profile}): 0x200 bytes at offset 0xf00 take 2 pages: merged counts 1, fixed and spinlock 2`,
    async (t) => {
      const ring = { profile, num: 32, desc: at(DESC) + 0xf00n };
      const merged = new VhostMachine({ ...ring, variant: 'merged' });
      merged.dontneed(AVAIL, 1);
      merged.round();
      t.equal(merged.behind('desc')?.length, 1);
      t.strictSame(merged.codes(), []);
      merged.get('desc', 0x100, 16);
      t.ok(merged.codes().includes('UNCHECKED_PAGE'), 'its second page is not even there');
      for (const variant of ['fixed', 'spinlock'] as const) {
        const m = new VhostMachine({ ...ring, variant });
        m.round();
        t.strictSame(m.behind('desc'), [m.pfn('A', DESC), m.pfn('A', DESC + 1)]);
        m.get('desc', 0xf8, 16);
        t.strictSame(m.codes(), []);
        m.dontneed(DESC + 1, 1);
        m.round();
        t.notOk(m.mapped().includes('desc'), 'not without the second');
      }
    },
  );
}

t.test('D-11 (fixed): pages that do not lie behind each other in memory are not mapped together', async (t) => {
  const m = new VhostMachine({ variant: 'fixed', num: 512, untouched: true });
  for (const page of [1, 0]) m.write('A', page);
  t.not(m.pfn('A', 1), m.pfn('A', 0) + 1);
  t.equal((m.round().fields.prefetch as Record<string, number>).desc, -14);
  t.equal(through(m.get('desc', 4090, 10)), 'copy');
});

for (const [profile, era] of ERAS.filter(([name]) => name !== '6.18')) {
  t.test(
    `D-13 (${era}, ${profile}, rfc2): the callback's mutex is SLEEP_IN_ATOMIC on munmap and on a COW break`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'rfc2' });
      m.round();
      m.munmap('A', USED, 1);
      t.strictSame([m.codes(), m.mapped()], [['SLEEP_IN_ATOMIC'], ['desc', 'avail']]);
      const other = new VhostMachine({ profile, variant: 'rfc2' });
      other.fork();
      other.mark();
      other.write('A', USED);
      t.ok(other.codes().includes('SLEEP_IN_ATOMIC'));
      const { items } = other.host.violations.since(0, 1000);
      const last = items.findLast(({ code }) => code === 'SLEEP_IN_ATOMIC');
      t.ok(
        last?.locks_held.some((lock) => lock.startsWith('ptl:')),
        'under the page-table lock',
      );
    },
  );

  t.test(
    `D-13 (${era}, ${profile}, rfc2): KSM on a ring page and the worker that marks it dirty are LOCK_INVERSION`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'rfc2' });
      m.round();
      t.notOk(m.codes().includes('LOCK_INVERSION'));
      m.run({ op: 'ksm_merge', task: 'A', addr: at(USED), with: { task: 'A', addr: at(USED + 1) } });
      t.ok(m.codes().includes('LOCK_INVERSION'));
      t.notOk(m.codes().includes('DEADLOCK'), 'nobody has waited');
    },
  );

  t.test(
    `D-13 (${era}, ${profile}, rfc2): a worker that copies under its mutex waits for itself in the callback`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'rfc2' });
      m.round();
      m.fork();
      m.mark();
      t.equal(errno(m.put('used', 4, [1])), 'EDEADLK');
      t.ok(m.codes().includes('SELF_RECURSION') && m.codes().includes('DEADLOCK'));
    },
  );

  t.test(
    `D-14 (${era}, ${profile}, rfc2): KSM's write protection is told from its end; before it WRITE_TO_PROTECTED`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'rfc2' });
      m.round();
      m.mark();
      const merging = m.run({
        op: 'ksm_merge',
        task: 'A',
        addr: at(USED),
        with: { task: 'A', addr: at(USED + 1) },
        stop_at: 'after_pte_set',
      });
      t.strictSame([m.entry('A', USED), m.told(), m.mapped()], ['read-only', [], ['desc', 'avail', 'used']]);
      const write = m.put('used', 4, [1]);
      t.strictSame(m.codes(), ['WRITE_TO_PROTECTED']);
      t.equal(m.waitsFor(write), `page_lock:${m.pfn('A', USED)}`, 'whose lock KSM holds');
      m.resume(merging);
      t.strictSame(m.told(), ['vhost-v.invalidate_range CLEAR 2-3']);
      t.ok(m.codes().includes('DEADLOCK'), 'and KSM waits for the mutex of the worker');
    },
  );
}

t.test('D-14 (fixed): the start of the write protection takes the map away first', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  m.round();
  const merging = m.run({
    op: 'ksm_merge',
    task: 'A',
    addr: at(USED),
    with: { task: 'A', addr: at(USED + 1) },
    stop_at: 'after_start',
  });
  t.strictSame([m.entry('A', USED), m.mapped()], ['writable', ['desc', 'avail']]);
  m.resume(merging);
  t.equal(m.entry('A', USED), 'read-only');
  t.strictSame(m.codes(), []);
});

t.test(
  'D-15: set_addr: EOPNOTSUPP of unknown flags, EINVAL of misaligned rings, and beyond user space with a backend',
  async (t) => {
    const m = new VhostMachine({ variant: 'fixed' });
    const set = (flags: number, desc: bigint, avail: bigint, used: bigint): string | number =>
      errno(m.run({ op: 'vhost_set_vring_addr', dev: 'v', vq: 0, task: 'A', flags, desc, avail, used }));
    t.equal(set(2, 0n, 1n, 0n), 'EOPNOTSUPP', 'checked first');
    t.equal(set(0, 0n, 1n, 0n), 'EINVAL');
    t.equal(set(0, 0n, 2n, 2n), 'EINVAL');
    t.equal(set(1, 3n, 2n, 4n), 0);
    t.equal(set(0, 0x7ffffffff000n, 0n, 0n), 'EINVAL');
    m.backend(false);
    t.equal(set(0, 0x7ffffffff000n, 0n, 0n), 0, 'nobody looks without a backend');
    t.equal(errno(m.backend(true)), 'EFAULT');
  },
);

t.test('D-15: only the owner calls, once there is one', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  t.equal(errno(m.run({ op: 'vhost_set_vring_num', dev: 'v', vq: 0, task: 'B', num: 8 })), 'EPERM');
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'v', task: 'B' })), 'EBUSY');
  t.equal(errno(m.run({ op: 'vhost_set_features', dev: 'v', task: 'A', features: 1 })), 'EOPNOTSUPP');
  m.run({ op: 'put_vhost_dev', dev: 'w', variant: 'fixed', nvqs: 1, switches: {} });
  t.equal(
    errno(m.run({ op: 'vhost_access', dev: 'w', vq: 0, area: 'desc', off: 0, write: false, length: 1 })),
    'EPERM',
  );
  m.run({ op: 'signal', task: 'B', fatal: false });
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'w', task: 'B' })), 'EINTR');
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'w', task: 'A' })), 0, 'nobody owns it after that');
});

t.test('D-17: the sizes of the areas, with and without EVENT_IDX', async (t) => {
  const sizes = (features: number): number[] =>
    Object.values(new VhostMachine({ features, num: 256 }).vq().uaddrs).map(({ size }) => size);
  t.strictSame(sizes(0), [4096, 516, 2052]);
  t.strictSame(sizes(EVENT_IDX), [4096, 518, 2054]);
});

t.test('a range that ends where an area begins counts as a hit, one page before it not', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  m.round();
  m.setAddr(4);
  for (const page of [4, 5, 6]) m.write('A', page);
  m.round();
  const near = m.invalidate(3, 1, { stop_at: 'after_start' });
  t.strictSame(m.mapped(), ['avail', 'used']);
  m.resume(near);
  m.round();
  m.resume(m.invalidate(2, 1, { stop_at: 'after_start' }));
  t.strictSame(m.mapped(), ['desc', 'avail', 'used']);
});

t.test('a round takes the available buffers and gives them back, through the maps as by copy', async (t) => {
  for (const features of [0, ACCESS_PLATFORM]) {
    const m = new VhostMachine({ variant: 'fixed', features });
    const store = (page: number, off: number, ...data: number[]): void => {
      const addr = at(page) + BigInt(off);
      m.run({ op: 'access', task: 'A', addr, write: true, data: Buffer.from(data).toString('base64') });
    };
    store(AVAIL, 2, 2, 0, 5, 0, 3, 0);
    const round = m.round();
    t.strictSame(round.fields.heads, [5, 3]);
    t.equal(round.fields.copies, features === 0 ? 0 : 9);
    const read = m.run({ op: 'access', task: 'A', addr: at(USED), write: false, length: 20 });
    t.equal(
      Buffer.from(read.fields.data as string, 'base64').toString('hex'),
      '00000200050000000000000003000000' + '00000000',
    );
    t.strictSame(m.round().fields.heads, []);
    store(AVAIL, 2, 20, 0);
    t.equal(errno(m.round()), 'EFAULT', 'further ahead than the ring is long');
    store(AVAIL, 2, 3, 0);
    store(AVAIL, 8, 9, 0);
    t.equal(errno(m.round()), 'EINVAL', 'a head beyond the ring');
    m.munmap('A', AVAIL, 1);
    t.equal(errno(m.round()), 'EFAULT');
    t.strictSame(m.codes(), []);
  }
});

t.test('a round without a backend does nothing', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  m.backend(false);
  t.strictSame([m.round().fields.ran, m.mapped()], [false, []]);
});

t.test('access: EINVAL of bytes beyond the area, and of neither or both of length and data', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  t.equal(errno(m.get('desc', 120, 9)), 'EINVAL');
  t.equal(errno(m.get('desc', -1, 1)), 'EINVAL');
  t.equal(errno(m.get('desc', 0, 0)), 'EINVAL');
  t.equal(errno(m.put('used', 68, [1])), 'EINVAL');
  t.equal(errno(m.run({ op: 'vhost_access', dev: 'v', vq: 0, area: 'used', off: 0, write: true })), 'EINVAL');
  m.munmap('A', DESC, 1);
  t.equal(errno(m.get('desc', 0, 1)), 'EFAULT');
});

t.test('exit of the owner waits for a call of the device and cleans up; close unregisters late', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  m.round();
  const inside = m.put('used', 4, [1], { stop_at: 'inside_map' });
  const exit = m.run({ op: 'exit', task: 'A' });
  t.match(m.waitsFor(exit), /^operation:vhost_access/);
  t.equal(errno(m.run({ op: 'close_vhost_dev', dev: 'v' })), 'EBUSY');
  t.equal(errno(m.resume(inside) as Outcome), 0);
  t.strictSame([m.outcomeOf(exit)?.ret, m.mapped(), m.codes()], [0, [], []]);
  t.equal(m.host.mm.mmu_notifiers.size, 0);
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'v', task: 'B' })), 0, 'another can own it now');
  const { fields } = m.run({ op: 'close_vhost_dev', dev: 'v' });
  t.strictSame(fields, { id: 'v', leaked_maps: 0 });
  t.equal(m.host.mm.mmu_notifiers.size, 0);
  t.equal(errno(m.run({ op: 'close_vhost_dev', dev: 'v' })), 'NOT_FOUND');
  t.equal(m.host.mm.pages.pinned, 0);
});

t.test('EBUSY of MAX_PARKED_OPERATIONS leaves nothing behind', async (t) => {
  const m = new VhostMachine({ variant: 'fixed' });
  m.run({ op: 'put_vhost_dev', dev: 'w', variant: 'fixed', nvqs: 1, switches: {} });
  const { id: mm } = m.mm('A');
  const range = { mm, start: at(20), end: at(21), event: 'CLEAR', blockable: true } as const;
  for (let i = 0; i < MAX_PARKED_OPERATIONS; i++)
    execute(m.host, m.m.call({ op: 'invalidate', ...range, stop_at: 'before_start' }));
  t.equal(errno(m.round()), 'EBUSY');
  t.equal(errno(m.get('desc', 0, 1)), 'EBUSY');
  t.equal(errno(m.setAddr(0)), 'EBUSY');
  t.equal(errno(m.backend(false)), 'EBUSY');
  t.equal(errno(m.run({ op: 'close_vhost_dev', dev: 'v' })), 'EBUSY');
  t.equal(errno(m.run({ op: 'vhost_set_owner', dev: 'w', task: 'A' })), 'EBUSY');
  t.strictSame([m.dev.calls, m.dev.closing, m.host.consumers.vhost.devs.get('w')?.mm], [0, false, null]);
});
