// The numbered conformance cases of VFIO type1 pinning, parts A to G, for profile 5.15 without IOMMU-backed groups.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { checkExtension } from '../../src/kernel/view/vfio.ts';
import { H, Machine, PAGE, R, RW, setup, unpinAll, V, W } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const pfns = ({ fields, refusal }: Outcome): unknown => fields.phys_pfn ?? refusal?.left?.phys_pfn;

t.test('A. pin basics', async (t) => {
  t.test('1 pin_pages: the first pin makes a record, takes a reference and charges a page', async (t) => {
    const m = setup();
    t.equal(m.map(0x10000n, 0x4000n).ret, 0);
    const outcome = m.pin([0x10000n]);
    t.equal(outcome.ret, 1);
    t.same(pfns(outcome), [H]);
    t.same(m.records(0x10000n), [[0x10000n, H, 1]]);
    t.equal(m.lv(), 1);
    t.equal(m.page(H).pins, 1);
  });
  t.test('2 pin_pages: pinning again raises ref_count alone', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    m.pin([0x10000n]);
    const before = m.page(H);
    const outcome = m.pin([0x10000n]);
    t.same([outcome.ret, pfns(outcome)], [1, [H]]);
    t.same(m.records(0x10000n), [[0x10000n, H, 2]]);
    t.equal(m.lv(), 1);
    t.same(m.page(H), before);
  });
  t.test('4 pin_pages: three pages in one call', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    const outcome = m.pin([0x10000n, 0x11000n, 0x12000n]);
    t.same([outcome.ret, pfns(outcome)], [3, [H, H + 1, H + 2]]);
    t.equal(m.lv(), 3);
  });
  t.test('5 pin_pages: an unmapped iova is EINVAL', async (t) => {
    const m = setup();
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
    t.equal(m.lv(), 0);
  });
  t.test('6 pin_pages: an unmapped second entry rolls the first back and zeroes the output', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    const outcome = m.pin([0x10000n, 0x11000n]);
    t.same([errno(outcome), pfns(outcome), outcome.refusal?.at_index], ['EINVAL', [0, 0], 1]);
    t.same(m.records(0x10000n), []);
    t.equal(m.lv(), 0);
    t.equal(m.page(H).pins, 0);
  });
  t.test('8 pin_pages: prot R on a write-only mapping is EPERM, prot W is 1', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE, W);
    t.equal(errno(m.pin([0x10000n])), 'EPERM');
    t.equal(m.pin([0x10000n], { prot: W }).ret, 1);
  });
  t.test('9 pin_pages: prot 0 passes on a read-only mapping', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE, R);
    t.equal(m.pin([0x10000n], { prot: 0 }).ret, 1);
  });
  t.test('10 pin_pages: prot 4 is EPERM', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n], { prot: 4 })), 'EPERM');
  });
  t.test('12 pin_pages: 512 pages are 512, 513 are E2BIG without effect', async (t) => {
    const m = setup();
    m.map(0x400000n, 0x400000n);
    m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
    const iovas = Array.from({ length: 513 }, (_, i) => 0x400000n + BigInt(i) * PAGE);
    t.equal(errno(m.pin(iovas)), 'E2BIG');
    t.equal(m.lv(), 0);
    t.equal(m.pin(iovas.slice(0, 512)).ret, 512);
    t.equal(m.lv(), 512);
  });
  t.test('13 pin_pages: EACCES on a v1 container, for unpin too', async (t) => {
    const m = setup({ v1: true });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'EACCES');
    t.equal(errno(m.unpin([0x10000n])), 'EACCES');
  });
  t.test('14 pin_pages: EINVAL with nobody listening', async (t) => {
    const m = setup();
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
    t.equal(m.page(H).pins, 0);
  });
  t.test('16 pin_pages: EINVAL when the group of the device is in no container', async (t) => {
    const m = setup();
    m.run({ op: 'put_group', group: 'G9', kind: 'mdev' });
    m.run({ op: 'put_device', device: 'D9', group: 'G9' });
    t.equal(errno(m.pin([0x10000n], { device: 'D9' })), 'EINVAL');
  });
  t.test('17 pin_pages: ENODEV for a device without vfio group', async (t) => {
    const m = setup();
    m.run({ op: 'put_device', device: 'D9', group: null });
    t.equal(errno(m.pin([0x10000n], { device: 'D9' })), 'ENODEV');
  });
  t.test('18 pin_pages: EINVAL before SET_IOMMU', async (t) => {
    const m = new Machine();
    m.run({ op: 'put_container', container: 'C' });
    m.group('G1', 'C');
    m.run({ op: 'put_device', device: 'D1', group: 'G1' });
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
  });
  t.test('20 pin_pages: a mapping over a hole succeeds, its pin is EFAULT', async (t) => {
    const m = setup();
    t.equal(m.map(0x10000n, PAGE, RW, { vaddr: 0x7000000n }).ret, 0);
    t.equal(errno(m.pin([0x10000n])), 'EFAULT');
    t.equal(m.lv(), 0);
  });
  t.test(
    '21 pin_pages: write intent comes from the mapping: RW over a read-only area is EFAULT for prot R',
    async (t) => {
      const m = setup();
      m.pages('T', 0x20000000n, [[5000, 4]], R);
      m.map(0x10000n, PAGE, RW, { vaddr: 0x20000000n });
      t.equal(errno(m.pin([0x10000n])), 'EFAULT');
    },
  );
  t.test('22 pin_pages: R over a read-only area is 1', async (t) => {
    const m = setup();
    m.pages('T', 0x20000000n, [[5000, 4]], R);
    m.map(0x10000n, PAGE, R, { vaddr: 0x20000000n });
    t.equal(m.pin([0x10000n]).ret, 1);
  });
  t.test('24 pin_pages: VM_PFNMAP over a normal page is EFAULT', async (t) => {
    const m = setup();
    const backing = { kind: 'pfnmap' as const, pfn: 6000, struct_page: true, reserved: false };
    m.run({ op: 'mmap', task: 'T', addr: 0x20000000n, length: 0x4000n, prot: RW, backing, noreplace: false });
    m.map(0x10000n, PAGE, RW, { vaddr: 0x20000000n });
    t.equal(errno(m.pin([0x10000n])), 'EFAULT');
    t.equal(m.lv(), 0);
  });
  t.test('25 pin_pages: one host page behind two addresses is two records, two references, two charges', async (t) => {
    const m = setup();
    m.pages('T', 0x20000000n, [
      [5000, 1],
      [5000, 1],
    ]);
    m.map(0x10000n, 0x2000n, RW, { vaddr: 0x20000000n });
    const outcome = m.pin([0x10000n, 0x11000n]);
    t.same([outcome.ret, pfns(outcome)], [2, [5000, 5000]]);
    t.same(m.records(0x10000n).length, 2);
    t.equal(m.lv(), 2);
    t.equal(m.page(5000).pins, 2);
  });
  t.test('26 pin_pages: two mappings of one vaddr are charged per iova', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.map(0x20000n, PAGE);
    m.pin([0x10000n]);
    m.pin([0x20000n]);
    t.equal(m.lv(), 2);
    m.unpin([0x10000n]);
    t.equal(m.lv(), 1);
    t.equal(m.page(H).pins, 1);
  });
  t.test('28 pin_pages: EPERM at the entry whose mapping lacks the right; earlier ones are rolled back', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE, R);
    m.map(0x11000n, PAGE, RW, { vaddr: V + PAGE });
    const first = m.pin([0x10000n, 0x11000n], { prot: RW });
    t.same([errno(first), first.refusal?.at_index], ['EPERM', 0]);
    const second = m.pin([0x11000n, 0x10000n], { prot: RW });
    t.same([errno(second), second.refusal?.at_index], ['EPERM', 1]);
    t.same(m.records(0x11000n), []);
    t.equal(m.lv(), 0);
  });
  t.test('29 pin_pages: ENODEV when the mm of the mapping is gone, but a pinned iova needs none', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x2000n);
    m.pin([0x10000n]);
    m.run({ op: 'exit', task: 'T' });
    t.equal(errno(m.pin([0x11000n])), 'ENODEV');
    t.equal(m.pin([0x10000n]).ret, 1);
    t.same(m.records(0x10000n), [[0x10000n, H, 2]]);
  });
});

