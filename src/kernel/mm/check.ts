// What must hold of the memory side after every command (host-mm A.6), recomputed from page tables, caches and pins.

import { consumerReferences } from '../consumers.ts';
import type { Host } from '../host.ts';
import { printRange } from '../lib/u64.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import { pageLock } from '../lock.ts';
import { FOLL_GET } from './gup-flags.ts';
import type { MmStruct } from './mm.ts';
import {
  KIND_ANON,
  KIND_KSM,
  KIND_MASK,
  KIND_NONE,
  KIND_ZONE_DEVICE,
  PAGES_PER_CHUNK,
  type PageChunk,
  PG_CLAIMED,
  PG_DECLARED,
  PG_DIRTY,
} from './page-frames.ts';
import {
  flagsAt,
  isResident,
  PTE_DEVICE_EXCLUSIVE,
  PTE_DIRTY,
  PTE_MIGRATION,
  PTE_PRESENT,
  PTE_SPECIAL,
  PTE_SWAP,
  PTE_TYPE_MASK,
  PTE_WRITE,
  PTRS_PER_PTE,
  pfnAt,
  walkPageRange,
} from './page-table.ts';
import { everyMm } from './rmap.ts';
import { pagesLockedBy } from './task-locks.ts';
import { VM_SHARED, vmaAt } from './vma.ts';

type Say = (text: string) => void;

/** Who refers to each page: entries of page tables, page caches, and those who got it. */
interface References {
  mapped: Map<number, number>;
  cached: Map<number, number>;
  got: Map<number, number>;
}

/** What page tables name: pages (how often), swap slots (how often), and pages that are on their way. */
interface Entries {
  mapped: Map<number, number>;
  slots: Map<number, number>;
  moving: Set<number>;
  /** Device-exclusive entries: each has one reference, and is no mapping. */
  exclusive: Map<number, number>;
}

const add = <K>(counts: Map<K, number>, key: K, n = 1): void => void counts.set(key, (counts.get(key) ?? 0) + n);

/** Every violation, in words; empty when the memory side is sound. */
export function checkMm(host: Host): string[] {
  const found: string[] = [];
  // A BUG leaves memory as it was in the middle of whatever ran.
  if (host.dead !== null) return found;
  const say: Say = (text) => void found.push(text);
  const { mm: memory } = host;
  const entries: Entries = { mapped: mappedInPassing(host), slots: new Map(), moving: new Set(), exclusive: new Map() };
  const { mapped } = entries;
  let leaves = 0;
  let nonpresent = 0;
  for (const mm of everyMm(host)) {
    checkVmas(mm, (text) => say(`${mm.id}: ${text}`));
    checkPageTable(host, mm, entries, (text) => say(`${mm.id}: ${text}`));
    leaves += mm.page_table.leaves.size;
    walkPageRange(mm, 0, TASK_SIZE_PAGES, (_index, leaf, i) => {
      if ((flagsAt(leaf, i) & PTE_TYPE_MASK) > PTE_PRESENT) nonpresent++;
    });
  }
  checkMigrations(host, entries.moving, say);
  checkSwap(host, entries.slots, say);
  if (nonpresent !== memory.nonpresent) say(`nonpresent ${memory.nonpresent}, ${nonpresent} entries`);
  if (leaves !== memory.page_tables) say(`page_tables ${memory.page_tables}, ${leaves} leaves`);
  const cached = new Map<number, number>();
  for (const file of memory.files.values()) for (const pfn of file.pages.values()) add(cached, pfn);
  for (const pfn of memory.swap.cache.keys()) add(cached, pfn);
  const got = new Map<number, number>();
  for (const { thread } of host.operations.values()) for (const pfn of thread?.pages ?? []) add(got, pfn);
  for (const task of memory.tasks.values()) for (const pfn of pagesLockedBy(task)) add(got, pfn);
  for (const [pfn, count] of entries.exclusive) add(got, pfn, count);
  for (const pfn of consumerReferences(host)) add(got, pfn);
  for (const { pfns, flags } of memory.gups.values())
    if ((flags & FOLL_GET) !== 0) for (const pfn of pfns) add(got, pfn);
  checkPages(host, { mapped, cached, got }, say);
  checkTasks(host, say);
  checkLayouts(host, say);
  checkNotifiers(host, say);
  return found;
}

