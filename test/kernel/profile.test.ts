// Each row of the table of behaviours changes something that a caller can see: hosts that differ in that row alone answer differently.

import t from 'tap';
import type { PfnmapPte } from '../../src/kernel/command.ts';
import { FOLL_FAST_ONLY, FOLL_GET, FOLL_PIN, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
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
import { listPages } from '../../src/kernel/view/tasks.ts';
import { checkExtension, viewInfo } from '../../src/kernel/view/vfio.ts';
import { ExclusiveMachine, errno, exclusiveMachine } from './exclusive-machine.ts';
import { G, KvmHost } from './kvm-machine.ts';
import { H, Machine, PAGE, R, RW, setup, unpinAll, V } from './machine.ts';
import { MmHost, at as memoryAt, at as page } from './mm-threads.ts';
import { at, bytes, MM, NotifierMachine, OBEDIENT, START_END, scripted } from './notifier-machine.ts';
import { PciHost, SPEC } from './vfio-pci-machine.ts';

type Row = Partial<Profile>;

/** Gives a host other behaviours than its profile has, before it has executed anything that depends on them. */
function bend<M extends { host: Machine['host'] }>(m: M, row: Row): M {
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

const ANON = 0x60000000n;

/** One page of anonymous memory, mapped for DMA at 0x10000. */
function anonMapped(m: Machine): Machine {
  const backing = { kind: 'anon' as const };
  m.run({ op: 'mmap', task: 'T', addr: ANON, length: PAGE, prot: RW, backing, noreplace: true });
  m.map(0x10000n, PAGE, RW, { vaddr: ANON });
  return m;
}

function threadMaps(m: Machine): Machine {
  m.task('T1', 0, false, 'T');
  m.map(0x10000n, PAGE, RW, { task: 'T1' });
  return m;
}

/** A vfio-pci device with a BAR that is mapped. */
function pci(profile: string, row: Row): PciHost {
  const m = bend(new PciHost(profile), row);
  m.mapBar(0, 4);
  return m;
}
const refusedPci = (profile: string, row: Row, command: Parameters<PciHost['run']>[0]): unknown =>
  pci(profile, row).run(command).refusal?.errno;

const watched = (profile: string, row: Row): NotifierMachine => bend(new NotifierMachine(profile), row);

/** A plain notifier refuses a range, beside an interval notifier and one that counts. */
function refusedStart(m: NotifierMachine, blockable: boolean): unknown {
  m.plain('N1', START_END);
  m.plain('N2', ['invalidate_range_start'], { invalidate_range_start: { returns: -11 } });
  m.interval('I', 0, 4);
  m.invalidate(0, 1, { blockable });
  return [m.called(), m.splats('WARN').length, m.subs.active_invalidate_ranges];
}

/** An interval notifier is inserted into an mm without users, which another one keeps. */
function insertIntoDeadMm(m: NotifierMachine): unknown {
  m.interval('I0', 0, 4);
  m.run({ op: 'exit', task: 'T' });
  const [start, length] = [at(0), bytes(1)];
  return seen(m.run({ op: 'insert_interval_notifier', mm: MM, id: 'I1', start, length, handler: scripted(OBEDIENT) }));
}

/** A written page that somebody refers to: pinned, or got. */
function _held(m: NotifierMachine, flags: number): NotifierMachine {
  m.access(0, true);
  m.run({ op: 'gup', task: 'T', addr: at(0), npage: 1, flags, gup: 'held' });
  return m;
}

/** The page behind the first address, and whether its entry is writable. */
const _mapped = (m: NotifierMachine, task = 'T'): unknown =>
  listPages(m.host, task, at(0), 1).map(({ pfn, writable }) => [pfn, writable]);

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
  reclaimOfPinned: [
    '5.15',
    (p, row) => {
      const m = anonMapped(of(p, row));
      m.pin([0x10000n], { prot: RW });
      const pfn = m.run({ op: 'access', task: 'T', addr: ANON, write: true }).fields.pfn as number;
      const { fields } = m.run({ op: 'reclaim', pfn });
      return [fields, m.page(pfn).refs];
    },
  ],
  unmapMappingLock: [
    '5.15',
    (p, row) => {
      const m = anonMapped(of(p, row));
      const backing = { kind: 'file' as const, file: 'f', pgoff: 0, shared: true };
      m.run({ op: 'mmap', task: 'T', addr: ANON, length: PAGE, prot: RW, backing, noreplace: false });
      m.run({ op: 'truncate', file: 'f', size: 0n, stop_at: 'after_start' });
      return m.host.locks.get('i_mmap:f')?.holders.map(({ mode }) => mode);
    },
  ],
  deviceExclusive: [
    '5.15',
    (p, row) => errno(bend(new ExclusiveMachine(new Machine({ profile: p }), ['A']), row).open()),
  ],
  exclusiveFaultReference: [
    '5.15',
    (p, row) => {
      const m = bend(exclusiveMachine(p, 1), row);
      m.make(0, 1);
      m.read('A', 0);
      return m.counts(m.pfn('A', 0));
    },
  ],
  vfioPciMemoryGate: ['5.15', (p, row) => refusedPci(p, row, { op: 'put_vfio_pci', device: 'e', ...SPEC })],
  vfioPciFault: [
    '5.15',
    (p, row) => {
      const m = pci(p, row);
      m.fault(1);
      return [m.populated(0, 4), m.device().vma_list.length];
    },
  ],
  vfioPciReadLock: [
    '5.15',
    (p, row) => {
      const m = pci(p, row);
      m.rw({ stop_at: 'before_unit' });
      return [...m.host.locks.keys()];
    },
  ],
  vfioPciIoeventfdTest: [
    '5.15',
    (p, row) => {
      const m = pci(p, row);
      m.run({ op: 'vfio_pci_put_ioeventfd', device: 'd', ioeventfd: 'i', bar: 0, pos: 0n, data: 'AA==' });
      m.memory(false);
      return m.run({ op: 'vfio_pci_signal_ioeventfd', device: 'd', ioeventfd: 'i' }).fields;
    },
  ],
  vfioPciPowerGate: ['5.15', (p, row) => refusedPci(p, row, { op: 'vfio_pci_low_power', device: 'd', entry: true })],
  invalidVaddr: [
    '5.15',
    (p, row) => {
      const m = of(p, row);
      return [seen(m.unmap(0x10000n, PAGE, { flags: 4 })), checkExtension(m.host, 'C', 10).ret];
    },
  ],
  invalidateRangeCallback: ['5.15', (p, row) => watched(p, row).plain('N', ['invalidate_range']).errno],
  changePteCallback: ['5.15', (p, row) => watched(p, row).plain('N', ['change_pte']).errno],
  failedStart: ['5.15', (p, row) => refusedStart(watched(p, row), false)],
  badStartWarning: ['5.15', (p, row) => refusedStart(watched(p, row), true)],
  intervalNotifiers: ['5.15', (p, row) => watched(p, row).interval('I', 0, 1).errno],
  intervalInsertTest: ['5.15', (p, row) => insertIntoDeadMm(watched(p, row))],
  failedStartKeepsCount: ['5.15', (p, row) => refusedStart(watched(p, row), false)],
  ownerEvents: [
    '5.15',
    (p, row) => {
      const range = { start: at(0), end: at(1), event: 'EXCLUSIVE', blockable: true, owner: 'gpu0' } as const;
      return watched(p, row).run({ op: 'invalidate', mm: MM, ...range }).errno;
    },
  ],
  anonReuse: [
    '5.15',
    (p, row) => {
      const m = gotten(p, row, FOLL_GET);
      for (const prot of [R, RW]) m.run({ op: 'mprotect', addr: page(0), length: PAGE, prot });
      return m.touch(0, true).fields;
    },
  ],
  forkPinned: [
    '6.18',
    (p, row) => {
      const m = gotten(p, row, FOLL_PIN);
      m.run({ op: 'fork', child: 'C' });
      return m.touch(0, false, 'C').fields;
    },
  ],
  softDirtyPinned: [
    '5.15',
    (p, row) => {
      const m = gotten(p, row, FOLL_PIN);
      m.run({ op: 'clear_soft_dirty' });
      return m.gup(0, FOLL_GET | FOLL_WRITE | FOLL_FAST_ONLY).ret;
    },
  ],
  kvmCountedRanges: ['5.15', (p, row) => guestFault(p, { ...row, kvmRetryRange: 'any' }, 32)],
  kvmRetryRange: ['5.15', (p, row) => guestFault(p, row, 9)],
  kvmChangePte: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.fault(0);
      m.run({ op: 'mmu_call', mm: m.mm().id, callback: 'change_pte', start: memoryAt(0) });
      return m.maps(0);
    },
  ],
  kvmMemslotUpdate: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.mmap(64, 1);
      m.open(64, 1);
      return m.word(m.slot(0, G, 0, 0));
    },
  ],
  kvmInvalidMemslot: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.slot(0, G, 0, 0, 0, 'slot_invalid');
      return m.faults(0);
    },
  ],
  kvmRemappedReadOnly: ['5.15', (p, row) => guestOfBar(p, row, false).faults(0)],
  kvmPfnReferences: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.touch(0, false);
      m.fault(0, false);
      return m.refs(m.pfn(0) as number);
    },
  ],
  kvmUncountedPage: ['5.15', (p, row) => guestOfBar(p, row, true).faults(0)],
  kvmDirtyMark: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.fault(0);
      return m.host.mm.pages.isDirty(m.pfn(0) as number);
    },
  ],
  kvmFatalSignal: [
    '5.15',
    (p, row) => {
      const m = bend(KvmHost.withMemory(p), row);
      m.signal();
      return m.faults(0);
    },
  ],
  kvmMapReference: ['5.15', (p, row) => bend(KvmHost.withMemory(p), row).map(0).fields.holds],
  kvmPfnCache: [
    '5.15',
    (p, row) => seen(bend(KvmHost.withMemory(p), row).run({ op: 'refresh_pfn_cache', vm: 'V', cache: 'c', gfn: G })),
  ],
  vhostMetadata: [
    '5.15',
    (p, row) => seen(of(p, row).run({ op: 'put_vhost_dev', dev: 'v', variant: 'fixed', nvqs: 1, switches: {} })),
  ],
};

