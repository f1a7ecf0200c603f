// Tests of files: sizes, truncate, punch_hole, mkclean, and the faults that wait for a page of a file.

import t from 'tap';
import { at, BASE, bytes, pageMachine, pinning } from './page-machine.ts';

const PROFILES = ['4.10', '5.4', '5.8', '5.15', '6.18'];

t.test('put_file: the same size changes nothing, another is EEXIST', async (t) => {
  const m = pageMachine();
  const made = m.run({ op: 'put_file', file: 'f', size: 0x1800n });
  t.strictSame([made.created, made.fields], [true, { file: 'f', size: 0x1800n, cached_pages: 0 }]);
  t.equal(m.run({ op: 'put_file', file: 'f', size: 0x1800n }).created, false);
  t.equal(m.run({ op: 'put_file', file: 'f', size: 0n }).refusal?.errno, 'EEXIST');
  t.equal(m.run({ op: 'put_file', file: 'g', size: 2n ** 63n }).refusal?.errno, 'EINVAL');
  m.file('A', 0, 1, 'h');
  t.equal(m.run({ op: 'put_file', file: 'h', size: 0n }).refusal?.errno, 'EEXIST', 'first mentioned by an mmap');
  m.run({ op: 'truncate', file: 'f', size: 0n });
  t.equal(
    m.run({ op: 'put_file', file: 'f', size: 0x1800n }).created,
    false,
    'compared with the size it was made with',
  );
});

t.test('a page beyond the end of its file is SIGBUS for the CPU, shared or private, read or written', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: 0x1001n });
  m.file('A', 0, 4, 'f');
  m.file('B', 0, 4, 'f', { shared: false });
  for (const task of ['A', 'B']) {
    t.equal(m.read(task, 1).fields.fault, 'NOPAGE', 'the page that the last byte is in');
    t.equal(m.read(task, 2).fields.fault, 'SIGBUS');
    t.equal(m.write(task, 2).fields.fault, 'SIGBUS');
  }
  m.run({ op: 'truncate', file: 'f', size: 0x2001n });
  t.equal(m.read('A', 2).fields.fault, 'NOPAGE');
});

t.test('a page beyond the end of its file is EFAULT for a pin', async (t) => {
  const m = pinning();
  m.run({ op: 'put_file', file: 'f', size: 0x1000n });
  m.file('T', 0, 2, 'f');
  m.pin(0);
  t.throws(() => m.pin(1), /SIGBUS/);
});

for (const profile of PROFILES)
  t.test(
    `A-13 (${profile}): a copied page of a private file survives a hole punch and goes with a truncate`,
    async (t) => {
      const m = pageMachine(profile);
      m.run({ op: 'put_file', file: 'f', size: bytes(8) });
      m.file('A', 0, 8, 'f', { shared: false });
      m.read('A', 2);
      m.write('A', 3);
      const [page, copy] = [m.pfn('A', 2), m.pfn('A', 3)];
      m.watch('A');
      m.mark();
      t.equal(m.run({ op: 'punch_hole', file: 'f', offset: bytes(2), length: bytes(2) }).ret, 0);
      t.strictSame([m.entry('A', 2), m.entry('A', 3)], ['none', 'writable']);
      t.equal(m.pfn('A', 3), copy);
      t.strictSame(m.counts(page), [0, 0]);
      t.strictSame(m.told(), ['N-A.invalidate_range_start CLEAR 2-4', 'N-A.invalidate_range_end CLEAR 2-4'], 'once');
      t.strictSame(m.locksHeld(), ['i_rwsem i_mmap', 'i_rwsem i_mmap'], 'and no mmap_lock');
      m.mark();
      t.equal(m.run({ op: 'truncate', file: 'f', size: bytes(1) }).ret, 0);
      t.equal(m.entry('A', 3), 'none');
      t.strictSame(m.counts(copy), [0, 0]);
      t.strictSame(m.pairs(), ['mm-1 CLEAR 1-8', 'mm-1 CLEAR 1-8'], 'before the pages go, and again');
      t.equal(m.read('A', 3).fields.fault, 'SIGBUS');
    },
  );

