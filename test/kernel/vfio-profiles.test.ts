// The numbered conformance cases of VFIO type1 pinning where profiles differ, and those of IOMMU-backed groups.

import t, { type Test } from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { checkExtension, viewInfo } from '../../src/kernel/view/vfio.ts';
import { H, Machine, PAGE, RW, setup, unpinAll, V } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const pfns = ({ fields, refusal }: Outcome): unknown => fields.phys_pfn ?? refusal?.left?.phys_pfn;
const TOP = 0xfffffffffffff000n;
const OLD = ['4.10', '5.4', '5.8', '5.15'] as const;
const NEW = ['6.18'] as const;
const EARLY = ['4.10', '5.4', '5.8'] as const;
const LATE = ['5.15', '6.18'] as const;

/** One subtest a profile, its title with the number of the case and the profile. */
async function inProfiles(
  parent: Test,
  profiles: readonly string[],
  title: string,
  run: (t: Test, profile: string) => void,
): Promise<void> {
  const [number, ...rest] = title.split(' ');
  for (const profile of profiles)
    await parent.test(`${number} [${profile}] ${rest.join(' ')}`, async (t) => run(t, profile));
}
const warnings = (m: Machine, label: string): number =>
  m.dmesg('WARN').filter(({ text }) => text.includes(label)).length;

t.test('A. pin basics', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '1 pin_pages: the first pin makes a record, takes a reference and charges a page',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      const outcome = m.pin([0x10000n]);
      t.same([outcome.ret, pfns(outcome)], [1, [H]]);
      t.same(m.records(0x10000n), [[0x10000n, H, 1]]);
      t.same([m.lv(), m.page(H).pins], [1, 1]);
      t.equal(
        m.page(H).refs,
        profile === '4.10' || profile === '5.4' ? 2 : 1025,
        'the raw counter has the bias of the profile',
      );
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '13 pin_pages: EACCES on a v1 container; unpin is EACCES, or a WARN',
    (t, profile) => {
      const m = setup({ profile, v1: true });
      m.map(0x10000n, PAGE);
      t.equal(errno(m.pin([0x10000n])), 'EACCES');
      const unpinned = m.unpin([0x10000n]);
      if (profile !== '6.18') t.equal(errno(unpinned), 'EACCES');
      else t.same([unpinned.ret, unpinned.fields.warnings, warnings(m, 'unpin-on-v1')], [0, ['unpin-on-v1'], 1]);
    },
  );
  await inProfiles(t, NEW, '14 pin_pages: a driver without dma_unmap is EINVAL, its unpin a WARN', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.group('G2', 'C');
    m.run({ op: 'put_device', device: 'D2', group: 'G2', dma_unmap: false });
    m.run({ op: 'open_device', device: 'D2' });
    t.equal(errno(m.listen('D2', 'L2')), 'EOPNOTSUPP');
    t.equal(errno(m.pin([0x10000n], { device: 'D2' })), 'EINVAL');
    t.same(m.unpin([0x10000n], { device: 'D2' }).fields.warnings, ['device-without-unmap-callback']);
  });
  await inProfiles(
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
  await inProfiles(
    t,
    PROFILE_NAMES,
    '29 pin_pages: the task has exited: ENODEV for a new page, 1 for a pinned one',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x2000n);
      m.pin([0x10000n]);
      m.run({ op: 'exit', task: 'T' });
      t.equal(errno(m.pin([0x11000n])), 'ENODEV');
      t.equal(m.pin([0x10000n]).ret, 1);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '30 pin_pages: no memory for the record is ENOMEM: undone, or page and charge leak',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.run({ op: 'put_fault', fault: 'f', point: 'record_alloc', call: 'pin_pages', nth: 2 });
      t.equal(errno(m.pin([0x10000n, 0x11000n])), 'ENOMEM');
      const leaks = (EARLY as readonly string[]).includes(profile) ? 1 : 0;
      t.same([m.lv(), m.page(H).pins, m.page(H + 1).pins], [leaks, 0, leaks]);
      t.same(m.records(0x10000n), []);
      t.equal(m.pin([0x10000n]).ret, 1, 'the rule held for one call');
    },
  );
  await inProfiles(t, EARLY, '30 pin_pages: with the fix add_record_leak nothing leaks', (t, profile) => {
    const m = setup({ profile, fixes: ['add_record_leak'] });
    m.map(0x10000n, PAGE);
    m.run({ op: 'put_fault', fault: 'f', point: 'record_alloc', call: 'pin_pages', nth: 1 });
    t.equal(errno(m.pin([0x10000n])), 'ENOMEM');
    t.same([m.lv(), m.page(H).pins], [0, 0]);
  });
  await inProfiles(
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
  await inProfiles(
    t,
    PROFILE_NAMES,
    '24 pin_pages: a page without struct page is returned, or EINVAL in 6.18',
    (t, profile) => {
      const m = setup({ profile });
      const backing = { kind: 'pfnmap' as const, pfn: 9000, struct_page: false, reserved: false };
      m.run({ op: 'mmap', task: 'T', addr: 0x30000000n, length: 0x2000n, prot: RW, backing, noreplace: true });
      m.map(0x10000n, 0x2000n, RW, { vaddr: 0x30000000n });
      const outcome = m.pin([0x11000n]);
      if (profile === '6.18') t.equal(errno(outcome), 'EINVAL');
      else t.same([outcome.ret, pfns(outcome)], [1, [9001]]);
      t.equal(m.lv(), 0);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '24 pin_pages: a read-only entry of a VM_PFNMAP area for a write',
    (t, profile) => {
      const m = setup({ profile });
      const backing = { kind: 'pfnmap' as const, pfn: 9000, struct_page: true, reserved: true, ptes: ['r' as const] };
      m.run({ op: 'mmap', task: 'T', addr: 0x30000000n, length: PAGE, prot: RW, backing, noreplace: true });
      m.map(0x10000n, PAGE, RW, { vaddr: 0x30000000n });
      t.equal(errno(m.pin([0x10000n])), (LATE as readonly string[]).includes(profile) ? 'EFAULT' : undefined);
    },
  );
});

