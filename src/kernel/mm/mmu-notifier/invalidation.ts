// One start and its end around a change of a page table: what most operations of the memory side are made of.

import type { Step } from '../../steps.ts';
import type { MmuRange } from './range.ts';

/** The steps of one pair, with its phases; where the change fails, the end comes all the same. */
export const invalidation = (range: MmuRange, change: readonly Step[], only_end = false): Step[] => [
  { do: 'phase', phase: 'before_start' },
  { do: 'invalidate_start', range },
  { do: 'phase', phase: 'after_start' },
  ...change,
  { do: 'phase', phase: 'before_end' },
  { do: 'invalidate_end', range, only_end, cleanup: true },
  { do: 'phase', phase: 'after_end' },
];
