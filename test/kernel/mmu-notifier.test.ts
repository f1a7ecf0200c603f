// Cases of section B: who is told of an invalidation, in which order, with which numbers; and the rules that a subscriber can break.

import t, { type Test } from 'tap';
import { MAX_NOTIFIER_USERS } from '../../src/kernel/mm/mmu-notifier/get.ts';
import type { PlainNotifier } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { at, bytes, lock, MM, NotifierMachine, OBEDIENT, START_END, scripted } from './notifier-machine.ts';

const ALL = ['4.10', '5.4', '5.8', '5.15', '6.18'];
const WITH_INTERVALS = ['5.8', '5.15', '6.18'];
const WITHOUT_INTERVALS = ['4.10', '5.4'];

/** The same behaviour in each of some profiles. */
function each(profiles: string[], title: string, body: (t: Test, m: NotifierMachine, profile: string) => void): void {
  for (const profile of profiles)
    t.test(`${title} (${profile})`, async (t) => body(t, new NotifierMachine(profile), profile));
}

each(ALL, 'B-1 of two plain notifiers the one registered last is told first, of start and of end', (t, m) => {
  m.plain('N1', START_END);
  m.plain('N2', START_END);
  m.access(3, true);
  m.munmap(0, 8);
  const order = ['N2.invalidate_range_start', 'N1.invalidate_range_start', 'N2.invalidate_range_end'];
  t.same(m.called(), [...order, 'N1.invalidate_range_end']);
  t.same(m.subs.list, ['N2', 'N1']);
});

each(WITH_INTERVALS, 'B-2 an interval notifier is told of a start before plain notifiers, and of no end', (t, m) => {
  m.interval('I', 0, 8);
  m.plain('N', START_END);
  m.invalidate(0, 8);
  t.same(m.called(), ['I.invalidate', 'N.invalidate_range_start', 'N.invalidate_range_end']);
});

each(WITHOUT_INTERVALS, 'B-2 there are no interval notifiers: ENODEV', (t, m) => {
  const refused = m.interval('I', 0, 8);
  t.equal(refused.errno, 'ENODEV');
  t.equal(m.run({ op: 'interval_read_begin', id: 'I' }).errno, 'ENODEV');
  t.equal(m.mm.subscriptions, null);
});

each(ALL, 'B-3 a plain notifier is told of every range of the mm, wherever its interest lies', (t, m) => {
  m.plain('N', START_END);
  m.invalidate(40, 1);
  t.same(m.calls('N'), { invalidate_range_start: 1, invalidate_range_end: 1 });
});

each(WITH_INTERVALS, 'B-3 an interval notifier is told only of ranges that meet it', (t, m) => {
  m.interval('I', 8, 4);
  for (const first of [0, 6, 7, 8, 11, 12]) m.invalidate(first, 1);
  t.same(m.calls('I'), { invalidate: 2 });
  m.invalidate(0, 64);
  t.same(m.calls('I'), { invalidate: 3 });
});

const FAILS = { invalidate_range_start: { returns: -11 } };

each(
  ['4.10', '5.4', '5.8'],
  'a start that fails where nobody may block: all starts are called, no end, EAGAIN',
  (t, m) => {
    m.plain('N1', START_END);
    m.plain('N2', ['invalidate_range_start'], FAILS);
    m.plain('N3', START_END);
    t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
    t.same(m.called(), ['N3.invalidate_range_start', 'N2.invalidate_range_start', 'N1.invalidate_range_start']);
    t.same(m.codes, ['UNBALANCED', 'UNBALANCED'], 'N1 and N3 count a start that never ends');
  },
);

each(
  ['5.15', '6.18'],
  'a start that fails where nobody may block: the kernel itself calls every end, EAGAIN',
  (t, m) => {
    m.plain('N1', START_END);
    m.plain('N2', ['invalidate_range_start'], FAILS);
    m.plain('N3', START_END);
    t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
    t.same(m.called().slice(3), ['N3.invalidate_range_end', 'N1.invalidate_range_end']);
    t.same(m.codes, []);
  },
);

each(['5.15', '6.18'], 'B-5 the start of a notifier that has an end fails: FALLIBLE_WITH_END', (t, m) => {
  m.plain('N', START_END, FAILS);
  t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
  t.ok(m.codes.includes('FALLIBLE_WITH_END'));
  t.equal(m.splats('WARN').filter((text) => text.includes('failing-start-but-has-end')).length, 1);
  t.same(m.called(), ['N.invalidate_range_start', 'N.invalidate_range_end']);
});

each(
  ['5.15', '6.18'],
  'B-5 the OOM reaper leaves an area whose notifier refuses and has an end: EAGAIN, FALLIBLE_WITH_END',
  (t, m) => {
    m.plain('N', START_END, FAILS);
    const pfn = m.access(0, true).fields.pfn;
    t.equal(m.run({ op: 'oom_reap', task: 'T' }).errno, 'EAGAIN');
    t.ok(m.codes.includes('FALLIBLE_WITH_END'));
    t.equal(m.mm.page_table.pfn(Number(at(0) >> 12n)), pfn, 'the memory is left');
  },
);

each(
  WITH_INTERVALS,
  'B-6 the OOM reaper meets an interval notifier that answers false: EAGAIN, plain ones hear nothing',
  (t, m) => {
    m.interval('I', 0, 8, { invalidate: { returns: 0 } });
    m.plain('N', START_END);
    m.access(0, true);
    t.equal(m.run({ op: 'oom_reap', task: 'T' }).errno, 'EAGAIN');
    t.same(m.calls('N'), {});
    t.same(m.sequence('I').slice(0, 2), [4, 0]);
  },
);