t.test('B. unpin', async (t) => {
  await inProfiles(t, PROFILE_NAMES, '36 unpin_pages: an unmapped iova is EINVAL, or a WARN', (t, profile) => {
    const m = setup({ profile });
    const outcome = m.unpin([0x50000n]);
    if (profile !== '6.18') t.equal(errno(outcome), 'EINVAL');
    else t.same([outcome.ret, outcome.fields.warnings], [0, ['unpin-stopped-early']]);
  });
  await inProfiles(
    t,
    NEW,
    '38 unpin_pages: stops at a gap with a WARN; the page behind it stays pinned',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x12000n, PAGE, RW, { vaddr: V + 0x2000n });
      m.pin([0x10000n]);
      m.pin([0x12000n]);
      t.same(m.unpin([0x10000n, 0x11000n, 0x12000n]).fields.warnings, ['unpin-stopped-early']);
      t.same([m.records(0x10000n), m.records(0x12000n)], [[], [[0x12000n, H + 2, 1]]]);
    },
  );
});

t.test('C. accounting', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '46 pin_pages: CAP_IPC_LOCK lifts the limit as it was at MAP; in 4.10 as it is at the pin',
    (t, profile) => {
      const m = new Machine({ profile });
      m.task('T', 0, true);
      m.pages('T', V, [[H, 16]]);
      m.run({ op: 'put_container', container: 'C' });
      m.group('G1', 'C');
      m.run({ op: 'set_iommu', container: 'C', type: 3, task: 'T' });
      m.device('D1', 'G1');
      m.listen('D1', 'L1');
      m.map(0x10000n, 0x10000n);
      t.equal(m.pin(Array.from({ length: 8 }, (_, i) => 0x10000n + BigInt(i) * PAGE)).ret, 8);
      m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: false });
      t.equal(errno(m.pin([0x18000n])), profile === '4.10' ? 'ENOMEM' : undefined);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
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
  await inProfiles(
    t,
    PROFILE_NAMES,
    '50 pin_pages: with an IOMMU-backed group at the limit: 1, in 4.10 ENOMEM',
    (t, profile) => {
      const m = setup({ profile, limit: 4 });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      t.equal(errno(m.pin([0x10000n])), profile === '4.10' ? 'ENOMEM' : undefined);
      t.equal(m.lv(), 4);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
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
  await inProfiles(
    t,
    PROFILE_NAMES,
    '53 set_container: the limit fails a replay with ENOMEM: undone, or what was pinned leaks',
    (t, profile) => {
      const m = setup({ profile, limit: 3 });
      m.map(0x10000n, 0x2000n);
      m.map(0x20000n, 0x4000n, RW, { vaddr: V + 0x10000n });
      t.equal(errno(m.iommuGroup('GI')), 'ENOMEM');
      const kept = { '4.10': 3, '5.4': 2, '5.8': 2 }[profile] ?? 0;
      t.same([m.lv(), m.page(H).pins, m.page(H + 16).pins], [kept, kept > 0 ? 1 : 0, kept > 2 ? 1 : 0]);
      if (kept === 0) return;
      m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
      t.equal(
        errno(m.run({ op: 'set_container', group: 'GI', container: 'C', task: 'T' })),
        'EIO',
        'a second attach crashes',
      );
      t.equal(m.dmesg('BUG').length, 1);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '57 unpin_pages: locked_vm below the pins wraps, from 5.3 on with a WARN',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      m.run({ op: 'adjust_locked_vm', task: 'T', delta: -1 });
      m.unpin([0x10000n]);
      t.same([m.lv(), m.dmesg('WARN').length], [-1, profile === '4.10' ? 0 : 1]);
    },
  );
});

