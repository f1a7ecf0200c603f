// The numbered cases of vfio-pci (host-mm E.8), each in the profiles it is about, and what the mail of 23 May 2020 claims.

import t from 'tap';

import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_DEFAULT,
  FAULT_FLAG_KILLABLE,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
} from '../../src/kernel/mm/fault-flags.ts';
import { FOLL_GET, FOLL_NOWAIT, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import type { VfioPciSpec } from '../../src/kernel/vfio-pci/device.ts';
import { at, P53, P58, P515, P614, PAGE } from './mm-threads.ts';
import { errno, PciHost } from './vfio-pci-machine.ts';

const MAIL = '"Re: [PATCH v3 3/3] vfio-pci: Invalidate mmaps and block MMIO access on disabled memory", 23 May 2020';
const GATED = [
  ['P58', P58],
  ['P515', P515],
  ['P614', P614],
] as const;
const LISTED = GATED.slice(0, 2);

/** BAR0 mapped at page 0, and an access that populated it. */
function mapped(profile: string, npage = 4, spec: Partial<VfioPciSpec> = {}): PciHost {
  const m = new PciHost(profile, spec);
  m.mapBar(0, npage);
  m.fault(1);
  m.watch();
  m.mark();
  return m;
}

for (const profile of ['4.10', P53])
  t.test(`vfio-pci before 5.8 has no memory gate: ENODEV (${profile})`, async (t) => {
    const m = new PciHost(P515);
    t.throws(() => new PciHost(profile), /does not gate the memory/);
    t.equal(errno(m.run({ op: 'vfio_pci_reset', device: 'nobody', by: 'ioctl' })), 'NOT_FOUND');
  });

for (const [name, profile] of GATED) {
  t.test(
    `E-1 ${name}: a disabled device is mapped without a word; the access is SIGBUS, and NOPAGE when enabled`,
    async (t) => {
      const m = new PciHost(profile, { command: 0 });
      t.equal(m.mapBar(0, 4).ret, 0);
      t.equal(m.vma(0)?.kind, 'device');
      t.equal(m.fault(1).fields.fault, 'SIGBUS');
      t.equal(m.populated(0, 4), 0);
      m.memory(true);
      t.equal(m.populated(0, 4), 0, 'E.7: MEM=1 makes no entry');
      const fault = m.fault(1);
      t.equal(fault.fields.fault, 'NOPAGE');
      t.equal(fault.fields.pfn, (m.device().pfns[0] as number) + 1);
      t.equal(m.populated(0, 4), name === 'P614' ? 1 : 4);
    },
  );

  t.test(`E-2 ${name}: MEM=0 zaps every mapping in one CLEAR pair an area; the next access is SIGBUS`, async (t) => {
    const m = mapped(profile);
    m.mapBar(20, 2);
    m.fault(21);
    m.mark();
    const { id } = m.mm();
    t.equal(m.memory(false).ret, 0);
    t.strictSame(m.started(), [`CLEAR ${id} 0+4`, `CLEAR ${id} 20+2`]);
    t.equal(m.ended(), 2);
    t.equal(m.populated(0, 4) + m.populated(20, 2), 0);
    t.strictSame(m.device().vma_list, []);
    t.equal(m.fault(1).fields.fault, 'SIGBUS');
    t.strictSame(m.codes(), []);
  });

  t.test(
    `E-5 ${name}: read() of disabled memory is EIO, of a position beyond the end EINVAL, which comes first`,
    async (t) => {
      const m = new PciHost(profile, { command: 1 });
      t.equal(errno(m.rw()), 'EIO');
      t.equal(errno(m.rw({ pos: 16n * PAGE })), 'EINVAL');
      t.equal(errno(m.rw({ region: 5 })), 'EINVAL');
      t.equal(m.rw({ count: 0, region: 5 }).ret, 0);
      t.equal(m.device().mmio, 0, 'E.7: no access to the device');
    },
  );

  t.test(`E-9 ${name}: the memory of a virtual function is zapped by MEM=0, and faults back in`, async (t) => {
    const m = mapped(profile, 4, { no_command_memory: true, command: 2 });
    m.memory(false);
    t.equal(m.started().length, 1);
    t.equal(m.populated(0, 4), 0);
    t.equal(m.fault(1).fields.fault, 'NOPAGE');
    t.equal(m.rw().ret, 8);
    t.strictSame(m.codes(), []);
  });

  t.test(`E-10 ${name}: mmap is EINVAL: private; too long; of the ROM; of what cannot be mapped`, async (t) => {
    const m = new PciHost(profile);
    t.equal(errno(m.mapBar(0, 4, { shared: false })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 17)), 'EINVAL');
    t.equal(errno(m.mapBar(0, 16, { offset: PAGE })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 1, { region: 6 })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 1, { region: 7 })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 1, { region: 9 })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 1, { region: 2 })), 'EINVAL');
    t.equal(errno(m.mapBar(0, 1, { region: 4 })), 'EINVAL');
    t.equal(m.mapBar(0, 16).ret, 0);
    m.run({ op: 'put_fault', fault: 'f', point: 'request_regions', call: 'vfio_pci_mmap', nth: 1 });
    t.equal(m.mapBar(0, 1).ret, 0, 'requested already');
  });

  t.test(`E-15 ${name}: GUP of an enabled, populated BAR is EFAULT`, async (t) => {
    const m = mapped(profile);
    t.equal(errno(m.gup(1, FOLL_GET | FOLL_WRITE)), 'EFAULT');
    t.equal(errno(m.gup(1, FOLL_GET | FOLL_NOWAIT)), 'EFAULT');
  });

  t.test(
    `E-18 ${name}: MSI-X work sets the physical memory bit for a moment; user space finds all as it was`,
    async (t) => {
      const m = mapped(profile);
      m.memory(false);
      const irqs = m.run({
        op: 'vfio_pci_set_irqs',
        device: 'd',
        kind: 'msix',
        enable: true,
        stop_at: 'after_memory_lock',
      });
      t.equal(m.device().phys_command & 2, 2);
      t.equal(m.device().vconfig_command & 2, 0);
      const waits = m.fault(1, { flags: FAULT_FLAG_DEFAULT });
      t.equal(m.faultOf(waits), 'waits for memory_lock:d');
      t.equal(m.resume(irqs).ret, 0);
      t.equal(m.device().phys_command & 2, 0);
      t.equal(m.device().irq, 'msix');
      t.equal(m.faultOf(waits), 'SIGBUS');
      const rom = m.run({ op: 'vfio_pci_probe_rom', device: 'd' });
      t.strictSame([rom.fields.size, m.device().phys_command & 2], [2n * PAGE, 0]);
      t.strictSame(m.codes(), []);
    },
  );
}

