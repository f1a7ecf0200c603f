// Each row of the table of behaviours changes something that a caller can see: hosts that differ in that row alone answer differently.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import {
  BEHAVIOURS,
  type BehaviourName,
  FIXES,
  PROFILE_NAMES,
  PROFILES,
  type Profile,
  profileWith,
} from '../../src/kernel/profile.ts';
import { checkExtension, viewInfo } from '../../src/kernel/view/vfio.ts';
import { H, Machine, PAGE, R, RW, setup, unpinAll, V } from './machine.ts';

type Row = Partial<Profile>;

/** Gives a host other behaviours than its profile has, before it has executed anything that depends on them. */
function bend(m: Machine, row: Row): Machine {
  (m.host as { profile: Profile }).profile = { ...m.host.profile, ...row };
  m.host.vfio.dmas.hides_end_of_space = m.host.profile.endOfSpace === 'hidden';
  return m;
}

const of = (profile: string, row: Row, options: Parameters<typeof setup>[0] = {}): Machine =>
  bend(setup({ ...options, profile }), row);
const seen = ({ ret, fields, refusal }: Outcome): unknown => [ret, refusal?.errno ?? fields];
const warns = (m: Machine): string[] => m.dmesg('WARN').map(({ where }) => where as string);

function pinned(m: Machine, vaddr = V): Machine {
  m.map(0x10000n, PAGE, RW, { vaddr });
  m.pin([0x10000n]);
  return m;
}

function pfnmap(m: Machine, pfn: number, extra: object = {}): Machine {
  const backing = { kind: 'pfnmap' as const, pfn, struct_page: true, reserved: true, ...extra };
  m.run({ op: 'mmap', task: 'T', addr: 0x30000000n, length: 0x2000n, prot: RW, backing, noreplace: true });
  m.map(0x10000n, 0x2000n, RW, { vaddr: 0x30000000n });
  return m;
}

function noteOpenAndClosed(m: Machine): unknown {
  m.run({
    op: 'register_notifier',
    device: 'D1',
    notifier: { id: 'LG', events: 1, type: 1, priority: 0, delivery: { kind: 'poll' } },
  });
  m.run({ op: 'close_device', device: 'D1' });
  m.run({ op: 'close_group', group: 'G1' });
  const closed = warns(m).length;
  m.run({ op: 'open_group', group: 'G1' });
  return [closed, warns(m).length];
}

function failedReplay(m: Machine): unknown {
  m.map(0x10000n, 0x4000n, RW, { vaddr: V + 1022n * PAGE });
  return [seen(m.iommuGroup('GI')), m.lv(), m.page(H + 1022).pins];
}

function rangeLeft(m: Machine): unknown {
  m.iommuGroup('GI');
  m.map(0x10000n, PAGE);
  m.run({ op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null });
  m.run({ op: 'unset_container', group: 'GI' });
  return bits(m);
}

const bits = (m: Machine): unknown =>
  seen(
    m.run({
      op: 'dirty_pages',
      container: 'C',
      flags: 4,
      argsz: null,
      range: { iova: 0x10000n, size: PAGE, pgsize: PAGE, bitmap_size: 8n },
      task: null,
    }),
  );

function threadMaps(m: Machine): Machine {
  m.task('T1', 0, false, 'T');
  m.map(0x10000n, PAGE, RW, { task: 'T1' });
  return m;
}

