// What GETs show of containers, groups, devices, mappings and notifiers. Pure: nothing here changes a host.

import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf, hex, pageNumberOf, sizeOf } from '../lib/u64.ts';
import { DIRTY_BITMAP_SIZE_MAX } from '../limits.ts';
import type { Fields, Value } from '../outcome.ts';
import { type Container, checkExtension as extensionOf, getContainer, readIommu } from '../vfio/container.ts';
import { type Device, getDevice } from '../vfio/device.ts';
import { mappingsOf, type VfioDma } from '../vfio/dma.ts';
import { DOMAIN_PGSIZES } from '../vfio/domain.ts';
import { type Group, getGroup } from '../vfio/group.ts';
import type { Iommu } from '../vfio/iommu.ts';
import { isRegistered, type NotifierBlock } from '../vfio/notifier.ts';
import { blocksOf } from '../vfio/notifier-chain.ts';
import { lowerBound, nextPfn, type PfnSlab } from '../vfio/pfn-list.ts';
import { byId, type Listed, listed } from './page.ts';

const protNames = (prot: number): Value[] => ['READ', 'WRITE'].filter((_, bit) => (prot & (1 << bit)) !== 0);

function showContainer(host: Host, container: Container): Fields {
  const { id, fd_open, groups, iommu, noiommu, dead } = container;
  const types: Record<number, string> = { 1: 'TYPE1', 3: 'TYPE1v2', 6: 'NESTING' };
  return {
    id,
    fd_open,
    iommu_type: noiommu === true ? 'NOIOMMU' : iommu === null ? null : (types[iommu.type] ?? iommu.type),
    dma_avail: host.profile.dmaEntryLimit ? (iommu?.dma_avail ?? null) : null,
    groups: [...groups],
    notifiers: iommu === null ? [] : blocksOf(iommu.notifier),
    dirty_page_tracking: iommu?.dirty_page_tracking ?? false,
    dead: dead === null ? null : { ...dead },
  };
}

export const viewContainer = (host: Host, id: string): Fields => showContainer(host, getContainer(host, id));

export const listContainers = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(
    byId(host.vfio.containers, after),
    limit,
    ({ id }) => id,
    (container) => showContainer(host, container),
  );

/** Sizes of struct vfio_iommu_type1_info: up to iova_pgsizes, and up to cap_offset. */
const INFO_MIN_ARGSZ = 16;
const INFO_ARGSZ = 24;
const INFO_FLAG_PGSIZES = 1;
const INFO_FLAG_CAPS = 2;
/** Sizes of the capabilities by id, header included: 1 iova ranges (without the ranges, 16 bytes each), 2 migration, 3 dma_avail. */
const CAPABILITY_SIZE: Readonly<Record<number, number>> = { 1: 16, 2: 32, 3: 12 };
const RANGE_SIZE = 16;

/** What VFIO_IOMMU_GET_INFO says of page sizes where no IOMMU has a say. */
const ALL_PGSIZES = 0xfffffffffffff000n;

function capabilityOf(iommu: Iommu, id: number): Fields {
  if (id === 2)
    return {
      id,
      version: 1,
      name: 'MIGRATION',
      flags: 0,
      pgsize_bitmap: 0x1000n,
      max_dirty_bitmap_size: DIRTY_BITMAP_SIZE_MAX,
    };
  if (id === 3) return { id, version: 1, name: 'DMA_AVAIL', avail: iommu.dma_avail };
  return {
    id,
    version: 1,
    name: 'IOVA_RANGE',
    iova_ranges: iommu.iova_list.map(({ start, last }) => ({ start, end: last })),
  };
}

/**
 * VFIO_IOMMU_GET_INFO, with the struct's field names. EBADF, EINVAL no iommu; EINVAL argsz below 16. Where argsz does not
 * cover the capability chain, argsz says what would, cap_offset is 0 and the CAPS flag is set all the same.
 */
export function viewInfo(host: Host, id: string, argsz: number): Fields {
  const iommu = readIommu(getContainer(host, id));
  if (argsz < INFO_MIN_ARGSZ) throw new Errno('EINVAL', `argsz ${argsz} is less than ${INFO_MIN_ARGSZ}`);
  const { infoCapabilities, infoCapabilityAlign } = host.profile;
  const ids = infoCapabilities.filter((cap) => cap !== 1 || iommu.iova_list.length > 0);
  const iova_pgsizes = iommu.domain === null ? ALL_PGSIZES : DOMAIN_PGSIZES;
  if (ids.length === 0) return { argsz, flags: INFO_FLAG_PGSIZES, iova_pgsizes, cap_offset: 0, caps: [] };
  let needed = INFO_ARGSZ;
  for (const cap of ids) {
    const size = (CAPABILITY_SIZE[cap] ?? 0) + (cap === 1 ? iommu.iova_list.length * RANGE_SIZE : 0);
    needed += Math.ceil(size / infoCapabilityAlign) * infoCapabilityAlign;
  }
  const fits = argsz >= needed;
  return {
    argsz: fits ? argsz : needed,
    flags: INFO_FLAG_PGSIZES | INFO_FLAG_CAPS,
    iova_pgsizes,
    cap_offset: fits ? INFO_ARGSZ : 0,
    caps: fits ? ids.map((cap) => capabilityOf(iommu, cap)) : [],
  };
}

export const checkExtension = (host: Host, id: string, extension: number): Fields => ({
  ret: extensionOf(host, getContainer(host, id), extension),
});

