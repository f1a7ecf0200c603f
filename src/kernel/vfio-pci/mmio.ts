// One access to a region of a device: the bytes behind it, and whether its memory could be touched.

import { Errno } from '../errno.ts';
import { type Host, trace } from '../host.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import { MAX_WRITTEN_PAGES } from '../limits.ts';
import { readPage, writePage } from '../mm/page-bytes.ts';
import type { ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { barOf, isDecoding, ROM_REGION, type VfioPciDevice, VGA_REGION } from './device.ts';

/** Where the frame buffer of VGA begins; its ports are in the page behind it. */
export const VGA_MEMORY = 0xa0000;
export const VGA_MEMORY_END = 0xc0000;

/** Whether a region is memory that PCI_COMMAND_MEMORY gates: not ports, nor VGA, which old drivers probe without it. */
export const isGated = (device: VfioPciDevice, region: number): boolean =>
  region === ROM_REGION || barOf(device, region)?.kind === 'mem';

/** The byte of the region's pages at which a position lies. */
const placeOf = (region: number, pos: number): number => {
  if (region !== VGA_REGION) return pos;
  return pos >= VGA_MEMORY ? pos - VGA_MEMORY : VGA_MEMORY_END - VGA_MEMORY + pos;
};

/** Reads into `bytes`, or writes them. ENOMEM: MAX_WRITTEN_PAGES. Precondition: they lie in one page of the region. */
export function mmio(
  host: Host,
  operation: ThreadOperation,
  device: VfioPciDevice,
  { region, pos, write }: { region: number; pos: number; write: boolean },
  bytes: Uint8Array,
): void {
  const gated = isGated(device, region);
  const decoding = !gated || isDecoding(device);
  trace(host, 'mmio', operation.id, { device: device.id, region, pos, size: bytes.length, write, decoding });
  if (gated) device.mmio++;
  if (!decoding) {
    device.mmio_disabled++;
    report(host, operation, 'MMIO_DISABLED', `${device.id}: memory is touched that the device does not decode`, []);
  }
  const place = placeOf(region, pos);
  const pfn = (device.pfns[region] as number) + Math.floor(place / PAGE_SIZE);
  if (!write) readPage(host, pfn, place % PAGE_SIZE, bytes);
  else if (!writePage(host, pfn, place % PAGE_SIZE, bytes))
    throw new Errno('ENOMEM', `${MAX_WRITTEN_PAGES} pages hold bytes of their own, the most a host keeps`);
}