/** What a caller sees of each behaviour, in a host of the given profile that has the behaviour's value. */
const PROBES: Record<BehaviourName, [profile: string, probe: (profile: string, row: Row) => unknown]> = {
  release: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.listen('D1', 'L1');
      return /Not tainted (\S+)/.exec(m.dmesg('WARN')[0]?.text ?? '')?.[1];
    },
  ],
  pinForm: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.map(0x10000n, PAGE);
      return seen(m.run({ op: 'pin_pages', device: 'D1', user_pfn: [16], npage: 1, prot: 1 }));
    },
  ],
  listener: [
    '5.15',
    (p, row) =>
      seen(
        bend(new Machine({ profile: p }), row).run({
          op: 'put_device_in_container',
          device: 'D',
          container: 'C',
          notifier: { id: 'N', events: 3, type: 0, priority: 0, delivery: { kind: 'poll' } },
        }),
      ),
  ],
  extensions: ['5.15', (p, row) => [1, 3, 6, 9, 10].map((n) => checkExtension(of(p, row).host, 'C', n).ret)],
  mapFlags: ['5.15', (p, row) => seen(of(p, row).map(0x10000n, PAGE, 4))],
  unmapFlags: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.run({ op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null });
      const bitmap = { pgsize: PAGE, size: 8n };
      return [0, 1, 2, 4].map((flags) =>
        seen(
          m.run({
            op: 'unmap_dma',
            container: 'C',
            task: 'T',
            iova: 0n,
            size: flags === 2 ? 0n : PAGE,
            flags,
            argsz: null,
            bitmap,
          }),
        ),
      );
    },
  ],
  rangeOverflow: ['5.15', (p, row) => seen(of(p, row).map(0xfffffffffffff000n, 0x2000n))],
  unmapWrapTest: ['5.15', (p, row) => seen(of(p, row).unmap(0xfffffffffffff000n, 0x2000n))],
  infoCapabilities: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.iommuGroup('GI');
      return viewInfo(m.host, 'C', 4096);
    },
  ],
  infoCapabilityAlign: ['5.15', (p, row) => viewInfo(of(p, row).host, 'C', 24).argsz],
  pinBias: ['5.15', (p, row) => pinned(of(p, row)).page(H).refs],
  multiDeviceGroupPin: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.run({ op: 'put_device', device: 'D2', group: 'G1' });
      m.map(0x10000n, PAGE);
      return seen(m.pin([0x10000n]));
    },
  ],
  externalDomainNeeded: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.iommuGroup('GI');
      m.device('DI', 'GI');
      m.map(0x10000n, PAGE);
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      return seen(m.pin([0x10000n], { device: 'DI' }));
    },
  ],
  deviceOpenCheck: [
    '6.18',
    (p, row) => {
      const m = of(p, row);
      m.map(0x10000n, PAGE);
      m.run({ op: 'close_device', device: 'D1' });
      return [seen(m.pin([0x10000n])), warns(m)];
    },
  ],
  zeroPagePin: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.run({ op: 'put_page', pfn: 7000, kind: 'zero' });
      m.pages('T', 0x30000000n, [[7000, 1]], R);
      m.map(0x10000n, PAGE, R, { vaddr: 0x30000000n });
      m.pin([0x10000n]);
      return m.page(7000).pins;
    },
  ],
  pfnmapPfn: ['5.15', (p, row) => seen(pfnmap(of(p, row), 9000, { ptes: ['sigbus', 'rw'] }).pin([0x10000n]))],
  pfnmapReadOnlyWrite: ['5.15', (p, row) => seen(pfnmap(of(p, row), 9000, { ptes: ['r', 'r'] }).pin([0x10000n]))],
  pfnWithoutStructPage: ['5.15', (p, row) => seen(pfnmap(of(p, row), 9000, { struct_page: false }).pin([0x10000n]))],
  addRecordFailure: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.map(0x10000n, PAGE);
      m.run({ op: 'put_fault', fault: 'f', point: 'record_alloc', call: 'pin_pages', nth: 1 });
      return [seen(m.pin([0x10000n])), m.lv()];
    },
  ],
  taskKept: [
    '5.15',
    (p, row) => {
      const m = threadMaps(of(p, row));
      m.run({ op: 'exit', task: 'T1' });
      return m.unmap(0x10000n, PAGE).fields.size;
    },
  ],
  mmKept: [
    '5.15',
    (p, row) => {
      const m = threadMaps(of(p, row));
      m.run({ op: 'exit', task: 'T', thread_only: true });
      return seen(m.pin([0x10000n]));
    },
  ],
  capIpcLock: [
    '4.10',
    (p, row) => {
      const m = of(p, row, { limit: 0 });
      m.map(0x10000n, PAGE);
      m.run({ op: 'patch_task', task: 'T', cap_ipc_lock: true });
      return seen(m.pin([0x10000n]));
    },
  ],
  limitTest: [
    '5.15',
    (p, row) => {
      const m = of(p, row, { limit: 1 });
      m.iommuGroup('GI');
      m.map(0x10000n, PAGE);
      return seen(m.pin([0x10000n]));
    },
  ],
  charge: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.map(0x10000n, PAGE);
      m.run({ op: 'put_fault', fault: 'f', point: 'charge', call: 'pin_pages', nth: 1 });
      return seen(m.pin([0x10000n]));
    },
  ],
  underflowWarning: [
    '5.15',
    (p, row) => {
      const m = pinned(of(p, row));
      m.run({ op: 'adjust_locked_vm', task: 'T', delta: -1 });
      m.unpin([0x10000n]);
      return warns(m);
    },
  ],
  dmaEntryLimit: [
    '5.15',
    (p, row) => {
      const m = bend(new Machine({ profile: p, dma_entry_limit: 1 }), row);
      m.task('T');
      m.run({ op: 'put_device_in_container', device: 'D', container: 'C', notifier: null });
      m.map(0x10000n, PAGE);
      return seen(m.map(0x20000n, PAGE));
    },
  ],
  iovaRanges: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.iommuGroup('GI');
      return seen(m.map(0xfee00000n, PAGE));
    },
  ],
  endOfSpace: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.map(0xfffffffffffff000n, PAGE);
      return seen(m.pin([0xfffffffffffff000n]));
    },
  ],
  unmapOrder: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      for (const iova of [0x20000n, 0x10000n, 0x30000n]) {
        m.map(iova, PAGE);
        m.pin([iova]);
      }
      m.unmap(0n, 0x100000n);
      return m.calls.map(({ iova }) => iova);
    },
  ],
  foreignMmUnmap: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.task('U');
      m.map(0x10000n, PAGE);
      return m.unmap(0x10000n, PAGE, { task: 'U' }).fields.size;
    },
  ],
  bisectOnRestart: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.handlers.set('L1', (machine, notification) => {
        unpinAll()(machine, notification);
        machine.unmap(0x10000n, PAGE);
        machine.map(0x10000n, 0x2000n);
        return 1;
      });
      return seen(pinned(m).unmap(0x10000n, PAGE));
    },
  ],
  doubleRegister: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.listen('D1', 'L1');
      const unmapped = pinned(m).unmap(0x10000n, PAGE);
      return [warns(m), unmapped.refusal?.errno];
    },
  ],
  leftoverCheck: [
    '5.15',
    (p, row) => {
      const m = pinned(of(p, row));
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      return warns(m);
    },
  ],
  groupChainCheck: ['5.15', (p, row) => noteOpenAndClosed(of(p, row))],
  noiommuUser: [
    '5.15',
    (p, row) => {
      const m = bend(new Machine({ profile: p }), row);
      m.run({ op: 'put_container', container: 'C' });
      m.run({ op: 'put_group', group: 'N', kind: 'noiommu' });
      m.run({ op: 'set_container', group: 'N', container: 'C', task: null });
      m.run({ op: 'put_device', device: 'D1', group: 'N' });
      return seen(m.pin([0x10000n]));
    },
  ],
  detachFunction: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      return m.dmesg('WARN')[0]?.text;
    },
  ],
  groupLockAroundCalls: [
    '4.10',
    (p, row) => {
      const m = pinned(of(p, row));
      m.run({ op: 'put_group', group: 'G2', kind: 'mdev' });
      m.handlers.delete('L1');
      m.start(m.unmapCommand(0x10000n, PAGE));
      return seen(m.run({ op: 'set_container', group: 'G2', container: 'C', task: 'T' }));
    },
  ],
  remotePinBatch: [
    '5.15',
    (p, row) => {
      const m = of(p, row, { limit: 1 });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      return [0, 1, 2, 3].map((i) => m.page(H + i).dirty);
    },
  ],
  remotePinFault: ['5.8', (p, row) => failedReplay(of(p, row))],
  remotePinOverLimit: ['5.8', (p, row) => failedReplay(of(p, row, { limit: 1 }))],
  failedReplay: ['5.8', (p, row) => failedReplay(of(p, row))],
  dirtyLog: [
    '5.15',
    (p, row) =>
      seen(of(p, row).run({ op: 'dirty_pages', container: 'C', flags: 2, argsz: null, range: null, task: null })),
  ],
  dirtyFillOnDetach: ['5.15', (p, row) => rangeLeft(of(p, row))],
  dmaRw: [
    '5.15',
    (p, row) =>
      seen(of(p, row).run({ op: 'dma_rw', device: 'D1', iova: 0n, length: 1, write: false, data: null, task: null })),
  ],
  dmaRwDirties: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      m.map(0x10000n, PAGE);
      m.run({ op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null });
      m.run({ op: 'dma_rw', device: 'D1', iova: 0x10000n, length: 1, write: true, data: 'AA==', task: null });
      return bits(m);
    },
  ],
  invalidVaddr: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      return [seen(m.unmap(0x10000n, PAGE, { flags: 4 })), checkExtension(m.host, 'C', 10).ret];
    },
  ],
};

