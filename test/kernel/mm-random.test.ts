// Random histories of the memory side against the naive model of mm-model.ts, and snapshots on the way.

import t from 'tap';

import { type Backing, READ, WRITE } from '../../src/kernel/command.ts';
import { Errno } from '../../src/kernel/errno.ts';
import { Host } from '../../src/kernel/host.ts';
import { pageNumberOf } from '../../src/kernel/lib/u64.ts';
import { checkMm } from '../../src/kernel/mm/check.ts';
import { mmSections, restoreMm } from '../../src/kernel/mm/snapshot.ts';
import type { Fields } from '../../src/kernel/outcome.ts';
import { listMaps, listPages, viewPage } from '../../src/kernel/view/tasks.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { at, BASE, type Check, everything, Machine, OPTIONS, RW, randomFrom, sameSections } from './mm-machine.ts';
import { type Area, type Kind, Model, Refused, type State } from './mm-model.ts';

const SEED = Number(process.env.SEED ?? 51500);
t.comment(`SEED=${SEED}`);

const SPAN = 24;
/** Little memory, so that it is handed out again, and very little, so that it runs out. */
const TOTALS = [64, 24, 3];
/** First page of explicit layouts: where memory is very little, they lie beyond it. */
const layoutBase = (total_pages: number): number => (total_pages > 3 ? 0 : total_pages);
const TASKS = ['a', 'b'];

interface Twin {
  m: Machine;
  model: Model;
  /** Pins held: pfn of each. */
  held: number[];
}

function newTwin(total_pages: number): Twin {
  const twin: Twin = { m: new Machine(total_pages), model: new Model(total_pages), held: [] };
  for (const id of TASKS) newProcess(twin, id, 0);
  return twin;
}

function newProcess({ m, model }: Twin, id: string, life: number): void {
  m.task(`${id}${life}`);
  model.mms.set(id, new Map());
}

function randomArea(
  random: (n: number) => number,
  base: number,
  npage: number,
  prot: number,
): { area: Area; backing: Backing } {
  const runs: [number, number][] = [];
  for (let left = npage; left > 0; ) {
    const count = 1 + random(Math.min(left, 3));
    runs.push([base + random(68), count]);
    left -= count;
  }
  const pfns = runs.flatMap(([pfn, count]) => [...Array(count).keys()].map((i) => pfn + i));
  switch (random(5)) {
    case 0:
    case 1:
      return { area: { what: 'anon' }, backing: { kind: 'anon' } };
    case 2: {
      const [file, pgoff, shared] = [`f${random(2)}`, random(6), random(2) === 0];
      return { area: { what: 'file', file, pgoff, shared }, backing: { kind: 'file', file, pgoff, shared } };
    }
    case 3:
      return { area: { what: 'pages', pfns }, backing: { kind: 'pages', pfns: runs } };
    default: {
      const choice: State[] = ['lazy', 'lazy-retry', 'sigbus', 'r', 'rw'];
      const states = pfns.map(() => choice[random((prot & WRITE) === 0 && random(8) > 0 ? 4 : 5)] as State);
      const [struct_page, reserved] = [random(2) === 0, random(2) === 0];
      const kind: Kind = struct_page ? (reserved ? 'reserved' : 'normal') : 'device';
      if (random(3) === 0) {
        const first = base + 40 + random(20);
        const line = pfns.map((_, i) => first + i);
        return {
          area: { what: 'pfnmap', pfns: line, kind },
          backing: { kind: 'pfnmap', pfn: first, struct_page, reserved },
        };
      }
      return {
        area: { what: 'pfnmap', pfns, states, kind },
        backing: { kind: 'pfnmap', pfns: runs, struct_page, reserved, ptes: states },
      };
    }
  }
}