for (const [name, profile] of LISTED) {
  t.test(`E-3 ${name}: a second MEM=0 finds an empty list and tells nobody`, async (t) => {
    const m = mapped(profile);
    m.memory(false);
    m.mark();
    t.equal(m.memory(false).ret, 0);
    t.strictSame(m.started(), []);
  });

  t.test(`E-11 ${name}: a forked BAR mapping has no entries; its access lists it, and MEM=0 zaps both`, async (t) => {
    const m = mapped(profile);
    t.equal(m.run({ op: 'fork', child: 'C' }).ret, 0);
    t.equal(m.populated(0, 4), 4);
    t.equal(m.populated(0, 4, 'C'), 0);
    t.equal(m.device().vma_list.length, 1);
    t.equal(m.fault(2, { task: 'C' }).fields.fault, 'NOPAGE');
    t.strictSame(
      m.device().vma_list.map(({ mm }) => mm),
      [m.mm().id, m.mm('C').id],
    );
    m.mark();
    m.memory(false);
    t.strictSame(m.started(), [`CLEAR ${m.mm().id} 0+4`, `CLEAR ${m.mm('C').id} 0+4`]);
    t.equal(m.populated(0, 4) + m.populated(0, 4, 'C'), 0);
  });

  t.test(
    `E-17 ${name}: hot reset of a set with a busy vma_lock is EBUSY; what was zapped before stays so`,
    async (t) => {
      const m = mapped(profile);
      m.put('e');
      m.mapBar(40, 2, { device: 'e' });
      const fault = m.fault(40, { stop_at: 'after_vma_lock' });
      t.equal(errno(m.run({ op: 'vfio_pci_hot_reset', devices: ['d', 'e'] })), 'EBUSY');
      t.strictSame([m.device('d').resets, m.device('e').resets], [0, 0]);
      t.equal(m.populated(0, 4), 0);
      t.equal(m.host.locks.has('vma_lock:d') || m.host.locks.has('memory_lock:d'), false);
      t.equal(m.resume(fault).fields.fault, 'NOPAGE');
      t.equal(m.run({ op: 'vfio_pci_hot_reset', devices: ['d', 'e'] }).ret, 0);
      t.strictSame([m.device('d').resets, m.device('e').resets], [1, 1]);
      t.equal(m.populated(40, 2), 0);
      t.strictSame(m.codes(), []);
    },
  );

  t.test(
    `E-19 ${name}: an area of an mm without users leaves the list without a zap, and without a deadlock`,
    async (t) => {
      const m = mapped(profile);
      const exit = m.run({ op: 'exit', stop_at: 'after_start' });
      t.equal(m.operation(exit).state, 'stopped');
      t.equal(m.device().vma_list.length, 1);
      m.mark();
      t.equal(m.memory(false).ret, 0);
      t.strictSame(m.started(), []);
      t.strictSame(m.device().vma_list, []);
      t.equal(m.resume(exit).ret, 0);
      t.strictSame(m.codes(), []);
    },
  );

  t.test(`E-13 ${name} v1: contention is SIGBUS without ALLOW_RETRY, though MEM stays 1; RETRY with it`, async (t) => {
    const m = new PciHost(profile, { variant: 'v1' });
    m.mapBar(0, 4);
    const write = m.memory(true, { stop_at: 'after_memory_lock' });
    t.equal(m.fault(1, { flags: 0 }).fields.fault, 'SIGBUS');
    t.equal(m.fault(1, { flags: FAULT_FLAG_TRIED }).fields.fault, 'SIGBUS');
    const nowait = m.fault(1, { flags: FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT });
    t.strictSame([nowait.fields.fault, nowait.fields.mmap_lock], ['RETRY', 'held']);
    const retry = m.fault(1, { flags: FAULT_FLAG_ALLOW_RETRY });
    t.equal(m.faultOf(retry), 'waits for memory_lock:d');
    t.equal(m.host.locks.has(`mmap_lock:${m.mm().id}`), false, 'dropped while it waits');
    m.resume(write);
    const fields = m.operation(retry).outcome?.fields;
    t.strictSame([fields?.fault, fields?.mmap_lock], ['RETRY', 'dropped']);
    t.equal(m.fault(1).fields.fault, 'NOPAGE');
    m.memory(false);
    t.equal(m.populated(0, 4), 0);
    t.equal(m.fault(1).fields.fault, 'SIGBUS');
    t.strictSame(m.codes(), [], 'a trylock orders nothing');
  });
}

