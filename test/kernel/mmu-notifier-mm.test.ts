// Cases of section B whose callbacks run under the locks of KSM, writeback and reclaim, in a fault, or in an exit.

import t, { type Test } from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { at, bytes, lock, MM, NotifierMachine, START_END } from './notifier-machine.ts';

const ALL = ['4.10', '5.4', '5.8', '5.15', '6.18'];
const WITH_RANGE = ['4.10', '5.4', '5.8', '5.15'];
const WITH_INTERVALS = ['5.8', '5.15', '6.18'];
const VHOST = 'Re: [RFC PATCH V2 5/5] vhost: access vq metadata through kernel virtual address, 7 Mar 2019';

function each(profiles: string[], title: string, body: (t: Test, m: NotifierMachine, profile: string) => void): void {
  for (const profile of profiles)
    t.test(`${title} (${profile})`, async (t) => body(t, new NotifierMachine(profile), profile));
}

const TAKES_VQ = { actions: [lock('mutex:vq')] };
const pfnAt = (m: NotifierMachine, page: number): number => m.mm.page_table.pfn(Number(at(page) >> 12n));

/** Pages 0 and 1 are written and equal: KSM merges 0 into 1. */
function merge(m: NotifierMachine, stop_at?: 'after_start'): ReturnType<NotifierMachine['run']> {
  const command: Command = { op: 'ksm_merge', task: 'T', addr: at(0), with: { task: 'T', addr: at(1) } };
  return m.run(stop_at === undefined ? command : { ...command, stop_at });
}

function written(m: NotifierMachine): NotifierMachine {
  for (const page of [0, 1]) m.access(page, true);
  return m;
}

/** The worker marks a page dirty under the vq mutex: page lock inside, as in set_page_dirty_lock(). */
function dirtyUnderMutex(m: NotifierMachine, task = 'worker'): void {
  const made = { rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: 'T' } as const;
  m.run({ op: 'put_task', task, ...made });
  for (const each of ['mutex:vq', `page_lock:${pfnAt(m, 0)}`]) m.run({ op: 'lock', task, lock: each });
  for (const each of [`page_lock:${pfnAt(m, 0)}`, 'mutex:vq']) m.run({ op: 'unlock', task, lock: each });
}

each(
  WITH_RANGE,
  'B-13 a KSM merge calls invalidate_range from the end of its second pair, page lock held, not under ptl',
  (t, m) => {
    written(m);
    m.plain('N', ['invalidate_range']);
    t.equal(merge(m).ret, 0);
    const calls = m.trace().filter(({ event }) => event === 'notify');
    const pairs = m.trace().filter(({ event }) => event === 'invalidate_end');
    t.equal(calls.length, pairs.length, 'once for each pair');
    const replaced = m.trace().findLast(({ event, change }) => event === 'pte' && change === 'set');
    t.ok((calls.at(-1)?.n ?? 0) > (replaced?.n ?? 0), 'after the entry is replaced');
    for (const { locks_held } of calls) {
      t.ok((locks_held as string[]).some((each) => each.startsWith('page_lock:')));
      t.notOk((locks_held as string[]).some((each) => each.startsWith('ptl:')));
    }
    t.same(m.codes, []);
  },
);

each(
  ALL,
  `B-15 a worker takes the page lock under the vq mutex, KSM calls an end that takes it: LOCK_INVERSION: ${VHOST}`,
  (t, m) => {
    written(m);
    m.plain('vhost', START_END, { invalidate_range_end: TAKES_VQ });
    dirtyUnderMutex(m);
    t.same(m.codes, []);
    t.equal(merge(m).ret, 0, 'nobody had to wait');
    t.same(m.codes, ['LOCK_INVERSION']);
    const [found] = m.host.violations.since(0, 1).items;
    t.match(found?.paths, [/page_lock -> mutex:vq .* in vhost\.invalidate_range_end/, /mutex:vq -> page_lock/]);
  },
);

each(ALL, `B-15 mkclean, which holds the page lock and i_mmap, is found as well: ${VHOST}`, (t, m) => {
  m.run({ op: 'put_file', file: 'ring', size: bytes(4) });
  const backing = { kind: 'file', file: 'ring', pgoff: 0, shared: true } as const;
  m.run({ op: 'mmap', task: 'T', addr: at(0), length: bytes(4), prot: 3, backing, noreplace: false });
  m.access(0, true);
  m.plain('vhost', START_END, { invalidate_range_start: TAKES_VQ });
  dirtyUnderMutex(m);
  m.run({ op: 'mkclean', pfn: pfnAt(m, 0) });
  t.ok(m.calls('vhost').invalidate_range_start, 'page_mkclean() calls start');
  t.ok(m.codes.includes('LOCK_INVERSION'));
});

each(ALL, `B-15 twin: the page is marked dirty without its lock: ${VHOST}`, (t, m) => {
  written(m);
  const dirty = { action: 'dirty', page: Number(at(0) >> 12n) } as const;
  m.plain('vhost', START_END, { invalidate_range_end: { actions: [lock('mutex:vq'), dirty] } });
  t.equal(merge(m).ret, 0);
  t.same(m.codes, []);
});

