// The numbered cases of the host mm that the operations of a task answer for, in every profile that they are stated for.

import t from 'tap';

import { mmapLock } from '../../src/kernel/lock.ts';
import { FOLL_GET, FOLL_NOWAIT, FOLL_PIN, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import { maybeDmaPinned } from '../../src/kernel/mm/page.ts';
import { PTE_SPECIAL, PTE_SWAP, PTE_TYPE_MASK, PTE_WRITE } from '../../src/kernel/mm/page-table.ts';
import { VM_WRITE } from '../../src/kernel/mm/vma.ts';
import { at, MmHost, P53, P58, P515, P614, PAGE, READ } from './mm-threads.ts';

const ALL = ['4.10', P53, P58, P515, P614];
const WITH_PIN = [P58, P515, P614];
const PLAIN = ['invalidate_range_start', 'invalidate_range_end'] as const;

/** What a write gives to the entry of a page. */
const isWritable = (m: MmHost, page: number, task = 'T'): boolean =>
  ((m.pte(page, task)?.flags ?? 0) & PTE_WRITE) !== 0;

for (const profile of ALL) {
  t.test(
    `A-1 ${profile}: the zero page is read for nothing; its first write is one CLEAR, told under ptl`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 4);
      const old = profile !== P614;
      m.plain('N', old ? [...PLAIN, 'invalidate_range', 'change_pte'] : [...PLAIN]);
      m.mark();
      m.touch(1, false);
      t.strictSame([m.started(), (m.pte(1)?.flags ?? 0) & (PTE_SPECIAL | PTE_WRITE)], [[], PTE_SPECIAL]);
      m.touch(1, true);
      t.strictSame(m.started(), [`CLEAR ${m.mm().id} 1+1`]);
      const underPtl = old ? ['N.invalidate_range', 'N.change_pte'] : [];
      t.strictSame(m.sequence(), [
        'start CLEAR',
        'N.invalidate_range_start',
        'pte clear',
        ...underPtl,
        'pte set',
        'end',
        'N.invalidate_range_end',
      ]);
      t.ok(isWritable(m, 1));
    },
  );

  t.test(`A-2 ${profile}: the first write to anonymous memory tells nobody`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 4);
    m.plain('N', [...PLAIN]);
    m.mark();
    m.touch(2, true);
    const pfn = m.pfn(2) as number;
    const { pages } = m.host.mm;
    t.strictSame([pages.refcount(pfn), pages.mapcount(pfn), m.started()], [1, 1, []]);
  });

  t.test(
    `A-3 ${profile}: fork tells the parent one PROTECTION_PAGE of the whole area, and shares the page`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 8);
      m.touch(3, true);
      m.mark();
      t.equal(m.run({ op: 'fork', child: 'C' }).ret, 0);
      t.strictSame([m.started(), m.ended()], [[`PROTECTION_PAGE ${m.mm().id} 0+8`], 1]);
      const pfn = m.pfn(3) as number;
      const { pages } = m.host.mm;
      t.equal(m.pfn(3, 'C'), pfn);
      t.strictSame([isWritable(m, 3), isWritable(m, 3, 'C')], [false, false]);
      t.strictSame([pages.refcount(pfn), pages.mapcount(pfn)], [2, 2]);
    },
  );

  t.test(
    `A-6 ${profile}: a page that was got, shared by fork and then written by the parent leaves its address`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 1);
      m.touch(0, true);
      const held = m.gup(0, FOLL_GET | FOLL_WRITE).fields;
      const [pfn] = held.pfns as number[];
      m.run({ op: 'fork', child: 'C' });
      t.equal(m.pfn(0), pfn, 'still the held page');
      m.touch(0, true);
      t.not(m.pfn(0), pfn, 'the parent has moved');
      t.equal(m.pfn(0, 'C'), pfn);
      t.equal(m.host.mm.pages.refcount(pfn as number), 2, 'the child and who got it');
      m.run({ op: 'put_gup', gup: held.id as string, dirty: 'no' });
      t.equal(m.host.mm.pages.refcount(pfn as number), 1);
    },
  );

  t.test(`A-11 ${profile}: munmap over two areas and a hole tells one UNMAP of the whole request`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 2);
    m.mmap(4, 2);
    m.touch(1, true);
    m.mark();
    t.equal(m.range('munmap', 0, 6).ret, 0);
    t.strictSame([m.started(), m.ended()], [[`UNMAP ${m.mm().id} 0+6`], 1]);
    m.mark();
    t.equal(m.range('munmap', 0, 6).ret, 0);
    t.strictSame(m.started(), [], 'nothing is mapped: nobody is told');
  });

  t.test(`A-14 ${profile}: mprotect changes the area before it tells, and the entries after`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 8);
    m.touch(3, true);
    m.mark();
    const length = 8n * PAGE;
    const stopped = m.run({ op: 'mprotect', addr: at(0), length, prot: READ, stop_at: 'after_start' });
    t.equal(m.operation(stopped).state, 'stopped');
    t.strictSame(m.started(), [`PROTECTION_VMA ${m.mm().id} 0+8`]);
    t.equal((m.vma(3)?.flags ?? 0) & VM_WRITE, 0, 'the area may only be read');
    t.ok(isWritable(m, 3), 'the entry may still be written');
    t.equal(m.resume(stopped).ret, 0);
    t.notOk(isWritable(m, 3));
  });

  t.test(`A-15 ${profile}: DONTNEED of a locked area is EINVAL and tells nobody`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 4);
    m.touch(0, true);
    m.run({ op: 'mlock', addr: at(0), length: 4n * PAGE, lock: true });
    m.mark();
    t.equal(m.madvise('DONTNEED', 0, 4).refusal?.errno, 'EINVAL');
    t.strictSame([m.started(), m.pfn(0) !== null], [[], true]);
    m.run({ op: 'mlock', addr: at(0), length: 4n * PAGE, lock: false });
    t.equal(m.madvise('DONTNEED', 0, 4).ret, 0);
    t.equal(m.pte(0), null);
  });

  t.test(`A-18 ${profile}: 1024 references look like a pin, and fork shares the page all the same`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 1);
    m.touch(0, true);
    const pfn = m.pfn(0) as number;
    for (let i = 0; i < 1023; i++) m.gup(0, FOLL_GET | FOLL_WRITE);
    t.strictSame([maybeDmaPinned(m.host, pfn), m.mm().has_pinned], [true, false], '1023 and the mapping');
    m.gup(0, FOLL_GET | FOLL_WRITE);
    m.run({ op: 'fork', child: 'C' });
    t.equal(m.pfn(0, 'C'), pfn);
  });

  t.test(
    `A-19 ${profile}: exit tells intervals RELEASE, then plain notifiers release(), then intervals UNMAP`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 4);
      m.touch(0, true);
      const { id } = m.mm();
      m.plain('N', [...PLAIN, 'release']);
      const intervals = m.host.profile.intervalNotifiers;
      if (intervals) m.interval('S', 0, 4);
      m.mark();
      t.equal(m.run({ op: 'exit' }).ret, 0);
      const told = intervals ? ['S.invalidate'] : [];
      t.strictSame(m.sequence(), [...told, 'N.release', 'start UNMAP', ...told, 'end']);
      t.equal(m.zombie(id).users, 0, 'its subscribers keep the structure');
      t.equal(m.host.mm.pages.used, 0);
      m.mark();
      m.run({ op: 'unregister_mmu_notifier', id: 'N' });
      if (intervals) m.run({ op: 'remove_interval_notifier', id: 'S' });
      t.strictSame([m.sequence(), m.host.mm.zombies.has(id)], [[], false]);
    },
  );
}