/** One random step on both; returns what it was and what both say. */
function step(
  twin: Twin,
  lives: Map<string, number>,
  random: (n: number) => number,
): { text: string; real: string; expected: string } {
  const { m, model, held } = twin;
  const id = TASKS[random(TASKS.length)] as string;
  const task = `${id}${lives.get(id)}`;
  const page = random(SPAN);
  const npage = 1 + random(Math.min(8, SPAN - page));
  const prot = [RW, RW, RW, READ, WRITE, 0][random(6)] as number;
  const write = random(2) === 0;
  const both = (
    text: string,
    real: () => unknown,
    naive: () => unknown,
  ): { text: string; real: string; expected: string } => {
    const answer = (call: () => unknown): string => {
      try {
        return String(call());
      } catch (error) {
        if (error instanceof Errno) return error.errno;
        if (error instanceof Refused) return error.message;
        throw error;
      }
    };
    return { text: `${text} ${task}`, real: answer(real), expected: answer(naive) };
  };
  const pinned = (pfn: number): number => {
    held.push(pfn);
    return pfn;
  };
  const kind = random(100);
  if (kind < 16) {
    const { area, backing } = randomArea(random, layoutBase(model.total), npage, prot);
    const noreplace = random(4) === 0;
    return both(
      `mmap ${page} ${npage} ${prot} ${JSON.stringify(backing)} ${noreplace}`,
      () => void m.mmap(task, page, npage, prot, backing, noreplace),
      () => model.mmap(id, BASE + page, npage, prot, area, noreplace),
    );
  }
  if (kind < 22)
    return both(
      `munmap ${page} ${npage}`,
      () => void m.munmap(task, page, npage),
      () => model.munmap(id, BASE + page, npage),
    );
  if (kind < 34)
    return both(
      `mprotect ${page} ${npage} ${prot}`,
      () => void m.mprotect(task, page, npage, prot),
      () => model.mprotect(id, BASE + page, npage, prot),
    );
  if (kind < 54)
    return both(
      `touch ${page} ${write}`,
      () => m.touch(task, page, write),
      () => model.access(id, BASE + page, write),
    );
  if (kind < 74)
    return both(
      `pin ${page} ${write}`,
      () => pinned(m.pin(task, page, write)),
      () => model.pin(id, BASE + page, write),
    );
  if (kind < 80)
    return both(
      `follow ${page} ${write}`,
      () => m.follow(task, page, write),
      () => model.follow(id, BASE + page, write),
    );
  if (kind < 95 && held.length > 0) {
    const pfn = held.splice(random(held.length), 1)[0] as number;
    return both(
      `unpin ${pfn} ${write}`,
      () => m.unpin(pfn, write),
      () => model.unpin(pfn, write),
    );
  }
  if (kind < 98) {
    const pfn = layoutBase(model.total) + random(72);
    const what = (['normal', 'reserved', 'zero', 'device'] as const)[random(4)] as Kind;
    return both(
      `put_page ${pfn} ${what}`,
      () => m.page(pfn, what).created,
      () => model.put(pfn, what),
    );
  }
  return both(
    'exit',
    () => {
      m.exit(task);
      const life = (lives.get(id) ?? 0) + 1;
      lives.set(id, life);
      m.task(`${id}${life}`);
    },
    () => {
      model.mms.set(id, new Map());
      model.settle();
    },
  );
}

/** Everything that can be seen of both, as text. */
function compare({ m, model, held }: Twin, lives: Map<string, number>): string[] {
  const wrong: string[] = [];
  const say = (what: string, real: unknown, expected: unknown): void => {
    if (JSON.stringify(real) !== JSON.stringify(expected))
      wrong.push(`${what}: ${JSON.stringify(real)}, expected ${JSON.stringify(expected)}`);
  };
  for (const id of TASKS) {
    const task = `${id}${lives.get(id)}`;
    const cells = model.mms.get(id);
    const table = listPages(m.host, task, at(0), SPAN);
    for (let page = 0; page < SPAN; page++) {
      const entry = cells?.get(BASE + page)?.entry ?? null;
      const { pfn, present, writable, ref_count, pin_count, dirty } = table[page] as Fields;
      const expected =
        entry === null
          ? [null, false, false, 0, 0, false]
          : [
              entry.pfn,
              true,
              entry.write,
              model.refcount(entry.pfn),
              model.pins.get(entry.pfn) ?? 0,
              model.dirty.has(entry.pfn),
            ];
      say(`${task} page ${page}`, [pfn, present, writable, ref_count, pin_count, dirty], expected);
    }
    const protection = new Map<number, string>();
    for (const { addr, length, prot } of listMaps(m.host, task, null, 1000).items)
      for (let i = 0; i < Number((length as bigint) / 4096n); i++)
        protection.set(pageNumberOf(addr as bigint) + i, (prot as string[]).join(''));
    const wanted = [...(cells ?? [])].sort(([a], [b]) => a - b);
    say(
      `${task} maps`,
      [...protection],
      wanted.map(([page, { prot }]) => [
        page,
        ((prot & READ) === 0 ? '' : 'READ') + ((prot & WRITE) === 0 ? '' : 'WRITE'),
      ]),
    );
  }
  for (let pfn = 0; pfn < 90; pfn++) {
    const { kind, ref_count, mapcount, pin_count, dirty } = viewPage(m.host, pfn);
    const pins = model.pins.get(pfn) ?? 0;
    say(
      `pfn ${pfn}`,
      [kind, ref_count, mapcount, pin_count, dirty],
      [model.kind(pfn), model.refcount(pfn), model.mapcount(pfn), pins, model.dirty.has(pfn)],
    );
  }
  say('pinned', m.host.mm.pages.pinned, new Set(held).size);
  return [...wrong, ...checkMm(m.host)];
}

/** Sections by key, copied only where they have changed since `seq`: what a checkpoint does. */
function checkpoint(m: Machine, kept: Map<string, unknown>, seq: number): Map<string, unknown> {
  const next = new Map<string, unknown>();
  for (const { key, version, data } of mmSections(m.host.mm)) {
    const unchanged = version !== null && version <= seq && kept.has(key);
    next.set(key, unchanged ? kept.get(key) : structuredClone(data()));
  }
  return next;
}

