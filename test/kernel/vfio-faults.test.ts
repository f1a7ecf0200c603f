// Pins, maps and dma_rw of pages whose faults tell an mmu notifier, or have to wait.

import t from 'tap';
import { PTE_HWPOISON, setPte } from '../../src/kernel/mm/page-table.ts';
import { mmOf } from '../../src/kernel/mm/task.ts';
import type { Operation } from '../../src/kernel/operation.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { type Machine, PAGE, R, RW, type Setup, setup } from './machine.ts';
import { restored } from './restored.ts';

/** Anonymous memory of task T, and the iova that it is mapped at. */
const A = 0x20000000n;
const IOVA = 0x100000n;
const NPAGE = 4n;

/** Setup S with four written anonymous pages that a child shares: the next write to each breaks COW. */
function shared(options: Setup = {}): Machine {
  const m = setup(options);
  m.run({
    op: 'mmap',
    task: 'T',
    addr: A,
    length: NPAGE * PAGE,
    prot: RW,
    backing: { kind: 'anon' },
    noreplace: false,
  });
  for (let i = 0n; i < NPAGE; i++) m.run({ op: 'access', task: 'T', addr: A + i * PAGE, write: true });
  m.run({ op: 'fork', task: 'T', child: 'child' });
  return m;
}

const mapped = (options: Setup = {}): Machine => {
  const m = shared(options);
  m.map(IOVA, NPAGE * PAGE, RW, { vaddr: A });
  return m;
};

const mmId = (m: Machine): string => mmOf(m.host, 'T')?.id as string;
const pfnAt = (m: Machine, i: bigint, task = 'T'): number | undefined =>
  mmOf(m.host, task)?.page_table.pfn(Number((A + i * PAGE) >> 12n));
const operationOf = (m: Machine, { parked }: Outcome): Operation =>
  m.host.operations.get(parked as string) as Operation;

function watch(m: Machine, kind: 'script' | 'poll'): void {
  m.run({
    op: 'register_mmu_notifier',
    mm: mmId(m),
    id: 'N',
    callbacks: ['invalidate_range_start'],
    handler: kind === 'script' ? { kind, scripts: {} } : { kind },
  });
}

/** The client's handler of the callback that an operation waits in returns. */
function answer(m: Machine, outcome: Outcome): void {
  const notification = (operationOf(m, outcome).blocked_on ?? '').replace('notification:', '');
  m.run({ op: 'ack_mmu_notification', notification, ret: 0, reason: 'ack', detail: null });
}

const stopWithMmapLock = (m: Machine): Outcome =>
  m.start({ op: 'mprotect', task: 'T', addr: A, length: NPAGE * PAGE, prot: R, stop_at: 'after_start' });

t.test('a pin that breaks COW tells the notifiers of the mm, and answers at once where they are scripts', async (t) => {
  const m = mapped();
  watch(m, 'script');
  const old = pfnAt(m, 0n);
  const pinned = m.pin([IOVA, IOVA + PAGE]);
  t.strictSame([pinned.ret, pinned.parked], [2, undefined]);
  t.strictSame(pinned.fields.phys_pfn, [pfnAt(m, 0n), pfnAt(m, 1n)]);
  t.not(pfnAt(m, 0n), old);
  t.equal(pfnAt(m, 0n, 'child'), old);
  t.equal(m.host.mm.mmu_notifiers.get('N')?.calls.invalidate_range_start, 2);
  t.strictSame([m.lv(), m.host.operations.size], [2, 0], 'charged, and no operation is left');
});

t.test('a pin waits for the client that is told, pins nothing meanwhile, and then answers as ever', async (t) => {
  const m = mapped();
  watch(m, 'poll');
  const pin = m.start({ op: 'pin_pages', device: 'D1', user_pfn: [0x101, 0x102], npage: 2, prot: R });
  const operation = operationOf(m, pin);
  t.match(operation.blocked_on, /^notification:mmu-notification-/);
  t.strictSame([pin.detached, m.lv(), m.records(IOVA)], [undefined, 0, []]);
  t.equal(m.host.vfio.groups.get('G1')?.container_users, 3, 'binding, open device, and the pin');
  answer(m, pin);
  t.match(operation.blocked_on, /^notification:mmu-notification-/, 'the second page');
  answer(m, pin);
  t.strictSame(operation.outcome?.fields.phys_pfn, [pfnAt(m, 1n), pfnAt(m, 2n)]);
  t.strictSame([m.lv(), m.host.vfio.groups.get('G1')?.container_users], [2, 2]);
});

t.test('a pin survives a restart while it waits for a client', async (t) => {
  const m = mapped();
  watch(m, 'poll');
  const pin = m.start({ op: 'pin_pages', device: 'D1', user_pfn: [0x101], npage: 1, prot: R });
  const again = restored(m);
  answer(again, pin);
  t.strictSame(operationOf(again, pin).outcome?.fields.phys_pfn, [pfnAt(again, 1n)]);
  t.equal(m.host.operations.get(pin.parked as string)?.state, 'blocked', 'the copy alone went on');
});

