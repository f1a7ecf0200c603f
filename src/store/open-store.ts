// Which store a DATABASE_URL means.

import type { Store } from '../service/ports.ts';
import { MemoryStore } from './memory-store.ts';
import { fileOfUrl } from './sqlite-file.ts';
import { SqliteStore } from './sqlite-store.ts';

/** `file:<path>` (SQLite) or `memory:`; throws an Error for anything else. The store is still to be opened. */
export function storeOfUrl(url: string): Store {
  if (url === 'memory:') return new MemoryStore();
  if (url.startsWith('file:')) return new SqliteStore(fileOfUrl(url));
  const scheme = /^[a-z+]+:/i.exec(url)?.[0] ?? url;
  throw new Error(`DATABASE_URL ${scheme} is not supported: use file:<path> or memory:`);
}

/** The store of a DATABASE_URL, opened. Throws StoreInUse or another Error that says what is wrong. */
export async function openStore(url: string): Promise<Store> {
  const store = storeOfUrl(url);
  await store.open();
  return store;
}
