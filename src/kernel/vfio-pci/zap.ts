// Models vfio_pci_zap_and_down_write_memory_lock(): every mapping of the device's memory goes, and no new one can come.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { holds, type LockId, mmapLock } from '../lock.ts';
import type { MmId } from '../mm/mm.ts';
import { invalidation } from '../mm/mmu-notifier/invalidation.ts';
import type { Vma } from '../mm/vma.ts';
import type { MemoryLocals } from '../operation.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { keepsVmaList, type ListedVma, memoryLock, type VfioPciDevice, vmaLock } from './device.ts';

export type ZapStep =
  /** Ends with vma_lock held and an empty list. `try`: EBUSY where a lock is taken. */
  | { do: 'vfio_pci_zap'; device: string; try: boolean; cleanup?: true }
  | { do: 'vfio_pci_zap_mm'; device: string; try: boolean; cleanup?: true }
  /** The listed areas of one mm, one after the other. */
  | { do: 'vfio_pci_zap_vmas'; device: string; mm: MmId; cleanup?: true }
  /** The thread works in no address space any more. */
  | { do: 'vfio_pci_mmput'; cleanup: true }
  /** EBUSY: the last trylock failed. */
  | { do: 'vfio_pci_require_lock'; lock: LockId; cleanup?: true }
  /** Where there is no list: all areas that map the device, in all address spaces. */
  | { do: 'vfio_pci_unmap_mapping_range'; device: string; after: { mm: MmId; page: number } | null; cleanup?: true };

export const openDevice = (host: Host, id: string): VfioPciDevice =>
  host.consumers.vfio_pci.devices.get(id) as VfioPciDevice;

/** i_mmap_rwsem of the inode that stands for the device. */
export const deviceMappingLock = (device: string): LockId => `i_mmap:vfio_pci-${device}`;

/** Takes a lock, or, in a set of devices, does not wait for it. */
export const lockOrBusy = (lock: LockId, mode: 'R' | 'W', trylock: boolean): Step[] =>
  trylock
    ? [
        { do: 'trylock', lock, mode },
        { do: 'vfio_pci_require_lock', lock },
      ]
    : [{ do: 'lock', lock, mode }];

/** The areas of an mm that map a device, in order of address. */
export function vmasOf(host: Host, mm: MmId, device: string): Vma[] {
  const areas = (host.mm.mms.get(mm) ?? host.mm.zombies.get(mm))?.vmas.areas ?? [];
  return areas.filter(({ ops }) => ops !== null && ops.consumer === 'vfio_pci' && ops.of === device);
}

/** One CLEAR pair around the entries of an area. */
export const zapVma = (mm: MmId, { start, end }: { start: number; end: number }): Step[] =>
  invalidation({ mm, start, end, event: 'CLEAR', blockable: true, owner: null }, [
    { do: 'zap', mm, start, end, cleanup: true },
    { do: 'phase', phase: 'after_pte_clear' },
  ]);

/**
 * The steps around what must find no mapping and no access: all mappings zapped, memory_lock held for writing. vma_lock is
 * given up only when memory_lock is held: between the two the list could fill again.
 */
export function zapped(host: Host, device: VfioPciDevice, steps: readonly Step[]): Step[] {
  const { id } = device;
  const memory = memoryLock(device);
  const lockMemory: Step = { do: 'lock', lock: memory, mode: 'W' };
  const zap: Step = { do: 'vfio_pci_zap', device: id, try: false };
  const unlockVma: Step = { do: 'unlock', lock: vmaLock(device), cleanup: true };
  const phase: Step = { do: 'phase', phase: 'after_zap' };
  const tail: Step[] = [
    { do: 'phase', phase: 'after_memory_lock' },
    ...steps,
    { do: 'unlock', lock: memory, cleanup: true },
  ];
  if (!keepsVmaList(host)) return [lockMemory, ...unmapMappingRange(id), ...tail];
  if (device.spec.variant === 'v1') return [lockMemory, zap, unlockVma, phase, ...tail];
  return [zap, phase, lockMemory, unlockVma, ...tail];
}

