// Tests of src/kernel/mm and src/kernel/view/tasks.ts: errnos in order, exhaustive sweeps of small address ranges, faults and
// copies on write, references and pins, accounting.

import t from 'tap';

import { type Backing, READ, WRITE } from '../../src/kernel/command.ts';
import {
  MAX_DECLARED_PAGES,
  MAX_EAGER_PAGES,
  MAX_FILES,
  MAX_MAP_COUNT,
  MAX_PAGE_CHUNKS,
  MAX_PAGE_TABLES,
  MAX_PFN_RUNS,
  MAX_TASKS,
  TASK_SIZE,
} from '../../src/kernel/limits.ts';
import { accountLockedVm } from '../../src/kernel/mm/accounting.ts';
import { checkMm } from '../../src/kernel/mm/check.ts';
import { openFile } from '../../src/kernel/mm/file.ts';
import { isInvalidOrReserved, isZeroPage, pinCountOf } from '../../src/kernel/mm/page.ts';
import { MAX_MAPCOUNT } from '../../src/kernel/mm/page-frames.ts';
import {
  clearPte,
  flagsAt,
  leafIndex,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DIRTY,
  PTE_MIGRATION,
  PTE_SWAP,
  PTE_WRITE,
  pfnAt,
  setPte,
} from '../../src/kernel/mm/page-table.ts';
import { mmSections } from '../../src/kernel/mm/snapshot.ts';
import { exitThread, getTask, mmOf, taskRlimitPages } from '../../src/kernel/mm/task.ts';
import { findVma, vmaAt } from '../../src/kernel/mm/vma.ts';
import { listMaps, listPages, listTasks, viewPage, viewTask } from '../../src/kernel/view/tasks.ts';
import { encode } from '../../src/service/codec.ts';
import { at, BASE, bytes, detail, FILE, Machine, outcome, PAGES, RW, sound } from './mm-machine.ts';
import type { State } from './mm-model.ts';

t.test('put_task: the same body changes nothing, another is EEXIST and names the field', async (t) => {
  const m = new Machine();
  const made = m.task('a');
  t.strictSame(made, {
    ret: 0,
    created: true,
    fields: {
      id: 'a',
      pid: 1000,
      mm: 'mm-1',
      thread_of: null,
      alive: true,
      rlimit_memlock: 0x4000000n,
      cap_ipc_lock: false,
      locked_vm: 0,
      VmLck: 0,
      VmPin: 0,
      VmRSS: 0,
    },
  });
  t.strictSame(m.task('a'), { ...made, created: false });
  t.match(
    detail(() => m.task('a', { rlimit_memlock: 0x1000n })),
    'rlimit_memlock 0x4000000, not 0x1000',
  );
  t.match(
    detail(() => m.task('a', { cap_ipc_lock: true })),
    'cap_ipc_lock false, not true',
  );
  t.match(
    detail(() => m.task('a', { thread_of: 'b' })),
    'thread_of null, not b',
  );
  t.equal(
    outcome(() => m.task('a', { rlimit_memlock: 'unlimited' })),
    'EEXIST',
  );
  m.patch('a', { rlimit_memlock: 'unlimited', cap_ipc_lock: true });
  t.equal(m.task('a').created, false, 'compared with the body it was made with, not with what PATCH left');
  t.equal(viewTask(m.host, 'a').rlimit_memlock, 'unlimited');
  t.equal(m.task('b').fields.pid, 1001);
  m.exit('a');
  t.equal(m.task('a').created, false, 'an exited task keeps its id');
  t.equal(viewTask(m.host, 'a').alive, false);
  t.equal(
    outcome(() => viewTask(m.host, 'c')),
    'NOT_FOUND',
  );
  sound(t, m);
});

t.test('put_task: a thread shares mm and limit, and has its own capability and exit', async (t) => {
  const m = new Machine();
  m.task('a', { rlimit_memlock: 0x5000n });
  m.task('a1', { thread_of: 'a', rlimit_memlock: 0x1000n, cap_ipc_lock: true });
  m.task('a2', { thread_of: 'a1' });
  t.equal(
    outcome(() => m.task('x', { thread_of: 'nobody' })),
    'NOT_FOUND',
  );
  t.equal(mmOf(m.host, 'a1'), mmOf(m.host, 'a'));
  t.equal(getTask(m.host, 'a2').leader, 'a', 'a thread of a thread is one of the process');
  t.equal(viewTask(m.host, 'a2').thread_of, 'a1');
  t.equal(taskRlimitPages(m.host, 'a1'), 5, "the process's limit counts, not the thread's body");
  m.patch('a1', { rlimit_memlock: 0x7fffn });
  t.equal(taskRlimitPages(m.host, 'a'), 7, 'whole pages only');
  m.patch('a1', { cap_ipc_lock: false });
  t.equal(getTask(m.host, 'a').cap_ipc_lock, false);
  m.mmap('a', 0, 4);
  t.strictSame(m.maps('a2'), ['0-4 READWRITE anon']);
  m.exit('a1');
  t.equal(mmOf(m.host, 'a1'), null);
  t.equal(viewTask(m.host, 'a1').locked_vm, null);
  t.strictSame(m.maps('a1'), []);
  t.strictSame(m.maps('a2'), ['0-4 READWRITE anon']);
  t.equal(
    outcome(() => m.task('a3', { thread_of: 'a1' })),
    'ESRCH',
  );
  m.exit('a');
  t.equal(viewTask(m.host, 'a2').alive, false, 'the exit of the process takes all its threads');
  t.equal(m.host.mm.mms.size, 0);
  for (const call of [
    () => m.exit('a'),
    () => m.patch('a', { rlimit_memlock: 0n }),
    () => m.patch('a1', { cap_ipc_lock: true }),
    () => m.adjust('a', 1),
    () => m.mmap('a', 0, 1),
    () => m.munmap('a', 0, 1),
    () => m.mprotect('a', 0, 1, READ),
    () => m.task('a4', { thread_of: 'a' }),
  ])
    t.equal(outcome(call), 'ESRCH', call.toString());
  t.strictSame(listPages(m.host, 'a', 0n, 3), []);
  sound(t, m);
});

t.test('exit: the process lives through its threads when the leader alone has gone', async (t) => {
  const m = new Machine();
  m.task('a');
  m.task('a1', { thread_of: 'a' });
  m.mmap('a', 0, 2);
  const pfn = m.pin('a', 0);
  m.host.seq++;
  exitThread(m.host, 'a');
  t.equal(mmOf(m.host, 'a'), null);
  t.strictSame(m.maps('a1'), ['0-2 READWRITE anon']);
  m.patch('a', { rlimit_memlock: 'unlimited' });
  t.equal(taskRlimitPages(m.host, 'a1'), Number.POSITIVE_INFINITY);
  t.equal(
    outcome(() => m.patch('a', { cap_ipc_lock: true })),
    'ESRCH',
    'the capability of a thread that has gone',
  );
  sound(t, m);
  m.exit('a1');
  t.match(viewPage(m.host, pfn), { ref_count: 1024, pin_count: 1, mapcount: 0 });
  sound(t, m);
  m.unpin(pfn);
  t.equal(m.host.mm.pages.used, 0);
  sound(t, m);
});

