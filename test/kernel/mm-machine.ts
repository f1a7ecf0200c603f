// A host with the commands of its memory side, for the tests of src/kernel/mm.

import type t from 'tap';

import { type Backing, type Command, type HostOptions, type PageKind, READ, WRITE } from '../../src/kernel/command.ts';
import { Errno, NoSuchObject } from '../../src/kernel/errno.ts';
import { Host } from '../../src/kernel/host.ts';
import { addressOf, asPageNumber, pageNumberOf } from '../../src/kernel/lib/u64.ts';
import { checkMm } from '../../src/kernel/mm/check.ts';
import { exitTask } from '../../src/kernel/mm/exit.ts';
import { handleMmFault } from '../../src/kernel/mm/fault.ts';
import { followPfnmap, pinUserPage, unpinUserPage } from '../../src/kernel/mm/gup.ts';
import type { MmStruct } from '../../src/kernel/mm/mm.ts';
import { mmap } from '../../src/kernel/mm/mmap.ts';
import { mprotect } from '../../src/kernel/mm/mprotect.ts';
import { munmap } from '../../src/kernel/mm/munmap.ts';
import { putPage } from '../../src/kernel/mm/page.ts';
import { mmSections } from '../../src/kernel/mm/snapshot.ts';
import { adjustLockedVm, mmOf, patchTask, putTask } from '../../src/kernel/mm/task.ts';
import { vmaAt } from '../../src/kernel/mm/vma.ts';
import type { Done, Fields } from '../../src/kernel/outcome.ts';
import { listMaps, listPages } from '../../src/kernel/view/tasks.ts';
import { encode } from '../../src/service/codec.ts';

/** Random integers below n from a seed (xorshift32). */
export function randomFrom(seed: number): (n: number) => number {
  let x = seed | 0 || 1;
  return (n) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % n;
  };
}

export const OPTIONS: HostOptions = {
  profile: '5.15',
  template: 'empty',
  dma_entry_limit: 65535,
  notifier_timeout_ms: 10000,
  total_pages: 16777216,
  fixes: [],
  ttl_s: null,
};
export const RW = READ | WRITE;
/** First page of the areas of these tests. */
export const BASE = 0x7f0000000;
export const at = (page: number): bigint => addressOf(BASE + page);
export const bytes = (npage: number): bigint => BigInt(npage) * 4096n;

type Of<O extends Command['op']> = Omit<Extract<Command, { op: O }>, 'op'>;

/** A host with the commands of its memory side; each is at a seq of its own, and checked after. */
export class Machine {
  readonly host: Host;

  constructor(total_pages = OPTIONS.total_pages, host?: Host) {
    this.host = host ?? new Host('h', { ...OPTIONS, total_pages }, 0);
  }

  private run(body: () => Done): Done {
    this.host.seq++;
    return body();
  }

  task(id: string, body: Partial<Of<'put_task'>> = {}): Done {
    const made = { task: id, rlimit_memlock: 0x4000000n, cap_ipc_lock: false, thread_of: null, ...body };
    return this.run(() => putTask(this.host, { op: 'put_task', ...made }));
  }
  patch(task: string, body: Omit<Of<'patch_task'>, 'task'>): Done {
    return this.run(() => patchTask(this.host, { op: 'patch_task', task, ...body }));
  }
  exit(task: string): Done {
    return this.run(() => exitTask(this.host, { op: 'exit', task }));
  }
  adjust(task: string, delta: number): Done {
    return this.run(() => adjustLockedVm(this.host, { op: 'adjust_locked_vm', task, delta }));
  }
  mmap(
    task: string,
    page: number,
    npage: number,
    prot = RW,
    backing: Backing = { kind: 'anon' },
    noreplace = false,
  ): Done {
    return this.mmapBytes(task, at(page), bytes(npage), prot, backing, noreplace);
  }
  mmapBytes(
    task: string,
    addr: bigint,
    length: bigint,
    prot = RW,
    backing: Backing = { kind: 'anon' },
    noreplace = false,
  ): Done {
    return this.run(() => mmap(this.host, { op: 'mmap', task, addr, length, prot, backing, noreplace }));
  }
  munmap(task: string, page: number, npage: number): Done {
    return this.munmapBytes(task, at(page), bytes(npage));
  }
  munmapBytes(task: string, addr: bigint, length: bigint): Done {
    return this.run(() => munmap(this.host, { op: 'munmap', task, addr, length }));
  }
  mprotect(task: string, page: number, npage: number, prot: number): Done {
    return this.mprotectBytes(task, at(page), bytes(npage), prot);
  }
  mprotectBytes(task: string, addr: bigint, length: bigint, prot: number): Done {
    return this.run(() => mprotect(this.host, { op: 'mprotect', task, addr, length, prot }));
  }
  page(pfn: number, kind: PageKind): Done {
    return this.run(() => putPage(this.host, { op: 'put_page', pfn, kind }));
  }

