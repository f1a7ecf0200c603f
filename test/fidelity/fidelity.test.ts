// What pins a behaviour is measured: by traces, by tests, and the page says nothing else.

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import type { RecordedTrace } from '../../src/cli/conformance/trace.ts';
import { readTraces } from '../../src/cli/conformance/trace-reader.ts';
import { inWorker } from '../../src/cli/fidelity/in-worker.ts';
import { type Measured, main } from '../../src/cli/fidelity/main.ts';
import { casesOf, claimsIn, type PageInput, renderPage } from '../../src/cli/fidelity/page.ts';
import { bent, otherValues, TABLE, type Table } from '../../src/cli/fidelity/rows.ts';
import { AGAINST_TEXTS, MAILS } from '../../src/cli/fidelity/sources.ts';
import type { TestPins, Titles } from '../../src/cli/fidelity/test-claim.ts';
import { addPins, agrees, type Pin, tracePins } from '../../src/cli/fidelity/trace-pins.ts';

t.setTimeout(240_000);

const ROOT = join(import.meta.dirname, '../..');
const DATA = join(ROOT, 'test/data/type1');
const recordingsOf = (name: string): RecordedTrace[] => [...readTraces(join(DATA, `type1-${name}.jsonl.gz`))];
const OLD = recordingsOf('4.10');
/** Some traces of each era, spread over the files. */
const SOME = ['4.10', '5.15-features', '6.18'].flatMap((name) => recordingsOf(name).filter((_, i) => i % 40 === 5));

/** One row with each value on every trace, whether it is asked for or not, compared from the first operation on. */
async function pinnedByForce(row: string, recordings: RecordedTrace[]): Promise<Record<string, Pin>> {
  const pins: Record<string, Pin> = {};
  for (const recorded of recordings) {
    const { era } = recorded.trace;
    const { traces, against } = pins[era] ?? { traces: 0, against: {} };
    let differs = false;
    for (const [text, value] of otherValues(TABLE[row] as Table[string], era)) {
      const agree = await agrees(recorded, (profile) => bent(profile, row, value));
      against[text] = (against[text] ?? 0) + (agree ? 0 : 1);
      differs ||= !agree;
    }
    pins[era] = { traces: traces + (differs ? 1 : 0), against };
  }
  return pins;
}

t.test('traces: what is skipped as not asked for would not have differed', async (t) => {
  const { traces, rows } = await tracePins(SOME, TABLE);
  t.same(
    Object.values(traces).reduce((sum, count) => sum + count),
    SOME.length,
  );
  for (const row of Object.keys(TABLE)) t.same(rows[row], await pinnedByForce(row, SOME), row);
  const halves = [SOME.filter((_, i) => i % 2 === 0), SOME.filter((_, i) => i % 2 === 1)];
  const parts = await Promise.all(halves.map((half) => tracePins(half, TABLE)));
  t.same(addPins(parts), { traces, rows }, 'measured in parts and added');
});

t.test('traces: a value in the table that is false is pinned by no trace', async (t) => {
  const row = TABLE.rangeOverflow;
  if (row === undefined) throw new Error('no such row');
  const planted: Table = { rangeOverflow: { ...row, values: { ...row.values, '4.10': 'EOVERFLOW' } } };
  const [truly, falsely] = [await tracePins(OLD, { rangeOverflow: row }), await tracePins(OLD, planted)];
  const traces = truly.rows.rangeOverflow?.['4.10']?.traces as number;
  t.ok(traces > 0 && traces < OLD.length);
  t.same(truly.rows.rangeOverflow?.['4.10'], { traces, against: { EOVERFLOW: traces } });
  t.same(falsely.rows.rangeOverflow?.['4.10'], { traces: 0, against: { EINVAL: 0 } });
});

t.test('traces: one that does not agree as it is is refused by file and line', async (t) => {
  const [recorded] = copiesOf(OLD.slice(0, 1));
  const last = recorded?.recorded.answers.at(-1);
  if (recorded === undefined || last === undefined) throw new Error('no trace');
  last.ret = -12345;
  await t.rejects(tracePins([recorded], TABLE), { message: /type1-4\.10\.jsonl\.gz:1: this trace does not agree/ });
});

