// Checkpoints of one host: the sections that changed, copied at one seq, written in pieces between group commits.

import type { Host } from '../kernel/host.ts';
import { sections } from '../kernel/snapshot.ts';
import { encode, hashOf } from './codec.ts';
import type { Committer } from './committer.ts';
import {
  CHECKPOINT_BYTES,
  CHECKPOINT_COMMANDS,
  CHECKPOINT_WRITE_BYTES,
  KEPT_IDEMPOTENCY_KEYS,
  TRIM_ROWS,
} from './limits.ts';
import type { ServiceLog } from './log.ts';
import type { HostRow, Manifest, Section, Store } from './ports.ts';
import { SEMANTICS_REVISION } from './revision.ts';

/** The section that holds the options at the checkpoint's seq: those of the host's row may be of a later patch_host. */
export const OPTIONS_SECTION = 'service:options';

/** What is known of the newest complete checkpoint. */
export interface Written {
  seq: number;
  /** Seq at which each section was written, by key. */
  sections: Readonly<Record<string, number>>;
  /** Hashes of the sections whose last change the kernel does not know. */
  hashes: ReadonlyMap<string, string>;
}

export const NOTHING_WRITTEN: Written = { seq: -1, sections: {}, hashes: new Map() };

export interface CheckpointedHost {
  readonly host: Host;
  readonly row: Readonly<HostRow>;
  readonly live: boolean;
  committed(seq: number): Promise<void>;
}

export interface CheckpointSettings {
  /** Commands between two checkpoints. */
  commands: number;
  /** Bytes of journal between two checkpoints. */
  bytes: number;
  /** Commands that stay in the journal behind a checkpoint. */
  journalKeep: number;
}

export const defaultCheckpoints = (journalKeep: number): CheckpointSettings => ({
  commands: CHECKPOINT_COMMANDS,
  bytes: CHECKPOINT_BYTES,
  journalKeep,
});

export class Checkpointer {
  private commands = 0;
  private bytes = 0;
  /** False after a manifest whose fate is not known: the store is asked before the next one. */
  private certain = true;
  private running: Promise<void> = Promise.resolve();
  private queued = false;

  constructor(
    private readonly of: CheckpointedHost,
    private readonly around: { store: Store; committer: Committer; log: ServiceLog },
    private readonly settings: CheckpointSettings,
    private written: Written,
  ) {}

  /** Counts committed commands, and starts a checkpoint when enough has come together. */
  count(commands: number, journalBytes: number): void {
    this.commands += commands;
    this.bytes += journalBytes;
    if (this.commands < this.settings.commands && this.bytes < this.settings.bytes) return;
    if (this.queued) return;
    this.checkpoint().catch((error: unknown) => {
      if (this.of.live) this.around.log.warn({ err: error, host: this.of.row.id }, 'a checkpoint was not completed');
    });
  }

  /** Writes a checkpoint of everything up to now, after the one that may be running. */
  checkpoint(): Promise<void> {
    this.queued = true;
    const next = this.running
      .catch(() => undefined)
      .then(() => {
        this.queued = false;
        return this.write();
      });
    this.running = next;
    return next;
  }

  private async write(): Promise<void> {
    if (!this.of.live) return;
    if (!this.certain) await this.readManifest();
    const { seq } = this.of.host;
    this.commands = 0;
    this.bytes = 0;
    if (seq === this.written.seq) return;
    const { changed, next } = this.copy();
    for (const pieces of inTransactions(changed)) {
      await this.between(({ id, generation }) => this.around.store.writeSections(id, generation, seq, pieces));
    }
    await this.of.committed(seq);
    await this.switchTo(next);
    await this.trim(seq);
  }

  /** Encodes what changed since the last checkpoint; in one go, so that all of it is of one seq. */
  private copy(): { changed: Section[]; next: Written } {
    const { host } = this.of;
    const changed: Section[] = [];
    const seqs: Record<string, number> = {};
    const hashes = new Map<string, string>();
    const options = { key: OPTIONS_SECTION, version: null, data: () => host.options };
    for (const { key, version, data } of [options, ...sections(host)]) {
      const before = this.written.sections[key];
      let unchanged = before !== undefined && version !== null && version <= before;
      if (!unchanged) {
        const bytes = encode(data());
        if (version === null) {
          const hash = hashOf(bytes);
          hashes.set(key, hash);
          unchanged = before !== undefined && this.written.hashes.get(key) === hash;
        }
        if (!unchanged) changed.push({ key, bytes });
      }
      seqs[key] = unchanged && before !== undefined ? before : host.seq;
    }
    return { changed, next: { seq: host.seq, sections: seqs, hashes } };
  }

  private async switchTo(next: Written): Promise<void> {
    this.certain = false;
    await this.between(({ id, generation }) =>
      this.around.store.writeManifest({
        host: id,
        generation,
        seq: next.seq,
        revision: SEMANTICS_REVISION,
        sections: next.sections,
      }),
    );
    this.certain = true;
    this.written = next;
  }

  /** After a failed switch either manifest may be the one in the store; hashes are taken anew. */
  private async readManifest(): Promise<void> {
    const found: Manifest | null = await this.between(({ id, generation }) =>
      this.around.store.manifest(id, generation),
    );
    this.written = found === null ? NOTHING_WRITTEN : { seq: found.seq, sections: found.sections, hashes: new Map() };
    this.certain = true;
  }

  private async trim(seq: number): Promise<void> {
    const upTo = Math.max(0, seq - this.settings.journalKeep);
    const more = () =>
      this.between(({ id, generation }) =>
        this.around.store.trim(id, generation, upTo, KEPT_IDEMPOTENCY_KEYS, TRIM_ROWS),
      );
    while ((await more()) > 0);
  }

  /** Between two group commits, and only while this life of the host lasts: no row of it is written after its end. */
  private between<T>(work: (row: Readonly<HostRow>) => Promise<T>): Promise<T> {
    return this.around.committer.between(() => {
      if (!this.of.live) throw new Error(`host '${this.of.row.id}' ended before its checkpoint`);
      return work(this.of.row);
    });
  }
}

/** Sections in groups of at most CHECKPOINT_WRITE_BYTES; a larger one is alone. */
function* inTransactions(changed: Section[]): Iterable<Section[]> {
  let pieces: Section[] = [];
  let size = 0;
  for (const section of changed) {
    if (pieces.length > 0 && size + section.bytes.byteLength > CHECKPOINT_WRITE_BYTES) {
      yield pieces;
      pieces = [];
      size = 0;
    }
    pieces.push(section);
    size += section.bytes.byteLength;
  }
  if (pieces.length > 0) yield pieces;
}
