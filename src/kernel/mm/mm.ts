// Models the memory side of a host: struct mm_struct of every process, the page frames, and the files they map.

import type { PageContents } from '../command.ts';
import type { MappedFile } from './file.ts';
import type { Layout } from './layout.ts';
import { PageFrames } from './page-frames.ts';
import { PageTable } from './page-table.ts';
import type { Task, ThreadGroup } from './task.ts';
import { VmaList } from './vma.ts';

/** Identity of an address space; never used again. */
export type MmId = string;

/** struct mm_struct, while it has users. */
export class MmStruct {
  readonly page_table = new PageTable();
  readonly vmas = new VmaList();
  /** Tasks that live in it (mm_users); the address space is torn down with the last one. */
  users = 1;
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

  constructor(readonly id: MmId) {}
}

export class Mm {
  readonly tasks = new Map<string, Task>();
  /** By the id of the leader. */
  readonly thread_groups = new Map<string, ThreadGroup>();
  readonly mms = new Map<MmId, MmStruct>();
  readonly files = new Map<string, MappedFile>();
  /** Which pages lie behind the areas of explicit layouts, by a number that areas name. */
  readonly layouts = new Map<number, Layout>();
  readonly pages: PageFrames;
  /** What explicit pages hold that nobody has written. */
  contents: PageContents = 'zero';
  /** Page-table leaves of all mms. */
  page_tables = 0;
  next_pid = 1000;
  next_mm = 1;
  next_layout = 1;
  /** WARN_ON_ONCE places that have spoken. */
  readonly warned = new Set<string>();

  constructor(readonly total_pages: number) {
    this.pages = new PageFrames(total_pages);
  }
}
