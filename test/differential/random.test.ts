// Random journals: on the kernel that they were recorded on the player ends in the same state, on every other one in a sound state.

import fc from 'fast-check';
import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { Host } from '../../src/kernel/host.ts';
import { violations } from '../../src/kernel/invariants.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { leaks } from '../../src/kernel/view/host.ts';
import { listFrames, listTasks } from '../../src/kernel/view/tasks.ts';
import { listContainers, listMappings } from '../../src/kernel/view/vfio.ts';
import type { Plan } from '../../src/service/differential/item.ts';
import { Player } from '../../src/service/differential/player.ts';
import { record } from '../../src/service/differential/recording.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';
import {
  ack,
  builtin,
  detach,
  differential,
  itemsOf,
  type Line,
  listen,
  map,
  PAGE,
  pin,
  READ,
  unmap,
  unpin,
} from './commands.ts';

const SEED = Number(process.env.SEED ?? 20_250);
const RUNS = Number(process.env.RUNS ?? 60);
t.comment(`SEED=${SEED} RUNS=${RUNS}`);

/** What a client does next: the numbers decide among what is possible then. */
type Choice = [kind: number, a: number, b: number];

const second: readonly Command[] = [
  { op: 'put_group', group: '27', kind: 'mdev' },
  { op: 'put_device', device: 'mdev1', group: '27' },
  { op: 'set_container', group: '27', container: 'vfio0', task: null },
  { op: 'open_device', device: 'mdev1' },
  { op: 'put_task', task: 'other', rlimit_memlock: 0x3000n, cap_ipc_lock: false, thread_of: null },
];

const pfnsOf = (a: number, b: number): number[] =>
  Array.from({ length: 1 + (b % 3) }, (_, i) => (a + i * (1 + (b % 2))) % 7);

function commandOf([kind, a, b]: Choice): Command {
  const device = `mdev${a % 2}`;
  switch (kind) {
    case 0:
    case 1:
      return map(BigInt(a % 6) * PAGE, 1 + (b % 3), {
        task: b % 5 === 0 ? 'other' : 'qemu',
        flags: b % 4 === 0 ? 1 : 3,
      });
    case 2:
    case 3:
    case 4:
      return pin(pfnsOf(a, b), READ, device);
    case 5:
      return unpin(pfnsOf(a, b), device);
    case 6:
      return unmap(BigInt(a % 6) * PAGE, 1 + (b % 6), b % 3 === 0 ? { task: 'other' } : {});
    case 7:
      return listen(b % 3 === 0 ? builtin('unpin_all') : b % 3 === 1 ? builtin('slow') : { kind: 'poll' }, {}, device);
    case 8:
      return { op: 'unregister_notifier', device, notifier: `nb-${device}`, type: null };
    case 9:
      return b % 5 === 0 ? { op: 'close_device', device } : { op: 'open_device', device };
    case 10:
      return unmap(0n, 8, { flags: b % 2 === 0 ? 4 : 0 });
    default:
      return b % 9 === 0 ? (detach[1] as Command) : { op: 'adjust_locked_vm', task: 'other', delta: (b % 3) - 1 };
  }
}

/** The next line: mostly, while a notification waits, something inside its handler, or its answer. */
function lineOf(host: Host, choice: Choice): Line {
  const [kind, a, b] = choice;
  const pending = [...host.vfio.notifications.values()][a % Math.max(1, host.vfio.notifications.size)];
  if (pending === undefined || kind % 5 === 4) return commandOf(choice);
  const { id, device, iova } = pending.notification;
  const number = Number(/\d+$/.exec(id)?.[0]);
  if (kind % 5 === 0) return { inside: id, command: unpin(pfnsOf(Number(iova / PAGE), b), device) };
  if (kind % 5 === 1) return { inside: id, command: commandOf([5, a, b]) };
  if (b % 7 === 0) return { op: 'notification_timeout', notification: id };
  const reason = pending.delivery.kind === 'builtin' ? 'slow_builtin' : 'ack';
  return ack(number, { device, reason, ret: b % 9 === 0 ? 0x8001 : 1 });
}

/** Pins and unpins in the form of 6.18: of the first page and those that follow it. */
function inRange(line: Line): Line {
  const command = 'op' in line ? line : line.command;
  if (command.op !== 'pin_pages' && command.op !== 'unpin_pages') return line;
  const contiguous = { iova: BigInt(command.user_pfn[0] ?? 0) * PAGE };
  const ranged = { ...command, user_pfn: [], contiguous };
  return 'op' in line ? ranged : { ...line, command: ranged };
}