t.test('E-3 P614: without a list every mapping of the device is told of each MEM=0', async (t) => {
  const m = mapped(P614);
  m.memory(false);
  m.mark();
  m.memory(false);
  t.strictSame(m.started(), [`CLEAR ${m.mm().id} 0+4`]);
});

t.test('E-11 P614: a forked BAR mapping has its parent’s entries, and MEM=0 zaps both', async (t) => {
  const m = mapped(P614);
  m.run({ op: 'fork', child: 'C' });
  t.strictSame([m.populated(0, 4), m.populated(0, 4, 'C')], [1, 1]);
  m.mark();
  m.memory(false);
  t.strictSame(m.started(), [`CLEAR ${m.mm().id} 0+4`, `CLEAR ${m.mm('C').id} 0+4`]);
  t.equal(m.populated(0, 4) + m.populated(0, 4, 'C'), 0);
});

t.test('E-17 P614: hot reset with a busy memory_lock is EBUSY; devices before it stay zapped', async (t) => {
  const m = mapped(P614);
  m.put('e');
  m.mapBar(40, 2, { device: 'e' });
  const fault = m.fault(40, { stop_at: 'after_memory_lock' });
  t.equal(errno(m.run({ op: 'vfio_pci_hot_reset', devices: ['d', 'e'] })), 'EBUSY');
  t.strictSame([m.device('d').resets, m.device('e').resets], [0, 0]);
  t.equal(m.populated(0, 4), 0);
  t.equal(m.host.locks.has('memory_lock:d'), false);
  t.equal(m.resume(fault).fields.fault, 'NOPAGE');
  t.equal(m.run({ op: 'vfio_pci_hot_reset', devices: ['e', 'd'] }).ret, 0);
});

