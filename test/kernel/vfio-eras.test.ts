// What profiles do beyond the numbered cases of VFIO type1: exec, leak reports, the default caller, the oldest kernel's group lock.

import t, { type Test } from 'tap';
import type { Command, NotifierSpec } from '../../src/kernel/command.ts';
import type { Fields, Outcome } from '../../src/kernel/outcome.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { leaks } from '../../src/kernel/view/host.ts';
import { viewTask } from '../../src/kernel/view/tasks.ts';
import { H, type Machine, PAGE, RW, setup, V } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const TOP = 2n ** 64n - PAGE;
const EARLY = ['4.10', '5.4', '5.8'];

async function inProfiles(
  parent: Test,
  profiles: readonly string[],
  title: string,
  run: (t: Test, profile: string) => void,
): Promise<void> {
  for (const profile of profiles) await parent.test(`[${profile}] ${title}`, async (t) => run(t, profile));
}

const exec = (m: Machine, task = 'T'): Outcome => m.run({ op: 'exec', task });

t.test('exec', async (t) => {
  await inProfiles(t, PROFILE_NAMES, 'exec: a new, empty address space; the limit stays', (t, profile) => {
    const m = setup({ profile });
    const before = viewTask(m.host, 'T');
    const outcome = exec(m);
    t.match(outcome, { ret: 0, fields: { id: 'T', pid: before.pid } });
    const after = viewTask(m.host, 'T');
    t.not(after.mm, before.mm);
    t.match(after, { alive: true, locked_vm: 0, VmRSS: 0, rlimit_memlock: 64n * PAGE });
    t.equal(errno(m.run({ op: 'munmap', task: 'T', addr: V, length: PAGE })), undefined);
    t.equal(m.pages('T', V, [[5000, 4]]).ret, 0);
    m.run({ op: 'exit', task: 'T' });
    t.equal(errno(exec(m)), 'ESRCH');
  });
  await inProfiles(
    t,
    PROFILE_NAMES,
    'exec: unpin takes the charge off the new mm, which underflows, up to 6.2',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.pin([0x10000n, 0x11000n]);
      exec(m);
      t.same([m.lv(), m.page(H).pins], [0, 2 - 1], 'the pins survive the old mm');
      m.unpin([0x10000n]);
      t.equal(m.lv(), profile === '6.18' ? 0 : -1);
      t.equal(m.dmesg('WARN').length, ['4.10', '6.18'].includes(profile) ? 0 : 1);
      t.equal(m.page(H).pins, 0);
      t.same(m.unmap(0x10000n, 0x4000n).fields.size, 0x4000n, 'it is the same process');
      t.equal(m.lv(), profile === '6.18' ? 0 : -2);
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    'exec: a new page is pinned in the new mm up to 6.2, later ENODEV',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x2000n);
      exec(m);
      t.equal(errno(m.pin([0x10000n])), profile === '6.18' ? 'ENODEV' : 'EFAULT', 'nothing is mapped there yet');
      m.pages('T', V, [[5000, 2]]);
      const outcome = m.pin([0x10000n]);
      if (profile === '6.18') t.equal(errno(outcome), 'ENODEV');
      else t.same([outcome.fields.phys_pfn, m.lv()], [[5000], 1]);
    },
  );
  await inProfiles(t, PROFILE_NAMES, 'exec: of a leader its threads end', (t, profile) => {
    const m = setup({ profile });
    m.task('T1', 0, false, 'T');
    m.map(0x10000n, PAGE, RW, { task: 'T1' });
    exec(m);
    t.equal(viewTask(m.host, 'T1').alive, false);
    t.equal(
      errno(m.run({ op: 'put_task', task: 'T2', rlimit_memlock: 0n, cap_ipc_lock: false, thread_of: 'T' })),
      undefined,
    );
    const size = m.unmap(0x10000n, PAGE).fields.size;
    t.equal(size, profile === '4.10' ? 0n : PAGE, 'in 4.10 the mapping belongs to the thread, which is gone');
  });
  await inProfiles(
    t,
    PROFILE_NAMES,
    'exec: of another thread the leader ends, and the thread takes its place and pid',
    (t, profile) => {
      const m = setup({ profile });
      m.task('T1', 0, false, 'T');
      m.map(0x10000n, PAGE, RW, { task: 'T' });
      m.map(0x20000n, PAGE, RW, { task: 'T1', vaddr: V + PAGE });
      const { pid } = viewTask(m.host, 'T');
      t.equal(exec(m, 'T1').fields.pid, pid);
      t.match(viewTask(m.host, 'T'), { alive: false, mm: null });
      t.match(viewTask(m.host, 'T1'), { alive: true, pid, thread_of: null, rlimit_memlock: 64n * PAGE });
      const unmap = (iova: bigint): unknown => m.unmap(iova, PAGE, { task: 'T1' }).fields.size;
      t.equal(unmap(0x10000n), profile === '6.18' ? PAGE : 0n, 'the task of the mapping is dead');
      t.equal(unmap(0x20000n), profile === '4.10' || profile === '6.18' ? PAGE : 0n);
      m.pages('T1', V, [[5000, 2]]);
      t.equal(m.map(0x30000n, PAGE, RW, { task: 'T1' }).ret, 0);
      t.same(m.pin([0x30000n]).fields.phys_pfn, [5000]);
      t.equal(m.lv('T1'), 1);
      m.run({ op: 'exit', task: 'T1' });
      t.equal(
        m.run({ op: 'put_task', task: 'T', rlimit_memlock: 64n * PAGE, cap_ipc_lock: false, thread_of: null }).created,
        false,
      );
    },
  );
  await inProfiles(
    t,
    PROFILE_NAMES,
    'exec: an IOMMU-backed mapping stays mapped; its removal uncharges the new mm up to 6.2',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      exec(m);
      t.same([m.lv(), m.page(H).pins], [0, 1]);
      t.equal(m.unmap(0x10000n, 0x4000n).fields.size, 0x4000n);
      t.same([m.lv(), m.page(H).pins], [profile === '6.18' ? 0 : -4, 0]);
    },
  );
});

