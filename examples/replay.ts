// One boot of a recorded guest against the service: QEMU's calls in their order, the three drivers at work in between.

import { setTimeout as sleep } from 'node:timers/promises';
import { type DmesgEntry, type HostClient, type Leak, Refused, rangeText } from './client.ts';
import { Kvmgt } from './drivers/kvmgt.ts';
import { PollListener } from './drivers/poll-listener.ts';
import type { DriverStats, VendorDriver } from './drivers/vendor-driver.ts';
import { VfioAp } from './drivers/vfio-ap.ts';
import { VfioCcw } from './drivers/vfio-ccw.ts';
import { WebhookListener } from './drivers/webhook-listener.ts';
import { Guest, type GuestRegion, regionsOf } from './guest.ts';
import { memlockLimit, memoryBlocks, Qemu, TASK } from './qemu.ts';
import type { DmaCall } from './qemu-trace.ts';
import { Random } from './random.ts';

/** Mistakes that real drivers made, each a switch. */
export const BUGS = {
  'ccw-start-only': 'vfio-ccw looks only for the first page of the range (until July 2022)',
  'ap-wrong-page': 'vfio-ap unpins the page at the start of the range instead of its own (until November 2022)',
  'kvmgt-close-without-unpin': 'kvmgt closes its device without unpinning',
} as const;
export type BugName = keyof typeof BUGS;

/** What is replayed: the calls of a boot, in order. */
export interface Boot {
  name: string;
  calls: DmaCall[];
  /** True if the flags of the mappings come from the recorded ioctls. */
  flagsRecorded: boolean;
}

export interface ReplayOptions {
  seed: number;
  /** Recorded time divided by this; Infinity: no waiting. */
  speed: number;
  bugs: ReadonlySet<BugName>;
  /** Name under which the service reaches this process for vfio-ap's webhook; null: vfio-ap polls like the others. */
  webhookHost: string | null;
  /** RLIMIT_MEMLOCK of QEMU; null: guest memory and 1 GiB. */
  rlimitMemlock: bigint | null;
  progress: (step: Step) => void;
}

export interface Step {
  run: string;
  done: number;
  total: number;
  call: DmaCall;
  /** Pages that each driver had in the range of an unmap. */
  held: Record<string, number>;
  notifications: number;
  /** The call ended in a BUG. */
  died: boolean;
  mapped: number;
  locked_vm: number;
}

export interface RunReport {
  run: string;
  seed: number;
  bugs: BugName[];
  flags_recorded: boolean;
  calls: number;
  calls_made: number;
  mappings: { made: number; removed: number; left_at_exit: number };
  unmaps_that_notified: number;
  drivers: Record<string, DriverStats>;
  peak_locked_vm: number;
  rlimit_memlock: string;
  /** What was left once everything had ended; null where the container died before. */
  after_exit: { mappings: number; locked_vm: number } | null;
  /** The BUG that killed the container, and the drivers that still had pages in the range. */
  died: { where: string; text: string; range: string; held: Record<string, number>; attempts: number } | null;
  leaks: Leak[];
  invariants: { ok: boolean; violations: unknown[] };
  dmesg: { entries: number; warn: number; bug: number; deadlock: number; splats: string[] };
  /** What is wrong, one sentence each; empty: a clean run. */
  findings: string[];
  ms: number;
}

export class Replay {
  readonly #qemu: Qemu;
  readonly #random: Random;
  readonly #regions: (GuestRegion | null)[];
  readonly #live = new Set<GuestRegion>();
  readonly #findings: string[] = [];
  #drivers: VendorDriver[] = [];
  #made = 0;
  #removed = 0;
  #callsMade = 0;
  #notifiedUnmaps = 0;
  #peakLockedVm = 0;
  #died: RunReport['died'] = null;
  #afterExit: RunReport['after_exit'] = null;

  constructor(
    private readonly client: HostClient,
    private readonly boot: Boot,
    private readonly options: ReplayOptions,
  ) {
    this.#qemu = new Qemu(client.as('qemu'));
    this.#random = new Random(options.seed);
    this.#regions = regionsOf(boot.calls);
  }

