// Lays out the machine of a trace: the commands that make its pages, tasks, areas, groups and devices. A page id is its pfn.

import type { AddressRange, Backing, Command, HostOptions, PageKind } from '../../kernel/command.ts';
import { READ, WRITE } from '../../kernel/command.ts';
import { PROFILES } from '../../kernel/profile.ts';
import type { MemoryModel, Vma } from './trace-format.ts';

/** The one container of a trace. */
export const CONTAINER = 'C';
/** Group, device and container through which the listeners are made known, before anything of the trace exists. */
const ELSEWHERE = 'elsewhere';

/** Something that commands cannot say yet, or a caller can never say. */
export class Inexpressible extends Error {
  constructor(
    message: string,
    /** Whether the kernel refuses it before it changes anything, so that it can be left out. */
    readonly harmless = false,
  ) {
    super(message);
    this.name = 'Inexpressible';
  }
}

export const leaderOf = (process: string): string => `${process}.0`;
export const processOf = (thread: string): string => thread.split('.')[0] as string;
export const threadsOf = (model: MemoryModel, process: string): string[] =>
  Array.from({ length: model.processes[process]?.threads ?? 0 }, (_, i) => `${process}.${i}`);

/** The host of a trace: its era is its profile. Throws Inexpressible. */
export function hostOptions(era: string, model: MemoryModel): HostOptions {
  if (!Object.hasOwn(PROFILES, era)) throw new Inexpressible(`no profile ${era}`);
  return {
    profile: era,
    template: 'empty',
    dma_entry_limit: model.dma_entry_limit,
    notifier_timeout_ms: 600_000,
    total_pages: 16_777_216,
    fixes: [],
    ttl_s: null,
  };
}

/** Every command of the layout, in order; pages differ from each other where their bytes are asked for. Throws Inexpressible. */
export function* layoutOf(model: MemoryModel, withBytes: boolean): Iterable<Command> {
  if (withBytes) yield { op: 'put_page_contents', contents: 'pattern' };
  for (const [pfn, kind] of Object.entries(model.pages.kinds)) yield { op: 'put_page', pfn: Number(pfn), kind };
  for (const [process, { rlimit_memlock, cap_ipc_lock, vmas }] of Object.entries(model.processes)) {
    for (const task of threadsOf(model, process))
      yield {
        op: 'put_task',
        task,
        rlimit_memlock: rlimit_memlock === null ? 'unlimited' : BigInt(rlimit_memlock),
        cap_ipc_lock,
        thread_of: task === leaderOf(process) ? null : leaderOf(process),
      };
    for (const vma of vmas) yield mmapOf(leaderOf(process), vma, model);
  }
  yield* introduceListeners(model);
  yield { op: 'put_container', container: CONTAINER };
  for (const [group, { kind, reserved, aperture }] of Object.entries(model.groups))
    yield {
      op: 'put_group',
      group,
      kind,
      ...(reserved === undefined ? {} : { reserved: reserved.map(rangeOf) }),
      ...(aperture === undefined ? {} : { aperture: rangeOf(aperture) }),
    };
  for (const [device, { group, has_unmap_callback }] of Object.entries(model.devices)) {
    yield { op: 'put_device', device, group, ...(has_unmap_callback === false ? { dma_unmap: false } : {}) };
    if (has_unmap_callback === true)
      yield {
        op: 'register_notifier',
        device,
        notifier: { id: device, events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } },
      };
  }
}

const rangeOf = ([start, last]: [string, string]): AddressRange => ({ start: BigInt(start), last: BigInt(last) });

function mmapOf(task: string, vma: Vma, model: MemoryModel): Command {
  return {
    op: 'mmap',
    task,
    addr: BigInt(vma.start),
    length: BigInt(vma.npages) << 12n,
    prot: vma.perm === 'rw' ? READ | WRITE : READ,
    backing: backingOf(vma, model),
    noreplace: true,
  };
}

function backingOf(vma: Vma, model: MemoryModel): Backing {
  if (vma.kind === 'normal') return { kind: 'pages', pfns: vma.pages };
  const kind: PageKind = model.pages.kinds[String(vma.pages[0]?.[0])] ?? 'normal';
  const ptes = vma.ptes === undefined ? {} : { ptes: vma.ptes };
  return { kind: 'pfnmap', pfns: vma.pages, struct_page: kind !== 'device', reserved: kind === 'reserved', ...ptes };
}

/**
 * A vendor driver's notifier block exists before it is registered, but a host learns of one by its first registration. So
 * each is registered and unregistered once in a container of its own, where nothing is mapped.
 */
function* introduceListeners(model: MemoryModel): Iterable<Command> {
  const listeners = Object.entries(model.listeners);
  if (listeners.length === 0) return;
  yield { op: 'put_container', container: ELSEWHERE };
  yield { op: 'put_group', group: ELSEWHERE, kind: 'mdev' };
  yield { op: 'put_device', device: ELSEWHERE, group: ELSEWHERE };
  yield { op: 'set_container', group: ELSEWHERE, container: ELSEWHERE, task: null };
  yield { op: 'set_iommu', container: ELSEWHERE, type: 3, task: null };
  for (const [id, { priority }] of listeners) {
    yield {
      op: 'register_notifier',
      device: ELSEWHERE,
      notifier: { id, events: 1, type: 0, priority, delivery: { kind: 'poll' } },
    };
    yield { op: 'unregister_notifier', device: ELSEWHERE, notifier: id, type: 0 };
  }
  yield { op: 'unset_container', group: ELSEWHERE };
  yield { op: 'close_container', container: ELSEWHERE };
}
