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
/** Bytes of all dirty bitmaps of a host. */
export const MAX_DIRTY_BITMAPS = 2 ** 26;
/** Bytes of one dma_rw, and of a dirty bitmap that a reply carries. */
export const MAX_DMA_RW = 2 ** 22;
export const MAX_BITMAP_REPLY = 2 ** 22;
/** Reserved regions of one group. */
export const MAX_RESERVED_REGIONS = 64;
/** Operations that wait at one time: each holds a client's request. */
export const MAX_PARKED_OPERATIONS = 1024;
/** Finished operations that are kept for reading. */
export const KEPT_OPERATIONS = 4096;
/** Entries that the kernel log keeps (a real ring buffer holds about as many lines). */
export const KEPT_DMESG = 8192;
/** Entries that the trace keeps. */
export const KEPT_TRACE = 65536;
/** Pages of one eager mmap layout (kinds 'pages' and 'pfnmap'): 16 GiB. */
export const MAX_EAGER_PAGES = 4_194_304;
/** Page-table leaves (512 entries, 4 KiB each) of all mms of a host: 512 MiB, 256 GiB of mapped memory where it is dense. */
export const MAX_PAGE_TABLES = 131_072;
/** Places of 512 page frames about which a host knows anything (4 KiB each): 512 MiB. */
export const MAX_PAGE_CHUNKS = 131_072;
/** Ranges that one leak report shows: a few MB, and more than anybody reads. */
export const MAX_SHOWN_LEAKS = 10_000;
