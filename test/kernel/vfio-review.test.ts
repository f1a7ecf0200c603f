// Corners of VFIO type1 pinning: the top of the space, calls that wait, refused shortcuts, the ledger, closed ids. Profile 5.15 if none is named.

import t from 'tap';
import type { Command, NotifierSpec } from '../../src/kernel/command.ts';
import { execute } from '../../src/kernel/execute.ts';
import { MAX_CONTAINERS, MAX_DIRTY_BITMAPS, MAX_PARKED_OPERATIONS, MAX_SHOWN_LEAKS } from '../../src/kernel/limits.ts';
import type { Fields, Outcome } from '../../src/kernel/outcome.ts';
import type { Iommu } from '../../src/kernel/vfio/iommu.ts';
import { blocksOf } from '../../src/kernel/vfio/notifier-chain.ts';
import { leaks } from '../../src/kernel/view/host.ts';
import { viewGroup } from '../../src/kernel/view/vfio.ts';
import { H, Machine, PAGE, R, RW, setup, V } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const TOP = 2n ** 64n - PAGE;
const ALL = { flags: 2, task: null };
const VADDR = 4;

const spec = (id: string, events = 1): NotifierSpec => ({
  id,
  events,
  type: 0,
  priority: 0,
  delivery: { kind: 'poll' },
});
const register = (m: Machine, id: string, notification: string | null = null): Outcome =>
  m.run({ op: 'register_notifier', device: 'D1', notifier: spec(id) }, notification);
const unregister = (m: Machine, id: string): Outcome =>
  m.run({ op: 'unregister_notifier', device: 'D1', notifier: id, type: null });
const shortcut = (m: Machine, device: string, notifier: NotifierSpec | null): Outcome =>
  m.run({ op: 'put_device_in_container', device, container: 'C', notifier });
const chain = (m: Machine): string[] => blocksOf((m.host.vfio.containers.get('C') as { iommu: Iommu }).iommu.notifier);
const leakOf = (m: Machine, iova: bigint): Fields | undefined =>
  (leaks(m.host).items as Fields[]).find((item) => item.iova === iova);

/** Setup S with a pinned mapping whose unmap waits for L1's answer. */
function parkedUnmap(): { m: Machine; notification: string; operation: string } {
  const m = setup();
  m.map(0x10000n, PAGE);
  m.pin([0x10000n]);
  m.handlers.delete('L1');
  const { emitted, parked } = m.start(m.unmapCommand(0x10000n, PAGE));
  return { m, notification: emitted[0] as string, operation: parked as string };
}

/** Setup S with a pin that sleeps because the vaddr of its mapping is invalid. */
function sleepingPin(): { m: Machine; operation: string } {
  const m = setup();
  m.map(0x10000n, PAGE);
  m.unmap(0x10000n, PAGE, { flags: VADDR });
  return { m, operation: m.pin([0x10000n]).parked as string };
}

const endOf = (m: Machine, operation: string): Outcome | null | undefined => m.host.operations.get(operation)?.outcome;

t.test('the top of the 64-bit space', async (t) => {
  t.test('a mapping that ends at 2^64 has its place by iova, so that ALL takes it too', async (t) => {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.map(TOP, PAGE);
    t.same(m.mappings(), [
      [0x10000n, PAGE],
      [TOP, PAGE],
    ]);
    t.equal(m.unmap(0n, 0n, ALL).fields.size, 2n * PAGE);
    t.same(m.mappings(), []);
  });
  t.test('ALL removes nothing when it is the root, and the size of the sum wraps at 2^64', async (t) => {
    const m = setup();
    m.map(TOP, PAGE);
    m.map(0x10000n, PAGE);
    t.equal(m.unmap(0n, 0n, ALL).fields.size, 0n);
    const many = setup();
    for (let i = 0n; i < 7n; i++) many.map(i * PAGE, PAGE);
    for (let i = 0; i < 3; i++) t.equal(many.map(0x10000n, 2n ** 64n - 0x10000n, RW, { vaddr: 0n }).ret, 0);
    t.equal(many.unmap(0n, 0n, ALL).fields.size, BigInt.asUintN(64, 7n * PAGE - 3n * 0x10000n));
  });
  t.test('it overlaps pinned mappings without a violation', async (t) => {
    const m = setup();
    m.map(TOP - PAGE, PAGE);
    t.equal(m.pin([TOP - PAGE]).ret, 1);
    t.equal(m.map(TOP - PAGE, 2n * PAGE).ret, 0);
    t.equal(m.unpin([TOP - PAGE]).ret, 1);
  });
});

