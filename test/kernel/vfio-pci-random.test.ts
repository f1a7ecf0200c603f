// Random calls about two vfio-pci devices that three processes map, stopped and continued anywhere; every invariant after each.

import t from 'tap';

import type { Command } from '../../src/kernel/command.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { randomFrom } from './mm-machine.ts';
import { at, P58, P515, P614, PAGE, READ, RW } from './mm-threads.ts';
import { PciHost } from './vfio-pci-machine.ts';

const COMMANDS = 700;
const SEEDS = [1, 2, 3];
const FAULT_FLAGS = [0, 4, 20, 12, 52];
const STOPS: readonly Phase[] = [
  'before_start',
  'after_start',
  'after_pte_clear',
  'after_vma_lock',
  'after_memory_lock',
  'before_populate',
  'after_populate',
  'after_zap',
  'before_unit',
  'in_reset',
];

type Random = (n: number) => number;

const oneOf = <T>(random: Random, values: readonly T[]): T => values[random(values.length)] as T;

/** A stop in about a third of the calls. */
const stop = (random: Random): { stop_at?: Phase } => (random(3) > 0 ? {} : { stop_at: oneOf(random, STOPS) });

/** Something that a task does to its memory. */
function memoryCall(random: Random, task: string): Command {
  const addr = at(random(48));
  const length = BigInt(1 + random(12)) * PAGE;
  switch (random(6)) {
    case 0:
      return { op: 'munmap', task, addr, length, ...stop(random) };
    case 1:
      return { op: 'mprotect', task, addr, length, prot: oneOf(random, [READ, RW]), ...stop(random) };
    case 2:
      return { op: 'mremap', task, addr, old_length: length, new_length: length, new_addr: at(64 + random(16)) };
    case 3:
      return { op: 'madvise', task, addr, length, advice: oneOf(random, ['DONTFORK', 'DONTNEED']) };
    default: {
      const flags = random(2) === 0 ? {} : { flags: oneOf(random, FAULT_FLAGS) };
      return { op: 'access', task, addr: at(random(80)), write: random(2) === 0, ...flags, ...stop(random) };
    }
  }
}

/** Something that is done with a device. `bufs`: whether reads go into the memory of a task. */
function deviceCall(random: Random, task: string, bufs: boolean): Command {
  const device = oneOf(random, ['d', 'e']);
  switch (random(10)) {
    case 0:
    case 1: {
      const [addr, length, offset] = [at(random(40)), BigInt(1 + random(6)) * PAGE, BigInt(random(4)) * PAGE];
      return {
        op: 'vfio_pci_mmap',
        device,
        task,
        addr,
        length,
        region: 0,
        offset,
        prot: RW,
        shared: true,
        ...stop(random),
      };
    }
    case 2:
    case 3:
      return { op: 'vfio_pci_config_write', device, offset: 4, count: 2, value: random(4), ...stop(random) };
    case 4:
      return { op: 'vfio_pci_reset', device, by: 'ioctl', ...stop(random) };
    case 5:
      return { op: 'vfio_pci_hot_reset', devices: ['d', 'e'], ...stop(random) };
    case 6:
      return { op: 'vfio_pci_set_power_state', device, state: random(4), ...stop(random) };
    case 7:
      return { op: 'vfio_pci_probe_rom', device, ...stop(random) };
    case 8:
      return { op: 'vfio_pci_low_power', device, entry: random(2) === 0, ...stop(random) };
    default: {
      const user = bufs && random(2) === 0 ? { task, buf: at(random(80)) } : {};
      return {
        op: 'vfio_pci_rw',
        device,
        region: 0,
        write: false,
        pos: BigInt(random(64)),
        count: 1 + random(9),
        ...user,
        ...stop(random),
      };
    }
  }
}

/** Operations that are stopped now. */
const stopped = (m: PciHost): string[] =>
  [...m.host.operations.values()].filter(({ state }) => state === 'stopped').map(({ id }) => id);

/** Lets everything that is stopped run to its end. */
function finish(m: PciHost): void {
  for (let [id] = stopped(m); id !== undefined && m.host.dead === null; [id] = stopped(m))
    m.run({ op: 'resume_operation', operation: id });
}

function step(m: PciHost, random: Random, bufs: boolean): void {
  const tasks = [...m.host.mm.tasks.values()].filter(({ mm }) => mm !== null).map(({ id }) => id);
  const waiting = stopped(m);
  const choice = random(20);
  if (waiting.length > 0 && (choice < 7 || waiting.length > 6)) {
    const operation = oneOf(random, waiting);
    m.run(random(2) === 0 ? { op: 'step_operation', operation } : { op: 'resume_operation', operation });
  } else if (choice < 8 && tasks.length < 4) {
    const child = `child-${m.host.seq}`;
    m.run({ op: 'fork', task: oneOf(random, tasks), child, ...stop(random) });
  } else if (choice === 8 && tasks.length > 1) {
    m.run({ op: 'exit', task: oneOf(random, tasks), ...stop(random) });
  } else {
    const task = oneOf(random, tasks);
    m.run((choice % 2 === 0 ? memoryCall(random, task) : deviceCall(random, task, bufs)) as never);
  }
}

for (const profile of [P58, P515, P614])
  t.test(
    `${profile}: no order of stops and calls breaks an invariant, or contradicts the order of locks`,
    async (t) => {
      const reached = new Map<string, number>();
      for (const seed of SEEDS) {
        t.comment(`seed ${seed}`);
        const random = randomFrom(seed * 7919);
        // A read of 5.8 into a mapping is a deadlock in waiting, and two faults of one area its end.
        let m = new PciHost(profile);
        for (let i = 0; i < COMMANDS; i++) {
          if (m.host.seq === 2) m.put('e', { no_command_memory: true });
          step(m, random, profile !== P58);
          if (m.host.dead !== null) m = new PciHost(profile);
        }
        finish(m);
        if (m.host.dead !== null) continue;
        t.strictSame([...m.host.locks.keys()], [], 'no lock is left');
        const busy = [...m.host.operations.values()].filter(({ state }) => state !== 'done');
        t.strictSame(
          busy.map(({ id, blocked_on }) => `${id} ${blocked_on}`),
          [],
          'nobody waits',
        );
        t.strictSame(
          m.codes().filter((code) => code !== 'FATAL_DOUBLE_MAP'),
          [],
          'no rule is broken',
        );
        for (const { event, phase, errno, lock } of m.host.trace.since(0, 1e6).items) {
          const what =
            event === 'phase' ? `${phase} ${errno ?? ''}` : event === 'lock' ? String(lock).split(':')[0] : event;
          reached.set(String(what), (reached.get(String(what)) ?? 0) + 1);
        }
      }
      for (const what of ['mmio', 'memory_lock', 'in_reset ', 'before_unit ', 'done '])
        t.ok((reached.get(what) ?? 0) > 10, `${what}: ${reached.get(what) ?? 0} times`);
    },
  );
