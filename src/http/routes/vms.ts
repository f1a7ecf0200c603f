// Routes of virtual machines: their memslots, the faults of their guests, and what the host maps of them.

import Type from 'typebox';
import type { ErrnoName } from '../../kernel/errno.ts';
import {
  listHostMaps,
  listMemslots,
  listPfnCaches,
  listSptes,
  listVms,
  viewMemslot,
  viewMmuState,
  viewVm,
} from '../../kernel/view/kvm.ts';
import type { Api } from '../api.ts';
import { describe } from '../describe.ts';
import { DEFAULT_PAGE } from '../limits.ts';
import { decodeCursor, int, mask, u64 } from '../parse.ts';
import { show, showPage, submit } from '../reply.ts';
import {
  Base64,
  Count,
  closed,
  Flags,
  Id,
  Int,
  Names,
  Nullable,
  PageFrame,
  PageOf,
  PageQuery,
  Path,
  ReplyOf,
  StopAt,
  U64,
} from '../schema.ts';
import { bool, str } from '../views/fields.ts';
import {
  HostMapFields,
  HostMapView,
  hostMapExample,
  MemslotFields,
  MemslotView,
  MmuStateView,
  memslotExample,
  memslotReply,
  mmuStateExample,
  PfnCacheFields,
  PfnCacheView,
  pfnCacheExample,
  SpteView,
  spteExample,
  VmFields,
  VmView,
  vmExample,
  vmReply,
} from '../views/kvm.ts';

const vm = { host: Path.host, vm: Path.vm };
const memslot = { ...vm, slot: Path.slot };
const map = { ...vm, map: Id('Mapping', 'm0') };
const cache = { ...vm, cache: Id('Cache', 'c0') };
const noVm = { errno: 'NOT_FOUND', detail: "no vm 'vm9'" } as const;
const gfn = PageFrame('Guest page frame number');
const CALL: readonly ErrnoName[] = ['ESRCH', 'EDEADLK', 'EBUSY'];
export const MEMSLOT_FLAGS = { LOG_DIRTY_PAGES: 1, READONLY: 2 };
const DIRTY = { false: false, true: true };
const dirty = Names(['true', 'false'], 'The page was written; kernels that pin know it themselves');

const put = describe({
  operationId: 'put_vm',
  tag: 'kvm',
  summary: 'KVM_CREATE_VM',
  description:
    'A virtual machine in the address space of a task: its notifier is registered before anything is mapped for a guest. Compared with the body it was made with: the same again is 200.',
  does: 'command',
  waits: true,
  params: vm,
  body: closed({
    task: Id('Task', 'qemu'),
    zone_device_bug: Type.Optional(VmFields.zone_device_bug),
    early_put: Type.Optional(VmFields.early_put),
    allow_unsafe_mappings: Type.Optional(VmFields.allow_unsafe_mappings),
  }),
  bodyExample: { task: 'qemu' },
  success: [
    { status: 201, description: 'Made', schema: ReplyOf(VmFields), example: { ret: 0, ...vmReply, seq: 5 } },
    { status: 200, description: 'It existed with this body', example: { ret: 0, ...vmReply, seq: 6 } },
  ],
  refusals: ['ESRCH', 'EOPNOTSUPP', 'EEXIST', 'ENOSPC', 'EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EEXIST', detail: "vm 'vm0' exists with early_put true, not false" },
});

const list = describe({
  operationId: 'list_vms',
  tag: 'kvm',
  summary: 'Virtual machines',
  description: 'By id.',
  does: 'read',
  params: { host: Path.host },
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of virtual machines',
      schema: PageOf(VmView),
      example: { items: [vmExample], next_cursor: null },
    },
  ],
});

const get = describe({
  operationId: 'get_vm',
  tag: 'kvm',
  summary: 'One virtual machine',
  description: 'Its switches, and how much it maps.',
  does: 'read',
  params: vm,
  success: [{ status: 200, description: 'The virtual machine', schema: VmView, example: vmExample }],
  refusalExample: noVm,
});

const remove = describe({
  operationId: 'delete_vm',
  tag: 'kvm',
  summary: 'Destroy a virtual machine',
  description:
    'kvm_destroy_vm(): all SPTEs go, and the notifier is unregistered. EBUSY while a page of the guest is mapped or a call goes on.',
  does: 'command',
  waits: true,
  params: vm,
  success: [
    {
      status: 200,
      description: 'Destroyed',
      schema: ReplyOf({ id: str('Id') }),
      example: { ret: 0, id: 'vm0', seq: 9 },
    },
  ],
  refusals: ['EDEADLK', 'EBUSY'],
  refusalExample: { errno: 'EBUSY', detail: "vm 'vm0': 1 mappings of guest pages are open" },
});

