// Models struct vfio_pci_core_device: a PCI device with BARs, ROM and VGA regions, and who may touch its memory now.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, PAGE_SIZE } from '../lib/u64.ts';
import { MAX_BAR_LENGTH, MAX_VFIO_PCI } from '../limits.ts';
import type { LockId } from '../lock.ts';
import type { MmId } from '../mm/mm.ts';
import type { Done, Fields, Value } from '../outcome.ts';

/** Bits of PCI_COMMAND. */
export const PCI_COMMAND_IO = 0x1;
export const PCI_COMMAND_MEMORY = 0x2;
export const PCI_COMMAND_INTX_DISABLE = 0x400;
/** Bits of PCI_COMMAND that vfio-pci keeps a copy of, to know what user space believes. */
export const DECODE_BITS = PCI_COMMAND_IO | PCI_COMMAND_MEMORY;

/** Region indices of VFIO_DEVICE_GET_REGION_INFO; those below the ROM are BARs. */
export const ROM_REGION = 6;
export const CONFIG_REGION = 7;
export const VGA_REGION = 8;
export const NUM_REGIONS = 9;

/** What a BAR is: `mmap`: it can be mapped. `msix`: where in it the MSI-X table lies, which reads and writes pass over. */
export interface BarSpec {
  length: bigint;
  kind: 'mem' | 'io';
  mmap: boolean;
  msix: { offset: bigint; length: bigint } | null;
}

/**
 * How a fault that finds memory_lock taken behaves: as merged (it waits); as the first version of the patch (without
 * FAULT_FLAG_ALLOW_RETRY it is SIGBUS, and the zap takes memory_lock before mmap_lock); as the mail of 23 May 2020 proposes.
 */
export const FAULT_VARIANTS = ['merged', 'v1', 'proposed'] as const;
export type FaultVariant = (typeof FAULT_VARIANTS)[number];

export interface VfioPciSpec {
  /** BAR0 and the following, null where there is none. */
  bars: (BarSpec | null)[];
  /** `image`: bytes of its image; the rest of the ROM reads as 0xff. */
  rom: { length: bigint; image: bigint } | null;
  vga: boolean;
  /** A virtual function, or a device like it: it has no memory enable bit, and its memory is always enabled. */
  no_command_memory: boolean;
  /** VFIO_DEVICE_RESET works; the device has a function-level reset in its PCIe or AF capability. */
  resettable: boolean;
  flr: boolean;
  /** PCI_COMMAND_IO and PCI_COMMAND_MEMORY as user space finds them first. */
  command: number;
  variant: FaultVariant;
}

/** An area of the device that was faulted in since the last zap; its range as of when it left the list of its mm. */
export interface ListedVma {
  mm: MmId;
  vma: number;
  start: number;
  end: number;
}

export interface Ioeventfd {
  id: string;
  bar: number;
  pos: bigint;
  /** Little-endian bytes that a signal writes. */
  bytes: Uint8Array;
}

export type IrqKind = 'intx' | 'msi' | 'msix';

export interface VfioPciDevice {
  id: string;
  spec: VfioPciSpec;
  /** First host page of each region; those of BARs are what a mapping maps. */
  pfns: number[];
  /** PCI_COMMAND as user space sees it, and as the hardware has it. */
  vconfig_command: number;
  phys_command: number;
  /** D0 to D3hot. */
  power_state: number;
  runtime_pm_engaged: boolean;
  /** BARs that have been requested and mapped for the kernel's own accesses. */
  barmap: number[];
  vma_list: ListedVma[];
  ioeventfds: Map<string, Ioeventfd>;
  irq: IrqKind | null;
  /** A reset is under way. */
  resetting: boolean;
  resets: number;
  /** Times that vfio-pci wrote the BARs back into a device that had lost them. */
  bar_restores: number;
  /** Accesses to the memory of the device, and those of them that met disabled memory. */
  mmio: number;
  mmio_disabled: number;
}

export interface VfioPciState {
  devices: Map<string, VfioPciDevice>;
}

const VGA_PAGES = 0x21;

