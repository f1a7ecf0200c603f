// Measures which tests pin a behaviour: those that fail when its row gets another value in every profile that has not got it.

import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { type Behaviour, PROFILE_NAMES, PROFILES, type Profile, type ProfileName } from '../../kernel/profile.ts';
import { bent, otherValues, type Table, textOf, watched } from './rows.ts';
import { partTitle, type TestClaim, type TestPins, type Titles } from './test-claim.ts';
import { INSIDE, TestPoint, type TestWatch } from './test-run.ts';

type Collected = [title: string, body: (t: TestPoint) => unknown];

/**
 * Files of a folder that are measured. Not those of random runs, which take seconds and name no single behaviour, and not
 * the probes of the table, which choose the values themselves.
 */
export function measuredFiles(folder: string): string[] {
  const isMeasured = (file: string): boolean =>
    file.endsWith('.test.ts') &&
    !['interleavings.test.ts', 'profile.test.ts'].includes(file) &&
    !/-(random|phased)\.test\.ts$/.test(file) &&
    !takesSeed(join(folder, file));
  return readdirSync(folder).filter(isMeasured).sort();
}

/** Whether a file asks for a seed, or one of its own folder that it imports does. */
function takesSeed(path: string, seen = new Set<string>()): boolean {
  seen.add(path);
  const text = readFileSync(path, 'utf8');
  if (/process\.env\.\w*SEED\b/.test(text)) return true;
  const imported = [...text.matchAll(/ from '\.\/([^']+)'/g)].map(([, name]) => join(dirname(path), name as string));
  return imported.some((each) => !seen.has(each) && takesSeed(each, seen));
}

/** The outermost tests of a file, not run. */
async function collect(path: string): Promise<Collected[]> {
  t.setTimeout(0);
  const collected: Collected[] = [];
  const root = t as unknown as { test: (...test: Collected) => Promise<void> };
  root.test = async (title, body) => {
    collected.push([title, body]);
  };
  await import(path);
  return collected;
}

/** Puts profiles in the place of those that hosts are made with. Only for a process that does nothing else. */
function useProfiles(change: (name: ProfileName, profile: Profile) => Profile): () => void {
  const table = PROFILES as Record<string, Profile>;
  const before = { ...table };
  for (const name of PROFILE_NAMES) table[name] = change(name, before[name] as Profile);
  return () => {
    Object.assign(table, before);
  };
}

/** The tests of one file, which rows each of them asks for, and which fail when a row has another value. */
class MeasuredFile {
  /** Rows that each test asked for, its subtests included. By path. */
  private readonly asked = new Map<string, Set<string>>();
  private readonly leaves = new Map<string, string>();

  private constructor(private readonly tests: Collected[]) {}

  /** Runs all tests as they are. Throws if one fails: there would be nothing to measure against. */
  static async read(path: string): Promise<MeasuredFile> {
    const file = new MeasuredFile(await collect(path));
    const running: string[] = [];
    const note = (row: string): void => {
      for (const test of running) file.asked.get(test)?.add(row);
    };
    await file.run((_name, profile) => watched(profile, note), {
      chosen: () => true,
      begin: (test) => {
        running.push(test);
        file.asked.set(test, file.asked.get(test) ?? new Set());
      },
      end: (test, leaf, failure) => {
        if (failure !== null) throw new Error(`${path}: '${test}' fails as it is: ${String(failure)}`);
        running.pop();
        if (leaf) file.leaves.set(test, titleOf(test));
      },
    });
    return file;
  }

  get titles(): string[] {
    return [...this.leaves.values()];
  }

  /** Titles of the tests that fail with another value of a row; of those named, where titles are named. */
  async failing(row: string, behaviour: Behaviour<unknown>, named?: ReadonlySet<string>): Promise<Set<string>> {
    const failing = new Set<string>();
    const values = new Map(PROFILE_NAMES.flatMap((name) => [...otherValues(behaviour, name)]));
    const isNamed = (path: string): boolean =>
      named === undefined || named.has(titleOf(path)) || !this.leaves.has(path);
    for (const value of values.values())
      await this.run(
        (name, profile) => (textOf(behaviour.values[name]) === textOf(value) ? profile : bent(profile, row, value)),
        {
          chosen: (path) => isNamed(path) && !failing.has(titleOf(path)) && (this.asked.get(path)?.has(row) ?? true),
          begin: () => {},
          end: (path, _leaf, failure) => {
            if (failure !== null && this.leaves.has(path)) failing.add(titleOf(path));
          },
        },
      );
    return failing;
  }