const listSlots = describe({
  operationId: 'list_memslots',
  tag: 'kvm',
  summary: 'Memslots',
  description: 'By number.',
  does: 'read',
  params: vm,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of memslots',
      schema: PageOf(MemslotView),
      example: { items: [memslotExample], next_cursor: null },
    },
  ],
  refusalExample: noVm,
});

const getSlot = describe({
  operationId: 'get_memslot',
  tag: 'kvm',
  summary: 'One memslot',
  description: 'Where it is on both sides, and its dirty log.',
  does: 'read',
  params: memslot,
  success: [{ status: 200, description: 'The memslot', schema: MemslotView, example: memslotExample }],
  refusalExample: { errno: 'NOT_FOUND', detail: "no memslot '7'" },
});

const setSlot = describe({
  operationId: 'set_memory_region',
  tag: 'kvm',
  summary: 'KVM_SET_USER_MEMORY_REGION',
  description:
    'Makes a memslot, moves it to another guest_phys_addr, or changes LOG_DIRTY_PAGES. Size, userspace_addr and READONLY of one that exists stay. A change waits for the faults that have seen the old slots (`blocked_on` `kvm_srcu:…`), and from 5.15 on until no invalidation of the mm is open (`kvm_invalidations:…`).',
  does: 'command',
  waits: true,
  params: memslot,
  body: closed({
    guest_phys_addr: U64('First byte, guest side'),
    memory_size: U64('Bytes; 0 deletes the slot'),
    userspace_addr: U64('First byte, host side'),
    flags: Type.Optional(Flags(['LOG_DIRTY_PAGES', 'READONLY'], 'KVM_MEM_; default: none')),
    stop_at: StopAt,
  }),
  bodyExample: { guest_phys_addr: '0x100000', memory_size: '0x10000', userspace_addr: '0x7f0000000000' },
  success: [
    {
      status: 201,
      description: 'Made',
      schema: ReplyOf({ ...MemslotFields }),
      example: { ret: 0, ...memslotReply, seq: 6 },
    },
    {
      status: 200,
      description: 'It existed, and is changed, or gone',
      schema: ReplyOf({ vm: MemslotFields.vm, slot: MemslotFields.slot, ...optional(MemslotFields) }),
      example: { ret: 0, ...memslotReply, seq: 7 },
    },
  ],
  refusals: [...CALL, 'EINVAL', 'EEXIST'],
  refusalExample: { errno: 'EEXIST', detail: '[0x100000, 0x110000) overlaps slot 1' },
});

/** Fields that a slot that is gone does not have. */
function optional({ flags, guest_phys_addr, memory_size, userspace_addr, invalid }: typeof MemslotFields) {
  return {
    flags: Type.Optional(flags),
    guest_phys_addr: Type.Optional(guest_phys_addr),
    memory_size: Type.Optional(memory_size),
    userspace_addr: Type.Optional(userspace_addr),
    invalid: Type.Optional(invalid),
  };
}

const deleteSlot = describe({
  operationId: 'delete_memslot',
  tag: 'kvm',
  summary: 'Delete a memslot',
  description:
    'KVM_SET_USER_MEMORY_REGION with memory_size 0: the slot is marked invalid (phase `slot_invalid`), what it maps is taken away, then it is gone. Waits as set_memory_region does.',
  does: 'command',
  waits: true,
  params: memslot,
  query: { stop_at: StopAt },
  success: [
    {
      status: 200,
      description: 'Gone',
      schema: ReplyOf({ vm: MemslotFields.vm, slot: MemslotFields.slot }),
      example: { ret: 0, vm: 'vm0', slot: 0, seq: 8 },
    },
  ],
  refusals: [...CALL, 'EINVAL'],
  refusalExample: { errno: 'EINVAL', detail: 'slot 7 does not exist' },
});

