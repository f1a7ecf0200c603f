// Schemas of what GETs show, with the kernel's spelling.

import Type, { type TProperties } from 'typebox';
import { PROFILE_NAMES } from '../kernel/profile.ts';
import { CInt, closed, Count, Int, Names, Nullable, PageFrame, U64Out } from './schema.ts';

const id = Type.String({ description: 'Id' });
const names = (description: string) => Type.Array(Type.String(), { description });
const bool = (description: string) => Type.Boolean({ description });
const str = (description: string) => Type.String({ description });
const at = Int('Milliseconds since the epoch', 0);
const object = <P extends TProperties>(title: string, properties: P) => closed(properties, { title });

const bug = closed({ text: str('What the BUG says'), where: str('Kernel function'), seq: Count('Command that hit it'), at });

export const TaskFields = {
  id,
  pid: Count('Process id'),
  mm: Nullable(Type.String(), 'Address space; null once the task has exited'),
  thread_of: Nullable(Type.String(), 'Task whose thread it is'),
  alive: bool('Whether it has not exited'),
  rlimit_memlock: Type.Union([Type.Literal('unlimited'), U64Out('Bytes')], { description: 'RLIMIT_MEMLOCK' }),
  cap_ipc_lock: bool('CAP_IPC_LOCK'),
  locked_vm: Nullable(Int('Pages'), 'Pages charged to the mm'),
  VmLck: Nullable(Int('kB'), 'As in /proc/PID/status, in kB'),
  VmPin: Nullable(Int('kB'), 'As in /proc/PID/status, in kB'),
  VmRSS: Nullable(Int('kB'), 'As in /proc/PID/status, in kB'),
};
export const Task = object('Task', TaskFields);

export const Area = object('Area', {
  addr: U64Out('First byte'),
  length: U64Out('Bytes'),
  prot: names('Rights'),
  flags: names('VM_ flags without their prefix'),
  backing: Type.Union(
    [
      closed({ kind: Type.Literal('anon') }),
      closed({ kind: Type.Literal('file'), file: str('File'), pgoff: Int('Page of the file at addr'), shared: bool('MAP_SHARED') }),
      closed({ kind: Names(['pfnmap', 'pages'], 'Explicit layout'), pfn: PageFrame('Host page at addr') }),
    ],
    { description: 'What lies behind it' },
  ),
});

export const TaskPage = object('TaskPage', {
  addr: U64Out('First byte'),
  pfn: Nullable(PageFrame('Host page'), 'null: not present'),
  present: bool('Whether the page table has it'),
  writable: bool('Whether the entry may be written'),
  ref_count: Int('Raw counter, bias of pins included from 5.8 on'),
  pin_count: Count('Pins'),
  dirty: bool('Whether a pin was released with the dirty mark'),
});

export const Page = object('Page', {
  pfn: PageFrame('Host page'),
  kind: Names(['normal', 'reserved', 'zero', 'device'], 'What it is'),
  struct_page: bool('Whether it has a struct page'),
  mapping: Nullable(Names(['anon', 'file'], 'Kind'), 'What it is a page of'),
  ref_count: Int('Raw counter, bias of pins included from 5.8 on'),
  mapcount: Count('Page-table entries that map it'),
  pin_count: Count('Pins'),
  dirty: bool('Whether a pin was released with the dirty mark'),
});

export const Container = object('Container', {
  id,
  fd_open: bool('Whether its file descriptor is open'),
  iommu_type: Nullable(Type.Union([Type.String(), Type.Integer()]), 'null before SET_IOMMU'),
  dma_avail: Nullable(Count('Entries'), 'vfio_dma entries that are left'),
  groups: names('Attached groups'),
  notifiers: names('Blocks on the notifier chain, in the order in which they are called'),
  dead: Nullable(bug, 'The BUG that killed it'),
});

export const Info = object('IommuInfo', {
  argsz: Count('Bytes that the whole answer takes'),
  flags: Count('1 PGSIZES, 2 CAPS'),
  iova_pgsizes: U64Out('Bitmap of page sizes'),
  cap_offset: Count('Offset of the first capability; 0 where argsz does not cover them'),
  caps: Type.Array(
    Type.Union([
      closed({ id: Count('Capability'), version: Count('Version'), name: Type.Literal('MIGRATION'), flags: Count('Flags'), pgsize_bitmap: U64Out('Page sizes'), max_dirty_bitmap_size: U64Out('Bytes') }),
      closed({ id: Count('Capability'), version: Count('Version'), name: Type.Literal('DMA_AVAIL'), avail: Count('Entries left') }),
    ]),
    { description: 'Capability chain in order' },
  ),
});

export const Group = object('Group', {
  id,
  kind: Names(['mdev'], 'Kind'),
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
    closed({ kind: Type.Literal('builtin'), behavior: str('Vendor driver'), n: Count('Attempt'), delay_ms: Count('Milliseconds') }),
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
});

export const PfnRecord = object('PfnRecord', { iova: U64Out('Key'), pfn: PageFrame('Host page'), ref_count: Count('References') });

const subtree = Type.Unsafe<unknown>({
  anyOf: [{ $ref: '#/components/schemas/TreeNode' }, { type: 'null' }, { type: 'string', const: '...', description: 'Below the depth asked for' }],
});
export const TreeNode = object('TreeNode', {
  iova: U64Out('Key'),
  pfn: PageFrame('Host page'),
  ref_count: Count('References'),
  color: Names(['red', 'black'], 'Colour'),
  left: subtree,
  right: subtree,
});
export const Tree = object('Tree', { count: Count('Records in the tree'), root: Nullable(TreeNode, 'null: no record') });

const Problem = Type.Unsafe<unknown>({ $ref: '#/components/schemas/Problem' });

