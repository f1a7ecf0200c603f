// Commands as JSON: what GET .../journal shows of a command is a command again. What a request may leave out may be left out
// here, and names are taken where a request takes names of bits.

import Type, { type Static, type TProperties } from 'typebox';
import type { Command } from '../kernel/command.ts';
import { FAULT_POINTS } from '../kernel/fault-rule.ts';
import { NOTIFY_RETURNS } from '../service/notify-return.ts';
import { EXCLUSIVE_COMMANDS } from './command-json-exclusive.ts';
import { MEMORY_COMMANDS, MEMORY_DEFAULTS, memoryFieldsOf } from './command-json-memory.ts';
import { VFIO_PCI_COMMANDS } from './command-json-vfio-pci.ts';
import { MAX_TIMEOUT_MS, MAX_TTL_S } from './limits.ts';
import { CommandNotifier, commandNotifierOf, NotifierType, notifierType } from './notifier-spec.ts';
import { mask, numberOf, u32 } from './parse.ts';
import { IOMMU_TYPES } from './routes/containers.ts';
import { DIRTY_FLAGS } from './routes/dirty-pages.ts';
import { MAP_ARGSZ, MAP_FLAGS, UNMAP_FLAGS } from './routes/dma.ts';
import { CALLS } from './routes/faults.ts';
import { Range } from './routes/groups.ts';
import { BackingBody, backingOf } from './routes/memory.ts';
import { DEFAULT_RLIMIT, rlimit_memlock } from './routes/tasks.ts';
import { featureBits, VhostFeatures } from './routes/vhost-devs.ts';
import { MEMSLOT_FLAGS } from './routes/vms.ts';
import {
  Base64,
  CInt,
  closed,
  Flags,
  Id,
  Int,
  MAX_PFN,
  Names,
  NotificationId,
  Nullable,
  PageFrame,
  PageFrames,
  StopAt,
  U64,
  UINT_MAX,
} from './schema.ts';
import { AreaName, SwitchesBody, Variant } from './views/vhost.ts';

const id = (what: string) => Id(what, 'a');
const task = id('Task');
const container = id('Container');
const group = id('Group');
const device = id('Device');
const caller = Type.Optional(Nullable(id('Task'), 'Calling task'));
const flag = Type.Optional(Type.Boolean());
const argsz = Type.Optional(Nullable(Int('Bytes', 0, UINT_MAX), 'Size that the caller gives the argument block'));
const range = { addr: U64('First byte'), length: U64('Bytes') };
const prot = Flags(['READ', 'WRITE'], 'Rights');
const dma = { iova: U64('First byte, device side'), size: U64('Bytes') };
const user_pfn = PageFrames('Guest page frame numbers: iova / 4096');
const npage = CInt('Pages');
const arrayForm = {
  user_pfn,
  npage: Type.Optional(npage),
  contiguous: Type.Optional(closed({ iova: U64('First byte') })),
};
const rangeForm = { iova: U64('First byte, device side'), npage };

const vm = id('Virtual machine');
const gfn = PageFrame('Guest page frame number');
const vhostDev = id('vhost device');
const vhostVq = { dev: vhostDev, vq: Int('Virtqueue', 0) };

const command = <const O extends Command['op'], P extends TProperties>(op: O, fields: P) =>
  closed({ op: Type.Literal(op), ...fields });

