// What a fault, an unmap and a fork do with an entry that is neither none nor present, by its type. Only the table.

import type { Host } from '../host.ts';
import type { ThreadOperation } from '../thread.ts';
import { migrationEntry, swapEntry } from './entry-fault.ts';
import { exclusiveEntry } from './exclusive-entry.ts';
import { type Fault, VM_FAULT_HWPOISON } from './fault-flags.ts';
import type { MmStruct } from './mm.ts';
import { PTE_DEVICE_EXCLUSIVE, PTE_HWPOISON, PTE_MIGRATION, PTE_SWAP, PTE_WRITE, setPte } from './page-table.ts';
import { isCowMapping, type Vma } from './vma.ts';

/** One entry while fork copies it: `pfn` is a swap slot in swap entries. */
export interface ForkedEntry {
  parent: MmStruct;
  child: MmStruct;
  vma: Vma;
  page: number;
  flags: number;
  pfn: number;
}

export interface EntryKind {
  /** Sets `thread.returned` (0: the access looks again), or pushes the steps that will. */
  fault: (host: Host, operation: ThreadOperation, fault: Fault) => void;
  /** The entry was cleared: what it held is given back. */
  drop: (host: Host, pfn: number) => void;
  /** Gives the child its entry. False: the parent's is present now, and is copied as such. EBUSY, ENOMEM: fork fails. */
  fork: (host: Host, entry: ForkedEntry) => boolean;
}

/** Copies an entry that holds no reference; nobody may write through it where the area is copied on write. */
export function forkPlainEntry(host: Host, { parent, child, vma, page, flags, pfn }: ForkedEntry): boolean {
  const copied = isCowMapping(vma.flags) ? flags & ~PTE_WRITE : flags;
  if (copied !== flags) setPte(host, parent, page, pfn, copied);
  setPte(host, child, page, pfn, copied);
  return true;
}

const holdsNothing = (): void => undefined;

/** The page is gone for good. */
const hwpoison: EntryKind = {
  fault(_host, operation) {
    operation.thread.returned = VM_FAULT_HWPOISON;
  },
  drop: holdsNothing,
  fork: forkPlainEntry,
};

/** Made at the first use: the modules refer to each other. */
let table: Readonly<Partial<Record<number, EntryKind>>> | null = null;

export function entryKindOf(type: number): EntryKind {
  table ??= {
    [PTE_SWAP]: swapEntry,
    [PTE_MIGRATION]: migrationEntry,
    [PTE_DEVICE_EXCLUSIVE]: exclusiveEntry,
    [PTE_HWPOISON]: hwpoison,
  };
  const found = table[type];
  if (found === undefined) throw new Error(`no rules for a page-table entry of type ${type}`);
  return found;
}
