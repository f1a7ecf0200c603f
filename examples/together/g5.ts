// G-5: the OOM reaper, which may not wait, meets vhost as it was merged and KVM.

import { GFN } from './machine.ts';
import type { Scenario } from './scenario.ts';

export const g5: Scenario = {
  title: 'The OOM reaper with vhost as merged and KVM registered',
  profiles: ['5.4', '5.8', '5.15', '6.18'],
  async run(m) {
    m.say('KVM registers first, vhost (as merged in 2019) after it: vhost is called first.');
    await m.guest();
    await m.ring('merged');
    for (const page of [0, 1, 2, 3]) await m.touch(page);
    m.shows('the guest touches a page', await m.guestTouches(GFN + 3));
    await m.mark();

    m.say('The reaper starts a range that is not blockable. vhost would have to wait, and refuses.');
    const reap = await m.ask('POST', '/tasks/qemu/oom_reap', {});
    m.shows('the reaper', reap.body.errno ?? reap.body.ret);
    m.shows('told', await m.told());
    m.look('invalidate_start with blockable false, notify_return -11 of vhost, and who is told an end');
    const { mmu_notifier_count } = await m.get('/vms/vm0/mmu_state');
    m.shows('invalidations that KVM believes open', mmu_notifier_count);
    m.shows('the page was not taken', (await m.entry(3)).entry);

    m.say('Nothing is being invalidated now. A guest touches the page again, and once more.');
    m.shows('first', await m.guestTouches(GFN + 3));
    m.shows('second', await m.guestTouches(GFN + 3));
    const subscriptions = await m.get('/mms/mm-1/subscriptions');
    m.shows('ranges that are open', subscriptions.active);
    m.shows('contract violations', await m.found(/FALLIBLE|UNBALANCED|BAD_ERRNO|STALE|SPTE/));
  },
};
