// What must hold of every vfio-pci device after every command, recomputed from page tables (host-mm E.7).

import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import type { MmStruct } from '../mm/mm.ts';
import { flagsAt, PTE_PRESENT, PTE_TYPE_MASK, pfnAt, walkPageRange } from '../mm/page-table.ts';
import type { Vma } from '../mm/vma.ts';
import { isMemoryEnabled, keepsVmaList, type VfioPciDevice } from './device.ts';
import { vmasOf } from './zap.ts';

type Say = (text: string) => void;

/** Whether an operation changes an address space now: a fault populates before it lists, fork copies before it opens. */
const isChanging = (host: Host, mm: string): boolean =>
  [...host.operations.values()].some(
    ({ state, locals, thread }) => state !== 'done' && thread !== undefined && 'mm' in locals && locals.mm === mm,
  );

/** Present entries of an area, each with the page of the device that belongs there. Returns how many there are. */
function checkEntries(mm: MmStruct, vma: Vma, say: Say): number {
  let present = 0;
  walkPageRange(mm, vma.start, vma.end, (_index, leaf, i, page) => {
    if ((flagsAt(leaf, i) & PTE_TYPE_MASK) !== PTE_PRESENT) return say(`${hex(addressOf(page))}: no entry of a BAR`);
    present++;
    if (pfnAt(leaf, i) !== page - vma.origin) say(`${hex(addressOf(page))}: pfn ${pfnAt(leaf, i)}`);
  });
  return present;
}

function checkDevice(host: Host, device: VfioPciDevice, say: Say): void {
  const closed = !isMemoryEnabled(host, device) || device.resetting;
  for (const mm of host.mm.mms.values())
    for (const vma of vmasOf(host, mm.id, device.id)) {
      const present = checkEntries(mm, vma, say);
      // The zap does not find an area that is on no list.
      const escaped = vma.ops?.unaccounted === true && keepsVmaList(host);
      if (present === 0 || escaped) continue;
      const where = `${mm.id} ${hex(addressOf(vma.start))}`;
      if (closed) say(`${where}: ${present} pages are mapped while the memory is disabled or in reset`);
      const listed = device.vma_list.some((entry) => entry.mm === mm.id && entry.vma === vma.ops?.id);
      if (keepsVmaList(host) && !listed && !isChanging(host, mm.id))
        say(`${where}: ${present} pages are mapped, and the area is not on vma_list`);
    }
  const keys = device.vma_list.map(({ mm, vma }) => `${mm} ${vma}`);
  // Faults that drop vma_lock before they populate may list one area twice, and come to grief then.
  const once = host.profile.vfioPciFault === 'whole-locked';
  if (once && new Set(keys).size !== keys.length) say(`vma_list has an area twice: ${keys.join(', ')}`);
}

/** Nobody waits for an mmap_lock under a vma_lock. */
function checkWaits(host: Host): string[] {
  return [...host.operations.values()]
    .filter(({ blocked_on }) => blocked_on?.startsWith('mmap_lock:'))
    .filter(({ thread }) => thread?.held.some(({ lock }) => lock.startsWith('vma_lock:')))
    .map(({ id, blocked_on }) => `${id} waits for ${blocked_on} under a vma_lock`);
}

export function checkVfioPci(host: Host): string[] {
  const found: string[] = [];
  for (const device of host.consumers.vfio_pci.devices.values())
    checkDevice(host, device, (text) => void found.push(`vfio_pci ${device.id}: ${text}`));
  return [...found, ...checkWaits(host)];
}
