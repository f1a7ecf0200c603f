// Models vhost_put_used(), vhost_get_avail() and the like: through the kernel's address where there is one, else as a copy.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { addressOf, hex, PAGE_SIZE } from '../lib/u64.ts';
import { MAX_WRITTEN_PAGES } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import { FAULT_FLAG_DEFAULT } from '../mm/fault-flags.ts';
import type { MmStruct } from '../mm/mm.ts';
import { readPage, writePage } from '../mm/page-bytes.ts';
import { PTE_PRESENT, PTE_TYPE_MASK, PTE_WRITE } from '../mm/page-table.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { type Accessor, type Area, devOf, ownerMm, reportOnce, type VhostDev, vqOf } from './device.ts';
import { readerLock } from './maps.ts';

/** Bytes of an area. `data`: what is written, or room for what is read. */
export interface RingAccess {
  dev: string;
  vq: number;
  area: Area;
  off: number;
  write: boolean;
  data: Uint8Array;
}

export type RingAccessStep =
  /** Fields: through, data (of a read). EFAULT: by copy, and the memory is not there. Precondition: the vq's mutex is held. */
  | { do: 'vhost_access'; access: RingAccess; cleanup?: true }
  | { do: 'vhost_look'; access: RingAccess; cleanup?: true }
  | { do: 'vhost_move'; access: RingAccess; cleanup?: true }
  | { do: 'vhost_leave'; cleanup: true }
  | { do: 'vhost_copy_user'; access: RingAccess; cleanup?: true }
  | { do: 'vhost_copied'; access: RingAccess; cleanup?: true };

/** EINVAL: neither or both of length and data, as the direction says; bytes beyond the area. */
export function ringBytes(
  dev: VhostDev,
  n: number,
  { area, off, write, length, data }: { area: Area; off: number; write: boolean; length?: number; data?: string },
): Uint8Array {
  const { size } = (dev.vqs[n] as VhostDev['vqs'][number]).uaddrs[area];
  if ((write ? data : length) === undefined || (write ? length : data) !== undefined)
    throw new Errno('EINVAL', `an access that ${write ? 'writes takes data' : 'reads takes length'}`);
  const bytes = write ? fromBase64(data as string) : new Uint8Array(Math.min(Math.max(length as number, 0), size + 1));
  if (bytes === null || bytes.length === 0 || off < 0 || off + bytes.length > size)
    throw new Errno('EINVAL', `off ${off}: the ${area} area of vq ${n} has ${size} bytes`);
  return bytes;
}

const accessorOf = (dev: VhostDev, { id }: ThreadOperation): Accessor =>
  dev.accessors.findLast(({ operation }) => operation === id) as Accessor;

function answer({ thread }: ThreadOperation, through: string, { write, data }: RingAccess): void {
  thread.fields = { through, ...(write ? {} : { data: toBase64(data) }) };
}

/** What a load or store at a page of a map really meets. */
function checkPage(host: Host, operation: ThreadOperation, dev: VhostDev, accessor: Accessor, i: number): number {
  const { map, area, vq } = accessor;
  const counted = i < map.pfns.length;
  const pfn = map.pfns[i] ?? (map.pfns[0] as number) + i;
  const page = map.page + i;
  const where = `vhost device ${dev.id} vq ${vq} ${area}: page ${pfn} behind ${hex(addressOf(page))}`;
  if (!counted) report(host, operation, 'UNCHECKED_PAGE', `${where} was never looked up`, []);
  if (host.mm.pages.refcount(pfn) === 0) {
    report(host, operation, 'USE_AFTER_FREE', `${where} is free`, []);
    return pfn;
  }
  const mm = ownerMm(host, dev);
  if (mm !== null && counted) checkEntry(host, operation, mm, { page, pfn, write: area === 'used', where });
  return pfn;
}

/** Between a start and its end the entry may differ: whoever is told late, but told, is not to blame. */
function checkEntry(
  host: Host,
  operation: ThreadOperation,
  mm: MmStruct,
  { page, pfn, write, where }: { page: number; pfn: number; write: boolean; where: string },
): void {
  const flags = mm.page_table.flags(page);
  const same = (flags & PTE_TYPE_MASK) === PTE_PRESENT && mm.page_table.pfn(page) === pfn;
  const open = mm.subscriptions?.active.some(({ start, end }) => page >= start && page < end) ?? false;
  if (same && write && (flags & PTE_WRITE) === 0)
    report(host, operation, 'WRITE_TO_PROTECTED', `${where} may not be written any more`, []);
  else if (!same && !open) report(host, operation, 'STALE_SECONDARY', `${where} is not what the page table maps`, []);
}