const fault = describe({
  operationId: 'vcpu_fault',
  tag: 'kvm',
  summary: 'A guest touches a page',
  description:
    'The page is looked for, then mapped, unless an invalidation of it has begun or ended since the sequence was read. Phases: `after_seq_snapshot`, `after_gup` (the page is got), `before_insert` (mmu_lock is held). `result` is FIXED, RETRY (the guest touches it again) or EMULATE (MMIO, a write to a read-only slot); `reason` says why. `async`: a page that takes waiting is left to a worker. EFAULT goes to user space.',
  does: 'command',
  waits: true,
  params: vm,
  body: closed({
    gfn,
    write: Type.Boolean({ description: 'Write or read' }),
    async: Type.Optional(Type.Boolean({ description: 'The guest can go on without the page; default false' })),
    vcpu: Type.Optional(Int('vCPU; default 0', 0, 4095)),
    stop_at: StopAt,
  }),
  bodyExample: { gfn: 256, write: true },
  success: [
    {
      status: 200,
      description: 'What the guest is told',
      schema: ReplyOf({
        result: Names(['FIXED', 'RETRY', 'EMULATE'], 'RET_PF_'),
        reason: Nullable(
          Type.String(),
          'Why not FIXED: mmu_notifier_count, mmu_notifier_seq, memslot_invalid, mm_exited, async_queued, async_halt, hwpoison, mmio, read_only',
        ),
        pfn: Nullable(PageFrame('The page'), 'null: nothing was mapped'),
        writable: Nullable(Type.Boolean(), 'Whether the guest may write'),
        signal: Type.Optional(str('Signal that user space gets')),
      }),
      example: { ret: 0, result: 'FIXED', reason: null, pfn: 1048576, writable: true, seq: 8 },
    },
  ],
  refusals: [...CALL, 'EINVAL', 'EFAULT', 'EINTR', 'ENOMEM'],
  refusalExample: { errno: 'EFAULT', detail: 'gfn 256: no page can be got for hva 0x7f0000000000' },
});

const sptes = describe({
  operationId: 'list_sptes',
  tag: 'kvm',
  summary: 'Pages that the guest reaches',
  description: 'By gfn. None of them holds a reference.',
  does: 'read',
  params: vm,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of SPTEs',
      schema: PageOf(SpteView),
      example: { items: [spteExample], next_cursor: null },
    },
  ],
  refusalExample: noVm,
});

const mmuState = describe({
  operationId: 'get_mmu_state',
  tag: 'kvm',
  summary: 'Sequence and count of the invalidations',
  description: 'What decides whether a fault may map its page.',
  does: 'read',
  params: vm,
  success: [{ status: 200, description: 'The state', schema: MmuStateView, example: mmuStateExample }],
  refusalExample: noVm,
});

const listMaps = describe({
  operationId: 'list_vcpu_maps',
  tag: 'kvm',
  summary: 'Guest pages that the host maps',
  description: 'By id.',
  does: 'read',
  params: vm,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of mappings',
      schema: PageOf(HostMapView),
      example: { items: [hostMapExample], next_cursor: null },
    },
  ],
  refusalExample: noVm,
});

const vcpuMap = describe({
  operationId: 'vcpu_map',
  tag: 'kvm',
  summary: 'kvm_vcpu_map()',
  description:
    'The host maps a page of the guest for its own use, for writing. No notifier revokes it: a reference keeps the page (a pin in 6.18, which maps no device memory but with allow_unsafe_mappings). EINVAL where no page can be got.',
  does: 'command',
  waits: true,
  params: vm,
  body: closed({ gfn, map: Type.Optional(Id('Id; default: map-<n>', 'm0')), stop_at: StopAt }),
  bodyExample: { gfn: 256, map: 'm0' },
  success: [
    {
      status: 201,
      description: 'Mapped',
      schema: ReplyOf(HostMapFields),
      example: { ret: 0, ...hostMapExample, seq: 9 },
    },
  ],
  refusals: [...CALL, 'EINVAL', 'EFAULT', 'EEXIST', 'ENOSPC'],
  refusalExample: { errno: 'EINVAL', detail: 'gfn 1 is in no memslot' },
});

const vcpuUnmap = describe({
  operationId: 'vcpu_unmap',
  tag: 'kvm',
  summary: 'kvm_vcpu_unmap()',
  description:
    'Marks the page dirty if it was written, and drops what keeps it. Unmapping what is not mapped is no error.',
  does: 'command',
  params: map,
  query: { dirty: Type.Optional(dirty) },
  success: [
    {
      status: 200,
      description: 'Unmapped',
      schema: ReplyOf({ id: str('Id'), unmapped: bool('It was mapped') }),
      example: { ret: 0, id: 'm0', unmapped: true, seq: 11 },
    },
  ],
  refusalExample: noVm,
});

