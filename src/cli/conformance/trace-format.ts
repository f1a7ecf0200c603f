// The recorded trace format as schemas: one JSON object per line, {era, seed, profile, features, memory_model, ops}.
// 64-bit quantities are hex strings; counts, ids and errnos are numbers. The arguments of each operation have a schema of their own.

import { type Static, type TProperties, Type } from 'typebox';

const strict = { additionalProperties: false } as const;
const object = <P extends TProperties>(properties: P) => Type.Object(properties, strict);

const Hex = Type.String({ pattern: '^0x[0-9a-f]{1,16}$' });
const Name = Type.String({ pattern: '^[A-Za-z0-9.]{1,32}$' });
const Count = Type.Integer({ minimum: 0 });
const Nullable = <T extends Parameters<typeof Type.Union>[0][number]>(type: T) => Type.Union([type, Type.Null()]);

const Runs = Type.Array(Type.Tuple([Count, Count]));
const Vma = object({
  start: Hex,
  npages: Count,
  perm: Type.Union([Type.Literal('r'), Type.Literal('rw')]),
  kind: Type.Union([Type.Literal('normal'), Type.Literal('pfnmap')]),
  pages: Runs,
  label: Type.String(),
  ptes: Type.Optional(
    Type.Array(
      Type.Union([
        Type.Literal('rw'),
        Type.Literal('r'),
        Type.Literal('lazy'),
        Type.Literal('lazy-retry'),
        Type.Literal('sigbus'),
      ]),
    ),
  ),
});
export type Vma = Static<typeof Vma>;

const Process = object({
  threads: Type.Integer({ minimum: 1 }),
  rlimit_memlock: Nullable(Count),
  cap_ipc_lock: Type.Boolean(),
  vmas: Type.Array(Vma),
});

export const PageKindName = Type.Union([
  Type.Literal('normal'),
  Type.Literal('reserved'),
  Type.Literal('zero'),
  Type.Literal('device'),
]);

const Group = object({
  kind: Type.Union([Type.Literal('mdev'), Type.Literal('iommu')]),
  aperture: Type.Optional(Type.Tuple([Hex, Hex])),
  reserved: Type.Optional(Type.Array(Type.Tuple([Hex, Hex]))),
});

export const MemoryModel = object({
  page_size: Type.Literal(4096),
  dma_entry_limit: Count,
  pages: object({ count: Count, kinds: Type.Record(Type.String({ pattern: '^[0-9]+$' }), PageKindName) }),
  processes: Type.Record(Name, Process),
  groups: Type.Record(Name, Group),
  devices: Type.Record(Name, object({ group: Nullable(Name), has_unmap_callback: Type.Optional(Type.Boolean()) })),
  listeners: Type.Record(Name, object({ priority: Type.Integer() })),
});
export type MemoryModel = Static<typeof MemoryModel>;

/** One trace but for its operations, which are checked one by one so that an error names the operation. */
export const Trace = object({
  era: Type.String(),
  seed: Count,
  profile: Type.String(),
  features: Type.Array(Type.String()),
  memory_model: MemoryModel,
  ops: Type.Array(Type.Unknown()),
});

export const Operation = object({ op: Type.String(), args: Type.Unknown(), expect: Type.Unknown() });

const as = Type.Optional(Name);
const inject = Type.Optional(
  object({ record_alloc_fails_at: Type.Optional(Count), charge_killed_at: Type.Optional(Count) }),
);
const nullPointer = Type.Optional(Type.String());
const Pfns = {
  device: Name,
  iovas: Type.Optional(Type.Array(Hex)),
  iova_range: Type.Optional(Type.Tuple([Hex, Count])),
  iova: Type.Optional(Hex),
  npage: Type.Optional(Type.Integer()),
  null: nullPointer,
  as,
  inject,
};