t.test('B. unpin', async (t) => {
  t.test('33 unpin_pages: the last reference removes the record, uncharges, and dirties the page', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    m.pin([0x10000n]);
    m.pin([0x10000n]);
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.same(m.records(0x10000n), [[0x10000n, H, 1]]);
    t.equal(m.lv(), 1);
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.same(m.records(0x10000n), []);
    t.equal(m.lv(), 0);
    t.match(m.page(H), { pins: 0, dirty: true });
  });
  t.test('34 unpin_pages: a page of a read-only mapping is not dirtied', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE, R);
    m.pin([0x10000n]);
    m.unpin([0x10000n]);
    t.match(m.page(H), { pins: 0, dirty: false });
  });
  t.test('36 unpin_pages: EINVAL when the first iova is unmapped', async (t) => {
    t.equal(errno(setup().unpin([0x50000n])), 'EINVAL');
  });
  t.test('37 unpin_pages: stops at an unmapped iova and returns what was done', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    t.equal(m.unpin([0x10000n, 0x50000n, 0x10000n]).ret, 1);
  });
  t.test('38 unpin_pages: what lies behind the gap stays pinned', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.map(0x12000n, PAGE, RW, { vaddr: V + 2n * PAGE });
    m.pin([0x10000n, 0x12000n]);
    t.equal(m.unpin([0x10000n, 0x11000n, 0x12000n]).ret, 1);
    t.same(m.records(0x12000n), [[0x12000n, H + 2, 1]]);
  });
  t.test('40 unpin_pages: any device of the container may drop a pin', async (t) => {
    const m = setup();
    m.group('G2', 'C');
    m.device('D2', 'G2');
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    t.equal(m.unpin([0x10000n], { device: 'D2' }).ret, 1);
    t.same(m.records(0x10000n), []);
  });
  t.test('41 unpin_pages: needs no listener', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
  });
  t.test('42 unpin_pages: works after the task has exited, without a charge error', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.run({ op: 'exit', task: 'T' });
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.same(m.records(0x10000n), []);
    t.equal(m.page(H).pins, 0);
    t.same(m.dmesg('WARN'), []);
  });
});

