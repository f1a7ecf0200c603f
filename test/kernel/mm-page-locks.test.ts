// Tests of the locks that tasks hold between two calls, of the checks of mm/check.ts, and of checkpoints in the middle.

import t from 'tap';
import type { HostOptions } from '../../src/kernel/command.ts';
import { violations } from '../../src/kernel/invariants.ts';
import { MAX_LOCKDEP_ENTRIES, MAX_TASK_LOCKS } from '../../src/kernel/limits.ts';
import { rmapLocks, rmapOf } from '../../src/kernel/mm/rmap.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { Machine } from './machine.ts';
import { BASE, bytes, PageMachine, pageMachine } from './page-machine.ts';

t.test('lock: held until the task releases it; others wait in order of arrival', async (t) => {
  const m = pageMachine('5.15', ['A', 'B', 'C']);
  t.equal(m.run({ op: 'lock', task: 'A', lock: 'mutex:vq' }).ret, 0);
  const [b, c] = [
    m.run({ op: 'lock', task: 'B', lock: 'mutex:vq' }),
    m.run({ op: 'lock', task: 'C', lock: 'mutex:vq' }),
  ];
  t.strictSame([m.waitsFor(b), m.waitsFor(c)], ['mutex:vq', 'mutex:vq']);
  t.equal(m.run({ op: 'unlock', task: 'B', lock: 'mutex:vq' }).refusal?.errno, 'EINVAL', 'it does not hold it yet');
  m.run({ op: 'unlock', task: 'A', lock: 'mutex:vq' });
  t.equal(m.outcomeOf(b)?.ret, 0);
  t.equal(m.waitsFor(c), 'mutex:vq');
  m.run({ op: 'unlock', task: 'B', lock: 'mutex:vq' });
  t.equal(m.outcomeOf(c)?.ret, 0);
  m.run({ op: 'unlock', task: 'C', lock: 'mutex:vq' });
  t.equal(m.host.locks.size, 0);
});

t.test('lock: a task keeps at most MAX_TASK_LOCKS locks, ENOSPC', async (t) => {
  const m = pageMachine('5.15', ['A']);
  for (let i = 0; i < MAX_TASK_LOCKS; i++) m.run({ op: 'lock', task: 'A', lock: `mutex:m${i}` });
  t.equal(m.run({ op: 'lock', task: 'A', lock: 'mutex:one-more' }).refusal?.errno, 'ENOSPC');
  m.run({ op: 'unlock', task: 'A', lock: 'mutex:m0' });
  t.equal(m.run({ op: 'lock', task: 'A', lock: 'mutex:one-more' }).ret, 0);
});

t.test('lockdep: notes at most MAX_LOCKDEP_ENTRIES orders, and says once that it stops', async (t) => {
  const m = pageMachine('5.15', ['A']);
  const { lockdep, dmesg } = m.host;
  for (let round = 0; lockdep.edges.size < MAX_LOCKDEP_ENTRIES && round < 10; round++) {
    for (let i = 0; i < MAX_TASK_LOCKS; i++) m.run({ op: 'lock', task: 'A', lock: `mutex:m${round}-${i}` });
    for (let i = 0; i < MAX_TASK_LOCKS; i++) m.run({ op: 'unlock', task: 'A', lock: `mutex:m${round}-${i}` });
  }
  t.equal(lockdep.edges.size, MAX_LOCKDEP_ENTRIES);
  const said = dmesg.since(0, 10_000).items.filter(({ text }) => text.includes('MAX_LOCKDEP_ENTRIES'));
  t.equal(said.length, 1);
});

t.test('lock: a page lock has a reference of its page', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 1);
  m.write('A', 0);
  const pfn = m.pfn('A', 0);
  m.run({ op: 'lock', task: 'B', lock: `page_lock:${pfn}` });
  t.strictSame(m.counts(pfn), [2, 1]);
  m.munmap('A', 0, 1);
  t.strictSame(m.counts(pfn), [1, 0], 'alive as long as it is locked');
  m.run({ op: 'unlock', task: 'B', lock: `page_lock:${pfn}` });
  t.strictSame(m.counts(pfn), [0, 0]);
});

