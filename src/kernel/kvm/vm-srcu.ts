// Models kvm->srcu: who looks at the memslots, and the updates that wait until those who began before them have finished.

import type { Host } from '../host.ts';
import { cycleThrough, deadlock } from '../lock.ts';
import type { Handlers, Step } from '../steps.ts';
import { park, schedule, type ThreadOperation } from '../thread.ts';
import { getVm, SRCU, type Vm } from './vm.ts';

export type VmSrcuStep =
  | { do: 'kvm_srcu_lock'; vm: string; cleanup?: true }
  | { do: 'kvm_srcu_unlock'; vm: string; cleanup: true };

/** Steps that look at the memslots. */
export const underVmSrcu = (vm: string, steps: readonly Step[]): Step[] => [
  { do: 'kvm_srcu_lock', vm },
  ...steps,
  { do: 'kvm_srcu_unlock', vm, cleanup: true },
];

/** Waits for those who may have seen other memslots. EDEADLK: one of them waits for this operation. */
export function synchronizeVmSrcu(host: Host, operation: ThreadOperation, vm: Vm): void {
  if (vm.readers.length === 0) return;
  const on = `${SRCU}${vm.id}`;
  const cycle = cycleThrough(host, operation, vm.readers);
  if (cycle !== null) throw deadlock(host, operation, on, cycle);
  vm.synchronizers.set(operation.id, [...vm.readers]);
  park(host, operation, on);
}

export const vmSrcuSteps: Handlers<VmSrcuStep> = {
  kvm_srcu_lock(host, operation, { vm }) {
    getVm(host, vm).readers.push(operation.id);
  },

  kvm_srcu_unlock(host, { id }, { vm: vmId }) {
    const vm = getVm(host, vmId);
    const at = vm.readers.indexOf(id);
    if (at < 0) return;
    vm.readers.splice(at, 1);
    for (const [waiting, readers] of vm.synchronizers) {
      if (!readers.includes(id)) continue;
      readers.splice(readers.indexOf(id), 1);
      if (readers.length > 0) continue;
      vm.synchronizers.delete(waiting);
      const operation = host.operations.get(waiting);
      if (operation?.state === 'blocked') schedule(host, operation as ThreadOperation);
    }
  },
};