t.test('C. accounting', async (t) => {
  t.test('44 pin_pages: ENOMEM over RLIMIT_MEMLOCK leaves nothing', async (t) => {
    const m = setup({ limit: 2 });
    m.map(0x10000n, 0x4000n);
    const outcome = m.pin([0x10000n, 0x11000n, 0x12000n]);
    t.same([errno(outcome), outcome.refusal?.at_index], ['ENOMEM', 2]);
    t.equal(m.lv(), 0);
    t.same(m.records(0x10000n), []);
    t.match(
      m.host.dmesg.since(0, 10).items.at(-1)?.text,
      /vfio_pin_page_external: Task T \(1000\) RLIMIT_MEMLOCK \(8192\) exceeded/,
    );
  });
  t.test('45 pin_pages: the limit itself may be reached; pinning again charges nothing', async (t) => {
    const m = setup({ limit: 2 });
    m.map(0x10000n, 0x4000n);
    t.equal(m.pin([0x10000n, 0x11000n]).ret, 2);
    t.equal(m.lv(), 2);
    t.equal(errno(m.pin([0x12000n])), 'ENOMEM');
    t.equal(m.lv(), 2);
    t.equal(m.pin([0x10000n]).ret, 1);
  });
  t.test('46 pin_pages: CAP_IPC_LOCK sampled at MAP decides for ever', async (t) => {
    const m = setup({ limit: 0 });
    m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: true });
    m.map(0x10000n, 0x9000n);
    const eight = Array.from({ length: 8 }, (_, i) => 0x10000n + BigInt(i) * PAGE);
    t.equal(m.pin(eight).ret, 8);
    t.equal(m.lv(), 8);
    m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: false });
    t.equal(m.pin([0x18000n]).ret, 1);
  });
  t.test('48 pin_pages: a limit raised after MAP counts', async (t) => {
    const m = setup({ limit: 0 });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM');
    m.run({ op: 'patch_task', task: 'T', rlimit_memlock: PAGE });
    t.equal(m.pin([0x10000n]).ret, 1);
  });
  t.test('54 pin_pages: a reserved page is not charged', async (t) => {
    const m = setup();
    m.run({ op: 'put_page', pfn: 5000, kind: 'reserved' });
    m.pages('T', 0x20000000n, [[5000, 1]]);
    m.map(0x10000n, PAGE, RW, { vaddr: 0x20000000n });
    t.equal(m.pin([0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
  });
  t.test('56 pin_pages: each mapping charges the task that made it', async (t) => {
    const m = setup();
    m.task('T2');
    m.pages('T2', V, [[7000, 4]]);
    m.map(0x10000n, PAGE);
    m.map(0x20000n, PAGE, RW, { task: 'T2' });
    m.pin([0x10000n, 0x20000n]);
    t.same([m.lv('T'), m.lv('T2')], [1, 1]);
  });
  t.test('57 unpin_pages: an underflow of locked_vm warns once and wraps', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x2000n);
    m.pin([0x10000n, 0x11000n]);
    m.run({ op: 'adjust_locked_vm', task: 'T', delta: -2 });
    m.unpin([0x10000n, 0x11000n]);
    t.equal(m.lv(), -2);
    t.same(
      m.dmesg('WARN').map(({ where }) => where),
      ['__account_locked_vm'],
    );
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM', 'a wrapped counter is over every limit');
  });
});

