// The random model test of profile 4.10.

import { type FailedOnce, testProfile } from './model-run.ts';
import type { Milestone } from './naive-types.ts';

/** Runs that failed once, as fast-check shrank them. */
const FAILED_ONCE: FailedOnce[] = [
  {
    what: 'a nested unmap meets by the tree what a search by iova misses behind a mapping that ends at 2^64',
    beginning: { rlimitPages: 3, mappings: 1, top: true },
    recipes: [
      { do: 'unmap what is mapped', which: 0, task: null, flags: 0, inside: null },
      {
        do: 'command',
        command: {
          op: 'register_notifier',
          device: 'D2',
          notifier: { id: 'L1', events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } },
        },
        inside: null,
      },
      { do: 'unmap what is mapped', which: 0, task: 'A', flags: 0, inside: 0 },
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
  'attach or detach beside an unmap',
  'restart whose range bisects',
  'double registration',
  'end at a mapping of another mm',
  'mapping that ends at 2^64 is not found',
  'owner of a mapping exited, its process lives',
  'removal in another order than by iova',
  'a chain closed to a loop is walked',
  'write pin of a read-only VM_PFNMAP page',
  'capability changed since the mapping',
];

testProfile('4.10', MILESTONES, FAILED_ONCE);
