// npm run demo, end to end against a real service: the recorded boots are clean, each historic bug is caught as the kernel did.

import { spawn } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Webhook } from 'standardwebhooks';
import t, { type Test } from 'tap';
import { BOOTS } from '../../examples/boots.ts';
import type { Notification, NotifyReturn } from '../../examples/client.ts';
import { WebhookListener } from '../../examples/drivers/webhook-listener.ts';
import type { RunReport } from '../../examples/replay.ts';
import { ServiceProcess } from '../../examples/service-process.ts';

t.setTimeout(400_000);

const DEMO = fileURLToPath(new URL('../../examples/demo.ts', import.meta.url));
const QEMU = fileURLToPath(new URL('../../examples/qemu/', import.meta.url));
const SEED = process.env.DEMO_SEED ?? '1';
const TOKEN = 'demo-token-1';
const WITH_TOKEN = { ...process.env, API_TOKEN: TOKEN };
const HEADERS = { 'content-type': 'application/json', authorization: `Bearer ${TOKEN}` };
t.comment(`seed ${SEED} (DEMO_SEED)`);

interface Ended {
  code: number | null;
  stdout: string;
  stderr: string;
}

/** Runs the demo as a process of its own. */
function demo(args: string[], env: NodeJS.ProcessEnv = WITH_TOKEN): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ['--import=tsx', DEMO, ...args], { env, stdio: ['ignore', 'pipe', 'pipe'] });
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

/** Runs it against the service, as fast as it goes, and reads its JSON report. */
async function report(t: Test, url: string, ...args: string[]): Promise<{ code: number | null; runs: RunReport[] }> {
  const ended = await demo(['--url', url, '--json', '--speed', 'max', '--seed', SEED, ...args]);
  t.not(ended.stdout, '', ended.stderr);
  return { code: ended.code, runs: (JSON.parse(ended.stdout) as { runs: RunReport[] }).runs };
}

async function post(url: string, body: unknown): Promise<{ status: number; body: Record<string, unknown> }> {
  const response = await fetch(url, {
    method: 'POST',
    headers: HEADERS,
    body: JSON.stringify(body),
  });
  return { status: response.status, body: (await response.json()) as Record<string, unknown> };
}

