// The HTTP request that performs a command: method, path below the host, and body.

import type { Command } from '../../kernel/command.ts';
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
      return post(`/tasks/${command.task}/exit`);
    case 'adjust_locked_vm':
      return post(`/tasks/${command.task}/adjust_locked_vm`, { delta: command.delta });
    case 'put_container':
      return put(`/containers/${command.container}`, {});
    case 'close_container':
      return post(`/containers/${command.container}/close`);
    case 'set_iommu':
      return post(`/containers/${command.container}/set_iommu`, {
        type: command.type,
        ...unlessNull('task', command.task),
      });
    case 'put_group':
      return put(`/groups/${command.group}`, { kind: command.kind });
    case 'set_container': {
      const { group, container, task } = command;
      return post(`/groups/${group}/set_container`, { container, ...unlessNull('task', task) });
    }
    case 'unset_container':
      return post(`/groups/${command.group}/unset_container`);
    case 'put_device':
      return put(`/devices/${command.device}`, { group: command.group });
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
      const shown = bitmap === null ? null : { pgsize: hex(bitmap.pgsize), size: hex(bitmap.size) };
      const optional = { ...unlessNull('task', task), ...unlessNull('argsz', argsz), ...unlessNull('bitmap', shown) };
      return post(`/containers/${container}/unmap_dma`, { iova: hex(iova), size: hex(size), flags, ...optional });
    }
    case 'pin_pages':
      return post(`/devices/${command.device}/pin_pages`, entriesOf(command, { prot: command.prot }));
    case 'unpin_pages':
      return post(`/devices/${command.device}/unpin_pages`, entriesOf(command, {}));
    case 'register_notifier':
      return post(`/devices/${command.device}/notifiers`, command.notifier);
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

/** npage only where it is not the length of the array. */
function entriesOf({ user_pfn, npage }: { user_pfn: number[]; npage: number }, more: object): object {
  return { user_pfn, ...more, ...(npage === user_pfn.length ? {} : { npage }) };
}