t.test('tasks are listed by id, keyset, also while the list changes', async (t) => {
  const m = new Machine();
  for (const id of ['c', 'a', 'e', 'b', 'd']) m.task(id);
  const first = listTasks(m.host, null, 2);
  t.strictSame([first.items.map(({ id }) => id), first.next], [['a', 'b'], 'b']);
  m.task('aa');
  const second = listTasks(m.host, first.next, 3);
  t.strictSame([second.items.map(({ id }) => id), second.next], [['c', 'd', 'e'], null]);
});

t.test('put_task: MAX_TASKS is EAGAIN', async (t) => {
  const m = new Machine();
  for (let i = 0; i < MAX_TASKS; i++) m.task(`t${i}`);
  t.equal(
    outcome(() => m.task('more')),
    'EAGAIN',
  );
  t.equal(m.task('t7').created, false);
});

t.test('adjust_locked_vm: counts modulo 2^64 as a signed number', async (t) => {
  const m = new Machine();
  m.task('a');
  t.strictSame(m.adjust('a', 5).fields, { locked_vm: 5 });
  t.strictSame(m.adjust('a', -7).fields, { locked_vm: -2 });
  t.match(viewTask(m.host, 'a'), { locked_vm: -2, VmLck: -8 });
  t.equal(m.mm('a').adjusted, -2);
  t.equal(
    outcome(() => m.adjust('a', -Number.MAX_SAFE_INTEGER)),
    'EOVERFLOW',
  );
  t.equal(m.mm('a').locked_vm, -2);
  t.equal(
    outcome(() => m.adjust('b', 1)),
    'NOT_FOUND',
  );
});

t.test(
  'accounting: equal to the limit is allowed, one more is ENOMEM, the capability decides, a return never fails',
  async (t) => {
    const m = new Machine();
    m.task('a', { rlimit_memlock: 0x3fffn });
    const mm = m.mm('a');
    const account = (npage: number, inc: boolean, lockCap = false): string =>
      outcome(() => accountLockedVm(m.host, mm.id, 'a', npage, inc, lockCap));
    const warnings = (): (string | null)[] => m.host.dmesg.since(0, 10).items.map(({ where }) => where);
    t.equal(account(3, true), 'ok');
    t.equal(account(1, true), 'ENOMEM');
    t.match(
      detail(() => accountLockedVm(m.host, mm.id, 'a', 1, true, false)),
      /locked_vm 3 \+ 1 pages .* 3 pages/,
    );
    t.equal(mm.locked_vm, 3);
    t.equal(account(1, true, true), 'ok');
    t.equal(mm.locked_vm, 4);
    t.equal(account(4, false), 'ok');
    t.strictSame([mm.locked_vm, warnings()], [0, []], 'down to 0 is no underflow');
    t.equal(account(2, false), 'ok');
    t.strictSame([mm.locked_vm, warnings()], [-2, ['__account_locked_vm']]);
    t.match(m.host.dmesg.since(0, 1).items[0], { kind: 'WARN', level: 'warning' });
    t.equal(account(1, true), 'ENOMEM', 'still wrapped, so beyond every limit');
    m.patch('a', { rlimit_memlock: 'unlimited' });
    t.equal(account(1, true), 'ENOMEM', 'beyond 2^52 - 1 pages, which is what unlimited means there');
    t.equal(account(1, true, true), 'ok');
    t.equal(account(1, true), 'ok', 'carried back to 0');
    t.equal(mm.locked_vm, 0);
    t.equal(account(1, false), 'ok');
    t.strictSame([mm.locked_vm, warnings().length], [-1, 1], 'the second underflow is silent');
    t.equal(account(5, false), 'ok');
    t.strictSame([mm.locked_vm, warnings().length], [-6, 1], 'a wrapped counter is not below npage');
    m.patch('a', { rlimit_memlock: 2n ** 64n - 1n });
    t.equal(taskRlimitPages(m.host, 'a'), Number.POSITIVE_INFINITY, 'RLIM_INFINITY');
    m.exit('a');
    t.equal(account(1, false), 'ESRCH');
  },
);

t.test('mmap: refusals in their order, and nothing changes', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 8);
  m.touch('a', 3, true);
  m.page(77, 'device');
  const before = encode([...mmSections(m.host.mm)].map(({ key, data }) => [key, data()]));
  const anon: Backing = { kind: 'anon' };
  const call = (addr: bigint, length: bigint, backing: Backing = anon, noreplace = false, prot = RW): string =>
    outcome(() => m.mmapBytes('a', addr, length, prot, backing, noreplace));
  t.equal(
    outcome(() => m.mmapBytes('b', 0n, 0n)),
    'NOT_FOUND',
  );
  t.equal(call(1n, 0n), 'EINVAL', 'length 0 before all else');
  t.equal(call(1n, 2n ** 64n - 1n), 'ENOMEM', 'rounds up to 2^64');
  t.equal(call(1n, 2n ** 64n - 4096n), 'ENOMEM', 'longer than TASK_SIZE');
  t.equal(call(1n, TASK_SIZE), 'ENOMEM', 'beyond TASK_SIZE before alignment');
  t.equal(call(TASK_SIZE - 4095n, 4096n), 'ENOMEM');
  t.equal(call(TASK_SIZE, 1n), 'ENOMEM');
  t.equal(call(2n ** 64n - 4096n, 4096n), 'ENOMEM');
  t.equal(call(TASK_SIZE - 8191n, 4096n), 'EINVAL', 'not aligned');
  t.equal(call(at(7) + 1n, 4096n, anon, true), 'EINVAL', 'alignment before the overlap');
  t.equal(call(at(7), 4096n, PAGES([1, 9]), true), 'EEXIST', 'the overlap before the backing');
  t.equal(call(at(-1), bytes(2), anon, true), 'EEXIST');
  t.equal(call(at(0), bytes(2), FILE('f', true, -1)), 'EOVERFLOW');
  t.equal(call(at(0), bytes(2), FILE('f', true, 2 ** 51 - 1)), 'EOVERFLOW');
  t.equal(call(at(0), bytes(2), FILE('f', true, 1.5)), 'EOVERFLOW');
  t.equal(call(at(0), bytes(2), PAGES()), 'EINVAL', 'no pages for two');
  t.equal(call(at(0), bytes(2), PAGES([1, 1])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([1, 3])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([1, 0], [1, 2])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([1, -1], [1, 3])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([2 ** 52 - 1, 2])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([-1, 2])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([0.5, 2])), 'EINVAL');
  t.equal(call(at(0), bytes(2), PAGES([76, 2])), 'EINVAL', 'a page without struct page');
  t.equal(call(at(0), bytes(1), PAGES(...new Array<[number, number]>(MAX_PFN_RUNS + 1).fill([1, 1]))), 'E2BIG');
  t.equal(call(at(0), bytes(MAX_EAGER_PAGES + 1), PAGES([1, MAX_EAGER_PAGES + 1])), 'ENOMEM');
  const pfnmap = { kind: 'pfnmap', struct_page: false, reserved: true } as const;
  t.equal(call(at(0), bytes(2), pfnmap), 'EINVAL', 'neither pfn nor pfns');
  t.equal(call(at(0), bytes(2), { ...pfnmap, pfn: 1, pfns: [[1, 2]] }), 'EINVAL', 'both');
  t.equal(call(at(0), bytes(2), { ...pfnmap, pfn: 2 ** 52 - 1 }), 'EINVAL');
  t.equal(call(at(0), bytes(2), { ...pfnmap, pfn: 1, ptes: ['rw'] }), 'EINVAL', 'one state for two pages');
  t.equal(
    call(at(0), bytes(2), { ...pfnmap, pfn: 1, ptes: ['r', 'rw'] }, false, READ),
    'EINVAL',
    'rw in a read-only area',
  );
  m.host.mm.page_tables += MAX_PAGE_TABLES;
  t.equal(call(at(1 << 20), bytes(2), PAGES([1, 2])), 'ENOMEM', 'no page table is left');
  m.mmap('a', 1 << 20, 1);
  t.equal(
    outcome(() => m.touch('a', 1 << 20, true)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.pin('a', 1 << 20)),
    'ENOMEM',
  );
  m.munmap('a', 1 << 20, 1);
  m.host.mm.page_tables -= MAX_PAGE_TABLES;
  m.mm('a').has_pinned = false;
  t.strictSame(encode([...mmSections(m.host.mm)].map(({ key, data }) => [key, data()])), before, 'nothing has changed');
  t.strictSame(m.maps('a'), ['0-8 READWRITE anon']);
  t.strictSame(
    m.mmapBytes('a', TASK_SIZE - 4096n, 1n).fields,
    { addr: TASK_SIZE - 4096n },
    'the last page, length rounded up',
  );
  t.equal(call(0n, 1n), 'ok', 'page 0');
  sound(t, m);
});

