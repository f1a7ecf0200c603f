// The kernels a host can behave as: one table of named behaviours, no version comparison anywhere else.

export type ProfileName = '4.10' | '5.4' | '5.8' | '5.15' | '6.18';

/** One behaviour: what it means, the kernel functions that have it, and its value in each profile. */
export interface Behaviour<V> {
  readonly meaning: string;
  /** Named as in the releases of the profiles; where a function got another name or was split, both. */
  readonly functions: readonly string[];
  readonly values: Readonly<Record<ProfileName, V>>;
}

type Values<V> = readonly [V, V, V, V, V];

const behaviour = <const V>(
  meaning: string,
  functions: readonly string[],
  [a, b, c, d, e]: Values<V>,
): Behaviour<V> => ({
  meaning,
  functions,
  values: { '4.10': a, '5.4': b, '5.8': c, '5.15': d, '6.18': e },
});

const NO_EXTENSIONS: readonly number[] = [1, 3, 6];

/** Each row: behaviour(meaning, kernel functions, values in the order 4.10, 5.4, 5.8, 5.15, 6.18). `npm run fidelity` measures what pins it. */
export const BEHAVIOURS = {
  // The interface
  release: behaviour(
    'Release whose function names appear in splats',
    ['dump_stack_print_info'],
    ['4.10.0', '5.4.0', '5.8.1', '5.15.85', '6.18.2'],
  ),
  pinForm: behaviour(
    'What a pin names: an array of user_pfn, or iova and npage of a contiguous range',
    ['vfio_pin_pages', 'vfio_iommu_type1_pin_pages'],
    ['user_pfn', 'user_pfn', 'user_pfn', 'user_pfn', 'iova'],
  ),
  listener: behaviour(
    'Who is told of an unmap: a registered notifier block, or the dma_unmap op of every open device',
    ['vfio_register_notifier', 'vfio_iommu_type1_register_device', 'vfio_dma_do_unmap'],
    ['notifier', 'notifier', 'notifier', 'notifier', 'dma_unmap'],
  ),
  extensions: behaviour<readonly number[]>(
    'Numbers that VFIO_CHECK_EXTENSION answers 1 to without an iommu object',
    ['vfio_iommu_type1_ioctl', 'vfio_iommu_type1_check_extension'],
    [NO_EXTENSIONS, NO_EXTENSIONS, NO_EXTENSIONS, [1, 3, 6, 9, 10], [1, 3, 9]],
  ),
  mapFlags: behaviour<number>(
    'Flag bits that VFIO_IOMMU_MAP_DMA knows',
    ['vfio_iommu_type1_ioctl', 'vfio_iommu_type1_map_dma'],
    [0x3, 0x3, 0x3, 0x7, 0x7],
  ),
  unmapFlags: behaviour<number>(
    'Flag bits that VFIO_IOMMU_UNMAP_DMA knows',
    ['vfio_iommu_type1_ioctl', 'vfio_iommu_type1_unmap_dma'],
    [0x0, 0x0, 0x1, 0x7, 0x7],
  ),
  rangeOverflow: behaviour(
    'Errno of a mapping, and from 6.18 of a pin and an unmap, that passes the end of the 64-bit space',
    ['vfio_dma_do_map', 'vfio_dma_do_unmap', 'vfio_iommu_type1_pin_pages'],
    ['EINVAL', 'EINVAL', 'EINVAL', 'EINVAL', 'EOVERFLOW'],
  ),
  unmapWrapTest: behaviour(
    'Whether an unmap whose range passes the end of the 64-bit space is refused',
    ['vfio_dma_do_unmap'],
    [false, true, true, true, true],
  ),
  infoCapabilities: behaviour<readonly number[]>(
    'Capability chain of VFIO_IOMMU_GET_INFO: 1 iova ranges (only if there are any), 2 migration, 3 dma_avail',
    ['vfio_iommu_type1_ioctl', 'vfio_iommu_type1_get_info'],
    [[], [1], [2, 1], [2, 3, 1], [2, 3, 1]],
  ),
  infoCapabilityAlign: behaviour<number>(
    'Bytes to which the size of each capability is rounded up',
    ['vfio_info_cap_add'],
    [1, 1, 1, 1, 8],
  ),

  // Pin and unpin
  pinBias: behaviour<number>(
    'Raw page references of one pin: 1024 since FOLL_PIN',
    ['try_grab_page', 'try_grab_folio'],
    [1, 1, 1024, 1024, 1024],
  ),
  noiommuUser: behaviour(
    'A pin, unpin or dma_rw through a device of a noiommu group',
    ['vfio_group_add_container_user', 'vfio_device_container_pin_pages'],
    ['EPERM', 'EPERM', 'EPERM', 'EPERM', 'ENOTTY'],
  ),
  multiDeviceGroupPin: behaviour(
    'A pin from a device in a group of several devices',
    ['vfio_pin_pages'],
    ['allowed', 'allowed', 'EINVAL', 'EINVAL', 'allowed'],
  ),
  externalDomainNeeded: behaviour(
    'Pin and unpin need an mdev group in the container',
    ['vfio_iommu_type1_pin_pages', 'vfio_iommu_type1_unpin_pages'],
    [true, false, false, false, false],
  ),
  deviceOpenCheck: behaviour(
    'Pin, unpin and dma_rw through a device that is not open are refused with a WARN',
    ['vfio_assert_device_open'],
    [false, false, false, false, true],
  ),
  zeroPagePin: behaviour(
    'The reference that a pin of the shared zero page takes',
    ['vaddr_get_pfn', 'vaddr_get_pfns', 'put_pfn'],
    ['kept-for-ever', 'kept-for-ever', 'kept-for-ever', 'released-at-once', 'never-taken'],
  ),
  pfnmapPfn: behaviour(
    'Where the pfn of a VM_PFNMAP page comes from: the offset in the area, or the page table, faulted in',
    ['vaddr_get_pfn', 'follow_fault_pfn'],
    ['linear', 'linear', 'page-table', 'page-table', 'page-table'],
  ),
  pfnmapReadOnlyWrite: behaviour(
    'A write pin of a read-only VM_PFNMAP page',
    ['follow_fault_pfn'],
    ['allowed', 'allowed', 'allowed', 'EFAULT', 'EFAULT'],
  ),
  pfnWithoutStructPage: behaviour(
    'A pin of a page that has no struct page',
    ['vfio_iommu_type1_pin_pages'],
    ['returned', 'returned', 'returned', 'returned', 'EINVAL'],
  ),
  addRecordFailure: behaviour(
    'No memory for a vfio_pfn: the page just pinned and its charge',
    ['vfio_iommu_type1_pin_pages'],
    ['leak', 'leak', 'leak', 'undone', 'undone'],
  ),

  // Accounting
  taskKept: behaviour(
    'The task of a mapping: the calling thread, or the leader of its thread group',
    ['vfio_dma_do_map'],
    ['thread', 'leader', 'leader', 'leader', 'leader'],
  ),
  mmKept: behaviour(
    'Where the mm of a mapping comes from: its task at each use, or the mapping itself',
    ['vfio_dma_do_map', 'vfio_pin_page_external', 'vfio_lock_acct'],
    ['task', 'task', 'task', 'task', 'mapping'],
  ),
  capIpcLock: behaviour(
    'When CAP_IPC_LOCK is looked at: at each pin, or once when the mapping is made',
    ['vfio_dma_do_map', 'vfio_pin_page_external'],
    ['pin', 'map', 'map', 'map', 'map'],
  ),
  limitTest: behaviour(
    'When RLIMIT_MEMLOCK is tested for a pin: always, or only where the page is charged',
    ['vfio_pin_page_external'],
    ['always', 'charged', 'charged', 'charged', 'charged'],
  ),
  charge: behaviour(
    'How locked_vm changes: without a test, or under the limit and killable while it waits for the mm lock',
    ['vfio_lock_acct'],
    ['unchecked', 'checked', 'checked', 'checked', 'checked'],
  ),
  underflowWarning: behaviour(
    'Whether an uncharge below 0 warns once',
    ['__account_locked_vm'],
    [false, true, true, true, true],
  ),
  dmaEntryLimit: behaviour(
    'Whether dma_entry_limit bounds the mappings of a container',
    ['vfio_iommu_type1_open', 'vfio_dma_do_map'],
    [false, true, true, true, true],
  ),

  // Map and unmap
  iovaRanges: behaviour(
    'Whether reserved regions and apertures of IOMMU-backed groups bound the iovas',
    ['vfio_iommu_iova_dma_valid', 'vfio_iommu_type1_attach_group'],
    [false, true, true, true, true],
  ),
  endOfSpace: behaviour(
    'Whether a mapping that ends at 2^64 is found',
    ['vfio_find_dma'],
    ['hidden', 'hidden', 'hidden', 'hidden', 'found'],
  ),
  unmapOrder: behaviour(
    'How an unmap walks the mappings: any overlapping one from the root of the tree, or by iova',
    ['vfio_dma_do_unmap'],
    ['tree', 'tree', 'tree', 'ascending', 'ascending'],
  ),
  foreignMmUnmap: behaviour(
    'An unmap meets a mapping of another mm: it ends there with success, or goes on',
    ['vfio_dma_do_unmap'],
    ['ends', 'ends', 'ends', 'ends', 'allowed'],
  ),
  bisectOnRestart: behaviour(
    'The bisect test fails after a notification: the result of the unmap',
    ['vfio_dma_do_unmap'],
    ['EINVAL', 'EINVAL', 'EINVAL', 'success', 'success'],
  ),
  doubleRegister: behaviour(
    'A notifier block that is on the chain is registered again',
    ['notifier_chain_register'],
    ['corrupts', 'warns-once-and-corrupts', 'warns', 'warns', 'warns'],
  ),
  leftoverCheck: behaviour(
    'When leftover pins are warned about: when the last mdev group leaves, or when their mapping is removed',
    ['vfio_sanity_check_pfn_list', 'vfio_remove_dma'],
    ['at-detach', 'at-detach', 'at-detach', 'at-removal', 'at-removal'],
  ),
  detachFunction: behaviour(
    'Function through which a group leaves its container, as call traces name it',
    ['__vfio_group_unset_container', 'vfio_group_detach_container'],
    [
      '__vfio_group_unset_container',
      '__vfio_group_unset_container',
      '__vfio_group_unset_container',
      '__vfio_group_unset_container',
      'vfio_group_detach_container',
    ],
  ),
  groupChainCheck: behaviour(
    'When a group notifier chain that is not empty is warned about',
    ['vfio_group_fops_open', 'vfio_group_fops_release'],
    ['close', 'open', 'open', 'open', 'close'],
  ),
  groupLockAroundCalls: behaviour(
    "Whether an unmap holds the lock of the container's groups while handlers run, so that attach and detach deadlock",
    ['vfio_fops_unl_ioctl', 'vfio_group_set_container'],
    [true, false, false, false, false],
  ),

  // IOMMU-backed groups
  remotePinBatch: behaviour<number>(
    'Pages that the IOMMU path gets at a time',
    ['vfio_pin_pages_remote'],
    [1, 1, 1, 512, 512],
  ),
  remotePinFault: behaviour(
    'A fault in the middle of a chunk: what was pinned before it is kept as a chunk, or dropped',
    ['vfio_pin_pages_remote'],
    ['kept', 'kept', 'kept', 'dropped', 'dropped'],
  ),
  remotePinOverLimit: behaviour(
    'The limit in the middle of a chunk: what was pinned before it is kept as a chunk, or dropped',
    ['vfio_pin_pages_remote'],
    ['kept', 'dropped', 'dropped', 'dropped', 'dropped'],
  ),
  failedReplay: behaviour(
    'What a failed replay had pinned and mapped',
    ['vfio_iommu_replay'],
    ['leak', 'leak', 'leak', 'undone', 'undone'],
  ),

  // Dirty log, dma_rw, vaddr
  dirtyLog: behaviour(
    'VFIO_IOMMU_DIRTY_PAGES',
    ['vfio_iommu_type1_ioctl', 'vfio_iommu_type1_dirty_pages'],
    [false, false, true, true, true],
  ),
  dirtyFillOnDetach: behaviour(
    'An IOMMU-backed group leaves that never pinned: everything is dirty once',
    ['vfio_iommu_type1_detach_group'],
    [false, false, false, true, true],
  ),
  dmaRw: behaviour('vfio_dma_rw()', ['vfio_dma_rw'], [false, false, true, true, true]),
  dmaRwDirties: behaviour(
    'Pages that a dma_rw write marks dirty: only whole ones, or all that it touches',
    ['vfio_iommu_type1_dma_rw_chunk'],
    ['touched', 'touched', 'whole', 'touched', 'touched'],
  ),
  invalidVaddr: behaviour(
    'A pin while a vaddr is invalid: there is no such state, the pin waits, or it is EBUSY',
    ['vfio_find_dma_valid', 'vfio_iommu_type1_pin_pages', 'vfio_dma_do_unmap'],
    ['none', 'none', 'none', 'waits', 'EBUSY'],
  ),
} as const;