t.test('fixes', async (t) => {
  await inProfiles(t, ['4.10', '5.15'], 'exec_underflow: exec leaves the charge with the old mm', (t, profile) => {
    const m = setup({ profile, fixes: ['exec_underflow'] });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    exec(m);
    m.unpin([0x10000n]);
    t.same([m.lv(), m.dmesg('WARN')], [0, []]);
  });
  await inProfiles(t, ['5.8'], 'dma_rw_dirty_pages: a write marks every page that it touches', (t, profile) => {
    const m = setup({ profile, fixes: ['dma_rw_dirty_pages'] });
    m.map(0x10000n, 0x2000n);
    const log = { op: 'dirty_pages' as const, container: 'C', argsz: null, task: null };
    m.run({ ...log, flags: 1, range: null });
    const data = Buffer.from([1, 2]).toString('base64');
    m.run({ op: 'dma_rw', device: 'D1', iova: 0x10fffn, length: 2, write: true, data, task: null });
    const range = { iova: 0x10000n, size: 0x2000n, pgsize: PAGE, bitmap_size: 8n };
    const { bitmap } = m.run({ ...log, flags: 4, range }).fields;
    t.equal(Buffer.from(bitmap as string, 'base64')[0], 3);
  });
});

t.test('leaks', async (t) => {
  await inProfiles(t, PROFILE_NAMES, 'leaks: the WARN is the one that the profile raises', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    const quoted = (): unknown[] => (leaks(m.host).items as Fields[]).map(({ state, warn }) => [state, warn]);
    const [[state, warn]] = quoted() as [[string, string]];
    t.equal(state, 'pinned');
    m.run({ op: 'close_device', device: 'D1' });
    m.run({ op: 'unset_container', group: 'G1' });
    const raised = m.dmesg('WARN').find(({ text }) => text.includes('vfio_pfn left'));
    t.equal(raised?.where, EARLY.includes(profile) ? 'vfio_sanity_check_pfn_list' : 'vfio_remove_dma');
    t.match(warn, `WARNING: at ${raised?.where}: `);
    t.ok(raised?.text.includes(warn.slice(warn.indexOf('vfio_pfn left'))), warn);
    t.same(quoted(), [['leaked', warn]]);
    const listeners = m.dmesg('WARN').find(({ text }) => text.includes('listeners-left-at-detach'));
    const where = EARLY.includes(profile) ? 'vfio_sanity_check_pfn_list' : 'vfio_iommu_type1_detach_group';
    t.equal(listeners?.where, profile === '6.18' ? undefined : where);
  });
});