t.test('E-19 P614: MEM=0 in the middle of an exit finds the areas by the device, and does not deadlock', async (t) => {
  const m = mapped(P614);
  const exit = m.run({ op: 'exit', stop_at: 'after_start' });
  t.equal(m.memory(false).ret, 0);
  t.equal(m.resume(exit).ret, 0);
  t.strictSame(m.codes(), []);
});

t.test('E-6 P515: a read that is disabled after its first four bytes is EIO, not 4', async (t) => {
  const m = new PciHost(P515);
  const read = m.rw({ stop_at: 'before_unit' });
  m.run({ op: 'step_operation', operation: read.parked as string });
  t.equal(m.device().mmio, 1, 'the first unit is done');
  t.equal(m.memory(false).ret, 0, 'nothing holds memory_lock between two units');
  t.equal(errno(m.resume(read)), 'EIO');
  t.equal(m.device().mmio, 1);
});

t.test('E-6 P58: a read holds memory_lock throughout: who disables waits, and the read returns 8', async (t) => {
  const m = new PciHost(P58);
  const read = m.rw({ stop_at: 'before_unit' });
  m.run({ op: 'step_operation', operation: read.parked as string });
  const write = m.memory(false);
  t.equal(m.operation(write).blocked_on, 'memory_lock:d');
  t.equal(m.resume(read).ret, 8);
  t.equal(m.operation(write).outcome?.ret, 0);
  t.equal(errno(m.rw()), 'EIO');
  t.strictSame([m.device().mmio_disabled, m.codes()], [0, []]);
});

t.test('E-7 P515: a read of nothing but the MSI-X table gives 0xff even while the memory is disabled', async (t) => {
  const m = new PciHost(P515, { command: 1 });
  const read = m.rw({ region: 2, pos: 0x14n, count: 8 });
  t.strictSame([read.ret, read.fields.data], [8, Buffer.alloc(8, 0xff).toString('base64')]);
  t.equal(errno(m.rw({ region: 2, pos: 0x1cn, count: 8 })), 'EIO', 'the half behind it is the device');
  t.equal(m.rw({ region: 2, pos: 0x14n, count: 4, write: true, data: 'AQIDBA==' }).ret, 4);
  t.equal(m.rw({ region: 6, pos: 0x20n, count: 4 }).ret, 4, 'the ROM behind its image');
  t.equal(m.device().mmio, 0);
});

t.test('E-7 P58: a read of the MSI-X table while the memory is disabled is EIO', async (t) => {
  const m = new PciHost(P58, { command: 1 });
  t.equal(errno(m.rw({ region: 2, pos: 0x14n, count: 8 })), 'EIO');
  t.equal(errno(m.rw({ region: 6, pos: 0x20n, count: 4 })), 'EIO');
});

for (const [name, profile] of GATED)
  t.test(`E-13 ${name}: a fault waits for who disables the memory, and is SIGBUS then`, async (t) => {
    const m = mapped(profile);
    const write = m.memory(false, { stop_at: 'after_memory_lock' });
    const faults = [0, FAULT_FLAG_DEFAULT, FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT].map((flags) =>
      m.fault(1, { flags }),
    );
    t.equal(m.faultOf(faults[0] as never), 'waits for memory_lock:d');
    for (const fault of faults) t.equal(m.operation(fault).state, 'blocked');
    t.equal(m.host.locks.get(`mmap_lock:${m.mm().id}`)?.holders.length, 3, 'mmap_lock is kept');
    m.resume(write);
    t.strictSame(
      faults.map((fault) => m.faultOf(fault)),
      ['SIGBUS', 'SIGBUS', 'SIGBUS'],
    );
    t.strictSame(m.codes(), []);
  });