const vcpuMapRw = describe({
  operationId: 'vcpu_map_rw',
  tag: 'kvm',
  summary: 'Use a mapping of a guest page',
  description:
    'Reads `length` bytes, or writes `data`. The page may be another one than the guest has by now; where it was freed, USE_AFTER_FREE is reported.',
  does: 'command',
  params: map,
  body: closed({
    offset: Int('First byte of the page', 0, 4095),
    length: Type.Optional(Int('Bytes to read', 1, 4096)),
    data: Type.Optional(Base64('Bytes to write')),
  }),
  bodyExample: { offset: 0, data: 'AQID' },
  success: [
    {
      status: 200,
      description: 'Done',
      schema: ReplyOf({ id: str('Id'), pfn: PageFrame('The page'), data: Type.Optional(Base64('What was read')) }),
      example: { ret: 0, id: 'm0', pfn: 1048576, seq: 10 },
    },
  ],
  refusals: ['EINVAL', 'ENOMEM'],
  refusalExample: { errno: 'EINVAL', detail: "map 'm9' is not open" },
});

const listCaches = describe({
  operationId: 'list_pfn_caches',
  tag: 'kvm',
  summary: 'gfn_to_pfn_caches',
  description: 'By id.',
  does: 'read',
  params: vm,
  query: PageQuery,
  success: [
    {
      status: 200,
      description: 'One page of caches',
      schema: PageOf(PfnCacheView),
      example: { items: [pfnCacheExample], next_cursor: null },
    },
  ],
  refusalExample: noVm,
});

const refreshCache = describe({
  operationId: 'refresh_pfn_cache',
  tag: 'kvm',
  summary: 'kvm_gpc_activate(), kvm_gpc_refresh()',
  description:
    'Fills a gfn_to_pfn_cache: looked for again as long as an invalidation is open or has ended meanwhile; its reference is dropped at once, and the start of an invalidation makes it invalid. 6.18 only. EAGAIN where the kernel would look for ever.',
  does: 'command',
  waits: true,
  params: cache,
  body: closed({ gfn, stop_at: StopAt }),
  bodyExample: { gfn: 256 },
  success: [
    {
      status: 201,
      description: 'Made, and valid',
      schema: ReplyOf(PfnCacheFields),
      example: { ret: 0, ...pfnCacheExample, seq: 9 },
    },
    { status: 200, description: 'Valid again', example: { ret: 0, ...pfnCacheExample, seq: 10 } },
  ],
  refusals: [...CALL, 'EOPNOTSUPP', 'ENOSPC', 'EFAULT', 'EAGAIN'],
  refusalExample: { errno: 'EOPNOTSUPP', detail: '5.15.85 has no gfn_to_pfn_cache as it is modelled' },
});

const deleteCache = describe({
  operationId: 'delete_pfn_cache',
  tag: 'kvm',
  summary: 'kvm_gpc_deactivate()',
  description: 'Forgets a cache. EBUSY while it is being refreshed.',
  does: 'command',
  params: cache,
  success: [
    {
      status: 200,
      description: 'Gone',
      schema: ReplyOf({ id: str('Id') }),
      example: { ret: 0, id: 'c0', seq: 11 },
    },
  ],
  refusals: ['EINVAL', 'EBUSY'],
  refusalExample: { errno: 'EINVAL', detail: "cache 'c0' does not exist" },
});

const removeDevice = describe({
  operationId: 'remove_device_pages',
  tag: 'pages',
  summary: 'Remove the memory of a device',
  description:
    "Pages of kind 'zone_device', from this one on: nobody maps them any more (CLEAR for each mapping area), then everybody who refers to one is waited for (`blocked_on` `page_idle:<pfn>`).",
  does: 'command',
  waits: true,
  params: { host: Path.host, pfn: Path.pfn },
  body: closed({ npage: Int('Pages'), stop_at: StopAt }),
  bodyExample: { npage: 1 },
  success: [
    {
      status: 200,
      description: 'Removed',
      schema: ReplyOf({ pfn: PageFrame('First page'), npage: Count('Pages') }),
      example: { ret: 0, pfn: 100, npage: 1, seq: 12 },
    },
  ],
  refusals: ['EINVAL', 'E2BIG'],
  refusalExample: { errno: 'EINVAL', detail: "page 100 is not of kind 'zone_device', or its removal has begun" },
});

const all = '/v1/hosts/:host/vms';
const one = `${all}/:vm`;