/** A store is noted in the map, and reported where the dirty mark has come before it. */
function noteWrite(host: Host, operation: ThreadOperation, dev: VhostDev, accessor: Accessor, i: number): void {
  const { map, vq, area, dirtied } = accessor;
  const published = dev.vqs[vq]?.maps[area];
  const current = published?.id === map.id ? published : dev.retired.find((retired) => retired.map.id === map.id)?.map;
  if (dirtied)
    report(
      host,
      operation,
      'WRITE_AFTER_DIRTY',
      `vhost device ${dev.id} vq ${vq} writes page ${map.pfns[i]} after it was marked dirty`,
      [],
    );
  else if (current !== undefined && i < map.pfns.length && !current.written.includes(i)) current.written.push(i);
}

export const ringAccessSteps: Handlers<RingAccessStep> = {
  vhost_access(host, operation, { access }) {
    const dev = devOf(host, access.dev);
    const lock = readerLock(dev, access.vq, operation.id);
    pushSteps(operation, [
      ...(lock === null ? [] : [{ do: 'lock', lock, mode: 'W' } as const]),
      { do: 'vhost_look', access },
    ]);
  },

  vhost_look(host, operation, { access }) {
    const dev = devOf(host, access.dev);
    const lock = readerLock(dev, access.vq, operation.id);
    const unlock: Step[] = lock === null ? [] : [{ do: 'unlock', lock, cleanup: true }];
    const map = vqOf(host, access.dev, access.vq).maps[access.area];
    if (map === null) {
      pushSteps(operation, [...unlock, { do: 'vhost_copy_user', access }]);
      return;
    }
    const { vq, area } = access;
    dev.accessors.push({ operation: operation.id, vq, area, map, revoked: false, dirtied: false });
    pushSteps(operation, [
      { do: 'phase', phase: 'inside_map', fields: { vq, area } },
      { do: 'vhost_move', access },
      ...unlock,
    ]);
  },

  /** Always succeeds: nothing stands between the kernel and what is behind its address. */
  vhost_move(host, operation, { access }) {
    const dev = devOf(host, access.dev);
    const accessor = accessorOf(dev, operation);
    const { map } = accessor;
    if (dev.switches.speculation_barrier === 'none')
      reportOnce(host, operation, dev, 'NO_SPECULATION_BARRIER', `vhost device ${dev.id} reads and writes without one`);
    for (let done = 0; done < access.data.length; ) {
      const at = map.offset + access.off + done;
      const i = Math.floor(at / PAGE_SIZE);
      const part = access.data.subarray(done, done + PAGE_SIZE - (at % PAGE_SIZE));
      const pfn = checkPage(host, operation, dev, accessor, i);
      if (access.write) {
        noteWrite(host, operation, dev, accessor, i);
        if (host.mm.pages.refcount(pfn) > 0 && !writePage(host, pfn, at % PAGE_SIZE, part))
          throw new Errno('ENOMEM', `${MAX_WRITTEN_PAGES} pages hold bytes of their own, the most a host keeps`);
      } else readPage(host, pfn, at % PAGE_SIZE, part);
      done += part.length;
    }
    answer(operation, 'map', access);
    dev.accessors.splice(dev.accessors.indexOf(accessor), 1);
    // A reader that only notices tries again, by copy; what it has touched, it has touched.
    if (accessor.revoked && dev.switches.reader === 'seqlock')
      pushSteps(operation, [{ do: 'vhost_copy_user', access }]);
  },

  vhost_leave(host, operation) {
    for (const dev of host.consumers.vhost.devs.values())
      dev.accessors = dev.accessors.filter((accessor) => accessor.operation !== operation.id);
  },

  /** In the owner's name: it may fault, sleep and fail. */
  vhost_copy_user(host, operation, { access }) {
    const dev = devOf(host, access.dev);
    const mm = ownerMm(host, dev)?.id;
    const { addr } = vqOf(host, access.dev, access.vq).uaddrs[access.area];
    const { write, data, off } = access;
    if (mm === undefined) throw new Errno('EFAULT', `the owner of vhost device '${dev.id}' has exited`);
    pushSteps(operation, [
      {
        do: 'access',
        access: { mm, addr: addr + BigInt(off), write, data, once: false },
        done: 0,
        flags: FAULT_FLAG_DEFAULT,
        faults: 0,
      },
      { do: 'unlock', lock: mmapLock(mm), cleanup: true },
      { do: 'vhost_copied', access },
    ]);
  },

  vhost_copied(_host, operation, { access }) {
    const { fault } = operation.thread.fields;
    if (fault !== 'NOPAGE')
      throw new Errno(
        'EFAULT',
        `the ${access.area} area at ${access.off} can't be ${access.write ? 'written' : 'read'}: ${fault}`,
      );
    answer(operation, 'copy', access);
  },
};