export const newVfioPciState = (): VfioPciState => ({ devices: new Map() });

export type PutVfioPciCommand = { op: 'put_vfio_pci'; device: string } & VfioPciSpec;

export const vmaLock = ({ id }: VfioPciDevice): LockId => `vma_lock:${id}`;
export const memoryLockOf = (device: string): LockId => `memory_lock:${device}`;
export const memoryLock = ({ id }: VfioPciDevice): LockId => memoryLockOf(id);

/** ENODEV: the profile's vfio-pci has no memory gate. */
export function requireGate(host: Host): void {
  const { vfioPciMemoryGate, name } = host.profile;
  if (!vfioPciMemoryGate)
    throw new Errno('ENODEV', `vfio-pci of ${name} does not gate the memory of a device`, { hint: '5.8 and later do' });
}

/** Whether areas are listed when they are faulted in; where not, the zap finds them by the device. */
export const keepsVmaList = ({ profile }: Host): boolean => profile.vfioPciFault !== 'one-page';

/** NOT_FOUND. ENODEV: as requireGate(). */
export function getVfioPci(host: Host, id: string): VfioPciDevice {
  requireGate(host);
  const device = host.consumers.vfio_pci.devices.get(id);
  if (device === undefined) throw new NoSuchObject('vfio_pci', id);
  return device;
}

/** Whether the device's memory may be touched (__vfio_pci_memory_enabled), as user space believes it. */
export function isMemoryEnabled(host: Host, { spec, vconfig_command, power_state }: VfioPciDevice): boolean {
  if (host.profile.vfioPciPowerGate && power_state >= 3) return false;
  return spec.no_command_memory || (vconfig_command & PCI_COMMAND_MEMORY) !== 0;
}

/** Whether a fault may map a page of it. */
export const allowsFault = (host: Host, device: VfioPciDevice): boolean =>
  isMemoryEnabled(host, device) && !(host.profile.vfioPciPowerGate && device.runtime_pm_engaged);

/** Whether the hardware decodes accesses to its memory. */
export const isDecoding = ({ spec, phys_command }: VfioPciDevice): boolean =>
  spec.no_command_memory || (phys_command & PCI_COMMAND_MEMORY) !== 0;

export const barOf = ({ spec }: VfioPciDevice, index: number): BarSpec | null => spec.bars[index] ?? null;

export const pagesOf = (length: bigint): number => Number((length + BigInt(PAGE_SIZE - 1)) >> 12n);

/** EINVAL: more than 6 BARs; a length of 0 or above MAX_BAR_LENGTH; what lies in a region does not fit into it. */
function checkSpec({ bars, rom, variant, command }: VfioPciSpec): void {
  if (bars.length > ROM_REGION) throw new Errno('EINVAL', `bars: ${bars.length}, a device has ${ROM_REGION} at most`);
  for (const [i, bar] of bars.entries()) {
    if (bar === null) continue;
    const { length, kind, mmap, msix } = bar;
    if (length === 0n || length > MAX_BAR_LENGTH)
      throw new Errno('EINVAL', `bars[${i}]: length ${hex(length)} is not within 0x1 .. ${hex(MAX_BAR_LENGTH)}`);
    if (kind === 'io' && mmap) throw new Errno('EINVAL', `bars[${i}]: ports cannot be mapped`);
    if (msix !== null && msix.offset + msix.length > length)
      throw new Errno('EINVAL', `bars[${i}]: the MSI-X table ends behind the BAR`);
  }
  if (rom !== null && (rom.length === 0n || rom.length > MAX_BAR_LENGTH || rom.image > rom.length))
    throw new Errno('EINVAL', `rom: length ${hex(rom.length)}, image ${hex(rom.image)}`);
  if ((command & ~DECODE_BITS) !== 0) throw new Errno('EINVAL', `command: ${command} has bits beside IO and MEMORY`);
  if (!FAULT_VARIANTS.includes(variant)) throw new Errno('EINVAL', `variant: '${variant}'`);
}

/** A value with its fields in one order, for comparing. */
const plain = (spec: VfioPciSpec): string =>
  JSON.stringify(spec, (_key, value: unknown) => (typeof value === 'bigint' ? hex(value) : value));

