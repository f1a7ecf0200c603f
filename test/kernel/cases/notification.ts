// Cases 84 to 102: the retry protocol of an unmap of pinned mappings, and the registration of listeners.

import type { Test } from 'tap';
import { H, type Machine, PAGE, RW, setup, unpinAll, V } from '../machine.ts';
import { ALL, EARLY, errno, NEW, numbered, OLD, secondDevice, unregister, warnings } from './numbered.ts';

const A: [bigint, bigint] = [0x10000n, 0x2000n];
const B: [bigint, bigint] = [0x12000n, 0x2000n];

/** Setup S with mapping A, whose first page is pinned. */
function pinnedA(profile: string): Machine {
  const m = setup({ profile });
  m.map(...A);
  m.pin([0x10000n]);
  return m;
}

const calledWith = (m: Machine): unknown => m.calls.map(({ iova, size, attempt }) => [iova, size, attempt]);
const listeners = (m: Machine): string[] => m.calls.map(({ notifier }) => notifier);

async function protocol(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '84 unmap_dma: one call with the range of the mapping, then the mapping goes',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.pin([0x11000n]);
      t.match(m.unmap(0x10000n, 0x4000n), { ret: 0, fields: { size: 0x4000n, notifications: 1 } });
      t.same(calledWith(m), [[0x10000n, 0x4000n, 1]]);
      t.same([m.mappings(), m.lv(), m.page(H + 1).pins], [[], 0, 0]);
    },
  );
  await numbered(
    t,
    ALL,
    '84 unmap_dma: a built-in listener answers within the command, whose operation is then done',
    (t, profile) => {
      const m = setup({ profile });
      unregister(m);
      m.listen('D1', 'builtin', { kind: 'builtin', behavior: 'unpin_all', n: 3, delay_ms: 10 });
      m.map(0x10000n, 0x4000n);
      m.pin([0x11000n, 0x12000n]);
      m.pin([0x11000n]);
      const outcome = m.start(m.unmapCommand(0x10000n, 0x4000n));
      t.match(outcome, { ret: 0, parked: undefined, fields: { size: 0x4000n, notifications: 1 } });
      t.match([...m.host.operations.values()], [{ kind: 'unmap_dma', state: 'done', outcome: { ret: 0 } }]);
    },
  );
  await numbered(t, ALL, '85 unmap_dma: an unpinned mapping in the range is not announced', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    m.map(0x20000n, 0x4000n);
    m.pin([0x11000n]);
    t.equal(m.unmap(0n, 0x100000n).fields.size, 0x8000n);
    t.same(calledWith(m), [[0x10000n, 0x4000n, 1]]);
  });
  await numbered(t, ALL, '86 unmap_dma: two pinned mappings, one call each, ascending from 5.12 on', (t, profile) => {
    const m = setup({ profile });
    m.map(0x20000n, 0x4000n);
    m.map(0x10000n, 0x4000n);
    m.pin([0x20000n]);
    m.pin([0x10000n]);
    t.equal(m.unmap(0n, 0x100000n).fields.size, 0x8000n);
    const [low, high] = [
      [0x10000n, 0x4000n, 1],
      [0x20000n, 0x4000n, 1],
    ];
    t.same(calledWith(m), EARLY.includes(profile) ? [high, low] : [low, high], 'the root first in old kernels');
  });
  await numbered(
    t,
    ALL,
    '88 unmap_dma: unpinning at the 11th call succeeds, never is 11 calls and a BUG',
    (t, profile) => {
      const m = setup({ profile });
      m.handlers.set('L1', (machine, notification) =>
        notification.attempt === 11 ? unpinAll()(machine, notification) : 1,
      );
      m.map(...A);
      m.pin([0x10000n]);
      t.match(m.unmap(...A), { ret: 0, fields: { size: 0x2000n, notifications: 11 } });
      m.handlers.set('L1', () => 1);
      m.map(...A);
      m.pin([0x10000n]);
      const before = m.calls.length;
      const outcome = m.unmap(...A);
      t.same([errno(outcome), outcome.refusal?.left?.notifications], ['EIO', 11]);
      t.equal(m.calls.length - before, 11);
      t.same(m.mappings(), [A], 'the mapping still exists');
      t.match(m.dmesg('BUG'), [{ where: 'vfio_dma_do_unmap' }]);
      t.equal(errno(m.pin([0x10000n])), 'EIO', 'the container is dead');
      t.equal(errno(m.run({ op: 'close_device', device: 'D1' })), 'EIO');
    },
  );
  await numbered(t, ALL, '89 unmap_dma: pins without a listener are a BUG after no call', (t, profile) => {
    const m = pinnedA(profile);
    unregister(m);
    const outcome = m.unmap(...A);
    t.same([errno(outcome), outcome.refusal?.left?.notifications, m.calls.length], ['EIO', 0, 0]);
    t.equal(m.dmesg('BUG').length, 1);
  });
  await numbered(t, ALL, '90 unmap_dma: one reference a call, two calls, success', (t, profile) => {
    const m = pinnedA(profile);
    m.pin([0x10000n]);
    m.handlers.set('L1', (machine, { id }) => {
      machine.unpin([0x10000n], { notification: id });
      return 1;
    });
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 2 } });
  });
  await numbered(
    t,
    OLD,
    '92 unmap_dma: a stop value ends the walk, so the owner is never told: BUG after 11',
    (t, profile) => {
      const m = pinnedA(profile);
      m.listen('D1', 'high', { kind: 'poll' }, 10);
      m.handlers.set('high', () => 0x8001);
      t.equal(errno(m.unmap(...A)), 'EIO');
      t.same(listeners(m), Array(11).fill('high'));
    },
  );
  await numbered(
    t,
    NEW,
    '92 unmap_dma: a callback has no result: the next device is told all the same, the one opened last first',
    (t, profile) => {
      const m = pinnedA(profile);
      secondDevice(m);
      m.handlers.set('L2', () => 0x8001);
      t.same(m.unmap(...A).fields.size, A[1]);
      t.same(listeners(m), ['L2', 'L1']);
    },
  );
  await numbered(t, ALL, '93 unmap_dma: a callback may unpin outside the announced range', (t, profile) => {
    const m = pinnedA(profile);
    m.map(0x40000n, PAGE);
    m.pin([0x40000n]);
    m.handlers.set('L1', (machine, { id }) => {
      for (const iova of [0x10000n, 0x40000n]) machine.unpin([iova], { notification: id });
      return 1;
    });
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 1 } });
    t.same(m.records(0x40000n), []);
  });
  await numbered(t, ALL, '94 unmap_dma: a callback that pins again has failed its try', (t, profile) => {
    const m = pinnedA(profile);
    m.handlers.set('L1', (machine, notification) => {
      machine.unpin([0x10000n], { notification: notification.id });
      if (notification.attempt === 1) machine.pin([0x10000n], { notification: notification.id });
      return 1;
    });
    t.match(m.unmap(...A), { ret: 0, fields: { notifications: 2 } });
  });
}

