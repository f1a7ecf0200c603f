// The kernel beside the naive model: both execute every call, and afterwards everything that can be seen of them is compared.

import { isDeepStrictEqual } from 'node:util';
import type { Call, Command, HostOptions } from '../../src/kernel/command.ts';
import { createHost, execute } from '../../src/kernel/execute.ts';
import type { Host } from '../../src/kernel/host.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { invariants } from '../../src/kernel/view/host.ts';
import { listMaps, listPages, viewPage, viewTask } from '../../src/kernel/view/tasks.ts';
import { listMappings, listPfns, viewContainer, viewDevice, viewGroup } from '../../src/kernel/view/vfio.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { isReserved, type NaivePage } from './naive-mm.ts';
import { NaiveModel } from './naive-model.ts';
import { type NaiveOutcome, type NaiveResult, PAGE } from './naive-types.ts';

const ALL = Number.MAX_SAFE_INTEGER;

export const optionsOf = (dma_entry_limit: number): HostOptions => ({
  profile: '5.15',
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
  /** Sections of the last checkpoint, and the seq at which each was written. */
  private readonly kept = new Map<string, { seq: number; bytes: Uint8Array }>();
  /** Kernel pfns of the model's pages that the kernel chose; a page is met at its first fault. */
  private readonly met = new Map<NaivePage, number>();

  constructor(dma_entry_limit: number) {
    this.host = createHost('model', optionsOf(dma_entry_limit), 0);
    this.model = new NaiveModel(dma_entry_limit);
  }

  /** Executes a call on both and compares what came of it. */
  step(command: Command, notification: string | null = null): { outcome: Outcome; expected: NaiveResult } {
    const call: Call = { at: this.host.seq, request_id: `r${this.host.seq + 1}`, notification, command };
    const expected = this.model.execute(call);
    const outcome = execute(this.host, call);
    this.meetPages();
    this.compareOutcomes(outcome, expected);
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

  /** The model can't know which frame the kernel takes for a new page: it is learnt where the page is mapped. */
  private meetPages(): void {
    const { memory } = this.model;
    for (const [id, { mm, leader }] of memory.tasks)
      for (const [page, { pte }] of id === leader ? (mm?.slots ?? []) : []) {
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
      this.same(`group ${id}`, got, [open, container, users, chain.blocks]);
    }
    for (const [id, { open }] of this.model.devices)
      this.same(`open_count of ${id}`, viewDevice(this.host, id).open_count, open);
    const waiting = [...this.host.operations.values()].filter(({ state }) => state !== 'done');
    const asleep = waiting.map(({ id, blocked_on }) => [
      id,
      blocked_on?.startsWith('notification:') ? 'notification' : 'lock',
    ]);
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
      // Threads share the mm that their leader was compared with.
      if (id !== leader) continue;
      for (const [page, { pte }] of mm?.slots ?? []) {
        const shown = listPages(this.host, id, BigInt(page) * PAGE, 1)[0];
        const wanted = [pte?.page.pfn ?? null, pte !== null, pte?.writable ?? false];
        this.same(`page ${page.toString(16)} of ${id}`, [shown?.pfn, shown?.present, shown?.writable], wanted);
      }
      const areas = listMaps(this.host, id, null, ALL).items;
      const mapped = areas.reduce((sum, { length }) => sum + Number((length as bigint) / PAGE), 0);
      this.same(`mapped pages of ${id}`, mapped, mm?.slots.size ?? 0);
    }
    for (const page of [...memory.anon, ...memory.byPfn.values()]) {
      if (page.pfn === null) throw new Mismatch('a page of the model was never met');
      const shown = viewPage(this.host, page.pfn);
      const got = [shown.mapcount, shown.pin_count, shown.dirty, shown.ref_count];
      this.same(`host page ${page.pfn}`, got, [page.maps, page.pins, page.dirty, page.maps + 1024 * page.pins]);
    }
  }

  private compareContainer(
    id: string,
    { open, groups, iommu, dead }: NonNullable<ReturnType<NaiveModel['containers']['get']>>,
  ): void {
    const shown = viewContainer(this.host, id);
    const got = [shown.fd_open, shown.groups, shown.dead !== null, shown.dma_avail, shown.notifiers];
    this.same(`container ${id}`, got, [open, groups, dead, iommu?.avail ?? null, iommu?.chain.blocks ?? []]);
    const mappings = listMappings(this.host, id, null, ALL).items.map(({ iova, size, vaddr, prot, task }) => {
      const records = listPfns(this.host, id, iova as bigint, null, ALL).items;
      return {
        iova,
        size,
        vaddr,
        prot,
        task,
        pins: records.map((record) => [record.iova, record.pfn, record.ref_count]),
      };
    });
    const wanted = (iommu?.maps ?? []).map(({ iova, size, vaddr, prot, task, pins }) => {
      const names = ['READ', 'WRITE'].filter((_, bit) => (prot & (1 << bit)) !== 0);
      const sorted = [...pins].sort(([a], [b]) => (a < b ? -1 : 1));
      const records = sorted.map(([at, { page, ref_count }]) => [at, page.pfn, ref_count]);
      return { iova, size, vaddr, prot: names, task, pins: records };
    });
    this.same(`mappings of ${id}`, mappings, wanted);
    for (const { task, pins } of iommu?.maps ?? [])
      for (const { page, ref_count } of pins.values())
        if (ref_count < 1 || (page.pins < 1 && !isReserved(page)))
          throw new Mismatch(`the model lost a pin of ${task}`);
  }
}

const pfnOf = (page: NaivePage | number): number | null => (typeof page === 'number' ? page : page.pfn);

const text = (value: unknown): string =>
  JSON.stringify(value, (_key, item) => (typeof item === 'bigint' ? `0x${item.toString(16)}` : item)) ?? 'nothing';
