// The naive model's UNMAP_DMA, the invalidation of a vaddr, and the dirty log.

import { NaiveDomain } from './naive-domain.ts';
import { isAligned, onesOf } from './naive-mappings.ts';
import { type NaiveMm, Refused } from './naive-mm.ts';
import {
  done,
  type NaiveIommu,
  type NaiveMapping,
  type NaiveOp,
  type NaiveOutcome,
  type Of,
  PAGE,
  type Sleeping,
  walkOf,
} from './naive-types.ts';

const MOD_2_64 = 2n ** 64n;
const WORD = MOD_2_64 - 1n;

interface Request {
  start: bigint;
  size: bigint;
  end: bigint;
  all: boolean;
  invalidates: boolean;
  mm: NaiveMm | null;
  /** Of the bitmap that the caller gave; its bits so far. */
  bitmap: { bytes: number; bits: bigint } | null;
}

export abstract class NaiveUnmap extends NaiveDomain {
  protected unmap(c: Of<'unmap_dma'>, inside: number | null): NaiveOutcome | NaiveOp {
    this.container(c.container);
    if (c.task !== null) this.memory.task(c.task);
    const iommu = this.iommuOf(c.container);
    if (c.task !== null) this.memory.live(c.task);
    this.checkUnmap(c, iommu);
    const all = (c.flags & 2) !== 0;
    const end = all ? MOD_2_64 : this.end(c.iova, c.size);
    const overlaps = (m: NaiveMapping): boolean => m.iova < end && c.iova < this.end(m.iova, m.size);
    const caller = c.task ?? iommu.maps.find(overlaps)?.task ?? null;
    const request: Request = {
      ...{ start: c.iova, size: c.size, end, all, invalidates: (c.flags & 4) !== 0 },
      mm: caller === null ? null : this.memory.task(caller).mm,
      bitmap: (c.flags & 1) !== 0 && c.bitmap !== null ? { bytes: Number(c.bitmap.size), bits: 0n } : null,
    };
    if (this.cannotWalk(iommu, inside) && this.willWalk(iommu, request)) this.refuseDeadlock();
    return this.start('unmap_dma', c.container, inside, (op) => this.unmapping(op, iommu, request));
  }

  private checkUnmap(c: Of<'unmap_dma'>, iommu: NaiveIommu): void {
    const { unmapFlags, vaddrUpdate, refusesWrappingUnmap, overflow } = this.rules;
    const wantsBitmap = (c.flags & 1) !== 0;
    const argsz = c.argsz ?? (c.bitmap === null ? 24 : 48);
    if (argsz < 24 || (c.flags & ~unmapFlags) !== 0) throw new Refused('EINVAL');
    if (wantsBitmap) {
      if ((c.flags & 6) !== 0 || argsz < 48) throw new Refused('EINVAL');
      checkBitmap(c.size, c.bitmap?.pgsize ?? 0n, c.bitmap?.size ?? 0n);
    }
    if ((c.flags & 4) !== 0 && vaddrUpdate === 'refuses' && iommu.mdev.length > 0) throw new Refused('EBUSY');
    if (!isAligned(c.iova)) throw new Refused('EINVAL');
    if ((c.flags & 2) !== 0) {
      if (c.iova !== 0n || c.size !== 0n) throw new Refused('EINVAL');
    } else {
      if (c.size === 0n || !isAligned(c.size)) throw new Refused('EINVAL');
      if (c.iova + c.size > MOD_2_64) {
        this.seen.add('range that passes the end of the space');
        if (refusesWrappingUnmap) throw new Refused(overflow);
      }
    }
    if (wantsBitmap && (!iommu.tracking || c.bitmap?.pgsize !== PAGE)) throw new Refused('EINVAL');
  }

  /** Who would have to wait for a lock that is held until somebody gets what this call holds. */
  private cannotWalk({ chain }: NaiveIommu, inside: number | null): boolean {
    if (walkOf(chain).blocks.length === 0) return false;
    if (this.rules.deviceIsListener) return chain.readers.length > 0;
    return chain.queue.length > 0 && this.isInsideWalkOf(chain, inside);
  }

