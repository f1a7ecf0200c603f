// The store for throw-away tests: the same behaviour as the others in plain maps, gone with the process.

import type { Projection, VfioDmaRow, VfioPfnRow } from '../kernel/projection.ts';
import type { Commit, HostRow, IdempotencyRow, JournalRow, Manifest, Section, Store } from '../service/ports.ts';
import { type CommitPlan, type Lives, planCommit } from './lives.ts';
import { checkManifest, checkParts, missingSection } from './preconditions.ts';

type Objects = Extract<Projection, { part: 'objects' }>;

/** The projected rows of a host. */
export interface ProjectedRows {
  /** What they are true for; null: nothing has been projected. */
  seq: number | null;
  objects: Objects | null;
  dma: Map<number, VfioDmaRow>;
  pfn: Map<number, VfioPfnRow>;
}

interface Life {
  row: HostRow;
  /** Ascending by seq. */
  journal: JournalRow[];
  keys: Map<string, IdempotencyRow>;
  /** By `<seq> <key>`. */
  pieces: Map<string, Section & { seq: number }>;
  manifest: Manifest | null;
  projected: ProjectedRows;
}

export class MemoryStore implements Store {
  private isOpen = false;
  private readonly living = new Map<string, Life>();

  async open(): Promise<void> {
    if (this.isOpen) throw new Error('the store is open already');
    this.isOpen = true;
  }

  /** What was written stays and is there after the next open(), as with a file. */
  async close(): Promise<void> {
    this.isOpen = false;
  }

  async hosts(): Promise<HostRow[]> {
    this.mustBeOpen();
    return [...this.living.values()].map(({ row }) => ({ ...row })).sort((a, b) => (a.id < b.id ? -1 : 1));
  }

  async commit(commit: Commit): Promise<void> {
    this.mustBeOpen();
    const lives: Lives = new Map([...this.living].map(([host, { row }]) => [host, row.generation]));
    const plan = planCommit(lives, commit);
    this.refuseDuplicates(plan);
    for (const { host } of plan.ended) this.living.delete(host);
    for (const row of commit.upsertHosts) {
      const life = this.living.get(row.id);
      if (life === undefined) this.living.set(row.id, newLife(row));
      else life.row = { ...row };
    }
    for (const row of plan.journal) insertBySeq(this.life(row.host, row.generation)?.journal ?? [], copyJournal(row));
    for (const row of plan.idempotency) this.life(row.host, row.generation)?.keys.set(row.key, copyIdempotency(row));
  }

  async journal(host: string, generation: number, since: number, limit: number): Promise<JournalRow[]> {
    this.mustBeOpen();
    const rows = this.life(host, generation)?.journal ?? [];
    const first = firstAbove(rows, since);
    return rows.slice(first, first + limit).map(copyJournal);
  }

  async oldestJournalSeq(host: string, generation: number): Promise<number | null> {
    this.mustBeOpen();
    return this.life(host, generation)?.journal[0]?.seq ?? null;
  }

  async idempotency(host: string, generation: number, key: string): Promise<IdempotencyRow | null> {
    this.mustBeOpen();
    const row = this.life(host, generation)?.keys.get(key);
    return row === undefined ? null : copyIdempotency(row);
  }

  async unansweredIdempotency(host: string, generation: number): Promise<IdempotencyRow[]> {
    this.mustBeOpen();
    return [...(this.life(host, generation)?.keys.values() ?? [])]
      .filter(({ answer }) => answer === null)
      .sort(bySeq)
      .map(copyIdempotency);
  }

  async writeSections(host: string, generation: number, seq: number, sections: Section[]): Promise<void> {
    this.mustBeOpen();
    const pieces = this.life(host, generation)?.pieces;
    for (const { key, bytes } of sections) pieces?.set(`${seq} ${key}`, { key, seq, bytes: bytes.slice() });
  }

  async writeManifest(manifest: Manifest): Promise<void> {
    this.mustBeOpen();
    const life = this.life(manifest.host, manifest.generation);
    if (life === undefined) return;
    checkManifest(manifest, life.manifest, life.pieces.values());
    life.manifest = structuredClone(manifest);
    for (const [name, { key, seq }] of life.pieces) {
      if (seq <= manifest.seq && manifest.sections[key] !== seq) life.pieces.delete(name);
    }
  }

