// Schemas of the trace: one for each kind of entry, and the form that the Perfetto UI opens.

import Type, { type TProperties } from 'typebox';
import { MMU_EVENTS } from '../../kernel/mm/mmu-notifier/range.ts';
import { PHASES } from '../../kernel/phase.ts';
import { Count, closed, Int, Names, Nullable, U64Out } from '../schema.ts';
import { at, bool, str } from './fields.ts';
import { CALLBACKS } from './mm.ts';

const maybe = (description: string) => Nullable(Type.String(), description);
const ret = Int('Return value');
const range = {
  mm: str('Address space'),
  mmu_event: Names(MMU_EVENTS, 'Why'),
  start: U64Out('First byte'),
  end: U64Out('One past the last byte'),
  blockable: bool('Whether callbacks may sleep'),
  owner: maybe('Who may ignore the event as its own'),
};
const runs = {
  device: str('Device'),
  npage: Count('Pages of the call'),
  iovas: Type.Array(Type.String(), { description: 'Runs of consecutive pages, `<iova>+<size>`' }),
  more: Count('Runs that are not named'),
};
const scalar = Type.Union([Type.String(), Type.Number(), Type.Boolean(), Type.Null(), Type.Array(Type.String())]);

/** Every kind of entry, with its own fields; docs/reference/trace.md has a section for each. */
export const TRACE_EVENTS = {
  operation: {
    description: 'A command has ended: the last entry of its seq',
    fields: {
      ret,
      errno: maybe('What it was refused with'),
      parked: maybe('Operation that goes on after it'),
      task: maybe('Task that made the call'),
      device: maybe('Device that made the call'),
    },
  },
  phase: {
    description: 'An operation has come to a phase, has begun to wait, or is done',
    fields: {
      phase: str(`${PHASES.join(', ')}, done, or what it waits in`),
      blocked_on: Type.Optional(str('What it waits for')),
      ret: Type.Optional(ret),
      errno: Type.Optional(maybe('What it ended with')),
    },
    open: true,
  },
  lock: {
    description: 'A lock was asked for, taken, or given back',
    fields: {
      lock: str('`<class>:<what it guards>`'),
      mode: Type.Optional(Names(['R', 'W'], 'Shared or exclusive')),
      state: Names(
        ['waits', 'held', 'busy', 'released', 'downgraded', 'granted', 'given_up'],
        'busy: a trylock failed; granted: a chain lock was handed over; given_up: it waits no more',
      ),
    },
  },
  invalidate_start: { description: 'A start begins to call the subscribers', fields: range },
  invalidate_started: {
    description: 'All subscribers have heard of the start',
    fields: { ...range, ret: Int('Last result that was not 0; only a start that is not blockable fails by it') },
  },
  invalidate_end: {
    description: 'An end begins to call the subscribers',
    fields: { ...range, only_end: bool('`invalidate_range` was called under the page-table lock') },
  },
  invalidate_ended: { description: 'All subscribers have heard of the end', fields: range },
  notify: {
    description: 'A callback is called: of an mmu notifier, or a DMA_UNMAP handler',
    fields: {
      notifier: str('Notifier'),
      callback: Type.Optional(Names(CALLBACKS, 'Callback of an mmu notifier')),
      phase: Type.Optional(str('Phase that the operation is in')),
      mm: Type.Optional(str('Address space')),
      mmu_event: Type.Optional(Nullable(Names(MMU_EVENTS, 'Event'), 'Why')),
      start: Type.Optional(Nullable(U64Out('Address'), 'First byte')),
      end: Type.Optional(Nullable(U64Out('Address'), 'One past the last byte')),
      blockable: Type.Optional(bool('Whether it may sleep')),
      owner: Type.Optional(maybe('Who may ignore the event')),
      cur_seq: Type.Optional(Nullable(Count('Sequence'), 'Of invalidate: the sequence to store')),
      locks_held: Type.Optional(Type.Array(Type.String(), { description: 'Locks that the thread holds' })),
      device: Type.Optional(str('Of DMA_UNMAP: the device')),
      notification: Type.Optional(str('Of DMA_UNMAP: the notification')),
      attempt: Type.Optional(Count('Of DMA_UNMAP: which call for this mapping')),
      iova: Type.Optional(U64Out('Of DMA_UNMAP: first byte')),
      size: Type.Optional(U64Out('Of DMA_UNMAP: bytes')),
    },
  },
  notify_return: {
    description: 'A callback has returned',
    fields: {
      notifier: str('Notifier'),
      callback: Type.Optional(Names(CALLBACKS, 'Callback of an mmu notifier')),
      notification: Type.Optional(maybe('Of DMA_UNMAP: the notification')),
      ret,
    },
  },
  pte: {
    description: 'An entry of a page table has changed where that can be watched',
    fields: {
      change: str('clear, set, ...'),
      addr: U64Out('Address'),
    },
    open: true,
  },
  fault: { description: 'A fault has failed', fields: { error: str('Why') } },
  mmio: {
    description: 'A region of a vfio-pci device is accessed',
    fields: {
      device: str('Device'),
      region: Count('Index of the region'),
      pos: Count('Byte in the region'),
      size: Count('Bytes'),
      write: bool('Whether it is written'),
      decoding: bool('Whether the device decodes the access'),
    },
  },
  kvm_fault: {
    description: 'A fault of a guest has its page, and looks whether it may be mapped',
    fields: {
      vm: str('Virtual machine'),
      gfn: Count('Guest page frame number'),
      pfn: Count('Page'),
      retry: maybe('Why it may not: mmu_notifier_count, mmu_notifier_seq, mm_exited'),
    },
  },
  spte: {
    description: 'A page is mapped for a guest, or not any more',
    fields: {
      vm: str('Virtual machine'),
      change: Names(['set', 'drop'], 'What happened'),
      gfn: Count('Guest page frame number'),
      addr: U64Out('Address of the page in the mm'),
      pfn: Count('Page'),
      writable: Type.Optional(bool('The guest may write')),
    },
  },
  tlb_flush: { description: 'The TLBs of a guest were flushed', fields: { vm: str('Virtual machine') } },
  kvm_leak: {
    description: 'KVM takes a page for reserved, and never drops the reference that it has got',
    fields: { pfn: Count('Page'), refcount: Int('References that it has, this one included') },
  },
  async_pf: {
    description: 'A worker has brought a page of a guest in',
    fields: {
      vm: str('Virtual machine'),
      gfn: Nullable(Count('Guest page frame number'), 'null: nobody waits for it any more'),
      vcpu: Nullable(Count('vCPU'), 'null: nobody waits'),
    },
  },
  pin: { description: 'vfio_pin_pages() has pinned', fields: runs },
  unpin: { description: 'vfio_unpin_pages() has unpinned', fields: runs },
  counter: {
    description: 'The command has changed a counter',
    fields: {
      counter: Names(['pinned_pages', 'locked_vm'], 'Host pages that are pinned, or pages charged to an mm'),
      mm: maybe('Address space of locked_vm'),
      value: Int('Its new value'),
    },
  },
} as const satisfies Record<string, { description: string; fields: TProperties; open?: boolean }>;