each(ALL, 'B-5 twin: the OOM reaper takes what nobody refuses', (t, m) => {
  m.plain('N', START_END);
  m.access(0, true);
  t.equal(m.run({ op: 'oom_reap', task: 'T' }).ret, 0);
  t.same(m.called(), ['N.invalidate_range_start', 'N.invalidate_range_end']);
  t.same(m.codes, []);
  t.equal(m.mm.rss, 0);
});

each(ALL, 'B-5 twin: the start of a notifier without an end fails, and nobody minds', (t, m) => {
  m.plain('N', ['invalidate_range_start'], FAILS);
  t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
  t.same(m.codes, []);
  t.same(m.splats('WARN'), []);
});

each(['4.10', '5.4', '5.8'], 'B-5 twin: kernels that call no end after a failed start do not report it', (t, m) => {
  m.plain('N', START_END, FAILS);
  t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
  t.notOk(m.codes.includes('FALLIBLE_WITH_END'));
});

each(
  WITH_INTERVALS,
  'B-6 an interval notifier refuses a range that may not block: EAGAIN, plain ones hear nothing',
  (t, m) => {
    m.interval('I', 0, 8, { invalidate: { returns: 0 } });
    m.plain('N', START_END);
    t.equal(m.invalidate(0, 1, { blockable: false }).errno, 'EAGAIN');
    t.same(m.calls('N'), {});
    t.same(m.sequence('I').slice(0, 2), [4, 0]);
    t.same(m.codes, []);
  },
);

each(WITH_INTERVALS, 'B-6 twin: where it may block, a refusal is warned about and the range goes on', (t, m) => {
  m.interval('I', 0, 8, { invalidate: { returns: 0 } });
  m.plain('N', START_END);
  t.equal(m.invalidate(0, 1).ret, 0);
  t.same(m.calls('N'), { invalidate_range_start: 1, invalidate_range_end: 1 });
  t.match(m.splats('WARN').join(), /interval-refused-blockable/);
});

each(
  WITH_INTERVALS,
  'a plain notifier refuses where there are intervals: the range counts for ever, readers get EDEADLK',
  (t, m) => {
    m.plain('N', ['invalidate_range_start'], FAILS);
    m.interval('I', 0, 8);
    m.invalidate(0, 1, { blockable: false });
    t.same(m.sequence('I'), [3, 1, 3]);
    t.equal(m.read('I').errno, 'EDEADLK');
    t.match(m.splats('DEADLOCK').join(), /waits-for-the-end-of-an-invalidation-that-never-comes/);
  },
);

t.test('the fix failed_start_count takes the count back', async (t) => {
  const m = new NotifierMachine('5.15', ['failed_start_count']);
  m.plain('N', ['invalidate_range_start'], FAILS);
  m.interval('I', 0, 8);
  m.invalidate(0, 1, { blockable: false });
  t.same(m.sequence('I'), [4, 0, 3]);
  t.same(m.read('I').fields, { sequence: 3 });
});

each(ALL, 'B-7 a start that may block answers -EAGAIN: the operation goes on, BAD_ERRNO', (t, m, profile) => {
  m.plain('N', START_END, FAILS);
  m.access(0, true);
  t.equal(m.munmap(0, 1).ret, 0);
  t.equal(m.access(0, false).fields.fault, 'SIGSEGV', 'the memory is gone');
  t.ok(m.codes.includes('BAD_ERRNO'));
  const warned = m.splats('WARN').some((text) => text.includes('callback-failed-in-blockable-or-with-odd-error'));
  t.equal(warned, !['4.10', '5.4'].includes(profile));
});

each(['5.15', '6.18'], 'B-7 the end is told twice: once by the failing start, once by the caller', (t, m) => {
  m.plain('N1', START_END);
  m.plain('N2', START_END, FAILS);
  m.invalidate(0, 1);
  t.same(m.called(), [
    'N2.invalidate_range_start',
    'N1.invalidate_range_start',
    'N2.invalidate_range_end',
    'N1.invalidate_range_end',
    'N2.invalidate_range_end',
    'N1.invalidate_range_end',
  ]);
  t.equal(m.codes.filter((code) => code === 'UNBALANCED').length, 2, 'both get more ends than starts');
});

each(
  ALL,
  'B-8 EBUSY, which the mail of 7 March 2019 asks for, aborts a range that may not block, and is BAD_ERRNO',
  (t, m) => {
    m.plain('N', ['invalidate_range_start'], { invalidate_range_start: { returns: -16 } });
    t.not(m.invalidate(0, 1, { blockable: false }).errno, null);
    t.same(m.codes, ['BAD_ERRNO']);
  },
);

each(WITH_INTERVALS, 'B-9 the worked example of the sequence protocol, number by number', (t, m) => {
  m.interval('I', 0, 8);
  t.same(m.sequence('I'), [2, 0, 1]);
  const a = m.start(0, 2);
  t.same(m.sequence('I'), [3, 1, 3]);
  const reader = m.read('I').parked as string;
  t.equal(m.operation(reader).blocked_on, `invalidate_seq:${MM}`);
  const b = m.start(1, 2);
  t.same(m.sequence('I'), [3, 2, 3]);
  m.end(a);
  t.same(m.sequence('I'), [3, 1, 3]);
  t.equal(m.operation(reader).state, 'blocked');
  m.end(b);
  t.same(m.sequence('I'), [4, 0, 3]);
  t.same(m.operation(reader).outcome?.fields, { sequence: 3 });
  t.equal(m.retry('I', 3), 0);
  const c = m.start(0, 1);
  t.same(m.sequence('I'), [5, 1, 5]);
  t.equal(m.retry('I', 3), 1);
  t.equal(m.run({ op: 'interval_check_retry', id: 'I', sequence: 3 }).ret, 1);
  m.end(c);
});