t.test('E-14 P515: two faults of one area are both NOPAGE, and list it once', async (t) => {
  const m = new PciHost(P515);
  m.mapBar(0, 4);
  const first = m.fault(0, { stop_at: 'before_populate' });
  const second = m.fault(3);
  t.equal(m.faultOf(second), 'waits for vma_lock:d');
  t.equal(m.resume(first).fields.fault, 'NOPAGE');
  t.equal(m.faultOf(second), 'NOPAGE');
  t.equal(m.device().vma_list.length, 1);
});

t.test('E-14 P58: two faults of one area are a FATAL_DOUBLE_MAP, and the host is dead', async (t) => {
  const m = new PciHost(P58);
  m.mapBar(0, 4);
  const first = m.fault(0, { stop_at: 'before_populate' });
  t.equal(m.fault(3).fields.fault, 'NOPAGE');
  m.run({ op: 'resume_operation', operation: first.parked as string });
  t.strictSame(m.codes(), ['FATAL_DOUBLE_MAP']);
  t.equal(m.operation(first).outcome?.refusal?.errno, 'EIO');
  t.equal(m.host.dead?.where, 'remap_pte_range');
  t.equal(errno(m.fault(3)), 'EIO');
});

t.test('E-14 P614: two faults of one page are both NOPAGE', async (t) => {
  const m = new PciHost(P614);
  m.mapBar(0, 4);
  const first = m.fault(0, { stop_at: 'before_populate' });
  t.equal(m.fault(0).fields.fault, 'NOPAGE');
  t.equal(m.resume(first).fields.fault, 'NOPAGE');
});

/** read() of BAR0 into a buffer that is page 1 of a mapping of BAR0. */
const readIntoBar = (m: PciHost) => m.rw({ pos: 0n, count: 8, task: 'T', buf: at(1) });

t.test('E-21 P58: read() into a mapping of the same BAR takes memory_lock twice: RECURSIVE_READ_LOCK', async (t) => {
  const m = new PciHost(P58);
  m.mapBar(0, 4);
  t.equal(readIntoBar(m).ret, 8);
  t.strictSame(m.codes().filter((code) => code === 'RECURSIVE_READ_LOCK').length, 1);
  t.ok(m.codes().includes('LOCK_INVERSION'), 'mmap_lock under memory_lock, where faults take them the other way');
});

t.test('E-21 P58: with a writer between the two, nobody ever goes on: EDEADLK', async (t) => {
  const m = new PciHost(P58);
  m.mapBar(0, 4);
  const read = m.rw({ task: 'T', buf: at(1), stop_at: 'before_unit' });
  const write = m.memory(true);
  t.equal(m.operation(write).blocked_on, 'memory_lock:d');
  t.equal(errno(m.resume(read)), 'EDEADLK');
  t.equal(m.operation(write).outcome?.ret, 0);
  t.ok(m.codes().includes('DEADLOCK'));
});

for (const [name, profile] of GATED.slice(1))
  t.test(`E-21 ${name}: read() into a mapping of the same BAR is fine`, async (t) => {
    const m = new PciHost(profile);
    m.mapBar(0, 4);
    m.rw({ write: true, count: 4, data: 'AQIDBA==' });
    t.equal(readIntoBar(m).ret, 8);
    t.strictSame(m.codes(), []);
    t.equal(m.rw({ pos: PAGE, count: 4 }).fields.data, 'AQIDBA==', 'the buffer is the device');
  });

for (const [name, profile] of GATED)
  t.test(`E-12 ${name}: fault, zap and config writes agree on one order of locks, so each may wait`, async (t) => {
    const m = mapped(profile);
    m.memory(false);
    m.memory(true);
    m.fault(1);
    m.run({ op: 'vfio_pci_reset', device: 'd', by: 'ioctl' });
    m.run({ op: 'vfio_pci_hot_reset', devices: ['d'] });
    const orders = [...m.host.lockdep.edges.keys()].filter((key) => /mmap_lock|vma_lock|memory_lock/.test(key));
    const wanted = name === 'P614' ? ['mmap_lock>memory_lock'] : ['mmap_lock>vma_lock', 'vma_lock>memory_lock'];
    for (const order of wanted) t.ok(orders.includes(order), order);
    for (const order of orders) t.notOk(orders.includes(order.split('>').reverse().join('>')), order);
    t.strictSame(m.codes(), []);
  });

