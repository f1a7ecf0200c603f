// Models KVM as far as it lives with the host's pages: virtual machines, each a notifier of the mm that made it.

import type { Consumer } from '../consumer.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_VMS } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import type { MmId } from '../mm/mm.ts';
import { newNotifierId, newPlainNotifier } from '../mm/mmu-notifier/register.ts';
import { requireMm } from '../mm/task.ts';
import type { Done, Fields } from '../outcome.ts';
import { runOperation } from '../thread.ts';
import { type AsyncPfStep, asyncPfSteps } from './async-pf.ts';
import { type CacheCommand, type CacheStep, cacheSteps, deletePfnCache, refreshPfnCache } from './cache.ts';
import { checkKvm } from './check.ts';
import { type FaultStep, faultSteps, type VcpuFault, vcpuFault } from './fault.ts';
import { type MapCommand, type MapStep, mapSteps, noteFreed, vcpuMap, vcpuMapRw, vcpuUnmap } from './map.ts';
import { type MemslotStep, memslotSteps, type SetMemoryRegion, setMemoryRegion } from './memslot.ts';
import { kvmCallbacks, type NotifierStep, notifierCallbacks, notifierSteps } from './notifier.ts';
import { type PfnStep, pfnSteps } from './pfn.ts';
import { type ResolveStep, resolveSteps } from './resolve.ts';
import { sptesOf } from './spte.ts';
import { callerOf, getVm, INVALIDATIONS, isLeaving, type KvmState, SRCU, type Vm } from './vm.ts';
import { type VmSrcuStep, vmSrcuSteps } from './vm-srcu.ts';

/** What a vm is made with: historic variants, and what no kernel does. */
export interface VmSwitches {
  zone_device_bug?: boolean;
  early_put?: boolean;
  allow_unsafe_mappings?: boolean;
}

export type KvmCommand =
  | ({ op: 'put_vm'; vm: string; task: string } & VmSwitches)
  | { op: 'delete_vm'; vm: string }
  | SetMemoryRegion
  | VcpuFault
  | MapCommand
  | CacheCommand;

export type KvmStep =
  | { do: 'vm_created'; vm: Vm; cleanup?: true }
  | { do: 'vm_destroyed'; vm: string; cleanup?: true }
  | AsyncPfStep
  | CacheStep
  | FaultStep
  | MapStep
  | MemslotStep
  | NotifierStep
  | PfnStep
  | ResolveStep
  | VmSrcuStep;

const newVm = (id: string, task: string, mm: MmId, switches: VmSwitches): Vm => ({
  id,
  task,
  mm,
  notifier: `kvm-${id}`,
  zone_device_bug: switches.zone_device_bug ?? false,
  early_put: switches.early_put ?? false,
  allow_unsafe_mappings: switches.allow_unsafe_mappings ?? false,
  memslots: new Map(),
  sptes: new Map(),
  mmu_notifier_seq: 0,
  mmu_notifier_count: 0,
  mmu_notifier_range: null,
  mn_active_invalidate_count: 0,
  invalidators: [],
  updaters: [],
  readers: [],
  synchronizers: new Map(),
  tlb_flushes: 0,
  async_pf: [],
  maps: new Map(),
  caches: new Map(),
  next_map: 1,
});

const vmFields = ({ id, task, mm, notifier, zone_device_bug, early_put, allow_unsafe_mappings }: Vm): Fields => ({
  id,
  task,
  mm,
  notifier,
  zone_device_bug,
  early_put,
  allow_unsafe_mappings,
});

/** EOPNOTSUPP: a switch of another era. */
function requireSwitches({ profile }: Host, { zone_device_bug, allow_unsafe_mappings }: VmSwitches): void {
  if (zone_device_bug === true && profile.kvmPfnReferences === 'explicit')
    throw new Errno('EOPNOTSUPP', `zone_device_bug: ${profile.release} does not guess which pages are reserved`);
  if (allow_unsafe_mappings === true && profile.kvmMapReference !== 'pin')
    throw new Errno('EOPNOTSUPP', `allow_unsafe_mappings: ${profile.release} has no such parameter`);
}

/** EEXIST: the vm was made otherwise. */
function requireSameVm(made: Vm, asked: Vm): void {
  for (const field of ['mm', 'zone_device_bug', 'early_put', 'allow_unsafe_mappings'] as const)
    if (made[field] !== asked[field])
      throw new Errno('EEXIST', `vm '${made.id}' exists with ${field} ${made[field]}, not ${asked[field]}`);
}

/**
 * KVM_CREATE_VM: registers a notifier of the caller's mm, before anything of it is mapped for a guest.
 * ESRCH: the task has exited. EOPNOTSUPP: a switch. EEXIST: made otherwise; its notifier's id is taken. ENOSPC: MAX_VMS.
 */
