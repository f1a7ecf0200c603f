// What a host of an mmu notifier trace holds before the first operation: one task, with some memory to unmap when it exits.

import type { Command } from '../../../kernel/command.ts';

export const TASK = 'T';

export const LAYOUT: readonly Command[] = [
  { op: 'put_task', task: TASK, rlimit_memlock: 'unlimited', cap_ipc_lock: false, thread_of: null },
  {
    op: 'mmap',
    task: TASK,
    addr: 0x10000000n,
    length: 0x1000n,
    prot: 3,
    backing: { kind: 'anon' },
    noreplace: true,
  },
];
