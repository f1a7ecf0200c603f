// Models __kvm_set_memory_region(): which host virtual memory lies behind which guest-physical memory, and how that changes.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, isPageAligned, npageOf, pageNumberOf, printRange, sizeOf } from '../lib/u64.ts';
import { KVM_MEM_MAX_NR_PAGES, KVM_USER_MEM_SLOTS, TASK_SIZE } from '../limits.ts';
import { cycleThrough, deadlock } from '../lock.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { park, pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { flushRemoteTlbs, removeWriteAccess, zapGfns } from './spte.ts';
import { callerOf, getLiveVm, getVm, INVALIDATIONS, type Memslot, mmuLock, slotsLock, type Vm } from './vm.ts';
import { synchronizeVmSrcu } from './vm-srcu.ts';

export const KVM_MEM_LOG_DIRTY_PAGES = 1;
export const KVM_MEM_READONLY = 2;

/** struct kvm_userspace_memory_region; memory_size 0: the slot is deleted. */
export interface SetMemoryRegion {
  op: 'set_memory_region';
  vm: string;
  slot: number;
  flags: number;
  guest_phys_addr: bigint;
  memory_size: bigint;
  userspace_addr: bigint;
  stop_at?: Phase;
}

export type MemslotStep =
  | { do: 'memslot_change'; vm: string; region: Omit<SetMemoryRegion, 'op' | 'vm' | 'stop_at'>; cleanup?: true }
  /** install_new_memslots(): the slot as it is from here on; null: gone. */
  | { do: 'memslot_install'; vm: string; id: number; slot: Memslot | null; cleanup?: true }
  | { do: 'memslot_flush'; vm: string; first: number; past: number; cleanup?: true }
  | { do: 'memslot_protect'; vm: string; first: number; past: number; cleanup?: true }
  | { do: 'memslot_changed'; vm: string; id: number; created: boolean; cleanup?: true };

export const memslotFields = (vm: string, slot: Memslot): Fields => ({
  vm,
  slot: slot.id,
  flags: (slot.dirty_bitmap === null ? 0 : KVM_MEM_LOG_DIRTY_PAGES) | (slot.readonly ? KVM_MEM_READONLY : 0),
  guest_phys_addr: addressOf(slot.base_gfn),
  memory_size: sizeOf(slot.npages),
  userspace_addr: addressOf(slot.userspace_addr),
  invalid: slot.invalid,
});

/**
 * KVM_SET_USER_MEMORY_REGION: makes, moves or deletes a slot, or changes its flags.
 * ESRCH, EBUSY: the vm. EINVAL: flags; memory_size, guest_phys_addr or userspace_addr is not page aligned, userspace_addr is
 * beyond TASK_SIZE; slot; the end of guest_phys_addr + memory_size; KVM_MEM_MAX_NR_PAGES; a slot to delete that does not
 * exist; another size, userspace_addr or READONLY than the slot has. EEXIST: another slot has a part of the range. EDEADLK:
 * it would wait for its own caller.
 */
export function setMemoryRegion(host: Host, command: SetMemoryRegion): Done {
  const { vm: id, slot, stop_at } = command;
  const vm = getLiveVm(host, id);
  requireRegion(command);
  const { flags, guest_phys_addr, memory_size, userspace_addr } = command;
  const region = { slot, flags, guest_phys_addr, memory_size, userspace_addr };
  const created = memory_size !== 0n && !vm.memslots.has(slot);
  const done = runOperation(
    host,
    { kind: 'set_memory_region', locals: callerOf(host, vm) },
    [
      { do: 'lock', lock: slotsLock(id), mode: 'W' },
      { do: 'memslot_change', vm: id, region },
      { do: 'unlock', lock: slotsLock(id), cleanup: true },
    ],
    stop_at ?? null,
  );
  return created ? { ...done, created } : done;
}

function requireRegion({ slot, flags, guest_phys_addr, memory_size, userspace_addr }: SetMemoryRegion): void {
  if ((flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) !== 0)
    throw new Errno('EINVAL', `flags: unknown bits in 0x${flags.toString(16)}`);
  for (const [name, value] of Object.entries({ memory_size, guest_phys_addr, userspace_addr }))
    if (!isPageAligned(value)) throw new Errno('EINVAL', `${name}: ${hex(value)} is not page aligned`);
  if (userspace_addr + memory_size > TASK_SIZE)
    throw new Errno('EINVAL', `userspace_addr: ${hex(userspace_addr)} + ${hex(memory_size)} is beyond TASK_SIZE`);
  if (!Number.isSafeInteger(slot) || slot < 0 || slot >= KVM_USER_MEM_SLOTS)
    throw new Errno('EINVAL', `slot: ${slot} is not below ${KVM_USER_MEM_SLOTS}`);
  if (guest_phys_addr + memory_size > 2n ** 64n)
    throw new Errno('EINVAL', `guest_phys_addr: ${hex(guest_phys_addr)} + ${hex(memory_size)} passes 2^64`);
  if (npageOf(memory_size) > KVM_MEM_MAX_NR_PAGES)
    throw new Errno('EINVAL', `memory_size: ${npageOf(memory_size)} pages, the limit is ${KVM_MEM_MAX_NR_PAGES}`);
}