/** Models vfio_pci_zap_bars(): unmap_mapping_range() of the BARs. */
export const unmapMappingRange = (device: string): Step[] => [
  { do: 'lock', lock: deviceMappingLock(device), mode: 'R' },
  { do: 'vfio_pci_unmap_mapping_range', device, after: null },
  { do: 'vfio_pci_mmput', cleanup: true },
  { do: 'unlock', lock: deviceMappingLock(device), cleanup: true },
  { do: 'phase', phase: 'after_zap' },
];

/** The thread is one of the users of an address space for a while, which is not torn down under it; null: of none. */
function workIn({ locals }: ThreadOperation, mm: MmId | null): void {
  (locals as MemoryLocals).mm = mm;
}

/** Address spaces that may have areas: those with users, and those that are being torn down. */
const allMms = ({ mm }: Host): MmId[] => [...mm.mms.keys(), ...mm.zombies.keys()];

/** Where a listed area lies now. */
function rangeOf(host: Host, device: string, { mm, vma, start, end }: ListedVma): { start: number; end: number } {
  return vmasOf(host, mm, device).find(({ ops }) => ops?.id === vma) ?? { start, end };
}

export const zapSteps: Handlers<ZapStep> = {
  vfio_pci_zap(host, operation, { device, try: trylock }) {
    const lock = vmaLock(openDevice(host, device));
    pushSteps(operation, [...lockOrBusy(lock, 'W', trylock), { do: 'vfio_pci_zap_mm', device, try: trylock }]);
  },

  vfio_pci_zap_mm(host, operation, { device: id, try: trylock }) {
    const device = openDevice(host, id);
    const isAlive = ({ mm }: ListedVma): boolean => host.mm.mms.has(mm);
    const first = device.vma_list.findIndex(isAlive);
    device.vma_list.splice(0, first < 0 ? device.vma_list.length : first);
    const next = device.vma_list[0];
    if (next === undefined) return;
    const { mm } = next;
    workIn(operation, mm);
    const unlockVma: Step = { do: 'unlock', lock: vmaLock(device), cleanup: true };
    pushSteps(operation, [
      // mmap_lock comes first.
      unlockVma,
      ...lockOrBusy(mmapLock(mm), 'R', trylock),
      ...lockOrBusy(vmaLock(device), 'W', trylock),
      { do: 'vfio_pci_zap_vmas', device: id, mm },
      unlockVma,
      { do: 'unlock', lock: mmapLock(mm), cleanup: true },
      { do: 'vfio_pci_mmput', cleanup: true },
      { do: 'vfio_pci_zap', device: id, try: trylock },
    ]);
  },

  vfio_pci_zap_vmas(host, operation, step) {
    const { vma_list } = openDevice(host, step.device);
    const at = vma_list.findIndex(({ mm }) => mm === step.mm);
    if (at < 0) return;
    const [listed] = vma_list.splice(at, 1) as [ListedVma];
    pushSteps(operation, [...zapVma(step.mm, rangeOf(host, step.device, listed)), step]);
  },

  vfio_pci_mmput(_host, operation) {
    workIn(operation, null);
  },

  vfio_pci_require_lock(_host, operation, { lock }) {
    if (!holds(operation, lock)) throw new Errno('EBUSY', `${lock} is taken`);
  },

  vfio_pci_unmap_mapping_range(host, operation, step) {
    const { device, after } = step;
    const mms = allMms(host);
    for (const mm of mms.slice(Math.max(after === null ? 0 : mms.indexOf(after.mm), 0))) {
      const from = after?.mm === mm ? after.page : 0;
      const vma = vmasOf(host, mm, device).find(({ start }) => start >= from);
      if (vma === undefined) continue;
      workIn(operation, mm);
      pushSteps(operation, [...zapVma(mm, vma), { ...step, after: { mm, page: vma.end } }]);
      return;
    }
  },
};