t.test('lock: EINVAL for what is no lock of a task, ESRCH for one that has exited', async (t) => {
  const m = pageMachine();
  const errno = (lock: string, task = 'A'): unknown => m.run({ op: 'lock', task, lock }).refusal?.errno;
  m.anon('A', 0, 1);
  m.read('A', 0);
  const zero = m.pfn('A', 0);
  for (const lock of ['', 'mutex:', 'mmap_lock:mm-1', 'page_lock:', 'page_lock:x', 'page_lock:01', 'page_lock:5'])
    t.equal(errno(lock), 'EINVAL', lock);
  t.equal(errno(`page_lock:${zero}`), 'EINVAL', 'the zero page');
  t.equal(errno('mutex:a', 'Z'), 'NOT_FOUND');
  m.run({ op: 'exit', task: 'B' });
  t.equal(errno('mutex:a', 'B'), 'ESRCH');
});

t.test('lock: a task that would wait for itself is EDEADLK with the cycle', async (t) => {
  const m = pageMachine();
  m.run({ op: 'lock', task: 'A', lock: 'mutex:a' });
  m.run({ op: 'lock', task: 'B', lock: 'mutex:b' });
  const b = m.run({ op: 'lock', task: 'B', lock: 'mutex:a' });
  t.equal(m.waitsFor(b), 'mutex:a');
  t.equal(m.run({ op: 'lock', task: 'A', lock: 'mutex:b' }).refusal?.errno, 'EDEADLK');
  t.strictSame(m.m.dmesg('DEADLOCK').length, 1);
  m.run({ op: 'unlock', task: 'A', lock: 'mutex:a' });
  t.equal(m.outcomeOf(b)?.ret, 0);
});

t.test('a task that exits with locks held: they are reported and released', async (t) => {
  const m = pageMachine();
  m.anon('B', 0, 1);
  m.write('B', 0);
  const lock = `page_lock:${m.pfn('B', 0)}`;
  m.run({ op: 'lock', task: 'A', lock: 'mutex:vq' });
  m.run({ op: 'lock', task: 'A', lock });
  const waiting = m.run({ op: 'lock', task: 'B', lock: 'mutex:vq' });
  m.run({ op: 'exit', task: 'A' });
  t.match(m.m.dmesg('WARN').at(-1)?.text, /A exits with locks held: mutex:vq, page_lock:\d+/);
  t.equal(m.outcomeOf(waiting)?.ret, 0);
  t.equal(m.host.locks.has(lock), false);
});

t.test('rmap: in the order of i_mmap for a file, by mm and address for anonymous memory', async (t) => {
  const m = pageMachine('5.15', ['A', 'B', 'C']);
  m.run({ op: 'put_file', file: 'f', size: bytes(16) });
  m.file('A', 0, 4, 'f', { pgoff: 3 });
  m.file('B', 30, 8, 'f');
  m.file('C', 9, 4, 'f', { pgoff: 2 });
  m.file('A', 40, 2, 'f', { pgoff: 3 });
  for (const [task, page] of [
    ['A', 0],
    ['B', 33],
    ['C', 10],
    ['A', 40],
  ] as const)
    m.read(task, page);
  const pfn = m.pfn('A', 0);
  t.strictSame(
    rmapOf(m.host, pfn).map(({ mm, page }) => `${mm} ${page - BASE}`),
    ['mm-2 33', 'mm-3 10', 'mm-1 0', 'mm-1 40'],
    'by the first page of the area in the file, then by mm',
  );
  t.strictSame(rmapLocks(m.host, pfn), ['i_mmap:f']);
  m.munmap('B', 30, 8, { stop_at: 'after_start' });
  t.strictSame(
    rmapOf(m.host, pfn).map(({ mm, page, vma }) => `${mm} ${page - BASE} ${vma === null}`),
    ['mm-3 10 false', 'mm-1 0 false', 'mm-1 40 false', 'mm-2 33 true'],
    'an area that is being unmapped comes last',
  );
  m.anon('C', 20, 2);
  m.write('C', 21);
  t.strictSame(
    rmapOf(m.host, m.pfn('C', 21)).map(({ mm, page }) => `${mm} ${page - BASE}`),
    ['mm-3 21'],
  );
});

/** A machine in the middle of everything: pages in every state that a checkpoint has to hold. */
function busy(): PageMachine {
  const m = pageMachine('5.15', ['A', 'B']);
  m.run({ op: 'put_file', file: 'f', size: 0x7001n });
  m.file('A', 0, 8, 'f');
  m.fill('A', 0, 1);
  m.run({ op: 'mkclean', pfn: m.pfn('A', 0) });
  m.anon('B', 0, 8);
  for (let page = 0; page < 6; page++) m.fill('B', page, page < 2 ? 1 : page);
  m.run({
    op: 'ksm_merge',
    task: 'B',
    addr: m.host.mm.contents === 'zero' ? BigInt(BASE) << 12n : 0n,
    with: { task: 'B', addr: BigInt(BASE + 1) << 12n },
  });
  m.run({ op: 'reclaim', pfn: m.pfn('B', 2) });
  m.run({ op: 'reclaim', pfn: m.pfn('B', 3) });
  m.read('B', 3);
  m.run({ op: 'lock', task: 'A', lock: `page_lock:${m.pfn('B', 4)}` });
  return m;
}

