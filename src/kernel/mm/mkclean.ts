// Models clear_page_dirty_for_io() with page_mkclean(): before a page of a file is written back, nobody may write to it unseen.

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import { MAX_STORED_PAGES } from '../limits.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { clearPteAt, tracePte } from './fault-steps.ts';
import { getFile, keyOfPage } from './file.ts';
import { isolateSteps, requireUsedPage } from './isolate.ts';
import { anyMm, type MmId } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { readPage } from './page-bytes.ts';
import { KIND_FILE } from './page-frames.ts';
import { isResident, PTE_DIRTY, PTE_WRITE, setPte } from './page-table.ts';
import { underPtl } from './ptl.ts';
import { areasOf, iMmapLock, inMm, under } from './rmap.ts';
import { underPageLock } from './unmap-page.ts';
import { VM_SHARED } from './vma.ts';

export type MkcleanStep =
  | { do: 'page_mkclean'; pfn: number; cleanup?: true }
  | { do: 'mkclean_each'; pfn: number; cleanup?: true }
  | { do: 'mkclean_one'; pfn: number; mm: MmId; page: number; cleanup?: true }
  /** `cleared`: the page is still mapped by the entry that is none for a moment. */
  | { do: 'mkclean_set'; cleared: number; mm: MmId; page: number; flags: number; cleanup?: true }
  | { do: 'mkcleaned'; pfn: number; cleanup?: true };

/**
 * Makes a page of a file clean, as before its writeback: every entry of a shared area becomes read-only, and what the page
 * holds goes to the file. Answers the number of entries.
 * EINVAL: no pfn, or no page of a file. ENOENT: nobody uses the frame. ENOSPC: MAX_STORED_PAGES; the page stays dirty.
 */
export function mkclean(host: Host, { pfn, stop_at }: Extract<Command, { op: 'mkclean' }>): Done {
  requireUsedPage(host, pfn);
  if (host.mm.pages.kind(pfn) !== KIND_FILE) throw new Errno('EINVAL', `page ${pfn} is of no file`);
  return runOperation(
    host,
    { kind: 'mkclean', locals: { task: null, mm: null } },
    isolateSteps(
      pfn,
      underPageLock(pfn, [
        { do: 'page_mkclean', pfn },
        { do: 'mkcleaned', pfn },
      ]),
    ),
    stop_at ?? null,
  );
}

/** Keeps what a page holds as the file's own. ENOSPC: MAX_STORED_PAGES. */
function writeBack(host: Host, pfn: number): void {
  const key = keyOfPage(host, pfn);
  if (key === null) return;
  const file = getFile(host, key.file);
  const written = host.mm.pages.bytes.has(pfn);
  if (written && !file.stored.has(key.index)) {
    let stored = 0;
    for (const each of host.mm.files.values()) stored += each.stored.size;
    if (stored >= MAX_STORED_PAGES)
      throw new Errno('ENOSPC', `files hold ${stored} pages that were written back, the limit is ${MAX_STORED_PAGES}`);
  }
  if (!written) file.stored.delete(key.index);
  else {
    const data = new Uint8Array(PAGE_SIZE);
    readPage(host, pfn, 0, data);
    file.stored.set(key.index, data);
  }
  file.version = host.seq;
}

export const mkcleanSteps: Handlers<MkcleanStep> = {
  page_mkclean(host, operation, { pfn }) {
    const key = keyOfPage(host, pfn);
    if (key === null || host.mm.pages.mapcount(pfn) === 0) return;
    pushSteps(operation, under([iMmapLock(key.file)], 'R', [{ do: 'mkclean_each', pfn }]));
  },

  /** In every shared area that contains the page, before anybody has looked at the entry. Private ones hold copies. */
  mkclean_each(host, operation, { pfn }) {
    const key = keyOfPage(host, pfn);
    if (key === null) return;
    const pairs = areasOf(host, key.file, key.index, key.index + 1)
      .filter(({ vma }) => (vma.flags & VM_SHARED) !== 0)
      .flatMap(({ mm: { id: mm }, vma }) => {
        const page = vma.origin + key.index;
        const range = {
          mm,
          start: page,
          end: page + 1,
          event: 'PROTECTION_PAGE',
          blockable: true,
          owner: null,
        } as const;
        return inMm(host, mm, invalidation(range, underPtl(mm, page, [{ do: 'mkclean_one', pfn, mm, page }])));
      });
    pushSteps(operation, pairs);
  },

  mkclean_one(host, operation, { pfn, mm: id, page }) {
    const mm = anyMm(host, id);
    const flags = mm.page_table.flags(page);
    if (!isResident(flags) || mm.page_table.pfn(page) !== pfn || (flags & (PTE_DIRTY | PTE_WRITE)) === 0) return;
    if ((flags & PTE_DIRTY) !== 0) host.mm.pages.setPteDirty(pfn, host.seq);
    clearPteAt(host, operation, mm, page);
    operation.thread.ret++;
    pushSteps(operation, [
      { do: 'phase', phase: 'after_pte_clear' },
      { do: 'mkclean_set', cleared: pfn, mm: id, page, flags: flags & ~(PTE_DIRTY | PTE_WRITE) },
      { do: 'phase', phase: 'after_pte_set' },
    ]);
  },

  mkclean_set(host, operation, { cleared, mm, page, flags }) {
    setPte(host, anyMm(host, mm), page, cleared, flags);
    tracePte(host, operation, page, 'set', cleared);
  },

  mkcleaned(host, operation, { pfn }) {
    writeBack(host, pfn);
    host.mm.pages.clearDirty(pfn, host.seq);
    operation.thread.fields = { pfn, cleaned: operation.thread.ret };
  },
};