for (const profile of WITH_PIN) {
  t.test(`A-5 ${profile}: fork of a pinned page, and the event all the same`, async (t) => {
    const m = new MmHost(profile);
    m.mmap(0, 4);
    m.touch(0, true);
    const [pfn] = m.gup(0, FOLL_PIN | FOLL_WRITE).fields.pfns as number[];
    m.mark();
    m.run({ op: 'fork', child: 'C' });
    t.strictSame(m.started(), [`PROTECTION_PAGE ${m.mm().id} 0+4`]);
    t.equal(m.pfn(0), pfn);
    const copied = profile !== P58;
    t.equal(m.pfn(0, 'C') !== pfn, copied, 'the child has a copy where the kernel copies early');
    t.equal(isWritable(m, 0), copied, 'and then the parent may still write');
    t.equal(isWritable(m, 0, 'C'), copied);
  });

  t.test(
    `A-9 ${profile}: DONTNEED of a pinned page: the mapping goes, the page stays until it is unpinned`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 1);
      m.touch(0, true);
      const pin = m.gup(0, FOLL_PIN | FOLL_WRITE).fields;
      const [pfn] = pin.pfns as [number];
      m.mark();
      t.equal(m.madvise('DONTNEED', 0, 1).ret, 0);
      t.strictSame([m.started(), m.ended(), m.pte(0)], [[`CLEAR ${m.mm().id} 0+1`], 1, null]);
      t.equal(m.host.mm.pages.refcount(pfn), 1024);
      m.touch(0, false);
      t.equal((m.pte(0)?.flags ?? 0) & PTE_SPECIAL, PTE_SPECIAL, 'the zero page');
      m.run({ op: 'put_gup', gup: pin.id as string, dirty: 'no' });
      t.equal(m.host.mm.pages.refcount(pfn), 0);
      t.strictSame([m.host.mm.pages.pinsAcquired(), m.host.mm.pages.pins_released], [1, 1]);
    },
  );
}