t.test('calls that wait', async (t) => {
  t.test(
    'a sleeping pin is a user of its group: UNSET_CONTAINER is EBUSY, closing everything waits for it',
    async (t) => {
      const { m, operation } = sleepingPin();
      m.run({ op: 'close_device', device: 'D1' });
      t.equal(errno(m.run({ op: 'unset_container', group: 'G1' })), 'EBUSY');
      t.equal(m.run({ op: 'close_group', group: 'G1' }).ret, 0);
      t.equal(viewGroup(m.host, 'G1').container, 'C', 'the binding lives');
      m.run({ op: 'close_container', container: 'C' });
      t.equal(endOf(m, operation)?.refusal?.errno, 'EFAULT');
      t.equal(viewGroup(m.host, 'G1').container, null, 'and goes when the pin returns');
      t.equal(m.dmesg('BUG').length, 0);
    },
  );
  t.test('so is a registration that waits; the unmap that held it up loses the iommu object', async (t) => {
    const { m, notification, operation } = parkedUnmap();
    t.equal(register(m, 'L2').parked !== undefined, true);
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(errno(m.run({ op: 'unset_container', group: 'G1' })), 'EBUSY');
    m.run({ op: 'close_group', group: 'G1' });
    m.ack(notification, 'D1');
    t.equal(endOf(m, operation)?.refusal?.errno, 'EIO');
    t.match(m.dmesg('BUG')[0]?.text, 'use-after-free');
  });
  t.test(
    'a pin sleeps on when a mapping with a valid vaddr goes, and is EINVAL at that entry when it wakes',
    async (t) => {
      const m = setup();
      m.map(0x10000n, PAGE);
      m.map(0x20000n, PAGE);
      m.unmap(0x20000n, PAGE, { flags: VADDR });
      const { parked } = m.pin([0x10000n, 0x20000n]);
      m.unmap(0x10000n, PAGE);
      t.equal(m.host.operations.get(parked as string)?.state, 'blocked');
      m.unmap(0x20000n, PAGE);
      t.match(endOf(m, parked as string)?.refusal, { errno: 'EINVAL', at_index: 0, left: { phys_pfn: [0, 0] } });
    },
  );
  t.test('the ledger names the call that pinned, not the one that woke it', async (t) => {
    const { m, operation } = sleepingPin();
    m.map(0x10000n, PAGE, VADDR);
    t.equal(endOf(m, operation)?.ret, 1);
    const { seq, request_id } = m.host.operations.get(operation) ?? {};
    t.match(leakOf(m, 0x10000n), { first_pin: { seq, request_id }, last_pin: { seq, request_id } });
  });
  t.test('a container that dies gives them what the kernel had filled in', async (t) => {
    const { m } = parkedUnmap();
    const waiting = register(m, 'L2').parked as string;
    for (let n = 1; m.host.vfio.notifications.size > 0; n++)
      m.run({ op: 'notification_timeout', notification: `notification-${n}` });
    m.map(0x20000n, PAGE);
    t.match(endOf(m, waiting), { ret: 0, fields: { id: 'L2', events_left: 0 } }, 'granted between two tries');
    const dying = parkedUnmap();
    dying.m.map(0x20000n, PAGE);
    dying.m.unmap(0x20000n, PAGE, { flags: VADDR });
    const pin = dying.m.pin([0x20000n]).parked as string;
    for (let n = 1; n <= 11; n++) dying.m.run({ op: 'notification_timeout', notification: `notification-${n}` });
    t.match(endOf(dying.m, pin)?.refusal, { errno: 'EIO', left: { phys_pfn: [0] } });
    t.equal(viewGroup(dying.m.host, 'G1').container_users, 2, 'the binding and the open device');
    t.equal(errno(dying.m.ack('notification-11', 'D1')), 'EIO', 'a late answer, on a device of a dead container');
  });
  t.test('no more than MAX_PARKED_OPERATIONS of any kind', async (t) => {
    const { m, notification } = parkedUnmap();
    m.map(0x20000n, PAGE);
    m.map(0x30000n, 2n * PAGE);
    m.map(0x40000n, PAGE);
    m.pin([0x30000n]);
    m.unmap(0x20000n, PAGE, { flags: VADDR });
    for (let i = 1; i < MAX_PARKED_OPERATIONS; i++) if (m.pin([0x20000n]).parked === undefined) t.fail(`pin ${i}`);
    t.equal(errno(m.pin([0x20000n])), 'EBUSY');
    t.equal(errno(register(m, 'L2')), 'EBUSY');
    t.equal(m.host.vfio.notifiers.has('L2'), false, 'a refused block is not made');
    t.equal(errno(m.unmap(0x30000n, 0x11000n)), 'EBUSY');
    t.equal(m.unmap(0x40000n, PAGE).fields.size, PAGE, 'what need not wait goes on');
    m.unpin([0x10000n]);
    m.ack(notification, 'D1');
    t.equal(register(m, 'L2').ret, 0);
  });
  t.test('a thousand walks that one answer lets go on take no depth of the stack', async (t) => {
    const { m, notification } = parkedUnmap();
    m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
    m.check = () => undefined;
    const iovaOf = (i: number): bigint => 0x100000n + BigInt(i) * PAGE;
    const walks = MAX_PARKED_OPERATIONS - 3;
    for (let i = 0; i < walks; i++) m.map(iovaOf(i), PAGE, RW, { vaddr: V + BigInt(i) * PAGE });
    for (let i = 0; i < walks; i++) m.pin([iovaOf(i)]);
    m.listen('D1', 'B', { kind: 'builtin', behavior: 'unpin_all', n: 1, delay_ms: 0 });
    unregister(m, 'L1');
    for (let i = 0; i < walks; i++) m.unmap(iovaOf(i), PAGE);
    m.unpin([0x10000n]);
    const deep = (n: number): Outcome => (n === 0 ? m.ack(notification, 'D1') : deep(n - 1));
    t.equal(deep(4000).finished.length, walks + 3);
    t.same(m.mappings(), []);
  });
  t.test('repin does not sleep in its callback', async (t) => {
    const m = setup();
    unregister(m, 'L1');
    m.listen('D1', 'B', { kind: 'builtin', behavior: 'repin', n: 1, delay_ms: 0 });
    m.map(0x10000n, PAGE);
    m.map(0x11000n, PAGE, RW, { vaddr: V + PAGE });
    m.pin([0x10000n, 0x11000n]);
    m.unmap(0x10000n, 2n * PAGE, { flags: VADDR });
    const { fields, finished } = m.unmap(0x10000n, 2n * PAGE);
    t.same(fields, { size: 2n * PAGE, notifications: 2 });
    t.equal(finished.length, 1, 'the unmap alone was an operation');
  });
});

