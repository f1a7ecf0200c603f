// The HTTP request that performs a command: method, path below the host, and body.

import type { AddressRange, Command, NotifierSpec } from '../../kernel/command.ts';
import { hex } from '../../kernel/lib/u64.ts';

export interface HttpRequest {
  method: 'GET' | 'PUT' | 'POST' | 'PATCH' | 'DELETE';
  path: string;
  body?: unknown;
}

const put = (path: string, body: unknown): HttpRequest => ({ method: 'PUT', path, body });
const post = (path: string, body: unknown = {}): HttpRequest => ({ method: 'POST', path, body });

/** `{ [name]: value }`, or nothing where the value is null: the field stays out of the body. */
const unlessNull = (name: string, value: unknown): object => (value === null ? {} : { [name]: value });

/** Flags and prot go as the integer mask, so that undefined bits are sent as they are. */
export function requestOf(command: Command): HttpRequest {
  switch (command.op) {
    case 'put_page_contents':
      return put('/page_contents', { contents: command.contents });
    case 'put_fault': {
      const { fault, point, call, nth } = command;
      return put(`/faults/${fault}`, { point, call, nth });
    }
    case 'kill_operation':
      return post(`/operations/${command.operation}/kill`);
    case 'put_page':
      return put(`/pages/${command.pfn}`, { kind: command.kind });
    case 'put_task': {
      const { task, rlimit_memlock, cap_ipc_lock, thread_of } = command;
      return put(`/tasks/${task}`, {
        rlimit_memlock: limitOf(rlimit_memlock),
        cap_ipc_lock,
        ...unlessNull('thread_of', thread_of),
      });
    }
    case 'patch_task': {
      const { task, rlimit_memlock, cap_ipc_lock } = command;
      const limit = rlimit_memlock === undefined ? null : limitOf(rlimit_memlock);
      const body = { ...unlessNull('rlimit_memlock', limit), ...unlessNull('cap_ipc_lock', cap_ipc_lock ?? null) };
      return { method: 'PATCH', path: `/tasks/${task}`, body };
    }
    case 'mmap': {
      const { task, addr, length, prot, backing, noreplace } = command;
      return post(`/tasks/${task}/mmap`, { addr: hex(addr), length: hex(length), prot, backing, noreplace });
    }
    case 'exit':
      return post(`/tasks/${command.task}/exit`, ifTrue('thread_only', command.thread_only));
    case 'adjust_locked_vm':
      return post(`/tasks/${command.task}/adjust_locked_vm`, { delta: command.delta });
    case 'put_container':
      return put(`/containers/${command.container}`, {});
    case 'close_container':
      return post(`/containers/${command.container}/close`, ifTrue('notify_only', command.notify_only));
    case 'set_iommu':
      return post(`/containers/${command.container}/set_iommu`, {
        type: command.type,
        ...unlessNull('task', command.task),
      });
    case 'put_group':
      return put(`/groups/${command.group}`, groupOf(command));
    case 'set_container': {
      const { group, container, task } = command;
      return post(`/groups/${group}/set_container`, { container, ...unlessNull('task', task) });
    }
    case 'unset_container':
      return post(`/groups/${command.group}/unset_container`);
    case 'put_device':
      return put(`/devices/${command.device}`, {
        group: command.group,
        ...unlessNull('dma_unmap', command.dma_unmap ?? null),
      });
    default:
      return dmaRequestOf(command);
  }
}

/** Devices, mappings, pins and notifiers. */
function dmaRequestOf(command: Command): HttpRequest {
  switch (command.op) {
    case 'open_device':
      return post(`/devices/${command.device}/open`);
    case 'close_device':
      return post(`/devices/${command.device}/close`);
    case 'map_dma': {
      const { container, task, iova, vaddr, size, flags, argsz } = command;
      const body = { task, iova: hex(iova), vaddr: hex(vaddr), size: hex(size), flags, argsz };
      return post(`/containers/${container}/map_dma`, body);
    }
    case 'unmap_dma': {
      const { container, task, iova, size, flags, argsz, bitmap } = command;
      const shown = bitmap === null ? null : hexed(bitmap);
      const optional = { ...unlessNull('task', task), ...unlessNull('argsz', argsz), ...unlessNull('bitmap', shown) };
      return post(`/containers/${container}/unmap_dma`, { iova: hex(iova), size: hex(size), flags, ...optional });
    }
    case 'dirty_pages': {
      const { container, flags, argsz, range, task } = command;
      const optional = { ...unlessNull('argsz', argsz), ...unlessNull('task', task) };
      const shown = range === null ? {} : hexed(range);
      return post(`/containers/${container}/dirty_pages`, { op: flags, ...shown, ...optional });
    }
    case 'dma_rw': {
      const { device, iova, length, write, data, task } = command;
      const body = { iova: hex(iova), length: hex(BigInt(length)), write };
      return post(`/devices/${device}/dma_rw`, { ...body, ...unlessNull('data', data), ...unlessNull('task', task) });
    }
    case 'pin_pages':
      return post(`/devices/${command.device}/pin_pages`, entriesOf(command, { prot: command.prot }));
    case 'unpin_pages':
      return post(`/devices/${command.device}/unpin_pages`, entriesOf(command, {}));
    case 'register_notifier':
      return post(`/devices/${command.device}/notifiers`, notifierOf(command.notifier));
    case 'unregister_notifier': {
      const { device, notifier, type } = command;
      return {
        method: 'DELETE',
        path: `/devices/${device}/notifiers/${notifier}${type === null ? '' : `?type=${type}`}`,
      };
    }
    case 'ack_notification':
      return post(`/devices/${command.device}/notifications/${command.notification}/ack`, { ret: command.ret });
    default:
      throw new Error(`the replayer has no request for ${command.op}`);
  }
}

const limitOf = (limit: bigint | 'unlimited'): string => (limit === 'unlimited' ? limit : hex(limit));

/** The flag where it is set. */
const ifTrue = (name: string, flag: boolean | undefined): object => (flag === true ? { [name]: true } : {});

/** Addresses and sizes as the service takes them. */
const hexed = (fields: { [name: string]: bigint | undefined }): object =>
  Object.fromEntries(
    Object.entries(fields).flatMap(([name, value]) => (value === undefined ? [] : [[name, hex(value)]])),
  );

const rangeOf = ({ start, last }: AddressRange): object => hexed({ start, last });

function groupOf({ kind, reserved, aperture }: Extract<Command, { op: 'put_group' }>): object {
  return {
    kind,
    ...(reserved === undefined ? {} : { reserved: reserved.map(rangeOf) }),
    ...(aperture === undefined ? {} : { aperture: rangeOf(aperture) }),
  };
}

/** Type and priority only where they are not the default: from 6.0 on there are none. */
const notifierOf = ({ type, priority, ...rest }: NotifierSpec): object => ({
  ...rest,
  ...(type === 0 ? {} : { type }),
  ...(priority === 0 ? {} : { priority }),
});

type Entries = Pick<Extract<Command, { op: 'pin_pages' }>, 'user_pfn' | 'npage' | 'contiguous'>;

/** The form of 6.0 and later, or an array; there npage only where it is not the array's length. */
function entriesOf({ user_pfn, npage, contiguous }: Entries, more: object): object {
  if (contiguous !== undefined) return { iova: hex(contiguous.iova), npage, ...more };
  return { user_pfn, ...more, ...(npage === user_pfn.length ? {} : { npage }) };
}