t.test(
  `${MAIL}: the merged handler never blocks a GUP with FOLL_NOWAIT, which refuses device memory before`,
  async (t) => {
    for (const [, profile] of GATED) {
      const m = mapped(profile);
      const write = m.memory(false, { stop_at: 'after_memory_lock' });
      t.equal(errno(m.gup(1, FOLL_GET | FOLL_NOWAIT)), 'EFAULT', profile);
      m.resume(write);
    }
  },
);

t.test(`${MAIL}: SIGBUS on contention without ALLOW_RETRY is wrong; the proposal waits instead`, async (t) => {
  const m = new PciHost(P515, { variant: 'proposed' });
  m.mapBar(0, 4);
  const write = m.memory(true, { stop_at: 'after_memory_lock' });
  const slow = m.fault(1, { flags: 0 });
  const tried = m.fault(2, { flags: FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED });
  t.equal(m.faultOf(slow), 'waits for memory_lock:d');
  t.equal(m.faultOf(tried), 'waits for vma_lock:d', 'the other has it');
  m.resume(write);
  t.strictSame([m.faultOf(slow), m.faultOf(tried)], ['NOPAGE', 'NOPAGE']);
  t.strictSame(m.codes(), []);
});

t.test(`${MAIL}: FAULT_FLAG_RETRY_NOWAIT depends on FAULT_FLAG_ALLOW_RETRY`, async (t) => {
  const m = new PciHost(P515, { variant: 'proposed' });
  m.mapBar(0, 4);
  const write = m.memory(true, { stop_at: 'after_memory_lock' });
  const nowait = m.fault(1, { flags: FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT });
  t.strictSame([nowait.fields.fault, nowait.fields.mmap_lock], ['RETRY', 'held']);
  const alone = m.fault(1, { flags: FAULT_FLAG_RETRY_NOWAIT });
  t.equal(m.faultOf(alone), 'waits for memory_lock:d', 'alone it means nothing');
  m.resume(write);
  t.equal(m.faultOf(alone), 'NOPAGE');
});

t.test(
  `${MAIL}: as the page-lock helper does, a killable wait without retry drops mmap_lock when it is killed`,
  async (t) => {
    const m = new PciHost(P515, { variant: 'proposed' });
    m.mapBar(0, 4);
    const write = m.memory(true, { stop_at: 'after_memory_lock' });
    const killed = m.fault(1, { flags: FAULT_FLAG_KILLABLE });
    m.run({ op: 'signal', fatal: true });
    const fields = m.operation(killed).outcome?.fields;
    t.strictSame([fields?.fault, fields?.mmap_lock], ['RETRY', 'dropped']);
    m.resume(write);
    t.strictSame([...m.host.locks.keys()], []);
  },
);

t.test(`${MAIL}: with the order of locks fixed the handler waits for a lock whatever the flags`, async (t) => {
  for (const [, profile] of GATED)
    for (const flags of [0, FAULT_FLAG_KILLABLE, FAULT_FLAG_DEFAULT]) {
      const m = new PciHost(profile);
      m.mapBar(0, 4);
      const write = m.memory(true, { stop_at: 'after_memory_lock' });
      const fault = m.fault(1, { flags });
      t.equal(m.faultOf(fault), 'waits for memory_lock:d', profile);
      m.resume(write);
      t.equal(m.faultOf(fault), 'NOPAGE', profile);
      t.strictSame(m.codes(), []);
    }
});

