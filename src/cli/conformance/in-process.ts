// The in-process backend: commands go straight to the kernel, state is read with the views that the HTTP service shows too.

import type { Call, Command, HostOptions } from '../../kernel/command.ts';
import { createHost, execute } from '../../kernel/execute.ts';
import type { Host } from '../../kernel/host.ts';
import { hex } from '../../kernel/lib/u64.ts';
import { getOperation } from '../../kernel/operation.ts';
import { type Fields, type Outcome, refusalOf, type Value } from '../../kernel/outcome.ts';
import { type Profile, profileWith } from '../../kernel/profile.ts';
import { viewPage, viewTask } from '../../kernel/view/tasks.ts';
import { checkExtension, listMappings, listPfns, viewContainer, viewInfo } from '../../kernel/view/vfio.ts';
import type { Question } from './commands.ts';
import { CONTAINER, threadsOf } from './layout.ts';
import type { Backend, Machine, Reply, Returned, Splat } from './machine.ts';
import { infoOf, labelOf, lockedVmOf, mappingOf, notificationIn, outputOf, pageOf, type Shown } from './observe.ts';
import type { State } from './trace.ts';
import type { MemoryModel } from './trace-format.ts';

export class InProcess implements Backend {
  readonly name = 'in process';

  /** `bend` gives the hosts other behaviours than their profile has; how they are looked at does not change with it. */
  constructor(private readonly bend: (profile: Profile) => Profile = (profile) => profile) {}

  async begin(options: HostOptions, model: MemoryModel): Promise<Machine> {
    const profile = profileWith(options.profile, options.fixes);
    return new KernelMachine(
      createHost('conformance', options, 0, this.bend(profile)),
      model,
      profile.taskKept === 'thread',
    );
  }

  async close(): Promise<void> {}
}

/** Every page of a list that fits one call. */
const ALL = Number.MAX_SAFE_INTEGER;

class KernelMachine implements Machine {
  private lastSplat = 0;

  constructor(
    private readonly host: Host,
    private readonly model: MemoryModel,
    /** Whether a mapping belongs to the thread that made it, not to its process. */
    private readonly ownedByThread: boolean,
  ) {}

  async call(command: Command, inside: string | null): Promise<Reply> {
    const call: Call = { at: this.host.seq, request_id: `call-${this.host.seq + 1}`, notification: inside, command };
    const outcome = execute(this.host, call);
    return outcome.parked === undefined ? returned(command.op, outcome) : this.resume(outcome.parked);
  }

  async resume(id: string): Promise<Reply> {
    const { kind, outcome, blocked_on } = getOperation(this.host, id);
    if (outcome !== null) return returned(kind, outcome);
    const pending = this.host.vfio.notifications.get(notificationIn(blocked_on))?.notification;
    if (pending === undefined) return { operation: id, notification: null };
    const { device, notifier: listener, iova, size } = pending;
    return { operation: id, notification: { id: pending.id, device, listener, iova: hex(iova), size: hex(size) } };
  }

  async ask(question: Question): Promise<Returned> {
    try {
      if (question.ask === 'get_info')
        return infoOf(printed(viewInfo(this.host, CONTAINER, question.argsz)), question.argsz);
      return { ret: checkExtension(this.host, CONTAINER, question.ext).ret as number, errno: null, out: {} };
    } catch (error) {
      const { ret, refusal } = refusalOf(error);
      return { ret, errno: refusal.errno, out: {} };
    }
  }

  async splats(): Promise<Splat[]> {
    const { items } = this.host.dmesg.since(this.lastSplat, ALL);
    this.lastSplat = items.at(-1)?.n ?? this.lastSplat;
    return items.flatMap(({ kind, where, text }) =>
      kind === null || where === null ? [] : [{ kind, where, ...labelOf(text) }],
    );
  }

  async state(): Promise<State> {
    const exists = this.host.vfio.containers.has(CONTAINER);
    const container = exists ? viewContainer(this.host, CONTAINER) : NO_CONTAINER;
    const listed = exists ? listMappings(this.host, CONTAINER, null, ALL).items : [];
    const mappings = listed.map((mapping) => {
      const pfns = listPfns(this.host, CONTAINER, mapping.iova as bigint, null, ALL).items;
      return mappingOf(printed(mapping), pfns.map(printed), this.ownedByThread);
    });
    const pages: Fields[] = [];
    // Most pages have nothing to say: they are not even looked at.
    for (let pfn = 1; pfn <= this.model.pages.count; pfn++)
      if (this.host.mm.pages.pinCount(pfn) !== 0 || this.host.mm.pages.isDirty(pfn))
        pages.push(viewPage(this.host, pfn));
    const tasks = Object.keys(this.model.processes).map((process) => [process, this.liveThread(process)] as const);
    return {
      mappings,
      locked_vm: Object.fromEntries(tasks.map(([process, task]) => [process, lockedVmOf(printed(task))])),
      pages: pages.map(printed).flatMap(pageOf),
      dma_avail: container.dma_avail as number | null,
      ...(container.dirty_page_tracking === true ? { dirty_tracking: true } : {}),
      ...(container.iommu_type === null ? {} : { listeners: (container.notifiers as Value[]).length }),
    };
  }

  /** A thread that can still say what its process is charged. */
  private liveThread(process: string): Fields {
    const threads = threadsOf(this.model, process).map((thread) => viewTask(this.host, thread));
    return (threads.find(({ alive }) => alive === true) ?? threads[0]) as Fields;
  }

  async end(): Promise<void> {}
}

/** A container is gone when its fd is closed and its last group has left. */
const NO_CONTAINER: Fields = { dma_avail: null, iommu_type: null, notifiers: [] };

function returned(op: string, { ret, refusal, fields }: Outcome): Returned {
  const refused =
    refusal === undefined ? {} : { errno: refusal.errno, ...((refusal.left as Fields | undefined) ?? {}) };
  const shown = printed({ ...fields, ...refused });
  return { ret, errno: refusal?.errno ?? null, out: outputOf(op, shown) };
}

/** Fields as the service prints them in JSON. */
const printed = (fields: Fields): Shown => printedValue(fields) as Shown;

function printedValue(value: Value): unknown {
  if (typeof value === 'bigint') return hex(value);
  if (Array.isArray(value)) return value.map(printedValue);
  if (typeof value !== 'object' || value === null) return value;
  const shown: Shown = {};
  for (const key in value) shown[key] = printedValue(value[key] as Value);
  return shown;
}
