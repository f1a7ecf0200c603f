// Every bound of the service, with its reason. Bounds of the emulated machine itself are in kernel/limits.ts.

/** Hosts in one process: each keeps its journal position, timers and checkpoint state in memory. */
export const MAX_HOSTS = 1024;
/** Requests that wait for a commit, an operation or a notification at one time: each holds a connection and a few hundred bytes. */
export const MAX_WAITING_REQUESTS = 16384;
/** Commands executed but not committed: about one second of group commits; more only adds latency. */
export const MAX_UNCOMMITTED_COMMANDS = 4096;
/** Bytes of the same: a command may carry a page layout of 1 MiB. */
export const MAX_UNCOMMITTED_BYTES = 64 * 1024 * 1024;
/** Clients that wait for notifications of one device: a driver has one thread, a test bench a few. */
export const MAX_LONG_POLLS_PER_DEVICE = 64;
/** Longest wait of one long poll: proxies and load balancers close idle connections after about a minute. */
export const MAX_LONG_POLL_MS = 60_000;

/** Webhook calls in flight at one time, over all hosts: each holds a socket. Others wait their turn, their time running. */
export const MAX_OUTSTANDING_WEBHOOKS = 256;
/** Bytes of a webhook's response: `{"ret": "NOTIFY_OK"}` needs 20. */
export const MAX_WEBHOOK_RESPONSE_BYTES = 64 * 1024;
/** Bytes of response headers of a webhook. */
export const MAX_WEBHOOK_HEADER_BYTES = 16 * 1024;
/** Characters of a failure's description that are journaled with it. */
export const MAX_FAILURE_DETAIL = 300;

/** A checkpoint is written after this many commands: re-executing as many takes less than a second. */
export const CHECKPOINT_COMMANDS = 20_000;
/** ... or after this many bytes of journal, which bounds the read at a restart. */
export const CHECKPOINT_BYTES = 32 * 1024 * 1024;
/** Bytes of checkpoint sections in one transaction: a few milliseconds between two group commits. */
export const CHECKPOINT_WRITE_BYTES = 1024 * 1024;
/** Journal rows that are read at one time in recovery. */
export const RECOVERY_READ_ROWS = 1000;
/** Bytes of commands after which a page of the journal ends: as JSON they take some tenths of a second. */
export const MAX_JOURNAL_PAGE_BYTES = 4 * 1024 * 1024;
/** Journal rows that are read at one time for a page: each may have a page layout of 1 MiB. */
export const JOURNAL_READ_ROWS = 64;
/** Commands that stay in the journal behind a checkpoint unless JOURNAL_KEEP says otherwise. */
export const DEFAULT_JOURNAL_KEEP = 1_000_000;
/** Idempotency keys that a host keeps: the HTTP contract names the number. */
export const KEPT_IDEMPOTENCY_KEYS = 100_000;
/** Rows that one trimming transaction deletes. */
export const TRIM_ROWS = 2000;
/** How far the relational rows may be behind the journal while commands arrive. */
export const PROJECTION_DELAY_MS = 250;
/** First and longest pause before another try to load a host whose commit failed. */
export const RELOAD_PAUSE_MS = 100;
export const MAX_RELOAD_PAUSE_MS = 5_000;
/** Time a stop may take: the process has 8 s, of which the HTTP side needs some. */
export const STOP_BUDGET_MS = 6_000;
/** Seconds after which a client that got a 503 may try again. */
export const RETRY_AFTER_S = 1;
/** ... where a person has to look at it first (a quarantined host). */
export const QUARANTINE_RETRY_AFTER_S = 60;
/** How often hosts with a ttl_s are looked at: ttl_s counts seconds. */
export const TTL_SWEEP_MS = 1_000;
/** Tries to read a host at the start before it is quarantined: a store that fails as often needs a person. */
export const START_LOAD_TRIES = 3;

/** Commands of one differential run: an hour of a busy driver; each is executed once a profile, and again to find causes. */
export const MAX_DIFFERENTIAL_COMMANDS = 20_000;
/** Steps of handlers that a profile calls and the recording does not have; beyond, their notifications are left waiting. */
export const MAX_HANDLER_COMMANDS = 100_000;
/** Commands that are executed to find the causes of one comparison; differences that come later are shown without a cause. */
export const MAX_CAUSE_COMMANDS = 400_000;
/** Differences that one comparison shows: more than anybody reads. */
export const MAX_SHOWN_DIFFERENCES = 200;
/** Records and host pages of which the states are compared when all commands are done. */
export const MAX_COMPARED_RECORDS = 200_000;
/** Entries of a list, and characters of a text, that the answers of a difference show. */
export const MAX_SHOWN_ENTRIES = 32;
export const MAX_SHOWN_TEXT = 400;
/** Differential runs at one time: each holds as many hosts in memory as it compares. */
export const MAX_DIFFERENTIALS = 2;
/** Time of one differential run; beyond it the client is told to send less. */
export const MAX_DIFFERENTIAL_MS = 60_000;
/** Time that a differential run takes at a stretch, before whatever else waits has its turn. */
export const DIFFERENTIAL_SLICE_MS = 5;
