// G-1: one page that a mediated device has pinned, that a guest reaches, and that holds a used ring of vhost, is thrown away.

import { addrOf, GFN } from './machine.ts';
import type { Scenario } from './scenario.ts';

const USED = 2;

export const g1: Scenario = {
  title: 'A page that is pinned, mapped for a guest, and a used ring: MADV_DONTNEED',
  profiles: ['5.4', '5.8', '5.15', '6.18'],
  async run(m) {
    m.say('A guest, vhost and a mediated device get hold of the page of the used ring.');
    await m.guest();
    await m.ring('fixed');
    await m.mdev();
    for (const page of [0, 1, USED]) await m.touch(page);
    await m.guestTouches(GFN + USED);
    await m.do('POST', '/vhost_devs/net/vqs/0/rounds', {});
    await m.do('POST', '/vhost_devs/net/vqs/0/access', { area: 'used', off: 0, write: true, data: 'AQIDBA==' });
    await m.pin('pin_pages', USED);
    const { pfn } = await m.entry(USED);
    const old = pfn as number;
    m.shows('the guest reaches the page', (await m.spte(GFN + USED))?.pfn === old);
    m.shows('mapped areas of the ring', await m.mapped());

    m.say('MADV_DONTNEED of that page, stopped when its start has returned: mirrors are gone, the pin is not.');
    await m.mark();
    const range = { addr: addrOf(USED), length: '0x1000' };
    const stopped = await m.do('POST', '/tasks/qemu/madvise', { ...range, advice: 'DONTNEED', stop_at: 'after_start' });
    m.shows('at its start: the SPTE', await m.spte(GFN + USED));
    m.shows('at its start: mapped areas of the ring', await m.mapped());
    m.shows('at its start: the page is dirty', (await m.page(old)).dirty);
    m.shows('at its start: a guest that touches the page', await m.guestTouches(GFN + USED));
    await m.do('POST', `/operations/${stopped.id}/resume`, {});
    m.shows('told', await m.told());
    m.look('invalidate_start CLEAR, a notify for each mirror, the pte that is cleared; nothing is said to the pin');

    m.say('The page lives on with its pin; who touches the address gets another one.');
    const { ref_count, pin_count, mapcount } = await m.page(old);
    m.shows('the pinned page', { pin_count, mapcount, held: (ref_count as number) > 0 });
    m.shows('the guest touches it again', await m.guestTouches(GFN + USED));
    await m.do('POST', '/vhost_devs/net/vqs/0/rounds', {});
    m.shows('mapped areas of the ring after a round', await m.mapped());
    m.shows('the guest has the pinned page', (await m.spte(GFN + USED))?.pfn === old);
    m.shows('qemu has what the guest has', (await m.spte(GFN + USED))?.pfn === (await m.entry(USED)).pfn);

    m.say('The device unpins the page that nobody else has any more.');
    await m.pin('unpin_pages', USED);
    m.shows('references of the old page', (await m.page(old)).ref_count);
    m.shows('violations', await m.found(/./));
  },
};
