// The kernel beside the naive model: both execute every call, and afterwards everything that can be seen of them is compared.

import { isDeepStrictEqual } from 'node:util';
import type { Call, Command, HostOptions } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { Host } from '../../src/kernel/host.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { invariants } from '../../src/kernel/view/host.ts';
import { listMaps, listPages, viewPage, viewTask } from '../../src/kernel/view/tasks.ts';
import {
  checkExtension,
  listMappings,
  listPfns,
  viewContainer,
  viewDevice,
  viewGroup,
  viewInfo,
} from '../../src/kernel/view/vfio.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { isReserved, type NaiveMm, type NaivePage } from './naive-mm.ts';
import { NaiveModel } from './naive-model.ts';
import { type NaiveProfile, rulesOf } from './naive-rules.ts';
import { type NaiveIommu, type NaiveOutcome, type NaiveResult, PAGE, walkOf } from './naive-types.ts';

const ALL = Number.MAX_SAFE_INTEGER;

export const optionsOf = (dma_entry_limit: number, profile: NaiveProfile = '5.15'): HostOptions => ({
  profile,
  template: 'empty',
  dma_entry_limit,
  notifier_timeout_ms: 1000,
  total_pages: 1_048_576,
  fixes: [],
  ttl_s: null,
});

export class Mismatch extends Error {}

export class World {
  readonly model: NaiveModel;
  host: Host;
  /** Whether states are compared after each step; outcomes always are. */
  comparing = true;
  /** Something happened that the model can't follow: the run is over. */
  over = false;
  /** Number of the last entry of the kernel log that was compared. */
  private logged = 0;
  /** Sections of the last checkpoint, and the seq at which each was written. */
  private readonly kept = new Map<string, { seq: number; bytes: Uint8Array }>();
  /** Kernel pfns of the model's pages that the kernel chose; a page is met at its first fault. */
  private readonly met = new Map<NaivePage, number>();

  constructor(dma_entry_limit: number, profile: NaiveProfile = '5.15') {
    this.host = createHost('model', optionsOf(dma_entry_limit, profile), 0);
    this.model = new NaiveModel(dma_entry_limit, rulesOf(profile));
  }

  /** Executes a call on both and compares what came of it. */
  step(command: Command, notification: string | null = null): { outcome: Outcome; expected: NaiveResult } {
    const call: Call = { at: this.host.seq, request_id: `r${this.host.seq + 1}`, notification, command };
    const expected = this.model.execute(call);
    const outcome = execute(this.host, call);
    this.meetPages();
    this.compareOutcomes(outcome, expected);
    this.compareSplats(expected.splats);
    this.compareStates();
    return { outcome, expected };
  }

  /** Executes a call on both without comparing: for what comes before the steps that matter. */
  prepare(command: Command): void {
    const call: Call = { at: this.host.seq, request_id: `r${this.host.seq + 1}`, notification: null, command };
    const expected = this.model.execute(call);
    const { refusal } = execute(this.host, call);
    if (expected.errno !== null || refusal !== undefined)
      throw new Mismatch(`preparing with ${command.op} was refused`);
    this.meetPages();
  }

  private same(what: string, got: unknown, expected: unknown): void {
    if (isDeepStrictEqual(got, expected)) return;
    throw new Mismatch(`${what}: the kernel has ${text(got)}, the model ${text(expected)}`);
  }

  /** What a checkpoint keeps: each section as bytes, written again only when its version says that it changed. */
  checkpoint(): void {
    const present = new Set<string>();
    for (const { key, version, data } of sections(this.host)) {
      present.add(key);
      const kept = this.kept.get(key);
      if (kept === undefined || version === null || version > kept.seq)
        this.kept.set(key, { seq: this.host.seq, bytes: encode(data()) });
    }
    for (const key of this.kept.keys()) if (!present.has(key)) this.kept.delete(key);
  }

  /** The host goes, and comes back from its checkpoint. */
  restart(): void {
    this.checkpoint();
    const data = new Map([...this.kept].map(([key, { bytes }]) => [key, decode(bytes)]));
    if (this.model.pending.size > 0) this.model.seen.add('restart of the service inside an unmap');
    const { id, options, created_at } = this.host;
    this.host = restoreHost(id, { ...options }, created_at, data);
    this.compareStates();
  }