/** A guest whose memory is device memory, its first page read-only. */
function guestOfBar(profile: string, row: Row, struct_page: boolean): KvmHost {
  const m = bend(new KvmHost(profile), row);
  const ptes: PfnmapPte[] = struct_page ? ['rw'] : ['r'];
  m.mmap(0, 1, { kind: 'pfnmap', pfn: 0xfe000, struct_page, reserved: false, ptes });
  m.run({ op: 'put_vm', vm: 'V' });
  m.slot(0, G, 0, 1);
  return m;
}

/** A guest whose fault has got its page while an invalidation of another one has begun. */
function guestFault(profile: string, row: Row, first: number): unknown {
  const m = bend(new KvmHost(profile), row);
  m.mmap(0, 96);
  m.vmWithSlot();
  const fault = m.fault(0, true, { stop_at: 'after_gup' });
  m.open(first, 1);
  return m.goOn(fault);
}

/** A page that was written, and that somebody got for writing. */
function gotten(profile: string, row: Row, how: number): MmHost {
  const m = bend(new MmHost(profile), row);
  m.mmap(0, 1);
  m.touch(0, true);
  m.gup(0, how | FOLL_WRITE);
  return m;
}

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
    t.ok(changed.length > 0, `${fix} changes some kernel`);
    t.equal(changed.includes('6.18'), fix === 'failed_start_count', `${fix}: the newest kernel has that defect or not`);
    t.notOk(changed.length === PROFILE_NAMES.length, `${fix} is in some kernel already`);
  }
  t.throws(() => profileWith('3.10', []), /no profile '3.10'/);
});
