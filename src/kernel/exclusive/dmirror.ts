// Models the requests of lib/test_hmm.c that are about exclusive pages, and what such a device reads and writes by itself.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { addressOf, hex, PAGE_SIZE, pageNumberOf } from '../lib/u64.ts';
import { MAX_DMA_RW, MAX_WRITTEN_PAGES, TASK_SIZE } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import { readPage, writePage } from '../mm/page-bytes.ts';
import { under } from '../mm/rmap.ts';
import type { Done } from '../outcome.ts';
import type { Handlers } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import {
  callerOf,
  deviceMutex,
  deviceOf,
  getDevice,
  getGrant,
  getOpenDevice,
  mappedWithin,
  requirePages,
} from './device.ts';
import type { ExclusiveCommand } from './exclusive.ts';
import { newGrantId, programGrant, requireRoomForGrant } from './grant.ts';
import { type Asked, makeExclusiveSteps } from './make.ts';

/** Pages that the test driver asks for in one call. */
const CHUNK = 64;

/** What is left of a request. */
interface Chunk {
  device: string;
  page: number;
  end: number;
}

export type DmirrorStep =
  | { do: 'dmirror_chunk'; at: Chunk; cleanup?: true }
  /** Under the device's mutex: nothing is mapped unless GUP has found every page. */
  | { do: 'dmirror_atomic_map'; at: Asked; cleanup?: true }
  /** EBUSY: not every page was mapped, for whatever reason. */
  | { do: 'dmirror_chunk_done'; at: Asked; cleanup: true };

/**
 * HMM_DMIRROR_EXCLUSIVE: maps pages for atomic accesses, 64 at a time, and keeps neither locks nor references. ret: 0.
 * ENODEV. EINVAL, E2BIG: the range. EINVAL: its process has ended. EBUSY: the device; a page was not granted, not found, or could not be mapped. ENOSPC:
 * MAX_EXCLUSIVE_GRANTS.
 */
export function dmirrorExclusive(host: Host, command: Extract<ExclusiveCommand, { op: 'dmirror_exclusive' }>): Done {
  const device = getDevice(host, command.device);
  const { page, npage } = requirePages(command.start, command.length);
  if (!host.mm.mms.has(device.mm)) throw new Errno('EINVAL', `exclusive device '${device.id}': its process has ended`);
  getOpenDevice(host, device.id);
  requireRoomForGrant(host);
  return runOperation(
    host,
    { kind: 'dmirror_exclusive', locals: callerOf(host, device) },
    under([mmapLock(device.mm)], 'R', [{ do: 'dmirror_chunk', at: { device: device.id, page, end: page + npage } }]),
    command.stop_at ?? null,
  );
}

/**
 * HMM_DMIRROR_CHECK_EXCLUSIVE: whether the device has lost its atomic mappings of all pages.
 * ENODEV. EINVAL, E2BIG: the range. EPERM: it has one.
 */
export function checkExclusive(
  host: Host,
  { device: id, start, length }: Extract<ExclusiveCommand, { op: 'check_exclusive' }>,
): Done {
  const device = getDevice(host, id);
  const { page, npage } = requirePages(start, length);
  for (const [mapped, { access }] of mappedWithin(device, { start: page, end: page + npage }))
    if (access === 'atomic')
      throw new Errno('EPERM', `exclusive device '${id}' may still use ${hex(addressOf(mapped))} atomically`);
  return { ret: 0, fields: {} };
}

/** EINVAL: neither or both of length and data, as the direction says. E2BIG: MAX_DMA_RW. EFAULT: beyond TASK_SIZE. */
function bytesOf({ addr, write, length, data }: Extract<ExclusiveCommand, { op: 'device_access' }>): Uint8Array {
  if ((write ? data : length) === undefined || (write ? length : data) !== undefined)
    throw new Errno('EINVAL', `an access that ${write ? 'writes takes data' : 'reads takes length'}`);
  const bytes = write ? fromBase64(data as string) : new Uint8Array(Math.min(length as number, MAX_DMA_RW + 1));
  if (bytes === null || bytes.length === 0) throw new Errno('EINVAL', 'an access of no bytes');
  if (bytes.length > MAX_DMA_RW) throw new Errno('E2BIG', `an access takes ${MAX_DMA_RW} bytes at most`);
  if (addr + BigInt(bytes.length) > TASK_SIZE)
    throw new Errno('EFAULT', `addr ${hex(addr)} + ${bytes.length} bytes is beyond TASK_SIZE ${hex(TASK_SIZE)}`);
  return bytes;
}

/**
 * The device reads or writes memory by itself, through what it has mapped. Fields: data, of a read.
 * ENODEV. EINVAL, E2BIG, EFAULT: the bytes. EFAULT: a page is not mapped for that. ENOMEM: MAX_WRITTEN_PAGES. What comes before a refusal stays
 * written.
 */
export function deviceAccess(host: Host, command: Extract<ExclusiveCommand, { op: 'device_access' }>): Done {
  const { device: id, addr, write } = command;
  const { mappings } = getDevice(host, id);
  const data = bytesOf(command);
  for (let done = 0; done < data.length; ) {
    const at = addr + BigInt(done);
    const offset = Number(at & 0xfffn);
    const part = data.subarray(done, done + PAGE_SIZE - offset);
    const mapping = mappings.get(pageNumberOf(at));
    if (mapping === undefined || (write && mapping.access === 'read'))
      throw new Errno('EFAULT', `exclusive device '${id}' has not mapped ${hex(at)} for ${write ? 'writes' : 'reads'}`);
    const { pfn } = mapping;
    if (!write) readPage(host, pfn, offset, part);
    else if (!writePage(host, pfn, offset, part))
      throw new Errno('ENOMEM', `${MAX_WRITTEN_PAGES} pages hold bytes of their own, the most a host keeps`);
    else host.mm.pages.setDirty(pfn, host.seq);
    done += part.length;
  }
  return { ret: 0, fields: write ? {} : { data: toBase64(data) } };
}

export const dmirrorSteps: Handlers<DmirrorStep> = {
  dmirror_chunk(host, operation, { at: { device: id, page, end } }) {
    operation.thread.ret = 0;
    if (page >= end) return;
    const device = deviceOf(host, id);
    const npage = Math.min(CHUNK, end - page);
    const at: Asked = { device: id, grant: newGrantId(device), mm: device.mm, page, npage };
    pushSteps(operation, [
      ...makeExclusiveSteps(at, [
        { do: 'phase', phase: 'before_insert' },
        { do: 'lock', lock: deviceMutex(id), mode: 'W' },
        { do: 'dmirror_atomic_map', at },
        { do: 'unlock', lock: deviceMutex(id), cleanup: true },
      ]),
      { do: 'dmirror_chunk_done', at, cleanup: true },
      { do: 'dmirror_chunk', at: { device: id, page: page + npage, end } },
    ]);
  },

  /** The driver does not look whether it has collided. */
  dmirror_atomic_map(host, operation, { at }) {
    const device = deviceOf(host, at.device);
    const grant = getGrant(device, at.grant);
    operation.thread.returned = 0;
    if (grant.slots.length === at.npage)
      operation.thread.returned = programGrant(host, operation, device, grant, false);
  },

  dmirror_chunk_done(_host, { thread }, { at }) {
    const { page, npage } = at;
    if (thread.error === null ? thread.returned === npage : thread.error.errno === 'EDEADLK') return;
    const detail = `start ${hex(addressOf(page))}: not all of ${npage} pages were granted`;
    thread.error = { errno: 'EBUSY', detail: thread.error === null ? detail : `${detail}: ${thread.error.detail}` };
  },
};