t.test('D. map', async (t) => {
  t.test('58 map_dma: size 0, misalignment, flags and argsz are EINVAL', async (t) => {
    const m = setup();
    const refused = [
      m.map(0x10000n, 0n),
      m.map(0x10001n, PAGE),
      m.map(0x10000n, 0x1001n),
      m.map(0x10000n, PAGE, RW, { vaddr: V + 1n }),
      m.map(0x10000n, PAGE, 0),
      m.map(0x10000n, PAGE, 8),
      m.map(0x10000n, PAGE, RW, { argsz: 31 }),
    ];
    t.same(refused.map(errno), Array(7).fill('EINVAL'));
    t.same(m.mappings(), []);
  });
  t.test('60 map_dma: the last page may be mapped, beyond it is EINVAL', async (t) => {
    const m = setup();
    t.equal(m.map(0xfffffffffffff000n, PAGE).ret, 0);
    t.equal(errno(m.map(0xfffffffffffff000n, 0x2000n)), 'EINVAL');
  });
  t.test('61 map_dma: a vaddr that wraps is EINVAL', async (t) => {
    const m = setup();
    t.equal(m.map(0x10000n, PAGE, RW, { vaddr: 0xfffffffffffff000n }).ret, 0);
    t.equal(errno(m.map(0x20000n, 0x2000n, RW, { vaddr: 0xfffffffffffff000n })), 'EINVAL');
  });
  t.test('62 map_dma: ENOSPC at dma_entry_limit, after EEXIST', async (t) => {
    const m = setup({ dma_entry_limit: 2 });
    t.same([m.map(0x10000n, PAGE).ret, m.map(0x20000n, PAGE).ret], [0, 0]);
    t.equal(errno(m.map(0x30000n, PAGE)), 'ENOSPC');
    t.equal(errno(m.map(0x10000n, PAGE)), 'EEXIST');
    m.unmap(0x10000n, PAGE);
    t.equal(m.map(0x30000n, PAGE).ret, 0);
  });
  t.test('64 map_dma: 1 TiB of a bogus vaddr is 0 and charges nothing', async (t) => {
    const m = setup();
    t.equal(m.map(0n, 1n << 40n, RW, { vaddr: 0x500000000000n }).ret, 0);
    t.equal(m.lv(), 0);
  });
  t.test('65 map_dma: EINVAL before SET_IOMMU', async (t) => {
    const m = new Machine();
    m.task('T');
    m.run({ op: 'put_container', container: 'C' });
    m.group('G1', 'C');
    t.equal(errno(m.map(0x10000n, PAGE)), 'EINVAL');
  });
});

