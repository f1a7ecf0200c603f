// Schemas of what GETs show of address spaces, mmu notifiers, locks and violations.

import Type from 'typebox';
import { MMU_EVENTS } from '../../kernel/mm/mmu-notifier/range.ts';
import { PLAIN_CALLBACKS } from '../../kernel/mm/mmu-notifier/subscriptions.ts';
import { VIOLATION_CODES } from '../../kernel/violation.ts';
import { Count, closed, Int, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { at, bool, id, names, object, str } from './fields.ts';

export const MmView = object('Mm', {
  id,
  alive: bool('Whether it has users; one that has none is kept by what counts on it'),
  users: Count('mm_users'),
  count: Count('mm_count'),
  tasks: names('Tasks that live in it'),
  locked_vm: Int('Pages charged'),
  pinned_vm: Int('Pages counted by those who pin without charging'),
  rss: Count('Present entries with a struct page'),
  has_pinned: bool('A page of it was pinned once (MMF_HAS_PINNED)'),
  areas: Count('VMAs'),
  page_tables: Count('Page-table leaves'),
  notifiers: names('Notifiers of it, registered or not'),
  invalidate_seq: Nullable(Count('Sequence'), 'null: nobody has subscribed yet'),
  active_invalidate_ranges: Count('Starts without their end that interval notifiers count'),
});
export const mmExample = {
  id: 'mm-1',
  alive: true,
  users: 1,
  count: 2,
  tasks: ['qemu'],
  locked_vm: 0,
  pinned_vm: 0,
  rss: 2,
  has_pinned: false,
  areas: 1,
  page_tables: 1,
  notifiers: ['n1'],
  invalidate_seq: 2,
  active_invalidate_ranges: 0,
};

export const SubscriptionsView = object('Subscriptions', {
  mm: str('Address space'),
  list: names('Plain notifiers in calling order: the one registered last is first'),
  has_itree: bool('Whether interval notifiers were ever inserted'),
  intervals: names('Interval notifiers in the order of the tree'),
  deferred: names('Inserts and removals that wait for the end of the invalidations'),
  invalidate_seq: Nullable(
    Count('Even: idle; odd: a tracked range is being invalidated'),
    'null: nobody has subscribed',
  ),
  active_invalidate_ranges: Count('Starts that are not ended'),
  active: Type.Array(
    closed({ operation: str('Who invalidates'), start: U64Out('First byte'), end: U64Out('One past the last byte') }),
    { description: 'Ranges between their start and their end' },
  ),
  waiting: names('Operations that sleep until invalidate_seq changes'),
  srcu_readers: names('Operations of the host that are inside a walk over notifiers now'),
  synchronizing: names(
    'Operations of the host that wait until those have left, and notifiers that are freed then (SRCU)',
  ),
});

const actions = Type.Array(Type.Object({ action: Type.String() }, { additionalProperties: true }), {
  description: 'What it does, in order',
});
const shownDelivery = Type.Union(
  [
    closed({
      kind: Type.Literal('script'),
      callbacks: Type.Record(Type.String(), closed({ actions, returns: Int('Return value') })),
    }),
    closed({ kind: Type.Literal('consumer'), consumer: str('Subsystem of the host'), of: str('Its object') }),
    closed({ kind: Type.Literal('poll') }),
    closed({ kind: Type.Literal('webhook'), url: str('Where to') }),
  ],
  { description: 'Who carries its callbacks out' },
);

export const MmuNotifierView = object('MmuNotifier', {
  id,
  mm: str('Address space'),
  kind: Names(['plain', 'interval'], 'Kind'),
  callbacks: Type.Optional(names('Of a plain one: the callbacks it has')),
  ops: Type.Optional(Nullable(Type.String(), 'Of a plain one made with mmu_notifier_get(): its ops table')),
  users: Type.Optional(Count('Of a plain one made with mmu_notifier_get(): its users')),
  start: Type.Optional(U64Out('Of an interval: its first byte')),
  length: Type.Optional(U64Out('Of an interval: bytes')),
  invalidate_seq: Type.Optional(Count('Of an interval: the sequence it has stored')),
  registered: bool('Whether it was registered and nobody has begun to take it off'),
  open_starts: Type.Optional(Int('Of a plain one: starts that it has let pass, less the ends that it was told of')),
  delivery: shownDelivery,
  calls: Type.Record(Type.String(), Count('Calls'), { description: 'Calls of each callback so far' }),
  secondary_count: Count('Pages it has mapped for its device'),
  secondary: Type.Array(
    closed({
      addr: U64Out('Address'),
      pfn: PageFrame('Host page'),
      writable: bool('Whether its device may write'),
      stale: bool('The page table does not give that'),
    }),
    { description: 'The first of them' },
  ),
});
export const mmuNotifierExample = {
  id: 'n1',
  mm: 'mm-1',
  kind: 'plain',
  callbacks: ['invalidate_range_start'],
  ops: null,
  users: 1,
  open_starts: 0,
  registered: true,
  delivery: {
    kind: 'script',
    callbacks: { invalidate_range_start: { actions: [{ action: 'drop' }], returns: 0 } },
  },
  calls: { invalidate_range_start: 1 },
  secondary_count: 0,
  secondary: [],
};

export const CALLBACKS = [...PLAIN_CALLBACKS, 'invalidate'] as const;

export const MmuNotificationView = object('MmuNotification', {
  id,
  mm: str('Address space'),
  notifier: str('Notifier'),
  callback: Names(CALLBACKS, 'Callback that waits for its answer'),
  event: Nullable(Names(MMU_EVENTS, 'Event'), 'Why; null where the callback is about no range'),
  start: Nullable(U64Out('First byte'), 'null: about no range'),
  end: Nullable(U64Out('One past the last byte'), 'null: about no range'),
  blockable: bool('Whether it may sleep; if not, a start that would have to returns -EAGAIN'),
  owner: Nullable(Type.String(), 'Who may ignore the event as its own'),
  cur_seq: Nullable(Count('Sequence'), 'Of invalidate: the sequence to store'),
  pfn: Nullable(PageFrame('Host page'), 'Of change_pte: the new page'),
  seq: Count('Command that emitted it'),
});
export const mmuNotificationExample = {
  id: 'mmu-notification-1',
  mm: 'mm-1',
  notifier: 'n1',
  callback: 'invalidate_range_start',
  event: 'UNMAP',
  start: '0x7f0000000000',
  end: '0x7f0000002000',
  blockable: true,
  owner: null,
  cur_seq: null,
  pfn: null,
  seq: 7,
};

const holder = closed({
  by: str('Operation, or `task:<id>` where a task holds it between two calls'),
  mode: Names(['R', 'W'], 'Shared or exclusive'),
});
export const LockView = object('Lock', {
  id: str('`<class>:<what it guards>`'),
  class: str('Class, as lockdep sees it'),
  holders: Type.Array(holder, { description: 'Who holds it' }),
  waiters: Type.Array(holder, { description: 'Who waits, in order of arrival' }),
});
export const lockExample = {
  id: 'mmap_lock:mm-1',
  class: 'mmap_lock',
  holders: [{ by: 'munmap-7', mode: 'R' }],
  waiters: [{ by: 'fork-9', mode: 'W' }],
};

export const LockOrder = object('LockOrder', {
  held: str('Class that was held'),
  taken: str('Class that was taken under it'),
  path: str('Where it happened first: operation, phase, callback'),
  seq: Count('Command; 0: the kernel taught it at boot'),
});

export const ViolationView = object('Violation', {
  n: Int('Own counter', 1),
  seq: Count('Command that did it'),
  at,
  request_id: str('Request that did it'),
  code: Names(VIOLATION_CODES, 'Rule that was broken; each has a section in docs/reference/violations.md'),
  text: str('What happened'),
  operation: str('Operation that did it'),
  phase: str('Phase it was in'),
  notifier: Nullable(Type.String(), 'Notifier whose callback it was inside'),
  callback: Nullable(Type.String(), 'That callback'),
  locks_held: names('Locks that were held'),
  paths: names('The paths that conflict, where there are two'),
});
export const violationExample = {
  n: 1,
  seq: 12,
  at: 1700000000000,
  request_id: 'c9a1',
  code: 'SLEEP_IN_ATOMIC',
  text: 'n1.invalidate_range takes mutex:vq where it may not sleep',
  operation: 'access-12',
  phase: 'after_pte_clear',
  notifier: 'n1',
  callback: 'invalidate_range',
  locks_held: ['mmap_lock:mm-1', 'ptl:mm-1:0x7f0000000000'],
  paths: ['access-12 after_pte_clear in n1.invalidate_range'],
};

export const FileFields = {
  file: str('File'),
  size: Nullable(U64Out('Bytes'), 'null: it has no end'),
  cached_pages: Count('Pages in the page cache'),
};
export const FileView = object('File', FileFields);
export const fileExample = { file: 'f1', size: '0x10000', cached_pages: 0 };

export const GupView = object('Gup', {
  id,
  mm: str('Address space'),
  addr: U64Out('First byte'),
  flags: Count('FOLL_ flags'),
  pinned: bool('Whether by pins (FOLL_PIN) or references (FOLL_GET)'),
  pfns: Type.Array(PageFrame('Host page'), { description: 'Pages in order' }),
  busy: bool('Whether a call that takes or gives back its pages goes on'),
});
export const gupExample = {
  id: 'g1',
  mm: 'mm-1',
  addr: '0x7f0000000000',
  flags: 0x40001,
  pinned: true,
  pfns: [1048576, 1048577],
  busy: false,
};