function checkVmas({ vmas: { areas } }: MmStruct, say: Say): void {
  let last = 0;
  for (const { start, end } of areas) {
    const size = end - start;
    if (start < last || size <= 0 || end > TASK_SIZE_PAGES)
      say(`area ${printRange(start, size)} is out of order or place`);
    last = end;
  }
}

/** Whether an operation has taken areas away and not yet their entries: the areas go first. */
const isBeingUnmapped = (host: Host, { id }: MmStruct): boolean =>
  host.mm.zombies.has(id) ||
  [...host.operations.values()].some(
    ({ state, thread, locals }) => state !== 'done' && thread !== undefined && 'mm' in locals && locals.mm === id,
  );

/** Whether an address space without users is torn down now, or made. */
const isChanging = (host: Host, { id }: MmStruct): boolean =>
  [...host.operations.values()].some(
    ({ state, kind, locals }) => state !== 'done' && (kind === 'fork' || (kind === 'exit' && locals.mm === id)),
  );

/** Pages whose entry is none for a moment, under the page-table lock, and which count as mapped all the same. */
function mappedInPassing(host: Host): Map<number, number> {
  const mapped = new Map<number, number>();
  for (const { thread } of host.operations.values())
    for (const step of thread?.steps ?? []) {
      if ('cleared' in step) add(mapped, step.cleared);
      if (step.do === 'cow_set' && (step.flags & PTE_SPECIAL) === 0) add(mapped, step.from);
    }
  return mapped;
}

/** Counts on the way what the entries name. */
function checkPageTable(host: Host, mm: MmStruct, { mapped, slots, moving, exclusive }: Entries, say: Say): void {
  const { pages } = host.mm;
  const unmapping = isBeingUnmapped(host, mm);
  let rss = 0;
  for (const [index, leaf] of mm.page_table.leaves) {
    let used = 0;
    for (let i = 0; i < PTRS_PER_PTE; i++) if ((flagsAt(leaf, i) & PTE_TYPE_MASK) !== 0) used++;
    if (used !== leaf.used || used === 0) say(`leaf ${index}: used ${leaf.used}, ${used} entries`);
  }
  walkPageRange(mm, 0, TASK_SIZE_PAGES, (_index, leaf, i, page) => {
    const vma = vmaAt(mm, page);
    if (!unmapping && vma === null) say(`page ${page} has an entry and no area`);
    const flags = flagsAt(leaf, i);
    const type = flags & PTE_TYPE_MASK;
    const pfn = pfnAt(leaf, i);
    if (type === PTE_SWAP) add(slots, pfn);
    if (type === PTE_MIGRATION) moving.add(pfn);
    if (type === PTE_DEVICE_EXCLUSIVE) {
      add(exclusive, pfn);
      if (pages.kind(pfn) !== KIND_ANON) say(`page ${page} is exclusive, and page ${pfn} is not anonymous`);
    }
    if (!isResident(flags)) return;
    rss++;
    add(mapped, pfn);
    const writable = (flags & PTE_WRITE) !== 0;
    if (writable && pages.kind(pfn) === KIND_KSM) say(`page ${page} may write to page ${pfn}, which KSM has merged`);
    const shared = vma?.kind === 'file' && (vma.flags & VM_SHARED) !== 0;
    if (writable && shared && (flags & PTE_DIRTY) === 0 && !pages.needsWriteback(pfn))
      say(`page ${page} may write to page ${pfn} of file ${vma.file} without a trace of it`);
  });
  if (rss !== mm.rss) say(`rss ${mm.rss}, ${rss} resident pages`);
}

/** A migration entry stands for a page that an operation has locked to move it. */
function checkMigrations(host: Host, moving: ReadonlySet<number>, say: Say): void {
  for (const pfn of moving) {
    const holders = host.locks.get(pageLock(pfn))?.holders ?? [];
    if (!holders.some(({ by }) => host.operations.get(by)?.kind === 'migrate'))
      say(`page ${pfn} has migration entries and is not being moved`);
  }
}

