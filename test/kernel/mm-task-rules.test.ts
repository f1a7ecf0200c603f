// What the operations of a task refuse, in which order, and what they do beside the numbered cases.

import t from 'tap';

import type { Command } from '../../src/kernel/command.ts';
import { mmapLock } from '../../src/kernel/lock.ts';
import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_KILLABLE,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
  VM_FAULT_RETRY,
} from '../../src/kernel/mm/fault-flags.ts';
import {
  FOLL_FAST_ONLY,
  FOLL_FORCE,
  FOLL_GET,
  FOLL_HWPOISON,
  FOLL_NOFAULT,
  FOLL_PIN,
  FOLL_WRITE,
} from '../../src/kernel/mm/gup-flags.ts';
import { PTE_HWPOISON, PTE_SOFT_DIRTY, PTE_SPECIAL, PTE_WRITE, setPte } from '../../src/kernel/mm/page-table.ts';
import { VM_LOCKED } from '../../src/kernel/mm/vma.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { runOperation } from '../../src/kernel/thread.ts';
import { at, MmHost, P515, P614, PAGE, READ, RW } from './mm-threads.ts';

const errno = (outcome: Outcome): string => outcome.refusal?.errno ?? String(outcome.ret);
const GIB = 0x40000;

const host = (npage = 8): MmHost => {
  const m = new MmHost(P515);
  m.mmap(0, npage);
  return m;
};

const mremap = (m: MmHost, from: number, old: number, to: number, npage: number, rest: object = {}): Outcome =>
  m.run({
    op: 'mremap',
    addr: at(from),
    old_length: BigInt(old) * PAGE,
    new_length: BigInt(npage) * PAGE,
    new_addr: at(to),
    ...rest,
  });
const mprotect = (m: MmHost, first: number, npage: number, prot: number): Outcome =>
  m.run({ op: 'mprotect', addr: at(first), length: BigInt(npage) * PAGE, prot });
const fork = (m: MmHost, child = 'C'): Outcome => m.run({ op: 'fork', child });

t.test(
  'mprotect tells one PROTECTION_VMA for each upper-level table, from the first page of entries that exists',
  async (t) => {
    const m = new MmHost(P515);
    m.mmap(0, 3 * GIB);
    const { id } = m.mm();
    m.mark();
    t.equal(mprotect(m, 0, 3 * GIB, READ).ret, 0);
    t.strictSame(m.started(), [], 'nothing is populated');
    mprotect(m, 0, 3 * GIB, RW);
    m.touch(600, true);
    m.touch(2 * GIB + 5, true);
    m.mark();
    mprotect(m, 10, 3 * GIB - 20, READ);
    t.strictSame(m.started(), [`PROTECTION_VMA ${id} 512+${GIB - 512}`, `PROTECTION_VMA ${id} ${2 * GIB}+${GIB - 10}`]);
    m.mark();
    mprotect(m, 10, 3 * GIB - 20, READ);
    t.strictSame(m.started(), [], 'the same permission: nothing to do');
    t.equal(errno(mprotect(m, 3 * GIB - 1, 2, READ)), 'ENOMEM');
  },
);

t.test('mremap moves entries under an UNMAP of the old range alone; pins stay with their pages', async (t) => {
  const m = host();
  m.touch(1, true);
  m.touch(2, false);
  const [pfn] = m.gup(1, FOLL_PIN | FOLL_WRITE).fields.pfns as number[];
  m.mark();
  const moved = mremap(m, 1, 3, 100, 5);
  t.strictSame([moved.ret, moved.fields.addr], [0, at(100)]);
  t.strictSame([m.started(), m.ended()], [[`UNMAP ${m.mm().id} 1+3`], 1]);
  t.strictSame([m.pfn(100), m.pte(1), m.vma(1)], [pfn, null, null]);
  t.strictSame([m.vma(104) === null, m.vma(105)], [false, null]);
  m.mark();
  t.equal(mremap(m, 100, 5, 4, 2).ret, 0, 'shorter, and over what is mapped there');
  const { id } = m.mm();
  t.strictSame(m.started(), [`UNMAP ${id} 4+2`, `UNMAP ${id} 102+3`, `UNMAP ${id} 100+2`]);
  t.strictSame([m.pfn(4), m.vma(100)], [pfn, null]);
});

