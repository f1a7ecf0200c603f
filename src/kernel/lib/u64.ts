// Models the kernel's 64-bit addresses as page numbers: exact in a double, since 2^64 / 4096 = 2^52.

export const PAGE_SHIFT = 12;
export const PAGE_SIZE = 4096;
/** Number of pages in a 64-bit address space; one past the last page number. */
export const PAGES_IN_U64 = 2 ** 52;
export const U64_MAX = 2n ** 64n - 1n;

declare const unit: unique symbol;
/** Number of the page that an iova or a virtual address lies in: address / 4096, 0 .. 2^52 - 1. */
export type PageNumber = number & { readonly [unit]: 'PageNumber' };
/** Host page frame number: physical address / 4096, 0 .. 2^52 - 1. */
export type Pfn = number & { readonly [unit]: 'Pfn' };

export const asPageNumber = (n: number): PageNumber => n as PageNumber;
export const asPfn = (n: number): Pfn => n as Pfn;

/** Splits a byte address (0 .. 2^64 - 1) into its page number; the offset in the page is dropped. */
export const pageNumberOf = (address: bigint): PageNumber => Number(address >> 12n) as PageNumber;

/** First byte of a page. */
export const addressOf = (page: number): bigint => BigInt(page) << 12n;

/** Number of whole pages in a byte size (0 .. 2^64 - 1). */
export const npageOf = (size: bigint): number => Number(size >> 12n);

/** Byte size of a number of pages. */
export const sizeOf = (npage: number): bigint => BigInt(npage) << 12n;

export const isPageAligned = (bytes: bigint): boolean => (bytes & 0xfffn) === 0n;

/** page + npage modulo 2^52: what start + size becomes in the kernel's 64-bit arithmetic (0 at the very top). */
export const wrappedEnd = (page: number, npage: number): number => {
  const end = page + npage;
  return end >= PAGES_IN_U64 ? end - PAGES_IN_U64 : end;
};

export const addPages = (page: PageNumber, npage: number): PageNumber => wrappedEnd(page, npage) as PageNumber;

/** "0x..." in lower case without leading zeros, as the HTTP contract prints addresses and sizes. */
export const hex = (bytes: bigint): string => `0x${bytes.toString(16)}`;

/** "[0x1000, 0x3000)": how half-open ranges of pages are printed everywhere. */
export const printRange = (page: number, npage: number): string =>
  `[${hex(addressOf(page))}, ${hex(addressOf(page) + sizeOf(npage))})`;