export const CommandBody = Type.Union(
  [
    command('map_dma', {
      container,
      task,
      ...dma,
      vaddr: U64('First byte, user side'),
      flags: Type.Optional(Flags(['READ', 'WRITE', 'VADDR'], 'Default: none')),
      argsz: Type.Optional(Int('Size that the caller gives the argument block', 0, UINT_MAX)),
    }),
    command('unmap_dma', {
      container,
      task: caller,
      ...dma,
      flags: Type.Optional(Flags(['GET_DIRTY_BITMAP', 'ALL', 'VADDR'], 'Default: none')),
      argsz,
      bitmap: Type.Optional(
        Nullable(
          closed({ pgsize: U64('Bytes'), size: U64('Bytes'), addr: Type.Optional(U64('Where')) }),
          'Where dirty bits go',
        ),
      ),
    }),
    command('pin_pages', { device, ...arrayForm, prot }),
    command('pin_pages', { device, ...rangeForm, prot }),
    command('unpin_pages', { device, ...arrayForm }),
    command('unpin_pages', { device, ...rangeForm }),
    command('dirty_pages', {
      container,
      flags: Type.Union([Names(['start', 'stop', 'get'], 'By name'), Int('The flags word')]),
      argsz,
      range: Type.Optional(
        Nullable(
          closed({
            ...dma,
            pgsize: U64('Bytes'),
            bitmap_size: U64('Bytes'),
            bitmap_addr: Type.Optional(U64('Where')),
          }),
          'Of get',
        ),
      ),
      task: caller,
    }),
    command('dma_rw', {
      device,
      iova: U64('First byte'),
      length: Int('Bytes', 0),
      write: flag,
      data: Type.Optional(Nullable(Base64('Bytes to write'), 'null: a read')),
      task: caller,
    }),
    command('register_notifier', { device, notifier: CommandNotifier }),
    command('unregister_notifier', {
      device,
      notifier: id('Notifier'),
      type: Type.Optional(Nullable(NotifierType, 'By default the type it was registered with')),
    }),
    command('ack_notification', {
      device,
      notification: NotificationId,
      ret: Type.Optional(
        Type.Union([Names(['NOTIFY_OK', 'NOTIFY_DONE', 'NOTIFY_STOP', 'NOTIFY_BAD'], 'By name'), CInt('By number')]),
      ),
      reason: Type.Optional(Names(['ack', 'webhook_failed', 'slow_builtin'], 'Default: ack')),
      detail: Type.Optional(Nullable(Type.String(), 'Why a webhook failed')),
    }),
    command('notification_timeout', { notification: NotificationId }),
    command('kill_operation', { operation: NotificationId }),
    command('put_device', { device, group: Nullable(group, 'Its group'), dma_unmap: flag }),
    command('put_device_in_container', {
      device,
      container,
      notifier: Type.Optional(Nullable(CommandNotifier, 'Registered at once')),
    }),
    command('open_device', { device }),
    command('close_device', { device }),
    command('put_container', { container }),
    command('close_container', { container, notify_only: flag }),
    command('set_iommu', {
      container,
      type: Type.Union([Names(['TYPE1', 'TYPE1v2'], 'By name'), Int('By number')]),
      task: caller,
    }),
    command('put_group', {
      group,
      kind: Type.Optional(Names(['mdev', 'iommu', 'noiommu'], 'Default: mdev')),
      reserved: Type.Optional(Type.Array(Range, { maxItems: 1024 })),
      aperture: Type.Optional(Range),
    }),
    command('open_group', { group, task: Type.Optional(task) }),
    command('close_group', { group }),
    command('set_container', { group, container, task: caller }),
    command('unset_container', { group }),
    command('put_task', {
      task,
      rlimit_memlock: Type.Optional(rlimit_memlock),
      cap_ipc_lock: flag,
      cap_sys_rawio: flag,
      thread_of: caller,
    }),
    command('patch_task', {
      task,
      rlimit_memlock: Type.Optional(rlimit_memlock),
      cap_ipc_lock: flag,
      cap_sys_rawio: flag,
    }),
    command('mmap', { task, ...range, prot, backing: Type.Optional(BackingBody), noreplace: flag, stop_at: StopAt }),
    command('munmap', { task, ...range, stop_at: StopAt }),
    command('mprotect', { task, ...range, prot, stop_at: StopAt }),
    command('exit', { task, thread_only: flag, stop_at: StopAt }),
    command('exec', { task }),
    command('adjust_locked_vm', { task, delta: Int('Pages, may be negative') }),
    command('put_page', {
      pfn: Int('Host page', 0, MAX_PFN),
      kind: Names(['normal', 'reserved', 'zero', 'device', 'zone_device'], 'Kind'),
    }),
    command('put_page_contents', { contents: Names(['zero', 'pattern'], 'Contents') }),
    command('put_fault', {
      fault: id('Fault rule'),
      point: Names(FAULT_POINTS, 'What fails'),
      call: Names(CALLS, 'Operation'),
      nth: Type.Optional(Int('Which attempt, from 1')),
    }),
    command('delete_fault', { fault: id('Fault rule') }),
    command('put_vm', { vm, task, zone_device_bug: flag, early_put: flag, allow_unsafe_mappings: flag }),
    command('delete_vm', { vm }),
    command('set_memory_region', {
      vm,
      slot: Int('Memslot'),
      flags: Flags(['LOG_DIRTY_PAGES', 'READONLY'], 'KVM_MEM_'),
      guest_phys_addr: U64('First byte, guest side'),
      memory_size: U64('Bytes'),
      userspace_addr: U64('First byte, host side'),
      stop_at: StopAt,
    }),
    command('vcpu_fault', {
      vm,
      gfn,
      write: Type.Boolean(),
      async_pf: Type.Boolean(),
      vcpu: Type.Optional(Int('vCPU', 0, 4095)),
      stop_at: StopAt,
    }),
    command('vcpu_map', { vm, gfn, map: Type.Optional(id('Mapping')), stop_at: StopAt }),
    command('vcpu_unmap', { vm, map: id('Mapping'), dirty: Type.Boolean() }),
    command('vcpu_map_rw', {
      vm,
      map: id('Mapping'),
      offset: Int('First byte', 0, 4095),
      length: Type.Optional(Int('Bytes to read', 1, 4096)),
      data: Type.Optional(Base64('Bytes to write')),
    }),
    command('refresh_pfn_cache', { vm, cache: id('Cache'), gfn, stop_at: StopAt }),
    command('delete_pfn_cache', { vm, cache: id('Cache') }),
    command('remove_device_pages', { pfn: PageFrame('First page'), npage: Int('Pages'), stop_at: StopAt }),
    command('put_vhost_dev', { dev: vhostDev, variant: Variant, nvqs: CInt('Virtqueues'), switches: SwitchesBody }),
    command('close_vhost_dev', { dev: vhostDev }),
    command('vhost_set_owner', { dev: vhostDev, task, stop_at: StopAt }),
    command('vhost_set_features', { dev: vhostDev, task, features: VhostFeatures }),
    command('vhost_set_vring_num', { ...vhostVq, task, num: Int('Entries'), stop_at: StopAt }),
    command('vhost_set_vring_addr', {
      ...vhostVq,
      task,
      flags: Int('VHOST_VRING_F_'),
      desc: U64('Address'),
      avail: U64('Address'),
      used: U64('Address'),
      stop_at: StopAt,
    }),
    command('vhost_set_backend', { ...vhostVq, task, active: Type.Boolean() }),
    command('vhost_round', { ...vhostVq, stop_at: StopAt }),
    command('vhost_access', {
      ...vhostVq,
      area: AreaName,
      off: CInt('First byte'),
      write: Type.Boolean(),
      length: Type.Optional(CInt('Bytes to read')),
      data: Type.Optional(Base64('Bytes to write')),
      stop_at: StopAt,
    }),
    command('patch_host', {
      dma_entry_limit: Type.Optional(Int('Entries', 0, UINT_MAX)),
      notifier_timeout_ms: Type.Optional(Int('Milliseconds', 1, MAX_TIMEOUT_MS)),
      ttl_s: Type.Optional(Nullable(Int('Seconds', 1, MAX_TTL_S), 'null: never')),
    }),
    ...MEMORY_COMMANDS,
    ...VFIO_PCI_COMMANDS,
    ...EXCLUSIVE_COMMANDS,
  ],
  { description: 'A command as the journal shows it' },
);
export type CommandJson = Static<typeof CommandBody>;