/** Copies whose recorded answers can be changed. */
const copiesOf = (recordings: RecordedTrace[]): RecordedTrace[] =>
  recordings.map(({ trace, recorded }) => ({ trace, recorded: structuredClone(recorded) }));

/** A file of tests: one that knows a row in each profile if `knows` is right, and one that asks for it and does not care. */
const fixture = (knows: string): string => `
import t from 'tap';
import { PROFILE_NAMES, profileWith } from '${ROOT}/src/kernel/profile.ts';
t.test('fixture', async (t) => {
  for (const profile of PROFILE_NAMES)
    t.test(\`7 [\${profile}] map_dma: knows the flags of its release\`, async (t) => {
      t.equal(profileWith(profile, []).mapFlags, ${knows} ? 7 : 3);
    });
  t.test('8 map_dma: asks, and does not care', async (t) => t.match(profileWith('5.15', []), { name: '5.15' }));
});
`;
const KNOWS = "['5.15', '6.18'].includes(profile)";
const RIGHT: TestPins = {
  mapFlags: [
    {
      file: 'a.test.ts',
      title: '7 map_dma: knows the flags of its release',
      profiles: ['4.10', '5.4', '5.8', '5.15', '6.18'],
    },
  ],
};

t.test('tests: those that fail with another value of the row pin it, in the profiles in which they fail', async (t) => {
  const folder = t.testdir({
    'a.test.ts': fixture(KNOWS),
    'random.test.ts': 'throw new Error(`not measured: ${process.env.SEED}`)',
    'model.test.ts': `import { run } from './model-run.ts';\nthrow new Error(run)`,
    'model-run.ts': `import t from 'tap';\nexport const run = \`not measured: \${process.env.SEED}\`;`,
  });
  const pins = await inWorker<TestPins>({ measure: 'tests', folder });
  t.same(pins.mapFlags, RIGHT.mapFlags);
  t.same(pins.unmapFlags, []);
  const { titles, wrong } = await inWorker<Measured>({ measure: 'claims', folder, claims: pins });
  t.same(wrong, []);
  t.equal(titles['a.test.ts']?.length, 6);
  t.same(
    [...casesOf(titles)].map(([number, profiles]) => [number, profiles.size]),
    [
      ['7', 5],
      ['8', 1],
    ],
  );
});

t.test('tests: a claim of a test that is not there, or pins something else, is found', async (t) => {
  const folder = t.testdir({
    'a.test.ts': fixture(KNOWS),
  });
  const claims: TestPins = {
    ...RIGHT,
    unmapFlags: RIGHT.mapFlags ?? [],
    dirtyLog: [{ file: 'a.test.ts', title: '9 is not there', profiles: [] }],
    dmaRw: [{ file: 'b.test.ts', title: '8 map_dma: asks, and does not care', profiles: [] }],
    nothing: [],
  };
  const { wrong } = await inWorker<Measured>({ measure: 'claims', folder, claims });
  t.same(wrong.length, 1 + 1 + 5 + 1);
  t.match(wrong.join('\n'), /nothing: no such behaviour/);
  t.match(wrong.join('\n'), /dmaRw: no measured file b\.test\.ts/);
  t.match(wrong.join('\n'), /unmapFlags: a\.test\.ts: '7 \[4\.10\] .*' does not exist or does not pin it/);
  t.match(wrong.join('\n'), /dirtyLog: a\.test\.ts: '9 is not there' does not exist or does not pin it/);
});

t.test('tests: one that fails as it is cannot be measured', async (t) => {
  const folder = t.testdir({ 'a.test.ts': fixture('false') });
  await t.rejects(inWorker({ measure: 'tests', folder }), { message: /'fixture > 7 \[5\.15\] .*' fails as it is/ });
});

/** Titles that have every case that a disagreement names. */
const TITLES: Titles = {
  'a.test.ts': [
    ...[...MAILS, { disagreements: AGAINST_TEXTS }]
      .flatMap(({ disagreements }) => disagreements)
      .flatMap(({ cases }) => cases.map((number) => `${number} [5.8] something`)),
    '7 map_dma: something',
    'B-2 [6.18] something',
  ],
};