each(
  ALL,
  'B-15 a callback marks the page dirty with its lock while KSM holds that: SELF_RECURSION and DEADLOCK',
  (t, m) => {
    written(m);
    const dirty = { action: 'dirty_lock', page: Number(at(0) >> 12n) } as const;
    m.plain('vhost', START_END, { invalidate_range_start: { actions: [dirty] } });
    t.equal(merge(m).errno, 'EDEADLK');
    t.same(m.codes, ['SELF_RECURSION', 'DEADLOCK']);
  },
);

each(ALL, `SELF_RECURSION: a worker breaks COW under the mutex that its own callback takes: ${VHOST}`, (t, m) => {
  m.plain('vhost', START_END, { invalidate_range_start: TAKES_VQ });
  m.access(0, false);
  m.run({ op: 'lock', task: 'T', lock: 'mutex:vq' });
  t.equal(m.access(0, true).errno, 'EDEADLK');
  t.same(m.codes, ['SELF_RECURSION', 'DEADLOCK']);
  m.run({ op: 'unlock', task: 'T', lock: 'mutex:vq' });
});

each(ALL, 'SELF_RECURSION: it is found although this notifier is not called', (t, m) => {
  m.plain('vhost', START_END, { invalidate_range_start: TAKES_VQ });
  m.invalidate(0, 1);
  m.run({ op: 'put_task', task: 'U', rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null });
  m.run({ op: 'lock', task: 'U', lock: 'mutex:vq' });
  m.run({ op: 'mmap', task: 'U', addr: at(0), length: bytes(1), prot: 3, backing: { kind: 'anon' }, noreplace: true });
  t.equal(m.run({ op: 'munmap', task: 'U', addr: at(0), length: bytes(1) }).ret, 0);
  t.ok(m.codes.includes('SELF_RECURSION'));
  m.run({ op: 'unlock', task: 'U', lock: 'mutex:vq' });
});

each(ALL, 'SELF_RECURSION twin: the worker drops the mutex before it touches user memory', (t, m) => {
  m.plain('vhost', START_END, { invalidate_range_start: TAKES_VQ });
  m.access(0, false);
  m.run({ op: 'lock', task: 'T', lock: 'mutex:vq' });
  m.run({ op: 'unlock', task: 'T', lock: 'mutex:vq' });
  t.equal(m.access(0, true).fields.fault, 'NOPAGE');
  t.same(m.codes, []);
});

each(WITH_INTERVALS, 'WAIT_UNDER_CALLBACK_LOCK: read_begin under the lock that the callback takes', (t, m) => {
  m.interval('I', 0, 4, { invalidate: { actions: [lock('mutex:user'), { action: 'set_seq' }], returns: 1 } });
  m.invalidate(0, 1);
  m.run({ op: 'lock', task: 'T', lock: 'mutex:user' });
  t.equal(m.run({ op: 'interval_read_begin', id: 'I', task: 'T' }).ret, 0, 'it does not wait this time');
  t.same(m.codes, ['WAIT_UNDER_CALLBACK_LOCK']);
  m.run({ op: 'unlock', task: 'T', lock: 'mutex:user' });
});

each(WITH_INTERVALS, 'WAIT_UNDER_CALLBACK_LOCK twin: read_begin first, the lock then, as the protocol says', (t, m) => {
  m.interval('I', 0, 4, { invalidate: { actions: [lock('mutex:user'), { action: 'set_seq' }], returns: 1 } });
  m.invalidate(0, 1);
  const { sequence } = m.run({ op: 'interval_read_begin', id: 'I', task: 'T' }).fields as { sequence: number };
  m.run({ op: 'lock', task: 'T', lock: 'mutex:user' });
  t.equal(m.retry('I', sequence), 0);
  m.run({ op: 'unlock', task: 'T', lock: 'mutex:user' });
  t.same(m.codes, []);
});

each(
  ALL,
  'a registration waits for a merge that holds mmap_lock, and for reclaim that holds the reverse map',
  (t, m) => {
    written(m);
    m.plain('N1', START_END);
    const merging = merge(m, 'after_start').parked as string;
    const registration = m.plain('N2', START_END).parked as string;
    t.equal(m.operation(registration).blocked_on, `mmap_lock:${MM}`);
    m.run({ op: 'resume_operation', operation: merging });
    t.equal(m.operation(registration).outcome?.ret, 0);
    const reclaiming = m.run({ op: 'reclaim', pfn: pfnAt(m, 0), stop_at: 'after_start' }).parked;
    if (reclaiming === undefined) return;
    const second = m.plain('N3', START_END).parked as string;
    t.match(m.operation(second).blocked_on, /^anon_vma:/);
    m.run({ op: 'resume_operation', operation: reclaiming });
    t.equal(m.operation(second).outcome?.ret, 0);
    t.same(m.codes, []);
  },
);
