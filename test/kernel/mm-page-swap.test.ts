// Tests of reclaim and swap: slots, the swap cache, swap-in, and what reclaim refuses.

import t from 'tap';
import { FOLL_GET, FOLL_NOWAIT } from '../../src/kernel/mm/gup-flags.ts';
import { Machine } from './machine.ts';
import { at, bytes, PageMachine, pageMachine, pinning } from './page-machine.ts';

const swapped = (m: PageMachine): { slot: number; count: number; pfn: number | null }[] =>
  [...m.host.mm.swap.slots.values()].map(({ slot, count, pfn }) => ({ slot, count, pfn }));

t.test(
  'reclaim: an anonymous page goes to the swap area, with one CLEAR under the page lock and the anon_vma',
  async (t) => {
    const m = pageMachine();
    m.anon('A', 0, 2);
    m.fill('A', 0, 3);
    const pfn = m.pfn('A', 0);
    m.watch('A', 'N', ['invalidate_range_start', 'invalidate_range_end', 'invalidate_range']);
    m.mark();
    const out = m.run({ op: 'reclaim', pfn });
    t.strictSame([out.ret, out.fields], [1, { freed: true, kept: null }]);
    t.equal(m.entry('A', 0), 'swap');
    t.strictSame(m.counts(pfn), [0, 0]);
    t.strictSame(swapped(m), [{ slot: 1, count: 1, pfn: null }]);
    t.strictSame(m.told(), [
      'N.invalidate_range_start CLEAR 0-1',
      'N.invalidate_range CLEAR 0-1',
      'N.invalidate_range CLEAR 0-1',
      'N.invalidate_range_end CLEAR 0-1',
    ]);
    t.strictSame(m.locksHeld(), [
      'page_lock anon_vma',
      'page_lock anon_vma ptl',
      'page_lock anon_vma',
      'page_lock anon_vma',
    ]);
    m.mark();
    t.equal(m.write('A', 0).fields.fault, 'NOPAGE');
    t.strictSame(m.pairs(), [], 'a swap-in tells nobody');
    t.equal(m.byte('A', 0), 3);
    t.equal(m.entry('A', 0), 'writable');
    t.strictSame(swapped(m), [], 'written, it is of no use in the swap area');
  },
);

t.test('reclaim: a clean page of a file leaves the cache, and its file has it still', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(4) });
  m.file('A', 0, 4, 'f');
  m.fill('A', 1, 4);
  const pfn = m.pfn('A', 1);
  m.watch('A', 'N', ['invalidate_range_start', 'invalidate_range_end', 'invalidate_range']);
  m.mark();
  t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'dirty' });
  t.equal(m.entry('A', 1), 'none', 'unmapped all the same');
  t.strictSame(m.told(), [
    'N.invalidate_range_start CLEAR 1-2',
    'N.invalidate_range CLEAR 1-2',
    'N.invalidate_range_end CLEAR 1-2',
  ]);
  t.strictSame(new Set(m.locksHeld()), new Set(['page_lock i_mmap']), 'never under the page-table lock');
  m.run({ op: 'mkclean', pfn });
  t.equal(m.run({ op: 'reclaim', pfn }).ret, 1);
  t.strictSame(m.counts(pfn), [0, 0]);
  m.read('A', 1);
  t.equal(m.byte('A', 1), 4);
});

for (const profile of ['5.15', '6.18'])
  t.test(`A-10 (${profile}): reclaim of a pinned page is refused with 0 events`, async (t) => {
    const m = pinning(profile);
    m.anon('T', 0, 2);
    m.pin(0);
    const pfn = m.pfn('T', 0);
    m.watch('T');
    m.mark();
    t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'pinned' });
    t.strictSame([m.pairs(), m.told()], [[], []]);
    t.strictSame([m.entry('T', 0), m.pfn('T', 0)], ['writable', pfn]);
    t.strictSame(swapped(m), []);
  });

for (const profile of ['4.10', '5.4', '5.8'])
  t.test(`A-10 (${profile}): reclaim of a pinned page unmaps it with an event and keeps it`, async (t) => {
    const m = pinning(profile);
    m.anon('T', 0, 2);
    m.pin(0);
    const pfn = m.pfn('T', 0);
    m.mark();
    t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'referenced' });
    t.strictSame(m.pairs(), [`${m.mm('T').id} CLEAR 0-1`]);
    t.equal(m.entry('T', 0), 'swap');
    t.strictSame(swapped(m), [{ slot: 1, count: 1, pfn }], 'in the swap cache');
    t.equal(m.read('T', 0).fields.pfn, pfn, 'the CPU finds the pinned page again');
  });

