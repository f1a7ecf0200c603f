// Groups without an IOMMU that hand out real devices (noiommu): who may open and bind them, and what they refuse, in every profile.

import t, { type Test } from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { viewTask } from '../../src/kernel/view/tasks.ts';
import { checkExtension, viewContainer, viewGroup, viewInfo } from '../../src/kernel/view/vfio.ts';
import { Machine, PAGE } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const NOIOMMU = 8;

async function inProfiles(title: string, run: (t: Test, profile: string) => void): Promise<void> {
  for (const profile of PROFILE_NAMES) await t.test(`[${profile}] ${title}`, async (t) => run(t, profile));
}

/** Task T without CAP_SYS_RAWIO, root with it, container C, and noiommu group N, open and unbound. */
function machine(profile: string): Machine {
  const m = new Machine({ profile });
  m.task('T');
  m.run({
    op: 'put_task',
    task: 'root',
    rlimit_memlock: 0n,
    cap_ipc_lock: false,
    cap_sys_rawio: true,
    thread_of: null,
  });
  m.run({ op: 'put_container', container: 'C' });
  m.run({ op: 'put_group', group: 'N', kind: 'noiommu' });
  return m;
}

const bind = (m: Machine, task: string | null, group = 'N'): Outcome =>
  m.run({ op: 'set_container', group, container: 'C', task });
const setIommu = (m: Machine, type: number, task: string | null = 'root'): Outcome =>
  m.run({ op: 'set_iommu', container: 'C', type, task });

/** The machine with N bound, its back end set and device D open. */
function inUse(profile: string): Machine {
  const m = machine(profile);
  bind(m, 'root');
  setIommu(m, NOIOMMU);
  m.device('D', 'N');
  return m;
}

await inProfiles('put_task: CAP_SYS_RAWIO is of the task, and changes with patch_task', (t, profile) => {
  const m = machine(profile);
  t.same([viewTask(m.host, 'root').cap_sys_rawio, viewTask(m.host, 'T').cap_sys_rawio], [true, false]);
  m.run({ op: 'patch_task', task: 'T', cap_sys_rawio: true });
  m.run({ op: 'patch_task', task: 'root', cap_sys_rawio: false });
  t.same([viewTask(m.host, 'root').cap_sys_rawio, viewTask(m.host, 'T').cap_sys_rawio], [false, true]);
  const again = (cap_sys_rawio: boolean): Outcome =>
    m.run({ op: 'put_task', task: 'root', rlimit_memlock: 0n, cap_ipc_lock: false, cap_sys_rawio, thread_of: null });
  t.same([again(true).created, errno(again(false))], [false, 'EEXIST']);
});

await inProfiles('open_group: EPERM without CAP_SYS_RAWIO', (t, profile) => {
  const m = machine(profile);
  m.run({ op: 'close_group', group: 'N' });
  t.equal(errno(m.run({ op: 'open_group', group: 'N', task: 'T' })), 'EPERM');
  t.equal(m.run({ op: 'open_group', group: 'N', task: 'root' }).ret, 0);
  t.equal(errno(m.run({ op: 'open_group', group: 'N', task: 'root' })), 'EBUSY');
  m.run({ op: 'put_group', group: 'M', kind: 'mdev' });
  m.run({ op: 'close_group', group: 'M' });
  t.equal(m.run({ op: 'open_group', group: 'M', task: 'T' }).ret, 0, 'other groups ask for nothing');
});

await inProfiles('set_container: EPERM without CAP_SYS_RAWIO, and for a mix with other groups', (t, profile) => {
  const m = machine(profile);
  t.equal(errno(bind(m, 'T')), 'EPERM');
  t.equal(bind(m, 'root').ret, 0);
  t.equal(errno(bind(m, 'T')), 'EINVAL', 'bound already comes first');
  m.run({ op: 'put_group', group: 'M', kind: 'mdev' });
  t.equal(errno(bind(m, 'T', 'M')), 'EPERM');
  m.run({ op: 'put_group', group: 'N2', kind: 'noiommu' });
  t.equal(bind(m, null, 'N2').ret, 0);
  t.same(viewContainer(m.host, 'C').groups, ['N', 'N2']);
  m.run({ op: 'unset_container', group: 'N' });
  m.run({ op: 'unset_container', group: 'N2' });
  t.equal(bind(m, 'T', 'M').ret, 0, 'an empty container takes either kind');
  t.equal(errno(bind(m, 'root')), 'EPERM');
});

