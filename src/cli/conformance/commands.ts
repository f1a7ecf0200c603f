// Translates an operation of a trace into the commands that perform it.

import type { Command } from '../../kernel/command.ts';
import { CONTAINER, Inexpressible, leaderOf } from './layout.ts';
import type { InputOp } from './trace.ts';
import type { Args, MemoryModel } from './trace-format.ts';

/** sizeof(struct vfio_iommu_type1_dma_map): what a caller passes as argsz. */
const MAP_ARGSZ = 32;

/** A question about the container that changes nothing. */
export type Question = { ask: 'get_info'; argsz: number } | { ask: 'check_extension'; ext: number };

/** The command of an operation, or the question it asks. Throws Inexpressible. */
export function translate(input: InputOp, model: MemoryModel): Command | Question {
  const { op, args } = input;
  if ('null' in args && args.null !== undefined)
    throw new Inexpressible(`${op} with a null ${args.null} pointer`, true);
  switch (op) {
    case 'get_info':
      return { ask: 'get_info', argsz: args.argsz };
    case 'check_extension':
      return { ask: 'check_extension', ext: args.ext };
    default:
      return commandOf(input, model);
  }
}

type Performed = Exclude<InputOp, { op: 'get_info' | 'check_extension' }>;

function commandOf({ op, args }: Performed, model: MemoryModel): Command {
  switch (op) {
    case 'set_container':
      return { op, group: args.group, container: CONTAINER, task: args.as ?? null };
    case 'unset_container':
      return { op, group: args.group };
    case 'set_iommu':
      return { op, container: CONTAINER, type: args.type, task: args.as ?? null };
    case 'open_device':
    case 'close_device':
      return { op, device: args.device };
    case 'close_container_fd':
      return { op: 'close_container', container: CONTAINER, notify_only: true };
    case 'map_dma':
      return mapOf(args);
    case 'unmap_dma':
      return unmapOf(args);
    case 'pin_pages':
      return { op, ...entriesOf(args), prot: args.prot };
    case 'unpin_pages':
      return { op, ...entriesOf(args) };
    case 'register_notifier': {
      const { device, listener: id, events, type } = args;
      const priority = model.listeners[id]?.priority ?? 0;
      return { op, device, notifier: { id, events, type, priority, delivery: { kind: 'poll' } } };
    }
    case 'unregister_notifier':
      return { op, device: args.device, notifier: args.listener, type: args.type };
    case 'set_rlimit': {
      const rlimit_memlock = args.bytes === null ? 'unlimited' : BigInt(args.bytes);
      return { op: 'patch_task', task: leaderOf(args.process), rlimit_memlock };
    }
    case 'set_cap':
      return { op: 'patch_task', task: args.thread, cap_ipc_lock: args.cap_ipc_lock };
    case 'adjust_locked_vm':
      return { op, task: leaderOf(args.process), delta: args.delta };
    case 'exit_process':
      // The exit of a leader ends all threads.
      return { op: 'exit', task: leaderOf(args.process) };
    case 'exit_thread':
      return { op: 'exit', task: args.thread, thread_only: true };
    case 'dirty_pages':
      return dirtyPagesOf(args);
    case 'dma_rw':
      return dmaRwOf(args, model);
  }
}

function mapOf({ as, iova, vaddr, size, flags, argsz }: Args<'map_dma'>): Command {
  if (as === undefined) throw new Inexpressible('map_dma by a kernel thread');
  return {
    op: 'map_dma',
    container: CONTAINER,
    task: as,
    iova: BigInt(iova),
    vaddr: BigInt(vaddr),
    size: BigInt(size),
    flags,
    argsz: argsz ?? MAP_ARGSZ,
  };
}

function unmapOf({ as, iova, size, flags, argsz, bitmap }: Args<'unmap_dma'>): Command {
  const addr = bitmap?.addr === undefined ? {} : { addr: BigInt(bitmap.addr) };
  return {
    op: 'unmap_dma',
    container: CONTAINER,
    task: as ?? null,
    iova: BigInt(iova),
    size: BigInt(size),
    flags,
    argsz: argsz ?? null,
    bitmap: bitmap === undefined ? null : { pgsize: BigInt(bitmap.pgsize), size: BigInt(bitmap.size), ...addr },
  };
}

/** Sizes of struct vfio_iommu_type1_dirty_bitmap with and without the range. */
const DIRTY_ARGSZ = 8;
const DIRTY_GET_ARGSZ = 48;

function dirtyPagesOf({
  flags,
  iova,
  size,
  pgsize,
  bitmap_bytes,
  argsz,
  bitmap_addr,
  as,
}: Args<'dirty_pages'>): Command {
  const range = {
    iova: BigInt(iova ?? 0),
    size: BigInt(size ?? 0),
    pgsize: BigInt(pgsize ?? 0),
    bitmap_size: BigInt(bitmap_bytes ?? 0),
    ...(bitmap_addr === undefined ? {} : { bitmap_addr: BigInt(bitmap_addr) }),
  };
  const hasRange = iova !== undefined;
  return {
    op: 'dirty_pages',
    container: CONTAINER,
    flags,
    argsz: argsz ?? (hasRange ? DIRTY_GET_ARGSZ : DIRTY_ARGSZ),
    range: hasRange ? range : null,
    task: as ?? null,
  };
}

function dmaRwOf({ group, device, iova, length, write, data, as }: Args<'dma_rw'>, model: MemoryModel): Command {
  const through = device ?? Object.entries(model.devices).find(([, { group: of }]) => of === group)?.[0];
  if (through === undefined) throw new Inexpressible(`dma_rw through group ${group}, which has no device`);
  return {
    op: 'dma_rw',
    device: through,
    iova: BigInt(iova),
    length,
    write,
    data: write ? bytesOf(data, length) : null,
    task: as ?? null,
  };
}

function bytesOf(data: Args<'dma_rw'>['data'], length: number): string {
  if (data === undefined) return '';
  if (typeof data === 'string') return Buffer.from(data, 'hex').toString('base64');
  return Buffer.from(Array.from({ length }, (_, i) => (data.fill_from + i) % 256)).toString('base64');
}

/** The rules that force the failures of an operation, to be set just before it. */
export function faultsOf({ op, args }: InputOp): Command[] {
  if (!('inject' in args) || args.inject === undefined) return [];
  const { record_alloc_fails_at, charge_killed_at } = args.inject;
  const faults: Command[] = [];
  const call = op as 'pin_pages';
  if (record_alloc_fails_at !== undefined)
    faults.push({ op: 'put_fault', fault: 'record-alloc', point: 'record_alloc', call, nth: record_alloc_fails_at });
  if (charge_killed_at !== undefined)
    faults.push({ op: 'put_fault', fault: 'charge', point: 'charge', call, nth: charge_killed_at });
  return faults;
}

interface Entries {
  device: string;
  user_pfn: number[];
  npage: number;
  contiguous?: { iova: bigint };
}

function entriesOf(args: Args<'unpin_pages'>): Entries {
  if (args.iova !== undefined)
    return { device: args.device, user_pfn: [], npage: args.npage ?? 0, contiguous: { iova: BigInt(args.iova) } };
  const user_pfn =
    args.iova_range === undefined
      ? (args.iovas ?? []).map(pageOf)
      : Array.from({ length: args.iova_range[1] }, (_, i) => pageOf(args.iova_range?.[0] ?? '0x0') + i);
  return { device: args.device, user_pfn, npage: args.npage ?? user_pfn.length };
}

const pageOf = (iova: string): number => Number(BigInt(iova) >> 12n);
