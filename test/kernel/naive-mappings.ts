// The naive model's mappings: where they lie, who is charged for them, and what an IOMMU makes of them.

import { READ, WRITE } from '../../src/kernel/command.ts';
import { isReserved, MOD_2_64, type NaiveMm, type NaivePage, Refused } from './naive-mm.ts';
import { NaiveOperations } from './naive-operations.ts';
import { NaiveTree } from './naive-tree.ts';
import {
  done,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveOp,
  type NaiveOutcome,
  newChain,
  type Of,
  PAGE,
  type Sleeping,
} from './naive-types.ts';

export const isAligned = (value: bigint): boolean => value % PAGE === 0n;
export const pagesIn = (size: bigint): number => Number(size / PAGE);
const LAST = MOD_2_64 - 1n;

/** What happens now depends on frames that the model doesn't know: nothing after it can be compared. */
export class BeyondModel extends Error {}

export abstract class NaiveMappings extends NaiveOperations {
  /** Attempts that are still to pass before one fails, of the rules that hold for the present call. */
  failing: { point: string; left: number }[] = [];
  /** An IOMMU has had pages: how often it took and gave them back is not modelled, so that dirty marks are not. */
  metDomain = false;

  protected fails(point: 'record_alloc' | 'charge'): boolean {
    let fails = false;
    for (const rule of this.failing) if (rule.point === point && --rule.left === 0) fails = true;
    return fails;
  }

  protected newIommu(type: number, limit: number): NaiveIommu {
    return {
      type,
      limit,
      avail: limit,
      // A mapping is linked before it has a size: one of equal iova goes before the older.
      tree: new NaiveTree<NaiveMapping>((added, old) => added.iova <= old.iova),
      maps: [],
      chain: newChain(),
      mdev: [],
      domain: null,
      ranges: [],
      unscoped: new Set(),
      tracking: false,
      containerOpen: true,
      vaddrWait: [],
    };
  }

  // Lookup

  /** One past a range as the kernel computes it: 2^64 is 0 in 64 bits. */
  protected end(iova: bigint, size: bigint): bigint {
    return this.rules.endWraps ? (iova + size) % MOD_2_64 : iova + size;
  }

  /** Any mapping that overlaps [start, end): the one that is met first from the root. */
  protected find(iommu: NaiveIommu, start: bigint, end: bigint): NaiveMapping | null {
    return iommu.tree.descend((m) => {
      if (end <= m.iova) return 'left';
      return start >= this.end(m.iova, m.size) ? 'right' : 'stop';
    });
  }

  /** The lowest one. A mapping that ends at 2^64 hides what lies below it in the tree. */
  protected lowest(iommu: NaiveIommu, start: bigint, end: bigint): NaiveMapping | null {
    const isHidden = (m: NaiveMapping): boolean => this.end(m.iova, m.size) === 0n;
    let found = iommu.maps.find((m) => start < m.iova + m.size) ?? null;
    if (iommu.maps.some(isHidden)) {
      found = null;
      iommu.tree.descend((m) => {
        if (start >= this.end(m.iova, m.size)) return 'right';
        found = m;
        return start >= m.iova ? 'stop' : 'left';
      });
    }
    return found === null || found.iova >= end ? null : found;
  }

  // Charges

  protected mmOf(m: NaiveMapping): NaiveMm | null {
    if (this.rules.mappingKeepsMm) return this.memory.hasUsers(m.mm) ? m.mm : null;
    return this.memory.task(m.task).mm;
  }

  /** `current`: in the name of the calling process, whose mm is there as long as the mapping. */
  protected charge(m: NaiveMapping, npage: number, current = false): void {
    if (npage === 0) return;
    const mm = this.mmOf(m);
    const { chargesUnderLimit, mappingKeepsMm, warnsOfUnderflow } = this.rules;
    if (mm === null) {
      if (!chargesUnderLimit || (current && mappingKeepsMm)) return;
      throw new Refused('ESRCH');
    }
    if (chargesUnderLimit && this.fails('charge')) {
      this.seen.add('charge is killed');
      throw new Refused('EINTR');
    }
    if (npage > 0 && chargesUnderLimit && !m.cap && this.memory.isOver(mm, m.task, npage)) throw new Refused('ENOMEM');
    if (npage < 0) this.beforeUncharge(mm, -npage, warnsOfUnderflow);
    mm.locked_vm = BigInt.asUintN(64, mm.locked_vm + BigInt(npage));
    m.charged += npage;
  }

  private beforeUncharge(mm: NaiveMm, npage: number, warns: boolean): void {
    if (BigInt(npage) <= mm.locked_vm) return;
    this.seen.add('charge below zero');
    if (warns) this.warnOnce('__account_locked_vm', 'pages > locked_vm');
  }

