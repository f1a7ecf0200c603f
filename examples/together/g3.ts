// G-3: a device takes a page of a guest's memory to itself, and the guest takes it back.

import { addrOf, GFN } from './machine.ts';
import type { Scenario } from './scenario.ts';

const TAKEN = 4;
const RANGE = { start: addrOf(TAKEN), length: '0x1000' };

export const g3: Scenario = {
  title: 'A device takes a page of a guest to itself; the guest wants it back',
  profiles: ['5.15', '6.18'],
  async run(m) {
    m.say('A guest has mapped a page. A driver wants it for atomic accesses of its device.');
    await m.guest();
    await m.touch(TAKEN);
    m.shows('the guest touches the page', await m.guestTouches(GFN + TAKEN));
    const { pfn } = await m.entry(TAKEN);
    await m.do('PUT', '/exclusive_devices/gpu', { task: 'qemu' });
    const { sequence } = await m.do('POST', '/mms/mm-1/notifiers/exclusive-gpu/read_begin', {});
    await m.mark();
    const made = await m.do('POST', '/exclusive_devices/gpu/ranges', { ...RANGE, grant: 'g' });
    m.shows('pages that were found', made.ret);
    m.shows('told when it is made', await m.told());
    m.shows('owners of EXCLUSIVE', await m.owners());
    m.look('EXCLUSIVE with owner gpu: KVM looks at neither, and zaps; the driver knows its own event');
    m.shows('the SPTE', await m.spte(GFN + TAKEN));
    m.shows('what the page table has', (await m.entry(TAKEN)).entry);

    m.say('While the driver programs the device it has the page lock: the guest waits.');
    const waiting = await m.do('POST', '/vms/vm0/faults', { gfn: GFN + TAKEN, write: true });
    const { state, blocked_on } = await m.get(`/operations/${waiting.id}`);
    m.shows('a guest that touches it meanwhile', { state, for_its_lock: blocked_on === `page_lock:${pfn}` });
    m.shows(
      'pages that are mapped for the device',
      (await m.do('POST', '/exclusive_devices/gpu/grants/g/map', { sequence })).ret,
    );
    m.shows('what the device has', await m.accesses('gpu'));

    m.say('It drops the lock. The guest goes on: its fault takes the page back, and the device has lost it.');
    await m.mark();
    await m.do('DELETE', '/exclusive_devices/gpu/grants/g');
    m.shows('told when it is restored', await m.told());
    m.shows('owners of EXCLUSIVE when it is restored', await m.owners());
    m.look('EXCLUSIVE with owner null: nobody may look away');
    m.shows('what the device has after that', await m.accesses('gpu'));
    m.shows('the fault of the guest, whose own GUP was an invalidation', await m.outcomeOf(waiting.id as string));
    m.shows('the guest touches it again', await m.guestTouches(GFN + TAKEN));
    const spte = await m.spte(GFN + TAKEN);
    m.shows('it has the same page', { same: spte?.pfn === pfn, writable: spte?.writable });
    m.shows('violations', await m.found(/./));
  },
};
