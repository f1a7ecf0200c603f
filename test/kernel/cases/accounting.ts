// Cases 44 to 57: locked_vm, RLIMIT_MEMLOCK and CAP_IPC_LOCK, with and without IOMMU-backed groups.

import type { Test } from 'tap';
import { H, PAGE, RW, setup, V } from '../machine.ts';
import { ALL, errno, numbered, unpinned } from './numbered.ts';

export async function accounting(t: Test): Promise<void> {
  await numbered(t, ALL, '44 pin_pages: ENOMEM over RLIMIT_MEMLOCK leaves nothing', (t, profile) => {
    const m = setup({ profile, limit: 2 });
    m.map(0x10000n, 0x4000n);
    const outcome = m.pin([0x10000n, 0x11000n, 0x12000n]);
    t.same([errno(outcome), outcome.refusal?.at_index], ['ENOMEM', 2]);
    t.same([m.lv(), m.records(0x10000n), m.page(H).pins], [0, [], 0]);
    const said = /vfio_pin_page_external: Task T \(1000\) RLIMIT_MEMLOCK \(8192\) exceeded/;
    t.match(m.host.dmesg.since(0, 10).items.at(-1)?.text, said);
  });
  await numbered(
    t,
    ALL,
    '45 pin_pages: the limit itself may be reached; pinning again charges nothing',
    (t, profile) => {
      const m = setup({ profile, limit: 2 });
      m.map(0x10000n, 0x4000n);
      t.equal(m.pin([0x10000n, 0x11000n]).ret, 2);
      t.equal(m.lv(), 2);
      t.equal(errno(m.pin([0x12000n])), 'ENOMEM');
      t.equal(m.lv(), 2);
      t.equal(m.pin([0x10000n]).ret, 1);
    },
  );
  await numbered(
    t,
    ALL,
    '46 pin_pages: CAP_IPC_LOCK lifts the limit as it was at MAP; in 4.10 as it is at the pin',
    (t, profile) => {
      const m = setup({ profile, limit: 0 });
      m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: true });
      m.map(0x10000n, 0x9000n);
      t.equal(m.pin(Array.from({ length: 8 }, (_, i) => 0x10000n + BigInt(i) * PAGE)).ret, 8);
      t.equal(m.lv(), 8);
      m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: false });
      t.equal(errno(m.pin([0x18000n])), profile === '4.10' ? 'ENOMEM' : undefined);
    },
  );
  await numbered(t, ALL, '48 pin_pages: a limit raised after MAP counts', (t, profile) => {
    const m = setup({ profile, limit: 0 });
    m.map(0x10000n, PAGE);
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM');
    m.run({ op: 'patch_task', task: 'T', rlimit_memlock: PAGE });
    t.equal(m.pin([0x10000n]).ret, 1);
  });
  await numbered(
    t,
    ALL,
    '49 map_dma: with an IOMMU-backed group pages are charged at once, and pins add nothing',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(m.iommuGroup('GI').ret, 0);
      t.equal(m.map(0x10000n, 0x4000n).ret, 0);
      t.equal(m.lv(), 4);
      t.equal(m.pin([0x10000n, 0x11000n]).ret, 2);
      t.same([m.lv(), m.page(H).pins, m.page(H + 3).pins], [4, 2, 1]);
      m.unpin([0x10000n, 0x11000n]);
      t.same([m.lv(), m.page(H).pins], [4, 1]);
    },
  );
  await numbered(t, ALL, '50 pin_pages: with an IOMMU-backed group at the limit: 1, in 4.10 ENOMEM', (t, profile) => {
    const m = setup({ profile, limit: 4 });
    m.iommuGroup('GI');
    m.map(0x10000n, 0x4000n);
    t.equal(errno(m.pin([0x10000n])), profile === '4.10' ? 'ENOMEM' : undefined);
    t.equal(m.lv(), 4);
  });
  await numbered(
    t,
    ALL,
    '52 unset_container: the IOMMU-backed group leaves: charged for records alone, unpin returns them',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      m.pin([0x10000n, 0x11000n]);
      t.equal(m.run({ op: 'unset_container', group: 'GI' }).ret, 0);
      t.same([m.lv(), m.records(0x10000n).length, m.page(H).pins, m.page(H + 3).pins], [2, 2, 1, 0]);
      m.unpin([0x10000n, 0x11000n]);
      t.same([m.lv(), m.page(H).pins], [0, 0]);
    },
  );
  await numbered(
    t,
    ALL,
    '53 set_container: the limit fails a replay with ENOMEM: undone, or what was pinned leaks',
    (t, profile) => {
      const m = setup({ profile, limit: 3 });
      m.map(0x10000n, 0x4000n);
      t.equal(errno(m.iommuGroup('GI')), 'ENOMEM');
      const kept = profile === '4.10' ? 3 : 0;
      t.same([m.lv(), m.page(H).pins, m.page(H + 3).pins], [kept, kept > 0 ? 1 : 0, 0]);
    },
  );
  await numbered(
    t,
    ALL,
    '53 set_container: of two mappings the first was replayed when the second fails with ENOMEM',
    (t, profile) => {
      const m = setup({ profile, limit: 3 });
      m.map(0x10000n, 0x2000n);
      m.map(0x20000n, 0x4000n, RW, { vaddr: V + 0x10000n });
      t.equal(errno(m.iommuGroup('GI')), 'ENOMEM');
      const kept = { '4.10': 3, '5.4': 2, '5.8': 2 }[profile] ?? 0;
      t.same([m.lv(), m.page(H).pins, m.page(H + 16).pins], [kept, kept > 0 ? 1 : 0, kept > 2 ? 1 : 0]);
      if (kept === 0) return;
      m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
      const again = m.run({ op: 'set_container', group: 'GI', container: 'C', task: 'T' });
      t.equal(errno(again), 'EIO', 'a second attach crashes');
      t.equal(m.dmesg('BUG').length, 1);
    },
  );
  await numbered(t, ALL, '54 pin_pages: a reserved page is not charged', (t, profile) => {
    const m = setup({ profile });
    m.run({ op: 'put_page', pfn: 5000, kind: 'reserved' });
    m.pages('T', 0x20000000n, [[5000, 1]]);
    m.map(0x10000n, PAGE, RW, { vaddr: 0x20000000n });
    t.equal(m.pin([0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
    t.equal(m.unpin([0x10000n]).ret, unpinned(profile, 1));
    t.same([m.lv(), m.records(0x10000n)], [0, []]);
  });
  await numbered(t, ALL, '56 pin_pages: each mapping charges the task that made it', (t, profile) => {
    const m = setup({ profile });
    m.task('T2');
    m.pages('T2', V, [[7000, 4]]);
    m.map(0x10000n, PAGE);
    m.map(0x11000n, PAGE, RW, { task: 'T2' });
    t.same(m.pin([0x10000n, 0x11000n]).fields.phys_pfn, [H, 7000]);
    t.same([m.lv('T'), m.lv('T2')], [1, 1]);
  });
  await numbered(t, ALL, '57 unpin_pages: locked_vm below the pins wraps, from 5.3 on with one WARN', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x2000n);
    m.pin([0x10000n, 0x11000n]);
    m.run({ op: 'adjust_locked_vm', task: 'T', delta: -2 });
    m.unpin([0x10000n, 0x11000n]);
    t.equal(m.lv(), -2);
    const where = m.dmesg('WARN').map((entry) => entry.where);
    t.same(where, profile === '4.10' ? [] : ['__account_locked_vm']);
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM', 'a wrapped counter is over every limit');
  });
}