t.test('D. map', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '60 map_dma: the last page of the space is taken, one more is EINVAL or EOVERFLOW',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(m.map(TOP, PAGE).ret, 0);
      t.equal(errno(m.map(TOP, 0x2000n)), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
      t.equal(errno(m.map(0x10000n, 0x2000n, RW, { vaddr: TOP })), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '62 map_dma: dma_entry_limit 2: the third is ENOSPC, or EEXIST where it overlaps; never in 4.10',
    (t, profile) => {
      const m = setup({ profile, dma_entry_limit: 2 });
      m.map(0x10000n, PAGE);
      m.map(0x11000n, PAGE);
      t.equal(errno(m.map(0x12000n, PAGE)), profile === '4.10' ? undefined : 'ENOSPC');
      t.equal(errno(m.map(0x11000n, PAGE)), 'EEXIST');
      m.unmap(0x10000n, PAGE);
      t.equal(m.map(0x10000n, PAGE).ret, 0);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '66 map_dma: with an IOMMU-backed group a hole is EFAULT and nothing stays',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      t.equal(errno(m.map(0x10000n, 0x4000n, RW, { vaddr: V + 1022n * PAGE })), 'EFAULT');
      t.same([m.mappings(), m.lv(), m.page(H + 1022).pins], [[], 0, 0]);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '66 map_dma: a reserved region is EINVAL, and from 5.4 on refuses a group over mappings',
    (t, profile) => {
      const m = setup({ profile });
      const checked = profile !== '4.10';
      m.map(0x80000n, PAGE);
      t.equal(
        errno(m.iommuGroup('GR', { reserved: [{ start: 0x80000n, last: 0x8ffffn }] })),
        checked ? 'EINVAL' : undefined,
      );
      m.unmap(0x80000n, PAGE);
      if (checked) m.run({ op: 'set_container', group: 'GR', container: 'C', task: 'T' });
      t.equal(errno(m.map(0x80000n, PAGE)), checked ? 'EINVAL' : undefined);
      t.equal(m.map(0x90000n, PAGE).ret, 0);
    },
  );
});

t.test('E. unmap', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '76 unmap_dma: a range beyond the space wraps in 4.10, later EINVAL or EOVERFLOW',
    (t, profile) => {
      const m = setup({ profile });
      const outcome = m.unmap(TOP, 0x2000n);
      if (profile === '4.10') t.same([outcome.ret, outcome.fields.size], [0, 0n]);
      else t.equal(errno(outcome), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '78 unmap_dma: a mapping that ends at 2^64 is not found before 6.18',
    (t, profile) => {
      const m = setup({ profile });
      m.map(TOP, PAGE);
      const found = profile === '6.18';
      t.same(m.unmap(TOP, PAGE).fields.size, found ? PAGE : 0n);
      t.same(m.mappings(), found ? [] : [[TOP, PAGE]]);
      t.equal(errno(m.map(TOP, PAGE)), undefined, 'nor does the overlap test find it');
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '80 unmap_dma: a foreign mm unmaps nothing, from 6.0 on everything',
    (t, profile) => {
      const m = setup({ profile });
      m.task('U');
      m.map(0x10000n, PAGE);
      t.same(m.unmap(0x10000n, PAGE, { task: 'U' }).fields.size, profile === '6.18' ? PAGE : 0n);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '81 unmap_dma: after the mapping thread has exited a sibling unmaps nothing in 4.10',
    (t, profile) => {
      const m = setup({ profile });
      m.task('T1', 0, false, 'T');
      m.map(0x10000n, PAGE, RW, { task: 'T1' });
      m.run({ op: 'exit', task: 'T1' });
      t.same(m.unmap(0x10000n, PAGE).fields.size, profile === '4.10' ? 0n : PAGE);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '81 unmap_dma: after the leader alone has exited siblings unmap nothing before 6.18, but in 4.10 what they mapped',
    (t, profile) => {
      const m = setup({ profile });
      m.task('T1', 0, false, 'T');
      m.map(0x10000n, PAGE, RW, { task: 'T1' });
      m.run({ op: 'exit', task: 'T', thread_only: true });
      t.equal(errno(m.pin([0x10000n])), profile === '4.10' || profile === '6.18' ? undefined : 'ENODEV');
      t.same(m.unmap(0x10000n, PAGE, { task: 'T1' }).fields.size, profile === '4.10' || profile === '6.18' ? PAGE : 0n);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '82 unmap_dma: with an IOMMU-backed group every page is uncharged',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      m.pin([0x10000n]);
      t.same(m.unmap(0x10000n, 0x4000n).fields.size, 0x4000n);
      t.same([m.lv(), m.page(H).pins], [0, 0]);
    },
  );
});

t.test('F. notification protocol', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '84 unmap_dma: the listener is called once with the range of the mapping',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.pin([0x11000n]);
      t.same(m.unmap(0x0n, 0x100000n).fields.size, 0x4000n);
      t.same(
        m.calls.map(({ iova, size, attempt }) => [iova, size, attempt]),
        [[0x10000n, 0x4000n, 1]],
      );
      t.equal(m.lv(), 0);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '88 unmap_dma: pins that stay: eleven calls, then a BUG with the mapping still there',
    (t, profile) => {
      const m = setup({ profile });
      m.handlers.set('L1', () => 1);
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      t.equal(errno(m.unmap(0x10000n, PAGE)), 'EIO');
      t.same([m.calls.length, m.dmesg('BUG').length, m.mappings()], [11, 1, [[0x10000n, PAGE]]]);
    },
  );
  await inProfiles(
    t,
    NEW,
    '92 unmap_dma: a callback has no result: the next device is told all the same, the one opened last first',
    (t, profile) => {
      const m = setup({ profile });
      m.group('G2', 'C');
      m.device('D2', 'G2');
      m.listen('D2', 'L2');
      m.handlers.set('L2', () => 0x8001);
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      t.same(m.unmap(0x10000n, PAGE).fields.size, PAGE);
      t.same(
        m.calls.map(({ notifier }) => notifier),
        ['L2', 'L1'],
      );
    },
  );
  await inProfiles(
    t,
    NEW,
    '96 close_device: inside the own callback it deadlocks, and is refused unexecuted',
    (t, profile) => {
      const m = setup({ profile });
      let refused: string | undefined;
      m.handlers.set('L1', (machine, notification) => {
        refused = errno(machine.run({ op: 'close_device', device: 'D1' }, notification.id));
        return unpinAll()(machine, notification);
      });
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      t.same(m.unmap(0x10000n, PAGE).fields.size, PAGE);
      t.same([refused, m.dmesg('DEADLOCK').length], ['EDEADLK', 1]);
    },
  );
  await inProfiles(
    t,
    NEW,
    '97 unmap_dma: a second unmap of a pinned mapping during a callback is EDEADLK, of an unpinned one works',
    (t, profile) => {
      const m = setup({ profile });
      const seen: unknown[] = [];
      m.handlers.set('L1', (machine, notification) => {
        seen.push(errno(machine.unmap(0x10000n, PAGE)), machine.unmap(0x20000n, PAGE).fields.size);
        return unpinAll()(machine, notification);
      });
      m.map(0x10000n, PAGE);
      m.map(0x20000n, PAGE);
      m.pin([0x10000n]);
      t.same(m.unmap(0x10000n, PAGE).fields.size, PAGE);
      t.same(seen, ['EDEADLK', PAGE]);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '98 unmap_dma: a straddling mapping appears during the callback: EINVAL in old kernels, else success',
    (t, profile) => {
      const m = setup({ profile });
      m.handlers.set('L1', (machine, notification) => {
        unpinAll()(machine, notification);
        machine.unmap(0x11000n, PAGE);
        machine.map(0x11000n, 0x2000n);
        return 1;
      });
      m.map(0x10000n, PAGE);
      m.map(0x11000n, PAGE);
      m.pin([0x10000n]);
      const outcome = m.unmap(0x10000n, 0x2000n);
      if ((EARLY as readonly string[]).includes(profile)) t.equal(errno(outcome), 'EINVAL');
      else t.same([outcome.ret, outcome.fields.size], [0, 0n]);
      t.equal(m.mappings().length, 2);
    },
  );
  await inProfiles(t, OLD, '100 register_notifier: a block twice: a WARN, or a chain that never ends', (t, profile) => {
    const m = setup({ profile });
    t.equal(m.listen('D1', 'L1').ret, 0);
    const corrupts = profile === '4.10' || profile === '5.4';
    t.equal(warnings(m, 'listener-registered-twice'), profile === '4.10' ? 0 : 1);
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    const outcome = m.unmap(0x10000n, PAGE);
    t.equal(errno(outcome), corrupts ? 'EIO' : undefined);
    t.equal(m.dmesg('BUG').filter(({ text }) => text.includes('soft-lockup')).length, corrupts ? 1 : 0);
  });
  await inProfiles(
    t,
    ['4.10', '5.4'],
    '100 register_notifier: with the fix double_register the chain stays sound',
    (t, profile) => {
      const m = setup({ profile, fixes: ['double_register'] });
      m.listen('D1', 'L1');
      m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
      t.equal(errno(m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null })), 'ENOENT');
    },
  );
  await inProfiles(
    t,
    NEW,
    '100 register_notifier: a second dma_unmap op is EEXIST, a priority EOPNOTSUPP',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(errno(m.listen('D1', 'L9')), 'EEXIST');
      m.run({ op: 'put_device', device: 'D2', group: 'G1' });
      t.equal(errno(m.listen('D2', 'L2', { kind: 'poll' }, 5)), 'EOPNOTSUPP');
    },
  );
});