const showGroup = ({
  id,
  kind,
  reserved,
  aperture,
  fd_open,
  container,
  container_users,
  devices,
  notifier,
}: Group): Fields => ({
  id,
  kind,
  ...(kind === 'iommu' ? { reserved: reserved.map((range) => ({ ...range })), aperture: { ...aperture } } : {}),
  fd_open,
  container,
  container_users,
  devices: [...devices],
  notifiers: blocksOf(notifier),
});

export const viewGroup = (host: Host, id: string): Fields => showGroup(getGroup(host, id));

export const listGroups = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.vfio.groups, after), limit, ({ id }) => id, showGroup);

function showDevice(host: Host, { id, group, open_count }: Device): Fields {
  return {
    id,
    group,
    container: group === null ? null : getGroup(host, group).container,
    open: open_count > 0,
    open_count,
  };
}

export const viewDevice = (host: Host, id: string): Fields => showDevice(host, getDevice(host, id));

export const listDevices = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(
    byId(host.vfio.devices, after),
    limit,
    ({ id }) => id,
    (device) => showDevice(host, device),
  );

function showNotifier(host: Host, block: NotifierBlock): Fields {
  const { id, device, type, priority, delivery } = block;
  const shown: Fields = { ...delivery };
  delete shown.secret;
  return { id, device, type, priority, delivery: shown, registered: isRegistered(host, id) };
}

const notifiersOf = (host: Host, device: string, after: string | null): NotifierBlock[] =>
  byId(host.vfio.notifiers, after).filter((block) => block.device === device);

export function listNotifiers(host: Host, device: string, after: string | null, limit: number): Listed<string> {
  getDevice(host, device);
  return listed(
    notifiersOf(host, device, after),
    limit,
    ({ id }) => id,
    (block) => showNotifier(host, block),
  );
}

export function viewNotifier(host: Host, device: string, id: string): Fields {
  getDevice(host, device);
  const block = host.vfio.notifiers.get(id);
  if (block === undefined || block.device !== device) throw new NoSuchObject('notifier', id);
  return showNotifier(host, block);
}

const showMapping = ({ iova, npage, vaddr, prot, task, pfn_list, vaddr_invalid, iommu_mapped }: VfioDma): Fields => ({
  iova: addressOf(iova),
  size: sizeOf(npage),
  vaddr: addressOf(vaddr),
  prot: protNames(prot),
  task,
  npinned: pfn_list.count,
  vaddr_invalid,
  iommu_mapped,
});

function* mappingsAfter(host: Host, container: string, after: bigint | null): Iterable<VfioDma> {
  const { iommu } = getContainer(host, container);
  if (iommu === null) return;
  for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list))
    if (after === null || addressOf(dma.iova) > after) yield dma;
}

export const listMappings = (host: Host, container: string, after: bigint | null, limit: number): Listed<bigint> =>
  listed(mappingsAfter(host, container, after), limit, ({ iova }) => addressOf(iova), showMapping);

/** The mapping that starts exactly at iova. */
function mappingAt(host: Host, container: string, iova: bigint): VfioDma {
  const { iommu } = getContainer(host, container);
  if (iommu !== null && (iova & 0xfffn) === 0n)
    for (const dma of mappingsOf(host.vfio.dmas, iommu.dma_list)) if (dma.iova === pageNumberOf(iova)) return dma;
  throw new NoSuchObject('mapping', hex(iova));
}

function* recordsFrom(host: Host, dma: VfioDma, after: bigint | null): Iterable<number> {
  const { pfns } = host.vfio;
  const start = after === null ? 0n : after + 1n;
  for (
    let slot = lowerBound(pfns, dma.pfn_list, pageNumberOf(start), Number(start & 0xfffn));
    slot !== 0;
    slot = nextPfn(pfns, slot)
  )
    yield slot;
}

const iovaOf = (pfns: PfnSlab, slot: number): bigint => addressOf(pfns.iova(slot)) + BigInt(pfns.offset(slot));

/** The vfio_pfn records of the mapping that starts at iova, ascending. */
export function listPfns(
  host: Host,
  container: string,
  iova: bigint,
  after: bigint | null,
  limit: number,
): Listed<bigint> {
  const { pfns } = host.vfio;
  const keyOf = (slot: number): bigint => iovaOf(pfns, slot);
  return listed(recordsFrom(host, mappingAt(host, container, iova), after), limit, keyOf, (slot) => ({
    iova: keyOf(slot),
    pfn: pfns.pfn(slot),
    ref_count: pfns.ref_count(slot),
  }));
}

/** The red-black tree of a mapping's records, from the root down to `depth` levels; deeper children are shown as "...". */
export function viewTree(host: Host, container: string, iova: bigint, depth: number): Fields {
  const { pfns } = host.vfio;
  const { links } = pfns;
  const show = (slot: number, level: number): Value => {
    if (slot === 0) return null;
    if (level === 0) return '...';
    return {
      iova: iovaOf(pfns, slot),
      pfn: pfns.pfn(slot),
      ref_count: pfns.ref_count(slot),
      color: links.isRed(slot) ? 'red' : 'black',
      left: show(links.left(slot), level - 1),
      right: show(links.right(slot), level - 1),
    };
  };
  const { pfn_list } = mappingAt(host, container, iova);
  return { count: pfn_list.count, root: show(pfn_list.root, depth) };
}