/** Host pages for each region, in the order of their indices; -1 where there is none. */
function placeRegions({ mm }: Host, { bars, rom, vga }: VfioPciSpec): number[] {
  const lengths = Array.from({ length: ROM_REGION }, (_, i) => pagesOf(bars[i]?.length ?? 0n));
  lengths.push(pagesOf(rom?.length ?? 0n), 0, vga ? VGA_PAGES : 0);
  return lengths.map((npage) => (npage === 0 ? -1 : mm.pages.takeMmio(npage)));
}

/**
 * Opens a device. ENODEV: as requireGate(). EINVAL: as checkSpec(). EOPNOTSUPP: a historic variant where faults keep no list of
 * areas. EEXIST: made with another body. ENOSPC: MAX_VFIO_PCI.
 */
export function putVfioPci(host: Host, { op: _, device: id, ...spec }: PutVfioPciCommand): Done {
  requireGate(host);
  const state = host.consumers.vfio_pci;
  checkSpec(spec);
  if (spec.variant !== 'merged' && !keepsVmaList(host))
    throw new Errno('EOPNOTSUPP', `variant: '${spec.variant}' is of the patches of 2020`, { hint: 'use 5.8 or 5.15' });
  const made = state.devices.get(id);
  if (made !== undefined && plain(made.spec) !== plain(spec))
    throw new Errno('EEXIST', `vfio_pci '${id}' exists with another body`);
  if (made !== undefined) return { ret: 0, created: false, fields: deviceFields(host, made) };
  if (state.devices.size >= MAX_VFIO_PCI)
    throw new Errno('ENOSPC', `vfio_pci: the host has ${MAX_VFIO_PCI}, the most it can hold`);
  const device = newDevice(id, spec, placeRegions(host, spec));
  state.devices.set(id, device);
  return { ret: 0, created: true, fields: deviceFields(host, device) };
}

const newDevice = (id: string, spec: VfioPciSpec, pfns: number[]): VfioPciDevice => ({
  id,
  spec,
  pfns,
  vconfig_command: spec.command,
  phys_command: spec.no_command_memory ? 0 : spec.command,
  power_state: 0,
  runtime_pm_engaged: false,
  barmap: [],
  vma_list: [],
  ioeventfds: new Map(),
  irq: null,
  resetting: false,
  resets: 0,
  bar_restores: 0,
  mmio: 0,
  mmio_disabled: 0,
});

const bits = (command: number): Fields => ({
  memory: (command & PCI_COMMAND_MEMORY) !== 0,
  io: (command & PCI_COMMAND_IO) !== 0,
  intx_disable: (command & PCI_COMMAND_INTX_DISABLE) !== 0,
});

function showBar(device: VfioPciDevice, index: number): Value {
  const bar = barOf(device, index);
  if (bar === null) return null;
  const { length, kind, mmap, msix } = bar;
  const pfn = device.pfns[index] as number;
  return { length, kind, mmap, msix, pfn, mapped: device.barmap.includes(index) };
}

/** A device as replies and GETs show it. */
export function deviceFields(host: Host, device: VfioPciDevice): Fields {
  const { id, spec, vconfig_command, phys_command } = device;
  return {
    id,
    enabled: isMemoryEnabled(host, device),
    command: bits(vconfig_command),
    phys_command: bits(phys_command),
    power_state: `D${device.power_state}`,
    runtime_pm_engaged: device.runtime_pm_engaged,
    bars: Array.from({ length: ROM_REGION }, (_, i) => showBar(device, i)),
    rom: spec.rom,
    vga: spec.vga,
    no_command_memory: spec.no_command_memory,
    resettable: spec.resettable,
    flr: spec.flr,
    variant: spec.variant,
    irq: device.irq,
    vmas: device.vma_list.length,
    ioeventfds: device.ioeventfds.size,
    resetting: device.resetting,
    resets: device.resets,
    bar_restores: device.bar_restores,
    mmio: device.mmio,
    mmio_disabled: device.mmio_disabled,
  };
}