t.test('registrations', async (t) => {
  t.test('a second one with another priority is still the same block', async (t) => {
    const m = setup();
    m.listen('D1', 'A', { kind: 'poll' }, 3);
    t.equal(m.listen('D1', 'L1', { kind: 'poll' }, 5).ret, 0);
    t.same(chain(m), ['A', 'L1']);
    t.equal(m.dmesg('WARN').length, 1);
  });
  t.test('one that would deadlock makes no block', async (t) => {
    const { m, notification } = parkedUnmap();
    t.equal(errno(register(m, 'L2', notification)), 'EDEADLK');
    t.equal(errno(unregister(m, 'L2')), 'NOT_FOUND');
  });
});

t.test('a refused shortcut leaves nothing', async (t) => {
  t.test('no iommu object where it set one', async (t) => {
    const m = new Machine();
    m.run({ op: 'put_container', container: 'C' });
    m.group('G', 'C');
    t.equal(errno(shortcut(m, 'D', spec('N', 0))), 'EINVAL');
    t.equal(m.host.vfio.containers.get('C')?.iommu, null);
    t.equal(shortcut(m, 'D', spec('N')).created, true);
  });
  t.test('no notifier where the group fd is closed', async (t) => {
    const m = setup();
    m.group('D9', 'C');
    m.device('X', 'D9');
    m.run({ op: 'close_group', group: 'D9' });
    t.equal(errno(shortcut(m, 'D9', spec('N9'))), 'EBADF');
    t.same([chain(m), m.host.vfio.devices.has('D9')], [['L1'], false]);
  });
});

