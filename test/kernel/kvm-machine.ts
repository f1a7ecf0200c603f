// A host with one virtual machine whose guest memory is the memory of task T: for the cases of KVM.

import type { Command } from '../../src/kernel/command.ts';
import type { VmSwitches } from '../../src/kernel/kvm/kvm.ts';
import { getVm, type Spte, type Vm } from '../../src/kernel/kvm/vm.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { at, MmHost, PAGE } from './mm-threads.ts';

/** The first gfn of the guest memory that begins at page 0 of the tests' memory. */
export const G = 0x100;
export const READONLY = 2;
export const LOG_DIRTY = 1;
export const SLOT_PAGES = 16;

/** Faults of a guest, with their outcome in one word: what the guest is told, or the errno. */
export class KvmHost extends MmHost {
  /** A vm with one memslot over pages 0 to 15, which are anonymous unless they are mapped already. */
  static withMemory(profile: string, switches: VmSwitches = {}, flags = 0): KvmHost {
    const m = new KvmHost(profile);
    m.mmap(0, SLOT_PAGES);
    m.vmWithSlot(switches, flags);
    return m;
  }

  vmWithSlot(switches: VmSwitches = {}, flags = 0): void {
    this.run({ op: 'put_vm', vm: 'V', ...switches });
    this.slot(0, G, 0, SLOT_PAGES, flags);
  }

  get vm(): Vm {
    return getVm(this.host, 'V');
  }

  slot(slot: number, gfn: number, first: number, npage: number, flags = 0, stop_at?: Phase): Outcome {
    return this.run({
      op: 'set_memory_region',
      vm: 'V',
      slot,
      flags,
      guest_phys_addr: BigInt(gfn) * PAGE,
      memory_size: BigInt(npage) * PAGE,
      userspace_addr: at(first),
      ...(stop_at === undefined ? {} : { stop_at }),
    });
  }

  fault(
    page: number,
    write = true,
    rest: { async_pf?: boolean; stop_at?: Phase; gfn?: number; vcpu?: number } = {},
  ): Outcome {
    const { async_pf = false, gfn = G + page, ...more } = rest;
    return this.run({ op: 'vcpu_fault', vm: 'V', gfn, write, async_pf, ...more });
  }

  /** "FIXED", "RETRY mmu_notifier_seq", "EMULATE mmio", "EFAULT" ... */
  word(outcome: Outcome): string {
    if (outcome.parked !== undefined)
      return `parked ${this.host.operations.get(outcome.parked)?.blocked_on ?? ''}`.trim();
    if (outcome.refusal !== undefined) return outcome.refusal.errno;
    const { result, reason } = outcome.fields;
    return reason === null ? `${result}` : `${result} ${reason}`;
  }

  faults(page: number, write = true): string {
    return this.word(this.fault(page, write));
  }

  /** The rest of a fault that was stopped. */
  goOn(outcome: Outcome): string {
    return this.word(this.resume(outcome));
  }

  spte(page: number): Spte | null {
    return this.vm.sptes.get(G + page) ?? null;
  }

  /** The pfn and the rights of an SPTE: '1234 rw'; null: there is none. */
  maps(page: number): string | null {
    const spte = this.spte(page);
    return spte === null ? null : `${spte.pfn} ${spte.writable ? 'rw' : 'r'}`;
  }

  refs(pfn: number): number {
    return this.host.mm.pages.refcount(pfn);
  }

  map(page: number, rest: { map?: string; stop_at?: Phase } = {}): Outcome {
    return this.run({ op: 'vcpu_map', vm: 'V', gfn: G + page, ...rest });
  }

  unmap(map: string, dirty = true): Outcome {
    return this.run({ op: 'vcpu_unmap', vm: 'V', map, dirty });
  }

  /** A start and its end around nothing, stopped between them. */
  open(first: number, npage: number, rest: Partial<Extract<Command, { op: 'invalidate' }>> = {}): Outcome {
    return this.run({
      op: 'invalidate',
      mm: this.mm().id,
      start: at(first),
      end: at(first + npage),
      event: 'CLEAR',
      blockable: true,
      stop_at: 'after_start',
      ...rest,
    });
  }

  close(first: number, npage: number): void {
    this.resume(this.open(first, npage));
  }

  codes(): string[] {
    return this.host.violations.since(0, 1000).items.map(({ code }) => code);
  }

  blockedOn(outcome: Outcome): string | null {
    return this.operation(outcome).blocked_on;
  }

  state(outcome: Outcome): string {
    return this.operation(outcome).state;
  }

  signal(): void {
    this.run({ op: 'signal', fatal: true });
  }

  ksm(page: number, other: number): Outcome {
    return this.run({ op: 'ksm_merge', addr: at(page), with: { task: 'T', addr: at(other) } });
  }
}
