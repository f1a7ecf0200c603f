// Tests of KSM: two events with the page lock held, the count of references, and what becomes of a page that was merged.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { at, type PageMachine, pageMachine, pinning } from './page-machine.ts';

const merge = (
  m: PageMachine,
  page: number,
  tree: number,
  stop_at?: 'after_start' | 'before_end' | 'after_end',
): Outcome =>
  m.run({
    op: 'ksm_merge',
    task: 'A',
    addr: at(page),
    with: { task: 'A', addr: at(tree) },
    ...(stop_at === undefined ? {} : { stop_at }),
  });

/** Pages 0, 1 and 2 of A hold the same bytes; 0 and 1 are merged. */
function merged(profile = '5.15'): PageMachine {
  const m = pageMachine(profile);
  m.anon('A', 0, 8);
  for (const page of [0, 1, 2]) m.fill('A', page, 1);
  merge(m, 0, 1);
  return m;
}

t.test('ksm_merge: two pages of equal bytes become one, read-only; who writes gets a copy', async (t) => {
  const m = merged();
  const stable = m.pfn('A', 0);
  t.equal(m.pfn('A', 1), stable);
  t.strictSame([m.entry('A', 0), m.entry('A', 1), m.counts(stable)], ['read-only', 'read-only', [2, 2]]);
  m.mark();
  m.write('A', 1);
  t.strictSame(m.pairs(), ['mm-1 CLEAR 1-2']);
  t.strictSame([m.pfn('A', 0), m.entry('A', 1), m.byte('A', 1)], [stable, 'writable', 1]);
  m.mark();
  m.write('A', 0);
  t.not(m.pfn('A', 0), stable, 'the last one too: a merged page is never written in place');
  t.strictSame(m.counts(stable), [0, 0]);
});

for (const profile of ['5.4', '5.8', '5.15', '6.18'])
  t.test(
    `ksm_merge (${profile}): CLEAR twice, each over one page, start and end with the page lock and mmap_lock held`,
    async (t) => {
      const m = merged(profile);
      const [scanned, stable] = [m.pfn('A', 2), m.pfn('A', 0)];
      m.watch('A');
      m.mark();
      t.strictSame(merge(m, 2, 0).fields, { pfn: stable });
      const pair = ['N-A.invalidate_range_start CLEAR 2-3', 'N-A.invalidate_range_end CLEAR 2-3'];
      t.strictSame(m.told(), [...pair, ...pair]);
      t.strictSame(new Set(m.locksHeld()), new Set(['mmap_lock page_lock']));
      t.strictSame(m.trace('notify')[0]?.locks_held, ['mmap_lock:mm-1', `page_lock:${scanned}`]);
      t.strictSame(
        [m.counts(scanned), m.counts(stable)],
        [
          [0, 0],
          [3, 3],
        ],
      );
    },
  );

for (const profile of ['5.4', '5.8', '5.15'])
  t.test(`ksm_merge (${profile}): change_pte comes before the new entry is set, in both steps`, async (t) => {
    const m = merged(profile);
    m.watch('A', 'C', ['change_pte']);
    m.mark();
    merge(m, 2, 0);
    const order = m.trace('notify', 'pte').map(({ callback, change }) => callback ?? change);
    const step = ['clear', 'change_pte', 'set'];
    t.strictSame(order, [...step, ...step]);
  });

for (const profile of ['5.8', '5.15', '6.18'])
  t.test(
    `A-7 (${profile}): KSM merge of a pinned page is EFAULT after exactly one CLEAR pair; the entry stays writable`,
    async (t) => {
      const m = pinning(profile);
      m.anon('T', 0, 4);
      m.write('T', 0);
      m.write('T', 1);
      m.pin(0);
      const pfn = m.pfn('T', 0);
      m.watch('T');
      m.mark();
      const out = m.run({ op: 'ksm_merge', task: 'T', addr: at(0), with: { task: 'T', addr: at(1) } });
      t.equal(out.refusal?.errno, 'EFAULT');
      t.strictSame(m.told(), ['N-T.invalidate_range_start CLEAR 0-1', 'N-T.invalidate_range_end CLEAR 0-1']);
      t.strictSame([m.pfn('T', 0), m.entry('T', 0)], [pfn, 'writable']);
    },
  );

