// Models struct kvm: a virtual machine, what it maps for its guest, and how far the invalidations of its mm have come.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import type { LockId } from '../lock.ts';
import type { MmId } from '../mm/mm.ts';

/** struct kvm_memory_slot. Page numbers: a gfn is one of guest-physical memory. */
export interface Memslot {
  id: number;
  base_gfn: number;
  npages: number;
  /** First page of its host virtual addresses. */
  userspace_addr: number;
  readonly: boolean;
  /** Dirty pages since logging was switched on, from the slot's first; null: it is off. */
  dirty_bitmap: Map<number, true> | null;
  /** KVM_MEMSLOT_INVALID: it is being deleted or moved. */
  invalid: boolean;
}

/** A page that the guest reaches without a fault. It holds no reference of the page: the notifier alone keeps it true. */
export interface Spte {
  pfn: number;
  writable: boolean;
  accessed: boolean;
  /** The page of host virtual memory that it stands for. */
  page: number;
}

/** struct kvm_host_map: a guest page that the host itself uses. */
export interface HostMap {
  id: string;
  gfn: number;
  page: number;
  pfn: number;
  kva: bigint;
  /** Mapped with memremap() where not. */
  struct_page: boolean;
  writable: boolean;
  holds: 'get' | 'pin' | 'none';
  /** Its reference was dropped at once, as only the fault path may. */
  early_put: boolean;
  /** The page has been freed since: only where nothing holds it. */
  freed: boolean;
}

/** struct gfn_to_pfn_cache: as a host map, but valid only until an invalidation of its page. */
export interface PfnCache {
  id: string;
  gfn: number;
  page: number;
  pfn: number | null;
  valid: boolean;
  /** A refresh goes on. */
  active: boolean;
}

/** A fault whose page a worker brings in. */
export interface AsyncFault {
  vcpu: number;
  gfn: number;
  page: number;
  /** The operation that does it. */
  worker: string;
  /** The page is there, and the vCPU has not looked yet. */
  done: boolean;
}

export interface Vm {
  id: string;
  task: string;
  mm: MmId;
  /** Its notifier, of the same id with 'kvm-' before it. */
  notifier: string;
  /** Historic: pages of ZONE_DEVICE are taken for reserved ones, whose references are never dropped. */
  zone_device_bug: boolean;
  /** Never in a kernel: the reference of a page is dropped as soon as the page is got. */
  early_put: boolean;
  /** Module parameter: kvm_vcpu_map() also maps what can be neither pinned nor watched. */
  allow_unsafe_mappings: boolean;
  memslots: Map<number, Memslot>;
  /** By gfn. */
  sptes: Map<number, Spte>;
  mmu_notifier_seq: number;
  /** Invalidations that have started and not ended. */
  mmu_notifier_count: number;
  /** Hull of their ranges, in pages of host virtual memory or in gfns; null: there is none, or the profile has none. */
  mmu_notifier_range: { start: number; end: number } | null;
  /** All invalidations of the mm, in kernels whose memslots wait for them. */
  mn_active_invalidate_count: number;
  /** Operations between a start and its end. */
  invalidators: string[];
  /** Updates of the memslots that wait until mn_active_invalidate_count is 0. */
  updaters: string[];
  /** Operations that look at the memslots (kvm->srcu), and updates that wait until those have ended. */
  readers: string[];
  synchronizers: Map<string, string[]>;
  tlb_flushes: number;
  async_pf: AsyncFault[];
  maps: Map<string, HostMap>;
  caches: Map<string, PfnCache>;
  next_map: number;
}

export interface KvmState {
  vms: Map<string, Vm>;
  /** References of pages that were got and never dropped, by pfn. */
  leaked: Map<number, number>;
}

export const mmuLock = (vm: string): LockId => `spinlock:mmu_lock:${vm}`;
export const slotsLock = (vm: string): LockId => `mutex:slots_lock:${vm}`;
export const INVALIDATIONS = 'kvm_invalidations:';
export const SRCU = 'kvm_srcu:';

export function getVm(host: Host, id: string): Vm {
  const vm = host.consumers.kvm.vms.get(id);
  if (vm === undefined) throw new NoSuchObject('vm', id);
  return vm;
}

/** Whether its notifier is being unregistered. */
export const isLeaving = ({ mm }: Host, { notifier }: Vm): boolean => mm.mmu_notifiers.get(notifier)?.leaving ?? true;

/** A vm that takes calls. ESRCH: its process has ended. EBUSY: it is being destroyed. */
export function getLiveVm(host: Host, id: string): Vm {
  const vm = getVm(host, id);
  if (!host.mm.mms.has(vm.mm)) throw new Errno('ESRCH', `vm '${id}': its process has ended`);
  if (isLeaving(host, vm)) throw new Errno('EBUSY', `vm '${id}' is being destroyed`);
  return vm;
}

/** In whose name the vm's calls are made: its task, as long as that lives in the vm's mm. */
export const callerOf = (host: Host, { task, mm }: Vm): { task: string | null; mm: MmId } => ({
  task: host.mm.tasks.get(task)?.mm === mm ? task : null,
  mm,
});

/** Models gfn_to_memslot(). */
export function gfnToMemslot({ memslots }: Vm, gfn: number): Memslot | null {
  for (const slot of memslots.values()) if (gfn >= slot.base_gfn && gfn < slot.base_gfn + slot.npages) return slot;
  return null;
}

export const pageOfGfn = ({ base_gfn, userspace_addr }: Memslot, gfn: number): number =>
  userspace_addr + (gfn - base_gfn);

/** The parts of the memslots that lie in [start, end) of host virtual memory: gfns, and the first one's page. */
export function* gfnRanges(
  { memslots }: Vm,
  { start, end }: { start: number; end: number },
): Iterable<{ first: number; past: number; page: number }> {
  for (const { base_gfn, npages, userspace_addr } of memslots.values()) {
    const from = Math.max(start, userspace_addr);
    const to = Math.min(end, userspace_addr + npages);
    if (from >= to) continue;
    yield { first: base_gfn + (from - userspace_addr), past: base_gfn + (to - userspace_addr), page: from };
  }
}

export const overlapsMemslot = (vm: Vm, range: { start: number; end: number }): boolean =>
  !gfnRanges(vm, range)[Symbol.iterator]().next().done;
