// .ci/run: what it exits with and how it closes, with a stand-in for npm that leaves results behind.

import { spawnSync } from 'node:child_process';
import { chmodSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import t from 'tap';
import { ROOT } from './project-files.ts';

const PASSING =
  'TAP version 14\n# Subtest: a\n    not ok 1 - nested points do not count\n    1..1\nok 1 - a\nok 2 - b\n1..2\n';

/** Runs .ci/run in a folder of its own. `results` is what npm test leaves, by file; `failing` names npm scripts that fail. */
function ci(results: Record<string, string>, failing: string[] = []): { code: number | null; lines: string[] } {
  const folder = mkdtempSync(join(tmpdir(), 'ci-'));
  try {
    cpSync(join(ROOT, '.ci'), join(folder, '.ci'), { recursive: true });
    const left = join(folder, 'left');
    for (const [name, text] of Object.entries(results)) {
      mkdirSync(dirname(join(left, name)), { recursive: true });
      writeFileSync(join(left, name), text);
    }
    const programs = join(folder, 'bin');
    mkdirSync(programs);
    const npm = [
      '#!/bin/bash',
      `name="\${!#}"`,
      `if [[ $name == test ]]; then mkdir -p .tap && { [[ ! -d left ]] || cp -r left .tap/test-results; }; fi`,
      `for bad in ${failing.join(' ')}; do if [[ $name == "$bad" ]]; then exit 3; fi; done`,
    ];
    for (const [name, text] of [
      ['npm', npm.join('\n')],
      ['chromium', '#!/bin/bash'],
    ] as const) {
      writeFileSync(join(programs, name), `${text}\n`);
      chmodSync(join(programs, name), 0o755);
    }
    const ran = spawnSync('bash', [join(folder, '.ci/run')], {
      encoding: 'utf8',
      env: { ...process.env, NODE_OPTIONS: '', PATH: `${programs}:${dirname(process.execPath)}:${process.env.PATH}` },
    });
    return { code: ran.status, lines: ran.stdout.trimEnd().split('\n') };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

t.test('everything passes: exit code 0 and a closing line of top-level test points', async (t) => {
  const { code, lines } = ci({
    'test/a.test.ts.tap': PASSING,
    'test/b/c.test.ts.tap': `${PASSING}ok 3 - c # SKIP no browser\n`,
  });
  t.equal(code, 0, lines.join('\n'));
  t.equal(lines.at(-1), '4 passed, 0 failed, 1 skipped');
  for (const step of [
    'npm test',
    'typecheck',
    'lint',
    'openapi:check',
    'fidelity:check',
    'openapi:lint',
    'lint:docker',
  ])
    t.ok(
      lines.some((line) => new RegExp(`^ok +\\d+ s +${step}$`).test(line)),
      `${step} ran`,
    );
});

t.test('a failed test: exit code 1, and it is counted', async (t) => {
  const { code, lines } = ci({ 'test/a.test.ts.tap': PASSING.replace('ok 2', 'not ok 2') }, ['test']);
  t.equal(code, 1);
  t.equal(lines.at(-1), '1 passed, 1 failed');
});

t.test('a failed check that is no test: the other steps still run, and it is counted', async (t) => {
  const { code, lines } = ci({ 'test/a.test.ts.tap': PASSING }, ['lint']);
  t.equal(code, 1);
  t.ok(lines.some((line) => /^FAILED .* lint \(exit code 3\)$/.test(line)));
  t.ok(lines.some((line) => /^ok .* lint:docker$/.test(line)));
  t.equal(lines.at(-1), '2 passed, 1 failed');
});

t.test('a test file that was cut off, and no test at all, are failures', async (t) => {
  t.equal(ci({ 'test/a.test.ts.tap': 'TAP version 14\nok 1 - a\n' }, ['test']).lines.at(-1), '1 passed, 1 failed');
  const none = ci({});
  t.equal(none.lines.at(-1), '0 passed, 1 failed');
  t.equal(none.code, 1, 'although every step ended well');
});
