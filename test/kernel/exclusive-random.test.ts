// Random calls of devices, processes and reclaim that stop and wait for each other: every invariant holds at every phase, and a
// driver that asks read_retry() never has a mapping that it must not have.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { PHASES } from '../../src/kernel/phase.ts';
import { ExclusiveMachine, P515, P614 } from './exclusive-machine.ts';
import { Machine, R, RW } from './machine.ts';
import { randomFrom } from './mm-machine.ts';
import { at, bytes } from './page-machine.ts';

const PAGES = 6;
const CALLS = 1500;
const STOPS = PHASES.slice(0, 12);
const DEVICES = ['D', 'E'];

class Random {
  readonly m: ExclusiveMachine;
  private readonly sequences = new Map<string, number>();
  private grants = 0;

  constructor(
    profile: string,
    private readonly random: (n: number) => number,
  ) {
    this.m = new ExclusiveMachine(new Machine({ profile }), ['A', 'B']);
    this.m.anon('A', 0, PAGES);
    for (const device of DEVICES) this.m.open(device);
  }

  private pick<T>(items: readonly T[]): T | undefined {
    return items[this.random(items.length)];
  }

  private stopping(): { stop_at?: (typeof PHASES)[number] } {
    const stop_at = this.random(5) === 0 ? this.pick(STOPS) : undefined;
    return stop_at === undefined ? {} : { stop_at };
  }

  private range(): { first: number; npage: number; addr: bigint; length: bigint } {
    const first = this.random(PAGES);
    const npage = 1 + this.random(PAGES - first);
    return { first, npage, addr: at(first), length: bytes(npage) };
  }

  private page(): number {
    const entries = [...this.m.mm('A').page_table.leaves.values()].flatMap(({ words }) =>
      [...words.keys()].filter((i) => i % 2 === 0 && words[i] !== 0).map((i) => words[i] as number),
    );
    return this.pick(entries) ?? 0;
  }

  /** A new call in the name of a process, of the host, or of a device. */
  private command(): Command {
    const { addr, length } = this.range();
    const device = this.pick(DEVICES) as string;
    const task = this.m.host.mm.tasks.get('child')?.mm != null && this.random(4) === 0 ? 'child' : 'A';
    const stop = this.stopping();
    switch (this.random(22)) {
      case 0:
      case 1:
      case 13:
      case 14:
      case 15:
        return { op: 'access', task, addr, write: this.random(2) === 0, ...stop };
      case 2:
        return { op: 'madvise', task, addr, length, advice: this.random(2) === 0 ? 'DONTNEED' : 'FREE', ...stop };
      case 3:
        return { op: 'mprotect', task, addr, length, prot: this.random(3) === 0 ? R : RW, ...stop };
      case 4:
        return { op: 'munmap', task, addr, length: 4096n, ...stop };
      case 5:
      case 11:
      case 12:
        return { op: 'mmap', task: 'A', addr, length: 4096n, prot: RW, backing: { kind: 'anon' }, noreplace: true };
      case 6:
        return { op: 'reclaim', pfn: this.page(), ...stop };
      case 7:
        return { op: 'migrate', pfn: this.page(), ...stop };
      case 8:
        return { op: 'clear_soft_dirty', task: 'A', ...stop };
      case 9:
        return this.m.host.mm.tasks.has('child')
          ? { op: 'ksm_merge', task: 'A', addr, with: { task: 'A', addr: at(0) }, ...stop }
          : { op: 'fork', task: 'A', child: 'child', ...stop };
      case 10:
        return { op: 'mirror_range', device, start: addr, length, fault: this.random(2) === 0, write: true, ...stop };
      default:
        return this.make(device, addr, length, stop);
    }
  }

  /** What read_begin() answers is kept for the map; where it would wait, the driver comes back later. */
  private make(device: string, start: bigint, length: bigint, stop: object): Command {
    const grant = `g${this.grants++}`;
    const { fields, parked } = this.m.run({ op: 'interval_read_begin', id: `exclusive-${device}` });
    if (parked === undefined || this.m.host.operations.get(parked)?.state === 'done')
      this.sequences.set(`${device} ${grant}`, fields.sequence as number);
    return { op: 'make_device_exclusive', device, grant, start, length, ...stop };
  }

  /** Something that is held goes on: a grant is mapped or dropped, an operation takes a step. */
  private goOn(): void {
    const { m } = this;
    const stopped = [...m.host.operations.values()].filter(({ state }) => state === 'stopped');
    const operation = this.pick(stopped)?.id;
    const device = this.pick(DEVICES) as string;
    const grant = this.pick([...(m.host.consumers.exclusive.devices.get(device)?.grants.values() ?? [])]);
    const turn = this.random(3);
    if (operation !== undefined && (turn === 0 || grant === undefined || grant.busy))
      m.run({ op: this.random(2) === 0 ? 'step_operation' : 'resume_operation', operation });
    else if (grant !== undefined && turn === 1) {
      const sequence = this.sequences.get(`${device} ${grant.id}`);
      if (sequence !== undefined) m.program(sequence, { device, grant: grant.id });
    } else if (grant !== undefined) m.drop({ device, grant: grant.id });
  }

  run(): void {
    for (let i = 0; i < CALLS; i++) {
      if (this.random(3) > 0) this.goOn();
      else this.m.run(this.command());
    }
    for (let turn = 0; turn < 2000 && this.isOpen(); turn++) this.goOn();
  }

  /** Whether something is stopped or held. What waits for one of them goes on with it. */
  isOpen(): boolean {
    const { host } = this.m;
    const grants = [...host.consumers.exclusive.devices.values()].some((device) => device.grants.size > 0);
    return grants || [...host.operations.values()].some(({ state }) => state !== 'done');
  }

  seen(): { exclusive: number; restored: number; mapped: number } {
    const items = this.m.trace('invalidate_start', 'operation');
    const owners = items.filter(({ mmu_event }) => mmu_event === 'EXCLUSIVE').map(({ owner }) => owner);
    return {
      exclusive: owners.filter((owner) => owner !== null).length,
      restored: owners.filter((owner) => owner === null).length,
      mapped: items.filter(({ op, ret }) => op === 'map_exclusive_grant' && (ret as number) > 0).length,
    };
  }
}

for (const profile of [P515, P614])
  for (let seed = 1; seed <= 6; seed++)
    t.test(`device-exclusive pages (${profile}): ${CALLS} random calls, seed ${seed}`, async (t) => {
      const world = new Random(profile, randomFrom(seed * 7919));
      world.run();
      t.notOk(world.isOpen(), 'everything that has stopped or waited has come to its end');
      const wrong = world.m.codes().filter((code) => code === 'SPTE_IN_WINDOW' || code === 'STALE_SECONDARY');
      t.strictSame(wrong, []);
      const { exclusive, restored, mapped } = world.seen();
      t.ok(exclusive > 50 && restored > 50, `${exclusive} made exclusive, ${restored} restored`);
      t.ok(mapped > 2, `${mapped} grants mapped`);
    });
