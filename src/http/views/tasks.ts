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
