// Every bound of an emulated host, with its reason. The kernel's own limits come first, ours after.

/** Entries in one pin or unpin call: an array of unsigned long may take one page (VFIO_PIN_PAGES_MAX_ENTRIES). */
export const PIN_PAGES_MAX_ENTRIES = 512;
/** Notifier calls for one stuck vfio_dma before BUG_ON: the first try and ten retries. */
export const UNMAP_MAX_RETRIES = 10;
/** Largest dirty bitmap in bytes (DIRTY_BITMAP_SIZE_MAX). */
export const DIRTY_BITMAP_SIZE_MAX = 2n ** 28n;
/** First address beyond user space on x86-64 with four-level page tables (TASK_SIZE). */
export const TASK_SIZE = 0x7ffffffff000n;
export const TASK_SIZE_PAGES = Number(TASK_SIZE >> 12n);
/** Areas in one mm (sysctl vm.max_map_count). */
export const MAX_MAP_COUNT = 65530;

/** Objects of one kind in a host: an emulated machine with more is a mistake of the caller. */
export const MAX_TASKS = 4096;
export const MAX_FILES = 4096;
export const MAX_CONTAINERS = 1024;
export const MAX_GROUPS = 4096;
export const MAX_DEVICES = 4096;
export const MAX_NOTIFIERS = 16384;
/** Pages whose kind a caller declares one by one. */
export const MAX_DECLARED_PAGES = 1_048_576;
/** Runs in one explicit page layout: what fits a request body of 1 MiB. */
export const MAX_PFN_RUNS = 65536;
/** Forced failures that wait for their call. */
export const MAX_FAULTS = 1024;
/** Host pages whose bytes are kept because somebody wrote them: 64 MiB. */
export const MAX_WRITTEN_PAGES = 16384;
/** Pages in the swap area of a host: 64 MiB where each was written. */
export const MAX_SWAP_SLOTS = 16384;
/** Pages written back to all files of a host whose bytes are kept: 64 MiB. */
export const MAX_STORED_PAGES = 16384;
/** Bytes of all dirty bitmaps of a host. */
export const MAX_DIRTY_BITMAPS = 2 ** 26;
/** Bytes of one dma_rw, and of a dirty bitmap that a reply carries. */
export const MAX_DMA_RW = 2 ** 22;
export const MAX_BITMAP_REPLY = 2 ** 22;
/** Reserved regions of one group. */
export const MAX_RESERVED_REGIONS = 64;
/** Operations that wait at one time: each holds a client's request. */
export const MAX_PARKED_OPERATIONS = 1024;
/** References that get_user_pages() gave out and that are still held, and pages of one call. */
export const MAX_GUPS = 4096;
export const MAX_GUP_PAGES = 65536;
/** Finished operations that are kept for reading. */
export const KEPT_OPERATIONS = 4096;
/** Entries that the kernel log keeps (a real ring buffer holds about as many lines). */
export const KEPT_DMESG = 8192;
/** Entries that the trace keeps. */
export const KEPT_TRACE = 65536;
/** Violations of the mmu_notifier contract that are kept for reading. */
export const KEPT_VIOLATIONS = 8192;
/** Steps of threads in one command: far beyond the largest operation with many notifiers; more is a livelock, a defect of ours. */
export const MAX_STEPS = 2 ** 26;
/** Locks that a task keeps at one time: pages of a batch, and what a driver holds beside them. */
export const MAX_TASK_LOCKS = 256;
/** Orders of lock classes that lockdep notes; every search goes through all of them. The kernel's own bound is 32768. */
export const MAX_LOCKDEP_ENTRIES = 4096;
/** Virtual machines of a host. */
export const MAX_VMS = 256;
/** vhost devices of a host, and virtqueues of one. */
export const MAX_VHOST_DEVS = 256;
export const MAX_VHOST_VQS = 128;
/** Devices of vfio-pci of a host. */
export const MAX_VFIO_PCI = 256;
/** Bytes of one BAR: more page-table entries than a host may have could not map it. */
export const MAX_BAR_LENGTH = 2n ** 34n;
/** Bytes of one read() or write() of a BAR: each unit of 1, 2 or 4 bytes is an access to the device of its own. */
export const MAX_BAR_RW = 65536;
/** Writes to a device that wait for a signal of their eventfd (VFIO_PCI_IOEVENTFD_MAX). */
export const VFIO_PCI_IOEVENTFD_MAX = 1000;
/** Memslots of a virtual machine (KVM_USER_MEM_SLOTS up to 5.11). */
export const KVM_USER_MEM_SLOTS = 509;
/** Pages of one memslot (KVM_MEM_MAX_NR_PAGES). */
export const KVM_MEM_MAX_NR_PAGES = 2 ** 31 - 1;
/** Faults of one vCPU that wait for their pages at a time (ASYNC_PF_PER_VCPU). */
export const ASYNC_PF_PER_VCPU = 64;
/** Pages that a virtual machine maps for its guest: 256 MiB. */
export const MAX_SPTES = 65536;
/** Mappings of guest pages that a virtual machine keeps open, and gfn_to_pfn_caches. */
export const MAX_HOST_MAPS = 1024;
/** Runs of dirty pages that one reading of a memslot shows. */
export const MAX_SHOWN_DIRTY_RUNS = 1024;
/** Devices that can have pages to themselves. */
export const MAX_EXCLUSIVE_DEVICES = 256;
/** Grants of all devices of a host: each holds locks and references of pages. */
export const MAX_EXCLUSIVE_GRANTS = 1024;
/** Pages of one call of a device: each is looked up in the page tables of all address spaces. */
export const MAX_EXCLUSIVE_PAGES = 1024;
/** Pages that a device has mapped: 256 MiB. */
export const MAX_DEVICE_MAPPINGS = 65536;
/** Attempts of a device to read page tables that it collides in (the kernel's give up after a second). */
export const MAX_MIRROR_ATTEMPTS = 16;
/** Pages of a device that one removal takes away. */
export const MAX_REMOVED_PAGES = 512;
/** Pages of one eager mmap layout (kinds 'pages' and 'pfnmap'): 16 GiB. */
export const MAX_EAGER_PAGES = 4_194_304;
/** Page-table leaves (512 entries, 4 KiB each) of all mms of a host: 512 MiB, 256 GiB of mapped memory where it is dense. */
export const MAX_PAGE_TABLES = 131_072;
/** Places of 512 page frames about which a host knows anything (4 KiB each): 512 MiB. */
export const MAX_PAGE_CHUNKS = 131_072;
/** Ranges that one leak report shows: a few MB, and more than anybody reads. */
export const MAX_SHOWN_LEAKS = 10_000;
/** Runs of pages that the trace names for one pin or unpin. */
export const MAX_TRACED_RUNS = 16;
/** Secondary mappings of one mmu notifier that a view shows: what a person reads. */
export const MAX_SHOWN_SECONDARY = 1024;
