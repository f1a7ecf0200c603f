// npm run example -- NAME: plays a scenario against the service, and tells what happens and where in the trace to look.

import { parseArgs } from 'node:util';
import { ServiceProcess } from '../service-process.ts';
import { Machine, type Reply } from './machine.ts';
import { type Profile, SCENARIOS } from './scenario.ts';

const USAGE = `npm run example -- NAME [options]
${Object.entries(SCENARIOS)
  .map(([name, { title, profiles }]) => `  ${name}  ${title} (${profiles.join(', ')})`)
  .join('\n')}
  --profile P  one kernel; without it, all that the scenario is about
  --url URL    a running service, where the hosts stay to be looked at (NAME-PROFILE); without it one is started and ended
  --token T    its API_TOKEN (default: the environment variable)
`;

/** Requests to a service; its answers are JSON. */
const sender =
  (url: string, token: string | undefined) =>
  async (method: string, path: string, body?: object): Promise<Reply> => {
    const headers = {
      ...(body === undefined ? {} : { 'content-type': 'application/json' }),
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
    };
    const response = await fetch(`${url}${path}`, {
      method,
      headers,
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await response.text();
    return { status: response.status, body: text === '' ? {} : (JSON.parse(text) as Record<string, unknown>) };
  };

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { profile: { type: 'string' }, url: { type: 'string' }, token: { type: 'string' } },
  });
  const [name = ''] = positionals;
  const scenario = SCENARIOS[name];
  const profiles = scenario?.profiles.filter((profile) => values.profile === undefined || profile === values.profile);
  if (scenario === undefined || profiles === undefined || profiles.length === 0) {
    process.stderr.write(USAGE);
    return 2;
  }
  const service = values.url === undefined ? await ServiceProcess.start() : null;
  const url = (service?.url ?? values.url ?? '').replace(/\/+$/, '');
  const token = values.token ?? (service === null ? process.env.API_TOKEN : undefined);
  const print = (line: string) => void process.stdout.write(`${line}\n`);
  try {
    for (const profile of profiles) {
      print(`\n${name.toUpperCase().replace('G', 'G-')} ${scenario.title}, Linux ${profile}`);
      const machine = new Machine(sender(url, token), `${name}-${profile}`, profile as Profile, print);
      await machine.boot();
      await scenario.run(machine);
    }
    return 0;
  } finally {
    await service?.stop();
  }
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`the scenario could not finish: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode = 1;
  },
);
