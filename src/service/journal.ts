// The journal as clients see it: the commands as accepted, with their outcomes' digests.

import type { Command } from '../kernel/command.ts';
import { decodeCall } from './codec.ts';
import { JOURNAL_READ_ROWS, MAX_JOURNAL_PAGE_BYTES } from './limits.ts';
import type { HostRow, JournalRow, Store } from './ports.ts';

export interface JournalEntry {
  /** The entry's own counter, which is its seq. */
  n: number;
  seq: number;
  at: number;
  request_id: string;
  op: string;
  /** The notification inside whose handler the call was made; null: another thread. */
  notification: string | null;
  /** As it was accepted; a webhook's secret is hidden, and no outcome depends on it. */
  command: Command;
  /** Hex of the first 16 bytes of SHA-256 of the canonical outcome. */
  digest: string;
}

function entryOf({ seq, at, request_id, op, call, digest }: JournalRow): JournalEntry {
  const { notification, command } = decodeCall(call);
  hideSecret(command);
  return { n: seq, seq, at, request_id, op, notification, command, digest: Buffer.from(digest).toString('hex') };
}

function hideSecret(command: Command): void {
  const hasNotifier = command.op === 'register_notifier' || command.op === 'put_device_in_container';
  const delivery = hasNotifier ? command.notifier?.delivery : undefined;
  if (delivery?.kind === 'webhook') delivery.secret = '(hidden)';
  if ('handler' in command && command.handler.kind === 'webhook') command.handler.secret = '(hidden)';
}

/**
 * At most `limit` entries after `since`, fewer where they are large, and whether older ones in that span were dropped. `committed` is
 * the newest seq.
 */
export async function readJournal(
  store: Store,
  row: Readonly<HostRow>,
  committed: number,
  since: number,
  limit: number,
): Promise<{ items: JournalEntry[]; truncated: boolean }> {
  const rows = await readPage(store, row, since, limit);
  const oldest = rows[0]?.seq ?? (await store.oldestJournalSeq(row.id, row.generation));
  return { items: rows.map(entryOf), truncated: since + 1 < (oldest ?? committed + 1) };
}

/** Rows after `since` until there are `limit` of them or MAX_JOURNAL_PAGE_BYTES. */
async function readPage(
  store: Store,
  { id, generation }: Readonly<HostRow>,
  since: number,
  limit: number,
): Promise<JournalRow[]> {
  const page: JournalRow[] = [];
  for (let bytes = 0; page.length < limit && bytes < MAX_JOURNAL_PAGE_BYTES; ) {
    const most = Math.min(JOURNAL_READ_ROWS, limit - page.length);
    const rows = await store.journal(id, generation, page.at(-1)?.seq ?? since, most);
    for (const row of rows) {
      const last = page.at(-1);
      // Rows between the two were dropped since the last read: the next page begins with them and says so.
      if (last !== undefined && row.seq !== last.seq + 1) return page;
      if (bytes >= MAX_JOURNAL_PAGE_BYTES) return page;
      page.push(row);
      bytes += row.call.byteLength;
    }
    if (rows.length < most) return page;
  }
  return page;
}
