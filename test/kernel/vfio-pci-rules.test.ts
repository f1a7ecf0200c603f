// What vfio-pci refuses, in which order, and what it does beside the numbered cases.

import t from 'tap';

import type { Command } from '../../src/kernel/command.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { at, P58, P515, P614, PAGE, READ } from './mm-threads.ts';
import { bar, errno, PciHost, SPEC } from './vfio-pci-machine.ts';

const GATED = [P58, P515, P614];

function mapped(profile: string, npage = 8): PciHost {
  const m = new PciHost(profile);
  m.mapBar(0, npage);
  m.fault(1);
  m.watch();
  m.mark();
  return m;
}
const fail = (m: PciHost, point: Extract<Command, { op: 'put_fault' }>['point'], call: Command['op']): void =>
  void m.run({ op: 'put_fault', fault: 'f', point, call, nth: 1 });
const base64 = (...bytes: number[]): string => Buffer.from(bytes).toString('base64');

t.test('put_vfio_pci: the same body again changes nothing; another is EEXIST; what cannot be is EINVAL', async (t) => {
  const m = new PciHost(P515);
  t.strictSame([m.put('d').created, errno(m.put('d', { flr: false }))], [false, 'EEXIST']);
  t.equal(errno(m.put('e', { bars: Array.from({ length: 7 }, () => null) })), 'EINVAL');
  t.equal(errno(m.put('e', { bars: [bar(0n)] })), 'EINVAL');
  t.equal(errno(m.put('e', { bars: [bar(2n ** 34n + 1n)] })), 'EINVAL');
  t.equal(errno(m.put('e', { bars: [bar(32n, { kind: 'io' })] })), 'EINVAL', 'ports cannot be mapped');
  t.equal(errno(m.put('e', { bars: [bar(PAGE, { msix: { offset: PAGE, length: 1n } })] })), 'EINVAL');
  t.equal(errno(m.put('e', { rom: { length: PAGE, image: PAGE + 1n } })), 'EINVAL');
  t.equal(errno(m.put('e', { command: 4 })), 'EINVAL');
  t.equal(errno(new PciHost(P614).put('e', { variant: 'v1' })), 'EOPNOTSUPP');
  for (let i = 1; i < 256; i++) m.put(`n${i}`);
  t.equal(errno(m.put('one-more')), 'ENOSPC');
});

t.test('a write that does not begin at the first byte of PCI_COMMAND zaps nothing and takes no lock', async (t) => {
  const m = mapped(P515);
  const write = (offset: number, count: number, value: number) =>
    m.run({ op: 'vfio_pci_config_write', device: 'd', offset, count, value });
  t.equal(write(5, 1, 4).ret, 0);
  t.strictSame([m.started(), m.lockEvents('memory_lock:d')], [[], []]);
  t.equal(m.device().vconfig_command & 0x400, 0x400, 'INTx is disabled');
  t.equal(m.device().phys_command & 0x400, 0, 'which vfio-pci keeps for itself');
  t.equal(errno(write(3, 1, 0)), 'EOPNOTSUPP');
  t.equal(errno(write(5, 2, 0)), 'EINVAL');
  t.equal(errno(write(4, 3, 0)), 'EINVAL');
  t.equal(write(4, 1, 1).ret, 0);
  t.equal(m.started().length, 1);
  t.equal(m.device().vconfig_command & 0x400, 0x400, 'one byte leaves the other');
  t.equal(write(4, 4, 3).ret, 0);
  t.equal(m.device().vconfig_command, 3);
});

t.test('a config write that fails is EIO: the zap has happened, the bit is as it was, the lock is free', async (t) => {
  for (const profile of GATED) {
    const m = mapped(profile);
    fail(m, 'config_write', 'vfio_pci_config_write');
    t.equal(errno(m.memory(false)), 'EIO');
    t.strictSame([m.started().length, m.populated(0, 8), m.device().vconfig_command & 2], [1, 0, 2]);
    t.strictSame([...m.host.locks.keys()], []);
    t.equal(m.fault(1).fields.fault, 'NOPAGE');
  }
});

t.test('BARs are restored where user space enables what it believes enabled and the hardware has lost', async (t) => {
  const m = new PciHost(P515);
  m.memory(true);
  t.equal(m.device().bar_restores, 0);
  m.run({ op: 'vfio_pci_lose_state', device: 'd' });
  t.equal(m.rw().ret, 8, 'the virtual bit says yes');
  t.strictSame([m.device().mmio_disabled, m.codes()], [2, ['MMIO_DISABLED', 'MMIO_DISABLED']]);
  m.memory(true);
  t.strictSame([m.device().bar_restores, m.device().phys_command], [1, 3]);
  m.memory(false);
  m.memory(true);
  t.equal(m.device().bar_restores, 1);
});

