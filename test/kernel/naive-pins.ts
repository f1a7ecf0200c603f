// The naive model's pins, and the reads and writes that a driver makes without one.

import { READ, WRITE } from '../../src/kernel/command.ts';
import { isReserved, MOD_2_64, type NaivePage, Refused } from './naive-mm.ts';
import { NaiveNotifiers } from './naive-notifiers.ts';
import {
  done,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveOp,
  type NaiveOutcome,
  type Of,
  PAGE,
  type Sleeping,
} from './naive-types.ts';

type Pin = Of<'pin_pages'>;
type Entries = Pick<Pin, 'user_pfn' | 'npage' | 'contiguous'>;

/** The iovas that a call names: page numbers, or bytes from one on that need not begin a page. */
const iovasOf = ({ user_pfn, npage, contiguous }: Entries): bigint[] =>
  contiguous === undefined
    ? user_pfn.slice(0, npage).map((pfn) => BigInt(pfn) * PAGE)
    : Array.from({ length: npage }, (_, i) => contiguous.iova + BigInt(i) * PAGE);

export abstract class NaivePins extends NaiveNotifiers {
  /** The mapping that PAGE bytes from an iova on touch. */
  private at(iommu: NaiveIommu, iova: bigint): NaiveMapping | null {
    return this.find(iommu, iova, this.end(iova, PAGE));
  }

  /** Not open: a WARN, and another one the first time ever. */
  private requireOpen(id: string): void {
    const { open, op } = this.device(id);
    if (open === 0) {
      this.warnOnce('vfio_assert_device_open', 'device-not-open-once');
      this.splat('device-not-open');
    }
    if (open === 0 || op === null) throw new Refused('EINVAL');
  }

  protected pin(c: Pin): NaiveOutcome | NaiveOp {
    const slots = c.contiguous === undefined ? c.user_pfn.length : Math.min(Math.max(c.npage, 0), 512);
    const zeros = { phys_pfn: new Array<number>(slots).fill(0) };
    const group = this.groupOf(c.device);
    const { takesArrays, wantsOpenDevice, onlyDeviceOfItsGroup } = this.rules;
    const refused = (error: unknown): unknown => {
      if (error instanceof Refused) Object.assign(error.left, zeros);
      return error;
    };
    try {
      if (takesArrays !== (c.contiguous === undefined)) throw new Refused('EOPNOTSUPP');
      if (c.npage === 0) throw new Refused('EINVAL');
      if (wantsOpenDevice) this.requireOpen(c.device);
      if (c.npage < 0 || c.npage > 512) throw new Refused('E2BIG');
      if (group === null) throw new Refused('ENODEV');
      if (group.devices.length > 1 && group.container !== null) this.seen.add('pin by one of several devices');
      if (onlyDeviceOfItsGroup && group.devices.length > 1) throw new Refused('EINVAL');
      const { name, iommu } = this.user(group);
      const pinning = this.pinning.bind(this);
      return this.start('pin_pages', name, null, (op) => pinning(op, iommu, c, refused));
    } catch (error) {
      throw refused(error);
    }
  }

  private *pinning(op: NaiveOp, iommu: NaiveIommu, c: Pin, refused: (error: unknown) => unknown): Sleeping {
    try {
      if (iommu.type === 1) throw new Refused('EACCES');
      if (c.contiguous !== undefined && c.contiguous.iova + BigInt(c.npage) * PAGE > MOD_2_64) {
        this.seen.add('range that passes the end of the space');
        throw new Refused('EOVERFLOW');
      }
      while (this.mustWait(iommu, c)) {
        this.seen.add('pin waits for a vaddr');
        this.hold(op, this.device(c.device).group as string);
        yield* this.sleepForVaddr(iommu, op);
      }
      if (this.rules.wantsMdevGroup && iommu.mdev.length === 0) throw new Refused('EINVAL');
      if (!this.isListening(iommu)) throw new Refused('EINVAL');
      const phys_pfn = this.pinAll(iommu, c);
      // A group that pins writes only where it pinned.
      iommu.unscoped.delete(this.device(c.device).group as string);
      return done({ phys_pfn }, c.npage);
    } catch (error) {
      throw refused(error);
    }
  }

  /** Whether one of the iovas has an invalid vaddr, up to the first that is not mapped. */
  private mustWait(iommu: NaiveIommu, c: Pin): boolean {
    if (!iommu.maps.some(({ invalid }) => invalid)) return false;
    if (this.rules.vaddrUpdate === 'refuses') {
      this.seen.add('pin refused while a vaddr is invalid');
      this.warnOnce('vfio_iommu_type1_pin_pages', 'pin-with-invalid-vaddr');
      throw new Refused('EBUSY');
    }
    for (const [i, iova] of iovasOf(c).entries()) {
      const m = this.at(iommu, iova);
      if (m === null) throw new Refused('EINVAL', {}, i);
      if (m.invalid) return true;
    }
    return false;
  }