for (const profile of ['4.10', '5.4', '5.8', '5.15', '6.18'])
  t.test(
    `A-10 (${profile}): reclaim of a page with a FOLL_GET is a CLEAR pair, and the page is not freed`,
    async (t) => {
      const m = pageMachine(profile);
      m.anon('A', 0, 2);
      m.fill('A', 0, 6);
      const pfn = m.pfn('A', 0);
      const { fields } = m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags: FOLL_GET });
      t.strictSame(fields.pfns, [pfn]);
      m.watch('A');
      m.mark();
      t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'referenced' });
      t.strictSame(m.told(), ['N-A.invalidate_range_start CLEAR 0-1', 'N-A.invalidate_range_end CLEAR 0-1']);
      t.strictSame([m.entry('A', 0), m.counts(pfn)], ['swap', [2, 0]], 'the get, and the swap cache');
      t.equal(m.read('A', 0).fields.pfn, pfn, 'found again in the swap cache');
      m.run({ op: 'put_gup', gup: fields.id as string, dirty: 'no' });
    },
  );

for (const profile of ['5.4', '5.8', '5.15', '6.18'])
  t.test(
    `A-17 (${profile}): FOLL_NOWAIT on a swapped-out page whose lock is busy is 0 with mmap_lock held; a plain GUP is 1 after the lock is free`,
    async (t) => {
      const m = pageMachine(profile);
      m.anon('A', 0, 2);
      m.fill('A', 0, 6);
      const pfn = m.pfn('A', 0);
      const held = m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags: FOLL_GET }).fields.id as string;
      m.run({ op: 'reclaim', pfn });
      const lock = `page_lock:${pfn}`;
      m.run({ op: 'lock', task: 'B', lock });
      m.mark();
      const nowait = m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags: FOLL_GET | FOLL_NOWAIT });
      t.equal(nowait.ret, 0);
      const mmap = m.trace('lock').filter(({ lock: id }) => id === `mmap_lock:${m.mm('A').id}`);
      t.strictSame(
        mmap.map(({ state }) => state),
        ['held', 'released'],
        'dropped by its caller alone',
      );
      t.equal(
        m.trace('lock').some(({ state }) => state === 'waits'),
        false,
      );
      const plain = m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags: FOLL_GET });
      t.equal(m.waitsFor(plain), lock);
      m.run({ op: 'unlock', task: 'B', lock });
      t.equal(m.outcomeOf(plain)?.ret, 1);
      t.strictSame(m.outcomeOf(plain)?.fields.pfns, [pfn]);
      for (const gup of [held, m.outcomeOf(plain)?.fields.id as string]) m.run({ op: 'put_gup', gup, dirty: 'no' });
    },
  );

t.test('reclaim: a locked page is kept, with no event', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 2);
  m.write('A', 0);
  const pfn = m.pfn('A', 0);
  m.run({ op: 'lock', task: 'B', lock: `page_lock:${pfn}` });
  m.mark();
  t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: false, kept: 'locked' });
  t.strictSame(m.pairs(), []);
  m.run({ op: 'unlock', task: 'B', lock: `page_lock:${pfn}` });
  t.equal(m.run({ op: 'reclaim', pfn }).ret, 1);
});

t.test(
  'fork copies a swap entry: the slot counts both, and who comes first does not have the page alone',
  async (t) => {
    const m = pageMachine();
    m.anon('A', 0, 2);
    m.fill('A', 0, 6);
    m.write('A', 1);
    m.run({ op: 'reclaim', pfn: m.pfn('A', 0) });
    m.run({ op: 'fork', task: 'A', child: 'C' });
    t.equal(m.host.mm.swap.slots.get(1)?.count, 2);
    m.write('A', 0);
    t.equal(m.byte('A', 0), 6);
    m.read('C', 0);
    t.not(m.pfn('A', 0), m.pfn('C', 0));
    t.equal(m.byte('C', 0), 6);
  },
);

t.test(
  '6.18: an entry that had its page alone has it alone again after a swap-in, and a write needs no copy',
  async (t) => {
    const m = pageMachine('6.18');
    m.anon('A', 0, 1);
    m.fill('A', 0, 6);
    m.run({ op: 'reclaim', pfn: m.pfn('A', 0) });
    m.mark();
    m.read('A', 0);
    const pfn = m.pfn('A', 0);
    t.equal(m.entry('A', 0), 'writable');
    m.write('A', 0);
    t.strictSame([m.pfn('A', 0), m.pairs()], [pfn, []]);
  },
);

