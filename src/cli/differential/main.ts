// npm run differential: runs a journal or a list of commands under several kernels and prints the first difference of each kind.

import { pathToFileURL } from 'node:url';
import { parseArgs } from 'node:util';
import { printedFields } from '../../http/parse.ts';
import type { Fields } from '../../kernel/outcome.ts';
import { PROFILE_NAMES } from '../../kernel/profile.ts';
import { runDifferential } from '../../service/differential/differential.ts';
import { TooManyCommands } from '../../service/errors.ts';
import { BadInput, readPlan } from './input.ts';
import { printReport, type ReportJson } from './print.ts';

const USAGE = `usage: npm run differential -- --profiles A,B[,C...] (FILE | --host URL) [options]
  --profiles 5.15,6.18   kernels; the first is compared with each of the others (${PROFILE_NAMES.join(', ')})
  FILE                   a page of GET .../journal, JSON lines of its items, a list of commands, or the body of a request
  --host URL             a host of a running service, http://127.0.0.1:7180/v1/hosts/ID (API_TOKEN is sent)
  --until n              of --host: only the first n commands
  --template default     of FILE: what the host contains before the first command (empty, default)
  --written-for 5.15     of FILE: kernel that the commands were written for (default: the first of --profiles)
  --total-pages n, --fixes a,b   of FILE: further options of the host
  --no-causes            do not look for the behaviours that make the differences
  --json                 print the report as POST /v1/differential gives it
exit code: 0 no difference, 1 differences, 2 bad usage or input, or no service`;

class UsageError extends Error {}

const OPTIONS = {
  profiles: { type: 'string' },
  host: { type: 'string' },
  until: { type: 'string' },
  template: { type: 'string' },
  'written-for': { type: 'string' },
  'total-pages': { type: 'string' },
  fixes: { type: 'string' },
  'no-causes': { type: 'boolean' },
  json: { type: 'boolean' },
} as const;

interface Options {
  profiles: string[];
  file: string | null;
  host: URL | null;
  until: number | null;
  causes: boolean;
  json: boolean;
  /** Options of the host that a file's commands are run on. */
  hostOptions: object;
}

function parse(argv: string[]): Options {
  let parsed: ReturnType<typeof parseArgs<{ options: typeof OPTIONS; allowPositionals: true }>>;
  try {
    parsed = parseArgs({ args: argv, allowPositionals: true, options: OPTIONS });
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
  const { values, positionals } = parsed;
  const profiles = (values.profiles ?? '').split(',').filter(Boolean);
  const unknown = profiles.find((name) => !(PROFILE_NAMES as readonly string[]).includes(name));
  if (unknown !== undefined) throw new UsageError(`no profile '${unknown}'`);
  if (profiles.length < 2) throw new UsageError('--profiles names two kernels or more');
  if (positionals.length + (values.host === undefined ? 0 : 1) !== 1) throw new UsageError('one FILE, or --host URL');
  const { template, fixes } = values;
  return {
    profiles,
    file: positionals[0] ?? null,
    host: values.host === undefined ? null : hostUrl(values.host),
    until: numberIn('--until', values.until),
    causes: values['no-causes'] !== true,
    json: values.json === true,
    hostOptions: {
      ...(template === undefined ? {} : { template }),
      ...(values['written-for'] === undefined ? {} : { profile: values['written-for'] }),
      ...(values['total-pages'] === undefined ? {} : { total_pages: numberIn('--total-pages', values['total-pages']) }),
      ...(fixes === undefined ? {} : { fixes: fixes.split(',').filter(Boolean) }),
    },
  };
}

function numberIn(name: string, text: string | undefined): number | null {
  if (text === undefined) return null;
  if (!/^\d{1,15}$/.test(text)) throw new UsageError(`${name} ${text} is not a number`);
  return Number(text);
}

function hostUrl(text: string): URL {
  if (!URL.canParse(text) || !/^https?:\/\/[^/]+\/v1\/hosts\/[^/]+\/?$/.test(text))
    throw new UsageError(`--host ${text} is not the URL of a host, such as http://127.0.0.1:7180/v1/hosts/default`);
  return new URL(text);
}

/** The service that has the journal runs it: it knows what the host was made with. */
async function askService(host: URL, { profiles, until, causes }: Options): Promise<ReportJson> {
  const token = process.env.API_TOKEN;
  const body = { profiles, host: host.pathname.split('/')[3], causes, ...(until === null ? {} : { until }) };
  const headers = { 'content-type': 'application/json', ...(token ? { authorization: `Bearer ${token}` } : {}) };
  const response = await fetch(new URL('/v1/differential', host), {
    method: 'POST',
    headers,
    body: JSON.stringify(body),
  }).catch((error: Error & { cause?: Error }) => {
    throw new BadInput(`${host.origin}: ${error.cause?.message ?? error.message}`);
  });
  const answer = (await response.json()) as ReportJson & { detail?: string };
  if (!response.ok) throw new BadInput(`${host.origin} answered ${response.status}: ${answer.detail ?? ''}`);
  return answer;
}

async function reportOf(options: Options): Promise<ReportJson> {
  const { host, file, profiles, hostOptions, causes } = options;
  if (host !== null) return askService(host, options);
  const plan = readPlan(file as string, hostOptions, profiles[0] as string);
  const report = await runDifferential(plan, { profiles, causes, signal: new AbortController().signal });
  return { ret: 0, ...printedFields({ ...report } as unknown as Fields) } as unknown as ReportJson;
}

/** The whole command. Returns its exit code. */
export async function main(
  argv: string[],
  print: (text: string) => void,
  warn: (text: string) => void,
): Promise<number> {
  try {
    const options = parse(argv);
    const report = await reportOf(options);
    print(options.json ? JSON.stringify(report, null, 2) : printReport(report));
    return report.equal ? 0 : 1;
  } catch (error) {
    if (error instanceof UsageError) warn(`${error.message}\n${USAGE}`);
    else if (error instanceof BadInput || error instanceof TooManyCommands) warn(error.message);
    else throw error;
    return 2;
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href)
  process.exitCode = await main(process.argv.slice(2), console.log, console.error);