for (const profile of PROFILES)
  t.test(`truncate (${profile}): i_mmap is held ${profile === '6.18' ? 'with others' : 'alone'}`, async (t) => {
    const m = pageMachine(profile);
    m.run({ op: 'put_file', file: 'f', size: bytes(4) });
    m.file('A', 0, 4, 'f');
    m.read('A', 1);
    const stopped = m.run({ op: 'truncate', file: 'f', size: 0n, stop_at: 'after_start' });
    const mode = profile === '6.18' ? 'R' : 'W';
    t.strictSame(
      m.host.locks.get('i_mmap:f')?.holders.map((holder) => holder.mode),
      [mode],
    );
    t.equal(m.host.locks.get('i_rwsem:f')?.holders[0]?.mode, 'W');
    t.equal(m.resume(stopped)?.ret, 0);
  });

t.test('truncate: a page that is mapped again between two passes gets an event of its own', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 8, 'f');
  m.file('B', 0, 2, 'f', { pgoff: 4 });
  m.read('A', 4);
  m.read('A', 5);
  const cutting = m.run({ op: 'truncate', file: 'f', size: 0x4001n, stop_at: 'after_end' });
  t.equal(m.entry('A', 5), 'none');
  t.equal(m.read('A', 5).fields.fault, 'SIGBUS', 'the size is changed first');
  t.equal(m.entry('A', 4), 'read-only', 'the page that the end is in stays');
  m.resume(cutting);

  const later = pageMachine();
  later.run({ op: 'put_file', file: 'f', size: bytes(8) });
  later.file('A', 0, 8, 'f');
  later.file('B', 0, 8, 'f');
  later.read('A', 5);
  const stopped = later.run({ op: 'truncate', file: 'f', size: bytes(4), stop_at: 'after_start' });
  t.strictSame(later.pairs(), ['mm-1 CLEAR 4-8']);
  later.mark();
  t.equal(later.resume(stopped)?.ret, 0);
  t.strictSame(later.pairs(), ['mm-2 CLEAR 4-8', 'mm-1 CLEAR 4-8', 'mm-2 CLEAR 4-8']);
});

t.test('punch_hole and truncate look at the cache of a file a few times, not once for each of its pages', async (t) => {
  const PAGES = 10_000;
  for (const op of ['punch_hole', 'truncate'] as const) {
    const m = pageMachine();
    m.run({ op: 'put_file', file: 'f', size: bytes(PAGES) });
    m.file('A', 0, PAGES, 'f');
    m.run({ op: 'gup', task: 'A', addr: at(0), npage: PAGES, flags: 4, gup: 'g' });
    m.run({ op: 'put_gup', gup: 'g', dirty: 'no' });
    const pages = m.host.mm.files.get('f')?.pages as Map<number, number>;
    t.equal(pages.size, PAGES);
    let looks = 0;
    pages.keys = () => {
      looks++;
      return Map.prototype.keys.call(pages);
    };
    const gone =
      op === 'truncate'
        ? m.run({ op, file: 'f', size: 0n })
        : m.run({ op, file: 'f', offset: 0n, length: bytes(PAGES) });
    t.strictSame([gone.ret, pages.size], [0, 0], op);
    t.equal(looks, 4, `${op}: 4096 pages at a time, and that none is left`);
  }
});

t.test('punch_hole: a page that is mapped again before it goes gets an event of its own', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 8, 'f');
  m.read('A', 5);
  const stopped = m.run({ op: 'punch_hole', file: 'f', offset: bytes(5), length: bytes(1), stop_at: 'after_end' });
  t.equal(m.entry('A', 5), 'none');
  m.read('A', 5);
  m.mark();
  t.equal(m.resume(stopped)?.ret, 0);
  t.strictSame(m.pairs(), ['mm-1 CLEAR 5-6']);
  t.strictSame(
    m.trace('lock').filter(({ lock, state }) => /^page_lock/.test(lock as string) && state === 'held').length,
    1,
  );
  t.equal(m.entry('A', 5), 'none');
});

t.test(
  'truncate: waits for a page that somebody has locked, and for the entries that somebody is changing',
  async (t) => {
    const m = pageMachine();
    m.run({ op: 'put_file', file: 'f', size: bytes(8) });
    m.file('A', 0, 8, 'f');
    m.read('A', 5);
    const pfn = m.pfn('A', 5);
    m.run({ op: 'lock', task: 'B', lock: `page_lock:${pfn}` });
    const cutting = m.run({ op: 'truncate', file: 'f', size: 0n });
    t.equal(m.waitsFor(cutting), `page_lock:${pfn}`);
    m.run({ op: 'unlock', task: 'B', lock: `page_lock:${pfn}` });
    t.equal(m.outcomeOf(cutting)?.ret, 0);
    t.equal(m.host.mm.files.get('f')?.pages.size, 0);

    const other = pageMachine();
    other.run({ op: 'put_file', file: 'f', size: bytes(8) });
    other.file('A', 0, 8, 'f');
    other.write('A', 5);
    const cleaning = other.run({ op: 'mkclean', pfn: other.pfn('A', 5), stop_at: 'after_pte_clear' });
    const hole = other.run({ op: 'punch_hole', file: 'f', offset: 0n, length: bytes(1) });
    t.match(other.waitsFor(hole), /^i_mmap:f/);
    t.equal(other.resume(cleaning)?.ret, 1);
    t.equal(other.outcomeOf(hole)?.ret, 0);
  },
);