  async run(): Promise<RunReport> {
    const begun = performance.now();
    const blocks = memoryBlocks(this.boot.calls);
    const rlimitMemlock = this.options.rlimitMemlock ?? memlockLimit(blocks);
    const isNew = await this.client.putHost({ profile: '5.15', template: 'empty' });
    if (!isNew) await this.client.resetHost();
    await this.#qemu.start(blocks, rlimitMemlock);
    try {
      await this.#replayCalls();
      if (this.#died === null) await this.#powerOff();
    } finally {
      await Promise.all(this.#drivers.map((driver) => driver.abandon()));
    }
    return this.#report(rlimitMemlock, performance.now() - begun);
  }

  async #replayCalls(): Promise<void> {
    const { calls } = this.boot;
    const [kvmgt, ccw, ap] = await this.#makeDrivers();
    const guest = new Guest({ kvmgt, ccw, ap }, this.#random);
    this.#drivers = [kvmgt, ccw, ap];

    // The first device's container meets the memory that is there; the others, and the guest, come after that.
    const firstUnmap = calls.findIndex((call) => call.op === 'unmap_dma');
    const present = firstUnmap < 0 ? calls.length : firstUnmap;
    await this.#qemu.attach('26', kvmgt.device);
    for (let i = 0; i < present; i++) await this.#call(i);
    await kvmgt.open();
    for (const [i, driver] of [ccw, ap].entries()) {
      await this.#qemu.attach(String(27 + i), driver.device);
      await driver.open();
    }

    const zero = performance.now();
    for (let i = present; i < calls.length && this.#died === null; i++) {
      await guest.turn([...this.#live]);
      await this.#account();
      const due = zero + ((calls[i]?.at ?? 0) - (calls[present]?.at ?? 0)) / 1000 / this.options.speed;
      if (due > performance.now()) await sleep(due - performance.now());
      await this.#call(i);
    }
  }

  async #makeDrivers(): Promise<[Kvmgt, VfioCcw, VfioAp]> {
    const { bugs, webhookHost } = this.options;
    const poll = (client: HostClient, device: string) =>
      new PollListener(client, device, (error) => this.#findings.push(`${device} can't poll: ${error}`));
    const [kvmgt, ccw, ap] = [this.client.as('kvmgt'), this.client.as('vfio-ccw'), this.client.as('vfio-ap')];
    const apListener = webhookHost === null ? poll(ap, 'vfio-ap') : await WebhookListener.listen(webhookHost);
    return [
      new Kvmgt(kvmgt, 'kvmgt', poll(kvmgt, 'kvmgt'), { closeWithoutUnpin: bugs.has('kvmgt-close-without-unpin') }),
      new VfioCcw(ccw, 'vfio-ccw', poll(ccw, 'vfio-ccw'), { startOnly: bugs.has('ccw-start-only') }),
      new VfioAp(ap, 'vfio-ap', apListener, { wrongPage: bugs.has('ap-wrong-page') }),
    ];
  }

  async #call(index: number): Promise<void> {
    const call = this.boot.calls[index];
    if (call === undefined) return;
    const held = call.op === 'unmap_dma' ? this.#heldIn(call) : {};
    let notifications = 0;
    try {
      notifications = await this.#qemu.call(call);
    } catch (error) {
      if (!(error instanceof Refused) || error.problem.status !== 410) throw error;
      await this.#recordDeath(call, error);
    }
    this.#callsMade++;
    if (this.#died === null) this.#follow(index, call);
    if (notifications > 0 || this.#died !== null) this.#notifiedUnmaps++;
    this.options.progress({
      run: this.boot.name,
      done: index + 1,
      total: this.boot.calls.length,
      call,
      held,
      notifications,
      died: this.#died !== null,
      mapped: this.#live.size,
      locked_vm: this.#pinnedPages(),
    });
  }

  /** Keeps the model of what is mapped. */
  #follow(index: number, call: DmaCall): void {
    const region = this.#regions[index];
    if (call.op === 'map_dma') {
      this.#made++;
      if (region) this.#live.add(region);
      return;
    }
    for (const mapped of this.#live)
      if (mapped.removedBy === index) {
        this.#live.delete(mapped);
        this.#removed++;
      }
  }

  /** Pages that each driver believes it has pinned in the range; drivers without any are left out. */
  #heldIn(call: DmaCall): Record<string, number> {
    const gfn = Number(call.iova >> 12n);
    const end = gfn + Number(call.size >> 12n);
    const held = this.#drivers.map((driver): [string, number] => [
      driver.device,
      driver.pinned().filter((page) => gfn <= page && page < end).length,
    ]);
    return Object.fromEntries(held.filter(([, pages]) => pages > 0));
  }

  async #recordDeath(call: DmaCall, error: Refused): Promise<void> {
    const death = await this.#qemu.death();
    this.#died = {
      where: death?.where ?? 'unknown',
      text: death?.text ?? error.problem.detail,
      range: rangeText(call.iova, call.size),
      held: this.#heldIn(call),
      attempts: Math.max(...this.#drivers.map((driver) => driver.stats.most_attempts)),
    };
  }

  /** Distinct pages that are pinned by somebody: what an mdev-only container charges. */
  #pinnedPages(): number {
    return new Set(this.#drivers.flatMap((driver) => driver.pinned())).size;
  }

  /** The guest has had its turn: compares the charge with what the drivers believe, unless one of them is made to err. */
  async #account(): Promise<void> {
    const locked_vm = await this.#lockedVm();
    this.#peakLockedVm = Math.max(this.#peakLockedVm, locked_vm);
    if (this.options.bugs.size === 0 && locked_vm !== this.#pinnedPages())
      throw new Error(`locked_vm is ${locked_vm}, but the drivers have ${this.#pinnedPages()} pages pinned`);
    const failed = this.#drivers.find((driver) => driver.failure !== null);
    if (failed !== undefined) throw failed.failure;
  }

  async #lockedVm(): Promise<number> {
    const { locked_vm } = await this.client.task(TASK);
    if (locked_vm === null) throw new Error(`task ${TASK} has no mm`);
    return locked_vm;
  }

