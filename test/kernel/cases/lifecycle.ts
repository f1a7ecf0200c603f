// Cases 104 to 113: how groups, containers and devices come and go.

import type { Test } from 'tap';
import type { Outcome } from '../../../src/kernel/outcome.ts';
import { checkExtension } from '../../../src/kernel/view/vfio.ts';
import { Machine, PAGE, setup, unpinAll } from '../machine.ts';
import {
  ALL,
  detachFirst,
  EARLY,
  errno,
  LATE,
  NEW,
  numbered,
  OLD,
  secondDevice,
  unpinned,
  unregister,
  warnings,
} from './numbered.ts';

const A: [bigint, bigint] = [0x10000n, 0x2000n];
const B: [bigint, bigint] = [0x12000n, 0x2000n];

/** A machine with container C, group G1 in it, and no iommu yet. */
function withoutIommu(profile: string): Machine {
  const m = new Machine({ profile });
  m.task('T');
  m.run({ op: 'put_container', container: 'C' });
  m.group('G1', 'C');
  return m;
}

const setIommu = (m: Machine, type: number): Outcome => m.run({ op: 'set_iommu', container: 'C', type, task: 'T' });
const attach = (m: Machine): Outcome => m.run({ op: 'set_container', group: 'G1', container: 'C', task: 'T' });

async function groups(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '104 unset_container: a clean leave warns of nothing and a new attach starts empty',
    (t, profile) => {
      const m = setup({ profile });
      m.map(...A);
      m.pin([0x10000n]);
      m.unpin([0x10000n]);
      t.equal(detachFirst(m).ret, 0);
      t.same(m.dmesg('WARN'), []);
      t.equal(attach(m).ret, 0);
      t.equal(setIommu(m, 3).ret, 0);
      t.same(m.mappings(), []);
    },
  );
  await numbered(
    t,
    ALL,
    '104 unset_container: pins left behind: warned about at detach or at removal, and leaked',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x11000n, PAGE);
      m.pin([0x10000n]);
      m.pin([0x11000n]);
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      const left = [warnings(m, 'pins-left-at-detach'), warnings(m, 'mapping-removed-with-pins')];
      t.same(left, EARLY.includes(profile) ? [1, 0] : [0, 2]);
      t.equal(warnings(m, 'listeners-left-at-detach'), profile === '6.18' ? 0 : 1, 'a closed device is off the list');
      t.same([m.lv(), m.page(1000).pins], [2, 2]);
    },
  );
  await numbered(
    t,
    ALL,
    '105 unset_container: pins stay while another mdev group does; its device may drop them',
    (t, profile) => {
      const m = setup({ profile });
      secondDevice(m);
      m.map(...A);
      m.pin([0x10000n, 0x11000n]);
      detachFirst(m);
      t.same([m.dmesg('WARN').length, m.records(0x10000n).length, m.lv()], [0, 2, 2]);
      t.equal(m.unpin([0x10000n], { device: 'D2' }).ret, unpinned(profile, 1));
      m.handlers.set('L2', unpinAll('D2'));
      t.match(m.unmap(...A), { ret: 0, fields: { notifications: 1 } });
      t.match(m.calls, [{ notifier: 'L2', device: 'D2' }]);
    },
  );
  await numbered(
    t,
    ALL,
    '106 unset_container: the last mdev group leaves an IOMMU-backed one with pins: WARN up to 5.11 alone',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      detachFirst(m);
      t.equal(m.dmesg('WARN').length, EARLY.includes(profile) ? 1 : 0);
      t.same(m.mappings(), [[0x10000n, PAGE]]);
      t.equal(errno(m.unmap(0x10000n, PAGE)), 'EIO', 'nobody is there to unpin');
    },
  );
}