async function whileCallbacksRun(t: Test): Promise<void> {
  await numbered(
    t,
    OLD,
    '96 unregister_notifier: inside its own callback is a deadlock, reported as EDEADLK',
    (t, profile) => {
      const m = pinnedA(profile);
      const refused: unknown[] = [];
      m.handlers.set('L1', (machine, notification) => {
        const command = { op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null } as const;
        refused.push(errno(machine.run(command, notification.id)));
        return unpinAll()(machine, notification);
      });
      t.equal(m.unmap(...A).ret, 0);
      t.same([refused, m.dmesg('DEADLOCK').length], [['EDEADLK'], 1]);
      t.same(m.host.vfio.containers.get('C')?.iommu?.notifier.head, 'L1', 'it was not executed');
    },
  );
  await numbered(
    t,
    NEW,
    '96 close_device: inside the own callback it deadlocks, and is refused unexecuted',
    (t, profile) => {
      const m = pinnedA(profile);
      const refused: unknown[] = [];
      m.handlers.set('L1', (machine, notification) => {
        refused.push(errno(machine.run({ op: 'close_device', device: 'D1' }, notification.id)));
        return unpinAll()(machine, notification);
      });
      t.same(m.unmap(...A).fields.size, A[1]);
      t.same([refused, m.dmesg('DEADLOCK').length], [['EDEADLK'], 1]);
    },
  );
  await numbered(
    t,
    OLD,
    '97 unmap_dma: another thread removes the mapping during the callback: the outer call finds nothing',
    (t, profile) => {
      const m = pinnedA(profile);
      m.handlers.delete('L1');
      const outer = m.start(m.unmapCommand(...A));
      const inner = m.start(m.unmapCommand(...A));
      m.unpin([0x10000n]);
      m.ack('notification-2', 'D1');
      t.match(m.host.operations.get(inner.parked ?? '')?.outcome, { ret: 0, fields: { size: 0x2000n } });
      m.ack('notification-1', 'D1');
      t.match(m.host.operations.get(outer.parked ?? '')?.outcome, { ret: 0, fields: { size: 0n } });
    },
  );
  await numbered(
    t,
    NEW,
    '97 unmap_dma: a second unmap of a pinned mapping during a callback is EDEADLK, of an unpinned one works',
    (t, profile) => {
      const m = pinnedA(profile);
      m.map(0x20000n, PAGE);
      const seen: unknown[] = [];
      m.handlers.set('L1', (machine, notification) => {
        seen.push(errno(machine.unmap(...A)), machine.unmap(0x20000n, PAGE).fields.size);
        return unpinAll()(machine, notification);
      });
      t.same(m.unmap(...A).fields.size, A[1]);
      t.same(seen, ['EDEADLK', PAGE]);
      t.equal(m.dmesg('DEADLOCK').length, 1);
    },
  );
  await numbered(
    t,
    ALL,
    '98 unmap_dma: a mapping that straddles the end on a restart: EINVAL in old kernels, else what was removed',
    (t, profile) => {
      const m = setup({ profile });
      m.map(...A);
      m.map(...B);
      m.pin([0x12000n]);
      m.handlers.set('L1', (machine, { id }) => {
        machine.unpin([0x12000n], { notification: id });
        machine.run(machine.unmapCommand(...B), id);
        const mapping = { iova: 0x13000n, vaddr: V, size: 0x2000n, flags: RW, argsz: 32 };
        machine.run({ op: 'map_dma', container: 'C', task: 'T', ...mapping }, id);
        return 1;
      });
      const outcome = m.unmap(0x10000n, 0x4000n);
      if (EARLY.includes(profile)) t.equal(errno(outcome), 'EINVAL');
      else t.match(outcome, { ret: 0, fields: { size: 0x2000n } });
      t.same(m.mappings(), [[0x13000n, 0x2000n]], 'earlier removals stay');
    },
  );
}

