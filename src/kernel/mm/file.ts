// Models the page cache: struct address_space of every file that was ever mapped.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { MAX_FILES } from '../limits.ts';
import { KIND_FILE } from './page-frames.ts';

export interface MappedFile {
  name: string;
  /** Index in the file -> pfn. The cache holds one reference of each of its pages. */
  pages: Map<number, number>;
  /** seq of the last change. */
  version: number;
}

/** The file of that name; made empty at its first mention. ENOSPC: the host has MAX_FILES. */
export function openFile(host: Host, name: string): MappedFile {
  const { files } = host.mm;
  const existing = files.get(name);
  if (existing !== undefined) return existing;
  if (files.size >= MAX_FILES) throw new Errno('ENOSPC', `files: the host has ${MAX_FILES}, the most it can hold`);
  const file: MappedFile = { name, pages: new Map(), version: host.seq };
  files.set(name, file);
  return file;
}

/** The cached page of a file, read in where it is missing. ENOMEM: no page is left. */
export function cachePage(host: Host, name: string, index: number): number {
  const file = openFile(host, name);
  const cached = file.pages.get(index);
  if (cached !== undefined) return cached;
  const pfn = host.mm.pages.alloc(KIND_FILE, host.seq);
  file.pages.set(index, pfn);
  file.version = host.seq;
  return pfn;
}
