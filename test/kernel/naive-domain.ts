// What the naive model makes of IOMMU-backed groups: the pages that they hold, replay, re-accounting, valid ranges; and how
// groups of both kinds join and leave.

import { WRITE } from '../../src/kernel/command.ts';
import { NaiveMappings, onesOf, pagesIn } from './naive-mappings.ts';
import { isReserved, MOD_2_64, type NaiveMm, type NaivePage, Refused } from './naive-mm.ts';
import {
  done,
  type NaiveGroup,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveOp,
  PAGE,
  type Sleeping,
} from './naive-types.ts';

const LAST = MOD_2_64 - 1n;

/** What happens now depends on frames that the model doesn't know: nothing after it can be compared. */
export class BeyondModel extends Error {}

export abstract class NaiveDomain extends NaiveMappings {
  /** An IOMMU has had pages: how often it took and gave them back is not modelled, so that dirty marks are not. */
  metDomain = false;

  /** The page that the IOMMU path had got when it was refused. */
  private refusedPage: NaivePage | null = null;

  /** Pins and charges every page of a mapping. What there is of it after a failure stays in `backed`. */
  protected back(m: NaiveMapping, task: string): void {
    const { pagesAtATime, capAtMap, ascending } = this.rules;
    this.metDomain = true;
    const mm = this.memory.live(task);
    const cap = capAtMap ? m.cap : this.memory.task(task).cap;
    // How far it gets before it notices that the owner has no mm is a matter of where chunks end.
    if (this.mmOf(m) === null && !ascending) throw new BeyondModel();
    // Below zero it also matters at which pages it charges.
    const isWrapped = mm.locked_vm >= MOD_2_64 / 2n;
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
    } catch (error) {
      throw isWrapped ? new BeyondModel() : error;
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
  protected unback(m: NaiveMapping): number {
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
  private rangesWith(iommu: NaiveIommu, { reserved, aperture }: NaiveGroup): [bigint, bigint][] {
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
    const beyond: [bigint, bigint][] = [[high + 1n, LAST]];
    if (low > 0n) beyond.push([0n, low - 1n]);
    const left = without(open, [...beyond, ...reserved]);
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