t.test('mremap: refusals in their order', async (t) => {
  const m = host();
  const { run } = m;
  const move = (body: Partial<Extract<Command, { op: 'mremap' }>>): string =>
    errno(run.call(m, { op: 'mremap', addr: at(0), old_length: PAGE, new_length: PAGE, new_addr: at(100), ...body }));
  t.equal(move({ addr: at(0) + 1n, new_length: 0n }), 'EINVAL');
  t.equal(move({ new_length: 0n }), 'EINVAL');
  t.equal(move({ new_addr: at(100) + 1n }), 'EINVAL');
  t.equal(move({ new_addr: 0x7fffffffe000n, new_length: 2n * PAGE }), 'EINVAL');
  t.equal(move({ new_addr: at(0) }), 'EINVAL', 'an overlap');
  t.equal(move({ addr: at(50) }), 'EFAULT', 'no area');
  t.equal(move({ old_length: 0n }), 'EINVAL', 'private');
  t.equal(move({ old_length: 9n * PAGE, new_length: 9n * PAGE }), 'EFAULT', 'the range leaves the area');
  m.mmap(20, 2, { kind: 'pages', pfns: [[5000, 2]] });
  t.equal(move({ addr: at(20), old_length: 2n * PAGE, new_length: 3n * PAGE }), 'EFAULT', 'no more pages to show');
  t.equal(move({ addr: at(20), old_length: 2n * PAGE, new_length: 2n * PAGE }), '0');
  t.strictSame([m.pfn(100), m.pfn(101)], [5000, 5001]);
});

t.test(
  'madvise: a piece for each area; holes are ENOMEM at the end, what is forbidden is EINVAL on the way',
  async (t) => {
    const m = new MmHost(P515);
    m.mmap(0, 2);
    m.mmap(4, 2);
    m.mmap(6, 2, { kind: 'pfnmap', pfn: 9000, struct_page: false, reserved: true });
    for (const page of [0, 1, 4, 5]) m.touch(page, true);
    const { id } = m.mm();
    m.mark();
    t.equal(errno(m.madvise('DONTNEED', 1, 4)), 'ENOMEM');
    t.strictSame(m.started(), [`CLEAR ${id} 1+1`, `CLEAR ${id} 4+1`]);
    t.strictSame([m.pte(1), m.pte(4), m.pfn(0) !== null, m.pfn(5) !== null], [null, null, true, true]);
    m.mark();
    t.equal(errno(m.madvise('DONTNEED', 4, 4)), 'EINVAL', 'device memory');
    t.strictSame([m.started(), m.pte(5)], [[`CLEAR ${id} 4+2`], null]);
    t.equal(errno(m.madvise('DONTNEED', 20, 1)), 'ENOMEM');
    t.equal(errno(m.madvise('FREE', 6, 1)), 'EINVAL');
    t.equal(errno(m.run({ op: 'madvise', addr: at(0) + 1n, length: PAGE, advice: 'FREE' })), 'EINVAL');
    t.equal(errno(m.run({ op: 'madvise', addr: at(0), length: 2n ** 64n - 1n, advice: 'FREE' })), 'EINVAL');
    t.equal(errno(m.run({ op: 'madvise', addr: at(50), length: 0n, advice: 'FREE' })), '0');
    m.mmap(30, 1, { kind: 'file', file: 'f', pgoff: 0, shared: false });
    t.equal(errno(m.madvise('FREE', 30, 1)), 'EINVAL', 'not anonymous');
    t.equal(errno(m.madvise('WIPEONFORK', 30, 1)), 'EINVAL');
    m.mark();
    t.equal(errno(m.madvise('FREE', 0, 1)), '0');
    t.strictSame([m.started(), m.pfn(0) !== null], [[`CLEAR ${id} 0+1`], true], 'the page stays until it is reclaimed');
  },
);

t.test('mlock marks areas, in pieces; fork does not hand the mark on', async (t) => {
  const m = host();
  t.equal(errno(m.run({ op: 'mlock', addr: at(2) + 5n, length: 1n, lock: true })), '0');
  t.strictSame(
    [1, 2, 3].map((page) => (m.vma(page)?.flags ?? 0) & VM_LOCKED),
    [0, VM_LOCKED, 0],
  );
  t.equal(errno(m.run({ op: 'mlock', addr: at(7), length: 2n * PAGE, lock: true })), 'ENOMEM');
  t.equal((m.vma(7)?.flags ?? 0) & VM_LOCKED, VM_LOCKED, 'what comes before the hole');
  fork(m);
  t.equal((m.vma(7, 'C')?.flags ?? 0) & VM_LOCKED, 0);
  m.run({ op: 'mlock', addr: at(0), length: 8n * PAGE, lock: false });
  t.equal(m.mm().vmas.areas.length, 1, 'merged again');
});

