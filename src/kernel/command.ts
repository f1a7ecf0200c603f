// The commands that a host executes: everything that changes it, as plain data. A journal row is one of these.
// Byte addresses and byte sizes are bigint (0 .. 2^64 - 1, checked at the edge); counts and page frame numbers are numbers.

import type { FaultPoint } from './fault-rule.ts';

/** What a host is made from. Every field is set; defaults are applied where a host is created. */
export interface HostOptions {
  profile: string;
  template: 'empty' | 'default';
  dma_entry_limit: number;
  notifier_timeout_ms: number;
  total_pages: number;
  fixes: string[];
  ttl_s: number | null;
}

/** One state of a page-table entry of a VM_PFNMAP mapping before its first use. */
export type PfnmapPte = 'rw' | 'r' | 'lazy' | 'lazy-retry' | 'sigbus';

/** Runs of [first pfn, count] in address order. */
export type PfnRuns = [number, number][];

export type Backing =
  | { kind: 'anon' }
  | { kind: 'file'; file: string; pgoff: number; shared: boolean }
  | { kind: 'pfnmap'; pfn?: number; pfns?: PfnRuns; struct_page: boolean; reserved: boolean; ptes?: PfnmapPte[] }
  | { kind: 'pages'; pfns: PfnRuns };

/** What pages hold that nobody has written: zeros, or bytes that differ from page to page. */
export type PageContents = 'zero' | 'pattern';

/** A range of bytes, its last one included. */
export interface AddressRange {
  start: bigint;
  last: bigint;
}

/** mdev: devices without an IOMMU of their own. iommu: devices behind one. noiommu: devices that lack one and are handed out all the same. */
export type GroupKind = 'mdev' | 'iommu' | 'noiommu';

export type PageKind = 'normal' | 'reserved' | 'zero' | 'device';

export type BuiltinBehavior =
  | 'unpin_all'
  | 'unpin_one_reference'
  | 'ignore'
  | 'unpin_on_nth'
  | 'stop'
  | 'repin'
  | 'slow';

export type Delivery =
  | { kind: 'poll' }
  | { kind: 'webhook'; url: string; secret: string }
  | { kind: 'builtin'; behavior: BuiltinBehavior; n: number; delay_ms: number };

export interface NotifierSpec {
  id?: string;
  /** The events word as the caller initialises it. */
  events: number;
  /** 0 VFIO_IOMMU_NOTIFY, 1 VFIO_GROUP_NOTIFY, or any other integer. */
  type: number;
  priority: number;
  /** The caller named type or priority, if only to give them their defaults. */
  explicit?: true;
  delivery: Delivery;
}

/** Bits of READ and WRITE in prot, READ, WRITE and VADDR in map flags. */
export const READ = 1;
export const WRITE = 2;
export const MAP_VADDR = 4;
export const UNMAP_GET_DIRTY_BITMAP = 1;
export const UNMAP_ALL = 2;
export const UNMAP_VADDR = 4;
export const DIRTY_PAGES_START = 1;
export const DIRTY_PAGES_STOP = 2;
export const DIRTY_PAGES_GET_BITMAP = 4;

