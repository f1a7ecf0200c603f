// Models WARN_ON_ONCE() of the memory side.

import { type Host, splat } from '../host.ts';

/** A splat, the first time that the host comes to the place `where`. */
export function warnOnce(host: Host, where: string, what: string, path: readonly string[]): void {
  if (host.mm.warned.has(where)) return;
  host.mm.warned.add(where);
  splat(host, 'WARN', where, what, path);
}