const A: [bigint, bigint] = [0x10000n, 0x2000n];
const B: [bigint, bigint] = [0x12000n, 0x2000n];

t.test('E. unmap', async (t) => {
  t.test('68 unmap_dma: an unpinned mapping goes without notification', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    t.match(m.unmap(0x10000n, 0x4000n), { ret: 0, fields: { size: 0x4000n, notifications: 0 } });
    t.same(m.calls, []);
  });
  t.test('69 unmap_dma: nothing mapped is 0 with size 0', async (t) => {
    t.match(setup().unmap(0x10000n, PAGE), { ret: 0, fields: { size: 0n, warnings: ['NOTHING_UNMAPPED'] } });
  });
  t.test('70 unmap_dma: three mappings and holes: size is their sum', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x1000n);
    m.map(0x20000n, 0x2000n);
    m.map(0x80000n, 0x4000n);
    t.equal(m.unmap(0n, 0x100000n).fields.size, 0x7000n);
    t.same(m.mappings(), []);
  });
  t.test('72 unmap_dma: bisecting the last mapping is EINVAL and removes nothing', async (t) => {
    const m = setup();
    m.map(...A);
    m.map(...B);
    t.equal(errno(m.unmap(0x10000n, 0x3000n)), 'EINVAL');
    t.same(m.mappings(), [A, B]);
  });
  t.test('73 unmap_dma: v1 removes the whole mapping that the request starts with', async (t) => {
    const m = setup({ v1: true });
    m.map(0x10000n, 0x4000n);
    t.match(m.unmap(0x11000n, PAGE), { ret: 0, fields: { size: 0n } });
    t.match(m.unmap(0x10000n, PAGE), { ret: 0, fields: { size: 0x4000n } });
  });
  t.test('74 unmap_dma: v1 stops at a mapping that starts before the request', async (t) => {
    const m = setup({ v1: true });
    m.map(...A);
    m.map(...B);
    t.match(m.unmap(0x11000n, 0x3000n), { ret: 0, fields: { size: 0n } });
    t.same(m.mappings(), [A, B]);
  });
  t.test('76 unmap_dma: a range that passes 2^64 is EINVAL', async (t) => {
    t.equal(errno(setup().unmap(0xfffffffffffff000n, 0x2000n)), 'EINVAL');
  });
  t.test('77 unmap_dma: an empty range that ends at 2^64 is 0', async (t) => {
    t.match(setup().unmap(0xffffffff00000000n, 0x100000000n), { ret: 0, fields: { size: 0n } });
  });
  t.test('78 unmap_dma: a mapping that ends at 2^64 is not found', async (t) => {
    const m = setup();
    m.map(0xfffffffffffff000n, PAGE);
    t.match(m.unmap(0xfffffffffffff000n, PAGE), { ret: 0, fields: { size: 0n } });
    t.same(m.mappings(), [[0xfffffffffffff000n, PAGE]]);
  });
  t.test('80 unmap_dma: a process with another mm removes nothing', async (t) => {
    const m = setup();
    m.task('T2');
    m.map(...A);
    t.match(m.unmap(...A, { task: 'T2' }), { ret: 0, fields: { size: 0n } });
    t.same(m.mappings(), [A]);
  });
  t.test('81 unmap_dma: another thread unmaps what an exited thread mapped', async (t) => {
    const m = setup();
    m.task('T.1', 64, false, 'T');
    m.task('T.2', 64, false, 'T');
    m.map(...A, RW, { task: 'T.1' });
    m.run({ op: 'exit', task: 'T.1' });
    t.equal(m.unmap(...A, { task: 'T.2' }).fields.size, 0x2000n);
  });
});

