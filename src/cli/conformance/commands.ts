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
  if ('inject' in args && args.inject !== undefined) throw new Inexpressible(`${op} with a forced failure`);
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
      return { op: 'close_container', container: CONTAINER };
    case 'map_dma':
      return mapOf(args);
    case 'unmap_dma':
      return unmapOf(args);
    case 'pin_pages':
      return { op, ...pfnsOf(args), prot: args.prot };
    case 'unpin_pages':
      return { op, ...pfnsOf(args) };
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
      if (args.thread.endsWith('.0')) throw new Inexpressible('exit of a leader while its threads live on');
      return { op: 'exit', task: args.thread };
    case 'dirty_pages':
    case 'dma_rw':
      throw new Inexpressible(op);
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
  if (bitmap?.addr !== undefined) throw new Inexpressible('unmap_dma with a bitmap at a bad address');
  return {
    op: 'unmap_dma',
    container: CONTAINER,
    task: as ?? null,
    iova: BigInt(iova),
    size: BigInt(size),
    flags,
    argsz: argsz ?? null,
    bitmap: bitmap === undefined ? null : { pgsize: BigInt(bitmap.pgsize), size: BigInt(bitmap.size) },
  };
}

function pfnsOf(args: Args<'unpin_pages'>): { device: string; user_pfn: number[]; npage: number } {
  if (args.iova !== undefined) throw new Inexpressible('pin and unpin of a contiguous range');
  const user_pfn =
    args.iova_range === undefined
      ? (args.iovas ?? []).map(pageOf)
      : Array.from({ length: args.iova_range[1] }, (_, i) => pageOf(args.iova_range?.[0] ?? '0x0') + i);
  return { device: args.device, user_pfn, npage: args.npage ?? user_pfn.length };
}

const pageOf = (iova: string): number => Number(BigInt(iova) >> 12n);