t.test('a mapping that ends at 2^64', async (t) => {
  await inProfiles(
    t,
    EARLY,
    'unmap_dma: the caller is the task of a lower mapping although the top one is the root',
    (t, profile) => {
      const m = setup({ profile });
      m.map(TOP, PAGE);
      m.map(0x10000n, PAGE);
      t.equal(m.unmap(0x10000n, PAGE, { task: null }).fields.size, PAGE);
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      t.match(m.unmap(0x10000n, PAGE, { task: null }).fields, { size: PAGE, notifications: 1 });
    },
  );
});

t.test('the dma_unmap op', async (t) => {
  const spec = (id: string, explicit: { explicit?: true } = {}): NotifierSpec => ({
    id,
    events: 1,
    type: 0,
    priority: 0,
    ...explicit,
    delivery: { kind: 'poll' },
  });
  await inProfiles(t, PROFILE_NAMES, 'register_notifier: type or priority named: EOPNOTSUPP in 6.18', (t, profile) => {
    const m = setup({ profile });
    m.group('G2', 'C');
    m.device('D2', 'G2');
    const register = (notifier: NotifierSpec): Outcome => m.run({ op: 'register_notifier', device: 'D2', notifier });
    const named = register(spec('L2', { explicit: true }));
    t.equal(errno(named), profile === '6.18' ? 'EOPNOTSUPP' : undefined);
    if (profile === '6.18') t.equal(register(spec('L2')).ret, 0);
    const shortcut = (notifier: NotifierSpec): Outcome =>
      m.run({ op: 'put_device_in_container', device: 'D3', container: 'C', notifier });
    const refused = shortcut(spec('L3', { explicit: true }));
    t.equal(errno(refused), profile === '6.18' ? 'EOPNOTSUPP' : undefined);
    shortcut(spec('L3'));
    t.equal(shortcut(spec('L3', { explicit: true })).created, false, 'the same body after defaults');
  });
});

t.test("4.10: the lock of a container's groups", async (t) => {
  /** Setup S of 4.10 with groups G2 and G3 beside it, G2 in the container, and an unmap whose handler has not answered. */
  function parked(fixes: string[] = [], profile = '4.10'): Machine {
    const m = setup({ profile, fixes });
    m.group('G2', 'C');
    m.device('D2', 'G2');
    m.run({ op: 'put_group', group: 'G3', kind: 'mdev' });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.run({ op: 'close_group', group: 'G2' });
    m.handlers.delete('L1');
    m.start(m.unmapCommand(0x10000n, PAGE));
    return m;
  }
  const writers: Command[] = [
    { op: 'set_container', group: 'G3', container: 'C', task: 'T' },
    { op: 'close_device', device: 'D2' },
    { op: 'set_iommu', container: 'C', type: 3, task: 'T' },
  ];
  for (const command of writers)
    await t.test(`[4.10] ${command.op}: while a handler runs it would deadlock: EDEADLK, unexecuted`, async (t) => {
      const m = parked();
      t.equal(errno(m.run(command, 'notification-1')), 'EDEADLK', 'inside the handler');
      t.equal(errno(m.run(command)), 'EDEADLK', "beside it: the handler's unpin would wait behind it");
      t.same(
        m.dmesg('DEADLOCK').map(({ text }) => /group-lock/.test(text)),
        [true, true],
      );
      t.equal(m.unpin([0x10000n], { notification: 'notification-1' }).ret, 1);
      m.ack('notification-1', 'D1');
      t.equal(errno(m.run(command)), command.op === 'set_iommu' ? 'EINVAL' : undefined);
    });
  await t.test('[4.10] unset_container: EBUSY comes first; with nothing open EDEADLK', async (t) => {
    const m = parked();
    t.equal(errno(m.run({ op: 'unset_container', group: 'G1' })), 'EBUSY');
    m.run({ op: 'close_device', device: 'D1' });
    t.equal(errno(m.run({ op: 'unset_container', group: 'G1' })), 'EDEADLK');
    t.equal(errno(m.run({ op: 'close_group', group: 'G1' })), 'EDEADLK');
    t.equal(errno(m.run({ op: 'close_group', group: 'G3' })), undefined, 'in no container');
  });
  for (const [profile, fixes] of [
    ['4.10', ['group_lock']],
    ['5.4', []],
  ] as [string, string[]][])
    await t.test(
      `[${profile}] close_device: with ${fixes[0] ?? 'no'} fix the handler's lock is not in the way`,
      async (t) => {
        const m = parked(fixes, profile);
        t.same(
          writers.map((command) => errno(m.run(command))),
          [undefined, undefined, 'EINVAL'],
        );
      },
    );
});