const entryOf = (
  event: string,
  { description, fields, open = false }: { description: string; fields: TProperties; open?: boolean },
) =>
  Type.Object(
    {
      n: Int('Own counter', 1),
      seq: Count('Command'),
      at,
      request_id: str('Request'),
      event: Type.Literal(event, { description }),
      op: str('Operation, or the command where it belongs to none'),
      ...fields,
    },
    { additionalProperties: open ? scalar : false },
  );

export const TraceEntry = Type.Union(
  Object.entries(TRACE_EVENTS).map(([event, about]) => entryOf(event, about)),
  { title: 'TraceEntry' },
);

const args = Type.Object({}, { additionalProperties: true, description: 'Fields of the entry' });
/** Trace Event Format, JSON object form. */
export const PerfettoTrace = closed(
  {
    traceEvents: Type.Array(
      closed({
        name: str('Name'),
        ph: Names(['M', 'b', 'e', 'n', 'B', 'E', 'i', 'C', 's', 'f'], 'Phase of the format'),
        ts: Count('Microseconds since the epoch; each event is later than the one before'),
        pid: Count('1'),
        tid: Count('Track'),
        cat: Type.Optional(str('Category')),
        id: Type.Optional(str('Of an asynchronous slice or a flow')),
        bp: Type.Optional(Type.Literal('e')),
        s: Type.Optional(Type.Literal('t')),
        args: Type.Optional(args),
      }),
      { description: 'Metadata first, then events in order' },
    ),
    displayTimeUnit: Type.Literal('ms'),
    otherData: closed({
      host: str('Host'),
      profile: str('Kernel that it behaves as'),
      first_n: Count('First entry of the trace in it'),
      last_n: Count('Last one'),
      truncated: bool('Older entries of the span have been dropped'),
    }),
  },
  { title: 'PerfettoTrace' },
);