for (const [profile, passed] of [
  ['5.8', false],
  [P515, true],
  [P614, true],
] as const)
  t.test(
    `clear_soft_dirty ${profile}: a write is noticed again; a pinned page is ${passed ? 'passed over' : 'not spared'}`,
    async (t) => {
      const m = new MmHost(profile);
      m.mmap(0, 4);
      m.touch(0, true);
      m.touch(1, true);
      m.gup(1, FOLL_PIN | FOLL_WRITE);
      m.mark();
      t.equal(m.run({ op: 'clear_soft_dirty' }).ret, 0);
      t.equal(m.started().length, 1);
      t.match(m.started()[0], /^SOFT_DIRTY /);
      const flags = (page: number): number => (m.pte(page)?.flags ?? 0) & (PTE_WRITE | PTE_SOFT_DIRTY);
      t.strictSame([flags(0), flags(1)], [0, passed ? PTE_WRITE | PTE_SOFT_DIRTY : 0]);
      m.mark();
      m.touch(0, true);
      t.strictSame([flags(0), m.started()], [PTE_WRITE | PTE_SOFT_DIRTY, []]);
    },
  );

t.test('oom_reap: ranges that may not wait; a refused area is left, and the result is EAGAIN', async (t) => {
  const m = new MmHost(P515);
  m.mmap(0, 2);
  m.mmap(4, 2);
  m.mmap(8, 2, { kind: 'file', file: 'f', pgoff: 0, shared: true });
  m.run({ op: 'mlock', addr: at(4), length: PAGE, lock: true });
  for (const page of [0, 4, 5, 8]) m.touch(page, true);
  m.plain('N', ['invalidate_range_start'], { invalidate_range_start: -11 });
  const { id } = m.mm();
  m.mark();
  const refused = m.run({ op: 'oom_reap' });
  t.strictSame([errno(refused), m.started(), m.ended()], ['EAGAIN', [`UNMAP ${id} 0+2`, `UNMAP ${id} 5+1`], 0]);
  t.not(m.pte(0), null);
  m.run({ op: 'unregister_mmu_notifier', id: 'N' });
  const stopped = m.run({ op: 'mprotect', addr: at(0), length: PAGE, prot: READ, stop_at: 'after_start' });
  t.equal(errno(m.run({ op: 'oom_reap' })), 'EAGAIN', 'mmap_lock is taken');
  m.resume(stopped);
  m.mark();
  t.equal(errno(m.run({ op: 'oom_reap' })), '0');
  t.strictSame(
    [0, 4, 5, 8].map((page) => m.pte(page) === null),
    [true, false, true, false],
    'locked and shared memory stays',
  );
  t.equal(m.touch(5, false).fields.fault, 'SIGBUS', 'what is missing cannot be trusted');
  t.equal(errno(m.gup(5, FOLL_GET)), 'EFAULT');
});

t.test('fork: what is shared, device memory, or not to be forked', async (t) => {
  const m = new MmHost(P515);
  m.mmap(0, 2);
  m.mmap(10, 2);
  m.mmap(20, 2, { kind: 'file', file: 'f', pgoff: 0, shared: true });
  m.mmap(30, 2, { kind: 'pfnmap', pfn: 9000, struct_page: false, reserved: true });
  m.mmap(40, 2);
  for (const page of [0, 10, 20, 30]) m.touch(page, true);
  m.touch(40, false);
  m.madvise('DONTFORK', 0, 2);
  m.madvise('WIPEONFORK', 10, 2);
  m.mark();
  t.equal(fork(m).ret, 0);
  t.strictSame(m.started(), [], 'no private area with anonymous pages is copied');
  t.strictSame([m.vma(0, 'C'), m.pte(10, 'C'), m.pte(20, 'C'), m.pte(40, 'C')], [null, null, null, null]);
  t.strictSame([m.pfn(30, 'C'), (m.pte(30, 'C')?.flags ?? 0) & PTE_WRITE], [9000, PTE_WRITE]);
  m.touch(20, true, 'C');
  t.equal(m.pfn(20, 'C'), m.pfn(20), 'one page of the file');
  t.equal(m.mm('C').locked_vm, 0);
  t.equal(errno(fork(m)), 'EEXIST');
});