/** Numbers from a seed (mulberry32). */
function randomOf(state: number): (below: number) => number {
  let a = state;
  return (below) => {
    a = (a + 0x6d2b79f5) | 0;
    let x = Math.imul(a ^ (a >>> 15), a | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** One command on a machine of setup S with task U, thread T1 of T, listening device D2 in G2, and groups GI (iommu) and N (noiommu). */
function randomCommand(random: (below: number) => number): Command {
  const pick = <V>(...values: V[]): V => values[random(values.length)] as V;
  const task = (): string => pick('T', 'T1', 'U');
  const iova = 0x10000n + BigInt(random(6)) * 0x2000n;
  const size = BigInt(1 + random(2)) * PAGE;
  const vaddr = V + BigInt(random(60)) * PAGE;
  const pin = { device: pick('D1', 'D2'), user_pfn: [Number(iova / PAGE)], npage: 1 };
  const mapping = { container: 'C', task: task(), iova, size };
  return pick<() => Command>(
    () => ({ op: 'exec', task: task() }),
    () => ({ op: 'exit', task: task(), thread_only: true }),
    () => ({
      op: 'put_task',
      task: pick('T2', 'T3', 'T4'),
      rlimit_memlock: 0n,
      cap_ipc_lock: false,
      thread_of: task(),
    }),
    () => ({
      op: 'mmap',
      task: task(),
      addr: V,
      length: 64n * PAGE,
      prot: RW,
      backing: { kind: 'pages', pfns: [[2000 + 64 * random(8), 64]] },
      noreplace: false,
    }),
    ...Array<() => Command>(4).fill(() => ({ op: 'map_dma', ...mapping, vaddr, flags: RW, argsz: 32 })),
    () => ({ op: 'unmap_dma', ...mapping, task: pick(task(), null), flags: pick(0, 0, 4), argsz: null, bitmap: null }),
    () => ({ op: 'map_dma', ...mapping, vaddr, flags: 4, argsz: 32 }),
    ...Array<() => Command>(6).fill(() => ({ op: 'pin_pages', ...pin, prot: 1 })),
    ...Array<() => Command>(3).fill(() => ({ op: 'unpin_pages', ...pin })),
    () => ({ op: 'set_container', group: pick('GI', 'N', 'G1', 'G2'), container: 'C', task: task() }),
    () => ({ op: 'unset_container', group: pick('GI', 'G2') }),
    () => ({ op: pick('close_device', 'open_device'), device: 'D2' }),
    () => ({ op: 'put_fault', fault: 'f', point: 'charge', call: pick('pin_pages', 'unpin_pages'), nth: 1 }),
  )();
}

t.test('exec among all else', async (t) => {
  const seed = Number(process.env.SEED ?? 20_240);
  t.comment(`seed ${seed}`);
  await inProfiles(t, PROFILE_NAMES, 'whatever happens, the invariants hold', (t, profile) => {
    let execs = 0;
    for (let round = 0; round < 40; round++) {
      const random = randomOf(seed + round);
      const m = setup({ profile, limit: random(2) === 0 ? 64 : 6 });
      m.task('U');
      m.task('T1', 0, false, 'T');
      m.pages('U', V, [[5000, 64]]);
      m.group('G2', 'C');
      m.device('D2', 'G2');
      m.listen('D2', 'L2', { kind: 'builtin', behavior: 'unpin_all', n: 1, delay_ms: 0 });
      m.run({ op: 'put_group', group: 'GI', kind: 'iommu' });
      m.run({ op: 'put_group', group: 'N', kind: 'noiommu' });
      for (let step = 0; step < 80; step++) {
        const command = randomCommand(random);
        const ranged = profile === '6.18' && (command.op === 'pin_pages' || command.op === 'unpin_pages');
        if (ranged)
          Object.assign(command, { contiguous: { iova: BigInt(command.user_pfn[0] ?? 0) * PAGE }, user_pfn: [] });
        const outcome = m.run(command);
        if (command.op === 'exec' && outcome.ret === 0) execs++;
      }
    }
    t.ok(execs > 40, `${execs} of them`);
  });
});
