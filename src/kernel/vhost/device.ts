// Models struct vhost_dev and struct vhost_virtqueue, as far as they live with the pages of the rings.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { MAX_VHOST_DEVS, MAX_VHOST_VQS } from '../limits.ts';
import type { LockId } from '../lock.ts';
import type { MmId, MmStruct } from '../mm/mm.ts';
import { endOf, type MmuRange } from '../mm/mmu-notifier/range.ts';
import type { Done } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import { requireRoomToRun, type ThreadOperation } from '../thread.ts';
import { report, type ViolationCode } from '../violation.ts';
import { type Switches, switchesOf, type Variant } from './rules.ts';
import type { VhostCommand } from './vhost.ts';

/** The three areas of a ring. The device writes the used ring alone. */
export const AREAS = ['desc', 'avail', 'used'] as const;
export type Area = (typeof AREAS)[number];

/** Feature bits of a virtqueue that matter to its areas. */
export const VIRTIO_RING_F_EVENT_IDX = 2 ** 29;
export const VIRTIO_F_ACCESS_PLATFORM = 2 ** 33;

/** struct vhost_uaddr. */
export interface Uaddr {
  addr: bigint;
  size: number;
  write: boolean;
}

/** struct vhost_map: the kernel's address of an area, of which it holds no page. */
export interface VhostMap {
  /** Tells maps apart that come one after the other. */
  id: number;
  kva: bigint;
  /** First page of the area in the address space of the owner. */
  page: number;
  /** Where the area begins in its first page. */
  offset: number;
  pfns: number[];
  /** Pages written since the map was made, by their index. */
  written: number[];
}

/** struct vhost_virtqueue. */
export interface Vq {
  num: number;
  desc: bigint;
  avail: bigint;
  used: bigint;
  log: boolean;
  /** It is attached to a backend (private_data). */
  backend: boolean;
  last_avail_idx: number;
  last_used_idx: number;
  uaddrs: Record<Area, Uaddr>;
  maps: Record<Area, VhostMap | null>;
  invalidate_count: number;
  /** What the last attempt to map each area came to: 0 or an error; null: there was none since the area was set. */
  prefetched: Record<Area, number | null>;
  /** It has been reported that invalidate_count is wrong. */
  drifted: boolean;
}

/** A thread that reads or writes through a map. */
export interface Accessor {
  operation: string;
  vq: number;
  area: Area;
  map: VhostMap;
  /** The map is not published any more; its pages have been marked dirty. */
  revoked: boolean;
  dirtied: boolean;
}

/** A map that is not published any more, and that its revoker has still to free. */
export interface Retired {
  by: string;
  vq: number;
  area: Area;
  map: VhostMap;
}

/** An invalidation between its start and its end, with what counts in invalidate_count because of it. */
export interface OpenRange {
  operation: string;
  start: number;
  end: number;
  hits: { vq: number; area: Area }[];
}

/** struct vhost_dev. */
export interface VhostDev {
  id: string;
  variant: Variant;
  switched: Partial<Switches>;
  switches: Switches;
  features: number;
  /** The address space of its owner; null before set_owner. */
  mm: MmId | null;
  /** Its notifier; null while none is registered. */
  notifier: string | null;
  vqs: Vq[];
  accessors: Accessor[];
  retired: Retired[];
  open: OpenRange[];
  next_map: number;
  /** Calls under way: whoever makes one has the device open. */
  calls: number;
  /** It is being closed. */
  closing: boolean;
  /** Structures of maps that nobody can free any more. */
  leaked_maps: number;
  /** What has been reported of it once and for all. */
  reported: ViolationCode[];
}

export interface VhostState {
  devs: Map<string, VhostDev>;
}

export const vqMutex = (dev: string, vq: number): LockId => `mutex:vq:${dev}:${vq}`;
export const mmuLock = (dev: string, vq: number): LockId => `spinlock:vhost_mmu_lock:${dev}:${vq}`;

export function getDev(host: Host, id: string): VhostDev {
  if (!host.profile.vhostMetadata)
    throw new Errno('ENODEV', `vhost of ${host.profile.release} maps no metadata of rings`);
  const dev = host.consumers.vhost.devs.get(id);
  if (dev === undefined) throw new NoSuchObject('vhost device', id);
  if (dev.closing) throw new Errno('EBADF', `vhost device '${id}' is being closed`);
  return dev;
}

/** The device of a call that is under way, or of a notifier: it is there until they have ended. */
export const devOf = (host: Host, id: string): VhostDev => host.consumers.vhost.devs.get(id) as VhostDev;
export const vqOf = (host: Host, id: string, n: number): Vq => devOf(host, id).vqs[n] as Vq;

export function getVq(dev: VhostDev, n: number): Vq {
  const vq = dev.vqs[n];
  if (vq === undefined) throw new NoSuchObject(`virtqueue of vhost device '${dev.id}'`, String(n));
  return vq;
}

/** The owner's address space; null where nobody owns the device, or nothing keeps it any more. */
export const ownerMm = ({ mm: memory }: Host, { mm }: VhostDev): MmStruct | null =>
  mm === null ? null : (memory.mms.get(mm) ?? memory.zombies.get(mm) ?? null);

/** A call of the device begins; `vhost_put` ends it. EBUSY: MAX_PARKED_OPERATIONS. */
export function beginCall(host: Host, dev: VhostDev, stop_at: Phase | undefined): void {
  requireRoomToRun(host, stop_at ?? null);
  dev.calls++;
}

