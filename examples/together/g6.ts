// G-6: KSM merges the page of a used ring that a guest has mapped, too; vhost as it is repaired, and as its second RFC had it.

import { addrOf, GFN, type Machine } from './machine.ts';
import type { Scenario } from './scenario.ts';

const USED = 2;
const SAME = 8;
const MERGE = { addr: addrOf(USED), with: { task: 'qemu', addr: addrOf(SAME) } };

/** Whether every callback of a kind was called with a page lock held; null: none was called. */
async function withPageLock(m: Machine, callback: string): Promise<boolean | null> {
  const calls = (await m.trace()).filter((entry) => entry.event === 'notify' && entry.callback === callback);
  if (calls.length === 0) return null;
  return calls.every(({ locks_held }) => (locks_held as string[]).some((lock) => lock.startsWith('page_lock:')));
}

async function merge(m: Machine, variant: 'fixed' | 'rfc2'): Promise<void> {
  m.say(
    `vhost ${variant}: the worker writes the used ring and ends its round; then KSM merges the page with an equal one.`,
  );
  await m.guest();
  await m.ring(variant);
  for (const page of [0, 1, USED, SAME]) await m.touch(page);
  await m.do('POST', '/vhost_devs/net/vqs/0/rounds', {});
  await m.do('POST', '/vhost_devs/net/vqs/0/access', { area: 'used', off: 0, write: true, data: 'AAAAAA==' });
  await m.do('POST', '/vhost_devs/net/vqs/0/rounds', {});
  m.shows(`${variant}: the guest writes the page`, await m.guestTouches(GFN + USED));
  await m.mark();
  const merged = await m.do('POST', '/tasks/qemu/ksm_merge', MERGE);
  m.shows(`${variant}: told`, await m.told());
  m.shows(`${variant}: every start has the page lock`, await withPageLock(m, 'invalidate_range_start'));
  m.shows(`${variant}: every end has the page lock`, await withPageLock(m, 'invalidate_range_end'));
  m.look('a pair of CLEAR for each of the three steps, page_lock in locks_held of every callback');

  m.shows(`${variant}: the SPTE`, await m.spte(GFN + USED));
  m.shows(`${variant}: the guest reads`, await m.guestTouches(GFN + USED, false));
  const spte = await m.spte(GFN + USED);
  m.shows(`${variant}: it has the merged page`, { merged: spte?.pfn === merged.pfn, writable: spte?.writable });
  m.shows(`${variant}: the guest writes: its own copy on write is an invalidation`, await m.guestTouches(GFN + USED));
  m.shows(`${variant}: it writes again`, await m.guestTouches(GFN + USED));
  const own = await m.spte(GFN + USED);
  m.shows(`${variant}: it has the merged page after that`, {
    merged: own?.pfn === merged.pfn,
    writable: own?.writable,
  });
  m.shows(`${variant}: violations`, await m.found(/INVERSION|SLEEP|SPTE|STALE|PROTECTED/));
}

export const g6: Scenario = {
  title: 'KSM merges a page of a ring',
  profiles: ['5.4', '5.8', '5.15', '6.18'],
  async run(m) {
    await merge(m, 'fixed');
    if (m.profile === '6.18') return;
    await m.boot();
    await merge(m, 'rfc2');
  },
};
