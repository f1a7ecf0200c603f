// A host from its own checkpoint, as after a restart of the service.

import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { Machine } from './machine.ts';

/** A second machine in the state of the first, by way of bytes. */
export function restored({ host }: Machine): Machine {
  const data = new Map<string, unknown>();
  for (const section of sections(host)) data.set(section.key, decode(encode(section.data())));
  const machine = new Machine({ profile: host.profile.name });
  return Object.assign(machine, { host: restoreHost('test', host.options, host.created_at, data) });
}
