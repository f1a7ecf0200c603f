// What GET /v1/hosts and GET /v1/hosts/{host} show, also of a host that is not in memory.

import type { Host } from '../kernel/host.ts';
import type { Fields } from '../kernel/outcome.ts';
import { leaks, viewHost } from '../kernel/view/host.ts';
import { optionsFromText } from './host-options.ts';
import type { HostRow } from './ports.ts';

/** The kernel's view of the host, with `quarantined: { reason, revision } | null`; `state` also 'quarantined' or 'recovering'. */
export type HostView = Fields;
/** The kernel's leak report: what is left when the host goes away. */
export type LeakReport = Fields;

export const hostView = (host: Host): HostView => ({ ...viewHost(host), quarantined: null });

export interface NotLoaded {
  id: string;
  state: 'recovering' | 'quarantined';
  row: HostRow | null;
  reason: string;
  revision: number;
}

/** A host that can't be looked into: what its row says, and null for the rest. */
export function notLoadedView({ id, state, row, reason, revision }: NotLoaded): HostView {
  const options: Fields = row === null ? {} : { ...rowOptions(row), created_at: row.created_at };
  const quarantined = state === 'quarantined' ? { reason, revision } : null;
  return { id, ...options, release: null, seq: null, state, dead: null, counters: null, quarantined };
}

/** Nothing where the text itself is what can't be read. */
function rowOptions({ options }: HostRow): Fields {
  try {
    return { ...optionsFromText(options).current };
  } catch {
    return {};
  }
}

/** The leaks of a host that can't be looked into are not known: `items` is null. */
export const leakReport = (host: Host | null): LeakReport =>
  host === null ? { items: null, references: null } : leaks(host);