await inProfiles('set_iommu: noiommu groups take type 8 alone, other groups never', (t, profile) => {
  const m = machine(profile);
  bind(m, 'root');
  t.same([errno(setIommu(m, 1)), errno(setIommu(m, 3)), errno(setIommu(m, 99))], Array(3).fill('ENODEV'));
  t.equal(errno(setIommu(m, NOIOMMU, 'T')), 'EPERM');
  t.equal(setIommu(m, NOIOMMU).ret, 0);
  t.equal(errno(setIommu(m, NOIOMMU)), 'EINVAL', 'set already');
  t.equal(viewContainer(m.host, 'C').iommu_type, 'NOIOMMU');
  t.same([checkExtension(m.host, 'C', NOIOMMU).ret, checkExtension(m.host, 'C', 3).ret], [1, 0]);
  m.run({ op: 'unset_container', group: 'N' });
  t.equal(viewContainer(m.host, 'C').iommu_type, null, 'gone with the last group');
  m.group('M', 'C');
  t.equal(errno(setIommu(m, NOIOMMU)), 'ENODEV');
  t.equal(setIommu(m, 3).ret, 0);
  t.equal(checkExtension(m.host, 'C', NOIOMMU).ret, 0);
});

await inProfiles('map_dma and all other ioctls of the back end: ENOTTY', (t, profile) => {
  const m = inUse(profile);
  t.equal(errno(m.map(0x10000n, PAGE)), 'ENOTTY');
  t.equal(errno(m.unmap(0x10000n, PAGE)), 'ENOTTY');
  t.equal(
    errno(m.run({ op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null })),
    'ENOTTY',
  );
  t.throws(() => viewInfo(m.host, 'C', 16), { name: 'ENOTTY' });
});

await inProfiles('pin_pages: EPERM, from 6.0 on ENOTTY; a notifier is EINVAL', (t, profile) => {
  const m = inUse(profile);
  const listened = m.listen('D', 'L');
  t.equal(errno(listened), profile === '6.18' ? undefined : 'EINVAL', 'an op needs no back end');
  const refused = profile === '6.18' ? 'ENOTTY' : 'EPERM';
  t.equal(errno(m.pin([0x10000n], { device: 'D' })), refused);
  const read = { op: 'dma_rw' as const, device: 'D', iova: 0x10000n, length: 8, write: false, data: null, task: null };
  t.equal(errno(m.run(read)), ['4.10', '5.4'].includes(profile) ? 'EOPNOTSUPP' : refused);
  const unpinned = m.unpin([0x10000n], { device: 'D' });
  t.equal(errno(unpinned), profile === '6.18' ? 'EIO' : 'EPERM', 'nobody asks whether the back end can unpin');
  t.equal(m.dmesg('BUG').length, profile === '6.18' ? 1 : 0);
});

await inProfiles('open_device: EINVAL before the back end is set; its fd holds the binding', (t, profile) => {
  const m = machine(profile);
  m.run({ op: 'put_device', device: 'D', group: 'N' });
  t.equal(errno(m.run({ op: 'open_device', device: 'D' })), 'EINVAL', 'no container');
  bind(m, 'root');
  t.equal(errno(m.run({ op: 'open_device', device: 'D' })), 'EINVAL', 'no back end');
  t.equal(errno(m.pin([0x10000n], { device: 'D' })), profile === '6.18' ? 'EINVAL' : 'EPERM', 'noiommu comes first');
  setIommu(m, NOIOMMU);
  t.equal(m.run({ op: 'open_device', device: 'D' }).ret, 0);
  t.equal(errno(m.run({ op: 'unset_container', group: 'N' })), 'EBUSY');
  m.run({ op: 'close_group', group: 'N' });
  t.equal(viewGroup(m.host, 'N').container, 'C');
  t.equal(m.run({ op: 'close_device', device: 'D' }).ret, 0);
  t.equal(viewGroup(m.host, 'N').container, null);
});
