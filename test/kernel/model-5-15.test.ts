// The random model test of profile 5.15.

import { ANON } from './model-begin.ts';
import type { Recipe } from './model-commands.ts';
import { type FailedOnce, testProfile } from './model-run.ts';
import { type Milestone, PAGE } from './naive-types.ts';

const mapOf = (task: string, size: bigint): Recipe => ({
  do: 'command',
  command: { op: 'map_dma', container: 'C', task, iova: 0x10000n, vaddr: ANON, size, flags: 3, argsz: 32 },
  inside: null,
});
const unmapOf = (task: string | null, inside: number | null): Recipe => ({
  do: 'unmap what is mapped',
  ...{ which: 0, task, flags: 0, inside },
});

/** Runs that failed once, as fast-check shrank them. */
const FAILED_ONCE: FailedOnce[] = [
  {
    what: 'a nested unmap of a foreign mm needs no walk, so that a waiting writer does not deadlock it',
    beginning: {},
    recipes: [
      mapOf('A1', 9n * PAGE),
      { do: 'pin what is mapped', which: 0, device: 'D1', pages: [0] },
      unmapOf(null, null),
      {
        do: 'command',
        command: {
          op: 'register_notifier',
          device: 'D2',
          notifier: { id: 'L0', events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } },
        },
        inside: null,
      },
      unmapOf('B', 0),
    ],
  },
  {
    what: 'a walk that waited behind an unregistration does not call the block that has gone',
    beginning: { rlimitPages: 2 },
    recipes: [
      mapOf('A', PAGE),
      { do: 'pin what is mapped', which: 0, device: 'D1', pages: [0] },
      unmapOf(null, null),
      unmapOf(null, null),
      { do: 'command', command: { op: 'unregister_notifier', device: 'D2', notifier: 'L0', type: null }, inside: null },
      { do: 'answer', which: 0, ret: 0, times: 1 },
      { do: 'time out', which: 0, times: 1 },
    ],
  },
];

const MILESTONES: readonly Milestone[] = [
  'rollback in the middle of a batch',
  'eleventh notification and BUG',
  'competing unmap inside a callback',
  'late ack',
  'ENOMEM of the limit',
  'nested call refused as a deadlock',
  'restart of the service inside an unmap',
  'tries counted anew for another mapping',
  'record without memory',
  'pins left behind leak',
  'charge below zero',
  'VM_PFNMAP page pinned',
  'zero page pinned',
  'range that passes the end of the space',
  'replay on attach',
  'failed replay',
  'mapping refused by the IOMMU path',
  're-accounting on detach',
  'pin beside a domain',
  'pin by one of several devices',
  'register waits for a callback',
  'unregister waits for a callback',
  'walk waits behind a writer',
  'restart whose range bisects',
  'double registration',
  'end at a mapping of another mm',
  'mapping that ends at 2^64 is not found',
  'owner of a mapping exited, its process lives',
  'charge is killed',
  'iova in no valid range',
  'pin waits for a vaddr',
  'dma_rw waits for a vaddr',
  'vaddr of another process',
  'bitmap with a dirty page',
  'unmap reports its bitmap',
  'dma_rw across two mappings',
  'sub-page write',
  'write pin of a read-only VM_PFNMAP page',
  'capability changed since the mapping',
];

testProfile('5.15', MILESTONES, FAILED_ONCE);
