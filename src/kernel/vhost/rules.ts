// The histories of one feature: how each version of vhost's metadata maps behaves, and every defect as a switch of its own.

export const VARIANTS = ['rfc2', 'merged', 'fixed', 'spinlock'] as const;
/**
 * rfc2: the second RFC, March 2019. merged: commit 7f466032dc of the 5.3 cycle. fixed: with all that was found repaired, so that
 * an accessor is counted. spinlock: the rework in which an accessor holds the spinlock of the callbacks.
 */
export type Variant = (typeof VARIANTS)[number];

/** Each switch with the values it can have; the last one is right. */
export const SWITCHES = {
  /** What an accessor holds while it is inside a map, and a start waits for. `seqlock`: nothing, it only notices afterwards. */
  reader: ['vq_mutex', 'rcu', 'seqlock', 'ref', 'mmu_lock'],
  /** Whether set_num and set_addr unregister the notifier and register it again, or leave it alone. */
  registration: ['per_ioctl', 'once'],
  /** Whether a registration that failed is noticed. */
  registration_result: ['ignored', 'checked'],
  /** What an end takes back: what it overlaps now, or what its own start counted. */
  count: ['overlap_now', 'recorded'],
  /** What becomes of the structure of a map that goes. */
  map_struct: ['leaked', 'freed'],
  /** Whether a map that goes outside a callback marks the pages dirty that were written through it. */
  teardown: ['clean', 'dirty'],
  /** When a start marks pages dirty: before or after it has waited for the accessors. */
  dirty_mark: ['before_readers', 'after_readers'],
  /** When a start that may not block is refused: always, only where it overlaps, never. */
  blockable_check: ['always', 'overlap_first', 'not_needed'],
  /** Whether set_num and set_addr move the areas although they are refused. */
  failed_ioctl: ['sets_uaddr', 'keeps_uaddr'],
  /** Pages of an area: its size in pages, or all that it touches. */
  page_count: ['size', 'span'],
  /** Whether an access through a map stops speculation, as copy_to_user() and copy_from_user() do. */
  speculation_barrier: ['none', 'present'],
} as const;

export type SwitchName = keyof typeof SWITCHES;
export type Switches = { [K in SwitchName]: (typeof SWITCHES)[K][number] };

const REPAIRED: Switches = {
  reader: 'ref',
  registration: 'once',
  registration_result: 'checked',
  count: 'recorded',
  map_struct: 'freed',
  teardown: 'dirty',
  dirty_mark: 'after_readers',
  blockable_check: 'overlap_first',
  failed_ioctl: 'keeps_uaddr',
  page_count: 'span',
  speculation_barrier: 'present',
};

const SWITCHES_OF: Readonly<Record<Variant, Switches>> = {
  rfc2: { ...REPAIRED, reader: 'vq_mutex', teardown: 'clean', speculation_barrier: 'none' },
  merged: {
    reader: 'rcu',
    registration: 'per_ioctl',
    registration_result: 'ignored',
    count: 'overlap_now',
    map_struct: 'leaked',
    teardown: 'clean',
    dirty_mark: 'before_readers',
    blockable_check: 'always',
    failed_ioctl: 'sets_uaddr',
    page_count: 'size',
    speculation_barrier: 'none',
  },
  fixed: REPAIRED,
  spinlock: { ...REPAIRED, reader: 'mmu_lock', blockable_check: 'not_needed' },
};

/** How a device behaves: as its variant does, but for what is switched. */
export const switchesOf = (variant: Variant, switched: Partial<Switches>): Switches => ({
  ...SWITCHES_OF[variant],
  ...switched,
});