t.test('truncate: bytes behind the end read as zeros when the file grows again', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(2) });
  m.file('A', 0, 2, 'f');
  m.fill('A', 0, 5);
  m.fill('A', 1, 6);
  m.run({ op: 'mkclean', pfn: m.pfn('A', 0) });
  m.run({ op: 'truncate', file: 'f', size: 100n });
  m.run({ op: 'truncate', file: 'f', size: bytes(2) });
  m.read('A', 0);
  m.read('A', 1);
  const data = m.host.mm.pages.bytes.get(m.pfn('A', 0))?.data as Uint8Array;
  t.strictSame([data[99], data[100], data[4095], m.byte('A', 1)], [5, 0, 0, 0]);
});

t.test('punch_hole: rounded inward, what is left at both ends is zeroed', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(4) });
  m.file('A', 0, 4, 'f');
  for (let page = 0; page < 4; page++) m.fill('A', page, 8);
  m.mark();
  m.run({ op: 'punch_hole', file: 'f', offset: 0x800n, length: bytes(2) });
  t.strictSame(m.pairs(), ['mm-1 CLEAR 1-2']);
  const data = (page: number): Uint8Array | undefined => m.host.mm.pages.bytes.get(m.pfn('A', page))?.data;
  t.strictSame([data(0)?.[0x7ff], data(0)?.[0x800], data(2)?.[0x7ff], data(2)?.[0x800]], [8, 0, 0, 8]);
  t.equal(m.entry('A', 1), 'none');
  m.mark();
  m.run({ op: 'punch_hole', file: 'f', offset: 0x3100n, length: 0x100n });
  t.strictSame(m.pairs(), [], 'no whole page: nobody is told');
  t.strictSame([data(3)?.[0xff], data(3)?.[0x100], data(3)?.[0x200]], [8, 0, 8]);
  t.equal(m.run({ op: 'punch_hole', file: 'f', offset: 0n, length: 0n }).refusal?.errno, 'EINVAL');
  t.equal(m.run({ op: 'punch_hole', file: 'f', offset: 1n, length: 2n ** 63n - 1n }).refusal?.errno, 'EINVAL');
});

t.test(
  'truncate: a pinned page goes from the address and the file, and stays alive until it is unpinned',
  async (t) => {
    const m = pinning();
    m.run({ op: 'put_file', file: 'f', size: bytes(2) });
    m.file('T', 0, 2, 'f');
    m.pin(1);
    const pfn = m.pfn('T', 1);
    m.run({ op: 'truncate', file: 'f', size: bytes(1) });
    t.strictSame(m.counts(pfn), [1024, 0]);
    m.run({ op: 'truncate', file: 'f', size: bytes(2) });
    m.read('T', 1);
    t.not(m.pfn('T', 1), pfn, 'a later touch maps another page');
    m.m.unpin([0x10000n]);
    t.strictSame(m.counts(pfn), [0, 0]);
  },
);

t.test(
  'mkclean: PROTECTION_PAGE in every shared area of the file, under the page lock and i_mmap; private ones are passed over',
  async (t) => {
    const m = pageMachine('5.15', ['A', 'B', 'C']);
    m.run({ op: 'put_file', file: 'f', size: bytes(8) });
    m.file('A', 0, 4, 'f');
    m.file('B', 20, 4, 'f', { pgoff: 1 });
    m.file('C', 0, 4, 'f', { shared: false });
    m.write('A', 2);
    m.read('B', 21);
    m.read('C', 2);
    const pfn = m.pfn('A', 2);
    for (const task of ['A', 'B', 'C']) m.watch(task);
    m.mark();
    const cleaned = m.run({ op: 'mkclean', pfn });
    t.strictSame([cleaned.ret, cleaned.fields], [1, { pfn, cleaned: 1 }], 'one entry was dirty');
    t.strictSame(m.told(), [
      'N-A.invalidate_range_start PROTECTION_PAGE 2-3',
      'N-A.invalidate_range_end PROTECTION_PAGE 2-3',
      'N-B.invalidate_range_start PROTECTION_PAGE 21-22',
      'N-B.invalidate_range_end PROTECTION_PAGE 21-22',
    ]);
    t.strictSame(new Set(m.locksHeld()), new Set(['page_lock i_mmap']), 'and no mmap_lock');
    t.equal(m.entry('A', 2), 'read-only');
    t.equal(m.host.mm.pages.needsWriteback(pfn), false);
    m.mark();
    t.equal(m.write('A', 2).fields.pfn, pfn, 'the next write faults: the same page, writable');
    t.strictSame([m.entry('A', 2), m.pairs()], ['writable', []]);
    t.equal(m.run({ op: 'mkclean', pfn }).ret, 1, 'and dirty again');
    t.equal(m.run({ op: 'mkclean', pfn }).ret, 0);
  },
);

