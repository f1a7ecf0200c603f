// A page of a list: keyset paging over anything that is kept in order.

import type { Fields } from '../outcome.ts';

export interface Listed<K> {
  items: Fields[];
  /** Key of the last item, where more follow; null at the end. */
  next: K | null;
}

/** At most `limit` items of an ordered sequence that begins after the last key shown. */
export function listed<T, K>(
  sequence: Iterable<T>,
  limit: number,
  keyOf: (item: T) => K,
  show: (item: T) => Fields,
): Listed<K> {
  const items: Fields[] = [];
  let last: K | null = null;
  for (const item of sequence) {
    if (items.length === limit) return { items, next: last };
    items.push(show(item));
    last = keyOf(item);
  }
  return { items, next: null };
}

/** The values of a map whose ids come after `after`, in order of their ids. */
export function byId<T extends { id: string }>(map: ReadonlyMap<string, T>, after: string | null): T[] {
  const found: T[] = [];
  for (const item of map.values()) if (after === null || item.id > after) found.push(item);
  return found.sort((a, b) => (a.id < b.id ? -1 : 1));
}