t.test('leaks: notified is for the announced mapping, not for its neighbour', async (t) => {
  const m = setup();
  m.map(0x10000n, PAGE);
  m.map(0x11000n, PAGE, RW, { vaddr: V + PAGE });
  m.pin([0x10000n, 0x11000n]);
  m.handlers.delete('L1');
  m.start(m.unmapCommand(0x10000n, PAGE));
  t.same([leakOf(m, 0x10000n)?.notified, leakOf(m, 0x11000n)?.notified], [true, false]);
  t.equal(m.page(H + 1).pins, 1);
});

t.test('a closed container id answers EBADF until it is used again', async (t) => {
  const m = new Machine();
  m.task('T');
  const put = (container: string): Outcome => m.run({ op: 'put_container', container });
  const close = (container: string): Outcome => m.run({ op: 'close_container', container });
  put('C');
  close('C');
  t.equal(errno(m.map(0x1000n, PAGE)), 'EBADF');
  t.equal(errno(close('C')), 'EBADF');
  t.equal(put('C').created, true);
  t.equal(put('C').created, false);
  for (let i = 1; i < MAX_CONTAINERS; i++) put(`C${i}`);
  t.equal(errno(put('one-more')), 'ENOSPC');
  close('C');
  t.equal(put('one-more').created, true, 'the id of one that is gone makes room');
  t.equal(errno(close('C')), 'NOT_FOUND');
});

