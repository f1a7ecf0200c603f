// Which lives of hosts are current: what a commit ends, and which of its rows belong to a life that is still there after it.

import type { Commit, IdempotencyRow, JournalRow } from '../service/ports.ts';

export interface Life {
  host: string;
  generation: number;
}

/** Generation of each host that exists. */
export type Lives = ReadonlyMap<string, number>;

export interface CommitPlan {
  /** The lives after the commit. */
  lives: Lives;
  /** Lives whose rows are all deleted. */
  ended: Life[];
  /** Lives that did not exist before. */
  begun: Life[];
  journal: JournalRow[];
  idempotency: IdempotencyRow[];
}

/**
 * Rows of a life that this very commit ends are left out: they would be deleted with it. A row of any other life than the current
 * one, and a generation that does not grow, are defects of the caller and fail the commit.
 */
export function planCommit(lives: Lives, commit: Commit): CommitPlan {
  const next = new Map(lives);
  const ended: Life[] = [];
  const begun: Life[] = [];
  for (const host of commit.deleteHosts) {
    const generation = next.get(host);
    if (generation !== undefined) ended.push({ host, generation });
    next.delete(host);
  }
  for (const { id, generation } of commit.upsertHosts) {
    const current = next.get(id);
    if (current === generation) continue;
    if (current !== undefined && current > generation) {
      throw new Error(`host ${id}: generation ${generation} begins after generation ${current}`);
    }
    if (current !== undefined) ended.push({ host: id, generation: current });
    begun.push({ host: id, generation });
    next.set(id, generation);
  }
  const remains = (row: Life): boolean => {
    if (next.get(row.host) === row.generation) return true;
    if (ended.some(({ host, generation }) => host === row.host && generation === row.generation)) return false;
    throw new Error(`host ${row.host} has no generation ${row.generation}`);
  };
  return {
    lives: next,
    ended,
    begun,
    journal: commit.journal.filter(remains),
    idempotency: commit.idempotency.filter(remains),
  };
}