export type Command =
  | { op: 'patch_host'; dma_entry_limit?: number; notifier_timeout_ms?: number; ttl_s?: number | null }
  // tasks and memory
  | {
      op: 'put_task';
      task: string;
      rlimit_memlock: bigint | 'unlimited';
      cap_ipc_lock: boolean;
      cap_sys_rawio?: boolean;
      thread_of: string | null;
    }
  | {
      op: 'patch_task';
      task: string;
      rlimit_memlock?: bigint | 'unlimited';
      cap_ipc_lock?: boolean;
      cap_sys_rawio?: boolean;
    }
  | { op: 'mmap'; task: string; addr: bigint; length: bigint; prot: number; backing: Backing; noreplace: boolean }
  | { op: 'munmap'; task: string; addr: bigint; length: bigint }
  | { op: 'mprotect'; task: string; addr: bigint; length: bigint; prot: number }
  /** thread_only: a leader alone, its other threads live on. */
  | { op: 'exit'; task: string; thread_only?: boolean }
  | { op: 'exec'; task: string }
  | { op: 'adjust_locked_vm'; task: string; delta: number }
  | { op: 'put_page'; pfn: number; kind: PageKind }
  | { op: 'put_page_contents'; contents: PageContents }
  // containers, groups, devices
  | { op: 'put_container'; container: string }
  /** notify_only: the back end is told of the close, as in the recorded traces, and ioctls are taken all the same. */
  | { op: 'close_container'; container: string; notify_only?: boolean }
  | { op: 'put_group'; group: string; kind: GroupKind; reserved?: AddressRange[]; aperture?: AddressRange }
  /** Without a task the caller may do anything. */
  | { op: 'open_group'; group: string; task?: string }
  | { op: 'close_group'; group: string }
  | { op: 'set_container'; group: string; container: string; task: string | null }
  | { op: 'unset_container'; group: string }
  | { op: 'set_iommu'; container: string; type: number; task: string | null }
  /** dma_unmap false: a driver that has no such op and never gets one. */
  | { op: 'put_device'; device: string; group: string | null; dma_unmap?: boolean }
  | { op: 'put_device_in_container'; device: string; container: string; notifier: NotifierSpec | null }
  | { op: 'open_device'; device: string }
  | { op: 'close_device'; device: string }
  // DMA mappings
  | {
      op: 'map_dma';
      container: string;
      task: string;
      iova: bigint;
      vaddr: bigint;
      size: bigint;
      flags: number;
      argsz: number;
    }
  | {
      op: 'unmap_dma';
      container: string;
      /** The calling task; null: the task of the lowest overlapping mapping, a foreign mm where there is none or it is dead. */
      task: string | null;
      iova: bigint;
      size: bigint;
      flags: number;
      argsz: number | null;
      /** addr: where in the caller's memory; without it, a zeroed buffer of the client's own. */
      bitmap: { pgsize: bigint; size: bigint; addr?: bigint } | null;
    }
  | {
      op: 'dirty_pages';
      container: string;
      /** DIRTY_PAGES_START, _STOP or _GET_BITMAP; other bits are the kernel's to refuse. */
      flags: number;
      argsz: number | null;
      range: { iova: bigint; size: bigint; pgsize: bigint; bitmap_size: bigint; bitmap_addr?: bigint } | null;
      task: string | null;
    }
  /** data: base64 of the bytes to write; a null task is a kernel thread. */
  | {
      op: 'dma_rw';
      device: string;
      iova: bigint;
      length: number;
      write: boolean;
      data: string | null;
      task: string | null;
    }
  // pin and unpin; `contiguous` is set in the form that starts at an iova, where user_pfn is empty
  | { op: 'pin_pages'; device: string; user_pfn: number[]; npage: number; prot: number; contiguous?: { iova: bigint } }
  | { op: 'unpin_pages'; device: string; user_pfn: number[]; npage: number; contiguous?: { iova: bigint } }
  // notifiers
  | { op: 'register_notifier'; device: string; notifier: NotifierSpec }
  | { op: 'unregister_notifier'; device: string; notifier: string; type: number | null }
  | {
      op: 'ack_notification';
      device: string;
      notification: string;
      ret: number;
      reason: 'ack' | 'webhook_failed' | 'slow_builtin';
      detail: string | null;
    }
  | { op: 'notification_timeout'; notification: string }
  /** A fatal signal for the thread that sleeps in an operation. */
  | { op: 'kill_operation'; operation: string }
  // failures to come
  | { op: 'put_fault'; fault: string; point: FaultPoint; call: Op; nth: number }
  | { op: 'delete_fault'; fault: string };

export type Op = Command['op'];

/** A command as it arrives: with the time and the names that the outside gave it. */
export interface Call {
  /** Milliseconds since the epoch, from the service's clock. */
  at: number;
  request_id: string;
  /** The notification inside whose handler the call is made (X-Notification); null: another thread. */
  notification: string | null;
  command: Command;
}