/** The arguments of each operation. */
export const ARGS = {
  set_container: object({ group: Name, as }),
  unset_container: object({ group: Name, as }),
  set_iommu: object({ type: Type.Integer(), as }),
  open_device: object({ device: Name }),
  close_device: object({ device: Name }),
  close_container_fd: object({ as }),
  check_extension: object({ ext: Type.Integer(), as }),
  get_info: object({ argsz: Count, as }),
  map_dma: object({ iova: Hex, vaddr: Hex, size: Hex, flags: Count, argsz: Type.Optional(Count), as, inject }),
  unmap_dma: object({
    iova: Hex,
    size: Hex,
    flags: Count,
    argsz: Type.Optional(Count),
    bitmap: Type.Optional(object({ pgsize: Count, size: Count, addr: Type.Optional(Hex) })),
    as,
    inject,
  }),
  pin_pages: object({ ...Pfns, prot: Type.Integer() }),
  unpin_pages: object(Pfns),
  register_notifier: object({
    device: Name,
    listener: Name,
    type: Type.Integer(),
    events: Count,
    null: nullPointer,
    behaviour: Type.Optional(Nullable(Type.String())),
  }),
  unregister_notifier: object({ device: Name, listener: Name, type: Type.Integer(), null: nullPointer }),
  set_rlimit: object({ process: Name, bytes: Nullable(Count) }),
  set_cap: object({ thread: Name, cap_ipc_lock: Type.Boolean() }),
  adjust_locked_vm: object({ process: Name, delta: Type.Integer() }),
  exit_thread: object({ thread: Name }),
  exit_process: object({ process: Name }),
  dirty_pages: object({
    flags: Count,
    iova: Type.Optional(Hex),
    size: Type.Optional(Hex),
    pgsize: Type.Optional(Count),
    bitmap_bytes: Type.Optional(Count),
    argsz: Type.Optional(Count),
    bitmap_addr: Type.Optional(Hex),
    as,
  }),
  dma_rw: object({
    group: Type.Optional(Name),
    device: Type.Optional(Name),
    iova: Hex,
    length: Count,
    write: Type.Boolean(),
    data: Type.Optional(Type.Union([Type.String(), object({ fill_from: Count })])),
    as,
  }),
} as const;
export type TraceOp = keyof typeof ARGS;
export type Args<O extends TraceOp> = Static<(typeof ARGS)[O]>;

const Pin = Type.Tuple([Hex, Count, Count]);
const MappingState = object({
  iova: Hex,
  size: Hex,
  prot: Count,
  vaddr: Hex,
  owner: Name,
  pins: Type.Array(Pin),
  iommu_mapped: Type.Optional(Type.Boolean()),
  vaddr_invalid: Type.Optional(Type.Boolean()),
});
export type MappingState = Static<typeof MappingState>;

const LockedVm = Type.Union([Type.Integer(), Type.Null(), object({ wrapped: Hex })]);
export type LockedVm = Static<typeof LockedVm>;

const State = object({
  mappings: Type.Array(MappingState),
  locked_vm: Type.Record(Name, LockedVm),
  pages: Type.Array(Type.Tuple([Count, Type.Integer(), Count])),
  dma_avail: Nullable(Count),
  listeners: Type.Optional(Count),
  dirty_tracking: Type.Optional(Type.Boolean()),
});
export type State = Static<typeof State>;

export const Event = Type.Union([
  object({
    type: Type.Literal('notify'),
    listener: Name,
    iova: Hex,
    size: Hex,
    calls: Type.Array(Type.Unknown()),
    returns: Type.Integer(),
    script: Type.Optional(Type.String()),
  }),
  object({
    type: Type.Literal('wait'),
    calls: Type.Array(Type.Unknown()),
    fatal_signal: Type.Optional(Type.Boolean()),
  }),
  object({ type: Type.Union([Type.Literal('WARN'), Type.Literal('BUG')]), what: Type.String() }),
  object({ type: Type.Literal('DEADLOCK'), lock: Type.String() }),
]);
export type Event = Static<typeof Event>;

/** What happened: `ret` null when the call never returned. */
export const Expect = object({
  ret: Nullable(Type.Integer()),
  err: Type.Optional(Type.String()),
  size: Type.Optional(Hex),
  pages: Type.Optional(Type.Array(Nullable(Count))),
  events_word: Type.Optional(Count),
  bitmap: Type.Optional(Type.String()),
  data: Type.Optional(Type.String()),
  argsz: Type.Optional(Count),
  flags: Type.Optional(Count),
  pgsizes: Type.Optional(Hex),
  cap_offset: Type.Optional(Count),
  caps: Type.Optional(Type.Array(Type.Record(Type.String(), Type.Unknown()))),
  events: Type.Array(Event),
  state: Type.Optional(State),
});
export type Expect = Static<typeof Expect>;
