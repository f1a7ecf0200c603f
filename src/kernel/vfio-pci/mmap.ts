// Models vfio_pci_mmap(): an area of the device's memory, in which nothing is mapped before the first access.

import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf } from '../lib/u64.ts';
import { mmapLock } from '../lock.ts';
import { underLock } from '../mm/lock-steps.ts';
import { anyMm, type MmId } from '../mm/mm.ts';
import { mmapRange, type PageRange } from '../mm/mmap.ts';
import { unmapSteps } from '../mm/munmap.ts';
import { requireMm } from '../mm/task.ts';
import {
  linkVma,
  VM_DONTDUMP,
  VM_DONTEXPAND,
  VM_EXEC,
  VM_IO,
  VM_MAYEXEC,
  VM_MAYREAD,
  VM_MAYSHARE,
  VM_MAYWRITE,
  VM_PFNMAP,
  VM_READ,
  VM_SHARED,
  VM_WRITE,
} from '../mm/vma.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers } from '../steps.ts';
import { runOperation } from '../thread.ts';
import { type BarSpec, barOf, getVfioPci, NUM_REGIONS, pagesOf, ROM_REGION, type VfioPciDevice } from './device.ts';
import { openDevice } from './zap.ts';

export interface MmapCommand {
  op: 'vfio_pci_mmap';
  device: string;
  task: string;
  addr: bigint;
  length: bigint;
  region: number;
  /** Where in the region. */
  offset: bigint;
  prot: number;
  shared: boolean;
  stop_at?: Phase;
}

export type MmapStep = { do: 'vfio_pci_mmap_region'; mm: MmId; range: PageRange; command: MmapCommand; cleanup?: true };

const AREA_FLAGS =
  VM_SHARED | VM_MAYSHARE | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC | VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP;

/**
 * The BAR that is mapped. EINVAL: a private mapping; a region of the device's own, which has no handler; the ROM or a region
 * behind it; a BAR that cannot be mapped; beyond the BAR in whole pages.
 */
function mappableBar(device: VfioPciDevice, { start, end }: PageRange, command: MmapCommand): BarSpec {
  const { region, offset, shared } = command;
  const npage = end - start;
  if (!shared) throw new Errno('EINVAL', 'shared: false; the memory of a device is mapped shared');
  if (region >= NUM_REGIONS || region < 0) throw new Errno('EINVAL', `region: ${region} has no handler for mmap`);
  if (region >= ROM_REGION) throw new Errno('EINVAL', `region: ${region} is no BAR`);
  const bar = barOf(device, region);
  if (bar === null || !bar.mmap) throw new Errno('EINVAL', `region: BAR${region} cannot be mapped`);
  if (npageOf(offset) + npage > pagesOf(bar.length))
    throw new Errno('EINVAL', `offset ${hex(offset)} + ${npage} pages is beyond BAR${region} of ${hex(bar.length)}`);
  return bar;
}

/** Requests the BAR and maps it for the kernel (vfio_pci_setup_barmap). EBUSY: somebody else has it. ENOMEM: iomap. */
export function setupBarmap(host: Host, { id, barmap }: VfioPciDevice, bar: number): void {
  if (barmap.includes(bar)) return;
  if (shouldFail(host, 'request_regions')) throw new Errno('EBUSY', `${id}: somebody else has requested BAR${bar}`);
  if (shouldFail(host, 'iomap')) throw new Errno('ENOMEM', `${id}: BAR${bar} cannot be mapped`);
  barmap.push(bar);
}

/**
 * Maps a part of a BAR at `addr`; what it overlaps is unmapped first, even where the device then refuses. Whether the memory
 * is enabled is not asked.
 * ENODEV, NOT_FOUND: as getVfioPci(). ESRCH: the task has exited. EINVAL, ENOMEM: as mmapRange(). EINVAL: offset not page
 * aligned. EINTR: killed while it waited. EINVAL: as mappableBar(). EBUSY, ENOMEM: as setupBarmap().
 */
export function mmap(host: Host, command: MmapCommand): Done {
  const { device, task, addr, length, offset, stop_at } = command;
  getVfioPci(host, device);
  const mm = requireMm(host, task);
  const range = mmapRange(mm, addr, length);
  if (!isPageAligned(offset)) throw new Errno('EINVAL', `offset: ${hex(offset)} is not page aligned`);
  const steps = underLock(mmapLock(mm.id), 'W', [
    ...unmapSteps(mm.id, range, false),
    { do: 'vfio_pci_mmap_region', mm: mm.id, range, command },
  ]);
  return runOperation(host, { kind: command.op, locals: { task, mm: mm.id } }, steps, stop_at ?? null);
}

export const mmapSteps: Handlers<MmapStep> = {
  vfio_pci_mmap_region(host, operation, { mm: id, range, command }) {
    const device = openDevice(host, command.device);
    const { region, offset, prot, addr } = command;
    mappableBar(device, range, command);
    setupBarmap(host, device, region);
    const flags = AREA_FLAGS | (prot & (VM_READ | VM_WRITE | VM_EXEC));
    const origin = range.start - ((device.pfns[region] as number) + npageOf(offset));
    const ops = { consumer: 'vfio_pci', of: device.id, id: host.mm.next_vma++, unaccounted: false } as const;
    const vma = { ...range, flags, kind: 'device', file: null, layout: null, origin, anon_vma: null, ops } as const;
    linkVma(host, anyMm(host, id), { ...vma });
    operation.thread.fields = { addr };
  },
};
