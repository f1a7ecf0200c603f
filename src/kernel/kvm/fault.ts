// Models direct_page_fault(): the guest touches a page that it does not reach. What was resolved is only used where no
// invalidation of it has begun or ended since: the reference of the page decides nothing.

import { Errno } from '../errno.ts';
import { type Host, trace } from '../host.ts';
import { addressOf, hex, PAGES_IN_U64 } from '../lib/u64.ts';
import { MAX_SPTES } from '../limits.ts';
import { anyMm } from '../mm/mm.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { collectAsyncFaults, queueAsyncFault } from './async-pf.ts';
import { setPfnDirty } from './pfn.ts';
import type { Found } from './resolve.ts';
import { setSpte } from './spte.ts';
import { callerOf, getLiveVm, getVm, gfnToMemslot, mmuLock, pageOfGfn, type Vm } from './vm.ts';
import { underVmSrcu } from './vm-srcu.ts';

export interface VcpuFault {
  op: 'vcpu_fault';
  vm: string;
  gfn: number;
  write: boolean;
  /** The guest can go on without the page until it is there. */
  async_pf: boolean;
  vcpu?: number;
  stop_at?: Phase;
}

/** A fault on its way. `seq`: where the sequence stood before the page was looked for. */
export interface Fault {
  vm: string;
  vcpu: number;
  gfn: number;
  write: boolean;
  async_pf: boolean;
  page: number;
  readonly: boolean;
  seq: number;
}

/** A page that was got, or a pfn that needs no reference. */
type Page = Extract<Found, { pfn: number }>;

export type FaultStep =
  | { do: 'vcpu_fault'; command: Omit<VcpuFault, 'op' | 'stop_at'>; cleanup?: true }
  | { do: 'vcpu_faultin'; fault: Fault; nowait: boolean; cleanup?: true }
  /** Under mmu_lock: nothing was invalidated, so it can be mapped. */
  | { do: 'vcpu_check'; fault: Fault; found: Page; cleanup?: true }
  | { do: 'vcpu_insert'; fault: Fault; found: Page; cleanup?: true };

/** Ends the fault without a mapping. */
function answer({ thread }: ThreadOperation, result: 'RETRY' | 'EMULATE', reason: string, fields: Fields = {}): void {
  thread.fields = { result, reason, pfn: null, writable: null, ...fields };
}

/**
 * The guest reads or writes a page. Fields: result (FIXED, RETRY or EMULATE), reason, pfn, writable.
 * ESRCH, EBUSY: the vm. EINVAL: gfn. EFAULT: no page can be got behind the gfn. EINTR: a fatal signal. ENOMEM: MAX_SPTES.
 */
export function vcpuFault(host: Host, { stop_at, op: _op, ...command }: VcpuFault): Done {
  const vm = getLiveVm(host, command.vm);
  const { gfn } = command;
  if (!Number.isSafeInteger(gfn) || gfn < 0 || gfn >= PAGES_IN_U64)
    throw new Errno('EINVAL', `gfn: ${gfn} is not between 0 and 2^52 - 1`);
  return runOperation(
    host,
    { kind: 'vcpu_fault', locals: callerOf(host, vm) },
    underVmSrcu(vm.id, [{ do: 'vcpu_fault', command }]),
    stop_at ?? null,
  );
}

/** What makes a fault look again, under mmu_lock; null: nothing. */
function retryReason(host: Host, vm: Vm, { page, gfn, seq }: Fault): string | null {
  if (anyMm(host, vm.mm).users === 0) return 'mm_exited';
  if (vm.mmu_notifier_count > 0) {
    const { kvmRetryRange } = host.profile;
    const at = kvmRetryRange === 'gfn' ? gfn : page;
    const hull = vm.mmu_notifier_range;
    if (kvmRetryRange === 'any' || hull === null || (at >= hull.start && at < hull.end)) return 'mmu_notifier_count';
  }
  return vm.mmu_notifier_seq === seq ? null : 'mmu_notifier_seq';
}

