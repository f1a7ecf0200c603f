// Models pin_user_pages_remote(FOLL_LONGTERM) of one page, and the page-table lookup of VM_PFNMAP areas that vfio does.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { asPfn, type PageNumber, type Pfn } from '../lib/u64.ts';
import { handleMmFault } from './fault.ts';
import { getLayout, layoutPfn } from './layout.ts';
import type { MmStruct } from './mm.ts';
import { isZeroPage } from './page.ts';
import { PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE, printPage } from './page-table.ts';
import { VM_IO, VM_PFNMAP, VM_READ, VM_WRITE, vmaAt } from './vma.ts';
import { warnOnce } from './warn-once.ts';

/**
 * Pins the page at `page` for long, brought in as a write (or a read) needs it: pinBias on its counter, one pin more.
 * EFAULT: no area. EFAULT: an area of device memory (VM_IO or VM_PFNMAP). EFAULT: the area forbids the access.
 * ENOMEM: no memory for the page. ENOMEM: its counter has overflowed.
 */
export function pinUserPage(host: Host, mm: MmStruct, page: PageNumber, write: boolean): Pfn {
  mm.has_pinned = true;
  const vma = vmaAt(mm, page);
  if (vma === null) throw new Errno('EFAULT', `vaddr ${printPage(page)}: nothing is mapped`);
  if ((vma.flags & (VM_IO | VM_PFNMAP)) !== 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: device memory (VM_IO or VM_PFNMAP)`);
  if ((vma.flags & (write ? VM_WRITE : VM_READ)) === 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the area may not be ${write ? 'written' : 'read'}`);
  const wanted = write ? PTE_TYPE_MASK | PTE_WRITE : PTE_TYPE_MASK;
  const suitable = write ? PTE_PRESENT | PTE_WRITE : PTE_PRESENT;
  if ((mm.page_table.flags(page) & wanted) !== suitable) handleMmFault(host, mm, vma, page, write);
  const pfn = mm.page_table.pfn(page);
  if (isZeroPage(host, pfn) && host.profile.zeroPagePin === 'never-taken') return asPfn(pfn);
  if (!host.mm.pages.pin(pfn, host.profile.pinBias, host.seq)) {
    warnOnce(host, 'try_grab_page', 'page_ref_count(page) <= 0', ['follow_page_pte', '__get_user_pages']);
    throw new Errno('ENOMEM', `page ${pfn}: its counter ${host.mm.pages.refcount(pfn)} has overflowed`);
  }
  return asPfn(pfn);
}

/** Returns a pin, after set_page_dirty if `dirty` (unpin_user_pages_dirty_lock). Precondition: the page is pinned. */
export function unpinUserPage(host: Host, pfn: number, dirty: boolean): void {
  host.mm.pages.unpin(pfn, host.profile.pinBias, dirty, host.seq);
}

/**
 * Models follow_fault_pfn(): the pfn in the page table of a VM_PFNMAP area, faulted in first where nothing is mapped. A
 * handler that drops the mm lock ('lazy-retry') makes the caller look again, with the same result. Old kernels only count
 * from the first page of the area.
 * EFAULT: no such area; the area forbids the access; the handler answers SIGBUS; a write wanted and the entry read-only.
 */
export function followPfnmap(host: Host, mm: MmStruct, page: PageNumber, write: boolean): Pfn {
  const vma = vmaAt(mm, page);
  if (vma === null || (vma.flags & VM_PFNMAP) === 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: no VM_PFNMAP area`);
  if (host.profile.pfnmapPfn === 'linear' && vma.kind === 'pfnmap')
    return asPfn(layoutPfn(getLayout(host.mm, vma.layout as number), vma.start - vma.origin) + (page - vma.start));
  if ((mm.page_table.flags(page) & PTE_TYPE_MASK) !== PTE_PRESENT) handleMmFault(host, mm, vma, page, write);
  if (host.profile.pfnmapReadOnlyWrite === 'EFAULT' && write && (mm.page_table.flags(page) & PTE_WRITE) === 0)
    throw new Errno('EFAULT', `vaddr ${printPage(page)}: the page-table entry is read-only`);
  return asPfn(mm.page_table.pfn(page));
}
