// Models the page cache: struct address_space of every file that was ever mapped, and what the file itself holds.

import type { Command } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex } from '../lib/u64.ts';
import { MAX_FILES } from '../limits.ts';
import type { Done, Fields } from '../outcome.ts';
import { KIND_FILE } from './page-frames.ts';

export interface MappedFile {
  name: string;
  /** Index in the file -> pfn. The cache holds one reference of each of its pages. */
  pages: Map<number, number>;
  /** Bytes (i_size); null: larger than any offset, as a file is that was first mentioned by an mmap. */
  size: bigint | null;
  /** The size it was made with: what a repeated PUT is compared with. */
  made: bigint | null;
  /** Index -> what was written back of a page. A page that is missing holds zeros. */
  stored: Map<number, Uint8Array>;
  /** seq of the last change. */
  version: number;
}

/** Largest size (MAX_LFS_FILESIZE). */
export const MAX_LFS_FILESIZE = 2n ** 63n - 1n;

/** The file of that name; made empty of pages at its first mention. ENOSPC: the host has MAX_FILES. */
export function openFile(host: Host, name: string, size: bigint | null = null): MappedFile {
  const { files } = host.mm;
  const existing = files.get(name);
  if (existing !== undefined) return existing;
  if (files.size >= MAX_FILES) throw new Errno('ENOSPC', `files: the host has ${MAX_FILES}, the most it can hold`);
  const file: MappedFile = { name, pages: new Map(), size, made: size, stored: new Map(), version: host.seq };
  files.set(name, file);
  return file;
}

export function getFile(host: Host, name: string): MappedFile {
  const file = host.mm.files.get(name);
  if (file === undefined) throw new NoSuchObject('file', name);
  return file;
}

/** What a client sees of a file. */
export const fileFields = ({ name, size, pages }: MappedFile): Fields => ({
  file: name,
  size,
  cached_pages: pages.size,
});

/** EINVAL: larger than MAX_LFS_FILESIZE. */
export function requireFileSize(size: bigint, what: string): void {
  if (size > MAX_LFS_FILESIZE) throw new Errno('EINVAL', `${what}: ${hex(size)} is beyond the largest file`);
}

/** Makes a file. EINVAL: size. EEXIST: it was made with another size. ENOSPC: MAX_FILES. */
export function putFile(host: Host, { file: name, size }: Extract<Command, { op: 'put_file' }>): Done {
  requireFileSize(size, 'size');
  const existing = host.mm.files.get(name);
  if (existing === undefined) return { ret: 0, created: true, fields: fileFields(openFile(host, name, size)) };
  if (existing.made !== size)
    throw new Errno(
      'EEXIST',
      `file '${name}' exists with size ${existing.made === null ? 'unlimited' : hex(existing.made)}, not ${hex(size)}`,
    );
  return { ret: 0, created: false, fields: fileFields(existing) };
}

/** Whether a page of a file lies beyond its end: to touch it is SIGBUS. */
export const isBeyondEnd = ({ size }: MappedFile, index: number): boolean =>
  size !== null && BigInt(index) * 4096n >= size;

/** The cached page of a file, read in where it is missing. EFAULT: it lies beyond the end. ENOMEM: no page is left. */
export function cachePage(host: Host, name: string, index: number): number {
  const file = openFile(host, name);
  if (isBeyondEnd(file, index))
    throw new Errno('EFAULT', `page ${index} of file '${name}' is beyond its end ${hex(file.size ?? 0n)}: SIGBUS`);
  const cached = file.pages.get(index);
  if (cached !== undefined) return cached;
  const pfn = host.mm.pages.alloc(KIND_FILE, host.seq);
  const stored = file.stored.get(index);
  if (stored !== undefined) host.mm.pages.bytes.set(pfn, { data: stored.slice(), version: host.seq });
  file.pages.set(index, pfn);
  file.version = host.seq;
  return pfn;
}

/**
 * The page that a private copy of a file's page is made from; null: it holds zeros. EFAULT, ENOMEM as cachePage().
 */
export function pageToCopy(host: Host, name: string, index: number): number | null {
  const file = openFile(host, name);
  const holdsZeros = !file.pages.has(index) && !file.stored.has(index) && !isBeyondEnd(file, index);
  return holdsZeros ? null : cachePage(host, name, index);
}

/** Takes a page out of the cache, and its reference. */
export function dropFromCache(host: Host, file: MappedFile, index: number): void {
  const pfn = file.pages.get(index);
  if (pfn === undefined) return;
  file.pages.delete(index);
  file.version = host.seq;
  host.mm.pages.put(pfn, host.seq);
}

/** Where a page is cached; null: in no file. */
export function keyOfPage(host: Host, pfn: number): { file: string; index: number } | null {
  for (const { name, pages } of host.mm.files.values())
    for (const [index, cached] of pages) if (cached === pfn) return { file: name, index };
  return null;
}
