// npm run demo: replays the boot of a real guest against the service, with three vendor drivers pinning its memory meanwhile.
// Exit code 0: clean; 1: the emulator caught something (a leak, a BUG, a WARN) or the demo could not finish; 2: wrong usage.

import { parseArgs } from 'node:util';
import { BOOTS, loadBoot, recordedBoot, UnreadableBoot } from './boots.ts';
import { HostClient } from './client.ts';
import { type Boot, BUGS, type BugName, Replay, type RunReport } from './replay.ts';
import { ProgressLine, reportText } from './report.ts';
import { ServiceProcess } from './service-process.ts';

const USAGE = `npm run demo -- [options]
  --run NAME        ${BOOTS.join(', ')} or all (default: all)
  --trace FILE      replay a trace of your own instead; flags come from the .ioctl beside it, if there is one
  --url URL         a running service; without it the demo starts one for itself
  --token TOKEN     its API_TOKEN (default: the environment variable)
  --host ID         the emulated host to use, reset if it exists (default: demo-NAME)
  --bug NAME        a mistake in a driver, may be repeated:
${Object.entries(BUGS)
  .map(([name, what]) => `                      ${name.padEnd(26)} ${what}`)
  .join('\n')}
  --speed N         N times as fast as it was recorded, or max (default: 20)
  --seed N          for everything the guest chooses (default: 1)
  --memlock BYTES   QEMU's RLIMIT_MEMLOCK (default: guest memory and 1 GiB)
  --webhook-host H  name under which the service reaches this process: vfio-ap gets webhooks there
                    (default: 127.0.0.1 if the service is on this machine, otherwise vfio-ap polls)
  --json            the report as JSON on stdout, progress on stderr
`;

class UsageError extends Error {}

function readOptions(args: string[]) {
  const { values } = parseArgs({
    args,
    options: {
      run: { type: 'string', default: 'all' },
      trace: { type: 'string' },
      url: { type: 'string' },
      token: { type: 'string' },
      host: { type: 'string' },
      bug: { type: 'string', multiple: true, default: [] },
      speed: { type: 'string', default: '20' },
      seed: { type: 'string', default: '1' },
      memlock: { type: 'string' },
      'webhook-host': { type: 'string' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', short: 'h', default: false },
    },
  });
  const speed = values.speed === 'max' ? Number.POSITIVE_INFINITY : Number(values.speed);
  if (!(speed > 0)) throw new UsageError(`--speed ${values.speed}: expected a number above 0, or max`);
  const seed = Number(values.seed);
  if (!Number.isInteger(seed) || seed < 0) throw new UsageError(`--seed ${values.seed}: expected an integer from 0`);
  for (const bug of values.bug)
    if (!Object.hasOwn(BUGS, bug)) throw new UsageError(`--bug ${bug}: expected ${Object.keys(BUGS).join(', ')}`);
  if (values.memlock !== undefined && !/^(0x[0-9a-f]{1,16}|\d{1,19})$/i.test(values.memlock))
    throw new UsageError(`--memlock ${values.memlock}: expected a number of bytes`);
  if (values.url !== undefined && !URL.canParse(values.url)) throw new UsageError(`--url ${values.url}: not a URL`);
  return {
    ...values,
    speed,
    seed,
    boots: chooseBoots(values.run, values.trace),
    bugs: new Set(values.bug as BugName[]),
    rlimitMemlock: values.memlock === undefined ? null : BigInt(values.memlock),
    token: values.token ?? (values.url === undefined ? undefined : process.env.API_TOKEN),
  };
}

type Options = ReturnType<typeof readOptions>;

function chooseBoots(run: string, trace: string | undefined): Boot[] {
  if (trace !== undefined) return [loadBoot(trace)];
  if (run === 'all') return BOOTS.map(recordedBoot);
  const known = BOOTS.find((name) => name === run);
  if (known === undefined) throw new UsageError(`--run ${run}: expected ${BOOTS.join(', ')} or all`);
  return [recordedBoot(known)];
}

/** The name under which vfio-ap's webhook is reached: given, or loopback for a service on this machine. */
function webhookHost(options: Options, url: string): string | null {
  if (options['webhook-host'] !== undefined) return options['webhook-host'];
  return ['127.0.0.1', 'localhost', '[::1]'].includes(new URL(url).hostname) ? '127.0.0.1' : null;
}

/** Replays one boot after the other; stops at the first that killed its container. */
async function replayBoots(options: Options, url: string): Promise<RunReport[]> {
  const progressOutput = options.json ? process.stderr : process.stdout;
  const reports: RunReport[] = [];
  for (const boot of options.boots) {
    const line = new ProgressLine(progressOutput);
    const client = new HostClient(url, options.host ?? hostName(boot), 'demo', options.token);
    const replay = new Replay(client, boot, {
      ...options,
      webhookHost: webhookHost(options, url),
      progress: (step) => line.step(step),
    });
    const report = await replay.run().finally(() => line.end());
    reports.push(report);
    if (!options.json) process.stdout.write(`${reportText(report)}\n`);
    if (report.died !== null) break;
  }
  return reports;
}

/** A host id may have 63 letters, digits, dots, dashes and underscores. */
function hostName(boot: Boot): string {
  return `demo-${boot.name.replace(/[^a-zA-Z0-9._-]/g, '-')}`.slice(0, 63);
}

async function main(): Promise<number> {
  let options: Options;
  try {
    options = readOptions(process.argv.slice(2));
  } catch (error) {
    const usage = error instanceof UnreadableBoot ? '' : `\n${USAGE}`;
    process.stderr.write(`${error instanceof Error ? error.message : error}\n${usage}`);
    return 2;
  }
  if (options.help) {
    process.stdout.write(USAGE);
    return 0;
  }

  const service = options.url === undefined ? await ServiceProcess.start() : null;
  const interrupted = () => {
    void service?.stop().finally(() => process.exit(130));
    if (service === null) process.exit(130);
  };
  process.once('SIGINT', interrupted);
  process.once('SIGTERM', interrupted);
  try {
    const reports = await replayBoots(options, service?.url ?? (options.url ?? '').replace(/\/+$/, ''));
    const ok = reports.every((report) => report.findings.length === 0);
    if (options.json) process.stdout.write(`${JSON.stringify({ ok, runs: reports }, null, 2)}\n`);
    return ok ? 0 : 1;
  } finally {
    await service?.stop();
  }
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`the demo could not finish: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode = 1;
  },
);
