// Models handle_mm_fault() of 5.15: what a CPU access, or GUP in its name, makes of a page-table entry.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { isLockFree, pageLock } from '../lock.ts';
import { swapInAtOnce } from './entry-fault.ts';
import { cachePage, pageToCopy } from './file.ts';
import { getLayout, layoutPfn, layoutState } from './layout.ts';
import type { MmStruct } from './mm.ts';
import { copyPage } from './page-bytes.ts';
import { KIND_ANON, KIND_REMOVED, KIND_ZERO, MAX_MAPCOUNT } from './page-frames.ts';
import {
  leafIndex,
  PTE_ANON_EXCLUSIVE,
  PTE_DIRTY,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SOFT_DIRTY,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  printPage,
  requirePageTables,
  setPte,
} from './page-table.ts';
import { anonVmaPrepare, VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, type Vma } from './vma.ts';

export const READ_ENTRY = PTE_PRESENT | PTE_YOUNG;
export const WRITE_ENTRY = PTE_PRESENT | PTE_YOUNG | PTE_WRITE | PTE_DIRTY | PTE_SOFT_DIRTY;
/** Of a new anonymous page, which nobody else can have. */
export const ANON_ENTRY = WRITE_ENTRY | PTE_ANON_EXCLUSIVE;
export const ZERO_ENTRY = PTE_PRESENT | PTE_YOUNG | PTE_SPECIAL;

/** Maps a page that others may map too. ENOMEM: it is mapped MAX_MAPCOUNT times. */
function mapPage(host: Host, mm: MmStruct, page: number, pfn: number, flags: number): void {
  const { pages } = host.mm;
  if (pages.mapcount(pfn) >= MAX_MAPCOUNT)
    throw new Errno('ENOMEM', `page ${pfn} is mapped ${MAX_MAPCOUNT} times, the most a page can be`);
  pages.addRmap(pfn, host.seq);
  setPte(host, mm, page, pfn, flags);
}

/** Maps a page of its own, writable and dirty, with the bytes of `copied` if there is one. ENOMEM: no page is left. */
function mapNewAnonPage(host: Host, mm: MmStruct, vma: Vma, page: number, copied: number | null = null): void {
  const { pages } = host.mm;
  const pfn = pages.alloc(KIND_ANON, host.seq);
  if (vma.anon_vma === null) anonVmaPrepare(host, mm, vma);
  pages.addNewAnonRmap(pfn, host.seq);
  if (copied !== null) copyPage(host, copied, pfn);
  setPte(host, mm, page, pfn, maybeWritable(vma, ANON_ENTRY));
}

/** maybe_mkwrite(): a write that is forced on an area leaves its pages read-only. */
export const maybeWritable = (vma: Vma, flags: number): number =>
  (vma.flags & VM_WRITE) === 0 ? flags & ~PTE_WRITE : flags;

/** EFAULT: what is missing may have been taken by the OOM reaper (check_stable_address_space). */
function requireStable(mm: MmStruct, page: number): void {
  if (mm.unstable) throw new Errno('EFAULT', `vaddr ${printPage(page)}: the OOM reaper took memory of mm '${mm.id}'`);
}

/** Nothing is mapped at the page yet. */
function doFault(host: Host, mm: MmStruct, vma: Vma, page: number, write: boolean): void {
  const index = page - vma.origin;
  if (!mm.page_table.leaves.has(leafIndex(page))) requirePageTables(host, 1);
  if ((vma.flags & VM_SHARED) === 0) requireStable(mm, page);
  switch (vma.kind) {
    case 'anon':
      if (write) mapNewAnonPage(host, mm, vma, page);
      else setPte(host, mm, page, host.mm.pages.zeroPage(host.seq), ZERO_ENTRY);
      return;
    case 'file':
      if (write && (vma.flags & VM_SHARED) === 0)
        mapNewAnonPage(host, mm, vma, page, pageToCopy(host, vma.file as string, index));
      else mapPage(host, mm, page, cachePage(host, vma.file as string, index), write ? WRITE_ENTRY : READ_ENTRY);
      return;
    case 'pages': {
      const pfn = layoutPfn(getLayout(host.mm, vma.layout as number), index);
      if (host.mm.pages.kind(pfn) === KIND_REMOVED)
        throw new Errno('EFAULT', `vaddr ${printPage(page)}: the device of page ${pfn} was removed`);
      if (host.mm.pages.kind(pfn) !== KIND_ZERO) mapPage(host, mm, page, pfn, write ? WRITE_ENTRY : READ_ENTRY);
      else if (write) mapNewAnonPage(host, mm, vma, page);
      else setPte(host, mm, page, pfn, ZERO_ENTRY);
      return;
    }
    case 'pfnmap':
      doDeviceFault(host, mm, vma, page);
      return;
    case 'device':
      throw new Errno('EFAULT', `vaddr ${printPage(page)}: its fault handler may have to wait, and the caller cannot`);
  }
}