each(WITH_INTERVALS, 'B-9 a reader that has collided starts over and is let through', (t, m) => {
  m.interval('I', 0, 8);
  const first = m.read('I').fields.sequence as number;
  t.equal(first, 1);
  m.invalidate(0, 1);
  t.equal(m.retry('I', first), 1);
  t.equal(m.retry('I', m.read('I').fields.sequence as number), 0);
});

each(
  WITH_INTERVALS,
  'an interval notifier that ignores an event it owns stores no sequence and does not collide',
  (t, m) => {
    m.interval('I', 0, 8, { invalidate: { returns: 1 } });
    const { sequence } = m.read('I').fields as { sequence: number };
    m.invalidate(0, 1);
    t.equal(m.retry('I', sequence), 0);
  },
);

each(
  WITH_INTERVALS,
  'B-10 an insert while a range is open that meets nobody makes the sequence odd: readers wait',
  (t, m) => {
    m.interval('I0', 40, 1);
    const open = m.start(0, 4);
    t.same(m.sequence('I0'), [2, 1, 1]);
    m.interval('I1', 0, 4);
    t.same(m.sequence('I1'), [3, 1, 3]);
    t.same(m.subs.intervals, ['I1', 'I0']);
    const reader = m.read('I1').parked as string;
    t.equal(m.operation(reader).state, 'blocked');
    m.end(open);
    t.same(m.operation(reader).outcome?.fields, { sequence: 3 });
    t.same(m.sequence('I1'), [4, 0, 3]);
  },
);

each(
  WITH_INTERVALS,
  'B-11 an insert while the sequence is odd is deferred, and removed again without a wait',
  (t, m) => {
    m.interval('I0', 0, 4);
    const open = m.start(0, 4);
    m.interval('I1', 0, 4);
    t.same([m.subs.intervals, m.subs.deferred], [['I0'], ['I1']]);
    t.equal(m.run({ op: 'remove_interval_notifier', id: 'I1' }).parked, undefined);
    t.same([m.subs.intervals, m.subs.deferred], [['I0'], []]);
    m.end(open);
    t.same(m.subs.intervals, ['I0']);
    t.same(m.called(), ['I0.invalidate']);
  },
);

each(
  WITH_INTERVALS,
  'B-11 a member of the tree leaves while the sequence is odd: the removal waits for the end',
  (t, m) => {
    m.interval('I', 0, 4);
    const open = m.start(0, 4);
    const removal = m.run({ op: 'remove_interval_notifier', id: 'I' }).parked as string;
    t.equal(m.operation(removal).state, 'blocked');
    t.same([m.subs.intervals, m.subs.deferred], [['I'], ['I']]);
    t.equal(m.run({ op: 'remove_interval_notifier', id: 'I' }).errno, 'EBUSY');
    t.equal(m.mm.count, 2);
    m.end(open);
    t.equal(m.operation(removal).state, 'done');
    t.same([m.subs.intervals, m.subs.deferred, m.mm.count], [[], [], 1]);
  },
);

each(WITH_INTERVALS, 'B-11 twin: an insert that waits deferred enters the tree with the end', (t, m) => {
  m.interval('I0', 0, 4);
  const open = m.start(0, 4);
  m.interval('I1', 0, 4);
  m.end(open);
  t.same([m.subs.intervals, m.subs.deferred], [['I0', 'I1'], []]);
  t.same(m.sequence('I1'), [4, 0, 3]);
});

/** The pages of the task: read first, so that a write breaks COW of the zero page. */
function breakCow(m: NotifierMachine, page = 0): number {
  m.access(page, false);
  const { now } = m;
  if (m.access(page, true).fields.fault !== 'NOPAGE') throw new Error('the page is not written');
  return now;
}

each(
  ['4.10', '5.4', '5.8', '5.15'],
  'B-13 a COW break calls invalidate_range once, under ptl, before the new entry is set',
  (t, m) => {
    m.plain('N', ['invalidate_range']);
    const since = breakCow(m);
    t.same(m.called(since), ['N.invalidate_range']);
    const order = m
      .trace(since)
      .flatMap(({ event, change }) => (event === 'pte' || event === 'notify' ? [change ?? event] : []));
    t.same(order, ['clear', 'notify', 'set']);
    const call = m.trace(since).find(({ event }) => event === 'notify');
    t.match(call?.locks_held, [/^mmap_lock:/, /^ptl:/]);
  },
);

t.test(
  'B-13 notifiers have no invalidate_range: EOPNOTSUPP; arch_invalidate_secondary_tlbs takes its place (6.18)',
  async (t) => {
    const m = new NotifierMachine('6.18');
    t.equal(m.plain('N', ['invalidate_range']).errno, 'EOPNOTSUPP');
    t.equal(m.plain('N', ['change_pte']).errno, 'EOPNOTSUPP');
    t.equal(m.plain('N', ['arch_invalidate_secondary_tlbs', 'invalidate_range_end']).errno, 'EINVAL');
    m.plain('N', ['arch_invalidate_secondary_tlbs']);
    const since = breakCow(m);
    t.same(m.called(since), ['N.arch_invalidate_secondary_tlbs']);
    m.invalidate(0, 1);
    t.same(m.calls('N'), { arch_invalidate_secondary_tlbs: 1 }, 'an end does not call it');
  },
);