export function vmRoutes(app: Api): void {
  app.put(one, { schema: put }, (request, reply) =>
    submit(request, reply, { op: 'put_vm', vm: request.params.vm, ...request.body }),
  );
  app.get(all, { schema: list }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listVms(host, decodeCursor(cursor, 'string'), limit));
  });
  app.get(one, { schema: get }, (request) => show(request, (host) => viewVm(host, request.params.vm)));
  app.delete(one, { schema: remove }, (request, reply) =>
    submit(request, reply, { op: 'delete_vm', vm: request.params.vm }),
  );
  app.post(`${one}/faults`, { schema: fault }, (request, reply) => {
    const { async: async_pf = false, ...body } = request.body;
    return submit(request, reply, { op: 'vcpu_fault', vm: request.params.vm, async_pf, ...body });
  });
  app.get(`${one}/sptes`, { schema: sptes }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listSptes(host, request.params.vm, decodeCursor(cursor, 'number'), limit));
  });
  app.get(`${one}/mmu_state`, { schema: mmuState }, (request) =>
    show(request, (host) => viewMmuState(host, request.params.vm)),
  );
  memslotRoutes(app);
  mapRoutes(app);
  app.post('/v1/hosts/:host/pages/:pfn/remove_device', { schema: removeDevice }, (request, reply) => {
    const { npage, ...body } = request.body;
    return submit(request, reply, { op: 'remove_device_pages', pfn: request.params.pfn, npage: int(npage), ...body });
  });
}

function memslotRoutes(app: Api): void {
  const slots = `${one}/memslots`;
  app.get(slots, { schema: listSlots }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listMemslots(host, request.params.vm, decodeCursor(cursor, 'number'), limit));
  });
  app.get(`${slots}/:slot`, { schema: getSlot }, (request) =>
    show(request, (host) => viewMemslot(host, request.params.vm, request.params.slot)),
  );
  app.put(`${slots}/:slot`, { schema: setSlot }, (request, reply) => {
    const { flags = 0, guest_phys_addr, memory_size, userspace_addr, ...body } = request.body;
    return submit(request, reply, {
      op: 'set_memory_region',
      vm: request.params.vm,
      slot: request.params.slot,
      flags: mask(flags, MEMSLOT_FLAGS),
      guest_phys_addr: u64(guest_phys_addr),
      memory_size: u64(memory_size),
      userspace_addr: u64(userspace_addr),
      ...body,
    });
  });
  app.delete(`${slots}/:slot`, { schema: deleteSlot }, (request, reply) => {
    const gone = { flags: 0, guest_phys_addr: 0n, memory_size: 0n, userspace_addr: 0n };
    const { vm: id, slot } = request.params;
    return submit(request, reply, { op: 'set_memory_region', vm: id, slot, ...gone, ...request.query });
  });
}

function mapRoutes(app: Api): void {
  app.get(`${one}/maps`, { schema: listMaps }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listHostMaps(host, request.params.vm, decodeCursor(cursor, 'string'), limit));
  });
  app.post(`${one}/maps`, { schema: vcpuMap }, (request, reply) =>
    submit(request, reply, { op: 'vcpu_map', vm: request.params.vm, ...request.body }),
  );
  app.delete(`${one}/maps/:map`, { schema: vcpuUnmap }, (request, reply) => {
    const { vm: id, map: open } = request.params;
    return submit(request, reply, {
      op: 'vcpu_unmap',
      vm: id,
      map: open,
      dirty: DIRTY[request.query.dirty ?? 'false'],
    });
  });
  app.post(`${one}/maps/:map/rw`, { schema: vcpuMapRw }, (request, reply) =>
    submit(request, reply, { op: 'vcpu_map_rw', vm: request.params.vm, map: request.params.map, ...request.body }),
  );
  app.get(`${one}/caches`, { schema: listCaches }, (request) => {
    const { cursor, limit = DEFAULT_PAGE } = request.query;
    return showPage(request, (host) => listPfnCaches(host, request.params.vm, decodeCursor(cursor, 'string'), limit));
  });
  app.put(`${one}/caches/:cache`, { schema: refreshCache }, (request, reply) =>
    submit(request, reply, {
      op: 'refresh_pfn_cache',
      vm: request.params.vm,
      cache: request.params.cache,
      ...request.body,
    }),
  );
  app.delete(`${one}/caches/:cache`, { schema: deleteCache }, (request, reply) =>
    submit(request, reply, { op: 'delete_pfn_cache', vm: request.params.vm, cache: request.params.cache }),
  );
}
