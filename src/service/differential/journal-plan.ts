// The journal of a host as commands to be run again: whole, from the first one on.

import type { HostOptions } from '../../kernel/command.ts';
import { JournalIncomplete, TooManyCommands } from '../errors.ts';
import { optionsFromText } from '../host-options.ts';
import { type JournalEntry, readJournal } from '../journal.ts';
import { MAX_DIFFERENTIAL_COMMANDS } from '../limits.ts';
import type { HostRow, Store } from '../ports.ts';
import type { Item, Plan } from './item.ts';

/** A host whose journal is taken, up to a seq where one is given. */
export interface RecordedOn {
  host: string;
  until: number | null;
}

export const itemOf = ({ command, notification, at, request_id }: JournalEntry): Item => ({
  command,
  notification,
  at,
  request_id,
});

/** JournalIncomplete: its beginning was dropped. TooManyCommands. `committed` is the newest seq. */
export async function planOfJournal(
  store: Store,
  row: Readonly<HostRow>,
  committed: number,
  until: number | null,
): Promise<Plan> {
  const last = Math.min(committed, until ?? committed);
  if (last > MAX_DIFFERENTIAL_COMMANDS) throw new TooManyCommands('commands', MAX_DIFFERENTIAL_COMMANDS);
  const items: Item[] = [];
  while (items.length < last) {
    const page = await readJournal(store, row, committed, items.length, last - items.length);
    if (page.truncated || page.items.length === 0) throw new JournalIncomplete(row.id, page.items[0]?.seq ?? null);
    items.push(...page.items.map(itemOf));
  }
  const options: HostOptions = optionsFromText(row.options).created_with;
  return { items, options };
}
