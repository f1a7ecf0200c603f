// The bytes behind simulated pages. A page that nobody has written costs no memory: what it holds follows from its pfn.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import { MAX_WRITTEN_PAGES } from '../limits.ts';
import type { Done } from '../outcome.ts';
import { KIND_ANON, KIND_FILE, KIND_KSM, KIND_ZERO } from './page-frames.ts';

/** Decides what pages hold that nobody has written. EBUSY: a page has been written already. */
export function putPageContents(host: Host, { contents }: Extract<Command, { op: 'put_page_contents' }>): Done {
  const { mm } = host;
  if (mm.contents === contents) return { ret: 0, created: false, fields: { contents } };
  if (mm.pages.bytes.size > 0)
    throw new Errno('EBUSY', `contents: ${mm.pages.bytes.size} pages have been written already`);
  mm.contents = contents;
  return { ret: 0, created: true, fields: { contents } };
}

/** Byte i of a page of which nothing was written, under the contents 'pattern'. */
const patternByte = (pfn: number, i: number): number => (7 * (pfn % 256) + 13 * i + 31 * (i >>> 8)) & 0xff;

const KINDS_OF_ZEROS: readonly number[] = [KIND_ANON, KIND_FILE, KIND_ZERO, KIND_KSM];

/** Memory that the kernel hands out, and files, begin as zeros whatever the contents of explicit pages. */
function isPattern(host: Host, pfn: number): boolean {
  const kind = host.mm.pages.kind(pfn);
  return host.mm.contents === 'pattern' && !KINDS_OF_ZEROS.includes(kind);
}

/** Copies the bytes [offset, offset + into.length) of a page. */
export function readPage(host: Host, pfn: number, offset: number, into: Uint8Array): void {
  const written = host.mm.pages.bytes.get(pfn);
  if (written !== undefined) into.set(written.data.subarray(offset, offset + into.length));
  else if (!isPattern(host, pfn)) into.fill(0);
  else for (let i = 0; i < into.length; i++) into[i] = patternByte(pfn, offset + i);
}

/** False: MAX_WRITTEN_PAGES hold bytes of their own already. */
export function writePage(host: Host, pfn: number, offset: number, from: Uint8Array): boolean {
  const { bytes } = host.mm.pages;
  let written = bytes.get(pfn);
  if (written === undefined) {
    if (bytes.size >= MAX_WRITTEN_PAGES) return false;
    const data = new Uint8Array(PAGE_SIZE);
    readPage(host, pfn, 0, data);
    written = { data, version: host.seq };
    bytes.set(pfn, written);
  }
  written.data.set(from, offset);
  written.version = host.seq;
  return true;
}

/** Whether two pages hold the same bytes (pages_identical). */
export function pagesIdentical(host: Host, a: number, b: number): boolean {
  const { bytes } = host.mm.pages;
  if (!bytes.has(a) && !bytes.has(b) && !isPattern(host, a) && !isPattern(host, b)) return true;
  const [one, two] = [new Uint8Array(PAGE_SIZE), new Uint8Array(PAGE_SIZE)];
  readPage(host, a, 0, one);
  readPage(host, b, 0, two);
  return one.every((byte, i) => byte === two[i]);
}

/** A copy of a page takes its bytes along (copy_user_highpage). Nothing to do where both hold zeros. */
export function copyPage(host: Host, from: number, to: number): void {
  if (!host.mm.pages.bytes.has(from) && !isPattern(host, from)) return;
  const data = new Uint8Array(PAGE_SIZE);
  readPage(host, from, 0, data);
  writePage(host, to, 0, data);
}