t.test(
  'reset: EINVAL without the capability, before anything is zapped; FLR of a device without it does nothing',
  async (t) => {
    const m = new PciHost(P515, { resettable: false, flr: false });
    m.mapBar(0, 4);
    m.fault(1);
    t.equal(errno(m.run({ op: 'vfio_pci_reset', device: 'd', by: 'ioctl' })), 'EINVAL');
    t.equal(m.run({ op: 'vfio_pci_reset', device: 'd', by: 'flr' }).ret, 0);
    t.strictSame([m.populated(0, 4), m.device().resets], [4, 0]);
    for (const profile of GATED) {
      const other = mapped(profile);
      const reset = other.run({ op: 'vfio_pci_reset', device: 'd', by: 'flr', stop_at: 'in_reset' });
      t.equal(other.device().resetting, true);
      const fault = other.fault(1);
      t.equal(other.faultOf(fault), 'waits for memory_lock:d');
      other.resume(reset);
      t.strictSame([other.faultOf(fault), other.device().resets, other.device().resetting], ['NOPAGE', 1, false]);
      t.equal(other.device().vconfig_command, 3, 'user space’s command survives');
    }
    t.equal(errno(m.run({ op: 'vfio_pci_hot_reset', devices: [] })), 'EINVAL');
    t.equal(errno(m.run({ op: 'vfio_pci_hot_reset', devices: ['d', 'd'] })), 'EINVAL');
    t.equal(errno(m.run({ op: 'vfio_pci_hot_reset', devices: ['d', 'nobody'] })), 'NOT_FOUND');
  },
);

t.test('power: D3hot zaps and disables from 6.18 on; before it changes nothing', async (t) => {
  for (const profile of GATED) {
    const m = mapped(profile);
    t.equal(m.run({ op: 'vfio_pci_set_power_state', device: 'd', state: 3 }).ret, 0);
    const gates = profile === P614;
    t.equal(m.populated(0, 8) === 0, gates);
    t.equal(errno(m.rw()), gates ? 'EIO' : '8');
    t.equal(m.run({ op: 'vfio_pci_set_power_state', device: 'd', state: 0 }).ret, 0);
    t.equal(m.fault(1).fields.fault, 'NOPAGE');
    t.equal(errno(m.run({ op: 'vfio_pci_set_power_state', device: 'd', state: 4 })), 'EINVAL');
    t.equal(errno(m.run({ op: 'vfio_pci_low_power', device: 'd', entry: true })), gates ? '0' : 'ENOTTY');
  }
});

t.test('low power: faults are refused while it is engaged, reads are not; a second entry is EINVAL', async (t) => {
  const m = mapped(P614);
  const low = (entry: boolean) => m.run({ op: 'vfio_pci_low_power', device: 'd', entry });
  low(true);
  t.equal(m.populated(0, 8), 0);
  t.equal(m.fault(1).fields.fault, 'SIGBUS');
  t.equal(m.rw().ret, 8);
  t.equal(errno(low(true)), 'EINVAL');
  t.equal(low(false).ret, 0);
  t.equal(m.fault(1).fields.fault, 'NOPAGE');
  t.strictSame(m.codes(), []);
});

t.test('set_irqs: EINVAL while interrupts of another kind are set up, or none to take down', async (t) => {
  const m = new PciHost(P515);
  const irqs = (kind: 'intx' | 'msi', enable: boolean) => m.run({ op: 'vfio_pci_set_irqs', device: 'd', kind, enable });
  t.equal(errno(irqs('msi', false)), 'EINVAL');
  t.equal(irqs('msi', true).ret, 0);
  t.equal(errno(irqs('intx', true)), 'EINVAL');
  t.strictSame([irqs('msi', false).ret, m.device().irq], [0, null]);
  t.equal(errno(new PciHost(P515, { rom: null }).run({ op: 'vfio_pci_probe_rom', device: 'd' })), 'EINVAL');
});

t.test('a split opens the new part, which is zapped and on no list; from 6.18 on it keeps its entries', async (t) => {
  for (const profile of GATED) {
    const m = mapped(profile);
    for (let page = 0; page < 8; page++) m.fault(page);
    m.mark();
    m.run({ op: 'mprotect', addr: at(4), length: 4n * PAGE, prot: READ });
    const { id } = m.mm();
    const listed = profile !== P614;
    t.strictSame(m.started()[0], listed ? `CLEAR ${id} 0+4` : `PROTECTION_VMA ${id} 4+4`, profile);
    t.strictSame([m.populated(0, 4), m.populated(4, 4)], [listed ? 0 : 4, 4]);
    t.equal(m.fault(5).fields.fault, 'SIGSEGV', 'it may not be written');
    t.equal(m.fault(2).fields.fault, 'NOPAGE');
    t.equal(m.device().vma_list.length, listed ? 2 : 0);
    m.memory(false);
    t.equal(m.populated(0, 8), 0);
  }
});

