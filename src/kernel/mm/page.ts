// Models what others ask of a struct page, and declares what a page is before its first use.

import type { Command, PageKind } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGES_IN_U64 } from '../lib/u64.ts';
import { MAX_DECLARED_PAGES } from '../limits.ts';
import type { Done } from '../outcome.ts';
import {
  KIND_DEVICE,
  KIND_NORMAL,
  KIND_REMOVED,
  KIND_RESERVED,
  KIND_ZERO,
  KIND_ZONE_DEVICE,
  PG_DECLARED,
} from './page-frames.ts';

/** Below it, references of a page are no pins. */
const GUP_PIN_COUNTING_BIAS = 1024;

const KIND_OF: Readonly<Record<PageKind, number>> = {
  normal: KIND_NORMAL,
  reserved: KIND_RESERVED,
  zero: KIND_ZERO,
  device: KIND_DEVICE,
  zone_device: KIND_ZONE_DEVICE,
};

/** Models is_invalid_reserved_pfn() of vfio: the page has no struct page, or is reserved (the zero page is). */
export function isInvalidOrReserved(host: Host, pfn: number): boolean {
  const kind = host.mm.pages.kind(pfn);
  return kind === KIND_RESERVED || kind === KIND_ZERO || kind === KIND_DEVICE;
}

/**
 * Models page_maybe_dma_pinned(): as many references as one pin has. Many other references look like a pin; a pin never looks
 * like none.
 */
export const maybeDmaPinned = ({ mm: { pages } }: Host, pfn: number): boolean =>
  pages.refcount(pfn) < 0 || pages.refcount(pfn) >= GUP_PIN_COUNTING_BIAS;

export const pinCountOf = (host: Host, pfn: number): number => host.mm.pages.pinCount(pfn);

/** Models is_zero_pfn(), for every page of kind zero. */
export const isZeroPage = (host: Host, pfn: number): boolean => host.mm.pages.kind(pfn) === KIND_ZERO;

const KIND_NAMES: readonly PageKind[] = [
  'normal',
  'normal',
  'normal',
  'normal',
  'reserved',
  'zero',
  'device',
  'normal',
  'zone_device',
  'zone_device',
];
export const kindName = (kind: number): PageKind => KIND_NAMES[kind] as PageKind;

/**
 * Decides what a page is before its first use. A page of a device ('zone_device') has one reference from then on, and comes
 * back where its device was removed.
 * EINVAL: no pfn. EBUSY: the page is used, or an area has decided. EEXIST: declared with another kind.
 * ENOSPC: MAX_DECLARED_PAGES. ENOMEM: MAX_PAGE_CHUNKS.
 */
export function putPage(host: Host, command: Extract<Command, { op: 'put_page' }>): Done {
  const { pfn, kind } = command;
  const { pages } = host.mm;
  if (!Number.isSafeInteger(pfn) || pfn < 0 || pfn >= PAGES_IN_U64)
    throw new Errno('EINVAL', `pfn: ${pfn} is not between 0 and 2^52 - 1`);
  const decided = kindName(pages.kind(pfn));
  if (pages.kind(pfn) === KIND_REMOVED && pages.refcount(pfn) === 0 && kind === 'zone_device') {
    pages.changeKept(pfn, KIND_ZONE_DEVICE, host.seq);
    pages.get(pfn, host.seq);
    return { ret: 0, created: true, fields: { pfn, kind } };
  }
  if (pages.isKept(pfn) && decided === kind) return { ret: 0, created: false, fields: { pfn, kind } };
  const refcount = pages.refcount(pfn);
  if (refcount !== 0) throw new Errno('EBUSY', `page ${pfn} is in use: ref_count ${refcount}`);
  if (pages.isDeclared(pfn)) throw new Errno('EEXIST', `page ${pfn} exists with kind '${decided}', not '${kind}'`);
  if (pages.isKept(pfn)) throw new Errno('EBUSY', `page ${pfn} is '${decided}' in an area of consecutive pfns`);
  if (pages.declared >= MAX_DECLARED_PAGES)
    throw new Errno('ENOSPC', `pages: ${MAX_DECLARED_PAGES} are declared, the most a host can hold`);
  pages.requireChunks(pages.missingChunks(pfn, 1));
  pages.keep(pfn, KIND_OF[kind], PG_DECLARED, host.seq);
  if (kind === 'zone_device') pages.get(pfn, host.seq);
  return { ret: 0, created: true, fields: { pfn, kind } };
}
