// The named places at which an operation of the memory side can be stopped.

/** In the order in which an operation comes to them; it may pass through all of them more than once. */
export const PHASES = [
  'before_start',
  'after_start',
  'after_seq_snapshot',
  'after_gup',
  'inside_map',
  'after_unregister',
  'before_insert',
  'slot_invalid',
  'after_pte_clear',
  'after_pte_set',
  'before_end',
  'after_end',
  // vfio-pci
  'after_vma_lock',
  'after_memory_lock',
  'before_populate',
  'after_populate',
  'after_zap',
  'before_unit',
  'in_reset',
] as const;

export type Phase = (typeof PHASES)[number];