t.test('mmap: MAX_PAGE_CHUNKS and MAX_FILES', async (t) => {
  const m = new Machine();
  m.task('a');
  const { pages } = m.host.mm;
  const chunk = { refcount: new Int32Array(1), state: new Uint32Array(1), pins: null, busy: 0, live: 0, version: 0 };
  for (let i = 1; i < MAX_PAGE_CHUNKS; i++) pages.chunks.set(2 ** 42 + i, chunk);
  m.mmap('a', 0, 1, RW, PAGES([5, 1]));
  t.equal(
    outcome(() => m.mmap('a', 1, 1, RW, PAGES([512, 1]))),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.page(512, 'zero')),
    'ENOMEM',
  );
  m.mmap('a', 2, 2);
  t.equal(
    outcome(() => m.touch('a', 2, true)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.touch('a', 2, false)),
    'ENOMEM',
    'no room for the zero page',
  );
  for (let i = 1; i < MAX_PAGE_CHUNKS; i++) pages.chunks.delete(2 ** 42 + i);
  sound(t, m);
  for (let i = 0; i < MAX_FILES; i++) openFile(m.host, `f${i}`);
  t.equal(
    outcome(() => m.mmap('a', 0, 1, RW, FILE('more', true))),
    'ENOSPC',
  );
  t.equal(m.look('a', 0).pfn, 5, 'what was mapped there stays');
  t.equal(
    outcome(() => m.mmap('a', 0, 1, RW, FILE('f9', true))),
    'ok',
  );
});

t.test('mmap, munmap, mprotect: MAX_MAP_COUNT', async (t) => {
  const m = new Machine();
  m.task('a');
  for (let i = 0; i < MAX_MAP_COUNT - 1; i++) m.mmap('a', 2 * i, 1);
  const last = 2 * MAX_MAP_COUNT;
  m.mmap('a', last, 4);
  t.equal(m.mm('a').vmas.areas.length, MAX_MAP_COUNT);
  t.equal(
    outcome(() => m.munmap('a', last + 1, 1)),
    'ENOMEM',
    'a hole in an area makes one more',
  );
  t.equal(
    outcome(() => m.mmap('a', last + 1, 1)),
    'ENOMEM',
    'MAP_FIXED unmaps first',
  );
  t.equal(
    outcome(() => m.mprotect('a', last + 1, 1, READ)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.mprotect('a', last, 1, READ)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.munmap('a', last, 1)),
    'ok',
    'an end may go',
  );
  t.equal(
    outcome(() => m.mprotect('a', last + 1, 3, READ)),
    'ok',
    'a whole area may change',
  );
  m.mmap('a', last + 4, 2);
  t.equal(m.mm('a').vmas.areas.length, MAX_MAP_COUNT + 1, 'the test is for more than the limit');
  t.equal(
    outcome(() => m.mprotect('a', last + 3, 1, RW)),
    'ok',
    'the neighbour takes the page in',
  );
  t.equal(
    outcome(() => m.mmap('a', last + 8, 1)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.munmap('a', 0, last)),
    'ok',
  );
  t.strictSame(m.maps('a'), [`${last + 1}-${last + 3} READ anon`, `${last + 3}-${last + 6} READWRITE anon`]);
  sound(t, m);
});

t.test('munmap: refusals in their order; holes are no error', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 4);
  const call = (addr: bigint, length: bigint): string => outcome(() => m.munmapBytes('a', addr, length));
  t.equal(
    outcome(() => m.munmapBytes('b', 1n, 0n)),
    'NOT_FOUND',
  );
  t.equal(call(1n, 4096n), 'EINVAL');
  t.equal(call(TASK_SIZE + 4096n, 4096n), 'EINVAL');
  t.equal(call(TASK_SIZE, 1n), 'EINVAL');
  t.equal(call(0n, TASK_SIZE + 1n), 'EINVAL');
  t.equal(call(at(0), 2n ** 64n - 1n), 'EINVAL');
  t.equal(call(at(0), 0n), 'EINVAL');
  t.equal(call(TASK_SIZE, 0n), 'EINVAL');
  t.equal(call(at(100), bytes(5)), 'ok');
  t.strictSame(m.maps('a'), ['0-4 READWRITE anon']);
  t.equal(call(at(3), 1n), 'ok', 'rounded up');
  t.strictSame(m.maps('a'), ['0-3 READWRITE anon']);
  t.equal(call(0n, TASK_SIZE), 'ok');
  t.strictSame(m.maps('a'), []);
});

t.test('mprotect: refusals in their order; areas before a hole stay changed', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 4);
  m.mmap('a', 6, 4);
  const call = (addr: bigint, length: bigint, prot: number): string =>
    outcome(() => m.mprotectBytes('a', addr, length, prot));
  t.equal(call(1n, 0n, 0x100), 'EINVAL');
  t.equal(call(at(50), 0n, 0x100), 'ok', 'length 0 succeeds, whatever prot is');
  t.equal(call(at(0), 2n ** 64n - 1n, 0x100), 'ENOMEM');
  t.equal(call(2n ** 64n - 4096n, 4096n, READ), 'ENOMEM', 'the end wraps to 0');
  t.equal(call(at(50), 4096n, 0x100), 'EINVAL', 'unknown bits before the hole');
  t.equal(call(at(50), 4096n, -1), 'EINVAL');
  t.equal(call(at(50), 4096n, READ), 'ENOMEM');
  t.equal(call(at(5), bytes(2), READ), 'ENOMEM', 'begins in a hole');
  t.strictSame(m.maps('a'), ['0-4 READWRITE anon', '6-10 READWRITE anon']);
  t.equal(call(at(2), bytes(6), READ), 'ENOMEM');
  t.strictSame(m.maps('a'), ['0-2 READWRITE anon', '2-4 READ anon', '6-10 READWRITE anon']);
  t.equal(call(at(0), 4097n, 0), 'ok', 'rounded up to two pages');
  t.strictSame(m.maps('a'), ['0-2 NONE anon', '2-4 READ anon', '6-10 READWRITE anon']);
  t.equal(call(at(0), bytes(4), 0x8 | RW), 'ok', 'PROT_SEM is known and means nothing');
  t.strictSame(m.maps('a'), ['0-4 READWRITE anon', '6-10 READWRITE anon'], 'alike again, one again');
  sound(t, m);
});

