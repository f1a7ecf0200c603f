// npm run conformance: replays recorded traces and says where this kernel answers differently from the recorded one.

import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { PROFILES } from '../../kernel/profile.ts';
import { InProcess } from './in-process.ts';
import type { Backend } from './machine.ts';
import { OverHttp, Unusable } from './over-http.ts';
import { startService } from './own-service.ts';
import { replay } from './replay.ts';
import { Report } from './report.ts';
import type { RecordedTrace } from './trace.ts';
import { readTraces, TraceError } from './trace-reader.ts';

const USAGE = `usage: npm run conformance -- FILE... [options]
  FILE                     recorded traces, .jsonl or .jsonl.gz
  --in-process             replay in this process (the default without --http)
  --http [URL]             replay over HTTP: on the service at URL (API_TOKEN is sent), or on one started for this run
  --include-features a,b   run traces with these features too
  --all                    run every trace, whatever its features
  --limit n                replay at most n traces a backend
exit code: 0 agreement, 1 a difference, 2 bad usage, an unreadable file, or no service`;

/** Features of traces that are run without being asked for. */
const SUPPORTED_FEATURES: ReadonlySet<string> = new Set(['nested-unmap', 'self-deadlock']);

class UsageError extends Error {}

interface Options {
  files: string[];
  features: ReadonlySet<string>;
  all: boolean;
  limit: number;
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
        'include-features': { type: 'string' },
        limit: { type: 'string' },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const { values, positionals: files } = parsed as {
    values: Record<string, string | boolean | undefined>;
    positionals: string[];
  };
  if (files.length === 0) throw new UsageError('no trace file given');
  const limit = values.limit === undefined ? Number.POSITIVE_INFINITY : Number(values.limit);
  if (values.limit !== undefined && !/^[1-9]\d*$/.test(values.limit as string))
    throw new UsageError(`--limit ${values.limit} is not a number of traces`);
  const included = String(values['include-features'] ?? '')
    .split(',')
    .filter(Boolean);
  return {
    files,
    features: new Set([...SUPPORTED_FEATURES, ...included]),
    all: values.all === true,
    limit,
    inProcess: values['in-process'] === true || at < 0,
    http: at < 0 ? undefined : url,
  };
}

/** Why a trace is not run; null: it is. */
function reasonToSkip({ trace }: RecordedTrace, { all, features }: Options): string | null {
  if (all) return null;
  if (!Object.hasOwn(PROFILES, trace.era)) return `era ${trace.era}`;
  const missing = trace.features.filter((feature) => !features.has(feature));
  return missing.length === 0 ? null : `feature ${missing.join('+')}`;
}

/** Replays the selected traces of all files on one backend. */
async function run(backend: Backend, options: Options): Promise<Report> {
  const report = new Report(backend.name);
  let replayed = 0;
  for (const file of options.files)
    for (const recorded of readTraces(file)) {
      const reason = reasonToSkip(recorded, options);
      if (reason !== null) report.skip(reason);
      else if (replayed < options.limit) {
        replayed++;
        report.add(recorded, await replay(backend, recorded.trace));
      } else report.skip('--limit');
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