const OPTIONS: HostOptions = {
  profile: '5.15',
  template: 'empty',
  dma_entry_limit: 65535,
  notifier_timeout_ms: 10_000,
  total_pages: 1 << 20,
  fixes: [],
  ttl_s: null,
};

/** The same host, from the bytes of its sections. */
function restored(m: PageMachine): PageMachine {
  const data = new Map([...sections(m.host)].map(({ key, data }) => [key, decode(encode(data()))]));
  const machine = new Machine();
  Object.assign(machine, { host: restoreHost('test', OPTIONS, 0, data) });
  return new PageMachine(machine, []);
}

t.test('a checkpoint in the middle of a migration goes on where it was', async (t) => {
  const m = busy();
  const moving = m.run({ op: 'migrate', pfn: m.pfn('B', 5), stop_at: 'after_end' });
  const access = m.read('B', 5);
  const copy = restored(m);
  t.strictSame(violations(copy.host), []);
  t.strictSame([...copy.host.mm.swap.slots].length, 2);
  for (const machine of [m, copy]) {
    t.equal(machine.resume(moving)?.ret, 0);
    t.strictSame(machine.outcomeOf(access)?.fields, { fault: 'NOPAGE', pfn: machine.pfn('B', 5) });
    t.equal(machine.byte('B', 5), 5);
    machine.read('B', 2);
    t.equal(machine.byte('B', 2), 2);
    t.equal(machine.run({ op: 'reclaim', pfn: machine.pfn('A', 0) }).ret, 1);
    machine.read('A', 0);
    t.equal(machine.byte('A', 0), 1, 'what was written back of the file');
    t.equal(machine.read('A', 8).fields.fault, 'SIGSEGV');
    machine.run({ op: 'unlock', task: 'A', lock: `page_lock:${machine.pfn('B', 4)}` });
  }
  t.strictSame(
    [...sections(copy.host)].map(({ key }) => key).sort(),
    [...sections(m.host)].map(({ key }) => key).sort(),
  );
});

t.test('the checker finds what is wrong with swap, migration, KSM, locks and dirty marks', async (t) => {
  const wrong: [string, (m: PageMachine) => void, RegExp][] = [
    ['slot count', (m) => void m.host.mm.swap.slots.forEach((slot) => void slot.count++), /swap slot \d+: count/],
    ['slot missing', (m) => m.host.mm.swap.slots.clear(), /is named and does not exist/],
    ['cache', (m) => m.host.mm.swap.cache.clear(), /is not its page in the swap cache/],
    [
      'useless slot',
      (m) => void m.host.mm.swap.slots.set(99, { slot: 99, count: 0, pfn: null, data: null, version: 0 }),
      /swap slot 99 is of use to nobody/,
    ],
    [
      'stray cache',
      (m) => void m.host.mm.swap.cache.set(m.pfn('B', 4), 77),
      /is cached for swap slot 77, which does not know it/,
    ],
    ['migration', (m) => flip(m, 'B', 5, 3), /has migration entries and is not being moved/],
    ['KSM', (m) => flip(m, 'B', 0, 1 | 16), /which KSM has merged/],
    ['dirty', (m) => flip(m, 'A', 0, 1 | 16), /without a trace of it/],
    ['locked page', (m) => void m.host.mm.tasks.get('A')?.locks.pop(), /refcount 2, not 1/],
  ];
  t.strictSame(violations(busy().host), []);
  for (const [name, plant, message] of wrong) {
    const m = busy();
    plant(m);
    t.match(violations(m.host).join('\n'), message, name);
  }
});

/** Gives an entry other flags. */
function flip(m: PageMachine, task: string, page: number, flags: number): void {
  const { page_table } = m.mm(task);
  const leaf = page_table.leaves.get(Math.floor((BASE + page) / 512));
  if (leaf === undefined) throw new Error('no leaf');
  const i = 2 * ((BASE + page) % 512) + 1;
  leaf.words[i] = ((leaf.words[i] as number) & ~0xfff) | flags;
}
