// The random model test of profile 6.18.

import { testProfile } from './model-run.ts';
import type { Milestone } from './naive-types.ts';

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
  'charge is killed',
  'iova in no valid range',
  'unaligned record',
  'unpin ends with a WARN',
  'pin refused while a vaddr is invalid',
  'vaddr of another process',
  'bitmap with a dirty page',
  'unmap reports its bitmap',
  'dma_rw across two mappings',
  'sub-page write',
  'write pin of a read-only VM_PFNMAP page',
  'capability changed since the mapping',
  'restart whose range bisects',
];

testProfile('6.18', MILESTONES, []);
