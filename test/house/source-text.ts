// Reads TypeScript as text: which modules a file names, and its code without comments and without what strings say.

export interface SourceText {
  /** The code, with comments and the contents of strings and regular expressions blanked; every offset is kept. */
  code: string;
  /** Only the comments, everything else blanked; every offset is kept. */
  comments: string;
  imports: { specifier: string; typeOnly: boolean; line: number }[];
}

/** A slash after one of these begins a regular expression, not a division. */
const BEFORE_REGEX =
  /(?:^|[({[,;:=!&|?+\-*%~^<>]|\b(?:return|typeof|case|in|of|delete|void|throw|else|do|await|yield))$/;

export const lineOf = (text: string, offset: number): number => text.slice(0, offset).split('\n').length;

/** Splits a source file; understands strings, template literals with nested code, both kinds of comments and regular expressions. */
export function readSource(text: string): SourceText {
  const kinds = classify(text);
  const code = only(text, kinds, 'c');
  return { code, comments: only(text, kinds, '#'), imports: importsOf(text, code) };
}

function only(text: string, kinds: string[], wanted: string): string {
  let kept = '';
  for (let i = 0; i < text.length; i++) kept += text[i] === '\n' || kinds[i] === wanted ? text[i] : ' ';
  return kept;
}

/** One letter per UTF-16 unit: c code (quotes and slashes of literals included), # comment, s inside a string or regular expression. */
function classify(text: string): string[] {
  const kinds: string[] = new Array(text.length).fill('c');
  /** Depth of braces at which each open template literal's ${ began. */
  const templates: number[] = [];
  let depth = 0;
  let i = 0;

  const until = (end: number, kind: string): void => {
    kinds.fill(kind, i, end);
    i = end;
  };
  const quoted = (quote: string): void => {
    i++;
    let end = i;
    while (end < text.length && text[end] !== quote && text[end] !== '\n') end += text[end] === '\\' ? 2 : 1;
    until(Math.min(end, text.length), 's');
    i++;
  };
  const template = (): void => {
    let end = i;
    while (end < text.length && text[end] !== '`' && !(text[end] === '$' && text[end + 1] === '{')) {
      end += text[end] === '\\' ? 2 : 1;
    }
    until(Math.min(end, text.length), 's');
    if (text[i] === '$') {
      templates.push(depth);
      depth++;
      i++;
    }
    i++;
  };
  const regex = (): boolean => {
    const line = text.slice(text.lastIndexOf('\n', i) + 1, i).trimEnd();
    if (!BEFORE_REGEX.test(line)) return false;
    let end = i + 1;
    for (let inClass = false; end < text.length && text[end] !== '\n' && (inClass || text[end] !== '/'); end++) {
      if (text[end] === '\\') end++;
      else if (text[end] === '[') inClass = true;
      else if (text[end] === ']') inClass = false;
    }
    i++;
    until(end, 's');
    i++;
    return true;
  };

  while (i < text.length) {
    const char = text[i];
    if (char === '/' && text[i + 1] === '/') until(endOr(text, '\n', i), '#');
    else if (char === '/' && text[i + 1] === '*') until(endOr(text, '*/', i + 2) + 2, '#');
    else if (char === '"' || char === "'") quoted(char);
    else if (char === '`') {
      i++;
      template();
    } else if (char === '/' && regex()) continue;
    else if (char === '}' && templates.at(-1) === depth - 1) {
      templates.pop();
      depth--;
      i++;
      template();
    } else {
      if (char === '{') depth++;
      else if (char === '}') depth--;
      i++;
    }
  }
  return kinds;
}

function endOr(text: string, mark: string, from: number): number {
  const at = text.indexOf(mark, from);
  return at === -1 ? text.length : at;
}

const IMPORT =
  /(?<![\w$.])(?:(import|export)(\s+type\b)?[^;'"`]*?\bfrom\s*|(import)\s*\(\s*|(import)\s*|require\s*\(\s*)(['"`])/g;

function importsOf(text: string, code: string): SourceText['imports'] {
  return [...code.matchAll(IMPORT)].map((match) => {
    const quote = match[5] as string;
    const start = match.index + match[0].length;
    const end = text.indexOf(quote, start);
    return {
      specifier: text.slice(start, end),
      typeOnly: match[2] !== undefined,
      line: lineOf(text, match.index),
    };
  });
}