/** The pfn is known, or what stands for an error (kvm_handle_error_pfn). */
export function faultResolved(host: Host, operation: ThreadOperation, fault: Fault, found: Found): void {
  const vm = getVm(host, fault.vm);
  if ('pfn' in found) {
    const { pfn } = found;
    const release = { do: 'kvm_release_pfn', vm: vm.id, pfn, cleanup: true } as const;
    pushSteps(operation, [
      ...(vm.early_put ? [release] : []),
      { do: 'phase', phase: 'after_gup', fields: { vm: vm.id, gfn: fault.gfn, pfn } },
      { do: 'lock', lock: mmuLock(vm.id), mode: 'W' },
      { do: 'vcpu_check', fault, found },
      { do: 'unlock', lock: mmuLock(vm.id), cleanup: true },
      release,
    ]);
    return;
  }
  switch (found.error) {
    case 'RO_FAULT':
      answer(operation, 'EMULATE', 'read_only');
      return;
    case 'HWPOISON':
      answer(operation, 'RETRY', 'hwpoison', { signal: 'SIGBUS' });
      return;
    case 'SIGPENDING':
      throw new Errno('EINTR', `gfn ${fault.gfn}: a fatal signal is pending`);
    case 'NEEDS_IO': {
      const queued = queueAsyncFault(host, operation, vm, fault);
      if (queued !== null) answer(operation, 'RETRY', queued);
      else pushSteps(operation, [{ do: 'vcpu_faultin', fault, nowait: false }]);
      return;
    }
    case 'FAULT':
      throw new Errno('EFAULT', `gfn ${fault.gfn}: no page can be got for hva ${hex(addressOf(fault.page))}`);
  }
}

export const faultSteps: Handlers<FaultStep> = {
  vcpu_fault(host, operation, { command }) {
    const { vm: id, gfn, write, async_pf, vcpu = 0 } = command;
    const vm = getVm(host, id);
    collectAsyncFaults(vm, vcpu);
    const slot = gfnToMemslot(vm, gfn);
    if (slot?.invalid === true && host.profile.kvmInvalidMemslot === 'RETRY') {
      answer(operation, 'RETRY', 'memslot_invalid');
      return;
    }
    if (slot === null || slot.invalid) {
      answer(operation, 'EMULATE', 'mmio');
      return;
    }
    const seq = vm.mmu_notifier_seq;
    const { readonly } = slot;
    const fault: Fault = { vm: id, vcpu, gfn, write, async_pf, page: pageOfGfn(slot, gfn), readonly, seq };
    pushSteps(operation, [
      { do: 'phase', phase: 'after_seq_snapshot', fields: { vm: id, gfn, mmu_notifier_seq: seq } },
      { do: 'vcpu_faultin', fault, nowait: async_pf },
    ]);
  },

  vcpu_faultin(host, operation, { fault, nowait }) {
    const { vm, page, write, readonly } = fault;
    if (write && readonly) {
      faultResolved(host, operation, fault, { error: 'RO_FAULT' });
      return;
    }
    const wanted = { vm, page, write, nowait, map_writable: !readonly, asker: { by: 'fault', ...fault } } as const;
    pushSteps(operation, [{ do: 'hva_to_pfn', wanted }]);
  },

  vcpu_check(host, operation, { fault, found }) {
    const vm = getVm(host, fault.vm);
    const reason = retryReason(host, vm, fault);
    trace(host, 'kvm_fault', operation.id, { vm: vm.id, gfn: fault.gfn, pfn: found.pfn, retry: reason });
    if (reason !== null) {
      answer(operation, 'RETRY', reason);
      return;
    }
    if (vm.sptes.size >= MAX_SPTES && !vm.sptes.has(fault.gfn))
      throw new Errno('ENOMEM', `vm '${vm.id}' maps ${MAX_SPTES} pages, the most it can`);
    pushSteps(operation, [
      { do: 'phase', phase: 'before_insert', fields: { vm: vm.id, gfn: fault.gfn, pfn: found.pfn } },
      { do: 'vcpu_insert', fault, found },
    ]);
  },

  vcpu_insert(host, operation, { fault, found }) {
    const vm = getVm(host, fault.vm);
    const { gfn, page, readonly } = fault;
    const { pfn } = found;
    const writable = found.writable && !readonly;
    setSpte(host, operation, vm, gfn, { pfn, writable, page });
    if (writable && host.profile.kvmDirtyMark === 'fault' && found.got) setPfnDirty(host, vm, pfn);
    operation.thread.fields = { result: 'FIXED', reason: null, pfn, writable };
  },
};