/** Records the choices on a host of a profile. */
function journalOf(profile: string, choices: readonly Choice[]): { plan: Plan; host: Host } {
  const options = { ...DEFAULT_HOST_OPTIONS, fixes: [], template: 'default' as const, total_pages: 1 << 16, profile };
  const host = createHost('recorded', options, 0);
  const lines: Line[] = [];
  const take = (given: Line): void => {
    const line = profile === '6.18' ? inRange(given) : given;
    lines.push(line);
    const [{ command, notification, at, request_id }] = itemsOf([line]) as [ReturnType<typeof itemsOf>[number]];
    execute(host, { command, notification, at, request_id });
  };
  for (const command of [...second, ...[0n, 1n, 2n, 3n].map((page) => map(page * PAGE, 1)), listen()]) take(command);
  for (const choice of choices) take(lineOf(host, choice));
  return { plan: { items: itemsOf(lines), options }, host };
}

/** What a client can see of a host, but for times and requests. */
const stateOf = (host: Host): unknown => ({
  seq: host.seq,
  tasks: listTasks(host, null, 100).items,
  containers: listContainers(host, null, 100).items.map(({ dead, ...shown }) => [shown, dead !== null]),
  mappings: listMappings(host, 'vfio0', null, 100).items,
  pages: listFrames(host, null, 1000).items,
  waiting: [...host.vfio.notifications.keys()],
  operations: [...host.operations.values()].map(({ id, state, outcome }) => [id, state, outcome?.ret, outcome?.fields]),
  splats: host.dmesg.since(0, 1000).items.map(({ seq, kind, where }) => [seq, kind, where]),
  references: leaks(host).references,
});

function play(plan: Plan, profile: string): Player {
  const work = record(plan);
  let result = work.next();
  while (result.done !== true) result = work.next();
  const player = new Player(result.value, { profile, behaviours: {} });
  for (let position = 1; position <= plan.items.length; position++) for (const _ of player.step(position));
  player.end();
  return player;
}

const number = fc.nat(1000);
const choices = fc.array(fc.tuple(fc.nat(11), number, number), { minLength: 20, maxLength: 90 });
const profile = fc.constantFrom(...PROFILE_NAMES);

t.test(
  'played on its own kernel a journal ends as it was recorded, on every other one in a host that is sound',
  (t) => {
    const met = { handlers: 0, improvised: 0, leftOut: 0, killed: 0 };
    fc.assert(
      fc.property(profile, choices, (own, chosen) => {
        const { plan, host } = journalOf(own, chosen);
        const same = play(plan, own);
        if (JSON.stringify(stateOf(same.host), bigints) !== JSON.stringify(stateOf(host), bigints))
          throw new Error(`${own}: ${JSON.stringify([stateOf(same.host), stateOf(host)], bigints)}`);
        if (same.rules.size + same.translated.size + same.leftOut.size > 0) throw new Error('nothing is to be said');
        met.handlers += plan.items.filter(({ notification }) => notification !== null).length;
        for (const other of PROFILE_NAMES) {
          const player = play(plan, other);
          const found = violations(player.host);
          if (found.length > 0) throw new Error(`${own} on ${other}: ${found.join('; ')}`);
          met.improvised += player.rules.size;
          met.leftOut += player.leftOut.size;
          if (player.host.vfio.containers.get('vfio0')?.dead) met.killed++;
        }
      }),
      { seed: SEED, numRuns: RUNS, endOnFailure: true },
    );
    t.comment(JSON.stringify(met));
    for (const [what, times] of Object.entries(met)) t.ok(times > 0, `it came to ${what}`);
    t.end();
  },
);

t.test(
  'a random journal compared with itself: nothing differs; with the others: causes are found and nothing is thrown',
  async (t) => {
    let explained = 0;
    const property = fc.asyncProperty(choices, async (chosen) => {
      const { plan } = journalOf('5.15', chosen);
      const lines = plan.items.map(
        ({ command, notification }): Line => (notification === null ? command : { inside: notification, command }),
      );
      const { profile: _, ...options } = plan.options;
      const report = await differential(['5.15', '5.15', '4.10', '6.18'], lines, options);
      if (report.comparisons[0]?.equal !== true) throw new Error(JSON.stringify(report.comparisons[0], bigints));
      for (const { differences } of report.comparisons)
        explained += differences.filter(({ causes }) => (causes as unknown[]).length > 0).length;
    });
    await fc.assert(property, { seed: SEED, numRuns: Math.ceil(RUNS / 6), endOnFailure: true });
    t.ok(explained > 10, `${explained} differences have a cause`);
  },
);

function bigints(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? `0x${value.toString(16)}` : value;
}