t.test('mkclean: under the page-table lock the entry is none; others wait for it, an unmap too', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 4, 'f');
  m.write('A', 0);
  const stopped = m.run({ op: 'mkclean', pfn: m.pfn('A', 0), stop_at: 'after_pte_clear' });
  t.equal(m.entry('A', 0), 'none');
  const unmap = m.munmap('A', 0, 4);
  t.match(m.waitsFor(unmap), /^ptl:mm-1:/);
  t.equal(m.resume(stopped)?.ret, 1);
  t.equal(m.outcomeOf(unmap)?.ret, 0);
  t.equal(m.mm('A').page_table.leaves.size, 0);
});

t.test('mkclean: a write that makes the page dirty again waits for the page lock', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 4, 'f');
  m.write('A', 0);
  const pfn = m.pfn('A', 0);
  const stopped = m.run({ op: 'mkclean', pfn, stop_at: 'before_end' });
  t.equal(m.read('A', 0).fields.fault, 'NOPAGE', 'a read needs nothing');
  const write = m.write('A', 0);
  t.equal(m.waitsFor(write), `page_lock:${pfn}`);
  m.resume(stopped);
  t.equal(m.outcomeOf(write)?.fields.pfn, pfn);
});

t.test('mkclean: EINVAL for a page of no file, ENOENT for a free frame', async (t) => {
  const m = pageMachine();
  m.anon('A', 0, 1);
  m.write('A', 0);
  const errno = (pfn: number): unknown => m.run({ op: 'mkclean', pfn }).refusal?.errno;
  t.strictSame([errno(2 ** 52), errno(3), errno(m.pfn('A', 0))], ['EINVAL', 'ENOENT', 'EINVAL']);
});

t.test('A.6: the dirty bit of an entry that goes moves to the page of the file, before its reference', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 4, 'f');
  m.write('A', 0);
  m.read('A', 1);
  const [written, read] = [m.pfn('A', 0), m.pfn('A', 1)];
  m.munmap('A', 0, 4);
  t.equal(m.host.mm.pages.needsWriteback(written), true);
  t.equal(m.host.mm.pages.needsWriteback(read), false);
  m.file('A', 0, 4, 'f');
  t.equal(m.read('A', 0).fields.pfn, written);
});

t.test('a fault on a page of a file that somebody has locked waits for it', async (t) => {
  const m = pageMachine();
  m.run({ op: 'put_file', file: 'f', size: bytes(8) });
  m.file('A', 0, 4, 'f');
  m.file('B', 0, 4, 'f');
  m.read('A', 0);
  const lock = `page_lock:${m.pfn('A', 0)}`;
  m.run({ op: 'lock', task: 'A', lock });
  const access = m.read('B', 0);
  t.equal(m.waitsFor(access), lock);
  m.run({ op: 'unlock', task: 'A', lock });
  t.equal(m.outcomeOf(access)?.fields.pfn, m.pfn('A', 0));
});

t.test('files: an unknown one is not found', async (t) => {
  const m = pageMachine();
  t.equal(m.run({ op: 'truncate', file: 'f', size: 0n }).refusal?.errno, 'NOT_FOUND');
  t.equal(m.run({ op: 'punch_hole', file: 'f', offset: 0n, length: 1n }).refusal?.errno, 'NOT_FOUND');
  m.run({ op: 'put_file', file: 'f', size: 0n });
  t.equal(m.run({ op: 'truncate', file: 'f', size: 2n ** 63n }).refusal?.errno, 'EINVAL');
  t.equal(m.mm('A').page_table.flags(BASE), 0);
  t.equal(at(0), 0x7f0000000000n);
});
