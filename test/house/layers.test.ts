// The rules of the house: layers by folder, what the kernel may not use, names, first lines. Planted violations come first.

import { execFileSync } from 'node:child_process';
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import t from 'tap';
import { violationsOf } from './layer-rules.ts';
import { projectFiles, ROOT } from './project-files.ts';
import { readSource } from './source-text.ts';

const HEAD = '// Models something of the kernel.\n';

/** [path, text after the head line, rules that must be reported, each as a substring, in order] */
const PLANTED: [string, string, string[]][] = [
  ['src/kernel/a.ts', "import { readFileSync } from 'node:fs';", ['kernel imports node:fs']],
  ['src/kernel/a.ts', "import { encode } from 'cbor-x';", ['kernel imports cbor-x']],
  ['src/kernel/mm/a.ts', "import type { Store } from '../../service/ports.ts';", ['kernel imports service']],
  ['src/kernel/a.ts', "export { x } from '../http/x.ts';", ['kernel imports http']],
  ['src/kernel/a.ts', "import {\n  a,\n  b,\n} from\n  '../app.ts';", ['kernel imports the wiring src/app.ts']],
  ['src/kernel/a.ts', "const x = await import('../store/x.ts');", ['kernel imports store', 'kernel uses await']],
  ['src/kernel/a.ts', 'export async function f() {}', ['kernel uses async']],
  ['src/kernel/a.ts', 'const f: Promise<void> = g();', ['kernel uses Promise']],
  ['src/kernel/a.ts', 'const now = Date.now();', ['kernel uses Date']],
  ['src/kernel/a.ts', 'const now = new Date();', ['kernel uses Date']],
  ['src/kernel/a.ts', 'const r = Math.random();', ['kernel uses Math.random']],
  ['src/kernel/a.ts', "const r = Math['random']();", ['kernel uses Math.random']],
  ['src/kernel/a.ts', 'if (process.env.X) f();', ['kernel uses process']],
  ['src/kernel/a.ts', 'setTimeout(f, 1);', ['kernel uses a timer']],
  ['src/kernel/a.ts', 'const g = globalThis;', ['kernel uses globalThis']],
  ['src/kernel/a.ts', 'names.sort((a, b) => a.localeCompare(b));', ['kernel uses a locale']],
  ['src/kernel/a.ts', 'const s = `${Date.now()} `;', ['kernel uses Date']],
  ['src/kernel/a.ts', 'const s = `${`${{ a: Math.random() }}`}`;', ['kernel uses Math.random']],
  ['src/service/a.ts', "import { Prisma } from '@prisma/client';", ['service imports @prisma/client']],
  ['src/service/a.ts', "import { open } from '../store/sqlite.ts';", ['service imports store']],
  ['src/service/a.ts', "import type { FastifyRequest } from 'fastify';", ['service imports fastify']],
  ['src/service/a.ts', "import { routes } from '../http/routes.ts';", ['service imports http']],
  ['src/store/a.ts', "import swagger from '@fastify/swagger';", ['store imports @fastify/swagger']],
  ['src/store/a.ts', "import { x } from '../http/x.ts';", ['store imports http']],
  ['src/http/a.ts', "import Database from 'better-sqlite3';", ['http imports better-sqlite3']],
  ['src/http/a.ts', "import { PrismaClient } from '../store/generated/client.ts';", ['http imports store']],
  ['src/http/a.ts', "import { build } from '../app.ts';", ['http imports the wiring src/app.ts']],
  ['src/app.ts', "import fastify from 'fastify';", ['src imports fastify']],
  ['src/cli/a.ts', "import { PrismaClient } from '@prisma/client';", ['cli imports @prisma/client']],
  ['src/settings.ts', "import { open } from './store/sqlite.ts';", ['src/settings.ts imports store']],
  ['src/elsewhere/a.ts', '', ['folder of no layer: src/elsewhere']],
  ['src/http/a.ts', 'export default function f() {}', ['default export']],
  ['src/http/a.ts', 'const f = 1;\nexport { f as default };', ['default export']],
  ['src/http/utils.ts', '', ['file name says nothing: utils']],
  ['src/common/a.ts', '', ['file name says nothing: common', 'folder of no layer']],
  ['src/http/pin-helpers.ts', '', ['file name says nothing: helpers']],
  ['test/base.test.ts', '', ['file name says nothing: base']],
  ['src/http/pinPages.ts', '', ['file name is not kebab-case']],
  ['src/http/a.ts', `// ${'TO' + 'DO'}: later`, ['unfinished work']],
  ['src/http/a.ts', "import { x } from './b';", ['import without extension: ./b']],
  ['src/http/a.ts', "import { x } from '../../test/x.ts';", ['import from outside src']],
];

