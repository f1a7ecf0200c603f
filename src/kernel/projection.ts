// The relational rows that show a host to people and SQL: plain rows, in parts that can be replaced one by one.

import type { Host } from './host.ts';
import { CHUNK_SIZE } from './lib/rbtree.ts';
import { addressOf, hex, sizeOf } from './lib/u64.ts';
import { mmOf, threadGroupOf } from './mm/task.ts';
import type { VfioDma } from './vfio/dma.ts';
import { isRegistered } from './vfio/notifier.ts';

export interface TaskRow {
  id: string;
  pid: number;
  mm: string | null;
  thread_of: string | null;
  alive: boolean;
  rlimit_memlock: bigint | null;
  cap_ipc_lock: boolean;
  locked_vm: number | null;
}
export interface ContainerRow {
  id: string;
  iommu_type: string | null;
  dma_avail: number | null;
  dead: string | null;
}
export interface GroupRow {
  id: string;
  kind: string;
  container: string | null;
  open: boolean;
}
export interface DeviceRow {
  id: string;
  group: string | null;
  open: boolean;
}
export interface NotifierRow {
  id: string;
  device: string;
  container: string | null;
  type: number;
  priority: number;
  delivery: string;
  registered: boolean;
}
/** iova, vaddr and size are hex strings: SQL's integers are signed 64 bit. slot is the record's place in the host. */
export interface VfioDmaRow {
  slot: number;
  container: string;
  iova: string;
  vaddr: string;
  size: string;
  prot: number;
  task: string;
  npinned: number;
}
export interface VfioPfnRow {
  slot: number;
  dma_slot: number;
  iova: string;
  pfn: number;
  ref_count: number;
}

/**
 * A part replaces what it covers: 'objects' all tasks, containers, groups, devices and notifiers; 'dma' all vfio_dma rows with
 * first_slot <= slot < end_slot, 'pfn' the same of vfio_pfn.
 */
export type Projection =
  | {
      part: 'objects';
      tasks: TaskRow[];
      containers: ContainerRow[];
      groups: GroupRow[];
      devices: DeviceRow[];
      notifiers: NotifierRow[];
    }
  | { part: 'dma'; first_slot: number; end_slot: number; rows: VfioDmaRow[] }
  | { part: 'pfn'; first_slot: number; end_slot: number; rows: VfioPfnRow[] };

const objectsOf = (host: Host): Projection => ({
  part: 'objects',
  tasks: [...host.mm.tasks.values()].map((task) => {
    const { rlimit_memlock } = threadGroupOf(host, task);
    return {
      id: task.id,
      pid: task.pid,
      mm: task.mm,
      thread_of: task.leader === task.id ? null : task.leader,
      alive: task.mm !== null,
      rlimit_memlock: rlimit_memlock === 'unlimited' ? null : rlimit_memlock,
      cap_ipc_lock: task.cap_ipc_lock,
      locked_vm: mmOf(host, task.id)?.locked_vm ?? null,
    };
  }),
  containers: [...host.vfio.containers.values()].map(({ id, iommu, noiommu, dead }) => ({
    id,
    iommu_type: noiommu === true ? '8' : iommu === null ? null : `${iommu.type}`,
    dma_avail: host.profile.dmaEntryLimit ? (iommu?.dma_avail ?? null) : null,
    dead: dead?.text ?? null,
  })),
  groups: [...host.vfio.groups.values()].map(({ id, kind, container, fd_open }) => ({
    id,
    kind,
    container,
    open: fd_open,
  })),
  devices: [...host.vfio.devices.values()].map(({ id, group, open_count }) => ({ id, group, open: open_count > 0 })),
  notifiers: [...host.vfio.notifiers.values()].map(({ id, device, type, priority, delivery }) => ({
    id,
    device,
    container: host.vfio.groups.get(host.vfio.devices.get(device)?.group ?? '')?.container ?? null,
    type,
    priority,
    delivery: delivery.kind,
    registered: isRegistered(host, id),
  })),
});

const dmaRow = ({ slot, container, iova, vaddr, npage, prot, task, pfn_list }: VfioDma): VfioDmaRow => ({
  slot,
  container,
  iova: hex(addressOf(iova)),
  vaddr: hex(addressOf(vaddr)),
  size: hex(sizeOf(npage)),
  prot,
  task,
  npinned: pfn_list.count,
});

/** The rows of everything that changed after `since` (a seq; -1 for all), as the host is now. */
export const projection = (host: Host, since: number): Projection[] => [...changedParts(host, since)];

function* changedParts(host: Host, since: number): Iterable<Projection> {
  yield objectsOf(host);
  const { dmas, pfns } = host.vfio;
  for (let chunk = 0; chunk < dmas.links.chunkCount; chunk++) {
    if (dmas.links.chunkVersion(chunk) <= since) continue;
    const first_slot = chunk * CHUNK_SIZE;
    const end_slot = first_slot + CHUNK_SIZE;
    const live = dmas.records.slice(first_slot, end_slot).filter((dma) => dma !== undefined);
    yield { part: 'dma', first_slot, end_slot, rows: live.map(dmaRow) };
  }
  for (let chunk = 0; chunk < pfns.chunkCount; chunk++) {
    if (pfns.chunkVersion(chunk) <= since) continue;
    const first_slot = pfns.firstSlot(chunk);
    const rows: VfioPfnRow[] = [];
    for (const slot of pfns.slotsOfChunk(chunk)) {
      const iova = hex(addressOf(pfns.iova(slot)) + BigInt(pfns.offset(slot)));
      rows.push({ slot, dma_slot: pfns.dma(slot), iova, pfn: pfns.pfn(slot), ref_count: pfns.ref_count(slot) });
    }
    yield { part: 'pfn', first_slot, end_slot: first_slot + CHUNK_SIZE, rows };
  }
}