each(
  ['4.10', '5.4', '5.8', '5.15'],
  'B-13 twin: an end calls invalidate_range, but not where only_end says so',
  (t, m) => {
    m.plain('N', ['invalidate_range']);
    m.invalidate(0, 1);
    t.same(m.calls('N'), { invalidate_range: 1 });
    const range = { start: at(0), end: at(1), event: 'CLEAR', blockable: true } as const;
    m.run({ op: 'invalidate', mm: MM, ...range, only_end: true });
    t.same(m.calls('N'), { invalidate_range: 1 });
  },
);

const VHOST = 'Re: [RFC PATCH V2 5/5] vhost: access vq metadata through kernel virtual address, 7 Mar 2019';
const TAKES_VQ = { actions: [lock('mutex:vq')] };

each(['4.10', '5.4', '5.8', '5.15'], `B-14 a mutex in invalidate_range is SLEEP_IN_ATOMIC: ${VHOST}`, (t, m) => {
  m.plain('vhost', ['invalidate_range'], { invalidate_range: TAKES_VQ });
  breakCow(m);
  t.same(m.codes, ['SLEEP_IN_ATOMIC']);
  const [found] = m.host.violations.since(0, 1).items;
  t.match(found, { notifier: 'vhost', callback: 'invalidate_range', locks_held: [/^mmap_lock:/, /^ptl:/] });
});

each(
  ['4.10', '5.4', '5.8', '5.15'],
  `B-14 it is found too where invalidate_range is called from an end: ${VHOST}`,
  (t, m) => {
    m.plain('vhost', ['invalidate_range'], { invalidate_range: TAKES_VQ });
    m.invalidate(0, 1);
    t.same(m.codes, ['SLEEP_IN_ATOMIC']);
  },
);

each(
  ['4.10', '5.4', '5.8', '5.15'],
  `B-14 twin: a spinlock in invalidate_range, a mutex in a start that may block: ${VHOST}`,
  (t, m) => {
    m.plain('vhost', ['invalidate_range', 'invalidate_range_start'], {
      invalidate_range: { actions: [lock('spinlock:vq')] },
      invalidate_range_start: TAKES_VQ,
    });
    breakCow(m);
    m.invalidate(0, 1);
    t.same(m.codes, []);
  },
);

each(ALL, 'SLEEP_IN_NONBLOCK: a start of a range that is not blockable sleeps', (t, m) => {
  m.plain('N', START_END, { invalidate_range_start: { actions: [{ action: 'sleep' }] } });
  m.invalidate(0, 1, { blockable: false });
  t.same(m.codes, ['SLEEP_IN_NONBLOCK']);
});

each(ALL, 'SLEEP_IN_NONBLOCK: an end of a range that is not blockable takes a mutex', (t, m) => {
  m.plain('N', START_END, { invalidate_range_end: TAKES_VQ });
  m.invalidate(0, 1, { blockable: false });
  t.same(m.codes, ['SLEEP_IN_NONBLOCK']);
});

each(ALL, 'SLEEP_IN_NONBLOCK twin: in a range that may block both may sleep', (t, m) => {
  m.plain('N', START_END, {
    invalidate_range_start: { actions: [{ action: 'sleep' }] },
    invalidate_range_end: TAKES_VQ,
  });
  m.invalidate(0, 1);
  t.same(m.codes, []);
});

each(ALL, 'SELF_RECURSION and DEADLOCK: a start takes a mutex that its own thread holds', (t, m) => {
  m.plain('N1', ['invalidate_range_start'], { invalidate_range_start: TAKES_VQ });
  m.plain('N2', ['invalidate_range_start'], { invalidate_range_start: { actions: [lock('mutex:vq', true)] } });
  t.equal(m.invalidate(0, 1).errno, 'EDEADLK');
  t.same(m.codes, ['SELF_RECURSION', 'DEADLOCK']);
  t.equal(m.host.locks.size, 0, 'the thread ends without a lock');
});

each(ALL, 'a start that ends in a deadlock: who was told of it is told of the end, and nobody else', (t, m) => {
  m.plain('N1', START_END);
  m.plain('N2', START_END, { invalidate_range_start: TAKES_VQ });
  m.plain('N3', START_END, { invalidate_range_start: { actions: [lock('mutex:vq', true)] } });
  m.access(0, true);
  t.equal(m.munmap(0, 1).errno, 'EDEADLK');
  t.notOk(m.called().includes('N1.invalidate_range_start'));
  t.notOk(m.called().includes('N1.invalidate_range_end'));
  t.ok(m.called().includes('N3.invalidate_range_end'));
  t.same(m.codes, ['SELF_RECURSION', 'DEADLOCK']);
});

each(ALL, 'SELF_RECURSION twin: the two take different mutexes', (t, m) => {
  m.plain('N1', ['invalidate_range_start'], { invalidate_range_start: TAKES_VQ });
  m.plain('N2', ['invalidate_range_start'], { invalidate_range_start: { actions: [lock('mutex:other')] } });
  t.equal(m.invalidate(0, 1).ret, 0);
  t.same(m.codes, []);
});

each(ALL, 'RECLAIM_UNDER_NOTIFIER_LOCK: a release allocates under a mutex that starts take', (t, m) => {
  m.plain('N1', ['invalidate_range_start'], { invalidate_range_start: TAKES_VQ });
  m.invalidate(0, 1);
  m.plain('N2', ['release'], { release: { actions: [lock('mutex:vq'), { action: 'alloc' }] } });
  t.same(m.codes, []);
  m.run({ op: 'unregister_mmu_notifier', id: 'N2' });
  t.same(m.codes, ['RECLAIM_UNDER_NOTIFIER_LOCK']);
  t.equal(m.host.violations.since(0, 1).items[0]?.paths.length, 2);
});