async function registration(t: Test): Promise<void> {
  await numbered(t, OLD, '100 unregister_notifier: twice is ENOENT', (t, profile) => {
    const m = setup({ profile });
    t.equal(unregister(m).ret, 0);
    t.equal(errno(unregister(m)), 'ENOENT');
  });
  await numbered(t, OLD, '100 register_notifier: a block twice: a WARN, or a chain that never ends', (t, profile) => {
    const m = setup({ profile });
    t.equal(m.listen('D1', 'L1').ret, 0);
    const corrupts = profile === '4.10' || profile === '5.4';
    t.equal(warnings(m, 'listener-registered-twice'), profile === '4.10' ? 0 : 1);
    t.same(m.dmesg('WARN')[0]?.where, profile === '4.10' ? undefined : 'notifier_chain_register');
    m.map(...A);
    m.pin([0x10000n]);
    t.equal(errno(m.unmap(...A)), corrupts ? 'EIO' : undefined);
    t.equal(m.dmesg('BUG').filter(({ text }) => text.includes('soft-lockup')).length, corrupts ? 1 : 0);
  });
  await numbered(
    t,
    ['5.8', '5.15'],
    '100 unregister_notifier: once is enough after two registrations',
    (t, profile) => {
      const m = setup({ profile });
      m.listen('D1', 'L1');
      t.equal(unregister(m).ret, 0);
      t.equal(errno(unregister(m)), 'ENOENT');
    },
  );
  await numbered(
    t,
    ['4.10', '5.4'],
    '100 register_notifier: with the fix double_register the chain stays sound',
    (t, profile) => {
      const m = setup({ profile, fixes: ['double_register'] });
      m.listen('D1', 'L1');
      unregister(m);
      t.equal(errno(unregister(m)), 'ENOENT');
    },
  );
  await numbered(
    t,
    NEW,
    '100 register_notifier: a second dma_unmap op is EEXIST, a priority EOPNOTSUPP',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(errno(m.listen('D1', 'L9')), 'EEXIST');
      m.run({ op: 'put_device', device: 'D2', group: 'G1' });
      t.equal(errno(m.listen('D2', 'L2', { kind: 'poll' }, 5)), 'EOPNOTSUPP');
    },
  );
  await numbered(t, ALL, '101 register_notifier: existing mappings are not replayed', (t, profile) => {
    const m = pinnedA(profile);
    m.handlers.set('L2', () => 1);
    secondDevice(m);
    t.same(m.calls, []);
    m.unmap(...A);
    t.same(listeners(m).toSorted(), ['L1', 'L2'], 'but it is told of their unmap');
  });
  await numbered(t, ALL, '102 unmap_dma: a handler sees the mapping, not the larger request', (t, profile) => {
    const m = pinnedA(profile);
    m.unmap(0n, 1n << 40n);
    t.same(calledWith(m), [[...A, 1]]);
  });
}

export async function notificationProtocol(t: Test): Promise<void> {
  await protocol(t);
  await whileCallbacksRun(t);
  await registration(t);
}