t.test(
  'areas merge like Linux: anonymous and file areas that go on, never devices, layouts or other permissions',
  async (t) => {
    const m = new Machine();
    m.task('a');
    m.mmap('a', 2, 2);
    m.mmap('a', 0, 2);
    m.mmap('a', 4, 2);
    t.strictSame(m.maps('a'), ['0-6 READWRITE anon']);
    m.mmap('a', 2, 2, READ);
    t.strictSame(m.maps('a'), ['0-2 READWRITE anon', '2-4 READ anon', '4-6 READWRITE anon']);
    m.mmap('a', 2, 2);
    t.strictSame(m.maps('a'), ['0-6 READWRITE anon']);
    m.munmap('a', 0, 6);
    m.mmap('a', 0, 2, RW, FILE('f', true, 10));
    m.mmap('a', 2, 2, RW, FILE('f', true, 12));
    m.mmap('a', 4, 2, RW, FILE('f', false, 14));
    m.mmap('a', 6, 2, RW, FILE('f', false, 17));
    m.mmap('a', 8, 2, RW, FILE('g', false, 19));
    t.strictSame(
      listMaps(m.host, 'a', null, 9).items.map(({ addr, length, backing }) => [addr, length, backing]),
      [
        [at(0), bytes(4), { kind: 'file', file: 'f', pgoff: 10, shared: true }],
        [at(4), bytes(2), { kind: 'file', file: 'f', pgoff: 14, shared: false }],
        [at(6), bytes(2), { kind: 'file', file: 'f', pgoff: 17, shared: false }],
        [at(8), bytes(2), { kind: 'file', file: 'g', pgoff: 19, shared: false }],
      ],
    );
    m.munmap('a', 1, 2);
    t.strictSame(listMaps(m.host, 'a', null, 2).items[1]?.backing, {
      kind: 'file',
      file: 'f',
      pgoff: 13,
      shared: true,
    });
    m.munmap('a', 0, 10);
    m.mmap('a', 0, 2, RW, { kind: 'pfnmap', pfn: 100, struct_page: false, reserved: true });
    m.mmap('a', 2, 2, RW, { kind: 'pfnmap', pfn: 102, struct_page: false, reserved: true });
    m.mmap('a', 4, 2, RW, PAGES([200, 2]));
    m.mmap('a', 6, 2, RW, PAGES([202, 2]));
    t.equal(m.maps('a').length, 4);
    m.mprotect('a', 5, 1, READ);
    m.mprotect('a', 5, 1, RW);
    t.equal(m.maps('a').length, 5, 'a layout that was cut stays cut');
    const tail = listMaps(m.host, 'a', at(4), 9).items[0];
    t.match(tail, { addr: at(5), backing: { kind: 'pages', pfn: 201 } });
    sound(t, m);
    m.munmap('a', 4, 2);
    t.equal(m.host.mm.layouts.size, 3, 'a layout goes with its last area');
    sound(t, m);
  },
);

t.test('listMaps: keyset by address, also inside an area that has gone', async (t) => {
  const m = new Machine();
  m.task('a');
  for (let i = 0; i < 5; i++) m.mmap('a', 3 * i, 2);
  const first = listMaps(m.host, 'a', null, 2);
  t.strictSame([first.items.length, first.next], [2, at(3)]);
  m.munmap('a', 3, 1);
  t.strictSame(listMaps(m.host, 'a', first.next, 1).items[0]?.addr, at(4), 'the rest of it comes next');
  t.strictSame(
    listMaps(m.host, 'a', at(4), 9).items.map(({ addr }) => addr),
    [at(6), at(9), at(12)],
  );
  t.strictSame(listMaps(m.host, 'a', at(12), 9), { items: [], next: null });
  t.match(listMaps(m.host, 'a', null, 1).items[0], { flags: ['READ', 'WRITE', 'MAYREAD', 'MAYWRITE', 'MAYEXEC'] });
});

t.test('listPages: refuses what is no range', async (t) => {
  const m = new Machine();
  m.task('a');
  t.equal(
    outcome(() => listPages(m.host, 'a', 1n, 1)),
    'EINVAL',
  );
  t.equal(
    outcome(() => listPages(m.host, 'a', 2n ** 64n - 4096n, 2)),
    'EINVAL',
  );
  t.equal(
    outcome(() => listPages(m.host, 'a', 0n, -1)),
    'EINVAL',
  );
  t.equal(
    outcome(() => listPages(m.host, 'b', 0n, 1)),
    'NOT_FOUND',
  );
  t.strictSame(listPages(m.host, 'a', 2n ** 64n - 4096n, 1), [
    {
      addr: 2n ** 64n - 4096n,
      pfn: null,
      present: false,
      writable: false,
      ref_count: 0,
      pin_count: 0,
      dirty: false,
      entry: 'none',
      flags: [],
      swap_slot: null,
      entry_pfn: null,
    },
  ]);
});

t.test(
  'sweep: all starts and lengths in 12 pages, munmap, mprotect and mmap over three areas and a hole',
  async (t) => {
    const SPAN = 12;
    const LAYOUT: [number, number, number][] = [
      [0, 3, RW],
      [3, 2, READ],
      [7, 4, RW],
    ];
    const ops = { munmap: null, mprotect: READ, mmap: RW } as const;
    for (const op of ['munmap', 'mprotect', 'mmap'] as const)
      for (let start = 0; start < SPAN; start++)
        for (let npage = 1; start + npage <= SPAN; npage++) {
          const m = new Machine(4096);
          m.task('a');
          const expected = new Map<number, number>();
          for (const [first, count, prot] of LAYOUT) {
            m.mmap('a', first, count, prot);
            for (let i = first; i < first + count; i++) {
              expected.set(i, prot);
              m.touch('a', i, (prot & WRITE) !== 0);
            }
          }
          const pfns = new Map([...expected.keys()].map((page) => [page, m.look('a', page).pfn]));
          let refused = false;
          for (let i = start; i < start + npage && !refused; i++) {
            if (op === 'munmap') expected.delete(i);
            else if (op === 'mmap') expected.set(i, RW);
            else if (expected.has(i)) expected.set(i, READ);
            else refused = true;
          }
          const ret = outcome(() => {
            if (op === 'munmap') m.munmap('a', start, npage);
            else if (op === 'mmap') m.mmap('a', start, npage);
            else m.mprotect('a', start, npage, ops[op]);
          });
          const label = `${op} [${start}, ${start + npage})`;
          if (ret !== (refused ? 'ENOMEM' : 'ok')) t.fail(`${label}: ${ret}`);
          const runs: string[] = [];
          // What is left of the first and of the third area has reverse maps of its own: between them nothing merges them.
          const past = start + npage;
          const bridge = op === 'mmap' && start >= 1 && start <= 3 && past >= 7 && past <= 10 ? past : null;
          for (let page = 0; page <= SPAN; page++) {
            const prot = expected.get(page);
            if (prot === undefined) continue;
            let end = page + 1;
            while (expected.get(end) === prot && end !== bridge) end++;
            runs.push(`${page}-${end} ${prot === RW ? 'READWRITE' : 'READ'} anon`);
            page = end - 1;
          }
          t.strictSame(m.maps('a'), runs, label);
          for (let page = 0; page < SPAN; page++) {
            const inside = page >= start && page < start + npage;
            const kept = expected.has(page) && !(inside && op === 'mmap');
            const want = kept ? (pfns.get(page) ?? null) : null;
            if (m.look('a', page).pfn !== want)
              t.fail(`${label}: page ${page} is ${m.look('a', page).pfn}, not ${want}`);
            const vma = vmaAt(m.mm('a'), BASE + page);
            if ((vma !== null) !== expected.has(page)) t.fail(`${label}: vmaAt(${page})`);
            const next = [...expected.keys()].filter((each) => each >= page).sort((a, b) => a - b)[0];
            const found = findVma(m.mm('a'), BASE + page);
            if ((found === null) !== (next === undefined)) t.fail(`${label}: findVma(${page})`);
            if (found !== null && next !== undefined && Math.max(found.start, BASE + page) !== BASE + next)
              t.fail(`${label}: findVma(${page}) begins at ${found.start - BASE}`);
          }
          sound(t, m, label);
          m.exit('a');
          sound(t, m, `${label}, then exit`);
          t.equal(m.host.mm.pages.used, 0);
        }
  },
);

