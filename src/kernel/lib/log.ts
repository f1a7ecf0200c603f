// A bounded log with a counter of its own: entries are numbered from 1 and the oldest are dropped in whole chunks.

const CHUNK = 1024;

interface Chunk<T> {
  /** Number of the first entry. */
  first: number;
  entries: T[];
  /** seq of the command that last appended here. */
  version: number;
}

export class Log<T extends { n: number }> {
  private chunks: Chunk<T>[] = [];
  /** Number that the next entry gets. */
  next = 1;

  constructor(readonly kept: number) {}

  append(entry: T, version: number): void {
    entry.n = this.next++;
    let last = this.chunks.at(-1);
    if (last === undefined || last.entries.length === CHUNK) {
      last = { first: entry.n, entries: [], version };
      this.chunks.push(last);
      const first = this.chunks[0];
      if (first !== undefined && this.next - first.first > this.kept + CHUNK) this.chunks.shift();
    }
    last.entries.push(entry);
    last.version = version;
  }

  /** Number of the oldest entry that is still kept. */
  get oldest(): number {
    return this.chunks[0]?.first ?? this.next;
  }

  /** At most `limit` entries numbered above `since`, and whether older ones in that span were dropped. */
  since(since: number, limit: number): { items: T[]; truncated: boolean } {
    const items: T[] = [];
    for (const chunk of this.chunks) {
      if (chunk.first + chunk.entries.length - 1 <= since) continue;
      for (let i = Math.max(0, since + 1 - chunk.first); i < chunk.entries.length; i++) {
        if (items.length === limit) return { items, truncated: since + 1 < this.oldest };
        items.push(chunk.entries[i] as T);
      }
    }
    return { items, truncated: since + 1 < this.oldest };
  }

  /** The chunks by the number of their first entry, for a checkpoint. */
  *sections(): Iterable<{ first: number; version: number; entries: T[] }> {
    yield* this.chunks;
  }

  static restore<T extends { n: number }>(kept: number, next: number, chunks: Chunk<T>[]): Log<T> {
    const log = new Log<T>(kept);
    log.chunks = chunks.sort((a, b) => a.first - b.first);
    log.next = next;
    return log;
  }
}
