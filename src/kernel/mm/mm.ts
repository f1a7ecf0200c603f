// Models the memory side of a host: struct mm_struct of every process, the page frames, and the files they map.

import type { PageContents } from '../command.ts';
import { NoSuchObject } from '../errno.ts';
import type { PendingMmuNotification } from '../outcome.ts';
import type { MappedFile } from './file.ts';
import type { Gup } from './gup-steps.ts';
import type { Layout } from './layout.ts';
import { newSrcu, type Srcu } from './mmu-notifier/srcu.ts';
import type { MmuNotifier, Subscriptions } from './mmu-notifier/subscriptions.ts';
import { PageFrames } from './page-frames.ts';
import { PageTable } from './page-table.ts';
import { Swap } from './swap.ts';
import type { Task, ThreadGroup } from './task.ts';
import { VmaList } from './vma.ts';

/** Identity of an address space; never used again. */
export type MmId = string;

/** struct mm_struct. */
export class MmStruct {
  readonly page_table = new PageTable();
  readonly vmas = new VmaList();
  /** Tasks that live in it (mm_users); the address space is torn down with the last one. */
  users = 1;
  /** What keeps the structure (mm_count): one for all users, one for each notifier. */
  count = 1;
  /** Who wants to know of its invalidations; null before the first registration. */
  subscriptions: Subscriptions | null = null;
  /** Pages charged against RLIMIT_MEMLOCK. Means this number modulo 2^64: an underflow wraps in the kernel. */
  locked_vm = 0;
  /** The part of locked_vm that adjust_locked_vm added. */
  adjusted = 0;
  /** Pages counted by those who pin without charging locked_vm (VmPin). VFIO type1 is not one of them. */
  pinned_vm = 0;
  /** Present entries with a struct page (VmRSS). */
  rss = 0;
  /** A page of this mm has been pinned once (MMF_HAS_PINNED); never cleared. */
  has_pinned = false;
  /** Odd while a fork write-protects its pages: a pin that must not wait then finds nothing. */
  write_protect_seq = 0;
  /** The OOM reaper took pages away (MMF_UNSTABLE): what is missing cannot be told from what never was. */
  unstable = false;

  constructor(readonly id: MmId) {}
}

export class Mm {
  readonly tasks = new Map<string, Task>();
  /** By the id of the leader. */
  readonly thread_groups = new Map<string, ThreadGroup>();
  /** Those with users. */
  readonly mms = new Map<MmId, MmStruct>();
  /** Those whose users are gone, as long as they are torn down or something keeps them. */
  readonly zombies = new Map<MmId, MmStruct>();
  readonly mmu_notifiers = new Map<string, MmuNotifier>();
  /** One for the notifiers of all address spaces. */
  srcu: Srcu = newSrcu();
  next_mmu_notifier = 1;
  /** Callbacks that wait for the answers of their clients. */
  readonly notifications = new Map<string, PendingMmuNotification>();
  /** References that get_user_pages() gave out. */
  readonly gups = new Map<string, Gup>();
  readonly files = new Map<string, MappedFile>();
  /** Which pages lie behind the areas of explicit layouts, by a number that areas name. */
  readonly layouts = new Map<number, Layout>();
  readonly pages: PageFrames;
  readonly swap = new Swap();
  /** What explicit pages hold that nobody has written. */
  contents: PageContents = 'zero';
  /** Page-table leaves of all mms. */
  page_tables = 0;
  /** Entries of all page tables that are neither none nor present. */
  nonpresent = 0;
  next_pid = 1000;
  next_mm = 1;
  next_layout = 1;
  next_anon_vma = 1;
  /** Only areas with operations of their own are numbered. */
  next_vma = 1;
  next_gup = 1;
  next_notification = 1;
  /** WARN_ON_ONCE places that have spoken. */
  readonly warned = new Set<string>();

  constructor(readonly total_pages: number) {
    this.pages = new PageFrames(total_pages);
  }
}

/** Keeps the structure, not what it maps. */
export const mmgrab = (mm: MmStruct): void => void mm.count++;

/** Drops what keeps an mm; with the last, an mm without users is forgotten. */
export function mmdrop(host: { mm: Mm }, mm: MmStruct): void {
  mm.count--;
  if (mm.count === 0) host.mm.zombies.delete(mm.id);
}

/** An address space that has users, or that something keeps. Precondition: it exists. */
export function anyMm({ mm: memory }: { mm: Mm }, id: MmId): MmStruct {
  const mm = memory.mms.get(id) ?? memory.zombies.get(id);
  if (mm === undefined) throw new Error(`mm '${id}' is missing`);
  return mm;
}

/** The address space that a request names. NOT_FOUND: there is none, or nothing keeps it any more. */
export function getAnyMm({ mm: memory }: { mm: Mm }, id: MmId): MmStruct {
  const mm = memory.mms.get(id) ?? memory.zombies.get(id);
  if (mm === undefined) throw new NoSuchObject('mm', id);
  return mm;
}
