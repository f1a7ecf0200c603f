// Models unmap_and_move() and move_to_new_page() of mm/migrate.c, and the event of migrate_vma_collect().

import type { Command } from '../command.ts';
import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, isPageAligned, npageOf, pageNumberOf } from '../lib/u64.ts';
import { mmapLock, pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import { tracePte } from './fault-steps.ts';
import { getFile, keyOfPage } from './file.ts';
import { isolateSteps, requireIsolated } from './isolate.ts';
import { anyMm, type MmId } from './mm.ts';
import { invalidation } from './mmu-notifier/invalidation.ts';
import { copyPage } from './page-bytes.ts';
import { PTE_MIGRATION, PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE, printPage, setPte } from './page-table.ts';
import { underPtl } from './ptl.ts';
import { inMm, migrationEntriesOf, rmapLocks, under } from './rmap.ts';
import { slotOf } from './swap.ts';
import { requireMm } from './task.ts';
import { underPageLock } from './unmap-page.ts';
import { VM_IO, VM_PFNMAP, VM_WRITE, vmaAt } from './vma.ts';

export type MigrateStep =
  | { do: 'migrate_page'; pfn: number; cleanup?: true }
  | { do: 'move_to_new_page'; from: number; to: number; cleanup?: true }
  /** Migration entries of `from` become entries of `to`; nothing where there are none. */
  | { do: 'remove_migration_ptes'; from: number; to: number; cleanup: true }
  | { do: 'remove_each'; from: number; to: number; cleanup: true }
  | { do: 'remove_migration_pte'; from: number; to: number; mm: MmId; page: number; cleanup: true };

/**
 * Moves what a page holds to another frame, and every entry with it. Fields: pfn, the new one.
 * EINVAL, ENOENT, EBUSY as requireIsolated(). ENOMEM: no page is left. EAGAIN: others have references of the page (pins,
 * gets): its entries are put back.
 */
export function migrate(host: Host, { pfn, stop_at }: Extract<Command, { op: 'migrate' }>): Done {
  requireIsolated(host, pfn);
  return runOperation(
    host,
    { kind: 'migrate', locals: { task: null, mm: null } },
    isolateSteps(pfn, underPageLock(pfn, [{ do: 'migrate_page', pfn }])),
    stop_at ?? null,
  );
}

export const migrateSteps: Handlers<MigrateStep> = {
  migrate_page(host, operation, { pfn: from }) {
    const { pages } = host.mm;
    const to = pages.alloc(pages.kind(from), host.seq);
    operation.thread.pages.push(to);
    pushSteps(operation, [
      { do: 'lock', lock: pageLock(to), mode: 'W' },
      { do: 'try_to_unmap', pfn: from, by: 'migration' },
      { do: 'move_to_new_page', from, to },
      { do: 'remove_migration_ptes', from, to: from, cleanup: true },
      { do: 'unlock', lock: pageLock(to), cleanup: true },
      { do: 'put_page', pfn: to, cleanup: true },
    ]);
  },

  /** migrate_page_move_mapping(): besides the caller only a cache may refer to the page. */
  move_to_new_page(host, operation, { from, to }) {
    const { pages, swap } = host.mm;
    const key = keyOfPage(host, from);
    const slot = swap.cache.get(from);
    const expected = key === null && slot === undefined ? 1 : 2;
    const refcount = pages.refcount(from);
    if (pages.mapcount(from) > 0 || refcount !== expected)
      throw new Errno('EAGAIN', `page ${from}: ref_count ${refcount}, not ${expected}: others have references of it`);
    pages.setKind(to, pages.kind(from), host.seq);
    copyPage(host, from, to);
    if (pages.isDirty(from)) pages.setDirty(to, host.seq);
    else if (pages.needsWriteback(from)) pages.setPteDirty(to, host.seq);
    if (expected === 2) {
      pages.get(to, host.seq);
      pages.put(from, host.seq);
    }
    if (key !== null) {
      const file = getFile(host, key.file);
      file.pages.set(key.index, to);
      file.version = host.seq;
    }
    if (slot !== undefined) {
      swap.cache.delete(from);
      swap.cache.set(to, slot);
      Object.assign(slotOf(host, slot), { pfn: to, version: host.seq });
    }
    operation.thread.fields = { pfn: to };
    pushSteps(operation, [{ do: 'remove_migration_ptes', from, to, cleanup: true }]);
  },

  remove_migration_ptes(host, operation, { from, to }) {
    if (migrationEntriesOf(host, from).length === 0) return;
    pushSteps(operation, under(rmapLocks(host, from), 'R', [{ do: 'remove_each', from, to, cleanup: true }]));
  },

  /** Again and again, until nobody has copied one meanwhile. Nobody is told: those who look at the address wait. */
  remove_each(host, operation, { from, to }) {
    const entries = migrationEntriesOf(host, from);
    if (entries.length === 0) return;
    pushSteps(operation, [
      ...entries.flatMap(({ mm, page }) =>
        inMm(host, mm, underPtl(mm, page, [{ do: 'remove_migration_pte', from, to, mm, page, cleanup: true }])),
      ),
      { do: 'remove_each', from, to, cleanup: true },
    ]);
  },

  /** Old, clean, and writable where it was and the area still is. */
  remove_migration_pte(host, operation, { from, to, mm: id, page }) {
    const mm = anyMm(host, id);
    const flags = mm.page_table.flags(page);
    if ((flags & PTE_TYPE_MASK) !== PTE_MIGRATION || mm.page_table.pfn(page) !== from) return;
    const mayWrite = ((vmaAt(mm, page)?.flags ?? 0) & VM_WRITE) !== 0;
    host.mm.pages.addRmap(to, host.seq);
    setPte(host, mm, page, to, (flags & ~PTE_TYPE_MASK & (mayWrite ? -1 : ~PTE_WRITE)) | PTE_PRESENT);
    tracePte(host, operation, page, 'set', to);
  },
};

/**
 * A driver asks for the pages of a range to be collected for its device: who else maps them is told, with the owner, so that
 * the driver can ignore its own event. What a device does with the pages is not modelled; nothing moves.
 * ESRCH: the task has exited. EINVAL: addr or length is not page aligned; length 0; the range is not inside one area, or that is
 * device memory.
 */
export function migrateVma(host: Host, command: Extract<Command, { op: 'migrate_vma' }>): Done {
  const { task, addr, length, owner, stop_at } = command;
  const { id: mm } = requireMm(host, task);
  if (!isPageAligned(addr) || !isPageAligned(length) || length === 0n)
    throw new Errno('EINVAL', `addr ${hex(addr)}, length ${hex(length)}: no whole pages`);
  const start = pageNumberOf(addr);
  const end = start + npageOf(length);
  const lock = mmapLock(mm);
  return runOperation(
    host,
    { kind: 'migrate_vma', locals: { task, mm } },
    under([lock], 'R', [{ do: 'migrate_vma_setup', mm, start, end, owner }]),
    stop_at ?? null,
  );
}

export type MigrateVmaStep = {
  do: 'migrate_vma_setup';
  mm: MmId;
  start: number;
  end: number;
  owner: string;
  cleanup?: true;
};

export const migrateVmaSteps: Handlers<MigrateVmaStep> = {
  migrate_vma_setup(host, operation, { mm: id, start, end, owner }) {
    const vma = vmaAt(anyMm(host, id), start);
    if (vma === null || end > vma.end || (vma.flags & (VM_IO | VM_PFNMAP)) !== 0)
      throw new Errno('EINVAL', `vaddr ${printPage(start)}: no area of ordinary memory has the whole range`);
    const { ownerEvents } = host.profile;
    const event = ownerEvents ? 'MIGRATE' : 'CLEAR';
    const range = { mm: id, start, end, event, blockable: true, owner: ownerEvents ? owner : null } as const;
    pushSteps(operation, invalidation(range, []));
  },
};
