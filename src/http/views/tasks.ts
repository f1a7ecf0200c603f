// Schemas of what GETs show of tasks, their areas and their pages.

import Type from 'typebox';
import { Count, closed, Int, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, id, names, object, str } from './fields.ts';

export const TaskFields = {
  id,
  pid: Count('Process id'),
  mm: Nullable(Type.String(), 'Address space; null once the task has exited'),
  thread_of: Nullable(Type.String(), 'Task whose thread it is'),
  alive: bool('Whether it has not exited'),
  rlimit_memlock: Type.Union([Type.Literal('unlimited'), U64Out('Bytes')], { description: 'RLIMIT_MEMLOCK' }),
  cap_ipc_lock: bool('CAP_IPC_LOCK'),
  cap_sys_rawio: Type.Optional(bool('CAP_SYS_RAWIO; a reply to a command leaves false out')),
  locked_vm: Nullable(Int('Pages'), 'Pages charged to the mm'),
  VmLck: Nullable(Type.Integer(), 'As in /proc/PID/status, in kB'),
  VmPin: Nullable(Type.Integer(), 'As in /proc/PID/status, in kB'),
  VmRSS: Nullable(Type.Integer(), 'As in /proc/PID/status, in kB'),
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
      closed({
        kind: Type.Literal('file'),
        file: str('File'),
        pgoff: Int('Page of the file at addr'),
        shared: bool('MAP_SHARED'),
      }),
      closed({
        kind: Type.Literal('device'),
        consumer: str('Whose memory'),
        of: str('Device'),
        pfn: PageFrame('Host page at addr'),
      }),
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
  entry: Names(
    ['none', 'present', 'swap', 'migration', 'device_exclusive', 'device_private', 'hwpoison'],
    'What the entry of the page table is',
  ),
  flags: names('PTE flags'),
  swap_slot: Nullable(Count('Slot'), 'Of a swap entry'),
  entry_pfn: Nullable(PageFrame('Host page'), 'Of a migration or device entry: the page that it names'),
  ref_count: Int('Raw counter, bias of pins included from 5.8 on'),
  pin_count: Count('Pins'),
  dirty: bool('Whether a pin was released with the dirty mark'),
});

export const Page = object('Page', {
  pfn: PageFrame('Host page'),
  kind: Names(['normal', 'reserved', 'zero', 'device', 'zone_device'], 'What it is'),
  struct_page: bool('Whether it has a struct page'),
  mapping: Nullable(Names(['anon', 'file', 'ksm'], 'Kind'), 'What it is a page of'),
  ref_count: Int('Raw counter, bias of pins included from 5.8 on'),
  mapcount: Count('Page-table entries that map it'),
  pin_count: Count('Pins'),
  dirty: bool('Whether a pin was released with the dirty mark'),
  needs_writeback: bool('Whether what it holds is to be written back'),
  swap_slot: Nullable(Count('Slot'), 'Slot of the swap cache that it is in'),
  locked_by: Nullable(Type.String(), 'Operation, or `task:<id>`, that holds its page lock'),
});