t.test('fork: no page for an early copy is ENOMEM, and nothing is left of the child', async (t) => {
  const m = new MmHost(P515, 64);
  m.mmap(0, 64);
  for (let page = 0; page < 63; page++) m.touch(page, true);
  m.gup(0, FOLL_PIN | FOLL_WRITE);
  m.gup(1, FOLL_PIN | FOLL_WRITE);
  const before = m.host.mm.pages.used;
  t.equal(errno(fork(m)), 'ENOMEM');
  t.strictSame([m.host.mm.tasks.has('C'), m.host.mm.zombies.size, m.host.mm.pages.used], [false, 0, before]);
  t.equal(errno(fork(new MmHost(P515), 'T')), 'EEXIST');
});

t.test('fork stopped in its write-protect window: a fast pin finds nothing, a fast get does', async (t) => {
  const m = host();
  m.touch(0, true);
  const stopped = m.run({ op: 'fork', child: 'C', stop_at: 'after_pte_set' });
  t.equal(m.mm().write_protect_seq % 2, 1);
  t.equal(m.gup(0, FOLL_PIN | FOLL_FAST_ONLY).ret, 0);
  t.equal(m.gup(0, FOLL_GET | FOLL_FAST_ONLY).ret, 1);
  t.equal(m.host.mm.tasks.has('C'), false);
  t.equal(m.resume(stopped).ret, 0);
  t.equal(m.gup(0, FOLL_PIN | FOLL_FAST_ONLY).ret, 1);
  t.equal(m.gup(0, FOLL_PIN | FOLL_WRITE | FOLL_FAST_ONLY).ret, 0, 'not writable now, and no fault is made');
});

t.test('fork while the name of the child is taken: EEXIST, and nothing is left', async (t) => {
  const m = host();
  m.touch(0, true);
  const stopped = m.run({ op: 'fork', child: 'C', stop_at: 'before_end' });
  m.task('C');
  t.equal(errno(m.resume(stopped)), 'EEXIST');
  t.equal(m.host.mm.zombies.size, 0);
});

t.test('get_user_pages: refusals in their order, and partial counts', async (t) => {
  const m = host(4);
  m.mmap(4, 2, { kind: 'pfnmap', pfn: 9000, struct_page: false, reserved: true });
  t.strictSame([m.gup(50, FOLL_GET | FOLL_PIN, 0).ret], [0], 'no pages: nothing is looked at');
  t.equal(errno(m.gup(50, FOLL_GET | FOLL_PIN)), 'EFAULT', 'no area comes first');
  t.equal(errno(m.gup(4, FOLL_GET | FOLL_FORCE)), 'EFAULT', 'device memory');
  t.equal(errno(m.gup(0, FOLL_GET | FOLL_PIN)), 'EINVAL');
  t.match(m.host.dmesg.since(0, 100).items.at(-1)?.text, /FOLL_PIN \| FOLL_GET/);
  t.equal(errno(m.gup(0, FOLL_GET | FOLL_NOFAULT)), 'EFAULT');
  t.equal(m.pte(0), null);
  t.equal(m.gup(2, FOLL_GET, 4).ret, 2, 'two pages, then device memory');
  t.equal(errno(m.gup(0, 1 << 30)), 'EINVAL');
  t.equal(errno(m.gup(0, FOLL_GET, 65537)), 'E2BIG');
  mprotect(m, 0, 1, READ);
  t.equal(errno(m.gup(0, FOLL_GET | FOLL_WRITE)), 'EFAULT');
  const forced = m.gup(0, FOLL_GET | FOLL_WRITE | FOLL_FORCE);
  t.equal(forced.ret, 1);
  t.strictSame([m.pfn(0), (m.pte(0)?.flags ?? 0) & PTE_WRITE], [(forced.fields.pfns as number[])[0], 0]);
  mprotect(m, 1, 1, 0);
  t.equal(errno(m.gup(1, FOLL_GET)), 'EFAULT');
  t.equal(m.gup(1, FOLL_GET | FOLL_FORCE).ret, 1);
  setPte(m.host, m.mm(), Number(at(3) >> 12n), 77, PTE_HWPOISON);
  t.equal(m.gup(3, FOLL_GET | FOLL_HWPOISON, 1).refusal?.errno, 'EHWPOISON');
  t.equal(errno(m.gup(3, FOLL_GET)), 'EFAULT');
  t.equal(errno(m.run({ op: 'signal', fatal: true })), '0');
  t.equal(errno(m.gup(2, FOLL_GET)), 'EINTR');
  t.equal(errno(m.gup(50, FOLL_GET)), 'EFAULT', 'the area comes before the signal');
});