t.test(
  'anonymous memory: read maps the zero page, a write a page of its own, a pin as the write intent says',
  async (t) => {
    const m = new Machine();
    m.task('a');
    m.mmap('a', 0, 1 << 20);
    t.equal(m.host.mm.page_tables, 0, 'memory that is never touched costs nothing');
    t.equal(m.host.mm.pages.chunks.size, 0);
    m.touch('a', 0, false);
    const zero = m.look('a', 0).pfn as number;
    t.match(m.look('a', 0), { present: true, writable: false, ref_count: 0, pin_count: 0 });
    t.ok(isZeroPage(m.host, zero));
    t.ok(isInvalidOrReserved(m.host, zero));
    t.equal(viewTask(m.host, 'a').VmRSS, 0, 'the zero page is not resident memory');
    m.touch('a', 1, false);
    t.equal(m.look('a', 1).pfn, zero, 'there is one zero page');
    m.touch('a', 0, true);
    t.match(m.look('a', 0), { present: true, writable: true, ref_count: 1, pin_count: 0, dirty: false });
    t.not(m.look('a', 0).pfn, zero);
    t.equal(viewTask(m.host, 'a').VmRSS, 4);
    const read = m.pin('a', 2, false);
    t.equal(read, zero, 'a read pin of untouched memory holds the zero page');
    t.match(viewPage(m.host, zero), { kind: 'zero', ref_count: 1024, pin_count: 1 });
    sound(t, m);
    m.unpin(zero);
    const own = m.pin('a', 2, true);
    t.match(viewPage(m.host, own), { kind: 'normal', mapping: 'anon', ref_count: 1025, pin_count: 1, mapcount: 1 });
    t.equal(isInvalidOrReserved(m.host, own), false);
    t.equal(m.pin('a', 2, false), own);
    t.equal(m.pin('a', 2, true), own);
    t.match(m.look('a', 2), { pfn: own, ref_count: 3073, pin_count: 3 });
    t.equal(pinCountOf(m.host, own), 3);
    t.equal(m.host.mm.pages.pinned, 1, 'one page is pinned, three times');
    sound(t, m);
  },
);

t.test('copy on write of 5.15: a page with another reference is copied, the pin keeps the old one', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 3);
  m.touch('a', 0, true);
  const plain = m.look('a', 0).pfn;
  m.mprotect('a', 0, 1, READ);
  t.match(m.look('a', 0), { pfn: plain, writable: false });
  t.equal(
    outcome(() => m.pin('a', 0, true)),
    'EFAULT',
  );
  m.mprotect('a', 0, 1, RW);
  t.match(m.look('a', 0), { pfn: plain, writable: false }, 'private: the next write finds out');
  m.touch('a', 0, true);
  t.match(m.look('a', 0), { pfn: plain, writable: true }, 'reused');

  const pinned = m.pin('a', 1, true);
  m.mprotect('a', 1, 1, READ);
  m.mprotect('a', 1, 1, RW);
  t.equal(m.pin('a', 1, false), pinned, 'a read pin takes what is there');
  m.touch('a', 1, true);
  const copy = m.look('a', 1).pfn as number;
  t.not(copy, pinned, 'the pin and the address have parted');
  t.match(viewPage(m.host, pinned), { ref_count: 2048, mapcount: 0, pin_count: 2 });
  t.match(viewPage(m.host, copy), { ref_count: 1, mapcount: 1 });
  t.equal(m.pin('a', 1, true), copy);
  sound(t, m);
  m.unpin(pinned);
  m.unpin(pinned, true);
  t.match(viewPage(m.host, pinned), { ref_count: 0, dirty: false, mapping: null }, 'free, and forgotten');
  m.mmap('a', 2, 1, RW);
  m.pin('a', 2);
  m.mprotect('a', 2, 1, RW | 4);
  t.equal(m.look('a', 2).writable, false, 'any change of a private area takes the write permission of its entries');
  sound(t, m);
});

t.test('files: one page a file index; shared writes stay, private ones are copied', async (t) => {
  const m = new Machine();
  m.task('a');
  m.task('b');
  m.mmap('a', 0, 4, RW, FILE('f', true, 5));
  m.mmap('b', 0, 4, RW, FILE('f', true, 6));
  m.mmap('b', 4, 4, RW, FILE('f', false, 5));
  m.touch('a', 1, false);
  const page = m.look('a', 1).pfn as number;
  t.match(viewPage(m.host, page), { kind: 'normal', mapping: 'file', ref_count: 2, mapcount: 1 });
  t.equal(m.look('a', 1).writable, false, 'clean: the first write is noticed');
  m.touch('b', 0, true);
  t.match(m.look('b', 0), { pfn: page, writable: true, ref_count: 3 });
  m.touch('a', 1, true);
  t.match(m.look('a', 1), { pfn: page, writable: true });
  m.touch('b', 5, false);
  t.match(m.look('b', 5), { pfn: page, writable: false, ref_count: 4 });
  m.touch('b', 5, true);
  const copy = m.look('b', 5).pfn as number;
  t.match(viewPage(m.host, copy), { mapping: 'anon', ref_count: 1 });
  t.match(viewPage(m.host, page), { ref_count: 3, mapcount: 2 });
  m.touch('b', 4, true);
  t.match(viewPage(m.host, m.look('b', 4).pfn as number), { mapping: 'anon' }, 'a first private write copies at once');
  m.mprotect('a', 1, 1, READ);
  t.equal(m.look('a', 1).writable, false);
  m.mprotect('a', 1, 1, RW);
  t.equal(m.look('a', 1).writable, true, 'shared and dirty: writable again at once');
  const pinned = m.pin('a', 1, true);
  t.equal(pinned, page);
  sound(t, m);
  m.exit('a');
  m.exit('b');
  t.match(viewPage(m.host, page), { ref_count: 1025, mapcount: 0, dirty: false }, 'the cache and the pin are left');
  m.unpin(page, true);
  t.match(viewPage(m.host, page), { ref_count: 1, dirty: true });
  m.task('c');
  m.mmap('c', 0, 1, RW, FILE('f', true, 6));
  m.touch('c', 0, false);
  t.equal(m.look('c', 0).pfn, page, 'still in the cache');
  sound(t, m);
});