  /** Whether the first pass comes to a mapping with pins: tried on a copy. */
  private willWalk(iommu: NaiveIommu, request: Request): boolean {
    if (request.invalidates || this.bisects(iommu, request)) return false;
    const tree = this.newIommu(iommu.type, 0).tree;
    iommu.tree.copyTo(tree);
    const copy: NaiveIommu = { ...iommu, tree, maps: iommu.maps };
    for (const m of this.inTurn(copy, request)) {
      if (this.endsBefore(iommu, m, request)) return false;
      if (m.pins.size > 0) return true;
      tree.erase(m);
      copy.maps = tree.inOrder();
    }
    return false;
  }

  /** Inside a mapping begins or ends the range: whole mappings only. */
  private bisects(iommu: NaiveIommu, { start, size, all }: Request): boolean {
    if (iommu.type === 1 || all) return false;
    const last = (start + size - 1n) % MOD_2_64;
    const [low, high] = [this.find(iommu, start, start + 1n), this.find(iommu, last, last + 1n)];
    if (low !== null && low.iova !== start) return true;
    return high !== null && high.iova + high.size !== last + 1n;
  }

  /** The mappings as the loop takes them; each is gone, or the loop over, when the next is asked for. */
  private *inTurn(iommu: NaiveIommu, { start, end }: Request): Iterable<NaiveMapping> {
    if (this.rules.ascending) {
      const first = this.lowest(iommu, start, end);
      if (first === null) return;
      for (const m of iommu.maps.slice(iommu.maps.indexOf(first))) {
        if (m.iova >= end) return;
        yield m;
      }
      return;
    }
    let before: NaiveMapping | null = null;
    for (let m = this.find(iommu, start, end); m !== null; m = this.find(iommu, start, end)) {
      if (before !== null && m.iova < before.iova) this.seen.add('removal in another order than by iova');
      before = m;
      yield m;
    }
  }

  private endsBefore(iommu: NaiveIommu, m: NaiveMapping, { start, mm }: Request): boolean {
    if (iommu.type === 1 && start > m.iova) return true;
    if (this.rules.foreignMmMayUnmap) return false;
    const { mm: owner } = this.memory.task(m.task);
    if (owner !== null && owner === mm) return false;
    this.seen.add('end at a mapping of another mm');
    if (owner === null && mm !== null && mm === m.mm) this.seen.add('owner of a mapping exited, its process lives');
    return true;
  }

  private *unmapping(op: NaiveOp, iommu: NaiveIommu, request: Request): Sleeping {
    const total = { size: 0n };
    let [last, retries] = [null as NaiveMapping | null, 0];
    for (let restarted = false; ; restarted = true) {
      if (this.bisects(iommu, request)) {
        if (restarted) this.seen.add('restart whose range bisects');
        if (!restarted || !this.rules.bisectOnRestartSucceeds) throw new Refused('EINVAL');
        break;
      }
      const invalid = iommu.maps.filter((m) => m.invalid).length;
      const stuck = request.invalidates ? this.invalidate(iommu, request, total) : this.pass(op, iommu, request, total);
      if (iommu.maps.filter((m) => m.invalid).length < invalid) this.wakeVaddrWaiters(iommu);
      this.requireThere(op, iommu);
      if (stuck === null) break;
      if (stuck !== last) {
        if (retries > 0) this.seen.add('tries counted anew for another mapping');
        [last, retries] = [stuck, 0];
      } else if (++retries > 10) {
        if (op.notified >= 11) this.seen.add('eleventh notification and BUG');
        this.splat('unmap-retries-exhausted');
        this.kill(op.container);
        throw new Refused('EIO', { notifications: op.notified });
      }
      if (!this.isListening(iommu)) continue;
      yield* this.walk(op, iommu.chain, stuck, retries + 1);
      this.requireThere(op, iommu);
    }
    const warnings = total.size === 0n ? { warnings: ['NOTHING_UNMAPPED'] } : {};
    if (request.bitmap !== null) this.seen.add('unmap reports its bitmap');
    const bitmap = request.bitmap === null ? {} : { bitmap: base64(request.bitmap) };
    return done({ size: total.size % MOD_2_64, notifications: op.notified, ...warnings, ...bitmap });
  }