each(ALL, 'RECLAIM_UNDER_NOTIFIER_LOCK: the start learns of the mutex after the allocation under it', (t, m) => {
  m.plain('N2', ['release'], { release: { actions: [lock('mutex:vq'), { action: 'alloc' }] } });
  m.run({ op: 'unregister_mmu_notifier', id: 'N2' });
  m.plain('N1', ['invalidate_range_start'], { invalidate_range_start: TAKES_VQ });
  m.invalidate(0, 1);
  t.same(m.codes, ['RECLAIM_UNDER_NOTIFIER_LOCK']);
});

each(ALL, 'RECLAIM_UNDER_NOTIFIER_LOCK twin: it allocates under another mutex, or before it takes it', (t, m) => {
  m.plain('N1', ['invalidate_range_start'], { invalidate_range_start: TAKES_VQ });
  m.invalidate(0, 1);
  const actions = [lock('mutex:other'), { action: 'alloc' } as const, lock('mutex:vq')];
  m.plain('N2', ['release'], { release: { actions } });
  m.run({ op: 'unregister_mmu_notifier', id: 'N2' });
  t.same(m.codes, []);
});

each(
  ALL,
  `LOCK_INVERSION: the page lock under the vq mutex, and the vq mutex under the page lock: ${VHOST}`,
  (t, m) => {
    m.access(0, true);
    const page = m.mm.page_table.pfn(Number(at(0) >> 12n));
    const dirty = { action: 'dirty_lock', page: Number(at(0) >> 12n) } as const;
    m.plain('worker', ['release'], { release: { actions: [lock('mutex:vq'), dirty] } });
    m.run({ op: 'unregister_mmu_notifier', id: 'worker' });
    t.same(m.codes, []);
    m.plain('vhost', ['release'], { release: { actions: [lock(`page_lock:${page}`), lock('mutex:vq')] } });
    m.run({ op: 'unregister_mmu_notifier', id: 'vhost' });
    t.same(m.codes, ['LOCK_INVERSION']);
    const [found] = m.host.violations.since(0, 1).items;
    t.match(found?.paths, [/page_lock -> mutex:vq .*vhost\.release/, /mutex:vq -> page_lock .*worker\.release/]);
    t.match(found?.locks_held, [`page_lock:${page}`]);
  },
);

each(ALL, `LOCK_INVERSION twin: set_page_dirty() takes no page lock: ${VHOST}`, (t, m) => {
  m.access(0, true);
  const page = m.mm.page_table.pfn(Number(at(0) >> 12n));
  const dirty = { action: 'dirty', page: Number(at(0) >> 12n) } as const;
  m.plain('worker', ['release'], { release: { actions: [lock('mutex:vq'), dirty] } });
  m.run({ op: 'unregister_mmu_notifier', id: 'worker' });
  m.plain('vhost', ['release'], { release: { actions: [lock(`page_lock:${page}`), lock('mutex:vq')] } });
  m.run({ op: 'unregister_mmu_notifier', id: 'vhost' });
  t.same(m.codes, []);
});

each(
  ['5.8', '5.15'],
  'SLEEP_IN_ATOMIC: what a client calls inside its callback runs where the callback runs',
  (t, m) => {
    m.client('N', ['invalidate_range']);
    m.interval('I', 32, 1);
    m.invalidate(0, 1);
    m.run({ op: 'interval_read_begin', id: 'I' }, m.waiting.id);
    t.same(m.codes, ['SLEEP_IN_ATOMIC']);
    m.run({ op: 'interval_read_begin', id: 'I' });
    t.same(m.codes, ['SLEEP_IN_ATOMIC'], 'another thread may sleep');
    m.ack();
  },
);

each(ALL, 'SLEEP_IN_ATOMIC: free_notifier runs with bottom halves off', (t, m) => {
  const id = m.get('O6', { free_notifier: { actions: [{ action: 'sleep' }] } }).fields.id as string;
  m.run({ op: 'put_mmu_notifier', id });
  t.same(m.codes, ['SLEEP_IN_ATOMIC']);
});

each(WITH_INTERVALS, 'WAIT_UNDER_CALLBACK_LOCK and DEADLOCK: a callback removes its own interval notifier', (t, m) => {
  const [start, length] = [at(0), bytes(4)];
  m.run({ op: 'insert_interval_notifier', mm: MM, id: 'I', start, length, handler: { kind: 'poll' } });
  const invalidation = m.invalidate(0, 1).parked as string;
  t.equal(m.run({ op: 'remove_interval_notifier', id: 'I' }, m.waiting.id).errno, 'EDEADLK');
  t.same(m.codes, ['WAIT_UNDER_CALLBACK_LOCK', 'DEADLOCK']);
  t.same([m.subs.intervals, m.subs.deferred], [['I'], []], 'refused unexecuted');
  m.ack(1);
  t.equal(m.operation(invalidation).outcome?.ret, 0);
  t.equal(m.run({ op: 'remove_interval_notifier', id: 'I' }).ret, 0);
});

each(WITH_INTERVALS, 'WAIT_UNDER_CALLBACK_LOCK twin: another thread removes it, and waits', (t, m) => {
  const [start, length] = [at(0), bytes(4)];
  m.run({ op: 'insert_interval_notifier', mm: MM, id: 'I', start, length, handler: { kind: 'poll' } });
  m.invalidate(0, 1);
  const removal = m.run({ op: 'remove_interval_notifier', id: 'I' }).parked as string;
  t.equal(m.operation(removal).state, 'blocked');
  m.ack(1);
  t.equal(m.operation(removal).outcome?.ret, 0);
  t.same(m.codes, []);
});

