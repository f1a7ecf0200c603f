// Models vaddr_get_pfn() and vaddr_get_pfns() of drivers/vfio/vfio_iommu_type1.c: the host pages behind a user address.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, PAGES_IN_U64, type PageNumber } from '../lib/u64.ts';
import { followPfnmap, pinUserPage, unpinUserPage } from '../mm/gup.ts';
import type { MmStruct } from '../mm/mm.ts';
import { isInvalidOrReserved, isZeroPage } from '../mm/page.ts';
import { VM_PFNMAP, vmaAt } from '../mm/vma.ts';

/** The page `npage` after a user page, modulo 2^64: an iova below its mapping lies before the mapping's vaddr. */
export function vaddrAt(vaddr: number, npage: number): PageNumber {
  const page = vaddr + npage;
  return (page < 0 ? page + PAGES_IN_U64 : page % PAGES_IN_U64) as PageNumber;
}

const isPfnmap = (mm: MmStruct, vaddr: PageNumber): boolean => ((vmaAt(mm, vaddr)?.flags ?? 0) & VM_PFNMAP) !== 0;

/**
 * Pins one page, or looks it up in a VM_PFNMAP area.
 * EFAULT: a hole; the area forbids the access; a VM_PFNMAP page that is neither reserved nor without struct page.
 */
export function vaddrGetPfn(host: Host, mm: MmStruct, vaddr: PageNumber, write: boolean): number {
  if (isPfnmap(mm, vaddr)) {
    const pfn = followPfnmap(host, mm, vaddr, write);
    if (isInvalidOrReserved(host, pfn)) return pfn;
    throw new Errno(
      'EFAULT',
      `vaddr ${hex(addressOf(vaddr))} is VM_PFNMAP, but its page is neither reserved nor without struct page`,
    );
  }
  const pfn = pinUserPage(host, mm, vaddr, write);
  if (host.profile.zeroPagePin === 'released-at-once' && isZeroPage(host, pfn)) unpinUserPage(host, pfn, false);
  return pfn;
}

/** Pins up to `npage` pages from `vaddr` on, as far as they can be; of a VM_PFNMAP area one. EFAULT: as the first page. */
export function vaddrGetPfns(host: Host, mm: MmStruct, vaddr: PageNumber, npage: number, write: boolean): number[] {
  const pfns = [vaddrGetPfn(host, mm, vaddr, write)];
  if (isPfnmap(mm, vaddr)) return pfns;
  while (pfns.length < npage) {
    const next = vaddrAt(vaddr, pfns.length);
    try {
      if (isPfnmap(mm, next)) break;
      pfns.push(vaddrGetPfn(host, mm, next, write));
    } catch (error) {
      if (error instanceof Errno) break;
      throw error;
    }
  }
  return pfns;
}