t.test('random histories of all operations agree with the naive model, step by step', async (t) => {
  const seen = new Map<string, number>();
  for (let run = 0; run < 60; run++) {
    const random = randomFrom(SEED + run * 7919);
    const twin = newTwin(TOTALS[run % TOTALS.length] as number);
    const lives = new Map(TASKS.map((id) => [id, 0]));
    const history: string[] = [];
    for (let i = 0; i < 150; i++) {
      const { text, real, expected } = step(twin, lives, random);
      history.push(`${text}: ${real}`);
      const name = text.split(' ')[0];
      const result = /^E|^true$|^false$/.test(real) ? real : 'done';
      seen.set(`${name} ${result}`, (seen.get(`${name} ${result}`) ?? 0) + 1);
      const wrong = real === expected ? compare(twin, lives) : [`${text}: ${real}, expected ${expected}`];
      if (wrong.length === 0) continue;
      t.fail(`SEED=${SEED} run ${run} step ${i}`, { wrong: wrong.slice(0, 5), history: history.slice(-12) });
      return;
    }
  }
  const sometimes = [
    ...['mmap done', 'mmap EEXIST', 'mmap EINVAL', 'munmap done', 'mprotect done', 'mprotect ENOMEM', 'exit done'],
    ...['touch done', 'touch EFAULT', 'touch ENOMEM', 'pin done', 'pin EFAULT', 'pin ENOMEM', 'unpin done'],
    ...['follow done', 'follow EFAULT', 'put_page true', 'put_page false', 'put_page EBUSY', 'put_page EEXIST'],
  ];
  for (const outcome of sometimes) t.ok((seen.get(outcome) ?? 0) > 0, `reached: ${outcome}`);
});

t.test('snapshot: copied by changed sections only, restored, it goes on like the original', async (t) => {
  for (let run = 0; run < 12; run++) {
    const random = randomFrom(SEED + 31 + run * 104729);
    const twin = newTwin(TOTALS[run % TOTALS.length] as number);
    const lives = new Map(TASKS.map((id) => [id, 0]));
    let kept = new Map<string, unknown>();
    let seq = -1;
    for (let i = 0; i < 120; i++) {
      const steps = 1 + random(4);
      for (let n = 0; n < steps; n++) step(twin, lives, random);
      kept = checkpoint(twin.m, kept, seq);
      seq = twin.m.host.seq;
      sameSections(t, kept, everything(twin.m), `SEED=${SEED} run ${run} checkpoint ${i}`);
    }
    const viaBytes = new Map([...kept].map(([key, data]) => [key, decode(encode(data))]));
    for (const data of [structuredClone(kept), viaBytes]) {
      const mm = restoreMm(data);
      const host = new Host('h', { ...OPTIONS, total_pages: mm.total_pages }, 0, mm);
      host.seq = seq;
      const copy: Twin = { m: new Machine(0, host), model: twin.model, held: [...twin.held] };
      t.strictSame(checkMm(host), [], 'restored');
      sameSections(t, everything(copy.m), everything(twin.m), 'the same sections');
      if (data === viaBytes) continueBoth(t, twin, copy, lives, random);
    }
  }
});

/** The same steps on both: the same answers and the same state. */
function continueBoth(
  t: Check,
  twin: Twin,
  copy: Twin,
  lives: Map<string, number>,
  random: (n: number) => number,
): void {
  const seed = random(2 ** 31);
  const livesOfCopy = new Map(lives);
  copy.model = structuredModel(twin.model);
  const [one, two] = [randomFrom(seed), randomFrom(seed)];
  for (let i = 0; i < 80; i++) {
    const expected = step(twin, lives, one);
    const real = step(copy, livesOfCopy, two);
    t.equal(real.real, expected.real, `${expected.text} after restoring`);
  }
  sameSections(t, everything(copy.m), everything(twin.m), 'the same state in the end');
}

/** A second model in the same state, so that both can take the same steps. */
function structuredModel(model: Model): Model {
  const copy = new Model(model.total);
  for (const [id, cells] of model.mms) copy.mms.set(id, structuredClone(cells));
  for (const name of ['pins', 'cache', 'kept', 'use'] as const)
    for (const [key, value] of model[name]) (copy[name] as Map<unknown, unknown>).set(key, value);
  for (const name of ['declared', 'dirty'] as const) for (const pfn of model[name]) copy[name].add(pfn);
  copy.zero = model.zero;
  copy.cursor = model.cursor;
  return copy;
}

t.test('snapshot: a host that was never touched, and sections that are missing', async (t) => {
  const m = new Machine();
  t.strictSame(
    [...mmSections(m.host.mm)].map(({ key, version }) => [key, version]),
    [['mm', null]],
  );
  t.equal(restoreMm(structuredClone(everything(m))).total_pages, OPTIONS.total_pages);
  t.throws(() => restoreMm(new Map()), /'mm' is missing/);
  m.task('a');
  m.mmap('a', 0, 1);
  m.touch('a', 0, true);
  const data = everything(m);
  data.set('mm/leaf/mm-9/1', {});
  t.throws(() => restoreMm(data), /belongs to no mm/);
});