t.test(
  'explicit pages: in address order, present, the same pfn at two addresses is one page, never copied',
  async (t) => {
    const m = new Machine();
    m.task('a');
    m.mmap('a', 0, 6, RW, PAGES([100, 3], [57, 1], [101, 2]));
    t.strictSame(
      listPages(m.host, 'a', at(0), 7).map(({ pfn, ref_count, writable }) => [pfn, ref_count, writable]),
      [
        [100, 1, true],
        [101, 2, true],
        [102, 2, true],
        [57, 1, true],
        [101, 2, true],
        [102, 2, true],
        [null, 0, false],
      ],
    );
    t.equal(viewTask(m.host, 'a').VmRSS, 24);
    t.equal(m.pin('a', 1), 101);
    t.equal(m.pin('a', 4), 101);
    t.match(viewPage(m.host, 101), { kind: 'normal', mapping: null, ref_count: 2 + 2048, mapcount: 2, pin_count: 2 });
    m.mprotect('a', 0, 6, READ);
    t.equal(
      outcome(() => m.pin('a', 1)),
      'EFAULT',
    );
    t.equal(m.pin('a', 1, false), 101);
    m.mprotect('a', 0, 6, RW);
    t.equal(m.pin('a', 1), 101, 'shared: pinned or not, it stays the same page');
    m.mmap('a', 8, 1, READ, PAGES([2 ** 52 - 1, 1]));
    m.mprotect('a', 8, 1, RW);
    t.equal(m.look('a', 8).writable, false, 'never written: the first write is noticed');
    t.equal(m.pin('a', 8), 2 ** 52 - 1, 'the last pfn of all');
    t.match(m.look('a', 8), { pfn: 2 ** 52 - 1, writable: true, ref_count: 1025 });
    sound(t, m);
    m.exit('a');
    t.match(viewPage(m.host, 101), { ref_count: 4096, mapcount: 0 });
    for (let i = 0; i < 4; i++) m.unpin(101, i === 0);
    t.match(
      viewPage(m.host, 101),
      { ref_count: 0, dirty: true },
      'the dirty mark can be looked at after the last reference',
    );
    t.match(
      viewPage(m.host, 102),
      { ref_count: 0, dirty: false },
      'a write by the CPU is not the dirty mark of a release',
    );
    sound(t, m);
    m.task('b');
    m.mmap('b', 0, 2, RW, PAGES([101, 2]));
    t.equal(m.look('b', 0).dirty, false, 'used anew');
    m.unpin(2 ** 52 - 1);
    sound(t, m);
  },
);

t.test(
  'explicit pages: of kind zero read-only and uncounted, a write takes a page of its own; reserved ones are counted',
  async (t) => {
    const m = new Machine();
    m.page(105, 'zero');
    m.page(106, 'reserved');
    m.task('a');
    m.mmap('a', 0, 3, RW, PAGES([105, 1], [105, 2]));
    t.match(m.look('a', 0), { pfn: 105, writable: false, ref_count: 0 });
    t.equal(m.pin('a', 1, false), 105);
    t.match(m.look('a', 0), { ref_count: 1024, pin_count: 1 });
    m.unpin(105);
    const own = m.pin('a', 1, true);
    t.not(own, 105);
    t.match(m.look('a', 1), { pfn: own, writable: true });
    m.mprotect('a', 0, 3, READ);
    m.mprotect('a', 0, 3, RW);
    t.match(m.look('a', 0), { pfn: 105, writable: false }, 'mprotect does not make the zero page writable');
    t.ok(isInvalidOrReserved(m.host, 106));
    t.equal(m.pin('a', 2, true), 106);
    t.match(viewPage(m.host, 106), { kind: 'reserved', ref_count: 1025, mapcount: 1 });
    sound(t, m);
    m.exit('a');
    t.match(viewPage(m.host, 106), { kind: 'reserved', ref_count: 1024 }, 'a pin that nobody returns');
    sound(t, m);
  },
);

t.test('pfnmap: every state, permission and intent', async (t) => {
  const states = ['rw', 'r', 'lazy', 'lazy-retry', 'sigbus'] as const;
  for (const prot of [0, READ, WRITE, RW])
    for (const state of states) {
      if (state === 'rw' && (prot & WRITE) === 0) continue;
      for (const write of [false, true]) {
        const m = new Machine();
        m.task('a');
        const ptes: State[] = ['lazy', state];
        m.mmap('a', 0, 2, prot, { kind: 'pfnmap', pfn: 200, struct_page: false, reserved: true, ptes });
        const label = `prot ${prot}, ${state}, ${write ? 'write' : 'read'}`;
        const lazy = state === 'lazy' || state === 'lazy-retry';
        t.equal(m.look('a', 1).present, state === 'rw' || state === 'r', label);
        const permitted = (prot & (write ? WRITE : READ)) !== 0;
        let expected = 'ok';
        if (state === 'sigbus' || (lazy && !permitted) || (state === 'r' && write)) expected = 'EFAULT';
        t.equal(
          outcome(() => m.follow('a', 1, write)),
          expected,
          label,
        );
        if (expected === 'ok') t.equal(m.follow('a', 1, write), 201, label);
        if (lazy) t.equal(m.look('a', 1).writable, permitted && (prot & WRITE) !== 0, label);
        t.equal(m.look('a', 1).present, !lazy ? state !== 'sigbus' : permitted, `${label}: after`);
        t.equal(
          outcome(() => m.pin('a', 1, write)),
          'EFAULT',
          `${label}: GUP refuses device memory`,
        );
        t.match(viewPage(m.host, 201), { kind: 'device', struct_page: false, ref_count: 0, mapcount: 0 }, label);
        sound(t, m, label);
      }
    }
});

