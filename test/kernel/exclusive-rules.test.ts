// Device-exclusive access beside its numbered cases: other operations on exclusive entries, drivers, the mirror, refusals.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { ExclusiveMachine, errno, exclusiveMachine, P515, P614 } from './exclusive-machine.ts';
import { R, RW } from './machine.ts';
import { at, bytes } from './page-machine.ts';
import { restored } from './restored.ts';

for (const profile of [P515, P614]) {
  t.test(
    `DONTNEED (${profile}): an exclusive entry goes with its reference, and the device is told CLEAR`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      const pfn = m.pfn('A', 0);
      m.take(0, 2);
      m.mark();
      m.run({ op: 'madvise', task: 'A', addr: at(0), length: bytes(1), advice: 'DONTNEED' });
      t.strictSame([m.events(), m.counts(pfn), m.mapped()], [['CLEAR/null 0-1'], [0, 0], ['1 atomic']]);
      t.equal(m.cpuReads('A', 0), 0, 'a new page');
    },
  );

  t.test(
    `madvise FREE (${profile}): an exclusive entry is passed over; its device mapping goes with the CLEAR`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.take(0, 1);
      m.run({ op: 'madvise', task: 'A', addr: at(0), length: bytes(1), advice: 'FREE' });
      t.strictSame([m.entry('A', 0), m.mapped()], ['exclusive', []]);
    },
  );

  t.test(`exit (${profile}): exclusive pages are freed, but for those of grants; the mappings are gone`, async (t) => {
    const m = exclusiveMachine(profile, 2);
    const [first, second] = [m.pfn('A', 0), m.pfn('A', 1)];
    m.take(0, 1);
    m.make(1, 1);
    m.program();
    m.mark();
    t.equal(errno(m.run({ op: 'exit', task: 'A' })), '0');
    t.strictSame(
      m.trace('notify').map(({ callback, mmu_event }) => `${callback} ${mmu_event}`),
      ['invalidate RELEASE', 'invalidate UNMAP'],
    );
    t.strictSame([m.counts(first), m.counts(second), m.mapped()], [[0, 0], [1, 0], []]);
    t.equal(errno(m.make(0, 1, { grant: 'late' })), 'ESRCH');
    t.equal(errno(m.dmirror(0, 1)), 'EINVAL', 'the test driver cannot take its mm');
    m.drop();
    t.strictSame(m.counts(second), [0, 0]);
    t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D' })), '0');
  });

  t.test(`exit (${profile}): it waits until a call of the device has ended`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const made = m.make(0, 1, { stop_at: 'after_gup' });
    const exit = m.run({ op: 'exit', task: 'A' });
    t.equal(m.outcomeOf(exit), null);
    m.resume(made);
    t.equal(m.outcomeOf(exit)?.ret, 0);
    m.drop();
  });

  t.test(
    `mprotect (${profile}): a writable entry becomes a readable one, with PROTECTION_VMA, and comes back read-only`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const pfn = m.pfn('A', 0);
      m.take(0, 1);
      m.mark();
      m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot: R });
      t.strictSame([m.events(), m.entry('A', 0), m.mapped()], [['PROTECTION_VMA/null 0-1'], 'exclusive', []]);
      m.mark();
      t.equal(m.cpuReads('A', 0), 1);
      t.strictSame([m.events(), m.entry('A', 0), m.pfn('A', 0)], [['EXCLUSIVE/null 0-1'], 'read-only', pfn]);
      m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot: RW });
      m.mark();
      m.cpuWrites('A', 0, 9);
      t.strictSame([m.events(), m.pfn('A', 0)], [[], pfn], 'a write then goes through the rules of any private page');
    },
  );

  t.test(`restore (${profile}): a write is not made by the restore itself; the access looks again`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot: R });
    m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot: RW });
    m.mark();
    m.cpuWrites('A', 0, 9);
    t.strictSame(m.events(), ['EXCLUSIVE/null 0-1'], 'restored read-only, then reused');
    t.equal(m.cpuReads('A', 0), 9);
  });

  t.test(`restore (${profile}): two accesses that meet restore the page once, and tell the device twice`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    m.run({ op: 'put_task', task: 'A2', rlimit_memlock: 0n, cap_ipc_lock: false, thread_of: 'A' });
    m.mark();
    const first = m.read('A', 0, { stop_at: 'after_start' });
    const second = m.faults('A2', 0, 0);
    t.match(m.waitsFor(second), /^page_lock:/);
    m.resume(first);
    t.equal(m.outcomeOf(second)?.fields.fault, 'NOPAGE');
    t.strictSame(m.events(), ['EXCLUSIVE/null 0-1', 'EXCLUSIVE/null 0-1']);
    t.strictSame(m.counts(m.pfn('A', 0)), [1, 1]);
  });

  t.test(`reclaim (${profile}): an exclusive page is not freed, and its entry stays`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.take(0, 1);
    m.mark();
    t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'referenced' });
    t.strictSame([m.events(), m.entry('A', 0), m.mapped()], [[], 'exclusive', ['0 atomic']]);
  });

  t.test(`KSM (${profile}): EFAULT: an exclusive page is no page to merge, and nobody is told`, async (t) => {
    const m = exclusiveMachine(profile, 2);
    m.take(0, 1);
    m.mark();
    const merge = { op: 'ksm_merge', task: 'A', addr: at(0), with: { task: 'A', addr: at(1) } } as const;
    t.equal(errno(m.run(merge)), 'EFAULT');
    t.strictSame([m.events(), m.entry('A', 0)], [[], 'exclusive']);
  });

  t.test(`mremap (${profile}): an exclusive entry moves with its area, and the device loses its mapping`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.take(0, 1);
    const move = { addr: at(0), old_length: bytes(1), new_length: bytes(1), new_addr: at(20) };
    m.run({ op: 'mremap', task: 'A', ...move });
    t.strictSame([m.entry('A', 0), m.entry('A', 20), m.pfn('A', 20), m.mapped()], ['none', 'exclusive', pfn, []]);
    t.equal(m.cpuReads('A', 20), 1);
  });

  t.test(`the test driver (${profile}): 64 pages at a time; EBUSY where one of a chunk is not granted`, async (t) => {
    const m = exclusiveMachine(profile, 70);
    m.run({ op: 'lock', task: 'B', lock: `page_lock:${m.pfn('A', 66)}` });
    t.equal(errno(m.dmirror(0, 70)), 'EBUSY');
    t.equal(m.mapped().length, 69, 'the first chunk, and what was granted of the second');
    t.equal(m.check_exclusive(66, 1), '0');
    t.equal(m.host.consumers.exclusive.devices.get('D')?.grants.size, 0, 'no grant is left');
    t.strictSame([...m.host.locks.keys()], [`page_lock:${m.pfn('A', 66)}`]);
    m.run({ op: 'unlock', task: 'B', lock: `page_lock:${m.pfn('A', 66)}` });
    t.equal(errno(m.dmirror(64, 6)), '0');
    t.equal(m.check_exclusive(66, 1), 'EPERM');
  });

  t.test(
    `the test driver (${profile}): EBUSY where GUP finds fewer pages, or none; then nothing of the chunk is mapped`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      t.equal(errno(m.dmirror(0, 3)), 'EBUSY');
      t.strictSame([m.mapped(), m.entry('A', 0)], [[], 'exclusive']);
      t.equal(errno(m.dmirror(2, 1)), 'EBUSY');
    },
  );

  t.test(
    `the test driver (${profile}): a DONTNEED between the grant and the map is found: SPTE_IN_WINDOW and STALE_SECONDARY`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const range = { start: at(0), length: bytes(1) };
      const ioctl = m.run({ op: 'dmirror_exclusive', device: 'D', ...range, stop_at: 'before_insert' });
      const zap = m.run({
        op: 'madvise',
        task: 'A',
        addr: at(0),
        length: bytes(1),
        advice: 'DONTNEED',
        stop_at: 'after_start',
      });
      t.equal(m.resume(ioctl)?.ret, 0);
      m.resume(zap);
      t.strictSame(m.codes(), ['SPTE_IN_WINDOW', 'STALE_SECONDARY']);
    },
  );

  t.test(
    `a driver that asks read_retry() (${profile}) maps nothing after a DONTNEED between the grant and the map`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const sequence = m.begin();
      m.make(0, 1);
      m.run({ op: 'madvise', task: 'A', addr: at(0), length: bytes(1), advice: 'DONTNEED' });
      t.strictSame(m.program(sequence).fields, { collided: true });
      t.strictSame([m.mapped(), m.codes()], [[], []]);
      t.strictSame([m.program().ret, m.codes()], [1, ['STALE_SECONDARY']], 'one that does not ask maps a lost page');
    },
  );

  t.test(`owner filter (${profile}): without it a device collides with itself for ever`, async (t) => {
    for (const owner_filter of [true, false]) {
      const m = exclusiveMachine(profile, 1, { owner_filter });
      for (let attempt = 0; attempt < 3; attempt++) {
        m.read('A', 0);
        const sequence = m.begin();
        m.make(0, 1);
        t.equal(m.retry(sequence), owner_filter ? 0 : 1);
        m.drop();
      }
    }
  });

  t.test(
    `owner filter (${profile}): a device does not store the sequence of its own EXCLUSIVE, but of every other event`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      const before = m.ownSequence();
      m.make(0, 1);
      t.equal(m.ownSequence(), before);
      m.munmap('A', 1, 1);
      t.not(m.ownSequence(), before);
    },
  );

  t.test(
    `a plain notifier (${profile}) is called for the device's own EXCLUSIVE, and for one without an owner`,
    async (t) => {
      const m = exclusiveMachine(profile, 1, { kind: 'plain' });
      m.make(0, 1);
      t.equal(m.program().ret, 1);
      m.drop();
      t.strictSame(m.mapped(), ['0 atomic']);
      t.equal(m.cpuReads('A', 0), 1);
      t.strictSame(
        m.trace('notify').map(({ callback, owner }) => `${callback} ${owner}`),
        ['invalidate_range_start D', 'invalidate_range_start null'],
      );
      t.strictSame([m.mapped(), m.codes()], [[], []]);
      t.equal(errno(m.mirror(0, 1)), 'EINVAL', 'without a sequence nothing tells a reader that it has collided');
      t.equal(errno(m.make(0, 1)), '1');
      t.equal(errno(m.program(3)), 'EINVAL');
      m.run({ op: 'exit', task: 'A' });
      m.drop();
      t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D' })), '0');
    },
  );

  t.test(`OOM reap (${profile}): -EAGAIN of a device whose mutex is taken: its area is skipped`, async (t) => {
    for (const kind of ['interval', 'plain'] as const) {
      const m = exclusiveMachine(profile, 1, { kind });
      m.take(0, kind === 'interval' ? 1 : 0);
      m.run({ op: 'lock', task: 'B', lock: 'mutex:exclusive:D' });
      t.equal(errno(m.run({ op: 'oom_reap', task: 'A' })), 'EAGAIN');
      m.run({ op: 'unlock', task: 'B', lock: 'mutex:exclusive:D' });
      t.equal(errno(m.run({ op: 'oom_reap', task: 'A' })), '0');
      t.strictSame([m.mapped(), m.entry('A', 0), m.codes()], [[], 'none', []]);
    }
  });

  t.test(
    `the mirror (${profile}): a snapshot shows an exclusive page as not valid and leaves it; a request restores it`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      const pfn = m.pfn('A', 0);
      m.take(0, 1);
      m.mark();
      const snapshot = m.mirror(0, 3);
      t.equal(snapshot.ret, 1);
      t.strictSame(snapshot.fields.pages, [
        { addr: at(0), valid: false, writable: false, pfn: null },
        { addr: at(1), valid: true, writable: true, pfn: m.pfn('A', 1) },
        { addr: at(2), valid: false, writable: false, pfn: null },
      ]);
      t.strictSame([m.events(), m.entry('A', 0), m.mapped()], [[], 'exclusive', ['0 atomic']]);
      const asked = m.mirror(0, 1, { fault: true, write: true });
      t.strictSame([asked.ret, asked.fields.pages], [1, [{ addr: at(0), valid: true, writable: true, pfn }]]);
      t.strictSame([m.events(), m.entry('A', 0), m.mapped()], [['EXCLUSIVE/null 0-1'], 'writable', ['0 write']]);
      t.strictSame([m.deviceReads(0), m.codes()], [1, []]);
    },
  );

  t.test(
    `the mirror (${profile}): EPERM before any fault: a write to an area that may not be written; EFAULT: a hole`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.take(0, 1);
      m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot: R });
      m.mark();
      t.equal(errno(m.mirror(0, 1, { fault: true, write: true })), 'EPERM');
      t.strictSame([m.events(), m.entry('A', 0)], [[], 'exclusive']);
      t.equal(errno(m.mirror(5, 1, { fault: true })), 'EFAULT');
      t.equal(m.mirror(0, 1, { fault: true }).ret, 1);
      t.strictSame(m.mapped(), ['0 read']);
      t.equal(m.deviceWrites(0, 1), 'EFAULT');
    },
  );

  t.test(
    `the mirror (${profile}): a walk waits for an open invalidation, and begins again where it has collided`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      const zap = { op: 'madvise', task: 'A', length: bytes(1), advice: 'DONTNEED' } as const;
      const open = m.run({ ...zap, addr: at(0), stop_at: 'after_start' });
      const range = { start: at(0), length: bytes(2), fault: true, write: false };
      const waits = m.run({ op: 'mirror_range', device: 'D', ...range });
      t.equal(m.waitsFor(waits), 'invalidate_seq:mm-1');
      m.resume(open);
      t.equal(m.outcomeOf(waits)?.ret, 2);
      const collides = m.run({ op: 'mirror_range', device: 'D', ...range, stop_at: 'before_insert' });
      m.run({ ...zap, addr: at(1) });
      m.mark();
      t.equal(m.resume(collides)?.ret, 2);
      t.strictSame(m.mapped(), ['0 read', '1 read']);
      t.equal(m.trace('phase').filter(({ phase }) => phase === 'after_seq_snapshot').length, 1, 'a second attempt');
      t.strictSame(m.codes(), []);
    },
  );

  t.test(`a device that has mapped a page for reads (${profile}) loses it when another has it to itself`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.open('D2');
    m.mirror(0, 1, { fault: true, device: 'D2' });
    t.strictSame(m.mapped('D2'), ['0 write']);
    m.take(0, 1);
    t.strictSame([m.mapped('D'), m.mapped('D2'), m.codes()], [['0 atomic'], [], []]);
  });

  t.test(`a second device (${profile}) waits for the page lock of the first one's grant`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.open('D2');
    m.make(0, 1);
    const made = m.make(0, 1, { device: 'D2' });
    t.equal(m.waitsFor(made), `page_lock:${pfn}`);
    t.equal(errno(m.make(0, 1, { device: 'D2' })), 'EEXIST', 'the grant is being made');
    t.equal(errno(m.drop({ device: 'D2' })), 'EBUSY');
    t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D2' })), 'EBUSY', 'a call goes on');
    m.drop();
    t.strictSame(m.slots(m.outcomeOf(made) as Outcome), ['granted']);
    t.equal(m.lockOf(pfn), 'grant:D2/g');
  });

  t.test(
    `a checkpoint (${profile}) in the middle of a call, and with a grant, goes on as the host itself does`,
    async (t) => {
      for (const stop_at of ['after_gup', 'after_start', 'after_pte_clear', 'after_pte_set', 'after_end'] as const) {
        const m = exclusiveMachine(profile, 2);
        const made = m.make(0, 2, { stop_at });
        const again = new ExclusiveMachine(restored(m.m), []);
        for (const each of [m, again]) {
          each.resume(made);
          each.program();
          each.mark();
          each.drop();
          each.read('A', 0);
        }
        t.strictSame(again.slots(again.outcomeOf(made) as Outcome), ['granted', 'granted']);
        t.strictSame([again.events(), again.mapped()], [m.events(), m.mapped()], stop_at);
        t.strictSame(again.mapped(), ['1 atomic']);
      }
    },
  );

  t.test(
    `refusals (${profile}): EEXIST, EINVAL, EOVERFLOW, EBUSY, E2BIG, ESRCH and objects that do not exist`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const space = { kind: 'interval', owner_filter: true } as const;
      const put = { op: 'put_exclusive_device', ...space, start: 0n, length: 4096n } as const;
      t.equal(m.open('D').created, false, 'the same body again');
      t.equal(errno(m.open('D', { owner_filter: false })), 'EEXIST');
      t.equal(errno(m.open('D', { task: 'B' })), 'EEXIST');
      t.equal(errno(m.open('E', { kind: 'plain', owner_filter: true })), 'EINVAL');
      t.equal(errno(m.run({ ...put, device: 'E', task: 'A', length: 0n })), 'EOVERFLOW');
      t.equal(errno(m.run({ ...put, device: 'E', task: 'A', start: 2n ** 64n - 1n, length: 2n })), 'EOVERFLOW');
      t.equal(m.host.consumers.exclusive.devices.size, 1);
      t.equal(errno(m.run({ ...put, device: 'E', task: 'nobody' })), 'NOT_FOUND');
      t.equal(errno(m.make(0, 1, { device: 'E' })), 'NOT_FOUND');
      t.equal(errno(m.drop()), 'NOT_FOUND');
      t.equal(errno(m.program()), 'NOT_FOUND');
      t.equal(errno(m.make(0, 1025)), 'E2BIG');
      m.make(0, 1);
      t.equal(errno(m.make(0, 1)), 'EEXIST');
      t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D' })), 'EBUSY', 'it holds a grant');
      t.equal(errno(m.run({ op: 'remove_interval_notifier', id: 'exclusive-D' })), 'EBUSY');
      m.drop();
      const rw = { op: 'device_access', device: 'D', addr: at(0) } as const;
      t.equal(errno(m.run({ ...rw, write: false, length: 0 })), 'EINVAL');
      t.equal(errno(m.run({ ...rw, write: false })), 'EINVAL');
      t.equal(errno(m.run({ ...rw, write: true, length: 1 })), 'EINVAL');
      t.equal(errno(m.run({ ...rw, write: false, length: 2 ** 22 + 1 })), 'E2BIG');
      t.equal(errno(m.run({ ...rw, addr: 0x7ffffffff000n, write: false, length: 1 })), 'EFAULT');
      t.equal(errno(m.run({ ...rw, write: false, length: 1 })), 'EFAULT');
      m.run({ op: 'exit', task: 'B' });
      t.equal(errno(m.run({ ...put, device: 'E', task: 'B' })), 'ESRCH');
      t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D' })), '0');
      t.equal(errno(m.run({ op: 'delete_exclusive_device', device: 'D' })), 'NOT_FOUND');
    },
  );

  t.test(
    `EDEADLK (${profile}): a call whose own callback waits for its caller unwinds, and leaves nothing behind`,
    async (t) => {
      const m = exclusiveMachine(profile, 2, { owner_filter: false });
      m.run({ op: 'lock', task: 'A', lock: 'mutex:exclusive:D' });
      for (const made of [m.make(0, 2), m.dmirror(0, 2)]) t.equal(errno(made), 'EDEADLK');
      t.strictSame([...m.host.locks.keys()], ['mutex:exclusive:D']);
      t.strictSame([m.counts(m.pfn('A', 0)), m.entry('A', 0)], [[1, 1], 'writable']);
      t.equal(m.host.consumers.exclusive.devices.get('D')?.grants.size, 0);
      m.run({ op: 'unlock', task: 'A', lock: 'mutex:exclusive:D' });
      t.equal(errno(m.dmirror(0, 2)), '0');
    },
  );

  t.test(
    `the mirror (${profile}): all pages that are asked for are restored before the walk looks again`,
    async (t) => {
      const m = exclusiveMachine(profile, 20);
      m.take(0, 20);
      m.mark();
      t.equal(m.mirror(0, 20, { fault: true }).ret, 20);
      t.equal(m.events().length, 20);
      t.equal(m.trace('phase').filter(({ phase }) => phase === 'after_seq_snapshot').length, 2, 'two attempts');
      t.strictSame([m.mapped().length, m.codes()], [20, []]);
    },
  );

  t.test(`the mirror (${profile}): EBUSY after MAX_MIRROR_ATTEMPTS collisions`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const range = { start: at(0), length: bytes(1), fault: true, write: false };
    const walk = m.run({ op: 'mirror_range', device: 'D', ...range, stop_at: 'before_insert' });
    for (let attempt = 1; attempt <= 16; attempt++) {
      t.equal(m.outcomeOf(walk), null, `attempt ${attempt}`);
      m.run({ op: 'madvise', task: 'A', addr: at(0), length: bytes(1), advice: 'DONTNEED' });
      m.resume(walk, { stop_at: 'before_insert' });
    }
    t.equal(m.outcomeOf(walk)?.refusal?.errno, 'EBUSY');
    t.strictSame([m.mapped(), m.host.locks.size], [[], 0]);
  });

  t.test(`ENOSPC (${profile}): MAX_EXCLUSIVE_DEVICES and MAX_EXCLUSIVE_GRANTS`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const { devices } = m.host.consumers.exclusive;
    const device = devices.get('D');
    for (let i = 0; i < 1023; i++) device?.grants.set(`g${i}`, { id: `g${i}`, slots: [], busy: false });
    t.equal(errno(m.make(0, 1)), '1');
    t.equal(errno(m.make(0, 1, { grant: 'more' })), 'ENOSPC');
    t.equal(errno(m.dmirror(0, 1)), 'ENOSPC');
    while (devices.size < 256) m.open(`D${devices.size}`, { kind: 'plain' });
    t.equal(errno(m.open('more')), 'ENOSPC');
  });
}