function putVm(host: Host, { vm: id, task, op: _op, ...switches }: Extract<KvmCommand, { op: 'put_vm' }>): Done {
  const { vms } = host.consumers.kvm;
  const { id: mm } = requireMm(host, task);
  requireSwitches(host, switches);
  const vm = newVm(id, task, mm, switches);
  const made = vms.get(id);
  if (made !== undefined) {
    requireSameVm(made, vm);
    return { ret: 0, created: false, fields: vmFields(made) };
  }
  if (vms.size >= MAX_VMS) throw new Errno('ENOSPC', `vms: the host has ${MAX_VMS}, the most it can hold`);
  const notifier = newNotifierId(host, vm.notifier);
  const handler = { kind: 'consumer', consumer: 'kvm', of: id } as const;
  const callbacks = kvmCallbacks(host.profile);
  host.mm.mmu_notifiers.set(notifier, newPlainNotifier(notifier, { mm, callbacks, handler }, null));
  const lock = mmapLock(mm);
  const done = runOperation(
    host,
    { kind: 'put_vm', locals: { task, mm } },
    [
      { do: 'lock', lock, mode: 'W' },
      { do: 'register', mm, notifier, interrupted: false },
      { do: 'vm_created', vm },
      { do: 'unlock', lock, cleanup: true },
      { do: 'forget_unregistered', notifier, cleanup: true },
    ],
    null,
  );
  return { ...done, created: true };
}

/**
 * kvm_destroy_vm(): nothing is mapped for the guest any more, and the notifier is unregistered.
 * EBUSY: it is being destroyed; a call of it goes on; a page of the guest is mapped. EDEADLK: called inside a callback.
 */
function deleteVm(host: Host, { vm: id }: Extract<KvmCommand, { op: 'delete_vm' }>): Done {
  const vm = getVm(host, id);
  const busy = [...host.operations.values()].some(
    ({ state, thread }) => state !== 'done' && thread?.steps.some((step) => 'vm' in step && step.vm === id) === true,
  );
  if (isLeaving(host, vm) || busy) throw new Errno('EBUSY', `vm '${id}' is in use: a call goes on`);
  if (vm.maps.size > 0) throw new Errno('EBUSY', `vm '${id}': ${vm.maps.size} mappings of guest pages are open`);
  const { notifier } = vm;
  return runOperation(
    host,
    { kind: 'delete_vm', locals: callerOf(host, vm) },
    [
      { do: 'unregister', notifier },
      { do: 'synchronize_srcu' },
      { do: 'unregistered', notifier },
      { do: 'vm_destroyed', vm: id },
    ],
    null,
  );
}

/** Every mention of a page that a mapping, or nobody any more, has a reference of. */
function* references({ consumers: { kvm: state } }: Host): Iterable<number> {
  for (const { maps } of state.vms.values()) for (const { pfn, holds } of maps.values()) if (holds === 'get') yield pfn;
  for (const [pfn, count] of state.leaked) for (let i = 0; i < count; i++) yield pfn;
}

function* pins({ consumers: { kvm: state } }: Host): Iterable<number> {
  for (const { maps } of state.vms.values()) for (const { pfn, holds } of maps.values()) if (holds === 'pin') yield pfn;
}

export const kvm: Consumer<KvmCommand, KvmStep, KvmState> = {
  newState: () => ({ vms: new Map(), leaked: new Map() }),
  commands: {
    put_vm: putVm,
    delete_vm: deleteVm,
    set_memory_region: setMemoryRegion,
    vcpu_fault: vcpuFault,
    vcpu_map: vcpuMap,
    vcpu_unmap: vcpuUnmap,
    vcpu_map_rw: vcpuMapRw,
    refresh_pfn_cache: refreshPfnCache,
    delete_pfn_cache: deletePfnCache,
  },
  steps: {
    vm_created(host, operation, { vm }) {
      host.consumers.kvm.vms.set(vm.id, vm);
      operation.thread.fields = vmFields(vm);
    },
    vm_destroyed(host, operation, { vm }) {
      host.consumers.kvm.vms.delete(vm);
      operation.thread.fields = { id: vm };
    },
    ...asyncPfSteps,
    ...cacheSteps,
    ...faultSteps,
    ...mapSteps,
    ...memslotSteps,
    ...notifierSteps,
    ...pfnSteps,
    ...resolveSteps,
    ...vmSrcuSteps,
  },
  callbacks: notifierCallbacks,
  /** A notifier whose registration goes on has no vm yet. */
  secondaries(host, { handler }, range) {
    const vm = handler.kind === 'consumer' ? host.consumers.kvm.vms.get(handler.of) : undefined;
    return vm === undefined ? [] : sptesOf(vm, range);
  },
  references,
  pins,
  settle(host) {
    for (const vm of host.consumers.kvm.vms.values()) noteFreed(host, vm);
  },
  waitsFor(host, on) {
    if (on.startsWith(INVALIDATIONS)) return getVm(host, on.slice(INVALIDATIONS.length)).invalidators;
    return on.startsWith(SRCU) ? getVm(host, on.slice(SRCU.length)).readers : null;
  },
  check: checkKvm,
};