  /** What the call let go on may have been the last user of the last group. */
  private requireThere(op: NaiveOp, iommu: NaiveIommu): void {
    const container = this.container(op.container);
    if (!container.dead && container.iommu !== iommu) {
      this.splat('use-after-free');
      this.kill(op.container);
    }
    if (container.dead) throw new Refused('EIO');
  }

  /** Removes mappings until one has pins, which is returned, or the loop ends. */
  private pass(op: NaiveOp, iommu: NaiveIommu, request: Request, total: { size: bigint }): NaiveMapping | null {
    for (const m of this.inTurn(iommu, request)) {
      if (this.endsBefore(iommu, m, request)) return null;
      if (m.pins.size > 0) return m;
      if (request.bitmap !== null) this.reportTo(request.bitmap, op, iommu, m, request.start);
      this.remove(iommu, m);
      const announced = [...this.pending.values()].some((other) => other.op !== op && other.iova === m.iova);
      if (announced && op.inside === null) this.seen.add('competing unmap inside a callback');
      total.size += m.size;
    }
    return null;
  }

  /** The log may have been stopped while the listeners were told. */
  private reportTo(bitmap: { bits: bigint }, op: NaiveOp, iommu: NaiveIommu, m: NaiveMapping, base: bigint): void {
    if (m.dirty !== null) {
      bitmap.bits = report(iommu, m, base, bitmap.bits);
      return;
    }
    this.splat('NULL pointer dereference');
    this.kill(op.container);
    throw new Refused('EIO', { notifications: op.notified });
  }

  // The vaddr of a mapping

  /** All of them or none. */
  private invalidate(iommu: NaiveIommu, request: Request, total: { size: bigint }): null {
    const marked: NaiveMapping[] = [];
    for (const m of this.inTurn(iommu, request)) {
      if (this.endsBefore(iommu, m, request)) break;
      if (m.invalid) {
        for (const other of marked) other.invalid = false;
        throw new Refused('EINVAL');
      }
      m.invalid = true;
      marked.push(m);
      total.size += m.size;
    }
    return null;
  }

  protected updateVaddr(iommu: NaiveIommu, c: Of<'map_dma'>, m: NaiveMapping | null): NaiveOutcome {
    if (m === null) throw new Refused('ENOENT');
    if (!m.invalid || m.iova !== c.iova || m.size !== c.size) throw new Refused('EINVAL');
    if (this.memory.live(c.task) !== this.memory.task(m.task).mm) this.seen.add('vaddr of another process');
    if (this.rules.mappingKeepsMm) this.moveTo(m, c.task);
    m.vaddr = c.vaddr;
    m.invalid = false;
    this.wakeVaddrWaiters(iommu);
    return done();
  }

  /** Owner and charge move to the caller. */
  private moveTo(m: NaiveMapping, id: string): void {
    const { leader, cap } = this.memory.task(id);
    const mm = this.memory.live(id);
    if (mm === m.mm) return;
    if (m.charged !== 0) {
      if (this.fails('charge')) throw new Refused('EINTR');
      if (!cap && this.memory.isOver(mm, id, m.charged)) throw new Refused('ENOMEM');
      mm.locked_vm = BigInt.asUintN(64, mm.locked_vm + BigInt(m.charged));
      const old = this.mmOf(m);
      if (old !== null) {
        if (BigInt(m.charged) > old.locked_vm) this.warnOnce('__account_locked_vm', 'pages > locked_vm');
        old.locked_vm = BigInt.asUintN(64, old.locked_vm - BigInt(m.charged));
      }
    }
    Object.assign(m, { task: leader, mm, cap });
  }

  // Dirty log

