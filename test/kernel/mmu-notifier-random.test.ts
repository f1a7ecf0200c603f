// Random inserts, removals, readers and overlapping ranges, against a naive model of the sequence protocol that shares no code
// with the kernel. SEED=n replays a run.

import t from 'tap';
import { NotifierMachine } from './notifier-machine.ts';

const RUNS = 60;
const STEPS = 120;
const seedOf = (): number => Number(process.env.SEED ?? 20190307);

/** Random integers below n from a seed (xorshift32). */
function randomFrom(seed: number): (n: number) => number {
  let x = seed | 0 || 1;
  return (n) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % n;
  };
}

interface Sub {
  first: number;
  npage: number;
  sub_seq: number;
  in_tree: boolean;
}

/** The protocol as host-side drivers are told of it, rule by rule. */
class Model {
  seq = 2;
  active = 0;
  readonly subs = new Map<string, Sub>();
  deferred: string[] = [];
  /** Members of the tree whose removal waits. */
  readonly leaving = new Set<string>();
  readonly open = new Map<string, { first: number; npage: number }>();
  /** Readers that wait, and the sequence that each has seen. */
  readonly readers = new Map<string, number>();

  start(operation: string, first: number, npage: number): void {
    this.open.set(operation, { first, npage });
    this.active++;
    const hit = [...this.subs.values()].filter(
      (sub) => sub.in_tree && sub.first < first + npage && first < sub.first + sub.npage,
    );
    if (hit.length > 0) this.seq |= 1;
    for (const sub of hit) sub.sub_seq = this.seq;
  }

  end(operation: string): void {
    this.open.delete(operation);
    this.active--;
    if (this.active > 0 || this.seq % 2 === 0) return;
    this.seq++;
    for (const id of this.deferred) {
      const sub = this.subs.get(id) as Sub;
      if (sub.in_tree) this.subs.delete(id);
      else sub.in_tree = true;
    }
    this.deferred = [];
    this.leaving.clear();
    this.readers.clear();
  }

  insert(id: string, first: number, npage: number): void {
    let in_tree = true;
    if (this.active > 0 && this.seq % 2 === 1) {
      in_tree = false;
      this.deferred.unshift(id);
    } else if (this.active > 0) this.seq |= 1;
    const sub_seq = this.active > 0 ? this.seq : this.seq - 1;
    this.subs.set(id, { first, npage, sub_seq, in_tree });
  }

  /** Whether it waits. */
  remove(id: string): boolean {
    const sub = this.subs.get(id) as Sub;
    if (this.seq % 2 === 1 && sub.in_tree) {
      this.deferred.unshift(id);
      this.leaving.add(id);
      return true;
    }
    this.deferred = this.deferred.filter((other) => other !== id);
    this.subs.delete(id);
    return false;
  }

  /** Whether it waits. */
  read(operation: string, id: string): boolean {
    const { sub_seq } = this.subs.get(id) as Sub;
    if (sub_seq === this.seq) this.readers.set(operation, sub_seq);
    return sub_seq === this.seq;
  }
}

function pick<T>(random: (n: number) => number, from: Iterable<T>): T | null {
  const all = [...from];
  return all.length === 0 ? null : (all[random(all.length)] as T);
}

t.test('random: the sequence protocol is what its rules say, after every step', async (t) => {
  const seed = seedOf();
  t.comment(`SEED=${seed}`);
  const reached = new Set<string>();
  for (let run = 0; run < RUNS; run++) {
    const random = randomFrom(seed + run * 7919);
    const m = new NotifierMachine(['5.8', '5.15', '6.18'][run % 3]);
    const model = new Model();
    const differences: string[] = [];
    const check = (got: unknown, wanted: unknown, what: string): void => {
      if (JSON.stringify(got) !== JSON.stringify(wanted))
        differences.push(`${what}: ${JSON.stringify(got)}, not ${JSON.stringify(wanted)}`);
    };
    // The first insert of an mm registers, and waits until no range is open: it is not among the random ones.
    m.interval('I0', 60, 1);
    model.insert('I0', 60, 1);
    for (let step = 0, made = 1; step < STEPS; step++) {
      const present = [...model.subs.keys()].filter((id) => !model.leaving.has(id));
      const [first, npage] = [random(24), 1 + random(6)];
      const what = `seed ${seed} run ${run} step ${step}`;
      switch (random(5)) {
        case 0: {
          if (present.length > 8) break;
          const id = `I${made++}`;
          m.interval(id, first, npage);
          model.insert(id, first, npage);
          if (model.deferred.includes(id)) reached.add('a deferred insert');
          break;
        }
        case 1: {
          const id = pick(random, present);
          if (id === null || id === 'I0') break;
          const { parked } = m.run({ op: 'remove_interval_notifier', id });
          check(parked !== undefined, model.remove(id), `${what}: removal of ${id}`);
          reached.add(parked === undefined ? 'a removal at once' : 'a removal that waits');
          break;
        }
        case 2: {
          const id = pick(random, present) as string;
          const { parked, fields } = m.read(id);
          const waits = model.read(parked ?? '', id);
          check(parked !== undefined, waits, `${what}: reader of ${id}`);
          if (parked === undefined) check(fields.sequence, model.subs.get(id)?.sub_seq, what);
          else reached.add('a reader that waits');
          break;
        }
        case 3:
          if (model.open.size < 4) model.start(m.start(first, npage), first, npage);
          break;
        case 4: {
          const operation = pick(random, model.open.keys());
          if (operation === null) break;
          const readers = new Map(model.readers);
          m.end(operation);
          model.end(operation);
          for (const [reader, sequence] of readers) {
            const { outcome } = m.operation(reader);
            if (model.readers.has(reader)) check(outcome, null, `${what}: ${reader} still waits`);
            else check(outcome?.fields, { sequence }, `${what}: ${reader} goes on`);
          }
        }
      }
      const { subs } = m;
      const inTree = [...model.subs].filter(([, { in_tree }]) => in_tree).map(([id]) => id);
      check([subs.invalidate_seq, subs.active_invalidate_ranges], [model.seq, model.active], what);
      check([[...subs.intervals].sort(), subs.deferred], [inTree.sort(), model.deferred], what);
      for (const [id, { sub_seq }] of model.subs) check(m.sequence(id)[2], sub_seq, `${what}: ${id}`);
      check(m.mm.count, 1 + model.subs.size, what);
    }
    for (const operation of [...model.open.keys()]) m.end(operation);
    t.same(differences, [], `seed ${seed} run ${run}`);
    t.same(m.codes, []);
  }
  for (const event of ['a deferred insert', 'a removal that waits', 'a removal at once', 'a reader that waits'])
    t.ok(reached.has(event), `it reached ${event}`);
});