  /** Nobody looks at the result. */
  protected uncharge(m: NaiveMapping, npage: number): void {
    try {
      this.charge(m, -npage);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
    }
  }

  /** Gives a page back that was pinned for a mapping; whether it is one that counts. */
  protected put(m: NaiveMapping, page: NaivePage): boolean {
    if (isReserved(page)) return false;
    this.memory.put(page, (m.prot & WRITE) !== 0);
    return true;
  }

  // MAP_DMA

  protected map(c: Of<'map_dma'>): NaiveOutcome {
    const { overflow, mapFlags, entryLimit, ownerIsLeader } = this.rules;
    this.container(c.container);
    const task = this.memory.task(c.task);
    const iommu = this.iommuOf(c.container);
    const mm = this.memory.live(c.task);
    const prot = c.flags & (READ | WRITE);
    const isUpdate = (c.flags & 4) !== 0;
    if (c.argsz < 32 || (c.flags & ~mapFlags) !== 0 || c.size === 0n) throw new Refused('EINVAL');
    if (c.iova + c.size > MOD_2_64 || c.vaddr + c.size > MOD_2_64) {
      this.seen.add('range that passes the end of the space');
      throw new Refused(overflow);
    }
    if (isUpdate === (prot !== 0)) throw new Refused('EINVAL');
    if (![c.iova, c.vaddr, c.size].every(isAligned)) throw new Refused('EINVAL');
    const there = this.find(iommu, c.iova, this.end(c.iova, c.size));
    if (isUpdate) return this.updateVaddr(iommu, c, there);
    if (there !== null) throw new Refused('EEXIST');
    if (entryLimit && iommu.avail === 0) throw new Refused('ENOSPC');
    if (!isValid(iommu, c.iova, c.iova + c.size - 1n)) {
      this.seen.add('iova in no valid range');
      throw new Refused('EINVAL');
    }
    const { iova, size, vaddr } = c;
    const m: NaiveMapping = {
      ...{ iova, size, vaddr, prot, mm, task: ownerIsLeader ? task.leader : c.task, cap: task.cap },
      ...{ pins: new Map(), charged: 0, invalid: false, dirty: null, backed: [], marked: false },
    };
    iommu.avail--;
    iommu.tree.insert(m);
    iommu.maps = iommu.tree.inOrder();
    try {
      if (iommu.domain !== null) this.back(m, c.task);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      this.seen.add('mapping refused by the IOMMU path');
      this.remove(iommu, m);
      throw error;
    }
    if (iommu.tracking) m.dirty = 0n;
    return done();
  }

  protected abstract updateVaddr(iommu: NaiveIommu, c: Of<'map_dma'>, m: NaiveMapping | null): NaiveOutcome;

  /** A mapping goes, with what the IOMMU held of it; pins that are left in it leak. */
  protected remove(iommu: NaiveIommu, m: NaiveMapping): void {
    if (m.pins.size > 0) {
      this.seen.add('pins left behind leak');
      if (!this.rules.checksLeftoversAtDetach) this.splat('mapping-removed-with-pins');
    }
    if (iommu.domain !== null) this.uncharge(m, this.unback(m));
    iommu.tree.erase(m);
    iommu.maps = iommu.tree.inOrder();
    iommu.avail++;
  }

  // IOMMU-backed groups

  /** The page that the IOMMU path had got when it was refused. */
  private refusedPage: NaivePage | null = null;

  /** Pins and charges every page of a mapping. What there is of it after a failure stays in `backed`. */
  private back(m: NaiveMapping, task: string): void {
    const { pagesAtATime, capAtMap, ascending } = this.rules;
    this.metDomain = true;
    const mm = this.memory.live(task);
    const cap = capAtMap ? m.cap : this.memory.task(task).cap;
    // How far it gets before it notices that the owner has no mm is a matter of where chunks end.
    if (this.mmOf(m) === null && !ascending) throw new BeyondModel();
    m.marked = true;
    let got: NaivePage[] = [];
    try {
      for (let i = 0; i < pagesIn(m.size); i++) {
        if (got.length === 0) got = this.getPages(mm, m, i, Math.min(pagesAtATime, pagesIn(m.size) - i));
        const page = got[0] as NaivePage;
        this.refusedPage = page;
        if (!isReserved(page) && !m.pins.has(m.iova + BigInt(i) * PAGE)) {
          if (!cap && this.memory.isOver(mm, task, 1)) throw new Refused('ENOMEM');
          this.charge(m, 1, true);
        }
        m.backed.push(page);
        got.shift();
      }
    } finally {
      for (const page of got) this.put(m, page);
    }
  }

