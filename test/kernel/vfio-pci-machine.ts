// A host with one vfio-pci device, whose BARs tasks map: for the cases of host-mm section E.

import type { Command } from '../../src/kernel/command.ts';
import { FAULT_FLAG_DEFAULT } from '../../src/kernel/mm/fault-flags.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import type { BarSpec, VfioPciDevice, VfioPciSpec } from '../../src/kernel/vfio-pci/device.ts';
import { at, MmHost, PAGE, RW } from './mm-threads.ts';

export const MEMORY = 2;
export const errno = (outcome: Outcome): string => outcome.refusal?.errno ?? String(outcome.ret);

export const bar = (length: bigint, rest: Partial<BarSpec> = {}): BarSpec => ({
  length,
  kind: 'mem',
  mmap: true,
  msix: null,
  ...rest,
});

/** BAR0 of 16 pages; BAR1 of ports; BAR2 of 2 pages with an MSI-X table; a ROM of 2 pages with an image of 16 bytes; VGA. */
export const SPEC: VfioPciSpec = {
  bars: [
    bar(16n * PAGE),
    bar(32n, { kind: 'io', mmap: false }),
    bar(2n * PAGE, { mmap: false, msix: { offset: 0x10n, length: 0x10n } }),
  ],
  rom: { length: 2n * PAGE, image: 16n },
  vga: true,
  no_command_memory: false,
  resettable: true,
  flr: true,
  command: 3,
  variant: 'merged',
};

export class PciHost extends MmHost {
  constructor(profile: string, spec: Partial<VfioPciSpec> = {}) {
    super(profile);
    const put = this.put('d', spec);
    if (put.ret !== 0) throw new Error(put.refusal?.detail);
  }

  put(device: string, spec: Partial<VfioPciSpec> = {}): Outcome {
    return this.run({ op: 'put_vfio_pci', device, ...SPEC, ...spec });
  }

  device(id = 'd'): VfioPciDevice {
    return this.host.consumers.vfio_pci.devices.get(id) as VfioPciDevice;
  }

  /** Writes PCI_COMMAND with the memory bit set or clear. */
  memory(on: boolean, rest: { device?: string; stop_at?: Phase } = {}): Outcome {
    return this.run({ op: 'vfio_pci_config_write', device: 'd', offset: 4, count: 2, value: on ? 3 : 1, ...rest });
  }

  /** Maps pages of BAR0. */
  mapBar(first: number, npage: number, rest: Partial<Extract<Command, { op: 'vfio_pci_mmap' }>> = {}): Outcome {
    return this.run({
      op: 'vfio_pci_mmap',
      device: 'd',
      addr: at(first),
      length: BigInt(npage) * PAGE,
      region: 0,
      offset: 0n,
      prot: RW,
      shared: true,
      ...rest,
    });
  }

  /** One access of the CPU as the fault sees it. */
  fault(page: number, rest: { task?: string; flags?: number; stop_at?: Phase } = {}): Outcome {
    return this.run({ op: 'access', addr: at(page), write: true, flags: FAULT_FLAG_DEFAULT, ...rest });
  }

  /** What a fault has come to: its name, or that it waits. */
  faultOf(outcome: Outcome): unknown {
    const { parked, fields } = outcome;
    const done = parked === undefined ? fields : this.operation(outcome).outcome?.fields;
    return done?.fault ?? `waits for ${this.operation(outcome).blocked_on}`;
  }

  rw(rest: Partial<Extract<Command, { op: 'vfio_pci_rw' }>> = {}): Outcome {
    return this.run({ op: 'vfio_pci_rw', device: 'd', region: 0, write: false, pos: 0n, count: 8, ...rest });
  }

  /** Pages of [first, first + npage) that have an entry. */
  populated(first: number, npage: number, task = 'T'): number {
    let present = 0;
    for (let page = first; page < first + npage; page++) if (this.pte(page, task) !== null) present++;
    return present;
  }

  codes(): string[] {
    return this.host.violations.since(0, 1000).items.map(({ code }) => code);
  }

  /** Tells every invalidation of an mm to a notifier that does nothing: without one, nobody is told of any. */
  watch(): void {
    this.plain('watch', ['invalidate_range_start', 'invalidate_range_end']);
  }
}
