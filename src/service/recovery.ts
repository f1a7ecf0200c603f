// A host out of its store: the newest complete checkpoint, then the journal after it, every outcome compared with its digest.

import type { HostOptions } from '../kernel/command.ts';
import { createHost, execute } from '../kernel/execute.ts';
import type { Host } from '../kernel/host.ts';
import { restoreHost, sections } from '../kernel/snapshot.ts';
import { NOTHING_WRITTEN, OPTIONS_SECTION, type Written } from './checkpointer.ts';
import { decode, decodeCall, digestOf, digestsEqual, hashOf } from './codec.ts';
import { copyOptions, optionsFromText, type StoredOptions } from './host-options.ts';
import { RECOVERY_READ_ROWS } from './limits.ts';
import type { HostRow, IdempotencyRow, JournalRow, Manifest, Store } from './ports.ts';
import { SEMANTICS_REVISION } from './revision.ts';

export interface Recovered {
  host: Host;
  row: HostRow;
  options: StoredOptions;
  written: Written;
  /** Journal after the checkpoint: what the next one will save re-executing. */
  replayed: { commands: number; bytes: number };
  unanswered: IdempotencyRow[];
}

/** The rows do not give the host that they are said to give. `revision` wrote the first row that does not fit. */
export class Quarantined extends Error {
  constructor(
    reason: string,
    readonly revision: number,
  ) {
    super(reason);
    this.name = 'Quarantined';
  }
}

/** Throws Quarantined where the rows don't fit together; any other error is the store's, and trying again may help. */
export async function recoverHost(store: Store, row: HostRow): Promise<Recovered> {
  const manifest = await store.manifest(row.id, row.generation);
  const bytes = new Map<string, Uint8Array>();
  if (manifest !== null) for await (const section of store.sections(manifest)) bytes.set(section.key, section.bytes);
  const revision = manifest?.revision ?? SEMANTICS_REVISION;
  const options = orQuarantine(revision, 'the options', () => optionsFromText(row.options));
  const { host, written } = orQuarantine(revision, 'the checkpoint', () =>
    manifest === null ? fresh(row, options) : restored(row, manifest, bytes),
  );
  const replayed = await replay(store, row, host);
  // Where no patch_host was replayed the row's options are the host's own.
  options.current = host.options;
  return {
    host,
    row,
    options,
    written,
    replayed,
    unanswered: await store.unansweredIdempotency(row.id, row.generation),
  };
}

function orQuarantine<T>(revision: number, what: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw new Quarantined(`${what} can't be read: ${(error as Error).message}`, revision);
  }
}

function fresh(row: HostRow, { created_with }: StoredOptions): { host: Host; written: Written } {
  return { host: createHost(row.id, copyOptions(created_with), row.created_at), written: NOTHING_WRITTEN };
}

function restored(row: HostRow, manifest: Manifest, bytes: Map<string, Uint8Array>): { host: Host; written: Written } {
  if (manifest.revision > SEMANTICS_REVISION) throw new Error(`semantics revision ${manifest.revision} is a later one`);
  const missing = Object.keys(manifest.sections).filter((key) => !bytes.has(key));
  if (missing.length > 0) throw new Error(`sections are missing: ${missing.join(', ')}`);
  const data = new Map([...bytes].map(([key, section]) => [key, decode(section)]));
  const options = data.get(OPTIONS_SECTION) as HostOptions;
  data.delete(OPTIONS_SECTION);
  const host = restoreHost(row.id, options, row.created_at, data);
  if (host.seq !== manifest.seq) throw new Error(`it holds seq ${host.seq} instead of ${manifest.seq}`);
  return { host, written: { seq: manifest.seq, sections: manifest.sections, hashes: hashesOf(host, bytes) } };
}

/** Hashes of the sections whose last change the kernel does not know, as they stand in the store. */
function hashesOf(host: Host, bytes: Map<string, Uint8Array>): Map<string, string> {
  const hashes = new Map<string, string>();
  for (const key of [OPTIONS_SECTION, ...[...sections(host)].filter((s) => s.version === null).map((s) => s.key)]) {
    const section = bytes.get(key);
    if (section !== undefined) hashes.set(key, hashOf(section));
  }
  return hashes;
}

/** Executes the journal after the host's seq again. */
async function replay(store: Store, row: HostRow, host: Host): Promise<{ commands: number; bytes: number }> {
  const replayed = { commands: 0, bytes: 0 };
  for (;;) {
    const rows = await store.journal(row.id, row.generation, host.seq, RECOVERY_READ_ROWS);
    for (const journal of rows) {
      replayRow(host, journal);
      replayed.commands++;
      replayed.bytes += journal.call.byteLength;
    }
    if (rows.length < RECOVERY_READ_ROWS) return replayed;
  }
}

function replayRow(host: Host, journal: JournalRow): void {
  const { seq, op, revision } = journal;
  const where = `journal seq ${seq} (${op})`;
  if (seq !== host.seq + 1) throw new Quarantined(`${where} follows seq ${host.seq}`, revision);
  let digest: Uint8Array;
  try {
    digest = digestOf(execute(host, decodeCall(journal.call)));
  } catch (error) {
    throw new Quarantined(`${where} can't be executed: ${(error as Error).message}`, revision);
  }
  if (host.seq !== seq) throw new Quarantined(`${where} left the host at seq ${host.seq}`, revision);
  if (digestsEqual(digest, journal.digest)) return;
  const [was, is] = [journal.digest, digest].map((bytes) => Buffer.from(bytes).toString('hex'));
  throw new Quarantined(`${where} has another outcome than journaled: digest ${is} instead of ${was}`, revision);
}
