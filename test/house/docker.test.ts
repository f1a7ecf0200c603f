// Dockerfile and docker-compose.yml without an engine: linters, the compose schema, and the promises of the image.

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { validate } from 'dockerfile-utils';
import t from 'tap';
import { parse } from 'yaml';
import { flatten, readDockerfile } from './dockerfile-text.ts';
import { ROOT } from './project-files.ts';

const dockerfile = readFileSync(join(ROOT, 'Dockerfile'), 'utf8');

/** What this project asks of an image beyond what a linter knows. */
function imageFaults(text: string): string[] {
  const stages = readDockerfile(text);
  const final = flatten(stages, (stages.at(-1) as { name: string }).name);
  const faults: string[] = [];
  const names = new Set(stages.map((stage) => stage.name));
  for (const { base, name } of stages) {
    if (!names.has(base) && !/^node:\d+(\.\d+)*-bookworm-slim(@sha256:[0-9a-f]{64})?$/.test(base))
      faults.push(`${name}: base ${base}`);
  }
  if (stages.length < 2) faults.push('one stage');
  const user = final.last.get('USER')?.[0] ?? 'root';
  if (user === 'root' || user === '0') faults.push('runs as root');
  const cmd = final.last.get('CMD') ?? [];
  if (cmd[0] !== 'node') faults.push(`starts ${cmd[0] ?? 'a shell'}, not node: a signal would not reach it`);
  if (final.last.get('STOPSIGNAL')?.[0] !== 'SIGTERM') faults.push('no STOPSIGNAL SIGTERM');
  const health = final.last.get('HEALTHCHECK')?.join(' ') ?? '';
  if (!health.includes('/healthz')) faults.push('no health check');
  if (/\b(curl|wget)\b/.test(health)) faults.push('health check needs a program that the image lacks');
  if (final.env.get('HOST') !== '0.0.0.0') faults.push('not reachable from outside');
  if (final.env.has('API_TOKEN') || final.env.has('ALLOW_ANONYMOUS')) faults.push('decides about authentication');
  if (!final.last.get('VOLUME')?.includes('/data') || !final.env.get('DATABASE_URL')?.startsWith('file:/data/'))
    faults.push('data not in the volume /data');
  for (const step of final.steps) {
    if (step.kind === 'run' && /\b(apt-get|npm|npx)\b/.test(step.command))
      faults.push(`final stage runs ${step.command}`);
    if (step.kind === 'copy' && step.sources.some((source) => source === '.' || source === './'))
      faults.push('copies everything');
  }
  for (const step of stages.flatMap((stage) => stage.steps)) {
    if (
      step.kind === 'run' &&
      step.command.includes('apt-get install') &&
      !step.command.includes('rm -rf /var/lib/apt/lists')
    )
      faults.push('leaves package lists');
  }
  return faults;
}

t.test('Dockerfile: the linter has no complaint, and finds planted ones', async (t) => {
  t.strictSame(
    validate(dockerfile).map((found) => found.message),
    [],
  );
  t.equal(validate(dockerfile.replace('USER node', 'USR node')).length > 0, true);
});

t.test('Dockerfile: keeps the promises of the image, and each broken one is reported', async (t) => {
  t.strictSame(imageFaults(dockerfile), []);
  const broken: [RegExp, string, RegExp][] = [
    [/FROM node:22-bookworm-slim AS runtime/, 'FROM node AS runtime', /base node/],
    [/USER node\nVOLUME/, 'VOLUME', /runs as root/],
    [/CMD \["node", "dist\/server.js"\]/, 'CMD ["npm", "start"]', /starts npm/],
    [/CMD \["node", "dist\/server.js"\]/, 'CMD node dist/server.js', /starts a shell/],
    [/STOPSIGNAL SIGTERM/, 'STOPSIGNAL SIGINT', /STOPSIGNAL/],
    [/HEALTHCHECK[^\n]*\n[^\n]*\n/, 'HEALTHCHECK CMD ["curl", "http://127.0.0.1/healthz"]\n', /lacks/],
    [/HEALTHCHECK[^\n]*\n[^\n]*\n/, '', /no health check/],
    [/COPY package.json LICENSE .\//, 'COPY . .', /copies everything/],
    [/HOST=0.0.0.0/, 'HOST=0.0.0.0 ALLOW_ANONYMOUS=1', /authentication/],
    [/VOLUME \/data/, 'VOLUME /var', /volume/],
    [/ {2}&& rm -rf \/var\/lib\/apt\/lists\/\*/, '  && true', /package lists/],
    [/RUN mkdir \/data/, 'RUN npm install left-pad && mkdir /data', /final stage runs/],
  ];
  for (const [from, to, fault] of broken) {
    const text = dockerfile.replace(from, () => to);
    t.not(text, dockerfile, `${from} is in the Dockerfile`);
    t.match(imageFaults(text).join('; '), fault);
  }
});

function lintCompose(file: string): { code: number; text: string } {
  try {
    const text = execFileSync(
      process.execPath,
      [join(ROOT, 'node_modules/dclint/bin/dclint.cjs'), '--max-warnings', '0', file],
      { encoding: 'utf8', stdio: 'pipe' },
    );
    return { code: 0, text };
  } catch (error) {
    const failed = error as { status: number; stdout: string; stderr: string };
    return { code: failed.status, text: failed.stdout + failed.stderr };
  }
}

t.test('docker-compose.yml: follows the compose schema, and a planted fault is found', async (t) => {
  const file = join(ROOT, 'docker-compose.yml');
  const seen = lintCompose(file);
  t.equal(seen.code, 0, seen.text);
  const folder = mkdtempSync(join(tmpdir(), 'compose-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const planted = join(folder, 'docker-compose.yml');
  writeFileSync(planted, readFileSync(file, 'utf8').replace('cap_drop:', 'cap_dropped:'));
  t.match(lintCompose(planted), { code: 1, text: /invalid-schema/ });
});

t.test('docker-compose.yml: the driver reaches the service by name, and the service its webhook', async (t) => {
  const { services, volumes } = parse(readFileSync(join(ROOT, 'docker-compose.yml'), 'utf8')) as {
    services: Record<
      string,
      {
        build: { target: string };
        environment: Record<string, string>;
        volumes?: string[];
        ports?: string[];
        read_only: boolean;
        tmpfs: string[];
        depends_on?: Record<string, { condition: string }>;
      }
    >;
    volumes: Record<string, unknown>;
  };
  const { emulator, driver } = services;
  const stages = readDockerfile(dockerfile);
  for (const service of Object.values(services)) {
    t.ok(
      stages.some((stage) => stage.name === service.build.target),
      `stage ${service.build.target} exists`,
    );
    t.equal(service.read_only, true);
    t.strictSame(service.tmpfs, ['/tmp']);
  }
  t.equal(driver?.depends_on?.emulator?.condition, 'service_healthy');
  t.equal(new URL(driver?.environment.EMULATOR_URL as string).hostname, 'emulator');
  t.equal(emulator?.environment.WEBHOOK_ALLOW, driver?.environment.DRIVER_HOST, 'the name of the webhook is allowed');
  t.equal(driver?.environment.DRIVER_HOST, 'driver', 'and is the name of the service');
  const [volume, path] = (emulator?.volumes?.[0] ?? '').split(':');
  t.ok((volume as string) in volumes, 'the volume is named');
  t.equal(path, '/data');
  for (const port of emulator?.ports ?? []) t.match(port, /^127\.0\.0\.1:/, 'anonymous: published on loopback only');
});