t.test('a fault on a swapped-out page waits for the lock of its page', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 2);
  m.fill('A', 0, 6);
  const pfn = m.pfn('A', 0);
  const stopped = m.run({ op: 'reclaim', pfn, stop_at: 'after_end' });
  t.strictSame(swapped(m), [{ slot: 1, count: 1, pfn }]);
  const access = m.read('A', 0);
  t.equal(m.waitsFor(access), `page_lock:${pfn}`);
  t.strictSame(m.resume(stopped)?.fields, { freed: false, kept: 'referenced' }, 'the fault refers to it already');
  t.equal(m.outcomeOf(access)?.fields.pfn, pfn);
  t.equal(m.byte('A', 0), 6);
  t.strictSame(swapped(m), [{ slot: 1, count: 0, pfn }], 'read: it stays in the cache, with a slot that nobody names');
  t.equal(m.entry('A', 0), 'read-only');
  m.mark();
  m.write('A', 0);
  t.strictSame(m.pairs(), ['mm-1 CLEAR 0-1'], 'the reference of the cache forces a copy');
  t.not(m.pfn('A', 0), pfn);
  t.strictSame([m.byte('A', 0), swapped(m), m.counts(pfn)], [6, [], [0, 0]]);
});

t.test('swap entries that go take their slot along', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 4);
  for (const page of [0, 1, 2]) {
    m.fill('A', page, page);
    m.run({ op: 'reclaim', pfn: m.pfn('A', page) });
  }
  t.equal(swapped(m).length, 3);
  m.munmap('A', 0, 1);
  t.equal(swapped(m).length, 2);
  m.read('A', 1);
  m.munmap('A', 1, 1);
  t.equal(swapped(m).length, 1, 'with its cached page');
  m.run({ op: 'exit', task: 'A' });
  t.strictSame(swapped(m), []);
  t.equal(m.host.mm.pages.used, 0);
});

t.test('reclaim: a private copy of a file is swapped out as anonymous memory is', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(4) });
  m.file('A', 0, 4, 'f', { shared: false });
  m.fill('A', 0, 9);
  t.equal(m.run({ op: 'reclaim', pfn: m.pfn('A', 0) }).ret, 1);
  t.equal(m.entry('A', 0), 'swap');
  m.run({ op: 'punch_hole', file: 'f', offset: 0n, length: bytes(1) });
  t.equal(m.entry('A', 0), 'swap', 'a hole leaves copies alone');
  m.run({ op: 'truncate', file: 'f', size: 0n });
  t.equal(m.entry('A', 0), 'none');
  t.strictSame(swapped(m), []);
});

t.test(
  'reclaim: a page that is clean in every entry and was never written since is discarded without a slot',
  async (t) => {
    const m = pageMachine();
    m.anon('A', 0, 1);
    m.write('A', 0);
    const pfn = m.pfn('A', 0);
    const { page_table } = m.mm('A');
    const leaf = [...page_table.leaves.values()][0];
    if (leaf === undefined) throw new Error('no leaf');
    // What MADV_FREE leaves: a clean entry.
    leaf.words[1] = (leaf.words[1] as number) & ~0x20;
    t.strictSame(m.run({ op: 'reclaim', pfn }).fields, { freed: true, kept: null });
    t.strictSame([m.entry('A', 0), swapped(m)], ['none', []]);
  },
);

t.test('reclaim: no slot left keeps the page mapped', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 2);
  m.write('A', 0);
  const { slots } = m.host.mm.swap;
  Object.defineProperty(slots, 'size', { value: 16384, configurable: true });
  m.mark();
  t.strictSame(m.run({ op: 'reclaim', pfn: m.pfn('A', 0) }).fields, { freed: false, kept: 'no_swap' });
  t.strictSame(m.pairs(), []);
  t.equal(m.entry('A', 0), 'writable');
});

t.test('swap-in: no page left is OOM, and the entry stays', async (t) => {
  const m = new PageMachine(new Machine({ total_pages: 2 }), ['A']);
  m.anon('A', 0, 4);
  m.write('A', 0);
  m.run({ op: 'reclaim', pfn: m.pfn('A', 0) });
  m.write('A', 1);
  m.write('A', 2);
  t.equal(m.read('A', 0).fields.fault, 'OOM');
  t.equal(m.entry('A', 0), 'swap');
  m.run({ op: 'reclaim', pfn: m.pfn('A', 1) });
  t.equal(m.read('A', 0).fields.fault, 'NOPAGE');
});

t.test('a pin of a swapped-out page brings it back', async (t) => {
  const m = pinning();
  m.anon('T', 0, 1);
  m.fill('T', 0, 5);
  m.run({ op: 'reclaim', pfn: m.pfn('T', 0) });
  m.pin(0);
  t.strictSame([m.entry('T', 0), m.byte('T', 0)], ['writable', 5]);
  t.strictSame(m.counts(m.pfn('T', 0)), [1025, 1]);
});
