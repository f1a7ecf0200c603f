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

/**
 * Pins up to `npage` pages from `vaddr` on, as far as they can be; or looks up one page of a VM_PFNMAP area.
 * EFAULT: the first page is a hole, forbids the access, or is a VM_PFNMAP page that is neither reserved nor without struct page.
 */
export function vaddrGetPfns(host: Host, mm: MmStruct, vaddr: PageNumber, npage: number, write: boolean): number[] {
  const vma = vmaAt(mm, vaddr);
  if (vma !== null && (vma.flags & VM_PFNMAP) !== 0) {
    const pfn = followPfnmap(host, mm, vaddr, write);
    if (!isInvalidOrReserved(host, pfn))
      throw new Errno(
        'EFAULT',
        `vaddr ${hex(addressOf(vaddr))} is VM_PFNMAP, but its page is neither reserved nor without struct page`,
      );
    return [pfn];
  }
  const pfns: number[] = [];
  while (pfns.length < npage) {
    try {
      pfns.push(pinUserPage(host, mm, vaddrAt(vaddr, pfns.length), write));
    } catch (error) {
      if (!(error instanceof Errno) || pfns.length === 0) throw error;
      break;
    }
  }
  if (host.profile.zeroPagePin === 'released-at-once')
    for (const pfn of pfns) if (isZeroPage(host, pfn)) unpinUserPage(host, pfn, false);
  return pfns;
}
