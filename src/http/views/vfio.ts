// Schemas of what GETs show of containers, groups, devices, mappings and notifiers.

import Type from 'typebox';
import { CInt, Count, closed, Int, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, bug, id, names, object, str } from './fields.ts';

export const Container = object('Container', {
  id,
  fd_open: bool('Whether its file descriptor is open'),
  iommu_type: Nullable(Type.Union([Type.String(), Type.Integer()]), 'null before SET_IOMMU'),
  dma_avail: Nullable(
    Count('Entries'),
    'vfio_dma entries that are left; null where the profile has no limit, or no iommu',
  ),
  groups: names('Attached groups'),
  notifiers: names('Blocks on the notifier chain, in the order in which they are called'),
  dirty_page_tracking: bool('Whether the dirty log runs'),
  dead: Nullable(bug, 'The BUG that killed it'),
});

export const Info = object('IommuInfo', {
  argsz: Count('Bytes that the whole answer takes'),
  flags: Count('1 PGSIZES, 2 CAPS'),
  iova_pgsizes: U64Out('Bitmap of page sizes'),
  cap_offset: Count('Offset of the first capability; 0 where argsz does not cover them'),
  caps: Type.Array(
    Type.Union([
      closed({
        id: Count('Capability'),
        version: Count('Version'),
        name: Type.Literal('MIGRATION'),
        flags: Count('Flags'),
        pgsize_bitmap: U64Out('Page sizes'),
        max_dirty_bitmap_size: U64Out('Bytes'),
      }),
      closed({
        id: Count('Capability'),
        version: Count('Version'),
        name: Type.Literal('DMA_AVAIL'),
        avail: Count('Entries left'),
      }),
      closed({
        id: Count('Capability'),
        version: Count('Version'),
        name: Type.Literal('IOVA_RANGE'),
        iova_ranges: Type.Array(closed({ start: U64Out('First byte'), end: U64Out('Last byte') }), {
          description: 'What may be mapped, ascending',
        }),
      }),
    ]),
    { description: 'Capability chain in order' },
  ),
});

const range = { start: U64Out('First byte'), last: U64Out('Last byte') };

export const Group = object('Group', {
  id,
  kind: Names(['mdev', 'iommu', 'noiommu'], 'Kind'),
  reserved: Type.Optional(Type.Array(closed(range), { description: 'Reserved regions of an iommu group' })),
  aperture: Type.Optional(closed(range, { description: 'Aperture of an iommu group' })),
  fd_open: bool('Whether its file descriptor is open'),
  container: Nullable(Type.String(), 'Container it is bound to'),
  container_users: Count('One for the binding, one for each open device'),
  devices: names('Devices'),
  notifiers: names('Blocks on the group notifier chain'),
});

export const Device = object('Device', {
  id,
  group: Nullable(Type.String(), 'Its group'),
  container: Nullable(Type.String(), 'The container of its group'),
  open: bool('Whether it is open'),
  open_count: Count('Open file descriptors'),
});

const delivery = Type.Union(
  [
    closed({ kind: Type.Literal('poll') }),
    closed({ kind: Type.Literal('webhook'), url: str('Where to') }),
    closed({
      kind: Type.Literal('builtin'),
      behavior: str('Vendor driver'),
      n: Count('Attempt'),
      delay_ms: Count('Milliseconds'),
    }),
  ],
  { description: 'How its handler is called' },
);
export const Notifier = object('Notifier', {
  id,
  device: str('Device it was registered through last'),
  type: Int('0 IOMMU, 1 GROUP'),
  priority: CInt('Higher ones are called first'),
  delivery,
  registered: bool('Whether it is on a chain'),
});

export const Notification = object('Notification', {
  id,
  device: str('Device'),
  notifier: str('Notifier'),
  event: Type.Literal('DMA_UNMAP'),
  iova: U64Out('First byte of the vfio_dma'),
  size: U64Out('Size of the vfio_dma'),
  container: str('Container'),
  attempt: Int('Starts at 1 for each vfio_dma', 1),
  seq: Count('Command that emitted it'),
});

export const Mapping = object('Mapping', {
  iova: U64Out('First byte, device side'),
  size: U64Out('Bytes'),
  vaddr: U64Out('First byte, user side'),
  prot: Type.Array(Names(['READ', 'WRITE'], 'Right')),
  task: str('Task whose mm backs it'),
  npinned: Count('vfio_pfn records'),
  vaddr_invalid: bool('Its vaddr was invalidated by UNMAP_DMA with VADDR'),
  iommu_mapped: bool('Whether an IOMMU maps, and so pins, all of it'),
});

export const PfnRecord = object('PfnRecord', {
  iova: U64Out('Key'),
  pfn: PageFrame('Host page'),
  ref_count: Count('References'),
});

const subtree = Type.Unsafe<unknown>({
  anyOf: [
    { $ref: '#/components/schemas/TreeNode' },
    { type: 'null' },
    { type: 'string', const: '...', description: 'Below the depth asked for' },
  ],
});
export const TreeNode = object('TreeNode', {
  iova: U64Out('Key'),
  pfn: PageFrame('Host page'),
  ref_count: Count('References'),
  color: Names(['red', 'black'], 'Colour'),
  left: subtree,
  right: subtree,
});
export const Tree = object('Tree', {
  count: Count('Records in the tree'),
  root: Nullable(TreeNode, 'null: no record'),
});