t.test('munmap of the front opens the part that goes; the rest stays on the list, mapped', async (t) => {
  const m = mapped(P515);
  m.range('munmap', 0, 3);
  t.strictSame([m.started(), m.populated(3, 5)], [[`CLEAR ${m.mm().id} 0+3`, `UNMAP ${m.mm().id} 0+3`], 5]);
  t.equal(m.device().vma_list.length, 1);
  m.range('munmap', 5, 1);
  t.strictSame([m.populated(3, 2), m.populated(6, 2)], [2, 0], 'what is behind a hole is new too');
  m.range('munmap', 0, 8);
  t.strictSame([m.device().vma_list, m.vma(3)], [[], null]);
});

t.test('munmap waits for vma_lock at its end, with the entries gone', async (t) => {
  const m = mapped(P515);
  m.hold('vma_lock:d');
  const munmap = m.range('munmap', 0, 8);
  t.equal(m.operation(munmap).blocked_on, 'vma_lock:d');
  t.equal(m.populated(0, 8), 0);
  m.letGo('vma_lock:d');
  t.strictSame([m.operation(munmap).outcome?.ret, m.device().vma_list], [0, []]);
});

t.test('mremap moves the entries into an area that is on no list: MEM=0 does not find it before 6.18', async (t) => {
  for (const profile of GATED) {
    const m = mapped(profile, 2);
    const [old_length, new_length] = [2n * PAGE, 2n * PAGE];
    t.equal(m.run({ op: 'mremap', addr: at(0), old_length, new_length, new_addr: at(50) }).ret, 0);
    const moved = m.populated(50, 2);
    t.ok(moved > 0);
    t.strictSame(m.device().vma_list, []);
    m.memory(false);
    t.equal(m.populated(50, 2), profile === P614 ? 0 : moved, profile);
  }
});

t.test('5.8: a fault that has dropped vma_lock populates behind the back of the zap that waits for it', async (t) => {
  const m = new PciHost(P58);
  m.mapBar(0, 4);
  const fault = m.fault(1, { stop_at: 'before_populate' });
  const write = m.memory(false);
  t.equal(m.operation(write).blocked_on, 'memory_lock:d');
  t.strictSame(m.device().vma_list, [], 'the zap is over');
  t.equal(m.resume(fault).fields.fault, 'NOPAGE');
  t.equal(m.operation(write).outcome?.fields.enabled, false);
  t.equal(m.populated(0, 4), 4, 'mapped while disabled: no source names this, it follows from the order of the locks');
  const later = new PciHost(P515);
  later.mapBar(0, 4);
  const safe = later.fault(1, { stop_at: 'before_populate' });
  t.equal(later.operation(later.memory(false)).blocked_on, 'vma_lock:d');
  later.resume(safe);
  t.equal(later.populated(0, 4), 0);
});

t.test('no memory for the list entry: OOM; the area is left populated by nobody', async (t) => {
  for (const profile of [P58, P515]) {
    const m = new PciHost(profile);
    m.mapBar(0, 4);
    m.watch();
    m.mark();
    fail(m, 'vma_list_alloc', 'access');
    t.equal(m.fault(1).fields.fault, 'OOM');
    t.equal(m.populated(0, 4), 0);
    t.equal(m.started().length, profile === P515 ? 1 : 0, 'what had been populated is zapped again');
    t.equal(m.fault(1).fields.fault, 'NOPAGE');
  }
});

t.test('read: barmap errors come before EIO from 5.15 on, and after it in 5.8; the end cuts a read off', async (t) => {
  for (const profile of GATED) {
    const m = new PciHost(profile, { command: 1 });
    fail(m, 'request_regions', 'vfio_pci_rw');
    t.equal(errno(m.rw()), profile === P58 ? 'EIO' : 'EBUSY');
    m.memory(true);
    fail(m, 'iomap', 'vfio_pci_rw');
    t.equal(errno(m.rw()), 'ENOMEM');
    fail(m, 'map_rom', 'vfio_pci_rw');
    t.equal(errno(m.rw({ region: 6 })), 'ENOMEM');
    t.equal(m.rw({ pos: 16n * PAGE - 3n }).ret, 3);
    t.equal(m.rw({ region: 6, count: 32 }).fields.data, base64(...Array(16).fill(0), ...Array(16).fill(0xff)));
    t.equal(errno(m.rw({ region: 6, write: true, data: base64(1), count: 1 })), 'EINVAL');
    t.equal(errno(m.rw({ region: 7 })), 'EOPNOTSUPP');
    t.equal(errno(m.rw({ count: -1 })), 'EINVAL');
    t.equal(errno(m.rw({ count: 65537 })), 'E2BIG');
    t.equal(errno(m.rw({ write: true })), 'EINVAL');
  }
});

