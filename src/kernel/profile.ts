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

  // MMU notifiers
  invalidateRangeCallback: behaviour(
    'Whether notifiers have invalidate_range, called under the page-table lock',
    ['__mmu_notifier_invalidate_range'],
    [true, true, true, true, false],
  ),
  changePteCallback: behaviour(
    'Whether notifiers have change_pte',
    ['__mmu_notifier_change_pte'],
    [true, true, true, true, false],
  ),
  failedStart: behaviour(
    'A start that may not block fails: nobody is told of an end, or every notifier that has one at once',
    ['__mmu_notifier_invalidate_range_start', 'mn_hlist_invalidate_range_start'],
    ['no-end', 'no-end', 'no-end', 'ends-all', 'ends-all'],
  ),
  badStartWarning: behaviour(
    'Whether a start is warned about that fails although it may block, or not with EAGAIN',
    ['__mmu_notifier_invalidate_range_start', 'mn_hlist_invalidate_range_start'],
    [false, false, true, true, true],
  ),
  intervalNotifiers: behaviour(
    'Whether there are interval notifiers',
    ['mmu_interval_notifier_insert'],
    [false, false, true, true, true],
  ),
  intervalInsertTest: behaviour(
    'The counter of an mm that an interval notifier is refused by when it is 0',
    ['__mmu_interval_notifier_insert'],
    ['mm_count', 'mm_count', 'mm_count', 'mm_users', 'mm_users'],
  ),
  failedStartKeepsCount: behaviour(
    'Whether a range that a plain notifier has refused counts as active for ever, where there are interval notifiers',
    ['__mmu_notifier_invalidate_range_start', 'mn_itree_invalidate'],
    [false, false, true, true, true],
  ),
  ownerEvents: behaviour(
    'Whether there are the events MIGRATE and EXCLUSIVE, and owners of ranges',
    ['mmu_notifier_range_init_owner'],
    [false, false, false, true, true],
  ),

  // Host mm
  anonReuse: behaviour(
    'When a private page becomes writable where it is: with no reference but one mapping, or also while it is marked exclusive',
    ['do_wp_page', 'wp_can_reuse_anon_folio'],
    ['references', 'references', 'references', 'references', 'exclusive'],
  ),
  forkPinned: behaviour(
    'What fork does with a private page that may be pinned: it is shared, copied for the child, or copied if exclusive',
    ['copy_present_pte', 'copy_present_page'],
    ['shared', 'shared', 'shared', 'copied', 'copied-if-exclusive'],
  ),
  softDirtyPinned: behaviour(
    'What clear_refs does with a private page that may be pinned: protects it, or passes it over',
    ['clear_soft_dirty', 'pte_is_pinned'],
    ['protected', 'protected', 'protected', 'passed-over', 'passed-over'],
  ),
  reclaimOfPinned: behaviour(
    'Reclaim of an anonymous page that may be pinned: it is unmapped and kept, or refused before that',
    ['shrink_page_list'],
    ['unmapped', 'unmapped', 'unmapped', 'refused', 'refused'],
  ),
  unmapMappingLock: behaviour(
    'How i_mmap is locked while entries of a file are taken away: W alone, R with others',
    ['unmap_mapping_pages'],
    ['W', 'W', 'W', 'W', 'R'],
  ),

  // Consumers
  vhostMetadata: behaviour(
    'Whether vhost can map the metadata of its rings; no release kept it',
    ['vhost_map_prefetch', 'vhost_invalidate_vq_start'],
    [false, true, true, true, true],
  ),

  // Device-exclusive access
  deviceExclusive: behaviour(
    'Whether a device can have pages of a process to itself, until anybody else looks at them',
    ['make_device_exclusive_range', 'remove_device_exclusive_entry'],
    [false, false, false, true, true],
  ),
  exclusiveFaultReference: behaviour(
    'Whether a fault on a device-exclusive entry has a reference of the page while it waits for its lock',
    ['remove_device_exclusive_entry'],
    ['none', 'none', 'none', 'none', 'taken'],
  ),

  // vfio-pci
  vfioPciMemoryGate: behaviour(
    'Whether vfio-pci keeps user space away from the memory of a device while its memory space is disabled',
    ['vfio_pci_memory_enabled', '__vfio_pci_memory_enabled'],
    [false, false, true, true, true],
  ),
  vfioPciFault: behaviour(
    'What a fault of a BAR mapping installs: the whole area, listed, after vma_lock is dropped or under it; or one page, unlisted',
    ['vfio_pci_mmap_fault', 'vfio_pci_mmap_open', 'vfio_pci_mmap_close', 'vfio_pci_zap_and_vma_lock'],
    ['none', 'none', 'whole-unlocked', 'whole-locked', 'one-page'],
  ),
  vfioPciReadLock: behaviour(
    'How long a read or write of a BAR holds memory_lock: the whole call, or each access to the device',
    ['vfio_pci_bar_rw', 'vfio_pci_core_iowrite32'],
    ['none', 'none', 'whole-call', 'each-unit', 'each-unit'],
  ),
  vfioPciIoeventfdTest: behaviour(
    'Whether an ioeventfd tests the memory enable bit before it writes',
    ['vfio_pci_ioeventfd_handler'],
    [false, false, false, true, true],
  ),
  vfioPciPowerGate: behaviour(
    'Whether the memory of a device counts as disabled in D3hot and in runtime power management',
    ['vfio_lock_and_set_power_state', '__vfio_pci_memory_enabled'],
    [false, false, false, false, true],
  ),

  // KVM
  kvmCountedRanges: behaviour(
    'Which invalidations KVM counts: all of its mm, or those that overlap a memslot',
    ['kvm_mmu_notifier_invalidate_range_start', '__kvm_handle_hva_range'],
    ['all', 'all', 'all', 'memslots', 'memslots'],
  ),
  kvmRetryRange: behaviour(
    'What an open invalidation makes a fault retry: any fault, or one inside the hull of the open ranges, in hva or in gfn',
    ['mmu_notifier_retry', 'mmu_notifier_retry_hva', 'mmu_invalidate_retry_gfn'],
    ['any', 'any', 'any', 'hva', 'gfn'],
  ),
  kvmChangePte: behaviour(
    'A change_pte of KVM: counts in the sequence, or does something between a start and its end alone',
    ['kvm_mmu_notifier_change_pte'],
    ['counts', 'counts', 'counts', 'in-invalidation', 'in-invalidation'],
  ),
  kvmMemslotUpdate: behaviour(
    'Whether a change of the memslots waits until no invalidation of the mm is open',
    ['install_new_memslots', 'kvm_swap_active_memslots'],
    ['at-once', 'at-once', 'at-once', 'waits', 'waits'],
  ),
  kvmInvalidMemslot: behaviour(
    'A fault on a memslot that is being deleted or moved: emulated as MMIO, or retried',
    ['try_async_pf', 'kvm_faultin_pfn'],
    ['EMULATE', 'EMULATE', 'EMULATE', 'RETRY', 'RETRY'],
  ),
  kvmRemappedReadOnly: behaviour(
    'A guest write to a VM_PFNMAP page whose page-table entry is read-only',
    ['hva_to_pfn_remapped'],
    ['writable', 'writable', 'writable', 'RO_FAULT', 'RO_FAULT'],
  ),
  kvmPfnReferences: behaviour(
    'Which references of pages KVM drops: not of reserved pages and the zero page, not of reserved pages, or those it got',
    ['kvm_is_reserved_pfn', 'kvm_release_pfn_clean', 'kvm_release_faultin_page'],
    ['zero-reserved', 'zero-reserved', 'zero-reserved', 'reserved', 'explicit'],
  ),
  kvmUncountedPage: behaviour(
    'A page of a VM_PFNMAP area that has a struct page and no reference: referenced all the same, refused, or not referenced',
    ['hva_to_pfn_remapped', 'kvm_try_get_pfn'],
    ['referenced', 'referenced', 'referenced', 'EFAULT', 'unreferenced'],
  ),
  kvmDirtyMark: behaviour(
    'When a page that the guest may write is marked dirty: as its SPTE goes, or at the fault',
    ['kvm_set_pfn_dirty', 'kvm_release_faultin_page'],
    ['zap', 'zap', 'zap', 'zap', 'fault'],
  ),
  kvmFatalSignal: behaviour(
    'A guest fault whose page is not got because of a fatal signal',
    ['hva_to_pfn', 'kvm_handle_error_pfn'],
    ['EFAULT', 'EFAULT', 'EFAULT', 'EFAULT', 'EINTR'],
  ),
  kvmMapReference: behaviour(
    'What kvm_vcpu_map() holds of a page: a reference, or a pin, and then nothing of a VM_PFNMAP page unless that is allowed',
    ['kvm_vcpu_map', 'kvm_vcpu_unmap', '__kvm_vcpu_map'],
    ['get', 'get', 'get', 'get', 'pin'],
  ),
  kvmPfnCache: behaviour(
    'Whether there are gfn_to_pfn_caches, mappings of guest pages that an invalidation revokes',
    ['kvm_gpc_refresh', 'gfn_to_pfn_cache_invalidate_start'],
    [false, false, false, false, true],
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
  failed_start_count: { failedStartKeepsCount: false },
  failed_replay_leak: { failedReplay: 'undone' },
  group_lock: { groupLockAroundCalls: false },
  limit_test_when_iommu_backed: { limitTest: 'charged' },
  thread_as_owner: { taskKept: 'leader' },
  unmap_wrap: { unmapWrapTest: true },
  zero_page_reference: { zeroPagePin: 'released-at-once' },
};

/** Those of them that the newest kernel has, too. */
const NOT_FIXED: readonly string[] = ['failed_start_count'];

/**
 * A profile without the defects that are named; the newest one has few of them. Precondition: the names are known.
 */
export function profileWith(name: string, fixes: readonly string[]): Profile {
  const profile = PROFILES[name as ProfileName];
  if (profile === undefined) throw new Error(`no profile '${name}'`);
  const had = profile.name === PROFILE_NAMES.at(-1) ? fixes.filter((fix) => NOT_FIXED.includes(fix)) : fixes;
  if (had.length === 0) return profile;
  return Object.assign({ ...profile }, ...had.map((fix) => FIXES[fix] ?? {}));
}
