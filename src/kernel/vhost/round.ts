// Models handle_tx() of drivers/vhost/net.c, as far as the rings go: map what can be mapped, take buffers, give them back.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64 } from '../lib/base64.ts';
import { pageLock } from '../lock.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { type RingAccess, ringBytes } from './access.ts';
import { AREAS, type Area, beginCall, devOf, getDev, getVq, type VhostDev, vqMutex, vqOf } from './device.ts';
import { prefetchAll } from './maps.ts';
import type { VhostCommand } from './vhost.ts';

/** Where the work of a round stands: what was read or written last. */
type At = 'begin' | 'avail_idx' | 'next' | 'head' | 'desc' | 'used_elem' | 'used_idx';

export type RoundStep =
  /** `left`: buffers still to take; `heads`: those taken. */
  | { do: 'vhost_work'; dev: string; vq: number; at: At; left: number; heads: number[]; copies: number; cleanup?: true }
  /** RFC V2: the worker marks what it has written dirty, and takes the locks of the pages for it. */
  | { do: 'vhost_set_page_dirty_lock'; dev: string; vq: number; cleanup?: true }
  | { do: 'vhost_forget_written'; dev: string; vq: number; cleanup?: true }
  | { do: 'vhost_put'; dev: string; cleanup: true };

const u16 = (bytes: Uint8Array): number => (bytes[0] as number) | ((bytes[1] as number) << 8);
const le16 = (value: number): Uint8Array => Uint8Array.of(value & 0xff, (value >> 8) & 0xff);

/** The steps of a call of the worker, which has the vq's mutex throughout. */
function asWorker(dev: VhostDev, n: number, steps: readonly Step[]): Step[] {
  const lock = vqMutex(dev.id, n);
  return [
    { do: 'lock', lock, mode: 'W' },
    ...steps,
    ...(dev.variant === 'rfc2' ? [{ do: 'vhost_set_page_dirty_lock', dev: dev.id, vq: n } as const] : []),
    { do: 'vhost_leave', cleanup: true },
    { do: 'unlock', lock, cleanup: true },
    { do: 'vhost_put', dev: dev.id, cleanup: true },
  ];
}

/**
 * One round of the worker: maps the areas that are not mapped, then takes every available buffer and gives it back unused.
 * Without a backend it does nothing. Fields: ran, heads, copies (accesses without a map), prefetch.
 * ENODEV. EFAULT: a ring is not there; avail->idx is further ahead than the ring is long. EINVAL: a head beyond the ring.
 */
export function round(host: Host, { dev: id, vq: n, stop_at }: Extract<VhostCommand, { op: 'vhost_round' }>): Done {
  const dev = getDev(host, id);
  const vq = getVq(dev, n);
  if (!vq.backend || dev.mm === null) return { ret: 0, fields: { ran: false, heads: [], copies: 0, prefetch: {} } };
  beginCall(host, dev, stop_at);
  return runOperation(
    host,
    { kind: 'vhost_round', locals: { task: null, mm: dev.mm } },
    asWorker(dev, n, [
      ...prefetchAll(dev, n),
      { do: 'vhost_work', dev: id, vq: n, at: 'begin', left: 0, heads: [], copies: 0 },
    ]),
    stop_at ?? null,
  );
}

/**
 * The worker reads or writes bytes of one area. Fields: through ('map' or 'copy'), data (of a read).
 * ENODEV. EPERM: nobody owns the device. EINVAL: the bytes. EFAULT: not mapped, and the memory is not there.
 */
export function accessRing(host: Host, command: Extract<VhostCommand, { op: 'vhost_access' }>): Done {
  const { dev: id, vq: n, area, off, write, stop_at } = command;
  const dev = getDev(host, id);
  getVq(dev, n);
  if (dev.mm === null) throw new Errno('EPERM', `nobody owns vhost device '${id}'`);
  const access: RingAccess = { dev: id, vq: n, area, off, write, data: ringBytes(dev, n, command) };
  beginCall(host, dev, stop_at);
  return runOperation(
    host,
    { kind: 'vhost_access', locals: { task: null, mm: dev.mm } },
    asWorker(dev, n, [{ do: 'vhost_access', access }]),
    stop_at ?? null,
  );
}

