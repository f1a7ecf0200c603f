// Models vfio_pci_bar_rw() and vfio_pci_vga_rw(): read() and write() of a region, in accesses of 4, 2 or 1 bytes.

import { Errno } from '../errno.ts';
import { shouldFail } from '../fault-rule.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { hex } from '../lib/u64.ts';
import { MAX_BAR_RW } from '../limits.ts';
import { mmapLock } from '../lock.ts';
import { FAULT_FLAG_DEFAULT } from '../mm/fault-flags.ts';
import type { MmId } from '../mm/mm.ts';
import { requireMm } from '../mm/task.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation } from '../thread.ts';
import {
  barOf,
  CONFIG_REGION,
  getVfioPci,
  isMemoryEnabled,
  memoryLock,
  memoryLockOf,
  ROM_REGION,
  type VfioPciDevice,
  VGA_REGION,
} from './device.ts';
import { setupBarmap } from './mmap.ts';
import { isGated, mmio, VGA_MEMORY, VGA_MEMORY_END } from './mmio.ts';
import { openDevice } from './zap.ts';

export interface RwCommand {
  op: 'vfio_pci_rw';
  device: string;
  region: number;
  write: boolean;
  pos: bigint;
  count: number;
  /** The caller, and its buffer; without a buffer the bytes come with the reply, or from `data`. */
  task?: string;
  buf?: bigint;
  data?: string;
  stop_at?: Phase;
}

/** One call while it runs. */
interface Rw {
  device: string;
  region: number;
  write: boolean;
  pos: number;
  count: number;
  user: { mm: MmId; buf: bigint } | null;
  /** What was read, or is to be written. */
  data: Uint8Array;
  /** Each access takes memory_lock and tests the enable bit. */
  each: boolean;
}

/** `size`: bytes of the access that begins `done` bytes into the call. */
interface Unit {
  rw: Rw;
  done: number;
  size: number;
  cleanup?: true;
}

export type RwStep =
  /** EIO: disabled. */
  | { do: 'vfio_pci_require_enabled'; device: string; cleanup?: true }
  | { do: 'vfio_pci_setup'; device: string; region: number; cleanup?: true }
  | { do: 'vfio_pci_unit'; rw: Rw; done: number; cleanup?: true }
  | ({ do: 'vfio_pci_io' } & Unit)
  /** The user's buffer has been read or written. EFAULT. */
  | ({ do: 'vfio_pci_copied' } & Unit);

/** Ports of VGA, first and one past the last. */
const VGA_PORTS: readonly [number, number][] = [
  [0x3b0, 0x3bc],
  [0x3c0, 0x3e0],
];

/** One past the last byte that a call can reach. EINVAL: there is nothing at the position. */
function endOf(device: VfioPciDevice, region: number, pos: bigint): bigint {
  if (region === VGA_REGION) {
    const ranges = [[VGA_MEMORY, VGA_MEMORY_END] as const, ...VGA_PORTS];
    const range = ranges.find(([start, end]) => pos >= start && pos < end);
    if (!device.spec.vga || range === undefined) throw new Errno('EINVAL', `pos: ${hex(pos)} is nothing of VGA`);
    return BigInt(range[1]);
  }
  const length = region === ROM_REGION ? device.spec.rom?.length : barOf(device, region)?.length;
  if (length === undefined) throw new Errno('EINVAL', `region: ${region}, which ${device.id} has not`);
  if (pos >= length) throw new Errno('EINVAL', `pos: ${hex(pos)} is beyond the region of ${hex(length)}`);
  return length;
}

/** What accesses pass over: the MSI-X table, and the ROM behind its image. */
function windowOf({ spec }: VfioPciDevice, region: number): { start: number; end: number } | null {
  if (region === ROM_REGION && spec.rom !== null)
    return { start: Number(spec.rom.image), end: Number(spec.rom.length) };
  const msix = spec.bars[region]?.msix ?? null;
  return msix === null ? null : { start: Number(msix.offset), end: Number(msix.offset + msix.length) };
}

