// A host as sections of plain data, for checkpoints, and back. A section's version is the seq at which it last changed.

import type { HostOptions } from './command.ts';
import type { FaultRule } from './fault-rule.ts';
import { type Bug, type DmesgEntry, Host, type TraceEntry } from './host.ts';
import { Log } from './lib/log.ts';
import { KEPT_DMESG, KEPT_TRACE } from './limits.ts';
import { mmSections, restoreMm } from './mm/snapshot.ts';
import type { Operation } from './operation.ts';
import { restoreVfio, vfioSections } from './vfio/snapshot.ts';

export interface HostSection {
  key: string;
  /** seq of the last change, where the kernel knows it; null: the reader compares the bytes. */
  version: number | null;
  /** Plain data (objects, arrays, Maps, typed arrays, bigint); a copy is made by whoever keeps it beyond this command. */
  data: () => unknown;
}

interface Rest {
  seq: number;
  dead: Bug | null;
  next_dmesg: number;
  next_trace: number;
  operations: Operation[];
  faults: FaultRule[];
}

type Chunk<T> = { first: number; version: number; entries: T[] };

/** All of a host between two commands. */
export function* sections(host: Host): Iterable<HostSection> {
  const rest: Rest = {
    seq: host.seq,
    dead: host.dead,
    next_dmesg: host.dmesg.next,
    next_trace: host.trace.next,
    operations: [...host.operations.values()],
    faults: [...host.faults.values()],
  };
  yield { key: 'host', version: null, data: () => rest };
  for (const chunk of host.dmesg.sections())
    yield { key: `dmesg/${chunk.first}`, version: chunk.version, data: () => chunk };
  for (const chunk of host.trace.sections())
    yield { key: `trace/${chunk.first}`, version: chunk.version, data: () => chunk };
  yield* mmSections(host.mm);
  yield* vfioSections(host.vfio);
}

/** A host from its sections by key. `options` and `created_at` are those it had at that moment. */
export function restoreHost(
  id: string,
  options: HostOptions,
  created_at: number,
  data: ReadonlyMap<string, unknown>,
): Host {
  const rest = data.get('host') as Rest | undefined;
  if (rest === undefined) throw new Error("the section 'host' is missing");
  const chunks = <T>(prefix: string): Chunk<T>[] =>
    [...data].filter(([key]) => key.startsWith(prefix)).map(([, chunk]) => chunk as Chunk<T>);
  const host = new Host(id, options, created_at, restoreMm(data), restoreVfio(data));
  host.seq = rest.seq;
  host.dead = rest.dead;
  host.dmesg = Log.restore<DmesgEntry>(KEPT_DMESG, rest.next_dmesg, chunks('dmesg/'));
  host.trace = Log.restore<TraceEntry>(KEPT_TRACE, rest.next_trace, chunks('trace/'));
  for (const fault of rest.faults) host.faults.set(fault.id, fault);
  for (const operation of rest.operations) host.operations.set(operation.id, operation);
  return host;
}