  /** The pages from one on, as many as can be had. */
  private getPages(mm: NaiveMm, m: NaiveMapping, first: number, most: number): NaivePage[] {
    const got: NaivePage[] = [];
    for (let i = first; got.length < most; i++) {
      const at = pagesIn(m.vaddr) + i;
      const isDevice = mm.slots.get(at)?.pfnmap != null;
      if (isDevice && got.length > 0) break;
      try {
        got.push(this.memory.pin(mm, at, (m.prot & WRITE) !== 0));
      } catch (error) {
        if (!(error instanceof Refused) || got.length === 0) throw error;
        break;
      }
      if (isDevice) break;
    }
    return got;
  }

  /** Gives back what the IOMMU held; how many pages of it count. */
  private unback(m: NaiveMapping): number {
    const count = m.backed.filter((page) => this.put(m, page)).length;
    m.backed = [];
    m.marked = false;
    return count;
  }

  protected attach(name: string, iommu: NaiveIommu, id: string, task: string | null): NaiveOp | null {
    const group = this.group(id);
    const { vaddrUpdate } = this.rules;
    const isInvalid = (): boolean => iommu.maps.some(({ invalid }) => invalid);
    if (vaddrUpdate === 'refuses' && isInvalid()) throw new Refused('EBUSY');
    if (group.kind === 'mdev') {
      iommu.mdev.push(id);
      return null;
    }
    const ranges = this.rangesWith(iommu, group);
    if (iommu.domain !== null) iommu.domain.push(id);
    else {
      if (isInvalid()) {
        const waiting = this.attachLater.bind(this);
        const op = this.start('set_container', name, null, (self) => waiting(self, name, iommu, id, task)) as NaiveOp;
        this.attaching.set(op, id);
        return op;
      }
      this.replay(name, iommu, task);
      iommu.domain = [id];
    }
    iommu.ranges = ranges;
    iommu.unscoped.add(id);
    return null;
  }

  private *attachLater(op: NaiveOp, name: string, iommu: NaiveIommu, id: string, task: string | null): Sleeping {
    while (iommu.maps.some(({ invalid }) => invalid)) yield* this.sleepForVaddr(iommu, op);
    this.attach(name, iommu, id, task);
    this.bind(id, name);
    const group = this.group(id);
    if (!group.open && --group.users === 0) this.leave(id, group);
    return done();
  }

  /** Every mapping is pinned and charged, in the name of the caller or of its own task. */
  private replay(name: string, iommu: NaiveIommu, task: string | null): void {
    this.metDomain = true;
    const replayed: NaiveMapping[] = [];
    try {
      for (const m of iommu.maps) {
        if (m.marked) {
          this.splat('NULL pointer dereference');
          this.kill(name);
          throw new Refused('EIO');
        }
        replayed.push(m);
        // One that ends at 2^64 has no page as the loop counts.
        if (this.end(m.iova, m.size) !== 0n) this.backInReplay(m, task ?? m.task);
        this.seen.add('replay on attach');
      }
    } catch (error) {
      if (error instanceof Refused && error.errno !== 'EIO') this.failReplay(replayed, error.errno);
      throw error;
    }
    for (const m of replayed) m.marked = true;
  }

  private backInReplay(m: NaiveMapping, caller: string): void {
    if (this.memory.task(caller).mm === null) throw new Refused('ENODEV');
    this.back(m, caller);
  }

  /** Newer kernels undo it. In old ones the pages stay pinned and charged, and whole mappings stay marked. */
  private failReplay(replayed: NaiveMapping[], errno: string): void {
    this.seen.add('failed replay');
    const { leaksFailedReplay, keepsChunkOverLimit } = this.rules;
    const last = replayed.at(-1);
    if (last !== undefined && leaksFailedReplay && errno === 'ENOMEM' && !keepsChunkOverLimit) this.dropChunk(last);
    for (const m of replayed) {
      const { pages, records } = { pages: m.backed, records: m.pins };
      m.backed = [];
      if (leaksFailedReplay) m.marked = m !== last;
      else {
        m.marked = false;
        const charged = pages.filter((page, i) => this.put(m, page) && !records.has(m.iova + BigInt(i) * PAGE));
        this.uncharge(m, charged.length);
      }
    }
  }

  /** Of a mapping over the limit the consecutive frames go that led up to the page that was refused. */
  private dropChunk(m: NaiveMapping): void {
    const pages = [...m.backed, this.refusedPage as NaivePage];
    let first = pages.length - 1;
    for (; first > 0; first--) {
      const [before, page] = [pages[first - 1] as NaivePage, pages[first] as NaivePage];
      if (before.pfn === null || page.pfn === null) throw new BeyondModel();
      if (before.pfn + 1 !== page.pfn || isReserved(before) !== isReserved(page)) break;
    }
    const dropped = m.backed.splice(first);
    const charged = dropped.filter((page, i) => this.put(m, page) && !m.pins.has(m.iova + BigInt(first + i) * PAGE));
    this.uncharge(m, charged.length);
  }

