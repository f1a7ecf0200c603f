// Schemas of what GETs show of vfio-pci devices.

import Type from 'typebox';
import { FAULT_VARIANTS } from '../../kernel/vfio-pci/device.ts';
import { Base64, Count, closed, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, id, object, str } from './fields.ts';

const bits = (description: string) =>
  closed({ memory: bool('MEMORY'), io: bool('IO'), intx_disable: bool('INTX_DISABLE') }, { description });

const Bar = closed({
  length: U64Out('Bytes'),
  kind: Names(['mem', 'io'], 'Memory, or ports'),
  mmap: bool('Whether it can be mapped'),
  msix: Nullable(closed({ offset: U64Out('First byte'), length: U64Out('Bytes') }), 'Where the MSI-X table lies'),
  pfn: PageFrame('Its first host page'),
  mapped: bool('Whether vfio-pci has requested and mapped it'),
});

export const VfioPciFields = {
  id,
  enabled: bool('Whether its memory may be touched, as user space believes it'),
  command: bits('PCI_COMMAND as user space has written it'),
  phys_command: bits('PCI_COMMAND of the hardware'),
  power_state: Names(['D0', 'D1', 'D2', 'D3'], 'Power state; D3 is D3hot'),
  runtime_pm_engaged: bool('Whether low power was entered'),
  bars: Type.Array(Nullable(Bar, 'null: none'), { description: 'BAR0 to BAR5' }),
  rom: Nullable(closed({ length: U64Out('Bytes'), image: U64Out('Bytes of its image') }), 'null: none'),
  vga: bool('Whether it has VGA regions'),
  no_command_memory: bool('A virtual function, or like one: its memory is always enabled'),
  resettable: bool('Whether VFIO_DEVICE_RESET works'),
  flr: bool('Whether it has a function-level reset'),
  variant: Names(FAULT_VARIANTS, 'How a fault that finds a lock taken behaves'),
  irq: Nullable(Names(['intx', 'msi', 'msix'], 'Kind'), 'Interrupts that are set up'),
  vmas: Count('Areas on vma_list'),
  ioeventfds: Count('ioeventfds'),
  resetting: bool('Whether a reset is under way'),
  resets: Count('Resets'),
  bar_restores: Count('Times that its BARs were written back'),
  mmio: Count('Accesses to its memory by the kernel'),
  mmio_disabled: Count('Those of them that the hardware did not decode'),
};
export const VfioPciView = object('VfioPci', VfioPciFields);

const off = { memory: true, io: true, intx_disable: false };
export const vfioPciExample = {
  id: 'nic0',
  enabled: true,
  command: off,
  phys_command: off,
  power_state: 'D0',
  runtime_pm_engaged: false,
  bars: [
    { length: '0x10000', kind: 'mem', mmap: true, msix: null, pfn: 15032385536, mapped: false },
    null,
    null,
    null,
    null,
    null,
  ],
  rom: null,
  vga: false,
  no_command_memory: false,
  resettable: true,
  flr: true,
  variant: 'merged',
  irq: null,
  vmas: 0,
  ioeventfds: 0,
  resetting: false,
  resets: 0,
  bar_restores: 0,
  mmio: 0,
  mmio_disabled: 0,
};

export const CommandView = object('PciCommand', {
  value: Count('PCI_COMMAND as a read of config space gives it'),
  vconfig: Count('As user space has written it'),
  phys: Count('Of the hardware'),
  enabled: bool('Whether the memory may be touched'),
  faults_allowed: bool('Whether a fault may map it'),
});
export const commandExample = { value: 3, vconfig: 3, phys: 3, enabled: true, faults_allowed: true };

export const ListedVmaView = object('ListedVma', {
  mm: str('Address space'),
  vma: Count('Number of the area'),
  addr: U64Out('First byte'),
  length: U64Out('Bytes'),
  alive: bool('Whether the address space has users: else the zap passes it over'),
});
export const listedVmaExample = { mm: 'mm-1', vma: 1, addr: '0x600000000000', length: '0x4000', alive: true };

const holder = closed({ by: str('Operation, or `task:<id>`'), mode: Names(['R', 'W'], 'Shared or exclusive') });
const Lock = closed({
  lock: str('Its id'),
  holders: Type.Array(holder, { description: 'Who holds it' }),
  waiters: Type.Array(holder, { description: 'Who waits, in order of arrival' }),
});
export const PciLocksView = object('VfioPciLocks', { vma_lock: Lock, memory_lock: Lock });
const free = (lock: string) => ({ lock, holders: [], waiters: [] });
export const pciLocksExample = { vma_lock: free('vma_lock:nic0'), memory_lock: free('memory_lock:nic0') };

export const IoeventfdFields = {
  id,
  bar: Count('BAR'),
  pos: U64Out('Byte in the BAR'),
  data: Base64('What a signal writes'),
};
export const IoeventfdView = object('Ioeventfd', IoeventfdFields);
export const ioeventfdExample = { id: 'kick0', bar: 0, pos: '0x10', data: 'AQAAAA==' };
