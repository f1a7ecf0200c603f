// Refusals of a differential run: what it would have to begin with is not there.

import type { Test } from 'tap';
import { Client, startApp } from '../client.ts';
import { client } from './machine.ts';

export async function differentialRefusals(t: Test): Promise<void> {
  await t.test('404 and 409: an unknown host, a journal whose beginning was dropped', async (t) => {
    const profiles = ['5.15', '6.18'];
    const unknown = await client.ask('POST', '/v1/differential', { profiles, host: 'nowhere' });
    t.match(unknown, { status: 404, body: { detail: "no host 'nowhere'" } });
    const forgetful = await startApp({ JOURNAL_KEEP: '5' });
    t.teardown(() => forgetful.close());
    const other = new Client(forgetful, client.document);
    for (let delta = 1; delta <= 10; delta++)
      await other.ask('POST', '/v1/hosts/default/tasks/qemu/adjust_locked_vm', { delta });
    t.equal((await other.ask('POST', '/v1/differential', { profiles, host: 'default' })).status, 200);
    await forgetful.service.checkpoint('default');
    t.match(await other.ask('POST', '/v1/differential', { profiles, host: 'default' }), {
      status: 409,
      body: { type: /#journal-incomplete$/, detail: /the oldest that is kept is 6/ },
    });
    for (const seen of other.seen) client.seen.add(seen);
  });
}
