// Random operations of several tasks and their children that stop at their phases, wait for each other, die and are restarted
// from checkpoints; everything is checked after every command.

import t from 'tap';

import type { Command } from '../../src/kernel/command.ts';
import {
  FOLL_FAST_ONLY,
  FOLL_FORCE,
  FOLL_GET,
  FOLL_NOWAIT,
  FOLL_PIN,
  FOLL_WRITE,
} from '../../src/kernel/mm/gup-flags.ts';
import { mmOf } from '../../src/kernel/mm/task.ts';
import { PHASES, type Phase } from '../../src/kernel/phase.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { randomFrom } from './mm-machine.ts';
import { at, MmHost, PAGE } from './mm-threads.ts';

const SEED = Number(process.env.SEED ?? 1903);
t.comment(`SEED=${SEED}`);

const SPAN = 12;
const PROFILES = ['5.4', '5.8', '5.15', '6.18'];

type Random = (n: number) => number;
const oneOf = <T>(random: Random, items: readonly T[]): T => items[random(items.length)] as T;

/** Tasks that have an address space now. */
const alive = ({ host }: MmHost): string[] =>
  [...host.mm.tasks.values()].flatMap(({ id, mm }) => (mm === null ? [] : [id]));

const waiting = ({ host }: MmHost, state: 'stopped' | 'blocked'): string[] =>
  [...host.operations.values()].filter((operation) => operation.state === state).map(({ id }) => id);

function memoryCommand(m: MmHost, random: Random, n: number): Command {
  const task = oneOf(random, alive(m));
  const page = random(SPAN);
  const addr = at(page);
  const npage = 1 + random(Math.min(4, SPAN - page));
  const length = BigInt(npage) * PAGE;
  const stop: { stop_at?: Phase } = random(3) === 0 ? { stop_at: oneOf(random, PHASES) } : {};
  const kind = random(100);
  if (kind < 14) {
    const backing = oneOf(random, [
      { kind: 'anon' } as const,
      { kind: 'anon' } as const,
      { kind: 'file', file: 'f', pgoff: page, shared: random(2) === 0 } as const,
    ]);
    return { op: 'mmap', task, addr, length, prot: oneOf(random, [3, 3, 1]), backing, noreplace: false, ...stop };
  }
  if (kind < 19) return { op: 'munmap', task, addr, length, ...stop };
  if (kind < 27) return { op: 'mprotect', task, addr, length, prot: oneOf(random, [3, 1, 0]), ...stop };
  if (kind < 31) {
    const to = at(oneOf(random, [0, 4, 8, 20]));
    const shorter = BigInt(1 + random(npage)) * PAGE;
    return { op: 'mremap', task, addr, old_length: length, new_length: shorter, new_addr: to, ...stop };
  }
  if (kind < 37) {
    const advice = oneOf(random, ['DONTNEED', 'DONTNEED', 'FREE', 'DONTFORK', 'DOFORK', 'WIPEONFORK'] as const);
    return { op: 'madvise', task, addr, length, advice, ...stop };
  }
  if (kind < 39) return { op: 'mlock', task, addr, length, lock: random(2) === 0 };
  if (kind < 41) return { op: 'clear_soft_dirty', task, ...stop };
  if (kind < 42) return { op: 'oom_reap', task, ...stop };
  if (kind < 68) {
    const write = random(3) > 0;
    const flags = random(4) === 0 ? { flags: random(64) & 0x3c } : {};
    return { op: 'access', task, addr, write, ...flags, ...stop };
  }
  if (kind < 80) {
    const extra = [FOLL_WRITE, FOLL_FORCE, FOLL_NOWAIT, FOLL_FAST_ONLY].filter(() => random(3) === 0);
    const how = oneOf(random, [FOLL_GET, FOLL_PIN]);
    const flags = extra.reduce((sum, flag) => sum | flag, how);
    return { op: 'gup', task, addr, npage, flags, gup: `g${n}`, ...stop };
  }
  if (kind < 90 && m.host.mm.gups.size > 0) {
    const gup = oneOf(random, [...m.host.mm.gups.keys()]);
    return { op: 'put_gup', gup, dirty: oneOf(random, ['no', 'set_page_dirty', 'set_page_dirty_lock'] as const) };
  }
  if (kind < 93) return { op: 'fork', task, child: `c${n}`, ...stop };
  if (kind < 95 && alive(m).length > 1) return { op: 'exit', task, ...stop };
  const { page_table } = mmOf(m.host, task) as NonNullable<ReturnType<typeof mmOf>>;
  const flags = page_table.flags(Number(addr >> 12n));
  return (flags & 0xf) === 1
    ? { op: oneOf(random, ['reclaim', 'migrate'] as const), pfn: page_table.pfn(Number(addr >> 12n)), ...stop }
    : { op: 'access', task, addr, write: true };
}