t.test('calls that wait, of every kind and era', async (t) => {
  const read = (m: Machine): Outcome =>
    m.run({ op: 'dma_rw', device: 'D1', iova: 0x10000n, length: 0x2000, write: false, data: null, task: null });
  function sleepingRead(): { m: Machine; operation: string } {
    const m = setup();
    m.map(0x10000n, PAGE);
    m.map(0x11000n, PAGE);
    m.unmap(0x11000n, PAGE, { flags: VADDR });
    return { m, operation: read(m).parked as string };
  }
  const half = Buffer.alloc(0x1000).toString('base64');

  t.test('a sleeping dma_rw is a user of its group, and gives what it has read when it ends', async (t) => {
    const { m, operation } = sleepingRead();
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(errno(m.run({ op: 'unset_container', group: 'G1' })), 'EBUSY');
    m.run({ op: 'close_group', group: 'G1' });
    t.equal(viewGroup(m.host, 'G1').container, 'C', 'the binding lives');
    m.run({ op: 'close_container', container: 'C' });
    t.match(endOf(m, operation)?.refusal, { errno: 'EFAULT', left: { data: half } });
    t.equal(viewGroup(m.host, 'G1').container, null, 'and goes when the access returns');
    t.equal(m.dmesg('BUG').length, 0);
  });
  t.test('a fatal signal ends it or a pin, and drops its user', async (t) => {
    const { m, operation } = sleepingRead();
    const pin = m.pin([0x11000n]).parked as string;
    t.equal(viewGroup(m.host, 'G1').container_users, 4, 'the binding, the open device, two calls');
    t.equal(m.run({ op: 'kill_operation', operation }).ret, 0);
    t.match(endOf(m, operation)?.refusal, { errno: 'EFAULT', left: { data: half } });
    t.equal(m.run({ op: 'kill_operation', operation: pin }).ret, 0);
    t.match(endOf(m, pin)?.refusal, { errno: 'EFAULT', left: { phys_pfn: [0] } });
    t.equal(viewGroup(m.host, 'G1').container_users, 2);
    t.equal(m.run({ op: 'close_device', device: 'D1' }).ret, 0);
    t.equal(m.run({ op: 'unset_container', group: 'G1' }).ret, 0);
  });
  t.test('a container that dies ends a dma_rw and an attach; their users go once', async (t) => {
    const { m, operation } = sleepingRead();
    m.map(0x20000n, PAGE);
    m.map(0x30000n, PAGE);
    m.pin([0x30000n]);
    t.equal(m.iommuGroup('I1').parked !== undefined, true, 'the attach sleeps');
    m.handlers.delete('L1');
    m.start(m.unmapCommand(0x30000n, PAGE));
    for (let n = 1; n <= 11; n++) m.run({ op: 'notification_timeout', notification: `notification-${n}` });
    t.match(endOf(m, operation)?.refusal, { errno: 'EIO', left: { data: half } });
    t.equal([...m.host.operations.values()].filter(({ state }) => state !== 'done').length, 0);
    t.equal(viewGroup(m.host, 'G1').container_users, 2);
    t.equal(viewGroup(m.host, 'I1').container_users, 0);
  });
  t.test('MAX_PARKED_OPERATIONS is EBUSY for a dma_rw and an attach too', async (t) => {
    const { m } = sleepingRead();
    for (let i = 1; i < MAX_PARKED_OPERATIONS; i++) m.pin([0x11000n]);
    t.equal(errno(read(m)), 'EBUSY');
    t.equal(errno(m.iommuGroup('I1')), 'EBUSY');
    t.equal(viewGroup(m.host, 'G1').container_users, 2 + MAX_PARKED_OPERATIONS);
  });
  t.test('4.10: a registration that waits closes the chain to a loop and dies of it, its user once', async (t) => {
    const m = setup({ profile: '4.10' });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.handlers.delete('L1');
    const { parked, emitted } = m.start(m.unmapCommand(0x10000n, PAGE));
    const twice = register(m, 'L1').parked as string;
    const third = register(m, 'L0').parked as string;
    m.unpin([0x10000n]);
    m.ack(emitted[0] as string, 'D1');
    t.equal(endOf(m, twice)?.ret, 0, 'linked again: the block is its own successor');
    t.equal(endOf(m, third)?.refusal?.errno, 'EIO', 'the next one never comes to the end');
    t.equal(endOf(m, parked as string)?.refusal?.errno, 'EIO');
    t.equal(m.dmesg('BUG').filter(({ text }) => text.includes('soft-lockup')).length, 1);
    t.equal(viewGroup(m.host, 'G1').container_users, 2, 'the binding and the open device');
  });
  t.test('4.10: a walk over a loop kills the container once its handler has returned', async (t) => {
    const m = setup({ profile: '4.10' });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.handlers.delete('L1');
    const { parked, emitted } = m.start(m.unmapCommand(0x10000n, PAGE));
    const twice = register(m, 'L1').parked as string;
    const other = m.start(m.unmapCommand(0x10000n, PAGE)).parked as string;
    m.ack(emitted[0] as string, 'D1');
    t.equal(endOf(m, twice)?.ret, 0);
    t.equal(
      m.host.operations.get(other)?.blocked_on,
      'notification:notification-2',
      'it got the lock after the writer',
    );
    t.equal(m.host.operations.get(parked as string)?.state, 'blocked');
    m.run({ op: 'notification_timeout', notification: 'notification-2' });
    for (const id of [other, parked as string]) t.equal(endOf(m, id)?.refusal?.errno, 'EIO', id);
    t.equal(m.dmesg('BUG').filter(({ text }) => text.includes('soft-lockup')).length, 1);
    t.equal(viewGroup(m.host, 'G1').container_users, 2);
  });
});

