// Commands of vfio-pci as JSON, as GET .../journal shows them.

import Type, { type TProperties } from 'typebox';
import type { Command } from '../kernel/command.ts';
import { PHASES } from '../kernel/phase.ts';
import { FAULT_VARIANTS } from '../kernel/vfio-pci/device.ts';
import type { VfioPciCommand } from '../kernel/vfio-pci/vfio-pci.ts';
import { Base64, CInt, closed, Id, Int, Names, Nullable, U64, UINT_MAX } from './schema.ts';

const command = <const O extends VfioPciCommand['op'], P extends TProperties>(op: O, fields: P) =>
  closed({ op: Type.Literal(op satisfies Command['op']), ...fields });

const device = Id('Device', 'nic0');
const task = Type.Optional(Id('Task', 'a'));
const ioeventfd = Id('ioeventfd', 'kick0');
const stop_at = Type.Optional(Names(PHASES, 'Where it stops'));
const where = (what: string) => closed({ offset: U64('First byte'), length: U64('Bytes') }, { description: what });

export const VFIO_PCI_COMMANDS = [
  command('put_vfio_pci', {
    device,
    bars: Type.Array(
      Nullable(
        closed({
          length: U64('Bytes'),
          kind: Names(['mem', 'io'], 'Memory, or ports'),
          mmap: Type.Boolean(),
          msix: Nullable(where('Where the MSI-X table lies'), 'null: none'),
        }),
        'null: no BAR',
      ),
      { maxItems: 16 },
    ),
    rom: Nullable(closed({ length: U64('Bytes'), image: U64('Bytes') }), 'null: none'),
    vga: Type.Boolean(),
    no_command_memory: Type.Boolean(),
    resettable: Type.Boolean(),
    flr: Type.Boolean(),
    command: Int('PCI_COMMAND', 0, UINT_MAX),
    variant: Names(FAULT_VARIANTS, 'How a fault that finds a lock taken behaves'),
  }),
  command('vfio_pci_config_write', {
    device,
    task,
    offset: CInt('Byte of config space'),
    count: CInt('Bytes'),
    value: Int('What is written', 0, UINT_MAX),
    stop_at,
  }),
  command('vfio_pci_lose_state', { device }),
  command('vfio_pci_set_power_state', { device, task, state: CInt('0 (D0) to 3 (D3hot)'), stop_at }),
  command('vfio_pci_low_power', { device, task, entry: Type.Boolean(), stop_at }),
  command('vfio_pci_reset', { device, task, by: Names(['ioctl', 'flr'], 'What asks for it'), stop_at }),
  command('vfio_pci_hot_reset', { devices: Type.Array(device, { maxItems: 256 }), task, stop_at }),
  command('vfio_pci_set_irqs', {
    device,
    task,
    kind: Names(['intx', 'msi', 'msix'], 'Kind'),
    enable: Type.Boolean(),
    stop_at,
  }),
  command('vfio_pci_probe_rom', { device, task, stop_at }),
  command('vfio_pci_mmap', {
    device,
    task: Id('Task', 'a'),
    addr: U64('First byte'),
    length: U64('Bytes'),
    region: CInt('Region'),
    offset: U64('First byte in the region'),
    prot: Int('Rights', 0, UINT_MAX),
    shared: Type.Boolean(),
    stop_at,
  }),
  command('vfio_pci_rw', {
    device,
    region: CInt('Region'),
    write: Type.Boolean(),
    pos: U64('First byte in the region'),
    count: CInt('Bytes'),
    task,
    buf: Type.Optional(U64('Buffer of the task')),
    data: Type.Optional(Base64('Bytes to write')),
    stop_at,
  }),
  command('vfio_pci_put_ioeventfd', {
    device,
    ioeventfd,
    bar: CInt('BAR'),
    pos: U64('Byte in the BAR'),
    data: Base64('What a signal writes'),
  }),
  command('vfio_pci_delete_ioeventfd', { device, ioeventfd }),
  command('vfio_pci_signal_ioeventfd', { device, ioeventfd, stop_at }),
] as const;