  mm(task: string): MmStruct {
    const mm = mmOf(this.host, task);
    if (mm === null) throw new Error(`${task} has exited`);
    return mm;
  }
  /** A CPU access. */
  touch(task: string, page: number, write: boolean): void {
    this.host.seq++;
    const mm = this.mm(task);
    const vma = vmaAt(mm, BASE + page);
    if (vma === null) throw new Errno('EFAULT', 'a hole');
    handleMmFault(this.host, mm, vma, BASE + page, write);
  }
  pin(task: string, page: number, write = true): number {
    this.host.seq++;
    return pinUserPage(this.host, this.mm(task), asPageNumber(BASE + page), write);
  }
  follow(task: string, page: number, write: boolean): number {
    this.host.seq++;
    return followPfnmap(this.host, this.mm(task), asPageNumber(BASE + page), write);
  }
  unpin(pfn: number, dirty = false): void {
    this.host.seq++;
    unpinUserPage(this.host, pfn, dirty);
  }
  /** One page as the page table has it. */
  look(task: string, page: number): Fields {
    return listPages(this.host, task, at(page), 1)[0] ?? {};
  }
  /** The areas as "first-end prot kind", in pages from BASE. */
  maps(task: string): string[] {
    return listMaps(this.host, task, null, 1e9).items.map(({ addr, length, prot, backing }) => {
      const first = pageNumberOf(addr as bigint) - BASE;
      const npage = Number((length as bigint) / 4096n);
      return `${first}-${first + npage} ${(prot as string[]).join('') || 'NONE'} ${(backing as Fields).kind}`;
    });
  }
}

/** The errno that a call is refused with, 'NOT_FOUND', or its ret. */
export function outcome(call: () => unknown): string {
  try {
    call();
    return 'ok';
  } catch (error) {
    if (error instanceof NoSuchObject) return 'NOT_FOUND';
    if (error instanceof Errno) return error.errno;
    throw error;
  }
}

export function detail(call: () => unknown): string {
  try {
    call();
    return '';
  } catch (error) {
    return error instanceof Errno ? error.message : String(error);
  }
}

/** What these helpers need of a test. */
export type Check = Pick<typeof t, 'strictSame' | 'equal'>;

export const sound = (t: Check, { host }: Machine, when = 'invariants'): void =>
  void t.strictSame(checkMm(host), [], when);

export const FILE = (file: string, shared: boolean, pgoff = 0): Backing => ({ kind: 'file', file, pgoff, shared });
export const PAGES = (...pfns: [number, number][]): Backing => ({ kind: 'pages', pfns });

/** All sections by key. */
export const everything = (m: Machine): Map<string, unknown> =>
  new Map([...mmSections(m.host.mm)].map(({ key, data }) => [key, data()]));

/** Sections in a form that does not depend on the order of maps. */
const canonical = (sections: Map<string, unknown>): unknown => [...sections].sort(([a], [b]) => (a < b ? -1 : 1));

/** Compared as bytes; shown in full only where they differ. */
export function sameSections(t: Check, real: Map<string, unknown>, expected: Map<string, unknown>, what: string): void {
  const [one, two] = [canonical(real), canonical(expected)];
  if (Buffer.compare(encode(one), encode(two)) === 0) t.equal(real.size, expected.size, what);
  else t.strictSame(one, two, what);
}