async function containers(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '108 close_container: mappings survive while the group is attached and go with it',
    (t, profile) => {
      const m = setup({ profile });
      m.map(...A);
      t.equal(m.run({ op: 'close_container', container: 'C' }).ret, 0);
      t.equal(m.pin([0x10000n]).ret, 1);
      t.equal(errno(m.map(...B)), 'EBADF');
      t.equal(errno(m.run({ op: 'put_container', container: 'C' })), 'EBADF');
      m.unpin([0x10000n]);
      unregister(m);
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(m.run({ op: 'close_group', group: 'G1' }).ret, 0);
      t.equal(errno(m.map(...B)), 'EBADF', 'its id still answers');
      t.equal(m.run({ op: 'put_container', container: 'C' }).created, true, 'the id can be used again');
      t.equal(m.host.vfio.containers.get('C')?.iommu, null);
    },
  );
  await numbered(t, ALL, '109 set_container: twice is EINVAL', (t, profile) => {
    t.equal(errno(attach(setup({ profile }))), 'EINVAL');
  });
  await numbered(t, ALL, '110 set_iommu: without group EINVAL, twice EINVAL, type 99 ENODEV', (t, profile) => {
    const lonely = new Machine({ profile });
    lonely.task('T');
    lonely.run({ op: 'put_container', container: 'C' });
    t.equal(errno(setIommu(lonely, 3)), 'EINVAL');
    const m = withoutIommu(profile);
    t.equal(errno(setIommu(m, 99)), 'ENODEV');
    t.equal(setIommu(m, 3).ret, 0);
    t.equal(errno(setIommu(m, 3)), 'EINVAL');
    t.equal(checkExtension(m.host, 'C', 9).ret, LATE.includes(profile) ? 1 : 0);
  });
  await numbered(t, ALL, '110 set_iommu: numbers that are extensions but no types', (t, profile) => {
    const set = (type: number): string | undefined => errno(setIommu(withoutIommu(profile), type));
    t.same([set(9), set(4)], [LATE.includes(profile) ? 'EINVAL' : 'ENODEV', 'ENODEV']);
    t.equal(set(6), profile === '6.18' ? 'ENODEV' : undefined);
  });
}

async function devices(t: Test): Promise<void> {
  await numbered(t, OLD, '112 pin_pages: inside open_device works once a notifier is registered', (t, profile) => {
    const m = setup({ profile });
    unregister(m);
    m.group('G2', 'C');
    m.run({ op: 'put_device', device: 'D2', group: 'G2' });
    m.map(...A);
    t.equal(errno(m.pin([0x10000n], { device: 'D2' })), 'EINVAL');
    t.equal(m.listen('D2', 'L2').ret, 0, 'the group holds the container user');
    t.equal(m.pin([0x10000n], { device: 'D2' }).ret, 1);
    t.equal(m.run({ op: 'open_device', device: 'D2' }).ret, 0);
  });
  await numbered(
    t,
    NEW,
    '112 open_device: the device is on the list before its driver can pin, and alone suffices',
    (t, profile) => {
      const m = setup({ profile });
      m.run({ op: 'close_device', device: 'D1' });
      m.group('G2', 'C');
      m.run({ op: 'put_device', device: 'D2', group: 'G2' });
      t.equal(m.listen('D2', 'L2').ret, 0, 'the op of a driver, before the device is opened');
      m.map(...A);
      t.equal(errno(m.pin([0x10000n], { device: 'D2' })), 'EINVAL', 'not open');
      t.equal(m.run({ op: 'open_device', device: 'D2' }).ret, 0);
      t.equal(m.pin([0x10000n], { device: 'D2' }).ret, 1);
    },
  );
  await numbered(
    t,
    OLD,
    '113 pin_pages: inside close_device and after it works while a listener is present',
    (t, profile) => {
      const m = setup({ profile });
      m.map(...A);
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(m.pin([0x10000n]).ret, 1, 'before 5.19 nothing asks whether the device is open');
      t.equal(m.unpin([0x10000n]).ret, 1);
      unregister(m);
      t.equal(errno(m.pin([0x10000n])), 'EINVAL');
      t.same(m.dmesg('WARN'), []);
    },
  );
  await numbered(
    t,
    NEW,
    '113 pin_pages: works until the last fd of the device is closed, then EINVAL with a WARN',
    (t, profile) => {
      const m = setup({ profile });
      m.map(...A);
      m.run({ op: 'open_device', device: 'D1' });
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(m.pin([0x10000n]).ret, 1);
      t.same(m.unpin([0x10000n]).fields, {});
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(errno(m.pin([0x10000n])), 'EINVAL');
      t.equal(warnings(m, 'device-not-open:'), 1);
    },
  );
}

export async function lifecycle(t: Test): Promise<void> {
  await groups(t);
  await containers(t);
  await devices(t);
}