  private async run(change: (name: ProfileName, profile: Profile) => Profile, watch: TestWatch): Promise<void> {
    const restore = useProfiles(change);
    try {
      const root = new TestPoint('', watch);
      for (const test of this.tests) await root.test(...test);
    } finally {
      restore();
    }
  }
}

const titleOf = (path: string): string => path.split(INSIDE).at(-1) as string;

/** Tests that the page names for one row: the most telling ones. */
const NAMED_TESTS = 4;

/**
 * Measures all rows of a table on the tests of a folder. Of the tests that pin a row those are named that pin the fewest
 * other ones.
 */
export async function measureTests(folder: string, files: readonly string[], table: Table): Promise<TestPins> {
  const claims = new Map<string, Map<string, TestClaim>>(Object.keys(table).map((row) => [row, new Map()]));
  const pinned = new Map<string, number>();
  for (const file of files) {
    const measured = await MeasuredFile.read(join(folder, file));
    for (const [row, behaviour] of Object.entries(table))
      for (const full of await measured.failing(row, behaviour)) {
        const { title, profile } = partTitle(full);
        const ofRow = claims.get(row) as Map<string, TestClaim>;
        const claim = ofRow.get(`${file} ${title}`) ?? { file, title, profiles: [] };
        ofRow.set(`${file} ${title}`, claim);
        if (profile !== null) claim.profiles.push(profile);
      }
  }
  for (const ofRow of claims.values()) for (const key of ofRow.keys()) pinned.set(key, (pinned.get(key) ?? 0) + 1);
  const telling = ([a]: [string, TestClaim], [b]: [string, TestClaim]): number =>
    (pinned.get(a) ?? 0) - (pinned.get(b) ?? 0);
  const named = [...claims].map(([row, ofRow]): [string, TestClaim[]] => [
    row,
    [...ofRow]
      .sort(telling)
      .slice(0, NAMED_TESTS)
      .map(([, claim]) => claim),
  ]);
  for (const [, tests] of named) for (const { profiles } of tests) profiles.sort(byRelease);
  return Object.fromEntries(named);
}

const byRelease = (a: string, b: string): number =>
  PROFILE_NAMES.indexOf(a as ProfileName) - PROFILE_NAMES.indexOf(b as ProfileName);

/** Titles that a claim stands for. */
const titlesOf = ({ title, profiles }: TestClaim, all: readonly string[]): string[] =>
  profiles.length === 0
    ? [title]
    : profiles.map((wanted) => {
        const found = all.find((each) => {
          const parts = partTitle(each);
          return parts.title === title && parts.profile === wanted;
        });
        return found ?? `${title} [${wanted}]`;
      });

/** Runs what is claimed to pin a row once more. Gives the titles of all tests, and each claim that does not hold. */
export async function checkTests(
  folder: string,
  files: readonly string[],
  table: Table,
  claims: TestPins,
): Promise<{ titles: Titles; wrong: string[] }> {
  const titles: Titles = {};
  const wrong: string[] = [];
  for (const [row, ofRow] of Object.entries(claims)) {
    if (table[row] === undefined) wrong.push(`${row}: no such behaviour`);
    for (const { file } of ofRow) if (!files.includes(file)) wrong.push(`${row}: no measured file ${file}`);
  }
  for (const file of files) {
    const measured = await MeasuredFile.read(join(folder, file));
    titles[file] = measured.titles;
    for (const [row, behaviour] of Object.entries(table)) {
      const ofFile = (claims[row] ?? []).filter((claim) => claim.file === file);
      const named = ofFile.flatMap((claim) => titlesOf(claim, measured.titles));
      if (named.length === 0) continue;
      const failing = await measured.failing(row, behaviour, new Set(named));
      for (const title of named)
        if (!failing.has(title)) wrong.push(`${row}: ${file}: '${title}' does not exist or does not pin it`);
    }
  }
  return { titles, wrong };
}
