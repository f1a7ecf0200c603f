// The layers of src/ and the house rules of every source file, as functions of a path and its text.

import { posix } from 'node:path';
import { lineOf, readSource } from './source-text.ts';

export interface Violation {
  file: string;
  line: number;
  rule: string;
}

interface Layer {
  /** Folders of src/ that it may import beside itself. */
  folders: string[];
  /** Libraries and node: modules that it may import. */
  library: (name: string) => boolean;
}

const isPrisma = (name: string): boolean => /^(prisma|@prisma\/.*|\.prisma\/.*|better-sqlite3|pg)(\/|$)/.test(name);
const isFastify = (name: string): boolean => /^(fastify(-.*)?|@fastify\/[^/]+)(\/|$)/.test(name);
const other = (name: string): boolean => !isPrisma(name) && !isFastify(name);

/** By folder, never by file name. '.' stands for the files beside the folders. */
const LAYERS: Record<string, Layer> = {
  kernel: { folders: [], library: () => false },
  service: { folders: ['kernel'], library: other },
  store: { folders: ['kernel', 'service'], library: (name) => other(name) || isPrisma(name) },
  http: { folders: ['kernel', 'service'], library: (name) => other(name) || isFastify(name) },
  cli: { folders: ['.', 'kernel', 'service', 'store', 'http'], library: other },
  '.': { folders: ['kernel', 'service'], library: other },
};
/** The files beside the folders that put the parts together. */
const WIRING = new Set(['src/app.ts', 'src/server.ts']);

const KERNEL_BANS: [RegExp, string][] = [
  [/(?<![\w$.])async(?![\w$])/g, 'async'],
  [/(?<![\w$.])await(?![\w$])/g, 'await'],
  [/(?<![\w$.])Promise(?:Like)?(?![\w$])/g, 'Promise'],
  [/(?<![\w$.])Date(?![\w$])/g, 'Date'],
  [/(?<![\w$])Math\s*(?:\.\s*random|\[)/g, 'Math.random'],
  [/(?<![\w$.])process(?![\w$])/g, 'process'],
  [/(?<![\w$.])(?:globalThis|global)(?![\w$])/g, 'globalThis'],
  [/(?<![\w$.])(?:set|clear)(?:Timeout|Interval|Immediate)(?![\w$])/g, 'a timer'],
  [/(?<![\w$.])queueMicrotask(?![\w$])/g, 'queueMicrotask'],
  [/(?<![\w$.])(?:performance|crypto|fetch|console|Intl)(?=\s*[.(])/g, 'an ambient service'],
  [/\.\s*(?:localeCompare|toLocale\w+)(?![\w$])/g, 'a locale'],
];

const BANNED_NAMES = new Set(['util', 'utils', 'helper', 'helpers', 'common', 'manager', 'base', 'misc']);
const FILE_NAME = /^[a-z0-9]+(-[a-z0-9]+)*(\.(test|d))?\.(ts|mts|mjs)$/;
const UNFINISHED = new RegExp(`\\b(?:${['TO' + 'DO', 'FIX' + 'ME', 'XX' + 'X'].join('|')})\\b`, 'g');

/** Every rule that a source file breaks. `file` is relative to the project, with forward slashes. */
export function violationsOf(file: string, text: string): Violation[] {
  const source = readSource(text);
  const found: Violation[] = nameViolations(file);
  const add = (line: number, rule: string): void => {
    found.push({ file, line, rule });
  };

  for (const match of source.code.matchAll(/(?<![\w$.])export\s+default\b|\bas\s+default\b/g)) {
    add(lineOf(text, match.index), 'default export');
  }
  for (const match of source.comments.matchAll(UNFINISHED))
    add(lineOf(text, match.index), 'unfinished work in a comment');
  for (const { specifier, line } of source.imports) {
    if (specifier.startsWith('.') && !/\.(ts|mjs|json)$|\/dist\/.*\.js$/.test(specifier))
      add(line, `import without extension: ${specifier}`);
  }

  const path = file.split('/');
  if (path[0] !== 'src') return found;
  if (!/^(#![^\n]*\n)?\s*(\/\/|\/\*)/.test(text)) add(1, 'the first line does not say what the file models');
  const folder = path.length > 2 ? (path[1] as string) : '.';
  const layer = LAYERS[folder];
  if (layer === undefined) add(1, `folder of no layer: src/${folder}`);
  else
    for (const { specifier, line } of source.imports) {
      const rule = importViolation(file, folder, layer, specifier);
      if (rule !== null) add(line, rule);
    }
  if (folder === 'kernel') {
    for (const [pattern, name] of KERNEL_BANS) {
      for (const match of source.code.matchAll(pattern)) add(lineOf(text, match.index), `kernel uses ${name}`);
    }
  }
  return found;
}

function importViolation(file: string, folder: string, layer: Layer, specifier: string): string | null {
  if (!specifier.startsWith('.')) {
    if (folder === 'kernel') return `kernel imports ${specifier}`;
    return layer.library(specifier) ? null : `${folder === '.' ? 'src' : folder} imports ${specifier}`;
  }
  const target = posix.join(posix.dirname(file), specifier).split('/');
  if (target[0] !== 'src')
    return specifier.endsWith('package.json') && folder !== 'kernel' ? null : `import from outside src: ${specifier}`;
  const targetFolder = target.length > 2 ? (target[1] as string) : '.';
  const targetFile = target.join('/');
  if (WIRING.has(targetFile)) {
    return WIRING.has(file) || folder === 'cli' ? null : `${folder} imports the wiring ${targetFile}`;
  }
  if (WIRING.has(file) || targetFolder === folder || layer.folders.includes(targetFolder)) return null;
  return `${folder === '.' ? file : folder} imports ${targetFolder === '.' ? targetFile : targetFolder}`;
}

function nameViolations(file: string): Violation[] {
  const parts = file.split('/');
  const name = parts.at(-1) as string;
  const found: Violation[] = [];
  if (!FILE_NAME.test(name)) found.push({ file, line: 0, rule: 'file name is not kebab-case' });
  for (const word of parts.flatMap((part) => part.split(/[.-]/))) {
    if (BANNED_NAMES.has(word)) found.push({ file, line: 0, rule: `file name says nothing: ${word}` });
  }
  return found;
}
