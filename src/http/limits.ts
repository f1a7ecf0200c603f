// Every bound of the HTTP side, with its reason. Bounds of the service are in service/limits.ts, of the emulated machine in kernel/limits.ts.

/** Bytes of a request body: the largest explicit page layout that a test lays out by hand. */
export const BODY_LIMIT = 1024 * 1024;
/** Entries of one array in a body: far above the kernel's 512, so that the kernel answers E2BIG itself. */
export const MAX_ARRAY = 65536;
/** Commands that one differential request brings; a journal, or the command line, may have more. */
export const MAX_SENT_COMMANDS = 2000;
/** Profiles of one differential run: as many as there are. */
export const MAX_COMPARED_PROFILES = 5;
/** Ranges in one body: above the kernel's bound, so that it answers E2BIG itself. */
export const MAX_RANGES = 1024;
/** Fixes that one host names: more than there are, so that naming one twice is no error. */
export const MAX_FIXES = 64;
/** Digits of a byte address: 64 bits have 20, leading zeros are harmless. */
export const MAX_ADDRESS_DIGITS = 66;
/** Things that one scripted callback does: a driver's callback on a page. */
export const MAX_ACTIONS = 64;
/** Items of one page of a list. */
export const DEFAULT_PAGE = 1000;
export const MAX_PAGE = 10_000;
/** Characters of a cursor: base64url of a name or an address. */
export const MAX_CURSOR = 256;
/** Pages that one look into a task's memory shows. */
export const MAX_SHOWN_PAGES = 10_000;
/** Levels of a red-black tree that one reply shows: 2^16 nodes and more would not be read by anybody. */
export const MAX_TREE_DEPTH = 16;
/** Characters of a request id, of an idempotency key and of a notification id. */
export const MAX_REQUEST_ID = 128;
export const MAX_IDEMPOTENCY_KEY = 255;
export const MAX_NOTIFICATION_ID = 128;
/** Characters of one path segment: as many as Node's 16 KiB of headers let through, so that the schema refuses it by name. */
export const MAX_PARAM = 16 * 1024;
/** Characters of a webhook's URL and secret. */
export const MAX_URL = 2048;
export const MAX_SECRET = 256;
/** Milliseconds: a notifier timeout, or the delay of a built-in driver. Ten minutes outlast every human with a debugger's patience. */
export const MAX_TIMEOUT_MS = 600_000;
/** Seconds that an untouched host may live when it has an end: one year. */
export const MAX_TTL_S = 31_536_000;
/** Violations that one 400 lists. */
export const MAX_SHOWN_VIOLATIONS = 20;
/** Bodies above this are checked up to the first violation only: listing all costs memory in proportion. */
export const ALL_VIOLATIONS_BYTES = 16 * 1024;
/** Time in which a request must have arrived completely. */
export const REQUEST_TIMEOUT_MS = 60_000;
/** An idle kept-alive connection is closed after this. */
export const KEEP_ALIVE_TIMEOUT_MS = 72_000;
/** The event loop's mean delay above which requests are refused: a service that far behind only gets later. */
export const MAX_EVENT_LOOP_DELAY_MS = 5_000;
/** Share of the JavaScript heap above which requests are refused, so that what runs can finish. */
export const MAX_HEAP_SHARE = 0.92;
/** Seconds after which a client that got a 503 may try again. */
export const RETRY_AFTER_S = 1;
