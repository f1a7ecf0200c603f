// npm run example, as a process of its own against a service of its own: what it tells, and how it ends.

import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { ServiceProcess } from '../../examples/service-process.ts';
import { SCENARIOS } from '../../examples/together/scenario.ts';

t.setTimeout(120_000);

const MAIN = fileURLToPath(new URL('../../examples/together/main.ts', import.meta.url));

function example(...args: string[]): Promise<{ code: number | null; stdout: string; stderr: string }> {
  const { API_TOKEN: _, ...env } = process.env;
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--import=tsx', MAIN, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    const output = { stdout: '', stderr: '' };
    child.stdout.on('data', (chunk) => {
      output.stdout += chunk;
    });
    child.stderr.on('data', (chunk) => {
      output.stderr += chunk;
    });
    child.once('error', reject);
    child.once('close', (code) => resolve({ code, ...output }));
  });
}

t.test('an unknown name or profile: the list of scenarios, exit code 2', async (t) => {
  for (const args of [[], ['g9'], ['g2', '--profile', '4.10']]) {
    const { code, stdout, stderr } = await example(...args);
    t.strictSame([code, stdout], [2, '']);
    for (const { title } of Object.values(SCENARIOS)) t.match(stderr, title);
  }
});

t.test('each scenario tells its story, and the host stays in the service that was given', async (t) => {
  const service = await ServiceProcess.start();
  t.teardown(() => service.stop());
  for (const [name, { title, profiles }] of Object.entries(SCENARIOS)) {
    const profile = profiles.at(-1) as string;
    const { code, stdout, stderr } = await example(name, '--profile', profile, '--url', service.url);
    t.strictSame([code, stderr], [0, ''], name);
    t.match(stdout, `${title}, Linux ${profile}`);
    const look = /look at: GET (\S+)/.exec(stdout)?.[1] as string;
    const trace = (await (await fetch(`${service.url}${look}`)).json()) as { items: { event: string }[] };
    t.ok(
      trace.items.some(({ event }) => event === 'invalidate_start'),
      `${name}: the trace shows what it names`,
    );
  }
});

t.test('without a service it starts one, and ends it', async (t) => {
  const { code, stdout } = await example('g2', '--profile', '5.15');
  t.equal(code, 0);
  t.match(stdout, /the guest touches it while disabled: "EFAULT"/);
});