t.test('profiles: every row of the table changes what a caller sees', async (t) => {
  for (const name of Object.keys(BEHAVIOURS) as BehaviourName[])
    await t.test(`${name}: ${BEHAVIOURS[name].meaning}`, async (t) => {
      const [profile, probe] = PROBES[name];
      const values = [
        ...new Map(
          PROFILE_NAMES.map((each) => [JSON.stringify(BEHAVIOURS[name].values[each]), BEHAVIOURS[name].values[each]]),
        ).values(),
      ];
      t.ok(values.length > 1, 'it has more than one value');
      const shown = values.map((value) => probe(profile, { [name]: value } as Row));
      t.ok(
        new Set(
          shown.map((each) => JSON.stringify(each, (_key, value) => (typeof value === 'bigint' ? `${value}` : value))),
        ).size > 1,
        'hosts that differ in it alone answer differently',
      );
    });
});

t.test('profiles: a fix gives a behaviour the value of a later kernel', async (t) => {
  for (const [fix, row] of Object.entries(FIXES)) {
    const changed = PROFILE_NAMES.filter((name) => {
      const fixed = profileWith(name, [fix]);
      return Object.keys(row).some((key) => fixed[key as BehaviourName] !== PROFILES[name]?.[key as BehaviourName]);
    });
    t.ok(changed.length > 0 && !changed.includes('6.18'), `${fix} changes an old kernel`);
    t.notOk(changed.length === PROFILE_NAMES.length, `${fix} is in some kernel already`);
  }
  t.throws(() => profileWith('3.10', []), /no profile '3.10'/);
});
