// npm run conformance: replays recorded traces and says where this kernel answers differently from the recorded one.

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { InProcess } from './in-process.ts';
import type { Backend } from './machine.ts';
import { OverHttp, Unusable } from './over-http.ts';
import { startService } from './own-service.ts';
import { replay } from './replay.ts';
import { Report } from './report.ts';
import { type Selection, select } from './select.ts';
import { readTraces, TraceError } from './trace-reader.ts';

const USAGE = `usage: npm run conformance -- [FILE...] [options]
  FILE                     recorded traces, .jsonl or .jsonl.gz (default: all that the project has, test/data/type1)
  --in-process             replay in this process (the default without --http)
  --http [URL]             replay over HTTP: on the service at URL (API_TOKEN is sent), or on one started for this run
  --features a,b           only traces with one of these features ('none': those without any)
  --without-features a,b   no traces with one of these features
  --limit n                replay n traces a backend: of every era and every set of features the first, then the second, ...
  --all                    every trace, which is the default
exit code: 0 agreement, 1 a difference, 2 bad usage, an unreadable file, or no service`;

/** Where the project keeps its traces. */
const OWN_TRACES = fileURLToPath(new URL('../../../test/data/type1/', import.meta.url));

class UsageError extends Error {}

interface Options {
  files: string[];
  selection: Selection;
  inProcess: boolean;
  /** undefined: not over HTTP; null: on a service of our own. */
  http: string | null | undefined;
}

function parse(argv: string[]): Options {
  // --http takes an optional value, which parseArgs has no form for.
  const at = argv.indexOf('--http');
  const url = at >= 0 && /^https?:\/\//.test(argv[at + 1] ?? '') ? (argv[at + 1] as string) : null;
  const rest = at < 0 ? argv : argv.filter((_, i) => i !== at && (url === null || i !== at + 1));
  let parsed: ReturnType<typeof parseArgs>;
  try {
    parsed = parseArgs({
      args: rest,
      allowPositionals: true,
      options: {
        'in-process': { type: 'boolean' },
        all: { type: 'boolean' },
        features: { type: 'string' },
        'without-features': { type: 'string' },
        limit: { type: 'string' },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const { values, positionals } = parsed as {
    values: Record<string, string | boolean | undefined>;
    positionals: string[];
  };
  return {
    files: positionals.length > 0 ? positionals : ownTraces(),
    selection: selectionOf(values),
    inProcess: values['in-process'] === true || at < 0,
    http: at < 0 ? undefined : url,
  };
}

function ownTraces(): string[] {
  const found = existsSync(OWN_TRACES) ? readdirSync(OWN_TRACES).filter((name) => name.endsWith('.jsonl.gz')) : [];
  if (found.length === 0) throw new UsageError('no trace file given');
  return found.sort().map((name) => join(OWN_TRACES, name));
}

function selectionOf(values: Record<string, string | boolean | undefined>): Selection {
  const { limit } = values;
  if (limit !== undefined && !/^[1-9]\d*$/.test(String(limit)))
    throw new UsageError(`--limit ${limit} is not a number of traces`);
  const listed = (option: string): string[] | null => {
    const value = values[option];
    if (value === undefined) return null;
    if (values.all === true) throw new UsageError(`--all and --${option} exclude each other`);
    const names = String(value).split(',').filter(Boolean);
    if (names.length === 0) throw new UsageError(`--${option} names no feature`);
    return names;
  };
  if (limit !== undefined && values.all === true) throw new UsageError('--all and --limit exclude each other');
  return {
    features: listed('features'),
    withoutFeatures: listed('without-features') ?? [],
    limit: limit === undefined ? null : Number(limit),
  };
}

/** Replays the selected traces of all files on one backend. */
async function run(backend: Backend, { files, selection }: Options): Promise<Report> {
  const report = new Report(backend.name);
  const reasonToSkip = select(files, selection);
  for (const file of files)
    for (const recorded of readTraces(file)) {
      const reason = reasonToSkip(recorded);
      if (reason === null) report.add(recorded, await replay(backend, recorded.trace));
      else report.skip(reason);
    }
  return report;
}

/** The backends of a run, each made when its turn comes. */
function backendsOf({ inProcess, http }: Options): (() => Promise<Backend>)[] {
  const backends: (() => Promise<Backend>)[] = [];
  if (inProcess) backends.push(async () => new InProcess());
  if (typeof http === 'string') {
    const token = process.env.API_TOKEN;
    const service = { url: http, close: async () => {}, ...(token ? { token } : {}) };
    backends.push(async () => new OverHttp(service));
  } else if (http === null) backends.push(async () => new OverHttp(await startService()));
  return backends;
}

/** The whole command. Returns its exit code. */
export async function main(
  argv: string[],
  print: (text: string) => void,
  warn: (text: string) => void,
): Promise<number> {
  try {
    const options = parse(argv);
    let code = 0;
    for (const begin of backendsOf(options)) {
      const backend = await begin();
      try {
        const report = await run(backend, options);
        print(report.print());
        if (report.failed) code = 1;
      } finally {
        await backend.close();
      }
    }
    return code;
  } catch (error) {
    if (error instanceof UsageError) warn(`${error.message}\n${USAGE}`);
    else if (error instanceof TraceError || error instanceof Unusable) warn(error.message);
    else throw error;
    return 2;
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  process.exitCode = await main(process.argv.slice(2), console.log, console.error);