t.test('the demo', async (t) => {
  // With a token and a real database, as somebody's own service has them.
  const service = await ServiceProcess.start({ API_TOKEN: TOKEN, DATABASE_URL: 'file:./demo.db' });
  t.teardown(() => service.stop());
  const { url } = service;
  const rows = readFileSync(`${QEMU}README.md`, 'utf8')
    .split('\n')
    .filter((row) => row.startsWith('| boot-'))
    .map((row) => row.split('|').map((cell) => cell.trim()));

  await t.test('a wrong token: exit code 1 and the reason', async (t) => {
    const ended = await demo(['--url', url, '--token', 'other', '--run', 'boot-q35-ovmf']);
    t.equal(ended.code, 1);
    t.match(ended.stderr, /the demo could not finish: PUT .*401/);
  });

  await t.test('all boots without a bug: clean, exit code 0, every driver was told in time', async (t) => {
    const { code, runs } = await report(t, url, '--run', 'all');
    t.same(
      runs.map(({ run }) => run),
      [...BOOTS],
    );
    for (const run of runs) {
      const row = rows.find(([, name]) => name === run.run) ?? [];
      t.same(run.findings, [], run.run);
      t.same(
        run.mappings,
        { made: Number(row[4]), removed: Number(row[5]), left_at_exit: Number(row[8]) },
        'as the README says',
      );
      t.equal(run.calls_made, run.calls);
      t.ok(run.unmaps_that_notified >= 5, `${run.unmaps_that_notified} unmaps met pins`);
      t.ok(run.peak_locked_vm > 20, `${run.peak_locked_vm} pages at the most`);
      t.same(run.leaks, []);
      t.same(run.after_exit, { mappings: 0, locked_vm: 0 });
      t.equal(run.invariants.ok, true);
      t.equal(run.dmesg.warn + run.dmesg.bug + run.dmesg.deadlock, 0);
      t.same(Object.keys(run.drivers), ['kvmgt', 'vfio-ccw', 'vfio-ap']);
      for (const [device, stats] of Object.entries(run.drivers)) {
        t.equal(stats.notifications, run.unmaps_that_notified, `${device}: one call for each such unmap`);
        t.ok(stats.notifications_that_unpinned >= 2, `${device}: ${stats.notifications_that_unpinned} with own pages`);
        t.ok(stats.notifications_that_unpinned < stats.notifications, `${device}: some are none of its business`);
        t.equal(stats.most_attempts, 1, `${device}: lets go at the first call`);
        t.equal(stats.unpinned_pages, stats.pinned_pages, `${device}: as many unpinned as pinned`);
        t.same(stats.refused, {}, `${device}: nothing refused`);
      }
    }
    t.equal(code, 0);
  });

  await t.test('the same seed: the same run, another seed: another one', async (t) => {
    const run = async (seed: string) => {
      const { runs } = await report(t, url, '--run', 'boot-q35-ovmf', '--seed', seed);
      return runs.map(({ ms, seed, ...rest }) => rest);
    };
    const first = await run('7');
    t.same(await run('7'), first);
    t.notSame(await run('8'), first);
  });

  const fatal: [bug: string, device: string][] = [
    ['ccw-start-only', 'vfio-ccw'],
    ['ap-wrong-page', 'vfio-ap'],
  ];
  for (const [bug, device] of fatal)
    await t.test(`--bug ${bug}: 11 notifications, then a BUG, a dead container, exit code 1`, async (t) => {
      const ended = await demo(['--url', url, '--speed', 'max', '--seed', SEED, '--run', 'boot-i440fx', '--bug', bug]);
      t.equal(ended.code, 1, ended.stderr);
      t.match(ended.stdout, new RegExp(`bug switched on +${bug}`));
      t.match(ended.stdout, /CAUGHT\n +BUG at vfio_dma_do_unmap after 11 notifications for \[0x/);
      t.match(ended.stdout, new RegExp(`11 notifications for .*: .*${device} kept \\d+ pages?`));
      t.match(ended.stdout, /kernel BUG at vfio_dma_do_unmap/, 'the splat');
      t.match(ended.stdout, /container +dead/);

      const container = `${url}/v1/hosts/demo-boot-i440fx/containers/vfio0`;
      const map = { task: 'qemu', iova: '0x7000000000', vaddr: '0x7efce7e00000', size: '0x1000', flags: ['READ'] };
      const refused = await post(`${container}/map_dma`, map);
      t.equal(refused.status, 410);
      t.equal(refused.body.errno, 'EIO');
      const shown = (await (await fetch(container, { headers: HEADERS })).json()) as { dead: { where: string } | null };
      t.equal(shown.dead?.where, 'vfio_dma_do_unmap');
    });

  await t.test('--bug: only the driver that errs keeps pages, and the others were called as often', async (t) => {
    for (const seed of [SEED, '2'])
      for (const [bug, device] of fatal) {
        const { code, runs } = await report(t, url, '--run', 'boot-i440fx', '--bug', bug, '--seed', seed);
        t.equal(code, 1);
        const [run] = runs;
        t.same(Object.keys(run?.died?.held ?? {}), [device], `seed ${seed}`);
        t.equal(run?.died?.attempts, 11);
        t.same(
          Object.values(run?.drivers ?? {}).map((stats) => stats.most_attempts),
          [11, 11, 11],
        );
        t.equal(run?.dmesg.bug, 1);
        t.equal(run?.invariants.ok, true, 'the emulator itself is consistent');
        t.ok((run?.calls_made ?? 0) < (run?.calls ?? 0), 'the boot does not go on');
      }
  });

  await t.test(
    '--bug kvmgt-close-without-unpin: a leak and a WARN when the last group leaves, exit code 1',
    async (t) => {
      const args = ['--run', 'boot-q35-ovmf', '--bug', 'kvmgt-close-without-unpin'];
      const { code, runs } = await report(t, url, ...args);
      t.equal(code, 1);
      const [run] = runs;
      t.equal(run?.died, null);
      t.ok(run?.leaks.length);
      t.same([...new Set(run?.leaks.map((leak) => `${leak.device} ${leak.state}`))], ['kvmgt leaked']);
      const kvmgt = run?.drivers.kvmgt;
      t.equal(
        run?.leaks.reduce((sum, leak) => sum + leak.npage * leak.references, 0),
        (kvmgt?.pinned_pages ?? 0) - (kvmgt?.unpinned_pages ?? 0),
        'every reference is accounted for',
      );
      t.ok(run?.dmesg.warn);
      t.equal(run?.dmesg.bug, 0);
      t.equal(run?.calls_made, run?.calls, 'the boot itself is fine');
      const text = await demo(['--url', url, '--speed', 'max', '--seed', SEED, ...args]);
      t.equal(text.code, 1);
      t.match(text.stdout, /CAUGHT\n +page references that nobody will drop: kvmgt \d+\n +[1-9]\d* WARN/);
    },
  );

  await t.test('--memlock: pins over the limit are ENOMEM, the drivers go on without them', async (t) => {
    const { code, runs } = await report(t, url, '--run', 'boot-q35-ovmf', '--memlock', '0x8000');
    t.equal(code, 0);
    const [run] = runs;
    t.equal(run?.rlimit_memlock, '0x8000');
    t.equal(run?.peak_locked_vm, 8);
    const refused = Object.values(run?.drivers ?? {}).flatMap((stats) => Object.keys(stats.refused));
    t.same([...new Set(refused)], ['ENOMEM']);
    t.same(run?.findings, []);
  });

  await t.test('--trace: a file of one’s own, without its .ioctl everything is mapped read and write', async (t) => {
    const dir = t.testdir({ 'mine.trace': readFileSync(`${QEMU}boot-q35-ovmf.trace`) });
    const { code, runs } = await report(t, url, '--trace', `${dir}/mine.trace`, '--host', 'mine');
    t.equal(code, 0);
    t.equal(runs[0]?.flags_recorded, false);
    const host = (await (await fetch(`${url}/v1/hosts/mine`, { headers: HEADERS })).json()) as { id: string };
    t.equal(host.id, 'mine');
  });
});

t.test('without --url: the demo starts the service for itself and leaves nothing behind', async (t) => {
  const tmp = t.testdir({});
  const ended = await demo(['--run', 'boot-q35-ovmf', '--speed', 'max'], { ...process.env, TMPDIR: tmp });
  t.equal(ended.code, 0, ended.stderr);
  t.equal(ended.stderr, '');
  const lines = ended.stdout.trimEnd().split('\n');
  t.ok(lines.filter((line) => / notifications, unpinned /.test(line)).length >= 8, 'a line for each notifying unmap');
  t.match(ended.stdout, /boot-q35-ovmf 100% /);
  t.match(lines.at(-1), /^ {2}clean +every pin was let go$/);
  t.same(
    readdirSync(tmp).filter((name) => name.startsWith('vfio-mdev-demo-')),
    [],
  );
});

t.test('wrong usage: exit code 2 and the reason', async (t) => {
  const dir = t.testdir({
    'bad.trace': readFileSync(`${QEMU}boot-q35-ovmf.trace`, 'utf8').replace(
      'region_add [ram] 0xc0000',
      'region_add [ram] 0xc0001',
    ),
  });
  const cases: [args: string[], reason: RegExp][] = [
    [['--trace', `${dir}/bad.trace`], /bad\.trace: line 3: expected a range of whole 4 KiB pages, found "region_add/],
    [['--trace', `${dir}/none.trace`], /none\.trace: ENOENT/],
    [['--run', 'boot-x'], /--run boot-x: expected boot-q35-ovmf, /],
    [['--bug', 'constructor'], /--bug constructor: expected ccw-start-only/],
    [['--speed', '0'], /--speed 0: expected/],
    [['--seed', '1.5'], /--seed 1\.5: expected/],
    [['--memlock', 'much'], /--memlock much: expected/],
    [['--url', 'nowhere'], /--url nowhere: not a URL/],
    [['--what'], /--what/],
  ];
  const ended = await Promise.all(cases.map(([args]) => demo(args)));
  for (const [i, [args, reason]] of cases.entries()) {
    t.equal(ended[i]?.code, 2, args.join(' '));
    t.match(ended[i]?.stderr, reason);
    t.equal(ended[i]?.stdout, '');
  }
});

t.test('no service at the URL: exit code 1 and the reason', async (t) => {
  const ended = await demo(['--url', 'http://127.0.0.1:9', '--run', 'boot-q35-ovmf']);
  t.equal(ended.code, 1);
  t.match(ended.stderr, /the demo could not finish: no answer from http:\/\/127\.0\.0\.1:9/);
});

t.test('webhook listener: a notification is believed only with its signature', async (t) => {
  const listener = await WebhookListener.listen('127.0.0.1');
  t.teardown(() => listener.stop());
  const seen: string[] = [];
  listener.start(async (notification: Notification): Promise<NotifyReturn> => {
    seen.push(notification.id);
    return 'NOTIFY_OK';
  });
  if (listener.delivery.kind !== 'webhook') throw new Error('not a webhook');
  const { url, secret } = listener.delivery;
  const send = (body: string, signed: string, key: string, at: Date) =>
    fetch(url, {
      method: 'POST',
      body,
      headers: {
        'content-type': 'application/json',
        'webhook-id': 'n-1',
        'webhook-timestamp': String(Math.floor(at.getTime() / 1000)),
        'webhook-signature': new Webhook(key).sign('n-1', at, signed),
      },
    });
  const body = JSON.stringify({ id: 'n-1', device: 'vfio-ap', event: 'DMA_UNMAP', iova: '0x0', size: '0x1000' });
  const now = new Date();
  const good = await send(body, body, secret, now);
  t.equal(good.status, 200);
  t.same(await good.json(), { ret: 'NOTIFY_OK' });
  const other = `whsec_${Buffer.alloc(32, 1).toString('base64')}`;
  t.equal((await send(body, body, other, now)).status, 401, 'another secret');
  t.equal((await send(body.replace('0x0', '0x9'), body, secret, now)).status, 401, 'another body');
  t.equal((await send(body, body, secret, new Date(now.getTime() - 3_600_000))).status, 401, 'an hour old');
  t.equal((await fetch(url, { method: 'POST', body })).status, 401, 'no signature');
  t.equal((await send('x'.repeat(70_000), body, secret, now)).status, 413, 'more than a notification');
  t.same(seen, ['n-1'], 'the handler was called once');
});