/** A slot is named by as many entries as it counts; one that nobody names is kept for its cached page alone. */
function checkSwap({ mm: { swap, pages } }: Host, slots: ReadonlyMap<number, number>, say: Say): void {
  for (const { slot, count, pfn, data } of swap.slots.values()) {
    if (count !== (slots.get(slot) ?? 0)) say(`swap slot ${slot}: count ${count}, ${slots.get(slot) ?? 0} entries`);
    if (count === 0 && pfn === null) say(`swap slot ${slot} is of use to nobody`);
    if (pfn !== null && (data !== null || swap.cache.get(pfn) !== slot))
      say(`swap slot ${slot}: page ${pfn} is not its page in the swap cache`);
    if (pfn !== null && pages.kind(pfn) !== KIND_ANON && pages.kind(pfn) !== KIND_KSM)
      say(`swap slot ${slot}: page ${pfn} is not anonymous`);
  }
  for (const slot of slots.keys()) if (!swap.slots.has(slot)) say(`swap slot ${slot} is named and does not exist`);
  for (const [pfn, slot] of swap.cache)
    if (swap.slots.get(slot)?.pfn !== pfn) say(`page ${pfn} is cached for swap slot ${slot}, which does not know it`);
}

/** References of every frame: one a mapping, one a cache, the bias a pin; and the counts of chunks and of the host. */
function checkPages(host: Host, references: References, say: Say): void {
  const { mapped, cached, got } = references;
  const { pages } = host.mm;
  let used = 0;
  let pinned = 0;
  let declared = 0;
  for (const [index, chunk] of pages.chunks) {
    let busy = 0;
    let live = 0;
    for (let i = 0; i < PAGES_PER_CHUNK; i++) {
      const pfn = index * PAGES_PER_CHUNK + i;
      const state = chunk.state[i] as number;
      const kept = (state & (PG_DECLARED | PG_CLAIMED)) !== 0;
      const inUse = chunk.refcount[i] !== 0 || kept;
      checkPage(host, chunk, pfn, references, say);
      if (inUse) busy++;
      if (inUse && pfn < pages.total_pages) used++;
      if (inUse || state !== 0) live++;
      if ((chunk.pins?.[i] ?? 0) > 0) pinned++;
      if ((state & PG_DECLARED) !== 0) declared++;
      mapped.delete(pfn);
      cached.delete(pfn);
      got.delete(pfn);
    }
    if (busy !== chunk.busy) say(`chunk ${index}: busy ${chunk.busy}, ${busy} pages`);
    if (live !== chunk.live || live === 0) say(`chunk ${index}: live ${chunk.live}, ${live} pages`);
  }
  for (const pfn of [...mapped.keys(), ...cached.keys(), ...got.keys()]) say(`page ${pfn} is referred to, and unknown`);
  if (used !== pages.used) say(`pages: used ${pages.used}, ${used} in use`);
  if (pinned !== pages.pinned) say(`pages: pinned ${pages.pinned}, ${pinned} with pins`);
  if (declared !== pages.declared) say(`pages: declared ${pages.declared}, ${declared} declared`);
}

function checkPage(host: Host, chunk: PageChunk, pfn: number, references: References, say: Say): void {
  const mapcount = references.mapped.get(pfn) ?? 0;
  const cache = references.cached.get(pfn) ?? 0;
  const gets = references.got.get(pfn) ?? 0;
  const i = pfn % PAGES_PER_CHUNK;
  const refcount = chunk.refcount[i] as number;
  const state = chunk.state[i] as number;
  const pins = chunk.pins?.[i] ?? 0;
  const idle = (state & KIND_MASK) === KIND_ZONE_DEVICE ? 1 : 0;
  const expected = (mapcount + cache + gets + idle + pins * host.profile.pinBias) | 0;
  if (refcount !== expected)
    say(
      `page ${pfn}: refcount ${refcount}, not ${expected} (${mapcount} mappings, ${cache} caches, ${gets} gets, ${pins} pins)`,
    );
  if (state >>> 8 !== mapcount) say(`page ${pfn}: mapcount ${state >>> 8}, ${mapcount} mappings`);
  if (pins < 0) say(`page ${pfn}: ${pins} pins`);
  const kind = state & KIND_MASK;
  const kept = (state & (PG_DECLARED | PG_CLAIMED)) !== 0;
  if (refcount !== 0 && kind === KIND_NONE) say(`page ${pfn} is in use and of no kind`);
  if (refcount === 0 && !kept && (state & ~PG_DIRTY) !== 0)
    say(`page ${pfn} is free with state 0x${state.toString(16)}`);
  const swapped = Number(host.mm.swap.cache.has(pfn));
  if (cache > 1 || (cache > swapped && kind === KIND_ANON)) say(`page ${pfn} of kind ${kind} is in ${cache} caches`);
}