t.test('get_user_pages: FOLL_PIN before it existed is EOPNOTSUPP', async (t) => {
  const m = new MmHost('5.4');
  m.mmap(0, 1);
  t.equal(errno(m.gup(0, FOLL_PIN)), 'EOPNOTSUPP');
  t.equal(m.gup(0, FOLL_GET).ret, 1);
});

t.test(
  'references are given back once, dirty or not; a dirty mark with the lock waits for the page lock',
  async (t) => {
    const m = host();
    const { id, pfns } = m.gup(0, FOLL_PIN | FOLL_WRITE).fields as { id: string; pfns: [number] };
    m.hold(`page_lock:${pfns[0]}`);
    const put = m.run({ op: 'put_gup', gup: id, dirty: 'set_page_dirty_lock' });
    t.equal(m.operation(put).blocked_on, `page_lock:${pfns[0]}`);
    t.equal(errno(m.run({ op: 'put_gup', gup: id, dirty: 'no' })), 'EBUSY');
    m.letGo(`page_lock:${pfns[0]}`);
    t.equal(m.operation(put).outcome?.ret, 0);
    t.strictSame([m.host.mm.pages.isDirty(pfns[0]), m.host.mm.pages.pinCount(pfns[0])], [true, 0]);
    t.equal(errno(m.run({ op: 'put_gup', gup: id, dirty: 'no' })), 'NOT_FOUND');
  },
);

t.test('a GUP that read the zero page holds a reference of it', async (t) => {
  const m = host();
  const { id, pfns } = m.gup(0, FOLL_GET).fields as { id: string; pfns: [number] };
  t.equal((m.pte(0)?.flags ?? 0) & PTE_SPECIAL, PTE_SPECIAL);
  t.equal(m.host.mm.pages.refcount(pfns[0]), 1);
  m.run({ op: 'put_gup', gup: id, dirty: 'set_page_dirty' });
  t.equal(m.host.mm.pages.refcount(pfns[0]), 0);
});

t.test('an access moves bytes; a child reads what was written before the fork', async (t) => {
  const m = host();
  const addr = at(1) - 2n;
  t.equal(errno(m.run({ op: 'access', addr, write: true, data: 'AQIDBA==' })), '0');
  fork(m);
  m.run({ op: 'access', addr, write: true, data: '/////w==' });
  const read = (task: string): Outcome => m.run({ op: 'access', task, addr, write: false, length: 4 });
  t.strictSame([read('C').fields.data, read('T').fields.data], ['AQIDBA==', '/////w==']);
  const refused = (body: Partial<Extract<Command, { op: 'access' }>>): string =>
    errno(m.run({ op: 'access', addr, write: false, ...body }));
  t.equal(refused({ data: 'AQ==' }), 'EINVAL');
  t.equal(refused({ length: 0 }), 'EINVAL');
  t.equal(refused({ length: 2 ** 22 + 1 }), 'E2BIG');
  t.equal(refused({ addr: 0x7fffffffefffn, length: 2 }), 'EFAULT');
  t.equal(m.run({ op: 'access', addr: at(20), write: false, length: 4 }).fields.fault, 'SIGSEGV');
});

