// What GETs show of tasks, their areas and their pages. Pure: nothing here changes a host.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, isPageAligned, PAGES_IN_U64, pageNumberOf, sizeOf } from '../lib/u64.ts';
import { pageLock } from '../lock.ts';
import { getLayout, layoutPfn } from '../mm/layout.ts';
import { kindName } from '../mm/page.ts';
import { KIND_ANON, KIND_DEVICE, KIND_FILE, KIND_KSM, PAGES_PER_CHUNK } from '../mm/page-frames.ts';
import {
  PTE_ANON_EXCLUSIVE,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DEVICE_PRIVATE,
  PTE_DIRTY,
  PTE_HWPOISON,
  PTE_MIGRATION,
  PTE_NONE,
  PTE_PRESENT,
  PTE_SOFT_DIRTY,
  PTE_SPECIAL,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTE_YOUNG,
} from '../mm/page-table.ts';
import { getTask, hasSysRawio, mmOf, type Task, taskFields } from '../mm/task.ts';
import {
  VM_DONTCOPY,
  VM_DONTDUMP,
  VM_DONTEXPAND,
  VM_EXEC,
  VM_IO,
  VM_LOCKED,
  VM_MAYEXEC,
  VM_MAYREAD,
  VM_MAYSHARE,
  VM_MAYWRITE,
  VM_PFNMAP,
  VM_READ,
  VM_SHARED,
  VM_WIPEONFORK,
  VM_WRITE,
  type Vma,
} from '../mm/vma.ts';
import type { Fields, Value } from '../outcome.ts';
import { byId, type Listed, listed } from './page.ts';

const showTask = (host: Host, task: Task): Fields => ({ ...taskFields(host, task), cap_sys_rawio: hasSysRawio(task) });

export const viewTask = (host: Host, id: string): Fields => showTask(host, getTask(host, id));

export const listTasks = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(
    byId(host.mm.tasks, after),
    limit,
    ({ id }) => id,
    (task) => showTask(host, task),
  );

const FLAG_NAMES: readonly [number, string][] = [
  [VM_READ, 'READ'],
  [VM_WRITE, 'WRITE'],
  [VM_EXEC, 'EXEC'],
  [VM_SHARED, 'SHARED'],
  [VM_MAYREAD, 'MAYREAD'],
  [VM_MAYWRITE, 'MAYWRITE'],
  [VM_MAYEXEC, 'MAYEXEC'],
  [VM_MAYSHARE, 'MAYSHARE'],
  [VM_PFNMAP, 'PFNMAP'],
  [VM_IO, 'IO'],
  [VM_LOCKED, 'LOCKED'],
  [VM_DONTCOPY, 'DONTCOPY'],
  [VM_DONTEXPAND, 'DONTEXPAND'],
  [VM_WIPEONFORK, 'WIPEONFORK'],
  [VM_DONTDUMP, 'DONTDUMP'],
];
const PROT_NAMES = FLAG_NAMES.slice(0, 3);

const names = (table: readonly [number, string][], flags: number): string[] =>
  table.filter(([bit]) => (flags & bit) !== 0).map(([, name]) => name);

/** What lies behind an area, from its first page on. */
function showBacking(host: Host, { kind, file, layout, flags, start, origin, ops }: Vma): Value {
  if (ops !== null) return { kind, consumer: ops.consumer, of: ops.of, pfn: start - origin };
  if (kind === 'file') return { kind, file, pgoff: start - origin, shared: (flags & VM_SHARED) !== 0 };
  if (layout === null) return { kind };
  return { kind, pfn: layoutPfn(getLayout(host.mm, layout), start - origin) };
}

const showVma = (host: Host, vma: Vma): Fields => ({
  addr: addressOf(vma.start),
  length: sizeOf(vma.end - vma.start),
  prot: names(PROT_NAMES, vma.flags),
  flags: names(FLAG_NAMES, vma.flags),
  backing: showBacking(host, vma),
});

/** The areas of a task that begin after the address `after`, ascending; none of a task that has exited. */
export function listMaps(host: Host, task: string, after: bigint | null, limit: number): Listed<bigint> {
  const vmas = mmOf(host, task)?.vmas;
  if (vmas === undefined) return { items: [], next: null };
  let first = 0;
  if (after !== null) {
    const page = pageNumberOf(after);
    first = vmas.indexAfter(page);
    const vma = vmas.areas[first];
    if (vma !== undefined && vma.start <= page) first++;
  }
  return listed(
    vmas.areas.slice(first, first + limit + 1),
    limit,
    ({ start }) => addressOf(start),
    (vma) => showVma(host, vma),
  );
}