each(ALL, 'DEADLOCK: unregistering inside a callback would wait for the callback', (t, m) => {
  m.client('N', ['invalidate_range_end']);
  const invalidation = m.invalidate(0, 1).parked as string;
  t.equal(m.run({ op: 'unregister_mmu_notifier', id: 'N' }, m.waiting.id).errno, 'EDEADLK');
  t.same(m.codes, ['WAIT_UNDER_CALLBACK_LOCK', 'DEADLOCK']);
  t.match(m.splats('DEADLOCK').join(), /grace-period-inside-a-callback/);
  t.same(m.subs.list, ['N'], 'refused unexecuted');
  m.ack();
  t.equal(m.operation(invalidation).outcome?.ret, 0);
});

each(ALL, 'DEADLOCK twin: another thread unregisters, and waits until the callback has returned', (t, m) => {
  m.client('N', ['invalidate_range_start', 'invalidate_range_end']);
  const invalidation = m.invalidate(0, 1).parked as string;
  const unregistration = m.run({ op: 'unregister_mmu_notifier', id: 'N' }).parked as string;
  t.equal(m.operation(unregistration).blocked_on, 'srcu');
  t.same([m.subs.list, m.mm.count], [[], 2]);
  m.ack();
  t.equal(m.operation(unregistration).outcome?.ret, 0);
  t.equal(m.operation(invalidation).outcome?.ret, 0);
  t.same(m.called(), ['N.invalidate_range_start'], 'a start that was told does not get its end');
  t.equal(m.mm.count, 1);
  t.same(m.codes, []);
});

each(ALL, 'a grace period does not wait for callbacks that began after it', (t, m) => {
  m.plain('N1', ['release']);
  m.client('N2', ['invalidate_range_start']);
  const first = m.invalidate(0, 1).parked as string;
  const unregistration = m.run({ op: 'unregister_mmu_notifier', id: 'N1' }).parked as string;
  const second = m.invalidate(4, 1).parked as string;
  const [one] = [...m.host.mm.notifications.keys()];
  m.run({ op: 'ack_mmu_notification', notification: one as string, ret: 0, reason: 'ack', detail: null });
  t.equal(m.operation(first).state, 'done');
  t.equal(m.operation(unregistration).state, 'done');
  t.equal(m.operation(second).state, 'blocked');
  m.ack();
  t.equal(m.operation(second).state, 'done');
});

each(
  ['5.4', '5.15'],
  'UNBALANCED: a start that was let pass never gets its end, or an end has no start',
  (t, m, profile) => {
    m.plain('N1', START_END);
    m.plain('N2', profile === '5.4' ? ['invalidate_range_start'] : START_END, FAILS);
    m.invalidate(0, 1, { blockable: false });
    t.equal(m.codes.filter((code) => code === 'UNBALANCED').length, 1);
  },
);

each(ALL, 'UNBALANCED twin: ranges that nest and overlap', (t, m) => {
  m.plain('N', START_END);
  const [a, b] = [m.start(0, 4), m.start(2, 4)];
  m.end(a);
  m.end(b);
  t.same(m.codes, []);
  t.equal((m.host.mm.mmu_notifiers.get('N') as PlainNotifier).open_starts, 0);
});

each(ALL, 'the first registration of an mm that finds no memory is ENOMEM; later ones allocate nothing', (t, m) => {
  const fails = (): unknown =>
    m.run({ op: 'put_fault', fault: 'f', point: 'subscriptions_alloc', call: 'register_mmu_notifier', nth: 1 });
  fails();
  t.equal(m.plain('N1', START_END).errno, 'ENOMEM');
  t.same([m.mm.subscriptions, m.mm.count, m.host.mm.mmu_notifiers.size], [null, 1, 0]);
  t.equal(m.plain('N1', START_END).errno, null);
  fails();
  t.equal(m.plain('N2', START_END).errno, null);
});

each(ALL, 'B-18 a registration with a pending signal is EINTR', (t, m) => {
  const refused = m.run({
    op: 'register_mmu_notifier',
    mm: MM,
    id: 'N',
    callbacks: START_END,
    handler: scripted({}),
    interrupted: true,
  });
  t.equal(refused.errno, 'EINTR');
  t.same([m.mm.count, m.host.mm.mmu_notifiers.size], [1, 0]);
});

each(WITH_INTERVALS, 'B-18 an interval of length 0, or one that passes the end of the space, is EOVERFLOW', (t, m) => {
  const insert = (start: bigint, length: bigint): string | null =>
    m.run({ op: 'insert_interval_notifier', mm: MM, start, length, handler: scripted(OBEDIENT) }).errno;
  t.equal(insert(at(0), 0n), 'EOVERFLOW');
  t.equal(insert(2n ** 64n - 0x1000n, 0x1001n), 'EOVERFLOW');
  t.equal(insert(2n ** 64n - 0x1000n, 0x1000n), null);
  t.equal(m.mm.count, 2);
});

each(ALL, 'B-19 nested ranges: a mapping made between end A and end B is SPTE_IN_WINDOW', (t, m) => {
  m.plain('N', START_END);
  m.access(2, true);
  const [a, b] = [m.start(0, 4), m.start(2, 4)];
  m.end(a);
  const mapped = m.run({ op: 'map_secondary', id: 'N', addr: at(2), writable: true });
  t.equal(mapped.ret, 0);
  t.same(m.codes, ['SPTE_IN_WINDOW']);
  m.end(b);
  t.same(m.codes, ['SPTE_IN_WINDOW'], 'what it maps is what the page table maps');
});