  protected dirtyPages(c: Of<'dirty_pages'>): NaiveOutcome {
    this.container(c.container);
    if (c.task !== null) this.memory.task(c.task);
    const iommu = this.iommuOf(c.container);
    if (c.task !== null) this.memory.live(c.task);
    if (!this.rules.dirtyLog) throw new Refused('ENOTTY');
    if (iommu.type === 1) throw new Refused('EACCES');
    const argsz = c.argsz ?? (c.range === null ? 8 : 48);
    if (argsz < 8 || ![1, 2, 4].includes(c.flags)) throw new Refused('EINVAL');
    if (c.flags === 4) {
      if (argsz < 48) throw new Refused('EINVAL');
      if (c.range === null) throw new Refused('EFAULT');
      return this.getBitmap(iommu, c.range);
    }
    if (c.flags === 1 && !iommu.tracking) for (const m of iommu.maps) m.dirty = pinnedOf(m);
    if (c.flags === 2) for (const m of iommu.maps) m.dirty = null;
    iommu.tracking = c.flags === 1;
    return done();
  }

  private getBitmap(
    iommu: NaiveIommu,
    { iova, size, pgsize, bitmap_size }: NonNullable<Of<'dirty_pages'>['range']>,
  ): NaiveOutcome {
    if (this.rules.endWraps ? iova + size >= MOD_2_64 : iova + size > MOD_2_64) throw new Refused(this.rules.overflow);
    checkBitmap(size, pgsize, bitmap_size);
    if (pgsize !== PAGE || !isAligned(iova) || !isAligned(size) || !iommu.tracking) throw new Refused('EINVAL');
    const request = { start: iova, size, all: false } as Request;
    if (this.bisects(iommu, request)) throw new Refused('EINVAL');
    let bits = 0n;
    for (const m of iommu.maps) {
      if (m.iova < iova || m.iova >= iova + size) continue;
      bits = report(iommu, m, iova, bits);
      m.dirty = ((m.dirty ?? 0n) & ~onesOf(m)) | pinnedOf(m);
    }
    if (bits !== 0n) this.seen.add('bitmap with a dirty page');
    return done({ bitmap: base64({ bytes: Number(bitmap_size), bits }) });
  }
}

/** Pages with a pin, as dirty bits. One that begins before its mapping has no bit. */
function pinnedOf(m: NaiveMapping): bigint {
  let bits = 0n;
  for (const iova of m.pins.keys()) if (iova >= m.iova) bits |= 1n << ((iova - m.iova) / PAGE);
  return bits;
}

function checkBitmap(size: bigint, pgsize: bigint, bytes: bigint): void {
  if (pgsize === 0n || size / pgsize === 0n || bytes === 0n) throw new Refused('EINVAL');
  if (bytes > 2n ** 28n || bytes < 8n * ((size / pgsize + 63n) / 64n)) throw new Refused('EINVAL');
}

/**
 * The caller's bits with those of one mapping: its own are moved in place to where they belong in their first 64-bit word,
 * take in what the caller has in that word, and overwrite whole words.
 */
function report(iommu: NaiveIommu, m: NaiveMapping, base: bigint, user: bigint): bigint {
  const offset = (m.iova - base) / PAGE;
  const at = 64n * (offset / 64n);
  const shift = offset % 64n;
  const words = (m.size / PAGE + shift + 63n) / 64n;
  const mask = (1n << (64n * words)) - 1n;
  let bits = m.dirty ?? 0n;
  if (iommu.unscoped.size > 0 && m.marked) bits |= onesOf(m);
  const beyond = bits & ~mask;
  let moved = bits & mask;
  if (shift > 0n) moved = ((moved << shift) & mask) | ((user >> at) & WORD);
  m.dirty = beyond | moved;
  return (user & ~(mask << at)) | (moved << at);
}

function base64({ bytes, bits }: { bytes: number; bits: bigint }): string {
  const buffer = Buffer.alloc(bytes);
  for (let i = 0; i < bytes; i++) buffer[i] = Number((bits >> BigInt(8 * i)) & 0xffn);
  return buffer.toString('base64');
}
