// Cases 1 to 32: what a pin does, and what it refuses.

import type { Test } from 'tap';
import { H, Machine, PAGE, R, RW, setup, V, W } from '../machine.ts';
import { ALL, EARLY, errno, LATE, NEW, numbered, OLD, pfns, unregister, warnings } from './numbered.ts';

const READ_ONLY = 0x20000000n;
const PFNMAP = 0x30000000n;

/** Setup S with a read-only area at READ_ONLY. */
function withReadOnlyArea(profile: string): Machine {
  const m = setup({ profile });
  m.pages('T', READ_ONLY, [[5000, 4]], R);
  return m;
}

/** Setup S with a VM_PFNMAP area of two pages at PFNMAP, mapped at iova 0x10000. */
function withPfnmap(profile: string, backing: { pfn: number; struct_page: boolean; reserved: boolean }): Machine {
  const m = setup({ profile });
  m.run({
    op: 'mmap',
    task: 'T',
    addr: PFNMAP,
    length: 0x2000n,
    prot: RW,
    backing: { kind: 'pfnmap', ...backing },
    noreplace: true,
  });
  m.map(0x10000n, 0x2000n, RW, { vaddr: PFNMAP });
  return m;
}

export async function pinBasics(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '1 pin_pages: the first pin makes a record, takes a reference and charges a page',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(m.map(0x10000n, 0x4000n).ret, 0);
      const outcome = m.pin([0x10000n]);
      t.same([outcome.ret, pfns(outcome)], [1, [H]]);
      t.same(m.records(0x10000n), [[0x10000n, H, 1]]);
      t.same([m.lv(), m.page(H).pins], [1, 1]);
      const bias = ['4.10', '5.4'].includes(profile) ? 1 : 1024;
      t.equal(m.page(H).refs, 1 + bias, 'the raw counter has the bias of the profile');
    },
  );
  await numbered(t, ALL, '2 pin_pages: pinning again raises ref_count alone', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    m.pin([0x10000n]);
    const before = m.page(H);
    const outcome = m.pin([0x10000n]);
    t.same([outcome.ret, pfns(outcome)], [1, [H]]);
    t.same(m.records(0x10000n), [[0x10000n, H, 2]]);
    t.equal(m.lv(), 1);
    t.same(m.page(H), before);
  });
  await numbered(t, ALL, '4 pin_pages: three pages in one call', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    const outcome = m.pin([0x10000n, 0x11000n, 0x12000n]);
    t.same([outcome.ret, pfns(outcome)], [3, [H, H + 1, H + 2]]);
    t.equal(m.lv(), 3);
  });
  await numbered(t, ALL, '5 pin_pages: an unmapped iova is EINVAL', (t, profile) => {
    const m = setup({ profile });
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
    t.equal(m.lv(), 0);
  });
  await numbered(
    t,
    ALL,
    '6 pin_pages: an unmapped second page is EINVAL, rolls the first back and zeroes the output',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      const outcome = m.pin([0x10000n, 0x11000n]);
      t.same([errno(outcome), pfns(outcome), outcome.refusal?.at_index], ['EINVAL', [0, 0], 1]);
      t.same(m.records(0x10000n), []);
      t.same([m.lv(), m.page(H).pins], [0, 0]);
    },
  );
  await numbered(t, ALL, '8 pin_pages: prot R on a write-only mapping is EPERM, prot W is 1', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE, W);
    t.equal(errno(m.pin([0x10000n])), 'EPERM');
    t.equal(m.pin([0x10000n], { prot: W }).ret, 1);
  });
  await numbered(t, ALL, '9 pin_pages: prot 0 passes on a read-only mapping', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE, R);
    t.equal(m.pin([0x10000n], { prot: 0 }).ret, 1);
  });
  await numbered(t, ALL, '10 pin_pages: prot 4 is EPERM', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n], { prot: 4 })), 'EPERM');
    t.equal(m.lv(), 0);
  });
  await numbered(t, ALL, '12 pin_pages: 512 pages are 512, 513 are E2BIG without effect', (t, profile) => {
    const m = setup({ profile });
    m.map(0x400000n, 0x400000n);
    m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
    const iovas = Array.from({ length: 513 }, (_, i) => 0x400000n + BigInt(i) * PAGE);
    t.equal(errno(m.pin(iovas)), 'E2BIG');
    t.same([m.lv(), m.records(0x400000n)], [0, []]);
    t.equal(m.pin(iovas.slice(0, 512)).ret, 512);
    t.equal(m.lv(), 512);
  });
  await numbered(t, ALL, '13 pin_pages: EACCES on a v1 container; unpin is EACCES, or a WARN', (t, profile) => {
    const m = setup({ profile, v1: true });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'EACCES');
    const outcome = m.unpin([0x10000n]);
    if (profile !== '6.18') t.equal(errno(outcome), 'EACCES');
    else t.same([outcome.ret, outcome.fields.warnings, warnings(m, 'unpin-on-v1')], [0, ['unpin-on-v1'], 1]);
  });
  await numbered(t, ALL, '14 pin_pages: EINVAL with nobody listening', (t, profile) => {
    const m = setup({ profile });
    unregister(m);
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
    t.equal(m.page(H).pins, 0);
  });
  await numbered(t, NEW, '14 pin_pages: a driver without dma_unmap is EINVAL, its unpin a WARN', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.group('G2', 'C');
    m.run({ op: 'put_device', device: 'D2', group: 'G2', dma_unmap: false });
    m.run({ op: 'open_device', device: 'D2' });
    t.equal(errno(m.listen('D2', 'L2')), 'EOPNOTSUPP');
    t.equal(errno(m.pin([0x10000n], { device: 'D2' })), 'EINVAL');
    t.same(m.unpin([0x10000n], { device: 'D2' }).fields.warnings, ['device-without-unmap-callback']);
  });
  await numbered(t, OLD, '14 pin_pages: the listener of any other device of the container suffices', (t, profile) => {
    const m = setup({ profile });
    m.group('G2', 'C');
    m.device('D2', 'G2');
    m.map(0x10000n, PAGE);
    t.equal(m.pin([0x10000n], { device: 'D2' }).ret, 1);
  });
  await numbered(
    t,
    ALL,
    '16 pin_pages: EINVAL when the device is in no container, from 5.19 on with a WARN',
    (t, profile) => {
      const m = setup({ profile });
      m.run({ op: 'put_group', group: 'G9', kind: 'mdev' });
      m.run({ op: 'put_device', device: 'D9', group: 'G9' });
      t.equal(errno(m.pin([0x10000n], { device: 'D9' })), 'EINVAL');
      t.equal(warnings(m, 'device-not-open:'), profile === '6.18' ? 1 : 0);
      t.equal(errno(m.run({ op: 'open_device', device: 'D9' })), 'EINVAL');
    },
  );
  await numbered(
    t,
    NEW,
    '16 pin_pages: through a closed device EINVAL: the first WARNs twice, later ones once',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(errno(m.pin([0x10000n])), 'EINVAL');
      t.same([warnings(m, 'device-not-open-once'), warnings(m, 'device-not-open:')], [1, 1]);
      m.unpin([0x10000n]);
      t.same([warnings(m, 'device-not-open-once'), warnings(m, 'device-not-open:')], [1, 2]);
    },
  );
  await numbered(t, OLD, '17 pin_pages: ENODEV for a device without vfio group', (t, profile) => {
    const m = setup({ profile });
    m.run({ op: 'put_device', device: 'D9', group: null });
    t.equal(errno(m.pin([0x10000n], { device: 'D9' })), 'ENODEV');
    t.equal(errno(m.unpin([0x10000n], { device: 'D9' })), 'ENODEV');
  });
  await numbered(t, ALL, '18 pin_pages: EINVAL before SET_IOMMU, where no device can be opened', (t, profile) => {
    const m = new Machine({ profile });
    m.run({ op: 'put_container', container: 'C' });
    m.group('G1', 'C');
    m.run({ op: 'put_device', device: 'D1', group: 'G1' });
    t.equal(errno(m.pin([0x10000n])), 'EINVAL');
    t.equal(errno(m.run({ op: 'open_device', device: 'D1' })), 'EINVAL');
  });
  await numbered(t, ALL, '20 pin_pages: a mapping over a hole succeeds, its pin is EFAULT', (t, profile) => {
    const m = setup({ profile });
    t.equal(m.map(0x10000n, PAGE, RW, { vaddr: 0x7000000n }).ret, 0);
    t.equal(errno(m.pin([0x10000n])), 'EFAULT');
    t.equal(m.lv(), 0);
  });
  await numbered(
    t,
    ALL,
    '21 pin_pages: write intent comes from the mapping: RW over a read-only area is EFAULT for prot R',
    (t, profile) => {
      const m = withReadOnlyArea(profile);
      m.map(0x10000n, PAGE, RW, { vaddr: READ_ONLY });
      t.equal(errno(m.pin([0x10000n])), 'EFAULT');
      t.equal(m.lv(), 0);
    },
  );
  await numbered(t, ALL, '22 pin_pages: R over a read-only area is 1', (t, profile) => {
    const m = withReadOnlyArea(profile);
    m.map(0x10000n, PAGE, R, { vaddr: READ_ONLY });
    t.same(pfns(m.pin([0x10000n])), [5000]);
  });
  await numbered(t, ALL, '24 pin_pages: VM_PFNMAP over a normal page is EFAULT', (t, profile) => {
    const m = withPfnmap(profile, { pfn: 6000, struct_page: true, reserved: false });
    t.equal(errno(m.pin([0x10000n])), 'EFAULT');
    t.equal(m.lv(), 0);
  });
  await numbered(
    t,
    ALL,
    '24 pin_pages: a page without struct page is returned uncharged, or EINVAL in 6.18',
    (t, profile) => {
      const m = withPfnmap(profile, { pfn: 9000, struct_page: false, reserved: false });
      const outcome = m.pin([0x11000n]);
      if (profile === '6.18') t.equal(errno(outcome), 'EINVAL');
      else t.same([outcome.ret, pfns(outcome)], [1, [9001]]);
      t.equal(m.lv(), 0);
    },
  );
  await numbered(
    t,
    ALL,
    '24 pin_pages: a write of a read-only VM_PFNMAP entry is EFAULT from 5.12 on',
    (t, profile) => {
      const m = setup({ profile });
      const backing = { kind: 'pfnmap' as const, pfn: 9000, struct_page: true, reserved: true, ptes: ['r' as const] };
      m.run({ op: 'mmap', task: 'T', addr: PFNMAP, length: PAGE, prot: RW, backing, noreplace: true });
      m.map(0x10000n, PAGE, RW, { vaddr: PFNMAP });
      t.equal(errno(m.pin([0x10000n])), LATE.includes(profile) ? 'EFAULT' : undefined);
    },
  );
  await numbered(
    t,
    ALL,
    '25 pin_pages: one host page behind two addresses is two records, two references, two charges',
    (t, profile) => {
      const m = setup({ profile });
      m.pages('T', READ_ONLY, [
        [5000, 1],
        [5000, 1],
      ]);
      m.map(0x10000n, 0x2000n, RW, { vaddr: READ_ONLY });
      const outcome = m.pin([0x10000n, 0x11000n]);
      t.same([outcome.ret, pfns(outcome)], [2, [5000, 5000]]);
      t.same([m.records(0x10000n).length, m.lv(), m.page(5000).pins], [2, 2, 2]);
    },
  );
  await numbered(t, ALL, '26 pin_pages: two mappings of one vaddr are charged per iova', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.map(0x20000n, PAGE);
    m.pin([0x10000n]);
    m.pin([0x20000n]);
    t.equal(m.lv(), 2);
    m.unpin([0x10000n]);
    t.same([m.lv(), m.page(H).pins], [1, 1]);
  });
  await numbered(
    t,
    ALL,
    '28 pin_pages: EPERM at the entry whose mapping lacks the right; earlier ones are rolled back',
    (t, profile) => {
      const pinOver = (first: number, second: number): [Machine, unknown] => {
        const m = setup({ profile });
        m.map(0x10000n, PAGE, first);
        m.map(0x11000n, PAGE, second, { vaddr: V + PAGE });
        const outcome = m.pin([0x10000n, 0x11000n], { prot: RW });
        return [m, [errno(outcome), outcome.refusal?.at_index, pfns(outcome)]];
      };
      t.same(pinOver(R, RW)[1], ['EPERM', 0, [0, 0]]);
      const [m, refused] = pinOver(RW, R);
      t.same(refused, ['EPERM', 1, [0, 0]]);
      t.same([m.records(0x10000n), m.lv(), m.page(H).pins], [[], 0, 0]);
    },
  );
  await numbered(
    t,
    ALL,
    '29 pin_pages: ENODEV when the mm of the mapping is gone, but a pinned iova needs none',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x2000n);
      m.pin([0x10000n]);
      m.run({ op: 'exit', task: 'T' });
      t.equal(errno(m.pin([0x11000n])), 'ENODEV');
      t.equal(m.pin([0x10000n]).ret, 1);
      t.same(m.records(0x10000n), [[0x10000n, H, 2]]);
    },
  );
  await numbered(
    t,
    ALL,
    '30 pin_pages: no memory for the record is ENOMEM: undone, or page and charge leak',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.run({ op: 'put_fault', fault: 'f', point: 'record_alloc', call: 'pin_pages', nth: 2 });
      t.equal(errno(m.pin([0x10000n, 0x11000n])), 'ENOMEM');
      const leaks = EARLY.includes(profile) ? 1 : 0;
      t.same([m.lv(), m.page(H).pins, m.page(H + 1).pins], [leaks, 0, leaks]);
      t.same(m.records(0x10000n), []);
      t.equal(m.pin([0x10000n]).ret, 1, 'the rule held for one call');
    },
  );
  await numbered(t, EARLY, '30 pin_pages: with the fix add_record_leak nothing leaks', (t, profile) => {
    const m = setup({ profile, fixes: ['add_record_leak'] });
    m.map(0x10000n, PAGE);
    m.run({ op: 'put_fault', fault: 'f', point: 'record_alloc', call: 'pin_pages', nth: 1 });
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM');
    t.same([m.lv(), m.page(H).pins], [0, 0]);
  });
  await numbered(
    t,
    NEW,
    '32 pin_pages: two offsets in one page are two records, two references, two charges',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      t.equal(m.pin([0x10010n]).ret, 1);
      t.equal(m.pin([0x10020n]).ret, 1);
      t.same(m.records(0x10000n), [
        [0x10010n, H, 1],
        [0x10020n, H, 1],
      ]);
      t.same([m.lv(), m.page(H).pins], [2, 2]);
      m.unpin([0x10010n]);
      t.same([m.lv(), m.page(H).pins], [1, 1]);
      t.equal(m.unmap(0x10000n, PAGE).ret, 0);
      t.equal(m.lv(), 0);
    },
  );
}