/** What the last access has read. */
const readBytes = ({ thread }: ThreadOperation): Uint8Array => fromBase64(thread.fields.data as string) as Uint8Array;

export const roundSteps: Handlers<RoundStep> = {
  vhost_work(host, operation, { dev: id, vq: n, at, left, heads, copies: before }) {
    const vq = vqOf(host, id, n);
    const copies = before + (operation.thread.fields.through === 'copy' ? 1 : 0);
    const again = (next: At, more: Partial<{ left: number; heads: number[] }> = {}): Step => ({
      do: 'vhost_work',
      dev: id,
      vq: n,
      at: next,
      left,
      heads,
      copies,
      ...more,
    });
    const then = (area: Area, off: number, write: boolean, data: Uint8Array, step: Step): void =>
      pushSteps(operation, [{ do: 'vhost_access', access: { dev: id, vq: n, area, off, write, data } }, step]);
    switch (at) {
      case 'begin':
        then('avail', 2, false, new Uint8Array(2), again('avail_idx'));
        return;
      case 'avail_idx': {
        const ahead = (u16(readBytes(operation)) - vq.last_avail_idx) & 0xffff;
        if (ahead > vq.num)
          throw new Errno('EFAULT', `avail->idx is ${ahead} ahead of ${vq.last_avail_idx}, the ring has ${vq.num}`);
        operation.thread.fields = {};
        pushSteps(operation, [again('next', { left: ahead })]);
        return;
      }
      case 'next':
        operation.thread.fields = {
          ran: true,
          heads,
          copies,
          prefetch: Object.fromEntries(AREAS.map((area) => [area, vq.maps[area] === null ? vq.prefetched[area] : 0])),
        };
        if (left === 0) return;
        then('avail', 4 + 2 * (vq.last_avail_idx % vq.num), false, new Uint8Array(2), again('head'));
        return;
      case 'head': {
        const head = u16(readBytes(operation));
        if (head >= vq.num) throw new Errno('EINVAL', `a head of ${head}, the ring has ${vq.num}`);
        then('desc', 16 * head, false, new Uint8Array(16), again('desc', { heads: [...heads, head] }));
        return;
      }
      case 'desc': {
        const elem = new Uint8Array(8);
        elem.set(le16(heads.at(-1) as number));
        then('used', 4 + 8 * (vq.last_used_idx % vq.num), true, elem, again('used_elem'));
        return;
      }
      case 'used_elem':
        vq.last_avail_idx = (vq.last_avail_idx + 1) & 0xffff;
        vq.last_used_idx = (vq.last_used_idx + 1) & 0xffff;
        then('used', 2, true, le16(vq.last_used_idx), again('used_idx'));
        return;
      case 'used_idx':
        operation.thread.fields = {};
        pushSteps(operation, [{ do: 'vhost_work', dev: id, vq: n, at: 'next', left: left - 1, heads, copies }]);
    }
  },

  vhost_set_page_dirty_lock(host, operation, { dev: id, vq: n }) {
    const map = vqOf(host, id, n).maps.used;
    if (map === null) return;
    pushSteps(operation, [
      ...map.pfns.flatMap((pfn): Step[] => [
        { do: 'lock', lock: pageLock(pfn), mode: 'W' },
        { do: 'set_page_dirty', pfn },
        { do: 'unlock', lock: pageLock(pfn), cleanup: true },
      ]),
      { do: 'vhost_forget_written', dev: id, vq: n },
    ]);
  },

  vhost_forget_written(host, _operation, { dev, vq }) {
    const map = vqOf(host, dev, vq).maps.used;
    if (map !== null) map.written = [];
  },

  vhost_put(host, _operation, { dev }) {
    devOf(host, dev).calls--;
  },
};
