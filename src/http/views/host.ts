// Schemas of what GETs show of a host as a whole: its options and counters, operations, logs, leaks.

import Type from 'typebox';
import { FAULT_POINTS } from '../../kernel/fault-rule.ts';
import { PROFILE_NAMES } from '../../kernel/profile.ts';
import { Count, closed, Int, Names, Nullable, U64Out } from '../schema.ts';
import { at, bool, bug, id, names, object, str } from './fields.ts';

const Problem = Type.Unsafe<unknown>({ $ref: '#/components/schemas/Problem' });

const HeldLock = closed({
  lock: str('`<class>:<what it guards>`'),
  mode: Names(['R', 'W'], 'Shared or exclusive'),
});

const operationFields = {
  id,
  kind: str('Command that started it'),
  state: Names(['running', 'stopped', 'blocked', 'done'], 'State'),
  phase: str('Where it is'),
  blocked_on: Nullable(Type.String(), 'What it waits for, `<kind of thing>:<id>`'),
  container: Nullable(Type.String(), 'Container it works on; null: none'),
  task: Nullable(Type.String(), 'Task that runs it; null: none in particular'),
  mm: Nullable(Type.String(), 'Address space it works on; null: none in particular'),
  locks_held: Type.Array(HeldLock, { description: 'Locks it holds, in the order in which it took them' }),
  seq: Count('Command that started it'),
  at,
  request_id: str('Request that started it'),
  finished_seq: Nullable(Count('Command'), 'Command that finished it'),
  result: Type.Optional(
    Nullable(
      Type.Object({ ret: Int('Return value') }, { additionalProperties: true }),
      'What its command returned; null while it runs',
    ),
  ),
  problem: Type.Optional(Problem),
};
export const OperationView = object('Operation', operationFields);

/** Reply to a step: the operation as the step has left it. */
export const Stepped = object('Stepped', {
  ret: Int('0'),
  ...operationFields,
  seq: Count('Position of the step in the journal; the id says which command started the operation'),
});
export const steppedExample = {
  id: 'munmap-7',
  kind: 'munmap',
  state: 'stopped',
  phase: 'after_start',
  blocked_on: null,
  container: null,
  task: 'qemu',
  mm: 'mm-1',
  locks_held: [{ lock: 'mmap_lock:mm-1', mode: 'R' }],
  at: 1700000000000,
  request_id: 'c9a1',
  finished_seq: null,
  result: null,
};

const { id: _id, kind, seq, ...mayBeGone } = operationFields;
/** Reply to a command that waits while its client does not. */
export const Accepted = object('Accepted', {
  ret: Int('0 while it waits'),
  id,
  kind,
  seq,
  ...Type.Partial(Type.Object(mayBeGone)).properties,
});
export const operationExample = {
  id: 'unmap_dma-7',
  kind: 'unmap_dma',
  state: 'blocked',
  phase: 'notify',
  blocked_on: 'notification:notification-1',
  container: 'vfio0',
  task: null,
  mm: null,
  locks_held: [],
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
  quarantined: Nullable(
    closed({ reason: str('Why'), revision: Count('Semantics revision that wrote its journal') }),
    'Why it is not served',
  ),
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
  truncated: Type.Optional(Type.Literal(true, { description: 'There are more ranges than are shown' })),
};
export const Leaks = object('Leaks', LeakFields);

export const FaultFields = {
  id,
  point: Names(FAULT_POINTS, 'What fails'),
  call: str('Operation whose next call meets it'),
  nth: Int('Which attempt of that call fails', 1),
};
export const FaultView = object('Fault', FaultFields);

export const Invariants = object('Invariants', {
  ok: bool('Whether all hold'),
  violations: names('What does not, in words'),
});

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

export const JournalEntry = object('JournalEntry', {
  n: Int('Own counter, the same as seq', 1),
  seq: Int('Position', 1),
  at,
  request_id: str('Request'),
  op: str('Command'),
  notification: Nullable(Type.String(), 'Notification inside whose handler the call was made'),
  command: Type.Object(
    { op: Type.String() },
    { description: 'The command as accepted; the secret of a webhook is hidden', additionalProperties: true },
  ),
  digest: Type.String({ pattern: '^[0-9a-f]{32}$', description: 'First 16 bytes of SHA-256 of the canonical outcome' }),
});