const input = (changes: Partial<PageInput> = {}): PageInput => ({
  table: TABLE,
  traces: {
    traces: { '4.10': 9, '5.15': 8 },
    rows: {
      dirtyLog: { '4.10': { traces: 0, against: { true: 0 } }, '5.15': { traces: 4, against: { false: 4 } } },
      extensions: { '5.15': { traces: 3, against: { '1, 3, 6': 3, '1, 3, 9': 0 } } },
    },
  },
  tests: RIGHT,
  titles: TITLES,
  mails: MAILS,
  againstTexts: AGAINST_TEXTS,
  ...changes,
});

const sectionOf = (page: string, row: string): string =>
  page.split(/^### /m).find((part) => part.startsWith(`${row}\n`)) ?? '';

t.test('page: values, functions, fixes, and counts of a behaviour; 5.4 and 5.8 rest on text', async (t) => {
  const page = renderPage(input());
  const dirtyLog = sectionOf(page, 'dirtyLog');
  t.match(dirtyLog, '| value | false | false | true | true | true |');
  t.match(dirtyLog, '| traces | text only | text only | text only | 4 of 8 | text only |');
  t.match(dirtyLog, 'Kernel: `vfio_iommu_type1_ioctl()`, `vfio_iommu_type1_dirty_pages()`.');
  t.match(dirtyLog, 'No measured test pins it');
  t.match(sectionOf(page, 'extensions'), 'No trace tells 5.15 from (1, 3, 9).');
  t.match(sectionOf(page, 'failedReplay'), 'With the fix `failed_replay_leak`: undone.');
  t.match(page, '| [`dirtyLog`](#dirtylog) | text only | 4 of 8 |');
  t.match(page, /\| 7 \| {2}\| {2}\| {2}\| tested \| {2}\|\n/);
  t.match(page, /\| B-2 \| {2}\| {2}\| {2}\| {2}\| tested \|\n$/);
  t.same(Object.keys(claimsIn(page)), Object.keys(TABLE));
  t.same(claimsIn(page).mapFlags, RIGHT.mapFlags, 'its claims can be read back');
});

t.test('page: a disagreement of sources names tests that exist', async (t) => {
  t.throws(() => renderPage(input({ titles: { 'a.test.ts': ['7 x'] } })), {
    message: /no test of case \d+, which is to show/,
  });
});

t.test('page: each row names functions of the kernel', async (t) => {
  for (const [row, { functions }] of Object.entries(TABLE)) {
    t.ok(functions.length > 0, row);
    for (const name of functions) t.match(name, /^[a-z_][a-z0-9_]*$/, `${row}: a name without parentheses`);
  }
});

t.test(
  'fidelity --check: 0 for the page as it was written, 1 where a number, a claim or a value differs',
  async (t) => {
    const page = join(t.testdir(), 'fidelity.md');
    const measured: Measured = { ...input(), wrong: [] };
    const warnings: string[] = [];
    const run = (argv: string[], changes: Partial<Measured> = {}): Promise<number> =>
      main(
        argv,
        (text) => warnings.push(text),
        page,
        async (claims) => ({ ...measured, tests: claims ?? measured.tests, ...changes }),
      );
    t.equal(await run([]), 0);
    const written = readFileSync(page, 'utf8');
    t.equal(await run(['--check']), 0);
    t.same(warnings, []);
    writeFileSync(page, written.replace('4 of 8', '5 of 8'));
    t.equal(await run(['--check']), 1);
    t.match(warnings.pop(), /run `npm run fidelity`\nline \d+:\n {2}is {7}.*5 of 8.*\n {2}must be {2}.*4 of 8/);
    writeFileSync(page, written);
    t.equal(await run(['--check'], { wrong: ['mapFlags: something'] }), 1);
    t.same(warnings, ['mapFlags: something']);
    t.equal(await run(['--check'], { titles: { ...TITLES, 'b.test.ts': ['4 [4.10] new'] } }), 1);
  },
);
