// Models vhost_invalidate_range_start() and _end(), and vhost_invalidate_range() of the RFC: maps go before their pages do.

import type { ConsumerCallback } from '../consumer.ts';
import { ERRNO } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex } from '../lib/u64.ts';
import type { CallbackFrame } from '../mm/mmu-notifier/call.ts';
import type { MmuRange } from '../mm/mmu-notifier/range.ts';
import type { CallbackName, MmuNotifier } from '../mm/mmu-notifier/subscriptions.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { type Area, devOf, hitsOf, type OpenRange, overlaps, type VhostDev, vqMutex, vqOf } from './device.ts';
import { dirtyMap, underMmuLock, unpublish } from './maps.ts';

export type CallbackStep =
  | { do: 'vhost_start'; dev: string; range: MmuRange; cleanup?: true }
  | { do: 'vhost_revoke'; dev: string; vq: number; area: Area; range: MmuRange; cleanup?: true }
  | { do: 'vhost_started'; dev: string; range: MmuRange; cleanup?: true }
  | { do: 'vhost_end'; dev: string; range: MmuRange; cleanup?: true }
  | { do: 'vhost_count_down'; dev: string; vq: number; range: MmuRange; cleanup?: true }
  | { do: 'vhost_ended'; dev: string; range: MmuRange; cleanup?: true }
  | { do: 'vhost_invalidate_range'; dev: string; range: MmuRange; cleanup?: true }
  | { do: 'vhost_vunmap'; dev: string; vq: number; range: MmuRange; cleanup?: true };

/** What the notifier of a device has. None has `release`: the device keeps its mm alive until it is closed. */
export const callbacksOfVariant = ({ variant }: VhostDev): CallbackName[] =>
  variant === 'rfc2' ? ['invalidate_range'] : ['invalidate_range_start', 'invalidate_range_end'];

const devIdOf = ({ handler }: MmuNotifier): string => (handler.kind === 'consumer' ? handler.of : '');

const ofRange =
  (name: 'vhost_start' | 'vhost_end' | 'vhost_invalidate_range'): ConsumerCallback =>
  (_host: Host, _operation: ThreadOperation, notifier: MmuNotifier, { range }: CallbackFrame): Step[] => [
    { do: name, dev: devIdOf(notifier), range: range as MmuRange },
  ];

export const vhostCallbacks: Partial<Record<CallbackName, ConsumerCallback>> = {
  invalidate_range_start: ofRange('vhost_start'),
  invalidate_range_end: ofRange('vhost_end'),
  invalidate_range: ofRange('vhost_invalidate_range'),
};

const openOf = (dev: VhostDev, { id }: ThreadOperation, { start, end }: MmuRange): OpenRange | undefined =>
  dev.open.findLast((open) => open.operation === id && open.start === start && open.end === end);

const hits = (open: OpenRange, vq: number, area: Area): boolean =>
  open.hits.some((hit) => hit.vq === vq && hit.area === area);

/** The areas of a vq have moved: what is open counts where it hits them now. */
export function recount(dev: VhostDev, n: number): void {
  const vq = dev.vqs[n];
  if (vq === undefined) return;
  for (const open of dev.open)
    open.hits = [
      ...open.hits.filter((hit) => hit.vq !== n),
      ...hitsOf(dev, open).flatMap(([vqHit, area]) => (vqHit === n ? [{ vq: n, area }] : [])),
    ];
  vq.invalidate_count = dev.open.flatMap((open) => open.hits).filter((hit) => hit.vq === n).length;
}

