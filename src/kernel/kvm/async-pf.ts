// Models virt/kvm/async_pf.c: a page that takes waiting is brought in by a worker, while the guest does something else.

import { type Host, trace } from '../host.ts';
import { ASYNC_PF_PER_VCPU } from '../limits.ts';
import { getUserPage } from '../mm/gup-page.ts';
import { newOperation } from '../operation.ts';
import type { Handlers } from '../steps.ts';
import { newThread, pushSteps, schedule, type ThreadOperation } from '../thread.ts';
import type { Fault } from './fault.ts';
import { getVm, type Vm } from './vm.ts';

export type AsyncPfStep =
  /** The page is there, or never will be: no reference is kept, and nothing is mapped for the guest. */
  { do: 'async_pf_done'; vm: string; worker: string; cleanup: true } | { do: 'async_pf_put'; cleanup: true };

/** kvm_check_async_pf_completion(): the vCPU sees that its pages are there. */
export function collectAsyncFaults(vm: Vm, vcpu: number): void {
  vm.async_pf = vm.async_pf.filter((waiting) => waiting.vcpu !== vcpu || !waiting.done);
}

/**
 * Queues a fault: why the guest looks again. 'async_halt': the page is waited for already, so the vCPU halts; 'async_queued'.
 * null: the queue is full, and the fault has to wait itself.
 */
export function queueAsyncFault(host: Host, { id: by }: ThreadOperation, vm: Vm, fault: Fault): string | null {
  const { vcpu, gfn, page } = fault;
  const mine = vm.async_pf.filter((waiting) => waiting.vcpu === vcpu);
  if (mine.some((waiting) => waiting.gfn === gfn && !waiting.done)) return 'async_halt';
  if (mine.length >= ASYNC_PF_PER_VCPU) return null;
  const worker = `async_pf-${host.seq}-${by}`;
  const thread = newThread([
    ...getUserPage(vm.mm, page, true, false),
    { do: 'async_pf_put', cleanup: true },
    { do: 'async_pf_done', vm: vm.id, worker, cleanup: true },
  ]);
  const operation = newOperation(host, { kind: 'async_pf', locals: { task: null, mm: vm.mm } }, thread);
  vm.async_pf.push({ vcpu, gfn, page, worker, done: false });
  schedule(host, { ...operation, id: worker, notification: null } as ThreadOperation);
  return 'async_queued';
}

export const asyncPfSteps: Handlers<AsyncPfStep> = {
  async_pf_put(_host, operation) {
    const { pages } = operation.thread;
    pushSteps(
      operation,
      pages.map((pfn) => ({ do: 'put_page', pfn, cleanup: true }) as const),
    );
  },

  async_pf_done(host, operation, { vm: id, worker }) {
    const waiting = getVm(host, id).async_pf.find((fault) => fault.worker === worker);
    if (waiting !== undefined) waiting.done = true;
    trace(host, 'async_pf', operation.id, { vm: id, gfn: waiting?.gfn ?? null, vcpu: waiting?.vcpu ?? null });
  },
};