t.test('leaks: every reference is counted, and no more ranges are shown than MAX_SHOWN_LEAKS', async (t) => {
  const m = setup();
  m.run({ op: 'patch_task', task: 'T', rlimit_memlock: 'unlimited' });
  m.map(0n, BigInt(2 * MAX_SHOWN_LEAKS + 2) * PAGE, RW, { vaddr: 0x20000000n });
  const length = BigInt(2 * MAX_SHOWN_LEAKS + 2) * PAGE;
  const backing = { kind: 'anon' as const };
  m.run({ op: 'mmap', task: 'T', addr: 0x20000000n, length, prot: RW, backing, noreplace: false });
  const every = Array.from({ length: MAX_SHOWN_LEAKS + 1 }, (_, i) => 2 * i);
  for (let i = 0; i < every.length; i += 512) {
    const user_pfn = every.slice(i, i + 512);
    execute(m.host, m.call({ op: 'pin_pages', device: 'D1', user_pfn, npage: user_pfn.length, prot: R }));
  }
  const report = leaks(m.host);
  t.match(report, { references: MAX_SHOWN_LEAKS + 1, truncated: true });
  t.equal((report.items as unknown[]).length, MAX_SHOWN_LEAKS);
  m.unpin([0n]);
  t.equal(leaks(m.host).truncated, undefined);
  m.check();
});

