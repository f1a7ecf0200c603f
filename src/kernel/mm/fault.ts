// Models handle_mm_fault() of 5.15: what a CPU access, or GUP in its name, makes of a page-table entry.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { cachePage } from './file.ts';
import { getLayout, layoutPfn, layoutState } from './layout.ts';
import type { MmStruct } from './mm.ts';
import { copyPage } from './page-bytes.ts';
import { KIND_ANON, KIND_ZERO, MAX_MAPCOUNT } from './page-frames.ts';
import {
  leafIndex,
  PTE_DIRTY,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
  printPage,
  requirePageTables,
  setPte,
} from './page-table.ts';
import { VM_PFNMAP, VM_READ, VM_SHARED, VM_WRITE, type Vma } from './vma.ts';

export const READ_ENTRY = PTE_PRESENT | PTE_YOUNG;
export const WRITE_ENTRY = PTE_PRESENT | PTE_YOUNG | PTE_WRITE | PTE_DIRTY;
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
function mapNewAnonPage(host: Host, mm: MmStruct, page: number, copied: number | null = null): void {
  const { pages } = host.mm;
  const pfn = pages.alloc(KIND_ANON, host.seq);
  pages.addNewAnonRmap(pfn, host.seq);
  if (copied !== null) copyPage(host, copied, pfn);
  setPte(host, mm, page, pfn, WRITE_ENTRY);
}

/** Nothing is mapped at the page yet. */
function doFault(host: Host, mm: MmStruct, vma: Vma, page: number, write: boolean): void {
  const index = page - vma.origin;
  if (!mm.page_table.leaves.has(leafIndex(page))) requirePageTables(host, 1);
  switch (vma.kind) {
    case 'anon':
      if (write) mapNewAnonPage(host, mm, page);
      else setPte(host, mm, page, host.mm.pages.zeroPage(host.seq), ZERO_ENTRY);
      return;
    case 'file':
      if (write && (vma.flags & VM_SHARED) === 0)
        mapNewAnonPage(host, mm, page, host.mm.files.get(vma.file as string)?.pages.get(index) ?? null);
      else mapPage(host, mm, page, cachePage(host, vma.file as string, index), write ? WRITE_ENTRY : READ_ENTRY);
      return;
    case 'pages': {
      const pfn = layoutPfn(getLayout(host.mm, vma.layout as number), index);
      if (host.mm.pages.kind(pfn) !== KIND_ZERO) mapPage(host, mm, page, pfn, write ? WRITE_ENTRY : READ_ENTRY);
      else if (write) mapNewAnonPage(host, mm, page);
      else setPte(host, mm, page, pfn, ZERO_ENTRY);
      return;
    }
    case 'pfnmap':
      doDeviceFault(host, mm, vma, page);
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
    mapNewAnonPage(host, mm, page);
    return;
  }
  // Any further reference, a pin or a get, forces a copy: the page it holds and the address part.
  const reusable = pages.kind(pfn) === KIND_ANON && pages.refcount(pfn) === 1 && pages.mapcount(pfn) === 1;
  if ((vma.flags & VM_SHARED) !== 0 || reusable) {
    setPte(host, mm, page, pfn, flags | WRITE_ENTRY);
    return;
  }
  mapNewAnonPage(host, mm, page, pfn);
  pages.removeRmap(pfn, (flags & PTE_DIRTY) !== 0, host.seq);
}

/**
 * Brings in a page for a read or a write.
 * EFAULT: the area forbids the access; a device's handler answers SIGBUS. ENOMEM: no page, page table or mapcount is left.
 */
export function handleMmFault(host: Host, mm: MmStruct, vma: Vma, page: number, write: boolean): void {
  if ((vma.flags & (write ? VM_WRITE : VM_READ)) === 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the area may not be ${write ? 'written' : 'read'}`);
  const flags = mm.page_table.flags(page);
  const type = flags & PTE_TYPE_MASK;
  if (type === PTE_NONE) doFault(host, mm, vma, page, write);
  else if (type !== PTE_PRESENT) throw new Error(`page-table entry of type ${type} at ${printPage(page)}`);
  else if (write && (flags & PTE_WRITE) === 0) doWpPage(host, mm, vma, page, flags);
  else setPte(host, mm, page, mm.page_table.pfn(page), flags | (write ? PTE_DIRTY | PTE_YOUNG : PTE_YOUNG));
}
