// One of every command of the memory side, with every field that a journal can show.

import type { Command } from '../../src/kernel/command.ts';
import type { Handler } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';

const at = { task: 't', addr: 4096n };
const range = { ...at, length: 8192n };
const stop = { stop_at: 'after_start' } as const;
const by = { mm: 'mm-1', id: 'n1', task: 't' };
const sequence = { mm: 'mm-1', id: 'n1', sequence: 3 };

const scripted: Handler = {
  kind: 'script',
  scripts: {
    invalidate_range_start: {
      actions: [
        { action: 'lock', lock: 'mutex:m', hold: true },
        { action: 'dirty_lock', page: 7 },
        { action: 'dirty', page: 0 },
        { action: 'drop' },
        { action: 'sleep' },
        { action: 'alloc' },
        { action: 'unlock', lock: 'mutex:m' },
      ],
      returns: -11,
    },
    release: { actions: [], returns: 0 },
  },
};
const interval: Handler = {
  kind: 'script',
  scripts: { invalidate: { actions: [{ action: 'set_seq' }], returns: 1 } },
};
const webhook: Handler = { kind: 'webhook', url: 'http://127.0.0.1:1/', secret: '(hidden)' };

export const EVERY_MEMORY: readonly Command[] = [
  { op: 'mremap', ...at, old_length: 4096n, new_length: 8192n, new_addr: 2n ** 40n, ...stop },
  { op: 'madvise', ...range, advice: 'WIPEONFORK', ...stop },
  { op: 'mlock', ...range, lock: false },
  { op: 'clear_soft_dirty', task: 't', ...stop },
  { op: 'oom_reap', task: 't', ...stop },
  { op: 'signal', task: 't', fatal: true },
  { op: 'access', ...at, write: false },
  { op: 'access', ...at, write: false, flags: 5, length: 16, ...stop },
  { op: 'access', ...at, write: true, data: 'AQI=' },
  { op: 'fork', task: 't', child: 'u', ...stop },
  { op: 'gup', ...at, npage: -1, flags: 1 },
  { op: 'gup', ...at, npage: 2, flags: 2 ** 31, gup: 'g', ...stop },
  { op: 'put_gup', gup: 'g', dirty: 'set_page_dirty_lock', task: 't' },
  { op: 'put_file', file: 'f', size: 4096n },
  { op: 'truncate', file: 'f', size: 0n, ...stop },
  { op: 'punch_hole', file: 'f', offset: 4096n, length: 1n, ...stop },
  { op: 'ksm_merge', ...at, with: { task: 'u', addr: 8192n }, ...stop },
  { op: 'mkclean', pfn: 5, ...stop },
  { op: 'reclaim', pfn: 5, ...stop },
  { op: 'migrate', pfn: 5, ...stop },
  { op: 'migrate_vma', ...range, owner: 'd', ...stop },
  { op: 'lock', task: 't', lock: 'page_lock:5', ...stop },
  { op: 'unlock', task: 't', lock: 'mutex:vq' },
  {
    op: 'register_mmu_notifier',
    ...by,
    callbacks: ['invalidate_range_start', 'release'],
    handler: scripted,
    interrupted: true,
  },
  { op: 'register_mmu_notifier', mm: 'mm-1', callbacks: ['release'], handler: { kind: 'poll' } },
  { op: 'unregister_mmu_notifier', id: 'n1', task: 't' },
  {
    op: 'get_mmu_notifier',
    ...by,
    ops: 'kvm_ops',
    callbacks: ['alloc_notifier', 'free_notifier'],
    handler: webhook,
    interrupted: true,
    alloc_fails: true,
  },
  { op: 'put_mmu_notifier', ...by },
  { op: 'insert_interval_notifier', ...by, start: 4096n, length: 8192n, handler: interval },
  { op: 'remove_interval_notifier', id: 'n1', task: 't' },
  { op: 'interval_read_begin', ...by },
  { op: 'interval_read_retry', ...sequence },
  { op: 'interval_check_retry', ...sequence },
  { op: 'interval_set_seq', id: 'n1', sequence: 3 },
  { op: 'map_secondary', ...by, addr: 4096n, writable: true },
  { op: 'unmap_secondary', mm: 'mm-1', id: 'n1', addr: 4096n },
  {
    op: 'invalidate',
    mm: 'mm-1',
    start: 4096n,
    end: 8192n,
    event: 'MIGRATE',
    blockable: false,
    owner: 'd',
    only_end: true,
    task: 't',
    ...stop,
  },
  { op: 'invalidate', mm: 'mm-1', start: 0n, end: 4096n, event: 'CLEAR', blockable: true, owner: null },
  { op: 'mmu_call', mm: 'mm-1', callback: 'test_young', start: 4096n, end: 8192n, task: 't' },
  {
    op: 'ack_mmu_notification',
    mm: 'mm-1',
    notification: 'mmu-notification-1',
    ret: -11,
    reason: 'webhook_failed',
    detail: 'why',
  },
  { op: 'step_operation', operation: 'munmap-7' },
  { op: 'resume_operation', operation: 'munmap-7', ...stop },
];
