// A host as sections of plain data, for checkpoints, and back. A section's version is the seq at which it last changed.

import type { HostOptions } from './command.ts';
import type { FaultRule } from './fault-rule.ts';
import { type Bug, type DmesgEntry, Host, type TraceEntry } from './host.ts';
import { Log } from './lib/log.ts';
import { KEPT_DMESG, KEPT_TRACE, KEPT_VIOLATIONS } from './limits.ts';
import type { Lock } from './lock.ts';
import type { Lockdep } from './lockdep.ts';
import { mmSections, restoreMm } from './mm/snapshot.ts';
import type { Operation } from './operation.ts';
import { restoreVfio, vfioSections } from './vfio/snapshot.ts';
import type { Violation } from './violation.ts';

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
  /** Missing in checkpoints of revision 1, as everything below. */
  locks?: Lock[];
  lockdep?: Lockdep;
  next_violation?: number;
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
    locks: [...host.locks.values()],
    lockdep: host.lockdep,
    next_violation: host.violations.next,
  };
  yield { key: 'host', version: null, data: () => rest };
  for (const chunk of host.dmesg.sections())
    yield { key: `dmesg/${chunk.first}`, version: chunk.version, data: () => chunk };
  for (const chunk of host.trace.sections())
    yield { key: `trace/${chunk.first}`, version: chunk.version, data: () => chunk };
  for (const chunk of host.violations.sections())
    yield { key: `violations/${chunk.first}`, version: chunk.version, data: () => chunk };
  for (const [name, state] of Object.entries(host.consumers))
    yield { key: `consumers/${name}`, version: null, data: () => state };
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
  for (const name of Object.keys(host.consumers)) {
    const state = data.get(`consumers/${name}`);
    if (state !== undefined) Object.assign(host.consumers, { [name]: state });
  }
  host.seq = rest.seq;
  host.dead = rest.dead;
  host.dmesg = Log.restore<DmesgEntry>(KEPT_DMESG, rest.next_dmesg, chunks('dmesg/'));
  host.trace = Log.restore<TraceEntry>(KEPT_TRACE, rest.next_trace, chunks('trace/'));
  host.violations = Log.restore<Violation>(KEPT_VIOLATIONS, rest.next_violation ?? 1, chunks('violations/'));
  for (const lock of rest.locks ?? []) host.locks.set(lock.id, lock);
  if (rest.lockdep !== undefined) host.lockdep = rest.lockdep;
  for (const fault of rest.faults) host.faults.set(fault.id, fault);
  for (const operation of rest.operations) host.operations.set(operation.id, operation);
  return host;
}
