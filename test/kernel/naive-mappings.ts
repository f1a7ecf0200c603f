// The naive model's mappings: where they lie, and who is charged for them.

import { READ, WRITE } from '../../src/kernel/command.ts';
import { isReserved, MOD_2_64, type NaiveMm, type NaivePage, Refused } from './naive-mm.ts';
import { NaiveOperations } from './naive-operations.ts';
import { NaiveTree } from './naive-tree.ts';
import { done, type NaiveIommu, type NaiveMapping, type NaiveOutcome, newChain, type Of, PAGE } from './naive-types.ts';

export const isAligned = (value: bigint): boolean => value % PAGE === 0n;
export const pagesIn = (size: bigint): number => Number(size / PAGE);

export abstract class NaiveMappings extends NaiveOperations {
  /** Attempts that are still to pass before one fails, of the rules that hold for the present call. */
  failing: { point: string; left: number }[] = [];
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

  /** Pins and charges every page of a mapping for the IOMMU. What there is of it after a failure stays in `backed`. */
  protected abstract back(m: NaiveMapping, task: string): void;

  /** Gives back what the IOMMU held; how many pages of it count. */
  protected abstract unback(m: NaiveMapping): number;
}

/** Every page of a mapping, as dirty bits. */
export const onesOf = ({ size }: NaiveMapping): bigint => (1n << (size / PAGE)) - 1n;

const isValid = ({ ranges }: NaiveIommu, first: bigint, last: bigint): boolean =>
  ranges.length === 0 || ranges.some(([start, end]) => start <= first && last <= end);
