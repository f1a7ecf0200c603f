// One of every command of vfio-pci, with every field that a journal can show.

import type { VfioPciCommand } from '../../src/kernel/vfio-pci/vfio-pci.ts';

const device = 'nic0';
const by = { task: 't', stop_at: 'after_memory_lock' } as const;

export const EVERY_VFIO_PCI: readonly VfioPciCommand[] = [
  {
    op: 'put_vfio_pci',
    device,
    bars: [{ length: 4096n, kind: 'mem', mmap: true, msix: { offset: 1n, length: 2n } }, null],
    rom: { length: 4096n, image: 16n },
    vga: true,
    no_command_memory: false,
    resettable: true,
    flr: false,
    command: 3,
    variant: 'v1',
  },
  { op: 'vfio_pci_config_write', device, offset: 4, count: 2, value: 1, ...by },
  { op: 'vfio_pci_lose_state', device },
  { op: 'vfio_pci_set_power_state', device, state: 3, ...by },
  { op: 'vfio_pci_low_power', device, entry: true, ...by },
  { op: 'vfio_pci_reset', device, by: 'flr', ...by },
  { op: 'vfio_pci_hot_reset', devices: [device], ...by },
  { op: 'vfio_pci_set_irqs', device, kind: 'msix', enable: true, ...by },
  { op: 'vfio_pci_probe_rom', device, ...by },
  {
    op: 'vfio_pci_mmap',
    device,
    addr: 4096n,
    length: 4096n,
    region: 0,
    offset: 4096n,
    prot: 3,
    shared: true,
    ...by,
  },
  { op: 'vfio_pci_rw', device, region: 0, write: false, pos: 4n, count: 4, buf: 4096n, ...by },
  { op: 'vfio_pci_rw', device, region: 0, write: true, pos: 4n, count: 1, data: 'AA==' },
  { op: 'vfio_pci_put_ioeventfd', device, ioeventfd: 'kick0', bar: 0, pos: 16n, data: 'AA==' },
  { op: 'vfio_pci_delete_ioeventfd', device, ioeventfd: 'kick0' },
  { op: 'vfio_pci_signal_ioeventfd', device, ioeventfd: 'kick0', stop_at: 'before_unit' },
];