function checkTasks({ mm: memory }: Host, say: Say): void {
  const users = new Map<string, number>();
  for (const { id, mm, leader } of memory.tasks.values()) {
    const alive = memory.thread_groups.get(leader)?.threads.includes(id) ?? false;
    if (alive !== (mm !== null)) say(`task ${id}: mm ${mm}, but ${alive ? 'in' : 'not in'} its thread group`);
    if (mm !== null) add(users, mm);
  }
  for (const { id, users: counted } of memory.mms.values())
    if (users.get(id) !== counted) say(`${id}: users ${counted}, ${users.get(id) ?? 0} tasks`);
  for (const id of users.keys()) if (!memory.mms.has(id)) say(`${id} has tasks and does not exist`);
}

function checkLayouts(host: Host, say: Say): void {
  const { mm: memory } = host;
  const users = new Map<number, number>();
  for (const mm of everyMm(host)) for (const { layout } of mm.vmas.areas) if (layout !== null) add(users, layout);
  for (const [id, layout] of memory.layouts)
    if (users.get(id) !== layout.users) say(`layout ${id}: users ${layout.users}, ${users.get(id) ?? 0} areas`);
  for (const id of users.keys()) if (!memory.layouts.has(id)) say(`layout ${id} is named and does not exist`);
}

/** Who is on the lists of an mm, who keeps it, and who waits in a callback. */
function checkNotifiers(host: Host, say: Say): void {
  const { mm: memory } = host;
  const kept = new Map<string, number>();
  for (const { mm, grabbed } of memory.mmu_notifiers.values()) if (grabbed) add(kept, mm);
  for (const { thread } of host.operations.values())
    for (const step of thread?.steps ?? []) if (step.do === 'mmdrop') add(kept, step.mm);
  for (const mm of [...memory.mms.values(), ...memory.zombies.values()]) {
    const users = mm.count - (kept.get(mm.id) ?? 0);
    const sound = users === Number(mm.users > 0) || (mm.users === 0 && users === 1 && isChanging(host, mm));
    if (!sound) say(`${mm.id}: count ${mm.count}, kept by ${kept.get(mm.id) ?? 0} notifiers, ${mm.users} users`);
    checkSubscriptions(host, mm, say);
  }
  for (const mm of kept.keys())
    if (!memory.mms.has(mm) && !memory.zombies.has(mm)) say(`${mm} is kept and does not exist`);
  for (const [id, { operation }] of memory.notifications)
    if (host.operations.get(operation)?.blocked_on !== `notification:${id}`)
      say(`notification ${id}: ${operation} does not wait for it`);
}

function checkSubscriptions({ mm: memory }: Host, { id: mm, subscriptions }: MmStruct, say: Say): void {
  if (subscriptions === null) return;
  const { list, intervals, deferred, active, active_invalidate_ranges, invalidate_seq } = subscriptions;
  for (const [ids, kind] of [[list, 'plain'] as const, [[...intervals, ...deferred], 'interval'] as const])
    for (const id of ids) {
      const notifier = memory.mmu_notifiers.get(id);
      if (notifier?.kind !== kind || notifier.mm !== mm || !notifier.grabbed)
        say(`${mm}: ${id} is on its ${kind} list`);
    }
  const counted = active.filter((range) => range.counted).length;
  if (active_invalidate_ranges < counted) say(`${mm}: ${active_invalidate_ranges} ranges active, ${counted} open`);
  if (invalidate_seq % 2 === 1 && active_invalidate_ranges === 0) say(`${mm}: sequence ${invalidate_seq} and no range`);
  if (invalidate_seq % 2 === 0 && deferred.length > 0) say(`${mm}: ${deferred.length} deferred in an even sequence`);
}