/** Bytes to write, or as many zeros as are to be read. EINVAL: bytes and buffer; not `count` bytes. */
function bytesOf({ write, count, data, buf }: RwCommand, clamped: number): Uint8Array {
  if ((data === undefined) !== (buf !== undefined || !write))
    throw new Errno('EINVAL', 'data: what is written comes from one of data and buf');
  const bytes = data === undefined ? new Uint8Array(clamped) : fromBase64(data);
  if (data !== undefined && (bytes === null || bytes.length !== count))
    throw new Errno('EINVAL', `data: not the ${count} bytes of count`);
  return (bytes as Uint8Array).slice(0, clamped);
}

/**
 * Reads or writes `count` bytes of a region; a call that reaches beyond its end is cut off there.
 * ENODEV, NOT_FOUND: as getVfioPci(). EINVAL: count below 0. E2BIG: MAX_BAR_RW. EINVAL: no such region; the ROM is written;
 * EINVAL: as endOf() and bytesOf(). ESRCH: the task has exited. EIO: disabled, before or after the errors of the mapping as the
 * profile has it; what was transferred before is not counted. EBUSY, ENOMEM: the region cannot be mapped. EFAULT: the buffer.
 */
function rw(host: Host, command: RwCommand): Done {
  const { op, region, write, pos, count, task, buf, stop_at } = command;
  const device = getVfioPci(host, command.device);
  if (!Number.isSafeInteger(count) || count < 0) throw new Errno('EINVAL', `count: ${count}`);
  if (count > MAX_BAR_RW) throw new Errno('E2BIG', `count: ${count}, the most is ${MAX_BAR_RW}`);
  if (buf !== undefined && task === undefined) throw new Errno('EINVAL', 'buf: whose? there is no task');
  const mm = buf === undefined || task === undefined ? null : requireMm(host, task).id;
  if (count === 0) return { ret: 0, fields: {} };
  if (region === CONFIG_REGION)
    throw new Errno('EOPNOTSUPP', `region: ${region}`, { hint: 'config space has routes of its own' });
  if (region === ROM_REGION && write) throw new Errno('EINVAL', 'region: the ROM cannot be written');
  const end = endOf(device, region, pos);
  const clamped = Math.min(count, Number(end - pos));
  const data = bytesOf(command, clamped);
  const gated = isGated(device, region);
  const whole = gated && host.profile.vfioPciReadLock === 'whole-call';
  const call: Rw = {
    device: device.id,
    region,
    write,
    pos: Number(pos),
    count: clamped,
    user: mm === null || buf === undefined ? null : { mm, buf },
    data,
    each: gated && !whole,
  };
  const locked: Step[] = [
    { do: 'lock', lock: memoryLock(device), mode: 'R' },
    { do: 'vfio_pci_require_enabled', device: device.id },
  ];
  const steps: Step[] = [
    ...(whole ? locked : []),
    { do: 'vfio_pci_setup', device: device.id, region },
    { do: 'vfio_pci_unit', rw: call, done: 0 },
    ...(mm === null ? [] : [{ do: 'unlock', lock: mmapLock(mm), cleanup: true } as const]),
    { do: 'unlock', lock: memoryLock(device), cleanup: true },
  ];
  return runOperation(host, { kind: op, locals: { task: task ?? null, mm } }, steps, stop_at ?? null);
}

export const rwCommands = { vfio_pci_rw: rw };

/** Bytes of the next access: as many of 4, 2, 1 as fit and are aligned. */
function unitSize(off: number, fillable: number): number {
  if (fillable >= 4 && off % 4 === 0) return 4;
  return fillable >= 2 && off % 2 === 0 ? 2 : 1;
}

