// Cases of section B about the end of an address space: who is told, once, and what a registration then finds.

import t, { type Test } from 'tap';
import { at, bytes, MM, NotifierMachine, OBEDIENT, START_END, scripted } from './notifier-machine.ts';

const ALL = ['4.10', '5.4', '5.8', '5.15', '6.18'];
const WITH_INTERVALS = ['5.8', '5.15', '6.18'];

function each(profiles: string[], title: string, body: (t: Test, m: NotifierMachine, profile: string) => void): void {
  for (const profile of profiles)
    t.test(`${title} (${profile})`, async (t) => body(t, new NotifierMachine(profile), profile));
}

each(ALL, 'B-17 an exit calls release exactly once; a later unregister does not call it again', (t, m) => {
  m.plain('N', ['release', ...START_END]);
  m.access(0, true);
  t.equal(m.run({ op: 'exit', task: 'T' }).ret, 0);
  t.same(m.called(), ['N.release'], 'it is off the list when the memory goes');
  t.same([m.mm.count, m.subs.list], [1, []]);
  t.equal(m.run({ op: 'unregister_mmu_notifier', id: 'N' }).ret, 0);
  t.same(m.called(), ['N.release']);
  t.equal(m.host.mm.zombies.size, 0, 'the last reference is gone');
});

each(ALL, 'B-17 an object of get is released by the exit, and freed by its last put', (t, m) => {
  const id = m.get('O6').fields.id as string;
  m.run({ op: 'exit', task: 'T' });
  t.same(m.called(), [`${id}.alloc_notifier`, `${id}.release`]);
  t.equal(m.run({ op: 'put_mmu_notifier', id }).ret, 0);
  t.same(m.called().slice(2), [`${id}.free_notifier`]);
  t.equal(m.host.mm.zombies.size, 0);
});

each(WITH_INTERVALS, 'B-17 interval notifiers are told RELEASE over the whole space before any release', (t, m) => {
  m.plain('N', ['release', ...START_END]);
  m.interval('I', 0, 4);
  m.run({ op: 'exit', task: 'T' });
  const told = m.trace().filter(({ event }) => event === 'notify');
  t.match(told[0], { notifier: 'I', mmu_event: 'RELEASE', start: 0n, end: 2n ** 64n - 1n, blockable: true });
  t.match(told[1], { notifier: 'N', callback: 'release' });
  t.match(told[2], { notifier: 'I', mmu_event: 'UNMAP' });
  t.same(m.sequence('I').slice(0, 2), [6, 0], 'two ranges have come and gone');
  t.equal(m.run({ op: 'remove_interval_notifier', id: 'I' }).ret, 0);
});

each(WITH_INTERVALS, 'B-17 an interval notifier that refuses RELEASE is warned about', (t, m) => {
  m.interval('I', 0, 4, { invalidate: { returns: 0 } });
  m.run({ op: 'exit', task: 'T' });
  t.match(m.splats('WARN').join(), /mn_itree_release: interval-refused-release/);
});

each(ALL, 'B-17 an unregistration during a release waits for it', (t, m) => {
  m.client('N', ['release']);
  const exit = m.run({ op: 'exit', task: 'T' }).parked as string;
  t.equal(m.waiting.callback, 'release');
  const unregistration = m.run({ op: 'unregister_mmu_notifier', id: 'N' }).parked as string;
  t.ok(m.host.mm.notifications.size > 0);
  while (m.host.mm.notifications.size > 0) {
    const [id] = [...m.host.mm.notifications.keys()];
    m.run({ op: 'ack_mmu_notification', notification: id as string, ret: 0, reason: 'ack', detail: null });
  }
  t.equal(m.operation(exit).outcome?.ret, 0);
  t.equal(m.operation(unregistration).outcome?.ret, 0);
  t.equal(m.host.mm.zombies.size, 0);
});

each(ALL, 'a registration in an address space without users is a BUG: the host is dead, EIO', (t, m) => {
  m.plain('N1', ['release']);
  m.client('N2', ['invalidate_range_start']);
  m.run({ op: 'exit', task: 'T' });
  t.equal(m.plain('N3', START_END).errno, 'EIO');
  t.match(m.splats('BUG'), [/kernel BUG at \w*mmu_notifier_register: mm-not-alive/]);
  t.match(m.host.dead, { where: /mmu_notifier_register/ });
  t.equal(m.run({ op: 'unregister_mmu_notifier', id: 'N1' }).errno, 'EIO');
  t.equal(
    m.run({ op: 'put_task', task: 'U', rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null }).errno,
    'EIO',
  );
});

each(ALL, 'a BUG ends what waits in the host with EIO', (t, m) => {
  m.run({ op: 'put_task', task: 'U', rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null });
  m.plain('N1', ['release']);
  const [start, end] = [at(0), at(1)];
  const handler = { kind: 'poll' } as const;
  m.run({ op: 'register_mmu_notifier', mm: 'mm-2', id: 'N2', callbacks: START_END, handler });
  const waits = { mm: 'mm-2', start, end, event: 'CLEAR', blockable: true } as const;
  const waiting = m.run({ op: 'invalidate', ...waits }).parked as string;
  m.run({ op: 'exit', task: 'T' });
  t.equal(m.plain('N3', START_END).errno, 'EIO');
  t.match(m.operation(waiting).outcome, { refusal: { errno: 'EIO' } });
  t.equal(m.host.mm.notifications.size, 0);
});

each(['5.15', '6.18'], 'an interval inserted into an mm without users is EINVAL and a WARN', (t, m) => {
  m.interval('I0', 0, 4);
  m.run({ op: 'exit', task: 'T' });
  t.equal(m.interval('I1', 0, 4).errno, 'EINVAL');
  t.match(m.splats('WARN').join(), /insert-into-dead-mm/);
  t.same([m.subs.intervals, m.mm.count], [['I0'], 1]);
});

t.test('an interval inserted into an mm without users that something keeps is taken (5.8)', async (t) => {
  const m = new NotifierMachine('5.8');
  m.interval('I0', 0, 4);
  m.run({ op: 'exit', task: 'T' });
  t.equal(m.interval('I1', 0, 4).ret, 0);
  t.same([m.subs.intervals, m.mm.count], [['I0', 'I1'], 2]);
});

each(ALL, 'an mm that nobody keeps is gone with its last user', (t, m) => {
  m.run({ op: 'exit', task: 'T' });
  const handler = scripted(OBEDIENT);
  t.equal(m.run({ op: 'register_mmu_notifier', mm: MM, callbacks: START_END, handler }).errno, 'NOT_FOUND');
  t.equal(
    m.run({ op: 'invalidate', mm: MM, start: at(0), end: at(0) + bytes(1), event: 'CLEAR', blockable: true }).errno,
    'NOT_FOUND',
  );
});