const operationFields = {
  id,
  kind: str('Command that started it'),
  state: Names(['running', 'stopped', 'blocked', 'done'], 'State'),
  phase: str('Where it is'),
  blocked_on: Nullable(Type.String(), 'What it waits for, `<kind of thing>:<id>`'),
  container: str('Container it works on'),
  seq: Count('Command that started it'),
  at,
  request_id: str('Request that started it'),
  finished_seq: Nullable(Count('Command'), 'Command that finished it'),
  result: Type.Optional(Nullable(Type.Object({ ret: Int('Return value') }, { additionalProperties: true }), 'What its command returned; null while it runs')),
  problem: Type.Optional(Problem),
};
export const OperationView = object('Operation', operationFields);

const { id: _id, kind, seq, ...mayBeGone } = operationFields;
/** Reply to a command that waits while its client does not. */
export const Accepted = object('Accepted', { ret: Int('0 while it waits'), id, kind, seq, ...Type.Partial(Type.Object(mayBeGone)).properties });
export const operationExample = {
  id: 'unmap_dma-7',
  kind: 'unmap_dma',
  state: 'blocked',
  phase: 'notify',
  blocked_on: 'notification:notification-1',
  container: 'vfio0',
  seq: 7,
  at: 1700000000000,
  request_id: 'c9a1',
  finished_seq: null,
  result: null,
};

const hostOptions = {
  profile: Names(PROFILE_NAMES, 'Kernel it behaves as'),
  template: Names(['empty', 'default'], 'What it was made with'),
  dma_entry_limit: Count('Module parameter of type1: vfio_dma entries of an iommu object'),
  notifier_timeout_ms: Count('Time that a poll or webhook handler has'),
  total_pages: Count('Host pages'),
  fixes: names('Fixes on top of the profile'),
  ttl_s: Nullable(Count('Seconds'), 'An untouched host is deleted after this time'),
};
export const HostOptionsFields = hostOptions;

/** Fields that only a host in memory can fill are null for one that is quarantined or recovering. */
export const HostFields = {
  id,
  ...Type.Partial(Type.Object(hostOptions)).properties,
  release: Nullable(Type.String(), 'Kernel release that splats name'),
  created_at: Type.Optional(at),
  seq: Nullable(Count('Position'), 'Position of the last command in its journal'),
  state: Names(['alive', 'dead', 'recovering', 'quarantined'], 'State'),
  dead: Nullable(bug, 'The BUG of mm that killed it'),
  counters: Nullable(
    closed({
      tasks: Count('Tasks'),
      containers: Count('Containers'),
      groups: Count('Groups'),
      devices: Count('Devices'),
      notifiers: Count('Notifier blocks'),
      mappings: Count('vfio_dma entries'),
      pinned_records: Count('vfio_pfn records'),
      pinned_pages: Count('Pinned host pages'),
      operations_waiting: Count('Operations that have not finished'),
    }),
    'What it holds',
  ),
  quarantined: Nullable(closed({ reason: str('Why'), revision: Count('Semantics revision that wrote its journal') }), 'Why it is not served'),
};
export const HostView = object('Host', HostFields);

const pinSource = closed({ seq: Count('Command'), request_id: str('Request') });
const Leak = object('Leak', {
  device: str('Device that pinned'),
  container: str('Container'),
  iova: U64Out('First byte'),
  size: U64Out('Bytes'),
  npage: Count('Pages'),
  references: Count('References left of each page'),
  first_pin: pinSource,
  last_pin: pinSource,
  notified: bool('Whether a notifier of the device had run since'),
  state: Names(['pinned', 'leaked'], 'leaked: the mapping is gone, the pages stay pinned'),
  leaked_seq: Nullable(Count('Command'), 'Command that removed the mapping'),
  warn: str('The WARN that the kernel would print'),
});
export const LeakFields = {
  items: Nullable(Type.Array(Leak), 'Per device and iova range; null where the host can not be looked into'),
  references: Nullable(Count('References'), 'References left in all'),
};
export const Leaks = object('Leaks', LeakFields);

export const Invariants = object('Invariants', { ok: bool('Whether all hold'), violations: names('What does not, in words') });

export const DmesgEntry = object('DmesgEntry', {
  n: Int('Own counter', 1),
  seq: Count('Command that logged it'),
  at,
  level: Names(['emerg', 'err', 'warning', 'notice', 'info'], 'Level'),
  text: str('The line, or a splat of several'),
  kind: Nullable(Names(['WARN', 'BUG', 'DEADLOCK'], 'Kind'), 'null: an ordinary line'),
  where: Nullable(Type.String(), 'Kernel function that raised it'),
  request_id: str('Request that caused it'),
});

/** Further fields depend on the event. */
export const TraceEntry = Type.Object(
  {
    n: Int('Own counter', 1),
    seq: Count('Command'),
    at,
    request_id: str('Request'),
    event: str('operation, phase, notify, notify_return, lock'),
    op: str('Command or operation'),
  },
  { title: 'TraceEntry', additionalProperties: Type.Union([Type.String(), Type.Number(), Type.Boolean(), Type.Null()]) },
);

export const JournalEntry = object('JournalEntry', {
  n: Int('Own counter, the same as seq', 1),
  seq: Int('Position', 1),
  at,
  request_id: str('Request'),
  op: str('Command'),
  notification: Nullable(Type.String(), 'Notification inside whose handler the call was made'),
  command: Type.Object({ op: Type.String() }, { description: 'The command as accepted; the secret of a webhook is hidden', additionalProperties: true }),
  digest: Type.String({ pattern: '^[0-9a-f]{32}$', description: 'First 16 bytes of SHA-256 of the canonical outcome' }),
});