t.test('ksm_merge: an entry that is read-only and clean already is taken whoever holds the page', async (t) => {
  const m = merged();
  // A page that was swapped in for a read: read-only, clean, and in the swap cache.
  m.run({ op: 'reclaim', pfn: m.pfn('A', 2) });
  m.read('A', 2);
  t.equal(m.entry('A', 2), 'read-only');
  const pfn = m.pfn('A', 2);
  t.equal(m.host.mm.swap.cache.has(pfn), true);
  t.equal(merge(m, 2, 0).ret, 0);
  t.equal(m.pfn('A', 2), m.pfn('A', 0));
  t.equal(m.host.mm.swap.slots.size, 0, 'its slot goes with it');
});

t.test('ksm_merge: a page lock that is taken is EFAULT without an event', async (t) => {
  const m = merged();
  m.run({ op: 'lock', task: 'B', lock: `page_lock:${m.pfn('A', 2)}` });
  m.mark();
  t.equal(merge(m, 2, 0).refusal?.errno, 'EFAULT');
  t.strictSame(m.pairs(), []);
});

t.test('ksm_merge: bytes that differ are EFAULT after one pair, and the page is write-protected by then', async (t) => {
  const m = merged();
  m.fill('A', 3, 2);
  m.mark();
  t.equal(merge(m, 3, 0).refusal?.errno, 'EFAULT');
  t.strictSame(m.pairs(), ['mm-1 CLEAR 3-4']);
  t.equal(m.entry('A', 3), 'read-only');
  m.mark();
  m.write('A', 3);
  t.strictSame(m.pairs(), [], 'its own page: it becomes writable again');
});

t.test('ksm_merge: a write between the two pairs is EFAULT, and the second pair is delivered', async (t) => {
  const m = merged();
  m.mark();
  const stopped = merge(m, 2, 0, 'after_end');
  const second = m.resume(stopped, { stop_at: 'after_start' });
  t.equal(second, null);
  m.write('A', 2);
  t.equal(m.resume(stopped)?.refusal?.errno, 'EFAULT');
  t.strictSame(m.pairs(), ['mm-1 CLEAR 2-3', 'mm-1 CLEAR 2-3', 'mm-1 CLEAR 2-3'], 'two of the merge, one of the copy');
  t.equal(m.entry('A', 2), 'writable');
});

t.test('ksm_merge: of two pages that fail to merge the one that was made stable is copied back', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 4);
  m.fill('A', 0, 1);
  m.fill('A', 1, 2);
  m.mark();
  t.equal(merge(m, 0, 1).refusal?.errno, 'EFAULT');
  t.strictSame(m.pairs(), ['mm-1 CLEAR 0-1', 'mm-1 CLEAR 1-2', 'mm-1 CLEAR 0-1'], 'the third breaks the stable page');
  t.strictSame([m.entry('A', 0), m.byte('A', 0), m.byte('A', 1)], ['writable', 1, 2]);
});

t.test('ksm_merge: EFAULT where there is no anonymous page, EINVAL for a page with itself', async (t) => {
  const m = merged();
  m.read('A', 5);
  m.file('A', 10, 2, 'f', { shared: false });
  m.read('A', 10);
  for (const page of [4, 5, 10, 100]) t.equal(merge(m, page, 0).refusal?.errno, 'EFAULT', `page ${page}`);
  t.equal(merge(m, 0, 0).refusal?.errno, 'EINVAL');
});

t.test('ksm_merge: across two address spaces the page has a reverse map in both', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 2);
  m.anon('B', 7, 2);
  m.run({ op: 'ksm_merge', task: 'A', addr: at(0), with: { task: 'B', addr: at(7) } });
  m.write('A', 0);
  m.write('B', 7);
  t.equal(m.run({ op: 'ksm_merge', task: 'A', addr: at(0), with: { task: 'B', addr: at(7) } }).ret, 0);
  const stable = m.pfn('A', 0);
  t.equal(m.pfn('B', 7), stable);
  m.watch('A');
  m.watch('B');
  m.mark();
  t.equal(m.run({ op: 'reclaim', pfn: stable }).ret, 1);
  t.strictSame(m.pairs(), ['mm-1 CLEAR 0-1', 'mm-2 CLEAR 7-8']);
  t.strictSame(new Set(m.locksHeld()), new Set(['page_lock anon_vma anon_vma']));
  t.strictSame([m.entry('A', 0), m.entry('B', 7), m.host.mm.swap.slots.get(1)?.count], ['swap', 'swap', 2]);
  m.read('A', 0);
  t.strictSame(m.counts(m.pfn('A', 0)), [2, 1], 'one mapping, one cache');
  m.read('B', 7);
  t.equal(m.pfn('A', 0), m.pfn('B', 7));
});