/** Fields that are byte addresses or sizes wherever they stand as text. */
const BYTES: ReadonlySet<string> = new Set([
  'addr',
  'avail',
  'desc',
  'end',
  'used',
  'aperture',
  'bitmap_addr',
  'bitmap_size',
  'buf',
  'guest_phys_addr',
  'image',
  'iova',
  'last',
  'length',
  'memory_size',
  'new_addr',
  'new_length',
  'offset',
  'old_length',
  'pgsize',
  'pos',
  'rlimit_memlock',
  'size',
  'start',
  'userspace_addr',
  'vaddr',
]);

/** The values of the kernel: bigint for bytes, no -0. */
function kernelValue(key: string, value: unknown): unknown {
  if (typeof value === 'number') return value + 0;
  if (typeof value === 'string') return BYTES.has(key) && value !== 'unlimited' ? BigInt(value) : value;
  if (Array.isArray(value)) return value.map((item) => kernelValue(key, item));
  if (typeof value !== 'object' || value === null) return value;
  const fields = Object.entries(value).filter(([, field]) => field !== undefined);
  return Object.fromEntries(fields.map(([name, field]) => [name, kernelValue(name, field)]));
}

/** What a command has where its JSON leaves a field out. */
const DEFAULTS: { [O in Command['op']]?: object } = {
  unmap_dma: { task: null, argsz: null, bitmap: null },
  dirty_pages: { argsz: null, range: null, task: null },
  dma_rw: { write: false, data: null, task: null },
  unregister_notifier: { type: null },
  put_device_in_container: { notifier: null },
  set_iommu: { task: null },
  put_group: { kind: 'mdev' },
  set_container: { task: null },
  put_task: { rlimit_memlock: BigInt(DEFAULT_RLIMIT), cap_ipc_lock: false, thread_of: null },
  mmap: { noreplace: false },
  put_fault: { nth: 1 },
  ack_notification: { ret: NOTIFY_RETURNS.NOTIFY_OK, reason: 'ack', detail: null },
  ...MEMORY_DEFAULTS,
};

