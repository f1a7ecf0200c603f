// The commands that a host executes: everything that changes it, as plain data. A journal row is one of these.
// Byte addresses and byte sizes are bigint (0 .. 2^64 - 1, checked at the edge); counts and page frame numbers are numbers.

import type { ConsumerCommand } from './consumers.ts';
import type { FaultPoint } from './fault-rule.ts';
import type { MmuEvent } from './mm/mmu-notifier/range.ts';
import type { CallbackName, Handler } from './mm/mmu-notifier/subscriptions.ts';
import type { Phase } from './phase.ts';

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

export type Advice = 'DONTNEED' | 'FREE' | 'DONTFORK' | 'DOFORK' | 'WIPEONFORK' | 'KEEPONFORK';

/** mdev: devices without an IOMMU of their own. iommu: devices behind one. noiommu: devices that lack one and are handed out all the same. */
export type GroupKind = 'mdev' | 'iommu' | 'noiommu';

export type PageKind = 'normal' | 'reserved' | 'zero' | 'device' | 'zone_device';

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
  | ConsumerCommand
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
  | {
      op: 'mmap';
      task: string;
      addr: bigint;
      length: bigint;
      prot: number;
      backing: Backing;
      noreplace: boolean;
      stop_at?: Phase;
    }
  | { op: 'munmap'; task: string; addr: bigint; length: bigint; stop_at?: Phase }
  /** MREMAP_MAYMOVE | MREMAP_FIXED. */
  | {
      op: 'mremap';
      task: string;
      addr: bigint;
      old_length: bigint;
      new_length: bigint;
      new_addr: bigint;
      stop_at?: Phase;
    }
  | { op: 'madvise'; task: string; addr: bigint; length: bigint; advice: Advice; stop_at?: Phase }
  | { op: 'mlock'; task: string; addr: bigint; length: bigint; lock: boolean }
  | { op: 'clear_soft_dirty'; task: string; stop_at?: Phase }
  | { op: 'oom_reap'; task: string; stop_at?: Phase }
  /** A signal arrives; it stays pending. */
  | { op: 'signal'; task: string; fatal: boolean }
  /** flags: FAULT_FLAG_* of its fault. length (a read) or base64 data (a write): bytes that are moved; neither: one is touched. */
  | {
      op: 'access';
      task: string;
      addr: bigint;
      write: boolean;
      flags?: number;
      length?: number;
      data?: string;
      stop_at?: Phase;
    }
  | { op: 'mprotect'; task: string; addr: bigint; length: bigint; prot: number; stop_at?: Phase }
  /** thread_only: a leader alone, its other threads live on. */
  | { op: 'exit'; task: string; thread_only?: boolean; stop_at?: Phase }
  /** Makes the task `child`. */
  | { op: 'fork'; task: string; child: string; stop_at?: Phase }
  | { op: 'exec'; task: string }
  /** flags: FOLL_*; gup: the id of the references. */
  | { op: 'gup'; task: string; addr: bigint; npage: number; flags: number; gup?: string; stop_at?: Phase }
  /** task: who gives them back, with the locks that it holds. */
  | { op: 'put_gup'; gup: string; dirty: 'no' | 'set_page_dirty' | 'set_page_dirty_lock'; task?: string }
  | { op: 'adjust_locked_vm'; task: string; delta: number }
  | { op: 'put_page'; pfn: number; kind: PageKind }
  // files and pages
  | { op: 'put_file'; file: string; size: bigint }
  | { op: 'truncate'; file: string; size: bigint; stop_at?: Phase }
  | { op: 'punch_hole'; file: string; offset: bigint; length: bigint; stop_at?: Phase }
  | { op: 'ksm_merge'; task: string; addr: bigint; with: { task: string; addr: bigint }; stop_at?: Phase }
  | { op: 'mkclean'; pfn: number; stop_at?: Phase }
  | { op: 'reclaim'; pfn: number; stop_at?: Phase }
  | { op: 'migrate'; pfn: number; stop_at?: Phase }
  | { op: 'migrate_vma'; task: string; addr: bigint; length: bigint; owner: string; stop_at?: Phase }
  /** lock: `mutex:<name>` or `page_lock:<pfn>`; held until the task releases it or exits. */
  | { op: 'lock'; task: string; lock: string; stop_at?: Phase }
  | { op: 'unlock'; task: string; lock: string }
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
  /** The handler of an mmu notifier has returned: 0 or a negative errno; 0 or 1 where the callback answers yes or no. */
  | {
      op: 'ack_mmu_notification';
      mm?: string;
      notification: string;
      ret: number;
      reason: 'ack' | 'webhook_failed';
      detail: string | null;
    }
  /** Of either kind of notification. */
  | { op: 'notification_timeout'; notification: string }
  /** A fatal signal for the thread that sleeps in an operation. */
  | { op: 'kill_operation'; operation: string }
  /** A stopped operation goes on: to its next phase, or to its end or \`stop_at\`. */
  | { op: 'step_operation'; operation: string }
  | { op: 'resume_operation'; operation: string; stop_at?: Phase }
  // subscribers of an mm's invalidations; `task` runs the call with the locks that it holds
  /** interrupted: a signal is pending while all rmap locks are taken. */
  | {
      op: 'register_mmu_notifier';
      mm: string;
      id?: string;
      callbacks: CallbackName[];
      handler: Handler;
      interrupted?: boolean;
      task?: string;
    }
  | { op: 'unregister_mmu_notifier'; id: string; task?: string }
  /** id: what alloc_notifier makes, if it is called. */
  | {
      op: 'get_mmu_notifier';
      mm: string;
      ops: string;
      id?: string;
      callbacks: CallbackName[];
      handler: Handler;
      interrupted?: boolean;
      alloc_fails?: boolean;
      task?: string;
    }
  | { op: 'put_mmu_notifier'; mm?: string; id: string; task?: string }
  | {
      op: 'insert_interval_notifier';
      mm: string;
      id?: string;
      start: bigint;
      length: bigint;
      handler: Handler;
      task?: string;
    }
  | { op: 'remove_interval_notifier'; id: string; task?: string }
  | { op: 'interval_read_begin'; mm?: string; id: string; task?: string }
  | { op: 'interval_read_retry'; mm?: string; id: string; sequence: number }
  | { op: 'interval_check_retry'; mm?: string; id: string; sequence: number }
  | { op: 'interval_set_seq'; mm?: string; id: string; sequence: number }
  | { op: 'map_secondary'; mm?: string; id: string; addr: bigint; writable: boolean; task?: string }
  | { op: 'unmap_secondary'; mm?: string; id: string; addr: bigint }
  /** A start and its end around nothing. */
  | {
      op: 'invalidate';
      mm: string;
      start: bigint;
      end: bigint;
      event: MmuEvent;
      blockable: boolean;
      owner?: string | null;
      only_end?: boolean;
      stop_at?: Phase;
      task?: string;
    }
  /** One callback under the page-table lock, of every notifier that has it; end: one page where it is absent. */
  | { op: 'mmu_call'; mm: string; callback: MmuCall; start: bigint; end?: bigint; task?: string }
  // failures to come
  | { op: 'put_fault'; fault: string; point: FaultPoint; call: Op; nth: number }
  | { op: 'delete_fault'; fault: string };

/** Callbacks that are called under the page-table lock. */
export const MMU_CALLS = [
  'invalidate_range',
  'arch_invalidate_secondary_tlbs',
  'clear_flush_young',
  'clear_young',
  'test_young',
  'change_pte',
] as const;
export type MmuCall = (typeof MMU_CALLS)[number];

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
