// The documents say what is there: dependencies, scripts, links, files and settings are compared with the project.

import { existsSync, readFileSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import t from 'tap';
import { projectFiles, ROOT } from './project-files.ts';

interface Package {
  scripts?: Record<string, string>;
  dependencies: Record<string, string>;
  devDependencies: Record<string, string>;
}

const read = (file: string): string => readFileSync(join(ROOT, file), 'utf8');
const manifest = JSON.parse(read('package.json')) as Package;
const documents = projectFiles().filter((file) => file.endsWith('.md'));

/** Names in the first column of the tables below a heading. */
function namedUnder(markdown: string, heading: string): string[] {
  const section = markdown.split(/^## /m).find((part) => part.startsWith(heading)) ?? '';
  return [...section.matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1] as string);
}

/** Paths of the project that a document names in code spans, and targets of its relative links. */
function pathsIn(file: string, markdown: string): string[] {
  const links = [...markdown.matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g)]
    .map((match) => match[1] as string)
    .filter((target) => !/^[a-z]+:/.test(target))
    .map((target) => join(dirname(file), target));
  const spans = [
    ...markdown.matchAll(
      /`((?:src|test|docs|examples|scripts|openapi|prisma)\/[\w./-]*\w\/?|\.ci\/run|[A-Za-z][\w-]*\.(?:json|yml|md))`/g,
    ),
  ].map((match) => match[1] as string);
  return [...links, ...spans];
}

/** npm scripts that a document names. */
function scriptsIn(markdown: string): string[] {
  return [...markdown.matchAll(/\bnpm (?:run (?:--silent )?([\w:]+(?:-\w+)*)|(start|test)\b)/g)].map(
    (match) => (match[1] ?? match[2]) as string,
  );
}