t.test('F. notification protocol', async (t) => {
  t.test('84 unmap_dma: one call with the range of the vfio_dma, then the mapping goes', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    m.pin([0x11000n]);
    t.match(m.unmap(0x10000n, 0x4000n), { ret: 0, fields: { size: 0x4000n, notifications: 1 } });
    t.match(m.calls, [{ iova: 0x10000n, size: 0x4000n, attempt: 1, device: 'D1', notifier: 'L1', container: 'C' }]);
    t.same(m.mappings(), []);
    t.equal(m.lv(), 0);
  });
  t.test('84 unmap_dma: a built-in listener answers within the command, whose operation is then done', async (t) => {
    const m = setup();
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    m.listen('D1', 'builtin', { kind: 'builtin', behavior: 'unpin_all', n: 3, delay_ms: 10 });
    m.map(0x10000n, 0x4000n);
    m.pin([0x11000n, 0x11000n, 0x12000n]);
    const outcome = m.start(m.unmapCommand(0x10000n, 0x4000n));
    t.match(outcome, { ret: 0, parked: undefined, fields: { size: 0x4000n, notifications: 1 } });
    t.match([...m.host.operations.values()], [{ kind: 'unmap_dma', state: 'done', outcome: { ret: 0 } }]);
  });
  t.test('85 unmap_dma: an unpinned mapping in the range is not announced', async (t) => {
    const m = setup();
    m.map(0x10000n, 0x4000n);
    m.map(0x20000n, 0x4000n);
    m.pin([0x11000n]);
    t.equal(m.unmap(0n, 0x100000n).fields.size, 0x8000n);
    t.match(m.calls, [{ iova: 0x10000n, size: 0x4000n }]);
  });
  t.test('86 unmap_dma: two pinned mappings, one call each, ascending', async (t) => {
    const m = setup();
    m.map(0x20000n, 0x4000n);
    m.map(0x10000n, 0x4000n);
    m.pin([0x20000n, 0x10000n]);
    m.unmap(0n, 0x100000n);
    t.same(
      m.calls.map(({ iova, attempt }) => [iova, attempt]),
      [
        [0x10000n, 1],
        [0x20000n, 1],
      ],
    );
  });
  t.test('88 unmap_dma: unpinning at the 11th call succeeds, never is 11 calls and a BUG', async (t) => {
    const m = setup();
    m.handlers.set('L1', (machine, notification) =>
      notification.attempt === 11 ? unpinAll()(machine, notification) : 1,
    );
    m.map(...A);
    m.pin([0x10000n]);
    t.match(m.unmap(...A), { ret: 0, fields: { size: 0x2000n, notifications: 11 } });
    m.handlers.set('L1', () => 1);
    m.map(...A);
    m.pin([0x10000n]);
    const before = m.calls.length;
    const outcome = m.unmap(...A);
    t.equal(errno(outcome), 'EIO');
    t.equal(outcome.refusal?.left?.notifications, 11);
    t.equal(m.calls.length - before, 11);
    t.same(m.mappings(), [A], 'the mapping still exists');
    t.same(
      m.dmesg('BUG').map(({ where }) => where),
      ['vfio_dma_do_unmap'],
    );
    t.equal(errno(m.pin([0x10000n])), 'EIO', 'the container is dead');
    t.equal(errno(m.run({ op: 'close_device', device: 'D1' })), 'EIO');
  });
  t.test('89 unmap_dma: pins without a listener are a BUG after no call', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x10000n]);
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    const outcome = m.unmap(...A);
    t.same([errno(outcome), outcome.refusal?.left?.notifications, m.calls.length], ['EIO', 0, 0]);
  });
  t.test('90 unmap_dma: one reference a call, two calls, success', async (t) => {
    const m = setup();
    m.handlers.set('L1', (machine, { id }) => {
      machine.unpin([0x10000n], { notification: id });
      return 1;
    });
    m.map(...A);
    m.pin([0x10000n]);
    m.pin([0x10000n]);
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 2 } });
  });
  t.test('92 unmap_dma: a stop value ends the walk, so the owner is never told: BUG after 11', async (t) => {
    const m = setup();
    m.listen('D1', 'high', { kind: 'poll' }, 10);
    m.handlers.set('high', () => 0x8001);
    m.map(...A);
    m.pin([0x10000n]);
    t.equal(errno(m.unmap(...A)), 'EIO');
    t.same(
      m.calls.map(({ notifier }) => notifier),
      Array(11).fill('high'),
    );
  });
  t.test('93 unmap_dma: a callback may unpin outside the announced range', async (t) => {
    const m = setup();
    m.map(...A);
    m.map(0x40000n, PAGE);
    m.pin([0x10000n, 0x40000n]);
    m.handlers.set('L1', (machine, { id }) => {
      machine.unpin([0x10000n, 0x40000n], { notification: id });
      return 1;
    });
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 1 } });
    t.same(m.records(0x40000n), []);
  });
  t.test('94 unmap_dma: a callback that pins again has failed its try', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x10000n]);
    m.handlers.set('L1', (machine, notification) => {
      machine.unpin([0x10000n], { notification: notification.id });
      if (notification.attempt === 1) machine.pin([0x10000n], { notification: notification.id });
      return 1;
    });
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 2 } });
  });
  t.test('96 unregister_notifier: inside its own callback is a deadlock, reported', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x10000n]);
    let refused: string | undefined;
    m.handlers.set('L1', (machine, notification) => {
      refused = errno(
        machine.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null }, notification.id),
      );
      return unpinAll()(machine, notification);
    });
    t.equal(m.unmap(...A).ret, 0);
    t.equal(refused, 'EDEADLK');
    t.equal(m.dmesg('DEADLOCK').length, 1);
    t.same(m.host.vfio.containers.get('C')?.iommu?.notifier.head, 'L1', 'it was not executed');
  });
  t.test(
    '97 unmap_dma: another thread removes the mapping during the callback: the outer call finds nothing',
    async (t) => {
      const m = setup();
      m.map(...A);
      m.pin([0x10000n]);
      m.handlers.delete('L1');
      const outer = m.start(m.unmapCommand(...A));
      const inner = m.start(m.unmapCommand(...A));
      m.unpin([0x10000n]);
      m.ack('notification-2', 'D1');
      t.match(m.host.operations.get(inner.parked ?? '')?.outcome, { ret: 0, fields: { size: 0x2000n } });
      m.ack('notification-1', 'D1');
      t.match(m.host.operations.get(outer.parked ?? '')?.outcome, { ret: 0, fields: { size: 0n } });
    },
  );
  t.test(
    '98 unmap_dma: a mapping that straddles the end on a restart ends the call with what was removed',
    async (t) => {
      const m = setup();
      m.map(...A);
      m.map(...B);
      m.pin([0x12000n]);
      m.handlers.set('L1', (machine, { id }) => {
        machine.unpin([0x12000n], { notification: id });
        machine.run(machine.unmapCommand(...B), id);
        machine.run(
          { op: 'map_dma', container: 'C', task: 'T', iova: 0x13000n, vaddr: V, size: 0x2000n, flags: RW, argsz: 32 },
          id,
        );
        return 1;
      });
      t.match(m.unmap(0x10000n, 0x4000n), { ret: 0, fields: { size: 0x2000n } });
      t.same(m.mappings(), [[0x13000n, 0x2000n]], 'earlier removals stay');
    },
  );
  t.test('100 unregister_notifier: twice is ENOENT; register_notifier: twice warns and adds nothing', async (t) => {
    const m = setup();
    const again = m.listen('D1', 'L1');
    t.same([again.ret, m.dmesg('WARN').map(({ where }) => where)], [0, ['notifier_chain_register']]);
    const unregister = (): Outcome => m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    t.equal(unregister().ret, 0);
    t.equal(errno(unregister()), 'ENOENT');
  });
  t.test('101 register_notifier: existing mappings are not replayed', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x10000n]);
    m.handlers.set('L2', () => 1);
    m.listen('D1', 'L2');
    t.same(m.calls, []);
  });
  t.test('102 unmap_dma: a handler sees the vfio_dma, not the larger request', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x11000n]);
    m.unmap(0n, 1n << 40n);
    t.match(m.calls, [{ iova: A[0], size: A[1] }]);
  });
});