/** Stopped operations go on at times, and always before too many of them stand in each other's way. */
function nextCommand(m: MmHost, random: Random, n: number): Command {
  const stopped = waiting(m, 'stopped');
  if (stopped.length > 0 && random(stopped.length > 3 ? 2 : 4) === 0) {
    const operation = oneOf(random, stopped);
    return random(2) === 0 ? { op: 'step_operation', operation } : { op: 'resume_operation', operation };
  }
  return memoryCommand(m, random, n);
}

/** The host from its checkpoint. */
function restart(m: MmHost): void {
  const data = new Map<string, unknown>();
  for (const section of sections(m.host)) data.set(section.key, decode(encode(section.data())));
  Object.assign(m, { host: restoreHost('test', m.host.options, m.host.created_at, data) });
  m.check();
}

/** Everything goes on until nothing waits. What waits then, waits for ever. */
function finish(m: MmHost): string[] {
  for (let stopped = waiting(m, 'stopped'); stopped.length > 0; stopped = waiting(m, 'stopped'))
    m.run({ op: 'resume_operation', operation: stopped[0] as string });
  return waiting(m, 'blocked');
}

t.test(
  'random operations of tasks that stop at their phases: sound after every command, and all of them end',
  async (t) => {
    const seen = new Map<string, number>();
    const note = (what: string): void => void seen.set(what, (seen.get(what) ?? 0) + 1);
    for (let run = 0; run < 40; run++) {
      const random = randomFrom(SEED + run * 7919);
      const m = new MmHost(oneOf(random, PROFILES), 64);
      m.mmap(0, 8);
      if (random(2) === 0) m.plain('N', ['invalidate_range_start', 'invalidate_range_end', 'release']);
      if (random(2) === 0 && m.host.profile.intervalNotifiers) m.interval('S', 2, 4, random(4) === 0 ? 0 : 1);
      const history: string[] = [];
      try {
        for (let n = 0; n < 120; n++) {
          const command = nextCommand(m, random, n);
          const text = JSON.stringify(command, (_key, value) =>
            typeof value === 'bigint' ? `0x${value.toString(16)}` : value,
          );
          history.push(text);
          const outcome = m.run(command as Parameters<typeof m.run>[0]);
          history[history.length - 1] =
            `${text}: ${outcome.refusal?.errno ?? outcome.ret}${outcome.parked ? ' parked' : ''}`;
          note(`${command.op} ${outcome.parked === undefined ? (outcome.refusal?.errno ?? 'done') : 'parked'}`);
          for (const id of waiting(m, 'blocked'))
            note(`blocked on ${m.host.operations.get(id)?.blocked_on?.split(':')[0]}`);
          if (random(25) === 0) restart(m);
        }
        const left = finish(m);
        if (left.length > 0) throw new Error(`wait for ever: ${left.join(', ')}`);
        t.equal(m.host.locks.size, 0, `run ${run}: no lock is left`);
        t.equal(
          m.host.violations.since(0, 10).items.filter(({ code }) => code !== 'BAD_ERRNO').length,
          0,
          'no violation',
        );
      } catch (error) {
        t.fail(`SEED=${SEED} run ${run}: ${error instanceof Error ? error.stack : error}`, {
          history: history.slice(-25),
        });
        return;
      }
    }
    const sometimes = [
      ...[
        'mmap parked',
        'munmap parked',
        'mprotect parked',
        'madvise parked',
        'fork parked',
        'exit parked',
        'gup parked',
      ],
      ...[
        'access parked',
        'mremap done',
        'fork done',
        'exit done',
        'oom_reap done',
        'clear_soft_dirty done',
        'put_gup done',
      ],
      ...['blocked on mmap_lock', 'blocked on operation', 'madvise ENOMEM', 'mprotect ENOMEM', 'gup EFAULT'],
    ];
    for (const what of sometimes) t.ok((seen.get(what) ?? 0) > 0, `reached: ${what}`);
  },
);