t.test('pfnmap: what its pages are, and who decided first', async (t) => {
  const m = new Machine();
  m.task('a');
  m.page(301, 'normal');
  m.mmap('a', 0, 2, RW, { kind: 'pfnmap', pfn: 300, struct_page: false, reserved: true });
  m.mmap('a', 2, 2, RW, {
    kind: 'pfnmap',
    pfns: [
      [310, 1],
      [320, 1],
    ],
    struct_page: true,
    reserved: true,
  });
  m.mmap('a', 4, 1, READ, { kind: 'pfnmap', pfn: 330, struct_page: true, reserved: false });
  m.mmap('a', 5, 1, RW, { kind: 'pfnmap', pfn: 310, struct_page: false, reserved: true });
  t.strictSame(
    [300, 301, 310, 320, 330].map((pfn) => [viewPage(m.host, pfn).kind, isInvalidOrReserved(m.host, pfn)]),
    [
      ['device', true],
      ['normal', false],
      ['reserved', true],
      ['reserved', true],
      ['normal', false],
    ],
  );
  t.equal(m.follow('a', 3, true), 320);
  t.equal(m.follow('a', 4, false), 330);
  t.equal(
    outcome(() => m.follow('a', 4, true)),
    'EFAULT',
    'the area may only be read',
  );
  m.mprotect('a', 4, 1, RW);
  t.equal(m.follow('a', 4, true), 330, 'device memory gets its permission back at once');
  m.mprotect('a', 3, 1, READ);
  t.equal(
    outcome(() => m.follow('a', 3, true)),
    'EFAULT',
  );
  m.mmap('a', 6, 1, RW, { kind: 'pfnmap', pfn: 340, struct_page: false, reserved: true, ptes: ['r'] });
  t.equal(
    outcome(() => m.follow('a', 6, true)),
    'EFAULT',
    'a read-only entry in an area that may be written',
  );
  m.touch('a', 6, true);
  t.equal(m.follow('a', 6, true), 340, 'a write by the CPU makes it writable, without a copy');
  t.equal(
    outcome(() => m.follow('a', 9, true)),
    'EFAULT',
    'a hole',
  );
  m.mmap('a', 9, 1);
  t.equal(
    outcome(() => m.follow('a', 9, true)),
    'EFAULT',
    'anonymous memory',
  );
  t.match(listMaps(m.host, 'a', null, 1).items[0], {
    flags: ['READ', 'WRITE', 'SHARED', 'MAYREAD', 'MAYWRITE', 'MAYEXEC', 'MAYSHARE', 'PFNMAP', 'IO'],
    backing: { kind: 'pfnmap', pfn: 300 },
  });
  t.equal(
    outcome(() => m.page(300, 'device')),
    'ok',
    'the same kind changes nothing',
  );
  t.equal(m.page(300, 'device').created, false);
  t.equal(
    outcome(() => m.page(300, 'zero')),
    'EBUSY',
    'the area has decided',
  );
  m.exit('a');
  t.equal(viewPage(m.host, 320).kind, 'reserved', 'for ever');
  sound(t, m);
});

t.test('put_page: before the first use, once', async (t) => {
  const m = new Machine();
  for (const pfn of [-1, 0.5, 2 ** 52, Number.NaN]) {
    t.equal(
      outcome(() => m.page(pfn, 'zero')),
      'EINVAL',
    );
    t.equal(
      outcome(() => viewPage(m.host, pfn)),
      'EINVAL',
    );
  }
  t.strictSame(m.page(7, 'reserved'), { ret: 0, created: true, fields: { pfn: 7, kind: 'reserved' } });
  t.strictSame(m.page(7, 'reserved'), { ret: 0, created: false, fields: { pfn: 7, kind: 'reserved' } });
  t.equal(
    outcome(() => m.page(7, 'zero')),
    'EEXIST',
  );
  m.task('a');
  m.mmap('a', 0, 2, RW, PAGES([7, 2]));
  t.equal(m.page(7, 'reserved').created, false);
  t.equal(
    outcome(() => m.page(7, 'zero')),
    'EBUSY',
    'in use before exists',
  );
  t.equal(
    outcome(() => m.page(8, 'normal')),
    'EBUSY',
    'used without a declaration',
  );
  m.munmap('a', 0, 2);
  t.equal(m.page(8, 'zero').created, true, 'free again');
  t.equal(viewPage(m.host, 7).kind, 'reserved');
  m.host.mm.pages.declared += MAX_DECLARED_PAGES - 2;
  t.equal(
    outcome(() => m.page(9, 'normal')),
    'ENOSPC',
  );
  t.equal(m.page(8, 'zero').created, false);
  m.host.mm.pages.declared -= MAX_DECLARED_PAGES - 2;
  t.equal(m.page(2 ** 52 - 1, 'device').created, true);
  sound(t, m);
});

t.test(
  'frames: handed out upward from 1/16 of memory, around the end, past what is in use or declared; then ENOMEM',
  async (t) => {
    const m = new Machine(64);
    m.page(6, 'normal');
    m.page(8, 'device');
    m.page(70, 'reserved');
    m.task('a');
    m.task('b');
    m.mmap('b', 0, 2, RW, PAGES([10, 2]));
    m.mmap('a', 0, 100);
    const got: number[] = [];
    for (let i = 0; i < 60; i++) got.push(m.pin('a', i));
    const wanted = [...Array(64).keys()].map((i) => (i + 4) % 64).filter((pfn) => ![6, 8, 10, 11].includes(pfn));
    t.strictSame(got, wanted);
    t.equal(m.host.mm.pages.used, 64, 'beyond memory nothing counts');
    t.equal(
      outcome(() => m.pin('a', 60)),
      'ENOMEM',
    );
    t.equal(
      outcome(() => m.touch('a', 60, true)),
      'ENOMEM',
    );
    t.match(m.look('a', 60), { present: false });
    t.equal(
      outcome(() => m.touch('a', 60, false)),
      'ok',
      'the zero page takes no memory',
    );
    t.equal(m.look('a', 60).pfn, 64);
    sound(t, m);
    m.mprotect('a', 0, 1, READ);
    m.mprotect('a', 0, 1, RW);
    t.equal(
      outcome(() => m.touch('a', 0, true)),
      'ENOMEM',
      'no page for the copy',
    );
    t.match(m.look('a', 0), { pfn: 4, writable: false });
    m.munmap('a', 20, 3);
    t.equal(
      outcome(() => m.pin('a', 60)),
      'ENOMEM',
      'pinned pages are not free',
    );
    m.unpin(wanted[21] as number);
    t.equal(m.pin('a', 60), wanted[21], 'the one page that is free');
    m.exit('a');
    m.exit('b');
    for (let i = 0; i < 60; i++) if (i !== 21) m.unpin(got[i] as number);
    m.unpin(wanted[21] as number);
    t.equal(m.host.mm.pages.used, 2, 'the declared ones');
    sound(t, m);
    const one = new Machine(1);
    one.task('a');
    one.mmap('a', 0, 2);
    t.equal(one.pin('a', 0), 0);
    t.equal(
      outcome(() => one.pin('a', 1)),
      'ENOMEM',
    );
  },
);

t.test('frames: a machine that has been full and is churned costs no more than what is in use', async (t) => {
  const m = new Machine(1 << 16);
  m.task('a');
  m.mmap('a', 0, 1 << 16);
  for (let round = 0; round < 20; round++) {
    for (let i = 0; i < 8192; i++) m.touch('a', i, true);
    m.munmap('a', 0, 8192);
    m.mmap('a', 0, 8192);
  }
  t.equal(m.host.mm.pages.chunks.size, 0);
  t.equal(m.host.mm.page_tables, 0);
  for (let i = 0; i < 1 << 16; i++) m.touch('a', i, true);
  const hole = 40000;
  const start = process.hrtime.bigint();
  for (let i = 0; i < 2000; i++) {
    m.munmap('a', hole, 1);
    m.mmap('a', hole, 1);
    m.touch('a', hole, true);
  }
  t.ok(process.hrtime.bigint() - start < 5_000_000_000n, 'a full machine finds its one free frame chunk by chunk');
  sound(t, m);
});