t.test('ports and VGA are never gated', async (t) => {
  for (const profile of GATED) {
    const m = new PciHost(profile, { command: 0 });
    t.equal(m.rw({ region: 1, write: true, count: 2, data: base64(1, 2), pos: 6n }).ret, 2);
    t.equal(m.rw({ region: 1, count: 4, pos: 6n }).fields.data, base64(1, 2, 0, 0));
    t.equal(m.rw({ region: 8, pos: 0xa0000n, write: true, count: 1, data: base64(7) }).ret, 1);
    t.equal(m.rw({ region: 8, pos: 0xa0000n, count: 1 }).fields.data, base64(7));
    t.equal(m.rw({ region: 8, pos: 0x3ban, count: 8 }).ret, 2);
    t.equal(errno(m.rw({ region: 8, pos: 0x3bcn })), 'EINVAL');
    t.equal(errno(new PciHost(profile, { vga: false }).rw({ region: 8, pos: 0xa0000n })), 'EINVAL');
    t.strictSame(m.codes(), []);
  }
});

t.test('write() takes its bytes from the caller’s memory: units of 4, 2, 1; EFAULT where there is none', async (t) => {
  const m = new PciHost(P515);
  m.mmap(30, 1);
  m.run({ op: 'access', addr: at(30), write: true, data: base64(1, 2, 3, 4, 5, 6, 7) });
  m.mark();
  t.equal(m.rw({ write: true, count: 7, task: 'T', buf: at(30) }).ret, 7);
  const sizes = m.host.trace.since(0, 1e6).items.filter(({ event }) => event === 'mmio');
  t.strictSame(
    sizes.map(({ size }) => size),
    [4, 2, 1],
  );
  t.equal(m.rw({ count: 8 }).fields.data, base64(1, 2, 3, 4, 5, 6, 7, 0));
  t.equal(errno(m.rw({ write: true, count: 4, task: 'T', buf: at(99) })), 'EFAULT');
  t.equal(errno(m.rw({ count: 4, task: 'T', buf: at(99) })), 'EFAULT');
  t.equal(m.run({ op: 'access', addr: at(30), write: false, length: 2 }).fields.data, base64(1, 2));
});

t.test('CPU and read() see the same bytes of a BAR', async (t) => {
  const m = mapped(P515);
  m.run({ op: 'access', addr: at(3) + 8n, write: true, data: base64(9, 8) });
  t.equal(m.rw({ pos: 3n * PAGE + 8n, count: 2 }).fields.data, base64(9, 8));
});

t.test('ioeventfd: EINVAL beside a BAR, in the MSI-X table, of no access; EEXIST of the same write', async (t) => {
  const m = new PciHost(P515);
  const put = (ioeventfd: string, region: number, pos: bigint, data = base64(1, 2)) =>
    m.run({ op: 'vfio_pci_put_ioeventfd', device: 'd', ioeventfd, bar: region, pos, data });
  t.equal(errno(put('a', 6, 0n)), 'EINVAL');
  t.equal(errno(put('a', 4, 0n)), 'EINVAL');
  t.equal(errno(put('a', 0, 16n * PAGE)), 'EINVAL');
  t.equal(errno(put('a', 2, 0x10n)), 'EINVAL');
  t.equal(errno(put('a', 0, 1n)), 'EINVAL');
  t.equal(errno(put('a', 0, 0n, base64(1, 2, 3))), 'EINVAL');
  t.equal(errno(put('a', 0, 0n, '?')), 'EINVAL');
  t.strictSame([put('a', 0, 0n).created, put('a', 0, 0n).created], [true, false]);
  t.strictSame([errno(put('b', 0, 0n)), errno(put('a', 0, 4n))], ['EEXIST', 'EEXIST']);
  for (let i = 1; i < 1000; i++) put(`n${i}`, 0, 8n * BigInt(i));
  t.equal(errno(put('one-more', 0, PAGE * 8n)), 'ENOSPC');
  t.equal(m.run({ op: 'vfio_pci_delete_ioeventfd', device: 'd', ioeventfd: 'a' }).ret, 0);
  t.equal(errno(m.run({ op: 'vfio_pci_delete_ioeventfd', device: 'd', ioeventfd: 'a' })), 'NOT_FOUND');
});

