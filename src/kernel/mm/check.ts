// What must hold of the memory side after every command (host-mm A.6), recomputed from page tables, caches and pins.

import type { Host } from '../host.ts';
import { printRange } from '../lib/u64.ts';
import { TASK_SIZE_PAGES } from '../limits.ts';
import type { MmStruct } from './mm.ts';
import {
  KIND_ANON,
  KIND_MASK,
  KIND_NONE,
  PAGES_PER_CHUNK,
  type PageChunk,
  PG_CLAIMED,
  PG_DECLARED,
  PG_DIRTY,
} from './page-frames.ts';
import { flagsAt, isResident, PTE_TYPE_MASK, PTRS_PER_PTE, pfnAt, walkPageRange } from './page-table.ts';
import { vmaAt } from './vma.ts';

type Say = (text: string) => void;

const add = <K>(counts: Map<K, number>, key: K, n = 1): void => void counts.set(key, (counts.get(key) ?? 0) + n);

/** Every violation, in words; empty when the memory side is sound. */
export function checkMm(host: Host): string[] {
  const found: string[] = [];
  const say: Say = (text) => void found.push(text);
  const { mm: memory } = host;
  const mapped = new Map<number, number>();
  let leaves = 0;
  for (const mm of memory.mms.values()) {
    checkVmas(mm, (text) => say(`${mm.id}: ${text}`));
    checkPageTable(mm, mapped, (text) => say(`${mm.id}: ${text}`));
    leaves += mm.page_table.leaves.size;
  }
  if (leaves !== memory.page_tables) say(`page_tables ${memory.page_tables}, ${leaves} leaves`);
  const cached = new Map<number, number>();
  for (const file of memory.files.values()) for (const pfn of file.pages.values()) add(cached, pfn);
  checkPages(host, mapped, cached, say);
  checkTasks(host, say);
  checkLayouts(host, say);
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

/** Counts the mappings of each page on the way. */
function checkPageTable(mm: MmStruct, mapped: Map<number, number>, say: Say): void {
  let rss = 0;
  for (const [index, leaf] of mm.page_table.leaves) {
    let used = 0;
    for (let i = 0; i < PTRS_PER_PTE; i++) if ((flagsAt(leaf, i) & PTE_TYPE_MASK) !== 0) used++;
    if (used !== leaf.used || used === 0) say(`leaf ${index}: used ${leaf.used}, ${used} entries`);
  }
  walkPageRange(mm, 0, TASK_SIZE_PAGES, (_index, leaf, i, page) => {
    if (vmaAt(mm, page) === null) say(`page ${page} has an entry and no area`);
    if (!isResident(flagsAt(leaf, i))) return;
    rss++;
    add(mapped, pfnAt(leaf, i));
  });
  if (rss !== mm.rss) say(`rss ${mm.rss}, ${rss} resident pages`);
}

/** References of every frame: one a mapping, one a cache, the bias a pin; and the counts of chunks and of the host. */
function checkPages(host: Host, mapped: Map<number, number>, cached: Map<number, number>, say: Say): void {
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
      checkPage(host, chunk, pfn, mapped.get(pfn) ?? 0, cached.get(pfn) ?? 0, say);
      if (inUse) busy++;
      if (inUse && pfn < pages.total_pages) used++;
      if (inUse || state !== 0) live++;
      if ((chunk.pins?.[i] ?? 0) > 0) pinned++;
      if ((state & PG_DECLARED) !== 0) declared++;
      mapped.delete(pfn);
      cached.delete(pfn);
    }
    if (busy !== chunk.busy) say(`chunk ${index}: busy ${chunk.busy}, ${busy} pages`);
    if (live !== chunk.live || live === 0) say(`chunk ${index}: live ${chunk.live}, ${live} pages`);
  }
  for (const pfn of [...mapped.keys(), ...cached.keys()]) say(`page ${pfn} is mapped or cached, and unknown`);
  if (used !== pages.used) say(`pages: used ${pages.used}, ${used} in use`);
  if (pinned !== pages.pinned) say(`pages: pinned ${pages.pinned}, ${pinned} with pins`);
  if (declared !== pages.declared) say(`pages: declared ${pages.declared}, ${declared} declared`);
}

function checkPage(host: Host, chunk: PageChunk, pfn: number, mapcount: number, cache: number, say: Say): void {
  const i = pfn % PAGES_PER_CHUNK;
  const refcount = chunk.refcount[i] as number;
  const state = chunk.state[i] as number;
  const pins = chunk.pins?.[i] ?? 0;
  const expected = (mapcount + cache + pins * host.profile.pinBias) | 0;
  if (refcount !== expected)
    say(`page ${pfn}: refcount ${refcount}, not ${expected} (${mapcount} mappings, ${cache} caches, ${pins} pins)`);
  if (state >>> 8 !== mapcount) say(`page ${pfn}: mapcount ${state >>> 8}, ${mapcount} mappings`);
  if (pins < 0) say(`page ${pfn}: ${pins} pins`);
  const kind = state & KIND_MASK;
  const kept = (state & (PG_DECLARED | PG_CLAIMED)) !== 0;
  if (refcount !== 0 && kind === KIND_NONE) say(`page ${pfn} is in use and of no kind`);
  if (refcount === 0 && !kept && (state & ~PG_DIRTY) !== 0)
    say(`page ${pfn} is free with state 0x${state.toString(16)}`);
  if (cache > 1 || (cache > 0 && kind === KIND_ANON)) say(`page ${pfn} of kind ${kind} is in ${cache} caches`);
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

function checkLayouts({ mm: memory }: Host, say: Say): void {
  const users = new Map<number, number>();
  for (const mm of memory.mms.values()) for (const { layout } of mm.vmas.areas) if (layout !== null) add(users, layout);
  for (const [id, layout] of memory.layouts)
    if (users.get(id) !== layout.users) say(`layout ${id}: users ${layout.users}, ${users.get(id) ?? 0} areas`);
  for (const id of users.keys()) if (!memory.layouts.has(id)) say(`layout ${id} is named and does not exist`);
}
