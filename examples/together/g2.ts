// G-2: the memory of a PCI device, mapped by its user and for a guest, is disabled and enabled again.

import { hex, PAGE } from './machine.ts';
import type { Scenario } from './scenario.ts';

const BAR = 0x600000000000n;
const BAR_GFN = 0x10000;

export const g2: Scenario = {
  title: 'A BAR that a process and a guest have mapped: its memory is disabled',
  profiles: ['5.8', '5.15', '6.18'],
  async run(m) {
    m.say('qemu maps BAR0 of a device, and gives it to its guest.');
    await m.guest();
    await m.do('PUT', '/vfio_pci/nic', {});
    const length = hex(16n * PAGE);
    await m.do('POST', '/vfio_pci/nic/mmaps', { task: 'qemu', addr: hex(BAR), length, bar: 0 });
    await m.do('PUT', '/vms/vm0/memslots/1', {
      guest_phys_addr: hex(BigInt(BAR_GFN) * PAGE),
      memory_size: length,
      userspace_addr: hex(BAR),
    });
    const touch = { addr: hex(BAR), write: true };
    m.shows('qemu touches the BAR', (await m.do('POST', '/tasks/qemu/access', touch)).fault);
    m.shows('the guest touches the BAR', await m.guestTouches(BAR_GFN));
    const pfn = (await m.spte(BAR_GFN))?.pfn as number;
    m.shows('the page behind it', {
      struct_page: (await m.page(pfn)).struct_page,
      refs: (await m.page(pfn)).ref_count,
    });

    m.say('The MEMORY bit of PCI_COMMAND is cleared: vfio-pci takes every mapping away, and KVM follows.');
    await m.mark();
    await m.do('PUT', '/vfio_pci/nic/config/command', { value: ['IO'] });
    m.shows('told', await m.told());
    m.look('CLEAR of the whole area from the zap, then memory_lock:nic held W');
    m.shows('the SPTE', await m.spte(BAR_GFN));
    m.shows('qemu touches it while disabled', (await m.do('POST', '/tasks/qemu/access', touch)).fault);
    m.shows('the guest touches it while disabled', await m.guestTouches(BAR_GFN));
    m.shows('still no SPTE', await m.spte(BAR_GFN));

    m.say('It is set again: nothing is mapped by that, the next touch does it.');
    await m.do('PUT', '/vfio_pci/nic/config/command', { value: ['IO', 'MEMORY'] });
    m.shows('the SPTE after MEMORY is set', await m.spte(BAR_GFN));
    m.shows('the guest touches it while enabled', await m.guestTouches(BAR_GFN));
    m.shows('it is the same page of the device', (await m.spte(BAR_GFN))?.pfn === pfn);
    m.shows('violations', await m.found(/./));
  },
};