t.test('G. lifecycle', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '104 unset_container: pins left behind: warned about at detach or at removal, and leaked',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x11000n, PAGE);
      m.pin([0x10000n]);
      m.pin([0x11000n]);
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      const early = (EARLY as readonly string[]).includes(profile);
      t.same([warnings(m, 'pins-left-at-detach'), warnings(m, 'mapping-removed-with-pins')], early ? [1, 0] : [0, 2]);
      t.equal(warnings(m, 'listeners-left-at-detach'), profile === '6.18' ? 0 : 1, 'a closed device is off the list');
      t.same([m.lv(), m.page(H).pins], [2, 2]);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    '106 unset_container: the last mdev group leaves an IOMMU-backed one with pins: WARN only at detach',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      t.equal(m.dmesg('WARN').length, (EARLY as readonly string[]).includes(profile) ? 1 : 0);
      t.same(m.mappings(), [[0x10000n, PAGE]]);
      t.equal(errno(m.unmap(0x10000n, PAGE)), 'EIO', 'nobody is there to unpin');
    },
  );
  await inProfiles(t, PROFILE_NAMES, '110 set_iommu: numbers that are extensions but no types', (t, profile) => {
    const m = new Machine({ profile });
    m.task('T');
    m.run({ op: 'put_container', container: 'C' });
    m.group('G1', 'C');
    const set = (type: number): string | undefined =>
      errno(m.run({ op: 'set_iommu', container: 'C', type, task: 'T' }));
    t.same([set(99), set(9)], ['ENODEV', (LATE as readonly string[]).includes(profile) ? 'EINVAL' : 'ENODEV']);
    t.equal(set(6), profile === '6.18' ? 'ENODEV' : undefined);
  });
  await inProfiles(
    t,
    PROFILE_NAMES,
    '128 CHECK_EXTENSION: UPDATE_VADDR is there from 5.12 on, from 6.3 on without mdev group only',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(checkExtension(m.host, 'C', 10).ret, profile === '5.15' ? 1 : 0);
      m.iommuGroup('GI');
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      t.equal(checkExtension(m.host, 'C', 10).ret, (LATE as readonly string[]).includes(profile) ? 1 : 0);
    },
  );
});

t.test('I. info', async (t) => {
  await inProfiles(
    t,
    PROFILE_NAMES,
    '126 GET_INFO: the capability chain of the profile, iova ranges only with an IOMMU-backed group',
    (t, profile) => {
      const m = setup({ profile });
      const ids = (): number[] => (viewInfo(m.host, 'C', 4096).caps as { id: number }[]).map(({ id }) => id);
      t.throws(() => viewInfo(m.host, 'C', 15), { name: 'EINVAL' });
      const short = viewInfo(m.host, 'C', 16);
      t.same([short.argsz, short.cap_offset], [{ '5.8': 56, '5.15': 68, '6.18': 72 }[profile] ?? 16, 0]);
      const mdev = { '5.8': [2], '5.15': [2, 3], '6.18': [2, 3] }[profile] ?? [];
      t.same(ids(), mdev);
      t.equal(viewInfo(m.host, 'C', 24).flags, mdev.length > 0 ? 3 : 1);
      m.iommuGroup('GI');
      t.same(ids(), profile === '4.10' ? [] : [...mdev, 1]);
      t.equal(viewInfo(m.host, 'C', 4096).iova_pgsizes, 0x40201000n);
    },
  );
});