const hasFeature = ({ features }: VhostDev, bit: number): boolean => Math.floor(features / bit) % 2 === 1;

/** Whether the addresses of its rings are translated by a device IOTLB: then nothing is mapped. */
export const hasIotlb = (dev: VhostDev): boolean => hasFeature(dev, VIRTIO_F_ACCESS_PLATFORM);

/** vhost_get_desc_size(), vhost_get_avail_size() and vhost_get_used_size(). */
export function areaSize(dev: VhostDev, area: Area, num: number): number {
  if (area === 'desc') return 16 * num;
  const event = hasFeature(dev, VIRTIO_RING_F_EVENT_IDX) ? 2 : 0;
  return (area === 'avail' ? 4 + 2 * num : 4 + 8 * num) + event;
}

/** vhost_setup_vq_uaddr(): where the areas are now. */
export function setupUaddrs(dev: VhostDev, vq: Vq): void {
  for (const area of AREAS)
    vq.uaddrs[area] = { addr: vq[area], size: areaSize(dev, area, vq.num), write: area === 'used' };
}

/** vhost_map_range_overlap(): a range that ends where an area begins counts as a hit. */
export const overlaps = ({ addr, size }: Uaddr, range: { start: number; end: number }): boolean =>
  size > 0 && endOf(range) >= addr && addressOf(range.start) <= addr + BigInt(size) - 1n;

/** What a range hits, as [vq, area]. */
export const hitsOf = (dev: VhostDev, range: Pick<MmuRange, 'start' | 'end'>): [number, Area][] =>
  dev.vqs.flatMap(({ uaddrs }, n) =>
    AREAS.filter((area) => overlaps(uaddrs[area], range)).map((area): [number, Area] => [n, area]),
  );

/** A defect of the code, not of its state: said once of each device. */
export function reportOnce(
  host: Host,
  operation: ThreadOperation,
  dev: VhostDev,
  code: ViolationCode,
  text: string,
): void {
  if (dev.reported.includes(code)) return;
  dev.reported.push(code);
  report(host, operation, code, text, []);
}

const noArea = (area: Area): Uaddr => ({ addr: 0n, size: 0, write: area === 'used' });

const newVq = (): Vq => ({
  num: 0,
  desc: 0n,
  avail: 0n,
  used: 0n,
  log: false,
  backend: false,
  last_avail_idx: 0,
  last_used_idx: 0,
  uaddrs: { desc: noArea('desc'), avail: noArea('avail'), used: noArea('used') },
  maps: { desc: null, avail: null, used: null },
  invalidate_count: 0,
  prefetched: { desc: null, avail: null, used: null },
  drifted: false,
});

/** As it was when it was opened. */
export function resetDev(dev: VhostDev): void {
  dev.mm = null;
  dev.features = 0;
  dev.open = [];
  dev.vqs = dev.vqs.map(newVq);
}

function isSame(dev: VhostDev, { variant, nvqs, switches }: Extract<VhostCommand, { op: 'put_vhost_dev' }>): boolean {
  const wanted = switchesOf(variant, switches);
  const equal = (Object.keys(wanted) as (keyof Switches)[]).every((name) => wanted[name] === dev.switches[name]);
  return dev.variant === variant && dev.vqs.length === nvqs && equal;
}

/**
 * Opens a vhost device that nobody owns yet.
 * ENODEV: the profile has none. EOPNOTSUPP: `rfc2` where notifiers have no invalidate_range. EINVAL: nvqs. EEXIST: opened with
 * another body. ENOSPC: MAX_VHOST_DEVS.
 */
export function putVhostDev(host: Host, command: Extract<VhostCommand, { op: 'put_vhost_dev' }>): Done {
  const { dev: id, variant, nvqs, switches } = command;
  const { profile, consumers } = host;
  const { devs } = consumers.vhost;
  if (!profile.vhostMetadata) throw new Errno('ENODEV', `vhost of ${profile.release} maps no metadata of rings`);
  if (variant === 'rfc2' && !profile.invalidateRangeCallback)
    throw new Errno('EOPNOTSUPP', `variant 'rfc2': notifiers of ${profile.release} have no invalidate_range`);
  if (!Number.isSafeInteger(nvqs) || nvqs < 1 || nvqs > MAX_VHOST_VQS)
    throw new Errno('EINVAL', `nvqs: ${nvqs} is not between 1 and ${MAX_VHOST_VQS}`);
  const made = devs.get(id);
  if (made !== undefined) {
    if (!isSame(made, command)) throw new Errno('EEXIST', `vhost device '${id}' is open with another body`);
    return { ret: 0, created: false, fields: { id } };
  }
  if (devs.size >= MAX_VHOST_DEVS)
    throw new Errno('ENOSPC', `vhost devices: the host has ${MAX_VHOST_DEVS}, the most it can hold`);
  devs.set(id, {
    id,
    variant,
    switched: { ...switches },
    switches: switchesOf(variant, switches),
    features: 0,
    mm: null,
    notifier: null,
    vqs: Array.from({ length: nvqs }, newVq),
    accessors: [],
    retired: [],
    open: [],
    next_map: 1,
    calls: 0,
    closing: false,
    leaked_maps: 0,
    reported: [],
  });
  return { ret: 0, created: true, fields: { id } };
}