t.test('G. group, container and device lifecycle', async (t) => {
  t.test('104 unset_container: a clean leave warns of nothing and a new attach starts empty', async (t) => {
    const m = setup();
    m.map(...A);
    m.pin([0x10000n]);
    m.unpin([0x10000n]);
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(m.run({ op: 'unset_container', group: 'G1' }).ret, 0);
    t.same(m.dmesg('WARN'), []);
    m.run({ op: 'set_container', group: 'G1', container: 'C', task: 'T' });
    m.run({ op: 'set_iommu', container: 'C', type: 3, task: 'T' });
    t.same(m.mappings(), []);
  });
  t.test('105 unset_container: pins stay while another mdev group does; its device may drop them', async (t) => {
    const m = setup();
    m.group('G2', 'C');
    m.device('D2', 'G2');
    m.listen('D2', 'L2');
    m.map(...A);
    m.pin([0x10000n, 0x11000n]);
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    m.run({ op: 'close_device', device: 'D1' });
    m.run({ op: 'unset_container', group: 'G1' });
    t.same([m.dmesg('WARN').length, m.records(0x10000n).length, m.lv()], [0, 2, 2]);
    t.equal(m.unpin([0x10000n], { device: 'D2' }).ret, 1);
    m.handlers.set('L2', unpinAll('D2'));
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 1 } });
    t.match(m.calls, [{ notifier: 'L2', device: 'D2' }]);
  });
  t.test('108 close_container: mappings survive while the group is attached and go with it', async (t) => {
    const m = setup();
    m.map(...A);
    t.equal(m.run({ op: 'close_container', container: 'C' }).ret, 0);
    t.equal(m.pin([0x10000n]).ret, 1);
    t.equal(errno(m.map(...B)), 'EBADF');
    t.equal(errno(m.run({ op: 'put_container', container: 'C' })), 'EBADF');
    m.unpin([0x10000n]);
    m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(m.run({ op: 'close_group', group: 'G1' }).ret, 0);
    t.equal(errno(m.map(...B)), 'EBADF', 'its id still answers');
    t.equal(m.run({ op: 'put_container', container: 'C' }).created, true, 'the id can be used again');
  });
  t.test('109 set_container: twice is EINVAL', async (t) => {
    t.equal(errno(setup().run({ op: 'set_container', group: 'G1', container: 'C', task: 'T' })), 'EINVAL');
  });
  t.test('110 set_iommu: without group EINVAL, twice EINVAL, type 99 ENODEV', async (t) => {
    const m = new Machine();
    m.run({ op: 'put_container', container: 'C' });
    const set = (type: number): Outcome => m.run({ op: 'set_iommu', container: 'C', type, task: null });
    t.equal(errno(set(3)), 'EINVAL');
    m.group('G1', 'C');
    t.equal(errno(set(99)), 'ENODEV');
    t.equal(errno(set(9)), 'EINVAL');
    t.equal(errno(set(4)), 'ENODEV');
    t.equal(set(3).ret, 0);
    t.equal(errno(set(3)), 'EINVAL');
    t.equal(checkExtension(m.host, 'C', 9).ret, 1);
  });
  t.test('112 pin_pages: inside open_device works once a notifier is registered', async (t) => {
    const m = setup();
    m.group('G2', 'C');
    m.run({ op: 'put_device', device: 'D2', group: 'G2' });
    m.map(...A);
    t.equal(m.listen('D2', 'L2').ret, 0, 'the group holds the container user');
    t.equal(m.pin([0x10000n], { device: 'D2' }).ret, 1);
    t.equal(m.run({ op: 'open_device', device: 'D2' }).ret, 0);
  });
  t.test('113 pin_pages: inside close_device works while a listener is present', async (t) => {
    const m = setup();
    m.map(...A);
    t.equal(m.pin([0x10000n]).ret, 1);
    t.equal(m.unpin([0x10000n]).ret, 1);
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(m.pin([0x10000n]).ret, 1, 'before 5.19 nothing asks whether the device is open');
    t.equal(m.unpin([0x10000n]).ret, 1);
  });
});