/** What must not be mistaken for a violation. */
const INNOCENT: [string, string][] = [
  ['src/kernel/a.ts', '// async await Promise Date Math.random process setTimeout'],
  ['src/kernel/a.ts', "const s = 'await new Date() process.env';"],
  ['src/kernel/a.ts', 'const s = `a Date of ${count} and a process`;'],
  ['src/kernel/a.ts', 'const r = /await Date \\/ [/"] process/.exec(s);'],
  ['src/kernel/a.ts', 'const half = (a + b) / 2; const x = c / d;'],
  ['src/kernel/a.ts', 'const u = row.Date; const dated = updatedDate; const p = processed;'],
  ['src/kernel/mm/a.ts', "import { x } from '../vfio/x.ts';\nimport type { Y } from '../host.ts';"],
  [
    'src/service/a.ts',
    "import { x } from '../kernel/x.ts';\nimport { createHash } from 'node:crypto';\nimport { Encoder } from 'cbor-x';",
  ],
  [
    'src/store/a.ts',
    "import { PrismaClient } from './generated/client.ts';\nimport type { Store } from '../service/ports.ts';",
  ],
  [
    'src/http/a.ts',
    "import fastify from 'fastify';\nimport swagger from '@fastify/swagger';\nimport type { Service } from '../service/service.ts';",
  ],
  ['src/app.ts', "import { open } from './store/x.ts';\nimport { build } from './http/x.ts';"],
  ['src/server.ts', "import { app } from './app.ts';"],
  ['src/cli/a.ts', "import { app } from '../app.ts';\nimport { x } from '../kernel/x.ts';"],
];

t.test('every planted violation is reported', async (t) => {
  for (const [file, text, rules] of PLANTED) {
    const reported = violationsOf(file, HEAD + text).map((violation) => violation.rule);
    t.equal(reported.length, rules.length, `${file}: ${JSON.stringify(text)} -> ${JSON.stringify(reported)}`);
    for (const [i, rule] of rules.entries()) t.match(reported[i], rule);
  }
  t.match(violationsOf('src/http/a.ts', 'const f = 1;\n')[0], { line: 1, rule: 'the first line' });
  t.match(violationsOf('src/kernel/a.ts', `${HEAD}\n\nDate.now();`)[0], { line: 4, rule: 'kernel uses Date' });
});

t.test('what only looks like a violation is not reported', async (t) => {
  for (const [file, text] of INNOCENT) t.strictSame(violationsOf(file, HEAD + text), [], `${file}: ${text}`);
});

t.test('imports are found in every form', async (t) => {
  const text = [
    "import a, { b } from 'one';",
    "import * as c from 'two';",
    "import 'three';",
    "export * from 'four';",
    "const d = import('five');",
    "const e = require('six');",
    "import type { F } from 'seven';",
    "// import g from 'none';",
    'const h = "import i from \'none\'";',
  ].join('\n');
  t.strictSame(
    readSource(text).imports.map((found) => `${found.line} ${found.specifier}${found.typeOnly ? ' type' : ''}`),
    ['1 one', '2 two', '3 three', '4 four', '5 five', '6 six', '7 seven type'],
  );
});

t.test('no source file of the project breaks a rule', async (t) => {
  const sources = projectFiles().filter(
    (file) =>
      /^(src|test|scripts|examples|bench)\//.test(file) &&
      /\.(ts|mts|mjs|js)$/.test(file) &&
      !file.includes('/generated/'),
  );
  t.ok(sources.length > 40, `${sources.length} source files were read`);
  const found = sources.flatMap((file) => violationsOf(file, readFileSync(join(ROOT, file), 'utf8')));
  t.strictSame(
    found.map(({ file, line, rule }) => `${file}:${line}: ${rule}`),
    [],
  );
});

const LARGEST = 1024 * 1024;
/** Made of parts, so that this file does not name them itself. */
const NEVER_NAMED = [
  ['/wo', 'rk/'],
  ['sub', 'agent'],
  ['../sha', 'red/'],
].map((parts) => parts.join(''));

const namedIn = (text: string): string[] => NEVER_NAMED.filter((word) => text.toLowerCase().includes(word));

t.test('no file names the place it was written at', async (t) => {
  t.strictSame(namedIn(`see /${'work'}/x`), [NEVER_NAMED[0]], 'a planted name is found');
  const found = projectFiles().flatMap((file) =>
    namedIn(`${file}\n${readFileSync(join(ROOT, file), 'latin1')}`).map((word) => `${file}: ${word}`),
  );
  t.strictSame(found, []);
});

t.test('no file is larger than 1 MiB, none is built, and no secret is among them', async (t) => {
  const files = projectFiles();
  t.strictSame(
    files.filter((file) => statSync(join(ROOT, file)).size > LARGEST),
    [],
  );
  t.strictSame(
    files.filter((file) =>
      /(^|\/)(node_modules|dist|generated|\.tap)\/|\.(db|db-wal|log|tgz|pem|key)$|(^|\/)\.env$/.test(file),
    ),
    [],
  );
});

t.test('shell scripts parse', async (t) => {
  for (const file of projectFiles().filter((name) => name === '.ci/run' || name.endsWith('.sh'))) {
    t.equal(execFileSync('bash', ['-n', join(ROOT, file)], { encoding: 'utf8' }), '', file);
  }
});