const ENTRY_NAMES: Readonly<Record<number, string>> = {
  [PTE_NONE]: 'none',
  [PTE_PRESENT]: 'present',
  [PTE_SWAP]: 'swap',
  [PTE_MIGRATION]: 'migration',
  [PTE_DEVICE_EXCLUSIVE]: 'device_exclusive',
  [PTE_DEVICE_PRIVATE]: 'device_private',
  [PTE_HWPOISON]: 'hwpoison',
};

const PTE_NAMES: readonly [number, string][] = [
  [PTE_WRITE, 'WRITE'],
  [PTE_DIRTY, 'DIRTY'],
  [PTE_YOUNG, 'YOUNG'],
  [PTE_SPECIAL, 'SPECIAL'],
  [PTE_SOFT_DIRTY, 'SOFT_DIRTY'],
  [PTE_ANON_EXCLUSIVE, 'ANON_EXCLUSIVE'],
];

/** What an entry is; `held`: what one that is not present names, a swap slot or a page. */
function showEntry(flags: number, held: number | null): Fields {
  const type = flags & PTE_TYPE_MASK;
  const names_page = type === PTE_MIGRATION || type === PTE_DEVICE_EXCLUSIVE || type === PTE_DEVICE_PRIVATE;
  return {
    entry: ENTRY_NAMES[type] as string,
    flags: names(PTE_NAMES, flags),
    swap_slot: type === PTE_SWAP ? held : null,
    entry_pfn: names_page ? held : null,
  };
}

/**
 * `npage` pages of a task from `addr` on, as its page table has them; none of a task that has exited.
 * EINVAL: addr is not page aligned; the range is beyond 2^64.
 */
export function listPages(host: Host, task: string, addr: bigint, npage: number): Fields[] {
  const mm = mmOf(host, task);
  if (!isPageAligned(addr)) throw new Errno('EINVAL', `addr: ${hex(addr)} is not page aligned`);
  const start: number = pageNumberOf(addr);
  if (npage < 0 || start + npage > PAGES_IN_U64)
    throw new Errno('EINVAL', `npage: ${npage} pages from ${hex(addr)} are beyond 2^64`);
  const items: Fields[] = [];
  if (mm === null) return items;
  const { pages } = host.mm;
  for (let page = start; page < start + npage; page++) {
    const flags = mm.page_table.flags(page);
    const present = (flags & PTE_TYPE_MASK) === PTE_PRESENT;
    const pfn = present ? mm.page_table.pfn(page) : null;
    items.push({
      addr: addressOf(page),
      pfn,
      present,
      writable: present && (flags & PTE_WRITE) !== 0,
      ref_count: pfn === null ? 0 : pages.refcount(pfn),
      pin_count: pfn === null ? 0 : pages.pinCount(pfn),
      dirty: pfn !== null && pages.isDirty(pfn),
      ...showEntry(flags, present || flags === PTE_NONE ? null : mm.page_table.pfn(page)),
    });
  }
  return items;
}

function* framesAfter({ mm: { pages } }: Host, after: number): Iterable<number> {
  const indices = [...pages.chunks.keys()]
    .filter((index) => (index + 1) * PAGES_PER_CHUNK > after)
    .sort((a, b) => a - b);
  for (const index of indices)
    for (let pfn = Math.max(index * PAGES_PER_CHUNK, after + 1); pfn < (index + 1) * PAGES_PER_CHUNK; pfn++)
      if (pages.isKnown(pfn)) yield pfn;
}

/** The host pages of which anything is known: in use, declared, or released dirty; ascending by pfn. */
export const listFrames = (host: Host, after: number | null, limit: number): Listed<number> =>
  listed(
    framesAfter(host, after ?? -1),
    limit,
    (pfn) => pfn,
    (pfn) => viewPage(host, pfn),
  );

const MAPPINGS: Readonly<Record<number, string>> = { [KIND_ANON]: 'anon', [KIND_FILE]: 'file', [KIND_KSM]: 'ksm' };

/** One host page. EINVAL: no pfn. */
export function viewPage(host: Host, pfn: number): Fields {
  if (!Number.isSafeInteger(pfn) || pfn < 0 || pfn >= PAGES_IN_U64)
    throw new Errno('EINVAL', `pfn: ${pfn} is not between 0 and 2^52 - 1`);
  const { pages } = host.mm;
  const kind = pages.kind(pfn);
  return {
    pfn,
    kind: kindName(kind),
    struct_page: kind !== KIND_DEVICE,
    mapping: MAPPINGS[kind] ?? null,
    ref_count: pages.refcount(pfn),
    mapcount: pages.mapcount(pfn),
    pin_count: pages.pinCount(pfn),
    dirty: pages.isDirty(pfn),
    needs_writeback: pages.needsWriteback(pfn),
    swap_slot: host.mm.swap.cache.get(pfn) ?? null,
    locked_by: host.locks.get(pageLock(pfn))?.holders[0]?.by ?? null,
  };
}