  // Pages

  /** Every address space, by one of the tasks that live in it. */
  private eachMm(): Iterable<[string, NaiveMm]> {
    const tasks = new Map<NaiveMm, string>();
    for (const [id, { mm }] of this.model.memory.tasks) if (mm !== null && !tasks.has(mm)) tasks.set(mm, id);
    return [...tasks].map(([mm, id]): [string, NaiveMm] => [id, mm]);
  }

  /** The model can't know which frame the kernel takes for a new page: it is learnt where the page is mapped. */
  private meetPages(): void {
    const { memory } = this.model;
    for (const [id, mm] of this.eachMm())
      for (const [page, { pte }] of mm.slots) {
        if (pte === null || pte.page.pfn !== null) continue;
        const flagsAndPfn = listPages(this.host, id, BigInt(page) * PAGE, 1)[0];
        if (typeof flagsAndPfn?.pfn !== 'number')
          throw new Mismatch(`page ${page} of ${id} is not mapped in the kernel`);
        pte.page.pfn = flagsAndPfn.pfn;
        if (pte.page.kind === 'anon') this.met.set(pte.page, flagsAndPfn.pfn);
      }
    for (const page of this.met.keys()) if (!memory.anon.has(page)) this.met.delete(page);
    const pfns = new Set([...this.met.values(), ...memory.byPfn.keys()]);
    this.same('number of different host pages', pfns.size, this.met.size + memory.byPfn.size);
  }

  // Outcomes