t.test('docs/decisions/dependencies.md names every dependency with its reason, and no other', async (t) => {
  const page = read('docs/decisions/dependencies.md');
  t.strictSame(namedUnder(page, 'At run time').sort(), Object.keys(manifest.dependencies).sort());
  t.strictSame(namedUnder(page, 'For development').sort(), Object.keys(manifest.devDependencies).sort());
  for (const row of page.matchAll(/^\| `[^`]+` \|(.*)\|$/gm)) {
    t.ok((row[1] as string).trim().length >= 5, `a reason: ${row[0]}`);
  }
  for (const version of Object.values({ ...manifest.dependencies, ...manifest.devDependencies })) {
    t.match(version, /^\d+\.\d+\.\d+(-[\w.]+)?$/, 'an exact version');
  }
});

t.test('every file and link that a document names exists', async (t) => {
  t.strictSame(pathsIn('docs/a.md', 'see [x](../README.md#y), `src/none.ts` and [z](https://x.invalid/y)'), [
    'README.md',
    'src/none.ts',
  ]);
  const missing = documents.flatMap((file) =>
    pathsIn(file, read(file))
      .filter((path) => !existsSync(join(ROOT, path)))
      .map((path) => `${file}: ${path}`),
  );
  t.strictSame(missing, []);
});

t.test('every npm script that a document names exists', async (t) => {
  t.strictSame(scriptsIn('`npm start`, npm run a:b'), ['start', 'a:b']);
  const missing = [...documents, '.ci/run'].flatMap((file) =>
    scriptsIn(read(file))
      .filter((name) => manifest.scripts?.[name] === undefined)
      .map((name) => `${file}: npm run ${name}`),
  );
  t.strictSame([...new Set(missing)], []);
});

t.test('every document of docs/ is linked from README.md or from one that is', async (t) => {
  const reached = new Set<string>(['README.md']);
  for (const file of reached) {
    for (const path of pathsIn(file, read(file))) {
      if (path.endsWith('.md') && existsSync(join(ROOT, path))) reached.add(path);
    }
  }
  t.strictSame(
    documents.filter((file) => file.startsWith('docs/') && !reached.has(file)),
    [],
  );
});

t.test('README.md fits one screen', async (t) => {
  const lines = read('README.md').split('\n').length;
  t.ok(lines <= 100, `${lines} lines`);
});

t.test('LICENSE is Apache-2.0, as package.json says', async (t) => {
  t.equal((JSON.parse(read('package.json')) as { license: string }).license, 'Apache-2.0');
  t.match(read('LICENSE'), /Apache License\s+Version 2\.0, January 2004/);
  t.ok(statSync(join(ROOT, 'LICENSE')).size > 11_000, 'the full text');
});

/** Every bound that a limits.ts exports, printed as the page prints it. */
async function bounds(): Promise<Map<string, string>> {
  const modules = await Promise.all([
    import('../../src/kernel/limits.ts'),
    import('../../src/service/limits.ts'),
    import('../../src/http/limits.ts'),
  ]);
  const rows = modules.flatMap((module) => Object.entries(module as Record<string, unknown>));
  return new Map(rows.map(([name, value]) => [name, String(value)]));
}

t.test('docs/reference/limits.md names every bound with its value', async (t) => {
  const named = [...read('docs/reference/limits.md').matchAll(/^\| `([A-Z0-9_]+)` \| ([\d.]+) \|/gm)].map((match) => [
    match[1] as string,
    match[2] as string,
  ]);
  t.strictSame(Object.fromEntries(named), Object.fromEntries(await bounds()));
});

t.test('docs/reference/problems.md names every problem with its status', async (t) => {
  const { catalogue } = await import('../../src/http/problems.ts');
  const named = [...read('docs/reference/problems.md').matchAll(/^\| `([a-z0-9-]+)` \| (\d{3}) \|/gm)].map((match) => [
    match[1] as string,
    Number(match[2]),
  ]);
  t.strictSame(Object.fromEntries(named), Object.fromEntries(catalogue().map(({ slug, status }) => [slug, status])));
});

t.test('docs/reference/problems.md says of every errno whether profile 5.15 gives it', async (t) => {
  const kernel = projectFiles()
    .filter((file) => file.startsWith('src/kernel/'))
    .map(read)
    .join('\n');
  const rows = [...read('docs/reference/problems.md').matchAll(/^\| `(e[a-z0-9]+)` \| \d{3} \| (.*) \|$/gm)];
  t.ok(rows.length > 15);
  for (const [, errno, when] of rows) {
    const given = new RegExp(`Errno\\(\\s*'${(errno as string).toUpperCase()}'`).test(kernel);
    t.equal((when as string).includes('not in profile 5.15'), !given, `${errno}: ${when}`);
  }
});

t.test('docs/reference/settings.md names every setting with its default', async (t) => {
  const { readSettings } = await import('../../src/settings.ts');
  const printed = (value: unknown): string =>
    value === null || value === false ? 'unset' : Array.isArray(value) ? 'empty' : String(value);
  const named = [...read('docs/reference/settings.md').matchAll(/^\| `([A-Z_]+)` \| `?([^|`]+)`? \|/gm)].map(
    (match) => [match[1] as string, (match[2] as string).trim()],
  );
  const defaults = Object.entries(readSettings({}, [])).map(([name, value]) => [name, printed(value)]);
  t.strictSame(Object.fromEntries(named), Object.fromEntries(defaults));
});

/** Headings of the second level. */
const headings = (file: string): string[] =>
  [...read(file).matchAll(/^## `?([^`\n]+)`?$/gm)].map((match) => match[1] as string);

t.test('docs/reference/violations.md has a section for each code', async (t) => {
  const { VIOLATION_CODES } = await import('../../src/kernel/violation.ts');
  t.strictSame(headings('docs/reference/violations.md'), [...VIOLATION_CODES]);
});

t.test('docs/reference/trace.md has a section for each kind of entry', async (t) => {
  const { TRACE_EVENTS } = await import('../../src/http/views/trace.ts');
  t.strictSame(headings('docs/reference/trace.md').slice(0, -1), Object.keys(TRACE_EVENTS));
});

t.test(
  'docs/reference/memory-operations.md names the phases, and the request of every operation with phases',
  async (t) => {
    const page = read('docs/reference/memory-operations.md');
    const { PHASES } = await import('../../src/kernel/phase.ts');
    const named = [...page.matchAll(/`((?:before|after)_[a-z_]+)`/g)].map((match) => match[1] as string);
    t.ok(new Set(named).size >= 7, 'the phases of an invalidation');
    for (const phase of named) t.ok((PHASES as readonly string[]).includes(phase), phase);
    const document = JSON.parse(read('openapi/openapi.json')) as {
      paths: Record<
        string,
        { post?: { requestBody?: { content: Record<string, { schema: { properties?: object } }> } } }
      >;
    };
    const phased = Object.entries(document.paths).filter(
      ([path, { post }]) =>
        /\/(tasks|pages|files|mms)\//.test(path) &&
        'stop_at' in (post?.requestBody?.content['application/json']?.schema.properties ?? {}),
    );
    t.ok(phased.length >= 20);
    for (const [path] of phased) {
      const word = path.slice(path.lastIndexOf('/') + 1);
      t.match(page, new RegExp(`[\`/]${word}\\b`), path);
    }
  },
);