/** What lock_page_or_retry() answers, and what it leaves of mmap_lock, while somebody holds the page lock. */
function lockPage(m: MmHost, flags: number): Outcome {
  const mm = m.mm().id;
  m.host.begin({
    at: 1e6 + m.host.seq,
    request_id: 'lock',
    notification: null,
    command: { op: 'clear_soft_dirty', task: 'T' },
  });
  const done = runOperation(
    m.host,
    { kind: 'access', locals: { task: 'T', mm } },
    [
      { do: 'lock', lock: mmapLock(mm), mode: 'R' },
      { do: 'lock_page_or_retry', mm, pfn: 5, flags },
      { do: 'phase', phase: 'after_gup' },
      { do: 'unlock', lock: 'page_lock:5', cleanup: true },
      { do: 'unlock', lock: mmapLock(mm), cleanup: true },
    ],
    'after_gup',
  );
  return { ...done, finished: [], emitted: [] };
}

t.test('lock_page_or_retry: every branch of the flags while the page lock is taken', async (t) => {
  const wait = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;
  const held = (m: MmHost, outcome: Outcome): string[] =>
    (m.operation(outcome).thread?.held ?? []).map(({ lock }) => lock.slice(0, 4)).sort();
  const answers = (m: MmHost, outcome: Outcome): number | undefined => m.operation(outcome).thread?.returned;
  const busy = (): MmHost => {
    const m = host();
    m.hold('page_lock:5');
    return m;
  };
  const nowait = busy();
  const refused = lockPage(nowait, wait | FAULT_FLAG_RETRY_NOWAIT);
  t.strictSame([answers(nowait, refused), held(nowait, refused)], [VM_FAULT_RETRY, ['mmap']], 'NOWAIT keeps mmap_lock');
  const retry = busy();
  const dropped = lockPage(retry, wait);
  t.strictSame([retry.operation(dropped).blocked_on, held(retry, dropped)], ['page_lock:5', []]);
  retry.letGo('page_lock:5');
  t.strictSame([answers(retry, dropped), held(retry, dropped)], [VM_FAULT_RETRY, []]);
  for (const flags of [0, FAULT_FLAG_RETRY_NOWAIT, wait | FAULT_FLAG_TRIED]) {
    const m = busy();
    const waits = lockPage(m, flags);
    t.strictSame([m.operation(waits).blocked_on, held(m, waits)], ['page_lock:5', ['mmap']], `flags ${flags}`);
    m.letGo('page_lock:5');
    t.strictSame([answers(m, waits), held(m, waits)], [0, ['mmap', 'page']]);
  }
  const killed = busy();
  const dying = lockPage(killed, wait | FAULT_FLAG_TRIED);
  killed.run({ op: 'signal', fatal: true });
  t.strictSame([answers(killed, dying), held(killed, dying)], [VM_FAULT_RETRY, []], 'killed: mmap_lock is dropped');
});

t.test('a fatal signal ends a killable wait for mmap_lock with EINTR; another signal does not', async (t) => {
  const m = host();
  const stopped = m.run({ op: 'mprotect', addr: at(0), length: PAGE, prot: READ, stop_at: 'after_start' });
  t.equal(stopped.parked, undefined, 'nothing is populated');
  m.touch(0, true);
  const again = m.run({ op: 'mprotect', addr: at(0), length: PAGE, prot: RW, stop_at: 'after_start' });
  t.equal(again.parked, undefined);
  m.touch(0, true);
  const holder = m.run({ op: 'mprotect', addr: at(0), length: PAGE, prot: READ, stop_at: 'after_start' });
  const waiting = m.range('munmap', 4, 1);
  const lock = mmapLock(m.mm().id);
  t.equal(m.operation(waiting).blocked_on, lock);
  m.run({ op: 'signal', fatal: false });
  t.equal(m.operation(waiting).blocked_on, lock);
  m.run({ op: 'signal', fatal: true });
  t.equal(m.operation(waiting).outcome?.refusal?.errno, 'EINTR');
  t.equal(m.resume(holder).ret, 0);
  t.equal(m.host.locks.size, 0);
});

t.test('exit waits for an operation inside the address space, and then tears it down', async (t) => {
  const m = host();
  m.touch(0, true);
  const stopped = m.range('munmap', 0, 4, 'after_start');
  const exit = m.run({ op: 'exit' });
  t.equal(m.operation(exit).blocked_on, `operation:${stopped.parked}`);
  t.equal(m.host.mm.tasks.get('T')?.mm, null, 'for everybody else the task is gone');
  t.equal(m.resume(stopped).ret, 0);
  t.equal(m.operation(exit).outcome?.ret, 0);
  t.strictSame([m.host.mm.zombies.size, m.host.mm.pages.used], [0, 0]);
});