t.test('ioeventfd while disabled: dropped without a word from 5.15 on; in 5.8 it reaches the device', async (t) => {
  for (const profile of GATED) {
    const m = new PciHost(profile);
    m.run({ op: 'vfio_pci_put_ioeventfd', device: 'd', ioeventfd: 'a', bar: 0, pos: 4n, data: base64(1, 2) });
    const signal = () => m.run({ op: 'vfio_pci_signal_ioeventfd', device: 'd', ioeventfd: 'a' });
    t.strictSame(signal().fields, { done: true, deferred: false });
    m.memory(false);
    t.strictSame(signal().fields, { done: profile === P58, deferred: false });
    t.strictSame(m.codes(), profile === P58 ? ['MMIO_DISABLED'] : []);
    m.memory(true);
    const write = m.memory(true, { stop_at: 'after_memory_lock' });
    const waiting = signal();
    if (profile === P58) t.equal(waiting.fields.done, true);
    else t.equal(m.operation(waiting).blocked_on, 'memory_lock:d', 'a thread waits for it');
    m.resume(write);
    if (profile !== P58) t.strictSame(m.operation(waiting).outcome?.fields, { done: true, deferred: true });
  }
});

t.test('mmap that the device refuses has unmapped what was there', async (t) => {
  const m = new PciHost(P515);
  m.mmap(0, 2);
  t.equal(errno(m.mapBar(0, 1, { region: 6 })), 'EINVAL');
  t.strictSame([m.vma(0), m.vma(1)?.kind], [null, 'anon']);
  t.equal(errno(m.mapBar(0, 1, { offset: 1n })), 'EINVAL');
  t.equal(errno(m.mapBar(0, 0)), 'EINVAL');
  fail(m, 'request_regions', 'vfio_pci_mmap');
  t.equal(errno(m.mapBar(0, 1)), 'EBUSY');
  fail(m, 'iomap', 'vfio_pci_mmap');
  t.equal(errno(m.mapBar(0, 1)), 'ENOMEM');
});

t.test('a device that is mapped by two processes is zapped process by process', async (t) => {
  for (const profile of [P58, P515]) {
    const m = mapped(profile);
    m.task('U');
    m.mapBar(0, 4, { task: 'U' });
    m.mapBar(100, 4);
    m.fault(0, { task: 'U' });
    m.fault(100);
    m.mark();
    m.memory(false);
    const [first, second] = [m.mm().id, m.mm('U').id];
    t.strictSame(m.started(), [`CLEAR ${first} 0+8`, `CLEAR ${first} 100+4`, `CLEAR ${second} 0+4`]);
  }
});

t.test('an exit waits for the zap that is inside its address space', async (t) => {
  const m = mapped(P515);
  m.task('U');
  m.mapBar(0, 4, { task: 'U' });
  m.fault(0, { task: 'U' });
  const write = m.memory(false, { stop_at: 'after_start' });
  const exit = m.run({ op: 'exit' });
  t.equal(m.operation(exit).blocked_on, `operation:${write.parked}`);
  t.equal(m.resume(write).ret, 0);
  t.equal(m.operation(exit).outcome?.ret, 0);
  t.strictSame([m.populated(0, 4, 'U'), m.device().vma_list], [0, []]);
});

t.test('a checkpoint in the middle of a read, a fault and a zap goes on as the host itself does', async (t) => {
  const m = mapped(P515);
  m.rw({ write: true, count: 8, data: base64(1, 2, 3, 4, 5, 6, 7, 8) });
  const read = m.rw({ stop_at: 'before_unit' });
  m.run({ op: 'step_operation', operation: read.parked as string });
  m.mapBar(60, 4);
  const fault = m.fault(61, { stop_at: 'before_populate' });
  const data = new Map<string, unknown>();
  for (const section of sections(m.host)) data.set(section.key, decode(encode(section.data())));
  const other = Object.assign(new PciHost(P515), { host: restoreHost('test', m.host.options, 0, data) });
  for (const each of [m, other]) {
    t.equal(each.resume(fault).fields.fault, 'NOPAGE');
    t.equal(each.resume(read).fields.data, base64(1, 2, 3, 4, 5, 6, 7, 8));
    each.mark();
    each.memory(false);
    t.strictSame(each.started(), [`CLEAR ${each.mm().id} 0+8`, `CLEAR ${each.mm().id} 60+4`]);
  }
  t.equal(SPEC.variant, 'merged');
});