t.test('pin_user_pages: refusals in their order', async (t) => {
  const m = new Machine();
  m.task('a');
  t.equal(m.mm('a').has_pinned, false);
  t.match(
    detail(() => m.pin('a', 0)),
    'nothing is mapped',
  );
  t.equal(m.mm('a').has_pinned, true);
  m.mmap('a', 0, 1, 0, { kind: 'pfnmap', pfn: 1, struct_page: false, reserved: true });
  t.match(
    detail(() => m.pin('a', 0)),
    'device memory',
  );
  m.mmap('a', 0, 1, READ);
  t.match(
    detail(() => m.pin('a', 0)),
    'may not be written',
  );
  m.mmap('a', 0, 1, WRITE);
  t.match(
    detail(() => m.pin('a', 0, false)),
    'may not be read',
  );
  t.equal(
    outcome(() => m.pin('a', 0, true)),
    'ok',
  );
  m.mmap('a', 0, 1, 0);
  t.equal(
    outcome(() => m.pin('a', 0, true)),
    'EFAULT',
  );
  t.equal(
    outcome(() => m.pin('a', 0, false)),
    'EFAULT',
  );
  t.throws(() => m.unpin(12345), 'a page that is not pinned is a mistake of ours');
});

t.test('a counter that overflows refuses further pins with ENOMEM, and warns once', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 1);
  let pins = 0;
  for (; pins < 2 ** 21; pins++) m.pin('a', 0);
  const pfn = m.look('a', 0).pfn as number;
  t.match(viewPage(m.host, pfn), { ref_count: 1 - 2 ** 31, pin_count: 2 ** 21 });
  t.equal(
    outcome(() => m.pin('a', 0)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.pin('a', 0)),
    'ENOMEM',
  );
  t.strictSame(
    m.host.dmesg.since(0, 9).items.map(({ where }) => where),
    ['try_grab_page'],
  );
  sound(t, m);
  for (; pins > 0; pins--) m.unpin(pfn);
  t.match(viewPage(m.host, pfn), { ref_count: 1, pin_count: 0 });
  t.equal(
    outcome(() => m.pin('a', 0)),
    'ok',
  );
  sound(t, m);
});

t.test('a page is mapped at most MAX_MAPCOUNT times', async (t) => {
  const m = new Machine();
  m.task('a');
  m.mmap('a', 0, 1, RW, PAGES([5, 1]));
  m.mmap('a', 1, 2, RW, FILE('f', true));
  m.touch('a', 1, false);
  const filePage = m.look('a', 1).pfn as number;
  const { pages } = m.host.mm;
  for (const pfn of [5, filePage]) {
    const chunk = pages.chunk(Math.floor(pfn / 512));
    if (chunk === undefined) throw new Error('no chunk');
    chunk.state[pfn % 512] = (chunk.state[pfn % 512] as number) + (MAX_MAPCOUNT - 1) * 256;
    t.equal(pages.mapcount(pfn), MAX_MAPCOUNT);
  }
  t.equal(
    outcome(() => m.mmap('a', 8, 1, RW, PAGES([5, 1]))),
    'ENOMEM',
  );
  m.mmap('a', 8, 1, RW, FILE('f', true));
  t.equal(
    outcome(() => m.touch('a', 8, true)),
    'ENOMEM',
  );
  t.equal(
    outcome(() => m.touch('a', 1, true)),
    'ok',
    'a mapping that is there may become writable',
  );
});

t.test('page-table entries hold every type, 52 bits of pfn and all flags', async (t) => {
  const m = new Machine();
  m.task('a');
  const mm = m.mm('a');
  const pfns = [0, 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 44 + 12345, 2 ** 52 - 1];
  const types = [PTE_SWAP, PTE_MIGRATION, PTE_DEVICE_EXCLUSIVE, PTE_SWAP | PTE_WRITE | PTE_DIRTY];
  let page = 0;
  for (const pfn of pfns)
    for (const flags of types) {
      setPte(m.host, mm, page, pfn, flags);
      t.strictSame([mm.page_table.pfn(page), mm.page_table.flags(page)], [pfn, flags]);
      page += 300;
    }
  t.equal(mm.rss, 0);
  for (page -= 300; page >= 0; page -= 300) {
    const index = leafIndex(page);
    const leaf = mm.page_table.leaf(index);
    if (leaf === undefined) throw new Error('no leaf');
    t.equal(pfnAt(leaf, page % 512), mm.page_table.pfn(page));
    t.equal(flagsAt(leaf, page % 512), mm.page_table.flags(page));
    clearPte(m.host, mm, index, leaf, page % 512);
    t.equal(mm.page_table.flags(page), 0);
  }
  t.strictSame([mm.page_table.leaves.size, m.host.mm.page_tables], [0, 0]);
});

t.test('checkMm finds what is wrong', async (t) => {
  const build = (): Machine => {
    const m = new Machine(4096);
    m.task('a');
    m.task('a1', { thread_of: 'a' });
    m.mmap('a', 0, 4);
    m.mmap('a', 4, 2, RW, FILE('f', true));
    m.mmap('a', 6, 2, RW, PAGES([9, 2]));
    for (let i = 0; i < 6; i++) m.pin('a', i);
    m.page(20, 'reserved');
    sound(t, m, 'before');
    return m;
  };
  const first = (m: Machine) => {
    const chunk = m.host.mm.pages.chunk(0);
    if (chunk?.pins == null) throw new Error('no chunk');
    return { ...chunk, pins: chunk.pins, chunk };
  };
  const breakages: [string, (m: Machine) => void, RegExp][] = [
    ['refcount', (m) => first(m).refcount.fill(3, 9, 10), /page 9: refcount 3, not 1/],
    ['mapcount', (m) => first(m).state.fill(0x201, 9, 10), /page 9: mapcount 2/],
    ['free with state', (m) => first(m).state.fill(2, 30, 31), /page 30 is free with state/],
    ['pins', (m) => first(m).pins.fill(1, 9, 10), /page 9: refcount 1, not 1025/],
    ['busy', (m) => void first(m).chunk.busy++, /busy/],
    ['live', (m) => void first(m).chunk.live++, /live/],
    ['used', (m) => void m.host.mm.pages.used++, /pages: used/],
    ['pinned', (m) => void m.host.mm.pages.pinned--, /pages: pinned/],
    ['declared', (m) => void m.host.mm.pages.declared++, /pages: declared/],
    ['rss', (m) => void m.mm('a').rss++, /rss/],
    ['users', (m) => void m.mm('a').users++, /users 3, 2 tasks/],
    ['thread group', (m) => void m.host.mm.thread_groups.get('a')?.threads.pop(), /not in its thread group/],
    ['page tables', (m) => void m.host.mm.page_tables++, /page_tables/],
    ['leaf', (m) => void m.mm('a').page_table.leaves.forEach((leaf) => void leaf.used++), /used \d+, \d+ entries/],
    ['areas', (m) => void m.mm('a').vmas.areas.reverse(), /out of order/],
    ['no area', (m) => m.mm('a').vmas.splice(0, 1, [], 0), /has an entry and no area/],
    ['layout', (m) => void m.host.mm.layouts.forEach((layout) => void layout.users++), /layout 1: users 2, 1 areas/],
    ['no layout', (m) => m.host.mm.layouts.clear(), /layout 1 is named and does not exist/],
    ['cache', (m) => void m.host.mm.files.get('f')?.pages.delete(0), /refcount/],
    ['cached twice', (m) => void m.host.mm.files.get('f')?.pages.set(1, m.look('a', 4).pfn as number), /in 2 caches/],
    ['unknown page', (m) => m.host.mm.pages.chunks.clear(), /is referred to, and unknown/],
    ['no mm', (m) => m.host.mm.mms.clear(), /has tasks and does not exist/],
  ];
  for (const [what, damage, expected] of breakages) {
    const m = build();
    damage(m);
    t.match(checkMm(m.host).join('\n'), expected, what);
  }
});