  /** The ranges that are valid with one group more. */
  private rangesWith(
    iommu: NaiveIommu,
    { reserved, aperture }: { reserved: [bigint, bigint][]; aperture: [bigint, bigint] },
  ) {
    if (!this.rules.validRanges) return [];
    const isMapped = (start: bigint, last: bigint): boolean =>
      this.find(iommu, start - (start % PAGE), last - (last % PAGE) + PAGE) !== null;
    const [low, high] = aperture;
    const lowest = iommu.ranges[0]?.[0];
    const highest = iommu.ranges.at(-1)?.[1];
    if (lowest !== undefined && highest !== undefined) {
      if (low > highest || high < lowest) throw new Refused('EINVAL');
      if (low > lowest && isMapped(lowest, low - 1n)) throw new Refused('EINVAL');
      if (high < highest && isMapped(high + 1n, highest)) throw new Refused('EINVAL');
    }
    if (reserved.some(([start, last]) => isMapped(start, last))) throw new Refused('EINVAL');
    const open = iommu.ranges.length === 0 ? [aperture] : iommu.ranges;
    const within = open
      .map(([start, last]): [bigint, bigint] => [start > low ? start : low, last < high ? last : high])
      .filter(([start, last]) => start < last);
    const left = without(within, reserved);
    if (left.length === 0) throw new Refused('EINVAL');
    return left;
  }

  protected detach(iommu: NaiveIommu, id: string): void {
    const isDirty = iommu.unscoped.delete(id);
    if (this.group(id).kind === 'mdev') this.detachMdev(iommu, id);
    else this.detachIommu(iommu, id);
    if (isDirty && iommu.tracking && this.rules.allDirtyAfterDetach)
      for (const m of iommu.maps) m.dirty = (m.dirty ?? 0n) | onesOf(m);
  }

  private detachMdev(iommu: NaiveIommu, id: string): void {
    iommu.mdev = iommu.mdev.filter((other) => other !== id);
    if (iommu.mdev.length > 0) return;
    const { checksLeftoversAtDetach } = this.rules;
    if (checksLeftoversAtDetach && iommu.maps.some(({ pins }) => pins.size > 0)) this.splat('pins-left-at-detach');
    if ((checksLeftoversAtDetach || iommu.domain === null) && this.isListening(iommu))
      this.splat('listeners-left-at-detach');
    if (iommu.domain === null) for (const m of iommu.maps) this.remove(iommu, m);
  }

  private detachIommu(iommu: NaiveIommu, id: string): void {
    const left = (iommu.domain ?? []).filter((other) => other !== id);
    if (left.length > 0) iommu.domain = left;
    else {
      if (iommu.mdev.length > 0) this.reaccount(iommu);
      else {
        if (!this.rules.checksLeftoversAtDetach && this.isListening(iommu)) this.splat('listeners-left-at-detach');
        for (const m of iommu.maps) this.remove(iommu, m);
      }
      iommu.domain = null;
    }
    const [lowest, highest] = [iommu.ranges[0]?.[0], iommu.ranges.at(-1)?.[1]];
    if (lowest === undefined || highest === undefined) return;
    const whole: [bigint, bigint] = left.length > 0 ? [lowest, highest] : [0n, LAST];
    iommu.ranges = without(
      [whole],
      left.flatMap((other) => this.group(other).reserved),
    );
  }

  /** The last domain goes and mdev groups stay: from now on the records are what is charged. */
  private reaccount(iommu: NaiveIommu): void {
    for (const m of iommu.maps) {
      if (m.pins.size > 0) this.seen.add('re-accounting on detach');
      const records = [...m.pins.values()].filter(({ page }) => !isReserved(page)).length;
      this.uncharge(m, this.unback(m) - records);
    }
  }
}

/** Every page of a mapping, as dirty bits. */
export const onesOf = ({ size }: NaiveMapping): bigint => (1n << (size / PAGE)) - 1n;

const isValid = ({ ranges }: NaiveIommu, first: bigint, last: bigint): boolean =>
  ranges.length === 0 || ranges.some(([start, end]) => start <= first && last <= end);

function without(ranges: [bigint, bigint][], holes: [bigint, bigint][]): [bigint, bigint][] {
  let left = ranges;
  for (const [start, last] of holes)
    left = left.flatMap(([first, end]) => {
      if (last < first || end < start) return [[first, end]];
      const pieces: [bigint, bigint][] = [];
      if (first < start) pieces.push([first, start - 1n]);
      if (last < end) pieces.push([last + 1n, end]);
      return pieces;
    });
  return left;
}
