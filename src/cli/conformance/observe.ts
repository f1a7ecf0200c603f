// From what a host shows of itself, as JSON, to what a recorded trace says of the same thing.

import { createHash } from 'node:crypto';
import { processOf } from './layout.ts';
import type { Returned } from './machine.ts';
import type { LockedVm, MappingState, Output, State } from './trace.ts';

/** A JSON object as the service prints it: addresses and sizes as hex strings, counts as numbers. */
export type Shown = { [field: string]: unknown };

const BITS: Readonly<Record<string, number>> = { READ: 1, WRITE: 2 };
const protOf = (names: unknown): number => (names as string[]).reduce((prot, name) => prot | (BITS[name] ?? 0), 0);

/** The fields of a reply that a trace records; a refusal's too. */
export function outputOf(op: string, reply: Shown): Output {
  if (op === 'pin_pages') return { pages: reply.phys_pfn ?? [] };
  if (op === 'register_notifier') return { events_word: reply.events_left };
  if (op === 'unmap_dma' && reply.size !== undefined) return { size: reply.size, ...bitmapOf(reply) };
  if (op === 'dirty_pages') return bitmapOf(reply);
  if (op === 'dma_rw' && typeof reply.data === 'string' && reply.errno === undefined)
    return { data: dataOf(reply.data) };
  return {};
}

/** Hex of the bytes. */
const bytesOf = (base64: string): string => Buffer.from(base64, 'base64').toString('hex');

const bitmapOf = ({ bitmap }: Shown): Output => (typeof bitmap === 'string' ? { bitmap: bytesOf(bitmap) } : {});

/** Longer data is recorded as its digest. */
function dataOf(base64: string): string {
  const bytes = Buffer.from(base64, 'base64');
  return bytes.length > 64 ? `sha256:${createHash('sha256').update(bytes).digest('hex')}` : bytes.toString('hex');
}

/** A mapping; its owner is a process, or the thread that mapped where the kernel keeps that. */
export function mappingOf(mapping: Shown, pfns: Shown[], ownedByThread = false): MappingState {
  const { iova, size, vaddr } = mapping as { iova: string; size: string; vaddr: string };
  return {
    iova,
    size,
    prot: protOf(mapping.prot),
    vaddr,
    owner: ownedByThread ? (mapping.task as string) : processOf(mapping.task as string),
    pins: pfns.map((record) => [record.iova, record.pfn, record.ref_count] as [string, number, number]),
    ...(mapping.iommu_mapped === true ? { iommu_mapped: true } : {}),
    ...(mapping.vaddr_invalid === true ? { vaddr_invalid: true } : {}),
  };
}

/** locked_vm counts modulo 2^64: what is shown below 0 has wrapped. */
export function lockedVmOf({ locked_vm }: Shown): LockedVm {
  if (locked_vm === null) return null;
  const pages = BigInt(locked_vm as number | string);
  return pages < 0n ? { wrapped: `0x${BigInt.asUintN(64, pages).toString(16)}` } : Number(pages);
}

/** A page where something is to say about it. */
export function pageOf({ pfn, pin_count, dirty }: Shown): State['pages'] {
  return pin_count === 0 && dirty === false ? [] : [[pfn as number, pin_count as number, dirty === true ? 1 : 0]];
}

/** VFIO_IOMMU_GET_INFO: a caller whose struct ends before cap_offset does not see it. */
export function infoOf({ argsz, flags, iova_pgsizes, cap_offset, caps }: Shown, given: number): Returned {
  const chain = (caps as Shown[]).map(capabilityOf);
  const tail = (flags as number) === INFO_FLAG_PGSIZES && given < INFO_ARGSZ ? {} : { cap_offset, caps: chain };
  return { ret: 0, errno: null, out: { argsz, flags, pgsizes: iova_pgsizes, ...tail } };
}

const INFO_FLAG_PGSIZES = 1;
/** Size of struct vfio_iommu_type1_info. */
const INFO_ARGSZ = 24;

function capabilityOf({ id, version, pgsize_bitmap, max_dirty_bitmap_size, avail, iova_ranges }: Shown): Shown {
  if (id === 3) return { id, version, avail };
  if (id === 1) return { id, version, ranges: (iova_ranges as Shown[]).map(({ start, end }) => [start, end]) };
  return { id, version, pgsize_bitmap: Number(pgsize_bitmap), max_bytes: Number(max_dirty_bitmap_size) };
}

/** The notification that an operation is blocked on; '' when it sleeps for another reason. */
export const notificationIn = (blockedOn: unknown): string => /^notification:(.+)$/.exec(String(blockedOn))?.[1] ?? '';

/** The name that a splat's text begins with, as in `WARNING: at vfio_unpin_pages: device-not-open: D0`. */
export function labelOf(text: string): { label?: string } {
  const label = /\bat \w+: ([a-z0-9-]+):/.exec(text)?.[1];
  return label === undefined ? {} : { label };
}