each(ALL, 'B-19 twin: a mapping made outside the open range, or after the last end, is none', (t, m) => {
  m.plain('N', START_END);
  m.access(0, true);
  m.access(2, true);
  const [a, b] = [m.start(0, 4), m.start(2, 4)];
  m.end(a);
  m.run({ op: 'map_secondary', id: 'N', addr: at(0), writable: true });
  m.end(b);
  m.run({ op: 'map_secondary', id: 'N', addr: at(2), writable: true });
  t.same(m.codes, []);
});

each(ALL, 'STALE_SECONDARY: a subscriber still maps a page after the end of its munmap', (t, m) => {
  m.plain('N', START_END);
  m.access(0, true);
  m.run({ op: 'map_secondary', id: 'N', addr: at(0), writable: true });
  m.munmap(0, 1);
  t.same(m.codes, ['STALE_SECONDARY']);
  t.equal(m.run({ op: 'unmap_secondary', id: 'N', addr: at(0) }).ret, 0);
  t.equal(m.run({ op: 'unmap_secondary', id: 'N', addr: at(0) }).errno, 'ENOENT');
});

each(ALL, 'STALE_SECONDARY: it maps for writing what has become read-only', (t, m) => {
  m.plain('N', START_END);
  m.access(0, true);
  m.run({ op: 'map_secondary', id: 'N', addr: at(0), writable: true });
  m.run({ op: 'mprotect', task: 'T', addr: at(0), length: bytes(1), prot: 1 });
  m.invalidate(0, 1);
  t.ok(m.codes.includes('STALE_SECONDARY'));
});

each(ALL, 'STALE_SECONDARY twin: the start drops the mappings of the range, and no others', (t, m) => {
  m.plain('N', START_END, { invalidate_range_start: { actions: [{ action: 'drop' }] } });
  m.access(0, true);
  m.access(5, true);
  for (const page of [0, 5]) m.run({ op: 'map_secondary', id: 'N', addr: at(page), writable: true });
  m.munmap(0, 2);
  t.same(m.codes, []);
  t.same([...(m.host.mm.mmu_notifiers.get('N')?.mappings.keys() ?? [])], [Number(at(5) >> 12n)]);
});

each(ALL, 'a page that is not present cannot be mapped, nor one for writing that is read-only: EFAULT', (t, m) => {
  m.plain('N', START_END);
  const map = (page: number, writable: boolean): string | null =>
    m.run({ op: 'map_secondary', id: 'N', addr: at(page), writable }).errno;
  t.equal(map(0, false), 'EFAULT');
  m.access(0, false);
  t.equal(map(0, true), 'EFAULT');
  t.equal(map(0, false), null);
});

each(ALL, 'get returns one object for each ops table and counts its users; the last put frees it', (t, m) => {
  const first = m.get('O6');
  t.match(first, { ret: 0, created: true, fields: { users: 1 } });
  const id = first.fields.id as string;
  t.match(m.get('O6'), { ret: 0, created: false, fields: { id, users: 2 } });
  t.not(m.get('O7').fields.id, id);
  t.same(m.subs.list.length, 2);
  t.same(m.run({ op: 'put_mmu_notifier', id }).fields, { id, users: 1 });
  t.equal(m.host.mm.mmu_notifiers.has(id), true);
  const { now } = m;
  t.same(m.run({ op: 'put_mmu_notifier', id }).fields, { id, users: 0 });
  t.same(m.called(now), [`${id}.free_notifier`], 'and no release');
  t.equal(m.host.mm.mmu_notifiers.has(id), false);
  t.equal(m.mm.count, 2);
});

each(ALL, 'put inside nobody frees while a callback runs: the object lives until the grace period is over', (t, m) => {
  const id = m.get('O6').fields.id as string;
  m.client('N', ['invalidate_range_start']);
  const invalidation = m.invalidate(0, 1).parked as string;
  t.equal(m.run({ op: 'put_mmu_notifier', id }).ret, 0);
  t.same(m.subs.list, ['N']);
  t.equal(m.host.mm.mmu_notifiers.has(id), true);
  t.equal(m.run({ op: 'put_mmu_notifier', id }).errno, 'EBUSY');
  m.ack();
  t.equal(m.operation(invalidation).state, 'done');
  t.equal(m.host.mm.mmu_notifiers.has(id), false);
});

each(ALL, 'get: ENOMEM where nothing can be allocated, EINTR frees what was, EOVERFLOW at UINT_MAX users', (t, m) => {
  t.equal(m.get('O6', {}, { alloc_fails: true }).errno, 'ENOMEM');
  t.equal(m.get('O6', { alloc_notifier: { returns: -12 } }).errno, 'ENOMEM');
  t.same(m.called(), ['mmu-notifier-2.alloc_notifier']);
  const { now } = m;
  t.equal(m.get('O6', {}, { interrupted: true }).errno, 'EINTR');
  t.match(m.called(now), [/alloc_notifier$/, /free_notifier$/]);
  t.same([m.host.mm.mmu_notifiers.size, m.mm.count], [0, 1]);
  const id = m.get('O6').fields.id as string;
  const object = m.host.mm.mmu_notifiers.get(id) as PlainNotifier;
  object.users = MAX_NOTIFIER_USERS - 1;
  t.equal(m.get('O6').ret, 0);
  t.equal(m.get('O6').errno, 'EOVERFLOW');
  t.equal(object.users, MAX_NOTIFIER_USERS);
});

each(ALL, 'a block is not put, an object of get is not unregistered: EINVAL', (t, m) => {
  m.plain('N', START_END);
  t.equal(m.run({ op: 'put_mmu_notifier', id: 'N' }).errno, 'EINVAL');
  const id = m.get('O6').fields.id as string;
  t.equal(m.run({ op: 'unregister_mmu_notifier', id }).errno, 'EINVAL');
  t.equal(m.run({ op: 'interval_set_seq', id: 'N', sequence: 3 }).ret < 0, true);
});