  /** The splats of the call, in the words that their labels begin with, and the release that they name. */
  private compareSplats(wanted: readonly string[]): void {
    const raised = this.host.dmesg.since(this.logged, ALL).items.filter(({ kind }) => kind !== null);
    this.logged = this.host.dmesg.next - 1;
    const labels = raised.map(({ text, where }) => {
      const line = text.split('\n')[1] ?? '';
      const what = line.slice(line.indexOf(`${where}: `) + `${where}: `.length);
      return what.split(/:| \(/)[0];
    });
    this.same('splats', labels, wanted);
    for (const { text } of raised)
      if (!text.includes(`Not tainted ${this.model.rules.release} `)) throw new Mismatch(`release in ${text}`);
  }

  private compareOutcomes(outcome: Outcome, expected: NaiveResult): void {
    this.compareOutcome('outcome', outcome, expected);
    this.same('parked', outcome.parked ?? null, expected.parked);
    const finished = expected.finished.map(({ id }) => id);
    this.same('finished operations', outcome.finished, finished);
    for (const { id, outcome: end } of expected.finished)
      this.compareOutcome(`end of ${id}`, this.host.operations.get(id)?.outcome as Outcome, end);
    const emitted = outcome.emitted.map((id) => {
      const { notification, operation } = this.host.vfio.notifications.get(id) ?? {};
      if (notification === undefined) return id;
      const { device, notifier, iova, size, container, attempt } = notification;
      return { id, operation, device, notifier, iova, size, container, attempt };
    });
    const wanted = expected.emitted.map(({ n, op, device, notifier, iova, size, container, attempt }) =>
      this.host.vfio.notifications.has(`notification-${n}`)
        ? { id: `notification-${n}`, operation: op.id, device, notifier, iova, size, container, attempt }
        : `notification-${n}`,
    );
    this.same('emitted notifications', emitted, wanted);
  }

  private compareOutcome(what: string, outcome: Outcome, expected: NaiveOutcome): void {
    this.same(`${what}: errno`, outcome.refusal?.errno ?? null, expected.errno);
    this.same(`${what}: ret`, outcome.ret, expected.ret);
    const { at_index } = outcome.refusal ?? {};
    const got: Record<string, unknown> = { ...outcome.fields, ...outcome.refusal?.left, at_index };
    for (const [field, value] of Object.entries(expected.fields)) {
      const plain = field === 'phys_pfn' ? (value as (NaivePage | number)[]).map(pfnOf) : value;
      this.same(`${what}: ${field}`, got[field], plain);
    }
  }

  // States

  compareStates(): void {
    if (!this.comparing) return;
    const { ok, violations } = invariants(this.host);
    if (ok !== true) throw new Mismatch(`invariants: ${text(violations)}`);
    this.compareTasks();
    for (const [id, container] of this.model.containers) this.compareContainer(id, container);
    this.same('containers', [...this.host.vfio.containers.keys()].sort(), [...this.model.containers.keys()].sort());
    for (const [id, { open, container, users, chain }] of this.model.groups) {
      const group = viewGroup(this.host, id);
      const got = [group.fd_open, group.container, group.container_users, group.notifiers];
      this.same(`group ${id}`, got, [open, container, users, walkOf(chain).blocks]);
    }
    for (const [id, { open }] of this.model.devices)
      this.same(`open_count of ${id}`, viewDevice(this.host, id).open_count, open);
    const waiting = [...this.host.operations.values()].filter(({ state }) => state !== 'done');
    const kinds: Readonly<Record<string, string>> = { notification: 'notification', vaddr: 'vaddr' };
    const asleep = waiting.map(({ id, blocked_on }) => [id, kinds[blocked_on?.split(':')[0] ?? ''] ?? 'lock']);
    this.same(
      'operations that wait',
      asleep,
      this.model.asleep.map(({ id, waits }) => [id, waits]),
    );
    const pending = [...this.model.pending.keys()].map((n) => `notification-${n}`);
    this.same('notifications that wait', [...this.host.vfio.notifications.keys()], pending);
  }

  private compareTasks(): void {
    const { memory } = this.model;
    for (const [id, { mm, leader, cap }] of memory.tasks) {
      const task = viewTask(this.host, id);
      const locked = task.locked_vm === null ? null : BigInt.asUintN(64, BigInt(task.locked_vm as number));
      const got = [task.alive, locked, task.rlimit_memlock, task.cap_ipc_lock];
      this.same(`task ${id}`, got, [mm !== null, mm?.locked_vm ?? null, memory.limits.get(leader), cap]);
    }
    for (const [id, { slots }] of this.eachMm()) {
      for (const [page, { pte }] of slots) {
        const shown = listPages(this.host, id, BigInt(page) * PAGE, 1)[0];
        const wanted = [pte?.page.pfn ?? null, pte !== null, pte?.writable ?? false];
        this.same(`page ${page.toString(16)} of ${id}`, [shown?.pfn, shown?.present, shown?.writable], wanted);
      }
      const areas = listMaps(this.host, id, null, ALL).items;
      const mapped = areas.reduce((sum, { length }) => sum + Number((length as bigint) / PAGE), 0);
      this.same(`mapped pages of ${id}`, mapped, slots.size);
    }
    const zero = memory.zero.pfn === null ? [] : [memory.zero];
    for (const page of [...memory.anon, ...memory.byPfn.values(), ...zero]) {
      if (page.pfn === null) throw new Mismatch('a page of the model was never met');
      const shown = viewPage(this.host, page.pfn);
      // Where an IOMMU takes pages, it takes and drops more of them than it maps: dirty marks and what is never given back.
      const loose = this.model.metDomain;
      if (loose && isReserved(page)) continue;
      const got = [shown.mapcount, shown.pin_count, loose || shown.dirty, shown.ref_count];
      const references = page.maps + this.model.rules.pinBias * page.pins;
      this.same(`host page ${page.pfn}`, got, [page.maps, page.pins, loose || page.dirty, references]);
    }
  }

  private compareContainer(
    id: string,
    { open, groups, iommu, dead }: NonNullable<ReturnType<NaiveModel['containers']['get']>>,
  ): void {
    const shown = viewContainer(this.host, id);
    const got = [shown.fd_open, shown.groups, shown.dead !== null, shown.notifiers, shown.dirty_page_tracking];
    const listeners = iommu === null ? [] : walkOf(iommu.chain).blocks;
    this.same(`container ${id}`, got, [open, groups, dead, listeners, iommu?.tracking ?? false]);
    const avail = this.model.rules.entryLimit ? (iommu?.avail ?? null) : null;
    this.same(`dma_avail of ${id}`, shown.dma_avail, avail);
    if (iommu !== null && open) this.compareInfo(id, iommu);
    const firsts = new Set<unknown>();
    const mappings = listMappings(this.host, id, null, ALL).items.map((item) => {
      const { iova, size, vaddr, prot, task, npinned, vaddr_invalid, iommu_mapped } = item;
      // Of two that begin at the same iova only the first can be asked for its records.
      const records = firsts.has(iova) ? null : listPfns(this.host, id, iova as bigint, null, ALL).items;
      firsts.add(iova);
      const pins = records?.map((record) => [record.iova, record.pfn, record.ref_count]) ?? npinned;
      return { iova, size, vaddr, prot, task, vaddr_invalid, iommu_mapped, pins };
    });
    firsts.clear();
    const wanted = (iommu?.maps ?? []).map(({ iova, size, vaddr, prot, task, pins, invalid, marked }) => {
      const names = ['READ', 'WRITE'].filter((_, bit) => (prot & (1 << bit)) !== 0);
      const sorted = [...pins].sort(([a], [b]) => (a < b ? -1 : 1));
      const records = sorted.map(([at, { page, ref_count }]) => [at, page.pfn, ref_count]);
      const first = !firsts.has(iova);
      firsts.add(iova);
      const of = { iova, size, vaddr, prot: names, task, vaddr_invalid: invalid, iommu_mapped: marked };
      return { ...of, pins: first ? records : pins.size };
    });
    this.same(`mappings of ${id}`, mappings, wanted);
    for (const { task, pins } of iommu?.maps ?? [])
      for (const { page, ref_count } of pins.values())
        if (ref_count < 1 || (page.pins < 1 && !isReserved(page)))
          throw new Mismatch(`the model lost a pin of ${task}`);
  }

  /** GET_INFO with an argument block that is too small for the chain and with one that is not, and CHECK_EXTENSION. */
  private compareInfo(id: string, iommu: NaiveIommu): void {
    const { capabilities, capabilityAlign } = this.model.rules;
    const ids = capabilities.filter((cap) => cap !== 1 || iommu.ranges.length > 0);
    const bodies: Record<number, number> = { 1: 16 + 16 * iommu.ranges.length, 2: 32, 3: 12 };
    const sizes = ids.map((cap) => Math.ceil((bodies[cap] as number) / capabilityAlign) * capabilityAlign);
    const needed = 24 + sizes.reduce((sum, size) => sum + size, 0);
    for (const argsz of [24, 4096]) {
      const { flags, argsz: told, cap_offset, caps, iova_pgsizes } = viewInfo(this.host, id, argsz);
      const fits = argsz >= needed;
      const shown = (caps as { id: number; avail?: number; iova_ranges?: { start: bigint; end: bigint }[] }[]).map(
        (cap) => [cap.id, cap.avail ?? cap.iova_ranges?.map(({ start, end }) => [start, end]) ?? null],
      );
      const chain = ids.map((cap) => [cap, cap === 3 ? iommu.avail : cap === 1 ? iommu.ranges : null]);
      const pgsizes = iommu.domain === null ? 0xfffffffffffff000n : 0x40201000n;
      this.same(
        `GET_INFO of ${id}`,
        [flags, told, cap_offset, shown, iova_pgsizes],
        ids.length === 0
          ? [1, argsz, 0, [], pgsizes]
          : [3, fits ? argsz : needed, fits ? 24 : 0, fits ? chain : [], pgsizes],
      );
    }
    for (const extension of [1, 3, 4, 6, 9, 10, 99])
      this.same(
        `CHECK_EXTENSION ${extension} of ${id}`,
        checkExtension(this.host, id, extension).ret,
        this.model.answersExtension(iommu, extension),
      );
  }
}

const pfnOf = (page: NaivePage | number): number | null => (typeof page === 'number' ? page : page.pfn);

const text = (value: unknown): string =>
  JSON.stringify(value, (_key, item) => (typeof item === 'bigint' ? `0x${item.toString(16)}` : item)) ?? 'nothing';
