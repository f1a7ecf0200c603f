// npm run conformance: replays recorded traces and says where this kernel answers differently from the recorded one.

import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { compareAnswers } from './compare.ts';
import { InProcess } from './in-process.ts';
import type { Backend } from './machine.ts';
import { compareMmuAnswers } from './mmu/compare.ts';
import { MmuInProcess } from './mmu/in-process.ts';
import type { MmuBackend } from './mmu/machine.ts';
import { MmuOverHttp } from './mmu/over-http.ts';
import { replayMmu } from './mmu/replay.ts';
import { readMmuTraces } from './mmu/trace-reader.ts';
import { OverHttp, Unusable } from './over-http.ts';
import { startService } from './own-service.ts';
import { replay } from './replay.ts';
import { Report } from './report.ts';
import { type ReasonToSkip, type Selection, select } from './select.ts';
import { TraceError, unitOf } from './trace-lines.ts';
import { readTraces } from './trace-reader.ts';

const USAGE = `usage: npm run conformance -- [FILE...] [options]
  FILE                     recorded traces, .jsonl or .jsonl.gz (default: all that the project has in test/data)
  --in-process             replay in this process (the default without --http)
  --http [URL]             replay over HTTP: on the service at URL (API_TOKEN is sent), or on one started for this run
  --features a,b           only traces with one of these features ('none': those without any)
  --without-features a,b   no traces with one of these features
  --limit n                replay n traces a backend: of every era and every set of features the first, then the second, ...
  --all                    every trace, which is the default
exit code: 0 agreement, 1 a difference, 2 bad usage, an unreadable file, or no service`;

/** Where the project keeps its traces. */
const OWN_TRACES = ['type1', 'mmu-notifier'].map((unit) =>
  fileURLToPath(new URL(`../../../test/data/${unit}/`, import.meta.url)),
);

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
  const found = OWN_TRACES.filter((folder) => existsSync(folder)).flatMap((folder) =>
    readdirSync(folder)
      .filter((name) => name.endsWith('.jsonl.gz'))
      .sort()
      .map((name) => join(folder, name)),
  );
  if (found.length === 0) throw new UsageError('no trace file given');
  return found;
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

/** Where traces are replayed, of each unit. */
interface Place {
  name: string;
  type1: Backend;
  mmu: MmuBackend;
}

/** Replays the selected traces of all files in one place. */
async function run(place: Place, { files, selection }: Options): Promise<Report> {
  const report = new Report(place.name);
  const reasonToSkip = select(files, selection);
  for (const file of files)
    if (unitOf(file) === 'mmu-notifier') await runMmu(place, file, report, reasonToSkip);
    else
      for (const { trace, recorded } of readTraces(file)) {
        const reason = reasonToSkip(trace);
        if (reason !== null) report.skip(reason);
        else
          report.add(trace, recorded.answers, await replay(place.type1, trace), (expected, got) =>
            compareAnswers(expected, got, trace),
          );
      }
  return report;
}

async function runMmu({ mmu }: Place, file: string, report: Report, reasonToSkip: ReasonToSkip): Promise<void> {
  for (const { trace, recorded } of readMmuTraces(file)) {
    const reason = reasonToSkip(trace);
    if (reason !== null) report.skip(reason);
    else report.add(trace, recorded, await replayMmu(mmu, trace), compareMmuAnswers);
  }
}

/** The places of a run, each made when its turn comes. */
function placesOf({ inProcess, http }: Options): (() => Promise<Place>)[] {
  const places: (() => Promise<Place>)[] = [];
  const overHttp = (type1: OverHttp): Place => ({
    name: type1.name,
    type1,
    mmu: new MmuOverHttp((options) => type1.open(options)),
  });
  if (inProcess)
    places.push(async () => {
      const type1 = new InProcess();
      return { name: type1.name, type1, mmu: new MmuInProcess() };
    });
  if (typeof http === 'string') {
    const token = process.env.API_TOKEN;
    const service = { url: http, close: async () => {}, ...(token ? { token } : {}) };
    places.push(async () => overHttp(new OverHttp(service)));
  } else if (http === null) places.push(async () => overHttp(new OverHttp(await startService())));
  return places;
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
    for (const begin of placesOf(options)) {
      const place = await begin();
      try {
        const report = await run(place, options);
        print(report.print());
        if (report.failed) code = 1;
      } finally {
        await place.type1.close();
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
