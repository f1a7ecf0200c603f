// What GETs show of files. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { fileFields, getFile } from '../mm/file.ts';
import type { Fields } from '../outcome.ts';
import { type Listed, listed } from './page.ts';

export const viewFile = (host: Host, name: string): Fields => fileFields(getFile(host, name));

/** By name. */
export function listFiles(host: Host, after: string | null, limit: number): Listed<string> {
  const found = [...host.mm.files.values()].filter(({ name }) => after === null || name > after);
  const sorted = found.sort((a, b) => (a.name < b.name ? -1 : 1));
  return listed(sorted, limit, ({ name }) => name, fileFields);
}