/** The command that its JSON stands for. Precondition: it fits CommandBody. */
export function commandOf(json: CommandJson): Command {
  const plain = { ...DEFAULTS[json.op], ...(kernelValue('', { ...json, ...numbersOf(json) }) as object) };
  return plain as unknown as Command;
}

/** The fields that may be given by names, or in another shape, in the kernel's own. */
function numbersOf(json: CommandJson): object {
  switch (json.op) {
    case 'map_dma':
      return { flags: mask(json.flags ?? 0, MAP_FLAGS), argsz: u32(json.argsz ?? MAP_ARGSZ) };
    case 'unmap_dma':
      return { flags: mask(json.flags ?? 0, UNMAP_FLAGS) };
    case 'dirty_pages':
      return { flags: u32(numberOf(json.flags, DIRTY_FLAGS)) };
    case 'pin_pages':
      return { ...entriesOf(json), prot: mask(json.prot, MAP_FLAGS) };
    case 'unpin_pages':
      return entriesOf(json);
    case 'mprotect':
      return { prot: mask(json.prot, MAP_FLAGS) };
    case 'mmap':
      return { prot: mask(json.prot, MAP_FLAGS), backing: backingOf(json.backing) };
    case 'register_notifier':
      return { notifier: commandNotifierOf(json.notifier) };
    case 'put_device_in_container':
      return {
        notifier: json.notifier === undefined || json.notifier === null ? null : commandNotifierOf(json.notifier),
      };
    case 'unregister_notifier':
      return { type: json.type === undefined || json.type === null ? null : notifierType(json.type) };
    case 'ack_notification':
      return { ret: numberOf(json.ret ?? 'NOTIFY_OK', NOTIFY_RETURNS) };
    case 'set_memory_region':
      return { flags: mask(json.flags, MEMSLOT_FLAGS) };
    case 'vhost_set_features':
      return { features: featureBits(json.features) };
    case 'set_iommu':
      return { type: numberOf(json.type, IOMMU_TYPES) };
    case 'access':
    case 'gup':
    case 'ack_mmu_notification':
    case 'register_mmu_notifier':
    case 'get_mmu_notifier':
    case 'insert_interval_notifier':
      return memoryFieldsOf(json);
    default:
      return {};
  }
}

type Entries = Extract<CommandJson, { op: 'unpin_pages' }>;

function entriesOf(json: Entries | Extract<CommandJson, { op: 'pin_pages' }>): object {
  if ('iova' in json) return { user_pfn: [], npage: json.npage, contiguous: { iova: json.iova }, iova: undefined };
  return { npage: json.npage ?? json.user_pfn.length };
}