  async #powerOff(): Promise<void> {
    for (const driver of this.#drivers) await driver.close();
    const locked_vm = await this.#lockedVm();
    const mappings = await this.#qemu.exit();
    this.#afterExit = { mappings, locked_vm };
  }

  async #report(rlimitMemlock: bigint, ms: number): Promise<RunReport> {
    const [leaks, invariants, dmesg] = await Promise.all([
      this.client.leaks(),
      this.client.invariants(),
      this.client.dmesg(),
    ]);
    const report: RunReport = {
      run: this.boot.name,
      seed: this.options.seed,
      bugs: [...this.options.bugs],
      flags_recorded: this.boot.flagsRecorded,
      calls: this.boot.calls.length,
      calls_made: this.#callsMade,
      mappings: { made: this.#made, removed: this.#removed, left_at_exit: this.#live.size },
      unmaps_that_notified: this.#notifiedUnmaps,
      drivers: Object.fromEntries(this.#drivers.map((driver) => [driver.device, driver.stats])),
      peak_locked_vm: this.#peakLockedVm,
      rlimit_memlock: `0x${rlimitMemlock.toString(16)}`,
      after_exit: this.#afterExit,
      died: this.#died,
      leaks,
      invariants: { ok: invariants.ok, violations: invariants.violations },
      dmesg: countDmesg(dmesg),
      findings: this.#findings,
      ms: Math.round(ms),
    };
    report.findings.push(...findingsOf(report));
    return report;
  }
}

function countDmesg(entries: readonly DmesgEntry[]): RunReport['dmesg'] {
  const of = (kind: string) => entries.filter((entry) => entry.kind === kind).length;
  return {
    entries: entries.length,
    warn: of('WARN'),
    bug: of('BUG'),
    deadlock: of('DEADLOCK'),
    splats: entries.filter((entry) => entry.kind != null).map((entry) => entry.text),
  };
}

function pagesText(npage: number): string {
  return npage === 1 ? '1 page' : `${npage} pages`;
}

/** Everything in the report that a run with correct drivers does not have. */
function findingsOf({ died, leaks, invariants, dmesg, after_exit }: RunReport): string[] {
  const findings: string[] = [];
  if (died !== null) {
    const held = Object.entries(died.held).map(([device, pages]) => `${device} kept ${pagesText(pages)}`);
    const told = `${died.attempts} notifications for ${died.range}`;
    findings.push(`BUG at ${died.where} after ${told}: ${held.join(', ') || 'nobody believes to have pages there'}`);
  }
  const left = new Map<string, number>();
  for (const { device, npage, references } of leaks) left.set(device, (left.get(device) ?? 0) + npage * references);
  if (left.size > 0) {
    const who = [...left].map(([device, references]) => `${device} ${references}`);
    const why = died === null ? 'that nobody will drop' : 'that are stuck in the dead container';
    findings.push(`page references ${why}: ${who.join(', ')}`);
  }
  if (dmesg.warn + dmesg.deadlock > 0) findings.push(`${dmesg.warn} WARN and ${dmesg.deadlock} DEADLOCK in dmesg`);
  if (died === null && dmesg.bug > 0) findings.push(`${dmesg.bug} BUG in dmesg`);
  if (!invariants.ok) findings.push(`invariants violated: ${JSON.stringify(invariants.violations)}`);
  if (after_exit !== null && after_exit.mappings > 0)
    findings.push(`${after_exit.mappings} mappings outlived their groups`);
  if (after_exit !== null && after_exit.locked_vm !== 0)
    findings.push(`${pagesText(after_exit.locked_vm)} still charged when the devices were closed`);
  return findings;
}