t.test('a pin waits for mmap_lock where a stopped mprotect holds it, and finds the new permission', async (t) => {
  const m = mapped();
  const stopped = stopWithMmapLock(m);
  const pin = m.start({ op: 'pin_pages', device: 'D1', user_pfn: [0x100], npage: 1, prot: R });
  t.equal(operationOf(m, pin).blocked_on, `mmap_lock:${mmId(m)}`);
  t.strictSame(pin.detached, [pin.parked]);
  const rw = m.start({
    op: 'dma_rw',
    device: 'D1',
    iova: IOVA,
    length: 8,
    write: false,
    data: null,
    task: null,
  });
  t.equal(operationOf(m, rw).blocked_on, `mmap_lock:${mmId(m)}`);
  m.run({ op: 'resume_operation', operation: stopped.parked as string });
  t.equal(operationOf(m, pin).outcome?.refusal?.errno, 'EFAULT', 'a write pin of what may only be read');
  t.equal(operationOf(m, rw).outcome?.fields.data, 'AAAAAAAAAAA=');
  t.equal(m.host.locks.size, 0);
});

t.test('a mapping that an IOMMU is to pin brings its pages in first', async (t) => {
  const m = shared({ limit: 4096 });
  t.equal(m.iommuGroup('GI').ret, 0);
  watch(m, 'poll');
  const map = m.start({
    op: 'map_dma',
    container: 'C',
    task: 'T',
    iova: IOVA,
    vaddr: A,
    size: 2n * PAGE,
    flags: RW,
    argsz: 32,
  });
  t.match(operationOf(m, map).blocked_on, /^notification:/);
  t.strictSame(m.mappings(), [], 'nothing is mapped yet');
  answer(m, map);
  answer(m, map);
  t.equal(operationOf(m, map).outcome?.ret, 0);
  t.strictSame([m.mappings(), m.lv()], [[[IOVA, 2n * PAGE]], 2]);
});

t.test('a write of dma_rw breaks COW in the sight of the notifiers', async (t) => {
  const m = mapped();
  watch(m, 'poll');
  const write = m.start({
    op: 'dma_rw',
    device: 'D1',
    iova: IOVA + PAGE - 2n,
    length: 4,
    write: true,
    data: 'AQIDBA==',
    task: null,
  });
  answer(m, write);
  answer(m, write);
  t.equal(operationOf(m, write).outcome?.ret, 0);
  const read = m.run({
    op: 'dma_rw',
    device: 'D1',
    iova: IOVA + PAGE - 2n,
    length: 4,
    write: false,
    data: null,
    task: null,
  });
  t.equal(read.fields.data, 'AQIDBA==');
  t.equal(m.run({ op: 'access', task: 'child', addr: A + PAGE - 2n, write: false, length: 4 }).fields.data, 'AAAAAA==');
});

t.test('a pin of a poisoned page is EFAULT, and what it took before is given back', async (t) => {
  const m = mapped();
  const mm = mmOf(m.host, 'T');
  if (mm === null) return;
  m.run({ op: 'madvise', task: 'T', addr: A + PAGE, length: PAGE, advice: 'DONTNEED' });
  setPte(m.host, mm, Number((A + PAGE) >> 12n), 77, PTE_HWPOISON);
  const pin = m.pin([IOVA, IOVA + PAGE]);
  t.strictSame([pin.refusal?.errno, pin.refusal?.at_index, m.lv()], ['EFAULT', 1, 0]);
});

t.test(
  'the container of a pin that waits dies: the pin gives its locks and its container up, and is EIO',
  async (t) => {
    const m = mapped();
    m.handlers.delete('L1');
    m.handlers.set('L1', () => 1);
    t.equal(m.pin([IOVA + 3n * PAGE]).ret, 1);
    const stopped = stopWithMmapLock(m);
    const pin = m.start({ op: 'pin_pages', device: 'D1', user_pfn: [0x100], npage: 1, prot: R });
    t.equal(operationOf(m, pin).state, 'blocked');
    m.unmap(IOVA, NPAGE * PAGE);
    t.not(m.host.vfio.containers.get('C')?.dead, null);
    const { outcome } = operationOf(m, pin);
    t.strictSame([outcome?.refusal?.errno, outcome?.refusal?.left], ['EIO', { phys_pfn: [0] }]);
    m.run({ op: 'resume_operation', operation: stopped.parked as string });
    t.equal(m.host.locks.size, 0);
  },
);

t.test('a task exits while a pin waits in its address space: that is torn down after the pin', async (t) => {
  const m = mapped();
  watch(m, 'poll');
  const pin = m.start({ op: 'pin_pages', device: 'D1', user_pfn: [0x100], npage: 1, prot: R });
  const exit = m.start({ op: 'exit', task: 'T' });
  t.equal(operationOf(m, exit).blocked_on, `operation:${pin.parked}`);
  answer(m, pin);
  t.equal(operationOf(m, pin).outcome?.refusal?.errno, 'ENODEV', 'the mm that made the mapping is gone');
  t.equal(operationOf(m, exit).outcome?.ret, 0);
});