  async manifest(host: string, generation: number): Promise<Manifest | null> {
    this.mustBeOpen();
    return structuredClone(this.life(host, generation)?.manifest ?? null);
  }

  async *sections(manifest: Manifest): AsyncIterable<Section> {
    this.mustBeOpen();
    const pieces = this.life(manifest.host, manifest.generation)?.pieces;
    for (const [key, seq] of Object.entries(manifest.sections).sort(([a], [b]) => (a < b ? -1 : 1))) {
      const piece = pieces?.get(`${seq} ${key}`);
      if (piece === undefined) throw missingSection(manifest, key);
      yield { key, bytes: piece.bytes.slice() };
    }
  }

  async trim(host: string, generation: number, upTo: number, keepKeys: number, limit: number): Promise<number> {
    this.mustBeOpen();
    const life = this.life(host, generation);
    if (life === undefined) return 0;
    const rows = Math.min(limit, firstAbove(life.journal, upTo));
    life.journal.splice(0, rows);
    const keys = Math.max(0, Math.min(life.keys.size - keepKeys, limit - rows));
    for (const { key } of [...life.keys.values()].sort(bySeq).slice(0, keys)) life.keys.delete(key);
    return rows + keys;
  }

  async project(host: string, generation: number, seq: number, parts: Projection[]): Promise<void> {
    this.mustBeOpen();
    const life = this.life(host, generation);
    if (life === undefined) return;
    checkParts(parts);
    for (const part of parts) {
      if (part.part === 'objects') life.projected.objects = structuredClone(part);
      else if (part.part === 'dma') replaceSlots(life.projected.dma, part.first_slot, part.end_slot, part.rows);
      else replaceSlots(life.projected.pfn, part.first_slot, part.end_slot, part.rows);
    }
    life.projected.seq = seq;
  }

  /** The projected rows of a host, which other stores show to SQL. */
  projected(host: string): ProjectedRows | null {
    return structuredClone(this.living.get(host)?.projected ?? null);
  }

  private mustBeOpen(): void {
    if (!this.isOpen) throw new Error('the store is closed');
  }

  private life(host: string, generation: number): Life | undefined {
    const life = this.living.get(host);
    return life?.row.generation === generation ? life : undefined;
  }

  private refuseDuplicates({ begun, journal }: CommitPlan): void {
    const fresh = new Set(begun.map(({ host }) => host));
    const seen = new Set<string>();
    for (const { host, generation, seq } of journal) {
      const name = `${host} ${seq}`;
      const kept = fresh.has(host) ? [] : (this.life(host, generation)?.journal ?? []);
      if (seen.has(name) || kept[firstAbove(kept, seq - 1)]?.seq === seq) {
        throw new Error(`host ${host}: the journal has seq ${seq} already`);
      }
      seen.add(name);
    }
  }
}

const newLife = (row: HostRow): Life => ({
  row: { ...row },
  journal: [],
  keys: new Map(),
  pieces: new Map(),
  manifest: null,
  projected: { seq: null, objects: null, dma: new Map(), pfn: new Map() },
});

const copyJournal = (row: JournalRow): JournalRow => ({
  ...row,
  call: row.call.slice(),
  digest: row.digest.slice(),
});

const copyIdempotency = (row: IdempotencyRow): IdempotencyRow => ({
  ...row,
  body_hash: row.body_hash.slice(),
  answer: row.answer?.slice() ?? null,
});

const bySeq = (a: IdempotencyRow, b: IdempotencyRow): number => a.seq - b.seq || (a.key < b.key ? -1 : 1);

/** Index of the first row with a seq above `since`. */
function firstAbove(rows: JournalRow[], since: number): number {
  let low = 0;
  let high = rows.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((rows[middle] as JournalRow).seq > since) high = middle;
    else low = middle + 1;
  }
  return low;
}

function insertBySeq(rows: JournalRow[], row: JournalRow): void {
  const last = rows.at(-1);
  if (last === undefined || last.seq < row.seq) rows.push(row);
  else rows.splice(firstAbove(rows, row.seq), 0, row);
}

function replaceSlots<Row extends { slot: number }>(
  slots: Map<number, Row>,
  first: number,
  end: number,
  rows: Row[],
): void {
  for (const slot of slots.keys()) if (slot >= first && slot < end) slots.delete(slot);
  for (const row of rows) slots.set(row.slot, { ...row });
}
