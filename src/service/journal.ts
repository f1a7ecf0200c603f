// The journal as clients see it: the commands as accepted, with their outcomes' digests.

import type { Command } from '../kernel/command.ts';
import { decodeCall } from './codec.ts';
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
}

/** At most `limit` entries after `since`, and whether older ones in that span were dropped. `committed` is the newest seq. */
export async function readJournal(
  store: Store,
  { id, generation }: Readonly<HostRow>,
  committed: number,
  since: number,
  limit: number,
): Promise<{ items: JournalEntry[]; truncated: boolean }> {
  const [oldest, rows] = await Promise.all([
    store.oldestJournalSeq(id, generation),
    store.journal(id, generation, since, limit),
  ]);
  return { items: rows.map(entryOf), truncated: since + 1 < (oldest ?? committed + 1) };
}