/** copy_to_user() or copy_from_user() of one unit; a fault of it may take any lock. */
function copySteps({ rw: call, done, size }: Unit): Step[] {
  const { user, write, data } = call;
  if (user === null) return [{ do: 'vfio_pci_copied', rw: call, done, size }];
  const bytes = write ? new Uint8Array(size) : data.slice(done, done + size);
  const access = { mm: user.mm, addr: user.buf + BigInt(done), write: !write, data: bytes, once: false };
  return [
    { do: 'access', access, done: 0, flags: FAULT_FLAG_DEFAULT, faults: 0 },
    { do: 'unlock', lock: mmapLock(user.mm), cleanup: true },
    { do: 'vfio_pci_copied', rw: call, done, size },
  ];
}

/** The access to the device, with its own test of the enable bit where the call makes none. */
const ioSteps = ({ rw: call, done, size }: Unit): Step[] => [
  { do: 'phase', phase: 'before_unit', fields: { pos: call.pos + done, size } },
  ...(call.each
    ? [
        { do: 'lock', lock: memoryLockOf(call.device), mode: 'R' } as const,
        { do: 'vfio_pci_require_enabled', device: call.device } as const,
      ]
    : []),
  { do: 'vfio_pci_io', rw: call, done, size },
];

export const rwSteps: Handlers<RwStep> = {
  vfio_pci_require_enabled(host, _operation, { device }) {
    if (!isMemoryEnabled(host, openDevice(host, device)))
      throw new Errno('EIO', `${device}: its memory is disabled`, { io_error: true });
  },

  vfio_pci_setup(host, _operation, { device: id, region }) {
    if (region === VGA_REGION) return;
    if (region !== ROM_REGION) setupBarmap(host, openDevice(host, id), region);
    else if (shouldFail(host, 'map_rom')) throw new Errno('ENOMEM', `${id}: its ROM cannot be mapped`);
  },

  vfio_pci_unit(host, operation, { rw: call, done }) {
    const { pos, count, write, user, data, region } = call;
    if (done >= count) {
      operation.thread.ret = done;
      operation.thread.fields = write || user !== null ? {} : { data: toBase64(data) };
      return;
    }
    const off = pos + done;
    const left = count - done;
    const excluded = windowOf(openDevice(host, call.device), region);
    if (excluded !== null && off >= excluded.start && off < excluded.end) {
      const size = Math.min(left, excluded.end - off);
      if (!write) data.fill(0xff, done, done + size);
      pushSteps(
        operation,
        write ? [{ do: 'vfio_pci_unit', rw: call, done: done + size }] : copySteps({ rw: call, done, size }),
      );
      return;
    }
    const fillable = excluded !== null && off < excluded.start ? Math.min(left, excluded.start - off) : left;
    const unit = { rw: call, done, size: unitSize(off, fillable) };
    pushSteps(operation, write ? copySteps(unit) : ioSteps(unit));
  },

  vfio_pci_io(host, operation, { rw: call, done, size }) {
    const { region, write, pos, data } = call;
    const device = openDevice(host, call.device);
    mmio(host, operation, device, { region, pos: pos + done, write }, data.subarray(done, done + size));
    const next: Step[] = write
      ? [{ do: 'vfio_pci_unit', rw: call, done: done + size }]
      : copySteps({ rw: call, done, size });
    const unlock: Step = { do: 'unlock', lock: memoryLock(device), cleanup: true };
    pushSteps(operation, call.each ? [unlock, ...next] : next);
  },

  vfio_pci_copied(_host, operation, { rw: call, done, size }) {
    const { user, write, data } = call;
    const { fault, data: read } = operation.thread.fields;
    if (user !== null && fault !== 'NOPAGE')
      throw new Errno('EFAULT', `buf: ${hex(user.buf + BigInt(done))} cannot be reached (${String(fault)})`);
    if (user !== null && write) data.set(fromBase64(String(read)) as Uint8Array, done);
    const unit = { rw: call, done, size };
    pushSteps(operation, write ? ioSteps(unit) : [{ do: 'vfio_pci_unit', rw: call, done: done + size }]);
  },
};
