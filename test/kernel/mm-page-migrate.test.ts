// Tests of migrate and migrate_vma: entries on their way, who is told, and who waits.

import t from 'tap';
import { Machine } from './machine.ts';
import { at, bytes, PageMachine, pageMachine, pinning } from './page-machine.ts';

t.test('migrate: the page moves with its bytes, and installing the new entry tells nobody', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 4);
  m.fill('A', 1, 7);
  m.watch('A');
  const from = m.pfn('A', 1);
  m.mark();
  const moved = m.run({ op: 'migrate', pfn: from });
  const to = m.pfn('A', 1);
  t.strictSame([moved.ret, moved.fields], [0, { pfn: to }]);
  t.not(to, from);
  t.equal(m.byte('A', 1), 7);
  t.equal(m.entry('A', 1), 'writable');
  t.strictSame(m.counts(to), [1, 1]);
  t.strictSame(m.counts(from), [0, 0]);
  t.strictSame(m.told(), ['N-A.invalidate_range_start CLEAR 1-2', 'N-A.invalidate_range_end CLEAR 1-2']);
  t.strictSame(m.locksHeld(), ['page_lock page_lock anon_vma', 'page_lock page_lock anon_vma']);
  const changes = m.trace('pte', 'invalidate_ended').map(({ event, change }) => change ?? event);
  t.strictSame(changes, ['clear', 'migration', 'invalidate_ended', 'set'], 'the new entry comes after the end');
});

t.test('migrate: an access between the two entries waits for the page lock, and finds the new page', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 4);
  m.fill('A', 0, 9);
  const from = m.pfn('A', 0);
  const moving = m.run({ op: 'migrate', pfn: from, stop_at: 'after_end' });
  t.equal(m.entry('A', 0), 'migration');
  t.strictSame(m.counts(from), [1, 0], 'the mover alone refers to it');
  const access = m.read('A', 0);
  t.equal(m.waitsFor(access), `page_lock:${from}`);
  t.equal(m.resume(moving)?.ret, 0);
  t.strictSame(m.outcomeOf(access)?.fields, { fault: 'NOPAGE', pfn: m.pfn('A', 0) });
  t.not(m.pfn('A', 0), from);
  t.equal(m.byte('A', 0), 9);
});

t.test('migrate: under the page-table lock an access waits for that', async (t) => {
  for (const phase of ['after_pte_clear', 'after_pte_set'] as const) {
    const m = pageMachine();
    m.anon('A', 0, 4);
    m.write('A', 0);
    const moving = m.run({ op: 'migrate', pfn: m.pfn('A', 0), stop_at: phase });
    const access = m.write('A', 1);
    t.match(m.waitsFor(access), /^ptl:mm-/, `${phase}: the neighbour in the same page table waits too`);
    m.resume(moving);
    t.equal(m.outcomeOf(access)?.fields.fault, 'NOPAGE');
  }
});

t.test('migrate: a pinned page is EAGAIN after its event, and its entry is put back silently', async (t) => {
  for (const profile of ['5.4', '5.8', '5.15', '6.18']) {
    const m = pinning(profile);
    m.anon('T', 0, 2);
    m.pin(0);
    m.watch('T');
    const pfn = m.pfn('T', 0);
    m.mark();
    t.equal(m.run({ op: 'migrate', pfn }).refusal?.errno, 'EAGAIN', profile);
    t.equal(m.pfn('T', 0), pfn);
    t.equal(m.entry('T', 0), 'writable');
    t.strictSame(m.told(), ['N-T.invalidate_range_start CLEAR 0-1', 'N-T.invalidate_range_end CLEAR 0-1']);
    t.equal(m.counts(pfn)[1], 1);
  }
});

