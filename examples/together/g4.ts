// G-4: qemu forks while one of its pages is pinned, one is mapped for its guest, and one belongs to a device.

import { addrOf, GFN } from './machine.ts';
import type { Scenario } from './scenario.ts';

const PINNED = 3;
const MAPPED = 4;
const TAKEN = 5;

export const g4: Scenario = {
  title: 'fork() with a pinned page, an SPTE and a page that a device has to itself',
  profiles: ['5.15', '6.18'],
  async run(m) {
    m.say('Three pages: pinned by a mediated device, mapped for a guest, taken by a device for itself.');
    await m.guest();
    await m.mdev();
    for (const page of [PINNED, MAPPED, TAKEN]) await m.touch(page);
    await m.pin('pin_pages', PINNED);
    m.shows('the guest touches its page', await m.guestTouches(GFN + MAPPED));
    await m.do('PUT', '/exclusive_devices/gpu', { task: 'qemu' });
    await m.do('POST', '/exclusive_devices/gpu/exclusive', { start: addrOf(TAKEN), length: '0x1000' });
    m.shows('what the device has', await m.accesses('gpu'));
    const before = await m.entry(PINNED);

    m.say('fork(): one PROTECTION_PAGE pair of the parent, over the whole area.');
    await m.mark();
    await m.do('POST', '/tasks/qemu/fork', { child: 'child' });
    m.shows('told', await m.told());
    m.look('PROTECTION_PAGE over the whole area, of the parent alone; no EXCLUSIVE');

    const [mine, copied] = [await m.entry(PINNED), await m.entry(PINNED, 'child')];
    m.shows('the pinned page: the parent keeps it', { same: mine.pfn === before.pfn, writable: mine.writable });
    m.shows('the pinned page: the child has a copy', copied.entry === 'present' && copied.pfn !== mine.pfn);
    const [parent, child] = [await m.entry(MAPPED), await m.entry(MAPPED, 'child')];
    m.shows("the guest's page", { shared: parent.pfn === child.pfn, writable: parent.writable });
    m.shows('the SPTE', await m.spte(GFN + MAPPED));
    const [restored, inherited] = [await m.entry(TAKEN), await m.entry(TAKEN, 'child')];
    m.shows("the device's page", {
      parent: restored.entry,
      child: inherited.entry,
      shared: restored.pfn === inherited.pfn,
    });
    m.shows('what the device has after the fork', await m.accesses('gpu'));

    m.say('The guest writes: copy on write gives the parent a page of its own, which is an invalidation again.');
    m.shows('the guest writes', await m.guestTouches(GFN + MAPPED));
    m.shows('it writes again', await m.guestTouches(GFN + MAPPED));
    m.shows('the guest has the page of the child', (await m.spte(GFN + MAPPED))?.pfn === child.pfn);
    m.shows('the guest has the page of qemu', (await m.spte(GFN + MAPPED))?.pfn === (await m.entry(MAPPED)).pfn);
    m.shows('violations', await m.found(/./));
  },
};