/** EINVAL: what a slot that exists may not change. */
function requireSame(old: Memslot, made: Memslot): void {
  if (old.npages !== made.npages || old.userspace_addr !== made.userspace_addr || old.readonly !== made.readonly)
    throw new Errno('EINVAL', `slot ${old.id} exists with another size, userspace_addr or READONLY flag`, {
      hint: 'delete it first',
    });
}

/** EEXIST: another slot has a part of the range. */
function requireFree({ memslots }: Vm, { id, base_gfn, npages }: Memslot): void {
  for (const other of memslots.values())
    if (other.id !== id && base_gfn < other.base_gfn + other.npages && other.base_gfn < base_gfn + npages)
      throw new Errno('EEXIST', `${printRange(base_gfn, npages)} overlaps slot ${other.id}`);
}

/** The slot is marked invalid first, so that no fault uses it while what it maps is taken away. */
function steps(vm: Vm, old: Memslot, made: Memslot | null): Step[] {
  const { id } = vm;
  const first = old.base_gfn;
  return [
    { do: 'memslot_install', vm: id, id: old.id, slot: { ...old, invalid: true } },
    { do: 'phase', phase: 'slot_invalid', fields: { vm: id, slot: old.id } },
    { do: 'lock', lock: mmuLock(id), mode: 'W' },
    { do: 'memslot_flush', vm: id, first, past: first + old.npages },
    { do: 'unlock', lock: mmuLock(id), cleanup: true },
    { do: 'memslot_install', vm: id, id: old.id, slot: made },
  ];
}

/** Kernels whose notifier looks at the memslots let no invalidation see others at its end than at its start. */
function waitsForInvalidations(host: Host, operation: ThreadOperation, vm: Vm, again: Step): boolean {
  if (host.profile.kvmMemslotUpdate === 'at-once' || vm.mn_active_invalidate_count === 0) return false;
  const on = `${INVALIDATIONS}${vm.id}`;
  const cycle = cycleThrough(host, operation, vm.invalidators);
  if (cycle !== null) throw deadlock(host, operation, on, cycle);
  vm.updaters.push(operation.id);
  pushSteps(operation, [again]);
  park(host, operation, on);
  return true;
}

export const memslotSteps: Handlers<MemslotStep> = {
  memslot_change(host, operation, { vm: id, region }) {
    const vm = getVm(host, id);
    const { slot, flags, guest_phys_addr, memory_size, userspace_addr } = region;
    const old = vm.memslots.get(slot) ?? null;
    const changed = (created: boolean): Step => ({ do: 'memslot_changed', vm: id, id: slot, created });
    if (memory_size === 0n) {
      if (old === null) throw new Errno('EINVAL', `slot ${slot} does not exist`);
      pushSteps(operation, [...steps(vm, old, null), changed(false)]);
      return;
    }
    const logs = (flags & KVM_MEM_LOG_DIRTY_PAGES) !== 0;
    const made: Memslot = {
      id: slot,
      base_gfn: pageNumberOf(guest_phys_addr),
      npages: npageOf(memory_size),
      userspace_addr: pageNumberOf(userspace_addr),
      readonly: (flags & KVM_MEM_READONLY) !== 0,
      dirty_bitmap: logs ? (old?.dirty_bitmap ?? new Map()) : null,
      invalid: false,
    };
    if (old !== null) requireSame(old, made);
    requireFree(vm, made);
    const install: Step = { do: 'memslot_install', vm: id, id: slot, slot: made };
    const past = made.base_gfn + made.npages;
    if (old === null) pushSteps(operation, [install, changed(true)]);
    else if (old.base_gfn !== made.base_gfn) pushSteps(operation, [...steps(vm, old, made), changed(false)]);
    else if (logs === (old.dirty_bitmap !== null)) pushSteps(operation, [changed(false)]);
    else
      pushSteps(operation, [
        install,
        { do: 'lock', lock: mmuLock(id), mode: 'W' },
        ...(logs ? [{ do: 'memslot_protect', vm: id, first: made.base_gfn, past } as const] : []),
        { do: 'unlock', lock: mmuLock(id), cleanup: true },
        changed(false),
      ]);
  },

  memslot_install(host, operation, step) {
    const vm = getVm(host, step.vm);
    if (waitsForInvalidations(host, operation, vm, step)) return;
    if (step.slot === null) vm.memslots.delete(step.id);
    else vm.memslots.set(step.id, step.slot);
    synchronizeVmSrcu(host, operation, vm);
  },

  memslot_flush(host, operation, { vm: id, first, past }) {
    const vm = getVm(host, id);
    if (zapGfns(host, operation, vm, first, past)) flushRemoteTlbs(host, operation, vm);
    for (const cache of vm.caches.values()) if (cache.gfn >= first && cache.gfn < past) cache.valid = false;
  },

  memslot_protect(host, operation, { vm, first, past }) {
    removeWriteAccess(host, operation, getVm(host, vm), first, past);
  },

  memslot_changed(host, { thread }, { vm, id }) {
    const slot = getVm(host, vm).memslots.get(id);
    thread.fields = slot === undefined ? { vm, slot: id } : memslotFields(vm, slot);
  },
};
