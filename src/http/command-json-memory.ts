// Commands of the memory side as JSON, as GET .../journal shows them: tasks, files, pages, notifiers of an mm, stopped operations.

import Type, { type Static, type TProperties } from 'typebox';
import { type Command, MMU_CALLS } from '../kernel/command.ts';
import { MMU_EVENTS } from '../kernel/mm/mmu-notifier/range.ts';
import { mmuReturnOf } from '../service/mmu-return.ts';
import { CallbackNames, HandlerJson, handlerOf, MmuReturn } from './mmu-notifier-spec.ts';
import { mask } from './parse.ts';
import { DIRTY, FAULT_FLAG_NAMES, FAULT_FLAGS, FOLL, FOLL_NAMES, lockName } from './routes/accesses.ts';
import { ADVICE } from './routes/memory-operations.ts';
import {
  Base64,
  Caller,
  CInt,
  Count,
  closed,
  Flags,
  Id,
  Names,
  NotificationId,
  Nullable,
  PageFrame,
  StopAt,
  U64,
} from './schema.ts';

const command = <const O extends Command['op'], P extends TProperties>(op: O, fields: P) =>
  closed({ op: Type.Literal(op), ...fields });

const task = Id('Task', 'a');
const gup = Id('Result of gup', 'g1');
const file = Id('File', 'f1');
const mm = Id('Address space', 'mm-1');
const pfn = PageFrame('Host page');
const addr = U64('First byte');
const length = U64('Bytes');
const range = { addr, length };
const flag = Type.Optional(Type.Boolean());
const stop_at = StopAt;

const TASKS = [
  command('mremap', {
    task,
    addr,
    old_length: U64('Bytes now'),
    new_length: U64('Bytes after'),
    new_addr: U64('Where to'),
    stop_at,
  }),
  command('madvise', { task, ...range, advice: Names(ADVICE, 'MADV_'), stop_at }),
  command('mlock', { task, ...range, lock: Type.Boolean() }),
  command('clear_soft_dirty', { task, stop_at }),
  command('oom_reap', { task, stop_at }),
  command('signal', { task, fatal: Type.Boolean() }),
  command('access', {
    task,
    addr,
    write: Type.Boolean(),
    flags: Type.Optional(Flags(FAULT_FLAG_NAMES, 'FAULT_FLAG_')),
    length: Type.Optional(Count('Bytes to read')),
    data: Type.Optional(Base64('Bytes to write')),
    stop_at,
  }),
  command('fork', { task, child: task, stop_at }),
  command('gup', {
    task,
    addr,
    npage: CInt('Pages'),
    flags: Flags(FOLL_NAMES, 'FOLL_'),
    gup: Type.Optional(gup),
    stop_at,
  }),
  command('put_gup', { gup, dirty: Type.Optional(Names(DIRTY, 'Default: no')), task: Caller }),
  command('ksm_merge', { task, addr, with: closed({ task, addr }), stop_at }),
  command('migrate_vma', { task, ...range, owner: Id('Driver', 'dmirror'), stop_at }),
  command('lock', { task, lock: lockName, stop_at }),
  command('unlock', { task, lock: lockName }),
] as const;

const PAGES = [
  command('put_file', { file, size: length }),
  command('truncate', { file, size: length, stop_at }),
  command('punch_hole', { file, offset: addr, length, stop_at }),
  command('mkclean', { pfn, stop_at }),
  command('reclaim', { pfn, stop_at }),
  command('migrate', { pfn, stop_at }),
] as const;

const made = Type.Optional(Id('Id of the notifier; made when absent', 'n1'));
const handler = Type.Optional(HandlerJson);
const plain = { mm, id: made, callbacks: CallbackNames, handler, interrupted: flag, task: Caller };
const notifier = { mm: Type.Optional(mm), id: Id('Notifier', 'n1') };
const sequence = Count('What read_begin answered');

const NOTIFIERS = [
  command('register_mmu_notifier', plain),
  command('unregister_mmu_notifier', { id: notifier.id, task: Caller }),
  command('get_mmu_notifier', { ...plain, ops: Id('Ops table', 'kvm_ops'), alloc_fails: flag }),
  command('put_mmu_notifier', { ...notifier, task: Caller }),
  command('insert_interval_notifier', { mm, id: made, start: addr, length, handler, task: Caller }),
  command('remove_interval_notifier', { id: notifier.id, task: Caller }),
  command('interval_read_begin', { ...notifier, task: Caller }),
  command('interval_read_retry', { ...notifier, sequence }),
  command('interval_check_retry', { ...notifier, sequence }),
  command('interval_set_seq', { ...notifier, sequence }),
  command('map_secondary', { ...notifier, addr, writable: Type.Boolean(), task: Caller }),
  command('unmap_secondary', { ...notifier, addr }),
  command('invalidate', {
    mm,
    start: addr,
    end: U64('One past the last byte'),
    event: Names(MMU_EVENTS, 'Why'),
    blockable: Type.Optional(Type.Boolean({ description: 'Default: true' })),
    owner: Type.Optional(Nullable(Id('Whose event it is', 'dmirror'), 'null: nobody')),
    only_end: flag,
    stop_at,
    task: Caller,
  }),
  command('mmu_call', {
    mm,
    callback: Names(MMU_CALLS, 'Which'),
    start: addr,
    end: Type.Optional(U64('One past the last byte')),
    task: Caller,
  }),
  command('ack_mmu_notification', {
    mm: Type.Optional(mm),
    notification: NotificationId,
    ret: Type.Optional(MmuReturn),
    reason: Type.Optional(Names(['ack', 'webhook_failed'], 'Default: ack')),
    detail: Type.Optional(Nullable(Type.String(), 'Why a webhook failed')),
  }),
] as const;

const OPERATIONS = [
  command('step_operation', { operation: NotificationId }),
  command('resume_operation', { operation: NotificationId, stop_at }),
] as const;

export const MEMORY_COMMANDS = [...TASKS, ...PAGES, ...NOTIFIERS, ...OPERATIONS] as const;
type MemoryCommandJson = Static<(typeof MEMORY_COMMANDS)[number]>;

/** What a command of the memory side has where its JSON leaves a field out. */
export const MEMORY_DEFAULTS: { [O in Command['op']]?: object } = {
  put_gup: { dirty: 'no' },
  invalidate: { blockable: true },
  ack_mmu_notification: { ret: 0, reason: 'ack', detail: null },
};

type Translated =
  | 'access'
  | 'gup'
  | 'ack_mmu_notification'
  | 'register_mmu_notifier'
  | 'get_mmu_notifier'
  | 'insert_interval_notifier';

/** The fields that may be given by names, or be left to what a request would mean, in the kernel's own. */
export function memoryFieldsOf(json: Extract<MemoryCommandJson, { op: Translated }>): object {
  switch (json.op) {
    case 'access':
      return json.flags === undefined ? {} : { flags: mask(json.flags, FAULT_FLAGS) };
    case 'gup':
      return { flags: mask(json.flags, FOLL) };
    case 'ack_mmu_notification':
      return { ret: mmuReturnOf(json.ret ?? 0) };
    case 'register_mmu_notifier':
    case 'get_mmu_notifier':
      return json.handler === undefined ? handlerOf(json.callbacks, undefined) : {};
    case 'insert_interval_notifier':
      return json.handler === undefined ? { handler: handlerOf(['invalidate'], undefined).handler } : {};
  }
}