t.test(
  'E.6: what a contended fault comes to, for every combination of retry flags and each version of the handler',
  async (t) => {
    const [A, N, K, R] = [FAULT_FLAG_ALLOW_RETRY, FAULT_FLAG_RETRY_NOWAIT, FAULT_FLAG_KILLABLE, FAULT_FLAG_TRIED];
    /** Then, and, where it waits, whether with mmap_lock; v1, proposed, merged. */
    const TABLE: [flags: number, ...outcomes: [string, string, string]][] = [
      [0, 'SIGBUS', 'waits held', 'waits held'],
      [N, 'SIGBUS', 'waits held', 'waits held'],
      [K, 'SIGBUS', 'waits held', 'waits held'],
      [R, 'SIGBUS', 'waits held', 'waits held'],
      [A, 'waits dropped', 'waits dropped', 'waits held'],
      [A | K, 'waits dropped', 'waits dropped', 'waits held'],
      [A | N, 'RETRY held', 'RETRY held', 'waits held'],
      [A | N | K, 'RETRY held', 'RETRY held', 'waits held'],
      [A | R, 'waits dropped', 'waits held', 'waits held'],
      [A | N | R, 'RETRY held', 'waits held', 'waits held'],
    ];
    for (const [, profile] of LISTED)
      for (const [i, variant] of (['v1', 'proposed', 'merged'] as const).entries())
        for (const [flags, ...outcomes] of TABLE) {
          const m = new PciHost(profile, { variant });
          m.mapBar(0, 4);
          const write = m.memory(true, { stop_at: 'after_memory_lock' });
          const fault = m.fault(1, { flags });
          const held = m.host.locks.has(`mmap_lock:${m.mm().id}`) ? 'held' : 'dropped';
          const { fault: name, mmap_lock } = fault.fields;
          const now = fault.parked === undefined ? [name, mmap_lock].filter(Boolean).join(' ') : `waits ${held}`;
          t.equal(now, outcomes[i], `${profile} ${variant} 0x${flags.toString(16)}`);
          m.resume(write);
          const dropped = now === 'waits dropped';
          if (fault.parked !== undefined) t.equal(m.faultOf(fault), dropped ? 'RETRY' : 'NOPAGE');
          t.strictSame([...m.host.locks.keys()], []);
          t.strictSame(m.codes(), []);
        }
  },
);

for (const [name, profile] of GATED)
  t.test(
    `G-2 ${name}: KVM loses its SPTE of a BAR by the zap of MEM=0, and cannot fault it in before MEM=1`,
    async (t) => {
      const m = new PciHost(profile);
      m.mapBar(0, 4);
      m.run({ op: 'put_vm', vm: 'guest', task: 'T' });
      const region = { slot: 0, flags: 0, guest_phys_addr: 0n, memory_size: 4n * PAGE, userspace_addr: at(0) };
      m.run({ op: 'set_memory_region', vm: 'guest', ...region });
      const guest = () => m.run({ op: 'vcpu_fault', vm: 'guest', gfn: 1, write: true, async_pf: false });
      const spte = () => m.host.consumers.kvm.vms.get('guest')?.sptes.get(1)?.pfn ?? null;
      t.equal(guest().ret, 0);
      t.equal(spte(), (m.device().pfns[0] as number) + 1);
      m.memory(false);
      t.equal(spte(), null);
      t.equal(errno(guest()), 'EFAULT');
      m.memory(true);
      t.equal(guest().ret, 0);
      t.equal(spte(), (m.device().pfns[0] as number) + 1);
      t.strictSame(m.codes(), []);
    },
  );

for (const [name, profile] of GATED)
  t.test(
    `VFIO type1 ${name}: a BAR of another device is pinned through its fault handler; disabled it is EFAULT`,
    async (t) => {
      const m = new PciHost(profile);
      m.mapBar(0, 4);
      const notifier = { id: 'n', events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } } as const;
      m.run({ op: 'put_device_in_container', device: 'mdev', container: 'c', notifier });
      const dma = { task: 'T', iova: 0n, vaddr: at(0), size: 4n * PAGE, flags: 3, argsz: 32 };
      t.equal(m.run({ op: 'map_dma', container: 'c', ...dma }).ret, 0);
      const form = m.host.profile.pinForm === 'iova' ? { user_pfn: [], contiguous: { iova: PAGE } } : { user_pfn: [1] };
      const pin = () => m.run({ op: 'pin_pages', device: 'mdev', npage: 1, prot: 3, ...form });
      m.memory(false);
      t.equal(errno(pin()), 'EFAULT');
      m.memory(true);
      const pinned = pin();
      const pfn = (m.device().pfns[0] as number) + 1;
      if (name === 'P614') t.equal(errno(pinned), 'EINVAL', 'it has no struct page');
      else t.strictSame([pinned.ret, pinned.fields.phys_pfn], [1, [pfn]]);
      t.strictSame(m.codes(), []);
    },
  );