t.test('found by the naive model', async (t) => {
  for (const profile of ['4.10', '5.4', '5.8'])
    t.test(
      `[${profile}] unmap_dma: EDEADLK where the walk that would wait is found from the root of the tree`,
      async (t) => {
        const m = setup({ profile });
        m.handlers.delete('L1');
        // A mapping that ends at 2^64 as the root hides lower ones from a search by iova, and not from one by the tree.
        for (const iova of [TOP, 0x10000n]) m.map(iova, PAGE);
        m.pin([0x10000n]);
        const { emitted } = m.start(m.unmapCommand(0x10000n, PAGE));
        t.equal(typeof register(m, 'L2').parked, 'string', 'a writer waits for the walk');
        const nested = m.start(m.unmapCommand(0x10000n, PAGE, { task: 'T' }), emitted[0] as string);
        t.equal(errno(nested), 'EDEADLK');
      },
    );
  for (const profile of ['4.10', '5.4', '5.8'])
    t.test(`[${profile}] unmap_dma: EDEADLK although a mapping of another mm comes first by iova`, async (t) => {
      const m = setup({ profile });
      m.handlers.delete('L1');
      m.task('B');
      for (const [iova, task] of [
        [0x11000n, 'T'],
        [0x10000n, 'B'],
        [0x12000n, 'T'],
      ] as const)
        m.map(iova, PAGE, RW, { task });
      m.pin([0x11000n]);
      const { emitted } = m.start(m.unmapCommand(0x11000n, PAGE));
      t.equal(typeof register(m, 'L2').parked, 'string', 'a writer waits for the walk');
      const nested = m.start(m.unmapCommand(0x10000n, 3n * PAGE, { task: 'T' }), emitted[0] as string);
      t.equal(errno(nested), 'EDEADLK', 'the root is met first');
    });
  for (const profile of ['5.8', '5.15'])
    t.test(
      `[${profile}] dirty_pages: a mapping that ends at 2^64 may be longer than the bitmap of a range in it`,
      async (t) => {
        const m = setup({ profile });
        m.map(2n ** 64n - 70n * PAGE, 70n * PAGE);
        m.run({ op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null });
        const range = { iova: 2n ** 64n - 70n * PAGE, size: PAGE, pgsize: PAGE, bitmap_size: 8n };
        const { fields } = m.run({ op: 'dirty_pages', container: 'C', flags: 4, argsz: null, range, task: null });
        t.equal(fields.bitmap, Buffer.alloc(8).toString('base64'));
      },
    );
  for (const profile of ['5.8', '5.15', '6.18'])
    t.test(
      `[${profile}] unmap_dma: EIO, a BUG, when the dirty log is stopped while the unmap that reports it waits`,
      async (t) => {
        const m = setup({ profile });
        m.handlers.delete('L1');
        m.map(0x10000n, PAGE);
        m.pin([0x10000n]);
        const log = (flags: number): Outcome =>
          m.run({ op: 'dirty_pages', container: 'C', flags, argsz: null, range: null, task: null });
        log(1);
        const bitmap = { pgsize: PAGE, size: 8n };
        const command = { ...m.unmapCommand(0x10000n, PAGE, { flags: 1 }), bitmap } as Command;
        const { emitted, parked } = m.start(command);
        log(2);
        m.unpin([0x10000n]);
        m.ack(emitted[0] as string, 'D1');
        t.match(endOf(m, parked as string), { ret: -5, refusal: { errno: 'EIO', left: { notifications: 1 } } });
        t.match(m.dmesg('BUG')[0]?.text, 'NULL pointer dereference: the dirty bitmap of [0x10000, 0x11000) is gone');
      },
    );
  for (const profile of ['4.10', '5.4', '5.8', '5.15', '6.18'])
    t.test(`[${profile}] map_dma: ENOMEM of a wrapped locked_vm for an IOMMU, however large the limit`, async (t) => {
      const m = setup({ profile });
      m.task('B', 'unlimited');
      m.pages('B', V, [[5000, 2]]);
      m.run({ op: 'adjust_locked_vm', task: 'B', delta: -2 });
      m.iommuGroup('H');
      t.equal(errno(m.map(0x10000n, 2n * PAGE, RW, { task: 'B' })), 'ENOMEM');
      t.equal(m.lv('B'), -2);
    });
});

t.test('a dirty log of many mappings', async (t) => {
  const start: Command = { op: 'dirty_pages', container: 'C', flags: 1, argsz: null, range: null, task: null };

  t.test('START counts the bytes that the host has once, not once a mapping', async (t) => {
    const m = setup();
    for (let i = 0n; i < 50n; i++) m.map(0x10000n + i * PAGE, PAGE);
    const { records } = m.host.vfio.dmas;
    let counted = 0;
    const each = records[Symbol.iterator].bind(records);
    records[Symbol.iterator] = () => {
      counted++;
      return each();
    };
    t.equal(execute(m.host, m.call(start)).ret, 0);
    t.equal(counted, 1);
  });

  t.test('ENOMEM: together they are more than MAX_DIRTY_BITMAPS bytes, and none has a bitmap', async (t) => {
    const m = setup();
    const half = (BigInt(MAX_DIRTY_BITMAPS) / 2n) * 8n * PAGE;
    m.map(0n, half);
    m.map(half, half);
    t.equal(errno(m.run(start)), 'ENOMEM');
    t.equal(m.run(m.unmapCommand(half, half)).ret, 0);
    t.equal(m.run(start).ret, 0);
    t.equal(errno(m.map(half, half)), 'ENOMEM');
    t.equal(m.map(half, PAGE).ret, 0);
  });
});