/** The fault handler of a VM_PFNMAP area installs the page with the permission of the area. EFAULT: it answers SIGBUS. */
function doDeviceFault(host: Host, mm: MmStruct, vma: Vma, page: number): void {
  const layout = getLayout(host.mm, vma.layout as number);
  const index = page - vma.origin;
  if (layoutState(layout, index) === 'sigbus')
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the device's fault handler answers SIGBUS`);
  const write = (vma.flags & VM_WRITE) === 0 ? 0 : PTE_WRITE;
  setPte(host, mm, page, layoutPfn(layout, index), PTE_PRESENT | PTE_YOUNG | PTE_SPECIAL | write);
}

/**
 * Whether a private page becomes writable where it is. Where references count, any further one, a pin or a get, forces a
 * copy: the page it holds and the address part. A page that is marked as the entry's own stays, whoever else refers to it.
 */
export function isReusable(host: Host, flags: number, pfn: number): boolean {
  const { pages } = host.mm;
  if (pages.kind(pfn) !== KIND_ANON) return false;
  if (host.profile.anonReuse === 'exclusive' && (flags & PTE_ANON_EXCLUSIVE) !== 0) return true;
  return pages.refcount(pfn) === 1 && pages.mapcount(pfn) === 1 && isLockFree(host, pageLock(pfn), 'W');
}

/**
 * The entry is present and read-only (do_wp_page): the page itself becomes writable, or a copy takes its place. A page of a
 * VM_PFNMAP area is never copied (wp_pfn_shared); the zero page always is.
 */
function doWpPage(host: Host, mm: MmStruct, vma: Vma, page: number, flags: number): void {
  const { pages } = host.mm;
  const pfn = mm.page_table.pfn(page);
  if ((vma.flags & VM_PFNMAP) !== 0) {
    setPte(host, mm, page, pfn, flags | WRITE_ENTRY);
    return;
  }
  if ((flags & PTE_SPECIAL) !== 0) {
    mapNewAnonPage(host, mm, vma, page);
    return;
  }
  if ((vma.flags & VM_SHARED) !== 0) {
    setPte(host, mm, page, pfn, flags | WRITE_ENTRY);
    return;
  }
  if (isReusable(host, flags, pfn)) {
    setPte(host, mm, page, pfn, maybeWritable(vma, flags | ANON_ENTRY));
    return;
  }
  mapNewAnonPage(host, mm, vma, page, pfn);
  pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
}

/**
 * Brings in a page for a read or a write.
 * EFAULT: the area forbids the access; a device's handler answers SIGBUS; the page was swapped out, or the like, and a fault
 * that may wait has failed to bring it back. ENOMEM: no page, page table or mapcount is left.
 */
export function handleMmFault(host: Host, mm: MmStruct, vma: Vma, page: number, write: boolean, force = false): void {
  if (!force && (vma.flags & (write ? VM_WRITE : VM_READ)) === 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the area may not be ${write ? 'written' : 'read'}`);
  const flags = mm.page_table.flags(page);
  const type = flags & PTE_TYPE_MASK;
  if (type === PTE_NONE) doFault(host, mm, vma, page, write);
  else if (swapInAtOnce(host, mm, page, write)) {
    if (write) handleMmFault(host, mm, vma, page, write);
  } else if (type !== PTE_PRESENT)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: its page cannot be brought back at once`);
  else if (write && (flags & PTE_WRITE) === 0) doWpPage(host, mm, vma, page, flags);
  else setPte(host, mm, page, mm.page_table.pfn(page), flags | (write ? PTE_DIRTY | PTE_YOUNG : PTE_YOUNG));
}