  private pinAll(iommu: NaiveIommu, c: Pin): NaivePage[] {
    const iovas = iovasOf(c);
    const pages: NaivePage[] = [];
    for (const [i, iova] of iovas.entries()) {
      try {
        pages.push(this.pinOne(iommu, iova, c.prot));
      } catch (error) {
        if (!(error instanceof Refused)) throw error;
        if (i > 0) this.seen.add('rollback in the middle of a batch');
        for (const undo of iovas.slice(0, i)) this.unpinOne(iommu, undo);
        throw new Refused(error.errno, {}, i);
      }
    }
    return pages;
  }

  private pinOne(iommu: NaiveIommu, iova: bigint, prot: number): NaivePage {
    const m = this.at(iommu, iova);
    if (m === null) {
      const isHidden = iommu.maps.some((other) => other.iova <= iova && iova < other.iova + other.size);
      if (isHidden) this.seen.add('mapping that ends at 2^64 is not found');
      throw new Refused('EINVAL');
    }
    if ((m.prot & prot) !== prot) throw new Refused('EPERM');
    const record = m.pins.get(iova);
    if (record !== undefined) {
      record.ref_count++;
      return record.page;
    }
    const page = this.pinExternally(iommu, m, iova);
    if (this.rules.wantsStructPage && page.kind === 'device') throw new Refused('EINVAL');
    if (this.fails('record_alloc')) {
      this.seen.add('record without memory');
      const accounted = iommu.domain === null && !isReserved(page);
      if (!this.rules.leaksWithoutRecord && this.put(m, page) && accounted) this.uncharge(m, 1);
      throw new Refused('ENOMEM');
    }
    m.pins.set(iova, { page, ref_count: 1 });
    if (iova % PAGE !== 0n) this.seen.add('unaligned record');
    if (m.dirty !== null && iova >= m.iova) m.dirty |= 1n << ((iova - m.iova) / PAGE);
    return page;
  }

  /** The page behind an iova, pinned, and charged where no IOMMU has it already. */
  private pinExternally(iommu: NaiveIommu, m: NaiveMapping, iova: bigint): NaivePage {
    const mm = this.mmOf(m);
    const write = (m.prot & WRITE) !== 0;
    if (mm === null) throw new Refused('ENODEV');
    const at = Number(((m.vaddr + iova - m.iova + MOD_2_64) % MOD_2_64) / PAGE);
    const slot = mm.slots.get(at);
    if (slot?.pfnmap && write && slot.pte?.writable === false) this.seen.add('write pin of a read-only VM_PFNMAP page');
    const page = this.memory.pin(mm, at, write);
    if (slot?.pfnmap) this.seen.add('VM_PFNMAP page pinned');
    if (page.kind === 'zero') this.seen.add('zero page pinned');
    if (isReserved(page)) return page;
    const { capAtMap, testsLimitAlways } = this.rules;
    const { cap } = this.memory.task(m.task);
    try {
      if (testsLimitAlways && !(capAtMap ? m.cap : cap) && this.memory.isOver(mm, m.task, 1))
        throw new Refused('ENOMEM');
      if (iommu.domain === null) this.charge(m, 1);
      else this.seen.add('pin beside a domain');
    } catch (error) {
      if (error instanceof Refused && error.errno === 'ENOMEM') this.seen.add('ENOMEM of the limit');
      this.put(m, page);
      throw error;
    }
    if (m.cap !== cap && this.memory.isOver(mm, m.task, 0)) this.seen.add('capability changed since the mapping');
    return page;
  }

  private unpinOne(iommu: NaiveIommu, iova: bigint): boolean {
    const m = this.at(iommu, iova);
    if (m === null) return false;
    const record = m.pins.get(iova);
    if (record === undefined || --record.ref_count > 0) return true;
    m.pins.delete(iova);
    if (this.put(m, record.page) && iommu.domain === null) this.uncharge(m, 1);
    return true;
  }

  /** How many entries there were before one that is not mapped. */
  private unpinAll(iommu: NaiveIommu, c: Entries): number {
    const iovas = iovasOf(c);
    const gap = iovas.findIndex((iova) => !this.unpinOne(iommu, iova));
    return gap < 0 ? iovas.length : gap;
  }

  protected unpin(c: Of<'unpin_pages'>): NaiveOutcome {
    const group = this.groupOf(c.device);
    if (this.rules.takesArrays !== (c.contiguous === undefined)) throw new Refused('EOPNOTSUPP');
    if (c.contiguous !== undefined) return this.unpinRange(c, c.contiguous.iova);
    if (c.npage === 0) throw new Refused('EINVAL');
    if (c.npage < 0 || c.npage > 512) throw new Refused('E2BIG');
    if (group === null) throw new Refused('ENODEV');
    const { iommu } = this.user(group);
    if (iommu.type === 1) throw new Refused('EACCES');
    if (this.rules.wantsMdevGroup && iommu.mdev.length === 0) throw new Refused('EINVAL');
    const count = this.unpinAll(iommu, c);
    if (count === 0) throw new Refused('EINVAL', {}, 0);
    return done({}, count);
  }