each(ALL, 'young callbacks are OR-ed; test_young stops at the first that says yes', (t, m) => {
  const YOUNG = ['clear_flush_young', 'clear_young', 'test_young'] as const;
  const says = (returns: number) => Object.fromEntries(YOUNG.map((name) => [name, { returns }]));
  m.plain('N1', [...YOUNG], says(0));
  m.plain('N2', [...YOUNG], says(1));
  m.plain('N3', [...YOUNG], says(0));
  const call = (callback: (typeof YOUNG)[number]): number =>
    m.run({ op: 'mmu_call', mm: MM, callback, start: at(0), end: at(1) }).ret;
  for (const callback of ['clear_flush_young', 'clear_young'] as const) {
    const { now } = m;
    t.equal(call(callback), 1);
    t.same(m.called(now), [`N3.${callback}`, `N2.${callback}`, `N1.${callback}`]);
  }
  const { now } = m;
  t.equal(call('test_young'), 1);
  t.same(m.called(now), ['N3.test_young', 'N2.test_young']);
  m.run({ op: 'unregister_mmu_notifier', id: 'N2' });
  t.equal(call('test_young'), 0);
});

each(ALL, 'a registration waits until no range is open, so that no end comes without its start', (t, m) => {
  m.plain('N1', START_END);
  const open = m.start(0, 1);
  const registration = m.plain('N2', START_END).parked as string;
  t.equal(m.operation(registration).blocked_on, `mmap_lock:${MM}`);
  m.end(open);
  t.equal(m.operation(registration).outcome?.ret, 0);
  t.same(m.calls('N2'), {});
  t.same(m.subs.list, ['N2', 'N1']);
  t.same(m.codes, []);
});

each(ALL, 'a registration inside a callback would wait for the range that it is in: EDEADLK', (t, m) => {
  m.client('N', ['invalidate_range_start']);
  m.invalidate(0, 1);
  const refused = m.run(
    { op: 'register_mmu_notifier', mm: MM, id: 'N2', callbacks: START_END, handler: scripted({}) },
    m.waiting.id,
  );
  t.equal(refused.errno, 'EDEADLK');
  t.equal(m.host.mm.mmu_notifiers.has('N2'), false);
  m.ack();
});

each(ALL, 'a client answers its callbacks; a late answer is EBUSY, an unknown one not found', (t, m) => {
  m.client('N', START_END);
  const operation = m.munmap(0, 1).parked as string;
  t.match(m.waiting, { callback: 'invalidate_range_start', event: 'UNMAP', start: at(0), end: at(1), blockable: true });
  const { id } = m.waiting;
  m.ack();
  t.equal(m.waiting.callback, 'invalidate_range_end');
  t.equal(m.run({ op: 'ack_mmu_notification', notification: id, ret: 0, reason: 'ack', detail: null }).errno, 'EBUSY');
  const never = 'mmu-notification-99';
  t.equal(
    m.run({ op: 'ack_mmu_notification', notification: never, ret: 0, reason: 'ack', detail: null }).errno,
    'NOT_FOUND',
  );
  m.ack();
  t.equal(m.operation(operation).outcome?.ret, 0);
});

each(ALL, 'a client that does not answer in time: the callback returns what it returns by default', (t, m) => {
  m.client('N', START_END);
  const operation = m.munmap(0, 1).parked as string;
  for (const callback of START_END) {
    t.equal(m.waiting.callback, callback);
    m.run({ op: 'notification_timeout', notification: m.waiting.id });
  }
  t.equal(m.operation(operation).outcome?.ret, 0);
  t.equal(m.run({ op: 'notification_timeout', notification: 'mmu-notification-1' }).ret, 0, 'nothing more to do');
});

each(ALL, "a range that is empty or not page aligned is EINVAL, RELEASE is the exit's alone", (t, m, profile) => {
  const range = (start: bigint, end: bigint, event = 'CLEAR' as const): string | null =>
    m.run({ op: 'invalidate', mm: MM, start, end, event, blockable: true }).errno;
  t.equal(range(at(0) + 1n, at(1)), 'EINVAL');
  t.equal(range(at(0), at(1) + 1n), 'EINVAL');
  t.equal(range(at(1), at(1)), 'EINVAL');
  const event = (name: 'RELEASE' | 'MIGRATE' | 'EXCLUSIVE'): string | null =>
    m.run({ op: 'invalidate', mm: MM, start: at(0), end: at(1), event: name, blockable: true }).errno;
  t.equal(event('RELEASE'), 'EINVAL');
  const owners = ['5.15', '6.18'].includes(profile);
  t.equal(event('MIGRATE'), owners ? null : 'EOPNOTSUPP');
  t.equal(event('EXCLUSIVE'), owners ? null : 'EOPNOTSUPP');
});

t.test('subscriptions, sequences and waits survive a checkpoint', async (t) => {
  const m = new NotifierMachine();
  m.interval('I', 0, 8);
  m.client('N', START_END);
  const open = m.start(0, 2);
  m.ack();
  const reader = m.read('I').parked as string;
  const copies = new Map([...sections(m.host)].map(({ key, data }) => [key, decode(encode(data()))]));
  const host = restoreHost('test', m.host.options, 0, copies);
  Object.assign(m, { host });
  t.equal(m.operation(reader).state, 'blocked');
  m.run({ op: 'resume_operation', operation: open });
  m.ack();
  t.same(m.operation(reader).outcome?.fields, { sequence: 3 });
  t.equal(m.operation(open).outcome?.ret, 0);
});