t.test('migrate: a page of a file keeps its place in the cache, in every mm that maps it', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 4, 'f');
  m.file('B', 10, 2, 'f', { pgoff: 1, shared: false });
  m.write('A', 1);
  m.read('B', 10);
  m.watch('A');
  m.watch('B');
  const from = m.pfn('A', 1);
  m.mark();
  t.equal(m.run({ op: 'migrate', pfn: from }).ret, 0);
  t.equal(m.pfn('A', 1), m.pfn('B', 10));
  t.equal(m.host.mm.files.get('f')?.pages.get(1), m.pfn('A', 1));
  t.strictSame(m.counts(m.pfn('A', 1)), [3, 2]);
  t.strictSame([m.entry('A', 1), m.entry('B', 10)], ['writable', 'read-only']);
  t.strictSame(m.pairs(), ['mm-1 CLEAR 1-2', 'mm-2 CLEAR 10-11']);
  t.strictSame(new Set(m.locksHeld()), new Set(['page_lock page_lock i_mmap']));
});

t.test('migrate: munmap between the two entries: nothing is left to move back', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 2);
  m.write('A', 0);
  const from = m.pfn('A', 0);
  const moving = m.run({ op: 'migrate', pfn: from, stop_at: 'after_end' });
  t.equal(m.munmap('A', 0, 2).ret, 0);
  t.equal(m.resume(moving)?.ret, 0);
  t.strictSame(m.counts(from), [0, 0]);
  t.equal(m.host.mm.pages.used, 0);
});

t.test('migrate: refusals in their order', async (t) => {
  const m = pageMachine();
  const errno = (pfn: number): unknown => m.run({ op: 'migrate', pfn }).refusal?.errno;
  m.m.pages('A', at(0), [[50, 1]]);
  m.anon('A', 1, 1);
  m.write('A', 1);
  t.equal(errno(-1), 'EINVAL');
  t.equal(errno(49), 'ENOENT', 'a free frame');
  t.equal(errno(50), 'EBUSY', 'a page of an explicit layout is on no list');
  const moving = m.run({ op: 'migrate', pfn: m.pfn('A', 1), stop_at: 'before_start' });
  t.equal(errno(m.pfn('A', 1)), 'EBUSY', 'isolated by another operation');
  t.equal(m.resume(moving)?.ret, 0);
});

t.test('migrate: no page left is ENOMEM before anybody is told', async (t) => {
  const m = new PageMachine(new Machine({ total_pages: 4 }), ['A']);
  m.anon('A', 0, 4);
  for (let page = 0; page < 4; page++) m.write('A', page);
  m.mark();
  t.equal(m.run({ op: 'migrate', pfn: m.pfn('A', 0) }).refusal?.errno, 'ENOMEM');
  t.strictSame(m.pairs(), []);
  t.strictSame(m.counts(m.pfn('A', 0)), [1, 1]);
});

t.test(
  'migrate_vma: one MIGRATE pair over the request with its owner; CLEAR without one before there were owners',
  async (t) => {
    for (const [profile, event, owner] of [
      ['5.4', 'CLEAR', null],
      ['5.8', 'CLEAR', null],
      ['5.15', 'MIGRATE', 'gpu'],
      ['6.18', 'MIGRATE', 'gpu'],
    ] as const) {
      const m = pageMachine(profile);
      m.anon('A', 0, 4);
      m.write('A', 1);
      m.watch('A');
      m.mark();
      t.equal(m.run({ op: 'migrate_vma', task: 'A', addr: at(0), length: bytes(3), owner: 'gpu' }).ret, 0, profile);
      t.strictSame(
        m.trace('notify').map(({ mmu_event, owner: told, locks_held }) => [mmu_event, told, locks_held]),
        [
          [event, owner, ['mmap_lock:mm-1']],
          [event, owner, ['mmap_lock:mm-1']],
        ],
      );
      t.strictSame(m.pairs(), [`mm-1 ${event} 0-3`]);
    }
  },
);

t.test('migrate_vma: EINVAL for what is no whole range inside one ordinary area', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 4);
  const errno = (addr: bigint, length: bigint): unknown =>
    m.run({ op: 'migrate_vma', task: 'A', addr, length, owner: 'gpu' }).refusal?.errno;
  t.equal(errno(at(0) + 1n, bytes(1)), 'EINVAL');
  t.equal(errno(at(0), 1n), 'EINVAL');
  t.equal(errno(at(0), 0n), 'EINVAL');
  t.equal(errno(at(0), bytes(5)), 'EINVAL');
  t.equal(errno(at(4), bytes(1)), 'EINVAL');
});