  /** No result: every misuse is a WARN. */
  private unpinRange(c: Of<'unpin_pages'>, iova: bigint): NaiveOutcome {
    const { open, op, group } = this.device(c.device);
    const warn = (label: string): NaiveOutcome => {
      this.seen.add('unpin ends with a WARN');
      this.splat(label);
      return done({ warnings: [label] });
    };
    if (open === 0) {
      this.warnOnce('vfio_assert_device_open', 'device-not-open-once');
      return warn('device-not-open');
    }
    if (op === null) return warn('device-without-unmap-callback');
    if (c.npage <= 0 || c.npage > 512) return warn('unpin-bad-count');
    const { iommu } = this.user(this.group(group as string));
    if (iommu.type === 1) return warn('unpin-on-v1');
    if (iova + BigInt(c.npage) * PAGE > MOD_2_64) return warn('unpin-overflow');
    return this.unpinAll(iommu, c) === c.npage ? done() : warn('unpin-stopped-early');
  }

  // dma_rw

  protected dmaRw(c: Of<'dma_rw'>): NaiveOutcome | NaiveOp {
    const group = this.groupOf(c.device);
    if (c.task !== null) this.memory.task(c.task);
    if (!this.rules.dmaRw) throw new Refused('EOPNOTSUPP');
    if (c.length <= 0) throw new Refused('EINVAL');
    if (this.rules.wantsOpenDevice && this.device(c.device).open === 0) {
      this.warnOnce('vfio_assert_device_open', 'device-not-open-once');
      throw new Refused('EINVAL');
    }
    if (group === null) throw new Refused('ENODEV');
    const { name, iommu } = this.user(group);
    if (this.rules.vaddrUpdate === 'refuses' && iommu.maps.some(({ invalid }) => invalid)) {
      this.warnOnce('vfio_iommu_type1_dma_rw', 'pin-with-invalid-vaddr');
      throw new Refused('EBUSY');
    }
    const bytes = c.write ? new Uint8Array(Buffer.from(c.data ?? '', 'base64')) : new Uint8Array(c.length);
    const moving = this.moving.bind(this);
    return this.start('dma_rw', name, null, (op) => moving(op, iommu, c, bytes));
  }

  private *moving(op: NaiveOp, iommu: NaiveIommu, c: Of<'dma_rw'>, bytes: Uint8Array): Sleeping {
    let moved = 0;
    const data = (): { data?: string } =>
      c.write ? {} : { data: Buffer.from(bytes.subarray(0, moved)).toString('base64') };
    try {
      while (moved < c.length) {
        const iova = (c.iova + BigInt(moved)) % MOD_2_64;
        const m = this.find(iommu, iova, this.end(iova, 1n));
        if (m === null) throw new Refused('EINVAL');
        if (m.invalid) {
          this.seen.add('dma_rw waits for a vaddr');
          this.hold(op, this.device(c.device).group as string);
          yield* this.sleepForVaddr(iommu, op);
          continue;
        }
        if (moved > 0) this.seen.add('dma_rw across two mappings');
        moved += this.moveChunk(m, iova, c, bytes.subarray(moved));
      }
      return done(data());
    } catch (error) {
      if (error instanceof Refused) Object.assign(error.left, data());
      throw error;
    }
  }

  /** To the end of the mapping or of the request. */
  private moveChunk(m: NaiveMapping, iova: bigint, { write, task }: Of<'dma_rw'>, bytes: Uint8Array): number {
    if ((write && (m.prot & WRITE) === 0) || (m.prot & READ) === 0) throw new Refused('EPERM');
    const mm = this.mmOf(m);
    if (mm === null) throw new Refused('EPERM');
    if (task !== null && this.memory.task(task).mm !== mm) throw new Refused('EFAULT');
    const offset = iova - m.iova;
    const count = Math.min(bytes.length, Number(m.size - offset));
    if (this.memory.copy(mm, m.vaddr + offset, bytes.subarray(0, count), write) < count) throw new Refused('EFAULT');
    if (write && m.dirty !== null) m.dirty |= this.writtenBits(offset, BigInt(count));
    return count;
  }

  /** Old kernels count the pages that were written whole, from the first one touched on. */
  private writtenBits(offset: bigint, count: bigint): bigint {
    const first = offset / PAGE;
    const whole = this.rules.countsWholePages;
    if (count < PAGE) this.seen.add('sub-page write');
    const npage = whole ? count / PAGE : (offset + count - 1n) / PAGE - first + 1n;
    return ((1n << npage) - 1n) << first;
  }
}
