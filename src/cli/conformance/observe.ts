// From what a host shows of itself, as JSON, to what a recorded trace says of the same thing.

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
  if (op === 'unmap_dma' && reply.size !== undefined) return { size: reply.size };
  return {};
}

export function mappingOf(mapping: Shown, pfns: Shown[]): MappingState {
  const { iova, size, vaddr } = mapping as { iova: string; size: string; vaddr: string };
  return {
    iova,
    size,
    prot: protOf(mapping.prot),
    vaddr,
    owner: processOf(mapping.task as string),
    pins: pfns.map((record) => [record.iova, record.pfn, record.ref_count] as [string, number, number]),
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

/** VFIO_IOMMU_GET_INFO. */
export function infoOf({ argsz, flags, iova_pgsizes, cap_offset, caps }: Shown): Returned {
  const chain = (caps as Shown[]).map(({ id, version, pgsize_bitmap, max_dirty_bitmap_size, avail }) =>
    id === 3
      ? { id, version, avail }
      : { id, version, pgsize_bitmap: Number(pgsize_bitmap), max_bytes: Number(max_dirty_bitmap_size) },
  );
  return { ret: 0, errno: null, out: { argsz, flags, pgsizes: iova_pgsizes, cap_offset, caps: chain } };
}

/** The notification that an operation is blocked on; '' when it sleeps for another reason. */
export const notificationIn = (blockedOn: unknown): string => /^notification:(.+)$/.exec(String(blockedOn))?.[1] ?? '';
