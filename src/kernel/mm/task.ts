// Models struct task_struct and signal_struct, as far as memory needs them: threads, their shared limit, their capability.

import type { Command } from '../command.ts';
import { Errno, NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { hex, PAGE_SIZE } from '../lib/u64.ts';
import { MAX_TASKS } from '../limits.ts';
import { type HeldLock, killWaits } from '../lock.ts';
import type { Done, Fields } from '../outcome.ts';
import { runThreads } from '../thread.ts';
import { type MmId, MmStruct } from './mm.ts';
import { releaseTaskLocks } from './task-locks.ts';

/** RLIM_INFINITY: an unlimited rlimit, as a number of bytes. */
export const RLIM_INFINITY = 2n ** 64n - 1n;

/** The body that a task was made with: what a repeated PUT is compared with. */
interface TaskBody {
  rlimit_memlock: bigint | 'unlimited';
  cap_ipc_lock: boolean;
  cap_sys_rawio?: boolean;
  thread_of: string | null;
}

export interface Task {
  id: string;
  pid: number;
  /** Id of the thread-group leader; its own for a leader. */
  leader: string;
  /** null once it has exited. */
  mm: MmId | null;
  cap_ipc_lock: boolean;
  /** Absent where nobody named it: it does not have it. */
  cap_sys_rawio?: boolean;
  body: TaskBody;
  /** Locks that it holds between two of its calls. */
  locks: HeldLock[];
  signal_pending: boolean;
  /** It dies as soon as it leaves the kernel: what waits killably gives up. */
  fatal_signal_pending: boolean;
}

/** What the threads of a process share (signal_struct). */
export interface ThreadGroup {
  rlimit_memlock: bigint | 'unlimited';
  /** Ids of the threads that have not exited. */
  threads: string[];
}

export function getTask(host: Host, id: string): Task {
  const task = host.mm.tasks.get(id);
  if (task === undefined) throw new NoSuchObject('task', id);
  return task;
}

/** CAP_SYS_RAWIO. */
export const hasSysRawio = ({ cap_sys_rawio }: Task): boolean => cap_sys_rawio === true;

export function threadGroupOf(host: Host, task: Task): ThreadGroup {
  const group = host.mm.thread_groups.get(task.leader);
  if (group === undefined) throw new Error(`thread group of '${task.id}' is missing`);
  return group;
}

/** The address space of a task; null once it has exited. */
export function mmOf(host: Host, id: string): MmStruct | null {
  const { mm } = getTask(host, id);
  return mm === null ? null : getMm(host, mm);
}

function getMm(host: Host, id: MmId): MmStruct {
  const mm = host.mm.mms.get(id);
  if (mm === undefined) throw new Error(`mm '${id}' is missing`);
  return mm;
}

/** The address space that a call works on. ESRCH: the task has exited. */
export function requireMm(host: Host, id: string): MmStruct {
  const mm = mmOf(host, id);
  if (mm === null) throw new Errno('ESRCH', `task '${id}' has exited`);
  return mm;
}

/** RLIMIT_MEMLOCK of a task in whole pages; Infinity where it is unlimited. */
export function taskRlimitPages(host: Host, id: string): number {
  const { rlimit_memlock } = threadGroupOf(host, getTask(host, id));
  if (rlimit_memlock === 'unlimited' || rlimit_memlock === RLIM_INFINITY) return Number.POSITIVE_INFINITY;
  const bytes = Number(rlimit_memlock);
  return bytes <= Number.MAX_SAFE_INTEGER ? Math.floor(bytes / PAGE_SIZE) : Number(rlimit_memlock >> 12n);
}

/** What a command that makes or changes a task answers. */
export function taskFields(host: Host, task: Task): Fields {
  const mm = task.mm === null ? null : getMm(host, task.mm);
  return {
    id: task.id,
    pid: task.pid,
    mm: task.mm,
    thread_of: task.leader === task.id ? null : task.body.thread_of,
    alive: mm !== null,
    rlimit_memlock: threadGroupOf(host, task).rlimit_memlock,
    cap_ipc_lock: task.cap_ipc_lock,
    ...(hasSysRawio(task) ? { cap_sys_rawio: true } : {}),
    locked_vm: mm === null ? null : mm.locked_vm,
    VmLck: mm === null ? null : mm.locked_vm * 4,
    VmPin: mm === null ? null : mm.pinned_vm * 4,
    VmRSS: mm === null ? null : mm.rss * 4,
  };
}

/** EEXIST: the task was made with another body; names the first field that differs. */
function requireSameBody(task: Task, body: TaskBody): void {
  for (const field of ['rlimit_memlock', 'cap_ipc_lock', 'cap_sys_rawio', 'thread_of'] as const) {
    const { [field]: made = false } = task.body;
    const { [field]: asked = false } = body;
    if (made === asked) continue;
    const print = (value: typeof made): string => (typeof value === 'bigint' ? hex(value) : String(value));
    throw new Errno('EEXIST', `task '${task.id}' exists with ${field} ${print(made)}, not ${print(asked)}`);
  }
}

export const newTask = (pid: number, leader: string, mm: MmId, id: string, body: TaskBody): Task => ({
  id,
  pid,
  leader,
  mm,
  cap_ipc_lock: body.cap_ipc_lock,
  ...(body.cap_sys_rawio === true ? { cap_sys_rawio: true } : {}),
  body,
  locks: [],
  signal_pending: false,
  fatal_signal_pending: false,
});

/** Precondition: its thread group exists. */
export function addTask(host: Host, task: Task): Task {
  host.mm.tasks.set(task.id, task);
  threadGroupOf(host, task).threads.push(task.id);
  return task;
}

/**
 * Starts a process, or a thread in the process of `thread_of`, whose mm and rlimit it shares (its own is not looked at).
 * EEXIST: made with another body. EAGAIN: the host has MAX_TASKS. ESRCH: `thread_of` has exited.
 */
export function putTask(host: Host, command: Extract<Command, { op: 'put_task' }>): Done {
  const { task: id, rlimit_memlock, cap_ipc_lock, thread_of } = command;
  const capable = command.cap_sys_rawio === true ? { cap_sys_rawio: true } : {};
  const body: TaskBody = { rlimit_memlock, cap_ipc_lock, ...capable, thread_of };
  const { mm: memory } = host;
  const existing = memory.tasks.get(id);
  if (existing !== undefined) {
    requireSameBody(existing, body);
    return { ret: 0, created: false, fields: taskFields(host, existing) };
  }
  if (memory.tasks.size >= MAX_TASKS)
    throw new Errno('EAGAIN', `tasks: the host has ${MAX_TASKS}, the most it can hold`);
  let leader = id;
  let mm: MmStruct;
  if (thread_of !== null) {
    leader = getTask(host, thread_of).leader;
    mm = requireMm(host, thread_of);
    mm.users++;
  } else {
    mm = new MmStruct(`mm-${memory.next_mm++}`);
    memory.mms.set(mm.id, mm);
    memory.thread_groups.set(id, { rlimit_memlock, threads: [] });
  }
  const task = addTask(host, newTask(memory.next_pid++, leader, mm.id, id, body));
  return { ret: 0, created: true, fields: taskFields(host, task) };
}

/**
 * Changes the limit of a process (prlimit) and the capability of one thread. A leader that has exited while other threads
 * live still stands for its process.
 * ESRCH: no thread of the process lives, or the thread whose capability is meant has exited.
 */
export function patchTask(host: Host, command: Extract<Command, { op: 'patch_task' }>): Done {
  const task = getTask(host, command.task);
  const group = threadGroupOf(host, task);
  if (group.threads.length === 0) throw new Errno('ESRCH', `task '${task.id}' has exited`);
  if (command.cap_ipc_lock !== undefined) {
    requireMm(host, task.id);
    task.cap_ipc_lock = command.cap_ipc_lock;
  }
  if (command.cap_sys_rawio !== undefined) {
    requireMm(host, task.id);
    task.cap_sys_rawio = command.cap_sys_rawio;
  }
  if (command.rlimit_memlock !== undefined) group.rlimit_memlock = command.rlimit_memlock;
  return { ret: 0, fields: taskFields(host, task) };
}

/**
 * A signal arrives: it stays pending, and a fatal one ends the waits that it may end. ESRCH: the task has exited.
 */
export function signalTask(host: Host, { task: id, fatal }: Extract<Command, { op: 'signal' }>): Done {
  requireMm(host, id);
  const task = getTask(host, id);
  task.signal_pending = true;
  if (fatal) task.fatal_signal_pending = true;
  if (fatal) killWaits(host, id);
  runThreads(host);
  return { ret: 0, fields: { signal_pending: true, fatal_signal_pending: task.fatal_signal_pending } };
}

/**
 * Models exit_mm() of one thread, a leader too. Returns the address space where that was its last user: it has to be torn down.
 * ESRCH: it has exited.
 */
export function exitThread(host: Host, id: string): MmStruct | null {
  const task = getTask(host, id);
  const mm = requireMm(host, id);
  const { threads } = threadGroupOf(host, task);
  threads.splice(threads.indexOf(task.id), 1);
  task.mm = null;
  releaseTaskLocks(host, task);
  mm.users--;
  if (mm.users > 0) return null;
  host.mm.mms.delete(mm.id);
  host.mm.zombies.set(mm.id, mm);
  return mm;
}

/**
 * Models de_thread() and exec_mmap(): the other threads of the process end, the task becomes its leader under the leader's pid,
 * and gets an empty address space. Who has exited before belongs to the same process still. Returns the old address space too
 * where that was its last user. ESRCH: it has exited.
 */
export function execMmap(host: Host, id: string): { task: Task & { mm: MmId }; last: MmStruct | null } {
  const task = getTask(host, id);
  requireMm(host, id);
  const { mm: memory } = host;
  const group = threadGroupOf(host, task);
  for (const other of group.threads.filter((thread) => thread !== id)) exitThread(host, other);
  const last = exitThread(host, id);
  const old = task.leader;
  if (old !== id) {
    const leader = getTask(host, old);
    [task.pid, leader.pid] = [leader.pid, task.pid];
    memory.thread_groups.delete(old);
    memory.thread_groups.set(id, group);
    for (const thread of memory.tasks.values()) if (thread.leader === old) thread.leader = id;
  }
  const mm = new MmStruct(`mm-${memory.next_mm++}`);
  memory.mms.set(mm.id, mm);
  group.threads.push(id);
  return { task: Object.assign(task, { mm: mm.id }), last };
}

/**
 * Somebody else changes locked_vm. A leader that has exited while other threads live still stands for its process.
 * ESRCH: no thread of the process lives. EOVERFLOW: a result that this model can't hold exactly.
 */
export function adjustLockedVm(host: Host, command: Extract<Command, { op: 'adjust_locked_vm' }>): Done {
  const task = getTask(host, command.task);
  const standsIn = task.mm === null && task.leader === task.id ? threadGroupOf(host, task).threads[0] : task.id;
  const mm = requireMm(host, standsIn ?? task.id);
  const locked_vm = mm.locked_vm + command.delta;
  if (!Number.isSafeInteger(locked_vm))
    throw new Errno('EOVERFLOW', `locked_vm: ${mm.locked_vm} + ${command.delta} is beyond 2^53`);
  mm.locked_vm = locked_vm;
  mm.adjusted += command.delta;
  return { ret: 0, fields: { locked_vm } };
}