export const callbackSteps: Handlers<CallbackStep> = {
  /** EAGAIN: the range may not block. */
  vhost_start(host, operation, { dev: id, range }) {
    const dev = devOf(host, id);
    const { blockable_check, count } = dev.switches;
    const hit = hitsOf(dev, range);
    if (!range.blockable && (blockable_check === 'always' || (blockable_check === 'overlap_first' && hit.length > 0))) {
      if (hit.length === 0)
        report(
          host,
          operation,
          'NEEDLESS_EAGAIN',
          `vhost device ${id} refuses a range that hits none of its areas`,
          [],
        );
      operation.thread.returned = -ERRNO.EAGAIN;
      return;
    }
    if (count === 'recorded') dev.open.push({ operation: operation.id, start: range.start, end: range.end, hits: [] });
    pushSteps(operation, [
      ...hit.flatMap(([vq, area]) => [
        ...underMmuLock(dev, vq, [{ do: 'vhost_revoke', dev: id, vq, area, range }]),
        { do: 'vhost_retire', dev: id, vq, in_callback: true } as const,
      ]),
      { do: 'vhost_started', dev: id, range },
    ]);
  },

  vhost_revoke(host, operation, { dev: id, vq: n, area, range }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    const { count, dirty_mark } = dev.switches;
    if (count === 'recorded') {
      const open = openOf(dev, operation, range);
      const isNew = open !== undefined && !hits(open, n, area) && overlaps(vq.uaddrs[area], range);
      if (isNew) open.hits.push({ vq: n, area });
      if (isNew) vq.invalidate_count++;
    } else vq.invalidate_count++;
    const map = vq.maps[area];
    if (map === null) return;
    if (area === 'used' && dirty_mark === 'before_readers') dirtyMap(host, operation, dev, map);
    unpublish(host, operation, dev, { vq: n, area });
  },

  /** Whoever is still inside a map of the range would touch pages that the caller takes away now. */
  vhost_started(host, operation, { dev: id, range }) {
    operation.thread.returned = 0;
    for (const { operation: inside, area, map, revoked } of devOf(host, id).accessors)
      if (revoked && map.page < range.end && map.page + map.pfns.length > range.start)
        report(
          host,
          operation,
          'ACCESSOR_IN_REVOKED_MAP',
          `${inside} is inside the ${area} map of vhost device ${id} at ${hex(addressOf(map.page))} when the start returns`,
          [],
        );
  },

  vhost_end(host, operation, { dev: id, range }) {
    const dev = devOf(host, id);
    const vqs =
      dev.switches.count === 'recorded'
        ? [...new Set(openOf(dev, operation, range)?.hits.map(({ vq }) => vq) ?? [])]
        : hitsOf(dev, range).map(([vq]) => vq);
    pushSteps(operation, [
      ...vqs.flatMap((vq) => underMmuLock(dev, vq, [{ do: 'vhost_count_down', dev: id, vq, range }])),
      { do: 'vhost_ended', dev: id, range },
    ]);
  },

  vhost_count_down(host, operation, { dev: id, vq: n, range }) {
    const dev = devOf(host, id);
    const vq = vqOf(host, id, n);
    const open = dev.switches.count === 'recorded' ? openOf(dev, operation, range) : undefined;
    vq.invalidate_count -= open === undefined ? 1 : open.hits.filter((hit) => hit.vq === n).length;
    if (open !== undefined) open.hits = open.hits.filter((hit) => hit.vq !== n);
    if (vq.invalidate_count < 0) reportDrift(host, operation, dev, n, 'an end has found nothing to take back');
  },

  vhost_ended(host, operation, { dev: id, range }) {
    const dev = devOf(host, id);
    const open = openOf(dev, operation, range);
    if (open !== undefined) dev.open.splice(dev.open.indexOf(open), 1);
  },

  vhost_invalidate_range(host, operation, { dev: id, range }) {
    const vqs = [...new Set(hitsOf(devOf(host, id), range).map(([vq]) => vq))];
    pushSteps(
      operation,
      vqs.flatMap((vq): Step[] => [
        { do: 'lock', lock: vqMutex(id, vq), mode: 'W' },
        { do: 'vhost_vunmap', dev: id, vq, range },
        { do: 'vhost_retire', dev: id, vq, in_callback: true },
        { do: 'unlock', lock: vqMutex(id, vq), cleanup: true },
      ]),
    );
  },

  vhost_vunmap(host, operation, { dev: id, vq, range }) {
    const dev = devOf(host, id);
    for (const [n, area] of hitsOf(dev, range)) if (n === vq) unpublish(host, operation, dev, { vq, area });
  },
};

export function reportDrift(host: Host, operation: ThreadOperation, dev: VhostDev, n: number, why: string): void {
  const vq = dev.vqs[n];
  if (vq === undefined || vq.drifted) return;
  vq.drifted = true;
  const text = `invalidate_count of vhost device ${dev.id} vq ${n} is ${vq.invalidate_count}: ${why}`;
  report(host, operation, 'COUNTER_DRIFT', text, []);
}