export type BehaviourName = keyof typeof BEHAVIOURS;
type ValueOf<B> = B extends Behaviour<infer V> ? V : never;

export type Profile = { readonly [K in BehaviourName]: ValueOf<(typeof BEHAVIOURS)[K]> } & {
  readonly name: ProfileName;
};

const profileOf = (name: ProfileName): Profile =>
  Object.fromEntries([
    ['name', name],
    ...Object.entries(BEHAVIOURS).map(([key, { values }]) => [key, values[name]]),
  ]) as Profile;

/** The profiles that a host can be made with. */
export const PROFILE_NAMES: readonly ProfileName[] = ['4.10', '5.4', '5.8', '5.15', '6.18'];
export const PROFILES: Readonly<Partial<Record<ProfileName, Profile>>> = Object.fromEntries(
  PROFILE_NAMES.map((name) => [name, profileOf(name)]),
);
export const DEFAULT_PROFILE: ProfileName = '5.15';

/** Known defects of old kernels that a host can be made without: the behaviour, and the value of kernels that fixed it. */
export const FIXES: Readonly<Record<string, Partial<Profile>>> = {
  add_record_leak: { addRecordFailure: 'undone' },
  bisect_on_restart: { bisectOnRestart: 'success' },
  dma_rw_dirty_pages: { dmaRwDirties: 'touched' },
  double_register: { doubleRegister: 'warns' },
  end_of_space: { endOfSpace: 'found' },
  exec_underflow: { mmKept: 'mapping' },
  failed_replay_leak: { failedReplay: 'undone' },
  group_lock: { groupLockAroundCalls: false },
  limit_test_when_iommu_backed: { limitTest: 'charged' },
  thread_as_owner: { taskKept: 'leader' },
  unmap_wrap: { unmapWrapTest: true },
  zero_page_reference: { zeroPagePin: 'released-at-once' },
};

/**
 * A profile without the defects that are named. The newest one has none of them. Precondition: the names are known.
 */
export function profileWith(name: string, fixes: readonly string[]): Profile {
  const profile = PROFILES[name as ProfileName];
  if (profile === undefined) throw new Error(`no profile '${name}'`);
  if (fixes.length === 0 || profile.name === PROFILE_NAMES.at(-1)) return profile;
  return Object.assign({ ...profile }, ...fixes.map((fix) => FIXES[fix] ?? {}));
}
