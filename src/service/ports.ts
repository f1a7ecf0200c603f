// What the service needs of a store: one transaction for many requests, checkpoints in bounded pieces, a projection for SQL.
// Implemented by store/; the rules live here and in kernel/, none in the store.

import type { Projection } from '../kernel/projection.ts';

/** A host as the store knows it. `generation` grows with every reset, so that rows of an older life never mix in. */
export interface HostRow {
  id: string;
  generation: number;
  /** HostOptions as JSON, kept current by patch_host, with `created_with`: the options that PUT created it with. */
  options: string;
  created_at: number;
}

export interface JournalRow {
  host: string;
  generation: number;
  seq: number;
  at: number;
  request_id: string;
  op: string;
  /** The Call, encoded by the service's codec. */
  call: Uint8Array;
  /** First 16 bytes of SHA-256 of the encoded outcome. */
  digest: Uint8Array;
  /** Semantics revision of the release that wrote the row. */
  revision: number;
}

export interface IdempotencyRow {
  host: string;
  generation: number;
  key: string;
  body_hash: Uint8Array;
  seq: number;
  /** Operation that the request started and whose end the reply waits for; null: the reply is here. */
  operation: string | null;
  /** The Answer, encoded by the service's codec; null while the operation runs. */
  answer: Uint8Array | null;
}

/** Everything that one group commit writes, in one transaction, in this order. */
export interface Commit {
  /** Hosts that are deleted with all their rows, or begin a new generation (rows of older generations are deleted). */
  deleteHosts: string[];
  upsertHosts: HostRow[];
  journal: JournalRow[];
  /** Inserted, or (same host and key) updated with the answer. */
  idempotency: IdempotencyRow[];
}

/** One piece of a checkpoint. The same key at a newer seq replaces it once that checkpoint's manifest is complete. */
export interface Section {
  key: string;
  bytes: Uint8Array;
}

export interface Manifest {
  host: string;
  generation: number;
  seq: number;
  /** Semantics revision of the release that wrote it. */
  revision: number;
  /** Seq at which each section of the checkpoint was written, by key. */
  sections: Record<string, number>;
}

export interface Store {
  /** Creates or migrates the schema and takes the database for this process. Throws StoreInUse or another Error. */
  open(): Promise<void>;
  close(): Promise<void>;

  hosts(): Promise<HostRow[]>;
  commit(commit: Commit): Promise<void>;

  /** Journal rows with seq > since, ascending, at most `limit`. */
  journal(host: string, generation: number, since: number, limit: number): Promise<JournalRow[]>;
  /** Smallest seq that is still kept; null when there is none. */
  oldestJournalSeq(host: string, generation: number): Promise<number | null>;
  idempotency(host: string, generation: number, key: string): Promise<IdempotencyRow | null>;
  /** Rows whose operation has no answer yet. */
  unansweredIdempotency(host: string, generation: number): Promise<IdempotencyRow[]>;

  /** Writes pieces of a checkpoint that is not valid yet, in one transaction. */
  writeSections(host: string, generation: number, seq: number, sections: Section[]): Promise<void>;
  /** Makes a checkpoint valid and, in the same transaction, drops the pieces and manifests it supersedes. */
  writeManifest(manifest: Manifest): Promise<void>;
  /** Newest complete checkpoint, or null. */
  manifest(host: string, generation: number): Promise<Manifest | null>;
  sections(manifest: Manifest): AsyncIterable<Section>;

  /** Drops journal rows with seq <= upTo and idempotency rows beyond the newest `keepKeys`, at most `limit` rows a call; returns how many. */
  trim(host: string, generation: number, upTo: number, keepKeys: number, limit: number): Promise<number>;

  /** Replaces the relational rows of a host by the parts that changed, in one transaction, and states the seq they are true for. */
  project(host: string, generation: number, seq: number, parts: Projection[]): Promise<void>;
}

export class StoreInUse extends Error {
  constructor(where: string) {
    super(`the database ${where} is in use by another process`);
    this.name = 'StoreInUse';
  }
}
