// The VFIO side of a host as sections of plain data, and back.

import { type LinkColumns, RbLinks, type SlotState } from '../lib/rbtree.ts';
import type { HostSection } from '../snapshot.ts';
import type { Container } from './container.ts';
import type { Device } from './device.ts';
import { DmaTable, type VfioDma } from './dma.ts';
import type { Group } from './group.ts';
import type { DeviceLedger, LeakedMapping, LedgerRun } from './ledger.ts';
import type { NotifierBlock, PendingNotification } from './notifier.ts';
import { PfnSlab } from './pfn-list.ts';
import { Vfio } from './vfio.ts';

/** Mappings in one section. */
const DMA_PER_SECTION = 1024;

type Ledger = [string, [number, LedgerRun[]][]][];
type FlatContainer = Omit<Container, 'iommu'> & { iommu: unknown; ledger: Ledger };

interface Objects {
  containers: FlatContainer[];
  groups: Group[];
  devices: Device[];
  notifiers: NotifierBlock[];
  notifications: PendingNotification[];
  next_notification: number;
  next_dma: number;
  dma_slots: SlotState;
  dma_version: number;
  leaked: LeakedMapping[];
}

function flatContainer(container: Container): FlatContainer {
  const { iommu } = container;
  if (iommu === null) return { ...container, iommu: null, ledger: [] };
  const ledger: Ledger = [...iommu.ledger].map(([device, { leaves }]) => [device, [...leaves]]);
  return { ...container, iommu: { ...iommu, ledger: null }, ledger };
}

function fullContainer({ ledger, ...flat }: FlatContainer): Container {
  const container = flat as Container;
  if (container.iommu !== null)
    container.iommu.ledger = new Map(
      ledger.map(([device, leaves]): [string, DeviceLedger] => [device, { leaves: new Map(leaves) }]),
    );
  return container;
}

export function* vfioSections(vfio: Vfio): Iterable<HostSection> {
  const { dmas, pfns } = vfio;
  yield {
    key: 'vfio',
    version: null,
    data: (): Objects => ({
      containers: [...vfio.containers.values()].map(flatContainer),
      groups: [...vfio.groups.values()],
      devices: [...vfio.devices.values()],
      notifiers: [...vfio.notifiers.values()],
      notifications: [...vfio.notifications.values()],
      next_notification: vfio.next_notification,
      next_dma: dmas.next_id,
      dma_slots: dmas.links.slotState(),
      dma_version: dmas.links.stateVersion,
      leaked: vfio.leaked,
    }),
  };
  for (let chunk = 0; chunk < dmas.links.chunkCount; chunk++)
    yield {
      key: `dma-links/${chunk}`,
      version: dmas.links.chunkVersion(chunk),
      data: () => dmas.links.linkColumns(chunk),
    };
  for (let first = 0; first < dmas.records.length; first += DMA_PER_SECTION)
    yield {
      key: `dma/${first}`,
      version: null,
      data: () => dmas.records.slice(first, first + DMA_PER_SECTION).filter((dma) => dma !== undefined),
    };
  for (const section of pfns.sections()) yield { ...section, key: `slab/${section.key}` };
}

export function restoreVfio(data: ReadonlyMap<string, unknown>): Vfio {
  const objects = data.get('vfio') as Objects;
  const links: (LinkColumns & { version: number })[] = [];
  const records: VfioDma[] = [];
  const slab: { key: string; version: number; data: unknown }[] = [];
  for (const [key, section] of data) {
    if (key.startsWith('dma-links/')) links[Number(key.slice(10))] = { ...(section as LinkColumns), version: 0 };
    else if (key.startsWith('dma/')) records.push(...(section as VfioDma[]));
    else if (key.startsWith('slab/')) slab.push({ key: key.slice(5), version: 0, data: section });
  }
  const dmas = new DmaTable(RbLinks.restore(objects.dma_slots, links, objects.dma_version));
  for (const dma of records) dmas.records[dma.slot] = dma;
  dmas.next_id = objects.next_dma;
  const vfio = new Vfio(dmas, PfnSlab.restore(slab));
  for (const container of objects.containers) vfio.containers.set(container.id, fullContainer(container));
  for (const group of objects.groups) vfio.groups.set(group.id, group);
  for (const device of objects.devices) vfio.devices.set(device.id, device);
  for (const notifier of objects.notifiers) vfio.notifiers.set(notifier.id, notifier);
  for (const pending of objects.notifications) vfio.notifications.set(pending.notification.id, pending);
  vfio.next_notification = objects.next_notification;
  vfio.leaked.push(...objects.leaked);
  return vfio;
}