t.test('A-6 6.18: a page that was pinned and then shared stays at its address when the parent writes', async (t) => {
  const m = new MmHost(P614);
  m.mmap(0, 1);
  m.touch(0, true);
  const [pfn] = m.gup(0, FOLL_PIN | FOLL_WRITE).fields.pfns as number[];
  m.run({ op: 'fork', child: 'C' });
  m.mark();
  m.touch(0, true);
  t.strictSame([m.pfn(0), m.started()], [pfn, []]);
});

for (const [profile, moves] of [
  [P515, true],
  [P614, false],
] as const)
  t.test(
    `A.4 ${profile}: a write to a read-only page that somebody has got ${moves ? 'copies' : 'reuses'} it`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 1);
      m.touch(0, true);
      const [pfn] = m.gup(0, FOLL_GET | FOLL_WRITE).fields.pfns as number[];
      for (const prot of [READ, 3]) m.run({ op: 'mprotect', addr: at(0), length: PAGE, prot });
      m.mark();
      m.touch(0, true);
      t.equal(m.pfn(0) !== pfn, moves);
      t.equal(m.started().length, moves ? 1 : 0);
    },
  );

t.test('mmap over areas tells their UNMAP first, with mmap_lock held for writing all along', async (t) => {
  const m = new MmHost(P515);
  m.mmap(0, 4);
  m.touch(1, true);
  const lock = mmapLock(m.mm().id);
  m.mark();
  const stopped = m.run({
    op: 'mmap',
    addr: at(0),
    length: 4n * PAGE,
    prot: READ,
    backing: { kind: 'anon' },
    noreplace: false,
    stop_at: 'after_start',
  });
  t.strictSame([m.started(), m.vma(0)], [[`UNMAP ${m.mm().id} 0+4`], null]);
  t.strictSame(m.host.locks.get(lock)?.holders, [{ by: stopped.parked, mode: 'W' }]);
  t.equal(m.touch(1, false).fields.fault, 'NOPAGE', 'the entry is there still: the CPU needs no fault');
  const other = m.touch(2, false);
  t.equal(m.operation(other).blocked_on, lock);
  t.equal(m.resume(stopped).ret, 0);
  t.equal(m.operation(other).outcome?.fields.fault, 'NOPAGE');
});

for (const profile of ALL)
  t.test(
    `A-17 ${profile}: GUP of a swapped-out page whose lock is taken: NOWAIT is 0 and keeps mmap_lock, plain waits`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 1);
      m.run({ op: 'access', addr: at(0), write: true, data: 'AQI=' });
      m.run({ op: 'reclaim', pfn: m.pfn(0) as number });
      t.equal((m.pte(0)?.flags ?? 0) & PTE_TYPE_MASK, PTE_SWAP);
      const lock = mmapLock(m.mm().id);
      const reader = m.run({ op: 'gup', addr: at(0), npage: 1, flags: FOLL_GET | FOLL_NOWAIT, stop_at: 'after_gup' });
      const got = m.resume(reader);
      t.equal(got.ret, 1, 'the lock is free: nothing has to wait');
      m.run({ op: 'reclaim', pfn: m.pfn(0) as number });
      t.equal((m.pte(0)?.flags ?? 0) & PTE_TYPE_MASK, PTE_SWAP, 'the reference keeps the page in the swap cache');
      const [pfn] = got.fields.pfns as [number];
      m.hold(`page_lock:${pfn}`);
      m.mark();
      const nowait = m.run({ op: 'gup', addr: at(0), npage: 1, flags: FOLL_GET | FOLL_NOWAIT, stop_at: 'after_gup' });
      t.strictSame(m.host.locks.get(lock)?.holders, [{ by: nowait.parked, mode: 'R' }]);
      t.strictSame(m.lockEvents(lock), ['held'], 'it was never dropped');
      t.equal(m.resume(nowait).ret, 0);
      const plain = m.gup(0, FOLL_GET);
      t.equal(m.operation(plain).blocked_on, `page_lock:${pfn}`);
      t.equal(m.host.locks.has(lock), false, 'mmap_lock was dropped');
      m.letGo(`page_lock:${pfn}`);
      t.strictSame([m.operation(plain).outcome?.ret, m.pfn(0)], [1, pfn]);
    },
  );
