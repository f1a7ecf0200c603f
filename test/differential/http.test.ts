// Differential runs over HTTP and from the command line: journals as they are, commands by hand, and what cannot be run.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { main } from '../../src/cli/differential/main.ts';
import { CommandBody, type CommandJson, commandOf } from '../../src/http/command-json.ts';
import { printedFields } from '../../src/http/parse.ts';
import { schemaCompiler } from '../../src/http/validation.ts';
import type { Command } from '../../src/kernel/command.ts';
import { type ConsumerName, consumerOf, newConsumerStates } from '../../src/kernel/consumers.ts';
import type { Fields } from '../../src/kernel/outcome.ts';
import { planOfJournal } from '../../src/service/differential/journal-plan.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';
import { MAX_DIFFERENTIAL_COMMANDS, MAX_DIFFERENTIALS } from '../../src/service/limits.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { Client, type Reply, startApp } from '../http/client.ts';
import { listening, MAP, mapped, PIN, POLL, pinned, prepare, UNMAP } from '../http/fixtures.ts';
import { ack, builtin, listen, map, pin, pinRange, RW, unmap, unpin } from './commands.ts';
import { EVERY_CONSUMER } from './consumer-commands.ts';
import { EVERY_MEMORY } from './memory-commands.ts';
import { EVERY_VFIO_PCI } from './vfio-pci-commands.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
const base = await app.http.listen({ host: '127.0.0.1', port: 0 });
const folder = mkdtempSync(join(tmpdir(), 'differential-'));
t.teardown(() => rmSync(folder, { recursive: true, force: true }));

const differential = (body: object): Promise<Reply> => client.ask('POST', '/v1/differential', body);

interface ReportBody {
  equal: boolean;
  commands: number;
  comparisons: { differences: { name: string; position: number; command: object; causes: object[] }[] }[];
}
const reportIn = ({ body }: Reply): ReportBody => body as unknown as ReportBody;
const namesIn = (reply: Reply): string[] =>
  reportIn(reply).comparisons.flatMap(({ differences }) => differences.map(({ name }) => name));

/** A host on which a driver forgets a page in its handler, is called again, unmaps, and leaves a pin behind. */
async function recorded(host: string): Promise<string> {
  const at = await client.newHost(host);
  await prepare(client, at, mapped, listening(POLL), pinned);
  const unmapping = client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP);
  for (const pfn of PIN.user_pfn) {
    const { body } = await client.ask('GET', `${at}/devices/mdev0/notifications?wait_ms=10000`);
    const [{ id }] = body.items as [{ id: string }];
    const headers = { 'x-notification': id };
    await client.ask('POST', `${at}/devices/mdev0/unpin_pages`, { user_pfn: [pfn] }, { headers });
    await client.ask('POST', `${at}/devices/mdev0/notifications/${id}/ack`, { ret: 'NOTIFY_OK' });
  }
  const { status, body } = await unmapping;
  if (status !== 200 || body.notifications !== 2) throw new Error(`the unmap: ${JSON.stringify(body)}`);
  await prepare(client, at, mapped, pinned);
  await client.ask('POST', `${at}/devices/mdev0/close`, {});
  await client.ask('POST', `${at}/groups/26/unset_container`, {});
  return at;
}

const at = await recorded('recorded');
const journal = (await client.ask('GET', `${at}/journal`)).body.items as { seq: number; command: object }[];

t.test('the journal of a host: the same under its own profile, and what 6.18 does otherwise', async (t) => {
  const same = await differential({ profiles: ['5.15', '5.15'], host: 'recorded' });
  t.match(same, { status: 200, body: { ret: 0, written_for: '5.15', equal: true, commands: journal.length } });
  const ported = await differential({ profiles: ['5.15', '6.18'], host: 'recorded' });
  t.strictSame(namesIn(ported), [
    'unpin_pages: ret',
    'state: listeners',
    'unset_container: WARN listeners-left-at-detach, only in 5.15',
  ]);
  const [first] = reportIn(ported).comparisons[0]?.differences ?? [];
  const unpinned = journal.find(({ command }) => (command as Command).op === 'unpin_pages');
  t.equal(first?.position, unpinned?.seq, 'a position is a seq');
  t.strictSame(first?.command, unpinned?.command, 'the command is shown as the journal shows it');
  t.match(first, { answers: [{ ret: 1 }, { ret: 0 }], notification: /^notification-\d+$/ });
  t.match(first?.causes, [{ behaviour: 'pinForm', values: ['user_pfn', 'iova'], proof: 'removes' }]);
  const until = await differential({ profiles: ['5.15', '6.18'], host: 'recorded', until: 3 });
  t.match(until, { body: { commands: 3, equal: true } });
});

t.test('items of a journal can be sent as they are', async (t) => {
  const profiles = ['5.15', '6.18'];
  const pasted = await differential({ profiles, commands: journal, options: { template: 'default' } });
  const ofHost = await differential({ profiles, host: 'recorded' });
  t.equal(pasted.status, 200, pasted.text.slice(0, 300));
  t.strictSame(pasted.body, ofHost.body);
});

t.test('nothing is changed by it: no host is made, no command is journaled', async (t) => {
  const before = (await client.ask('GET', '/v1/hosts')).body;
  await differential({ profiles: ['4.10', '6.18'], host: 'recorded' });
  await differential({ profiles: ['4.10', '6.18'], commands: [{ command: { op: 'put_container', container: 'c' } }] });
  t.strictSame((await client.ask('GET', '/v1/hosts')).body, before);
});

t.test('commands by hand: names of flags, the form of either era, defaults', async (t) => {
  const lines = [
    { op: 'map_dma', container: 'vfio0', ...MAP },
    { op: 'register_notifier', device: 'mdev0', notifier: POLL },
    { op: 'pin_pages', device: 'mdev0', user_pfn: [1, 2], prot: ['READ', 'WRITE'] },
    { op: 'unmap_dma', container: 'vfio0', ...UNMAP },
  ];
  const commands = [
    ...lines.map((command) => ({ command })),
    { command: { op: 'unpin_pages', device: 'mdev0', user_pfn: [1, 2] }, notification: 'notification-1' },
    { command: { op: 'ack_notification', device: 'mdev0', notification: 'notification-1' } },
  ];
  const options = { template: 'default' };
  t.strictSame(namesIn(await differential({ profiles: ['5.15', '6.18'], options, commands })), ['unpin_pages: ret']);
  const range = { iova: '0x1000', npage: 2 };
  const young = await differential({
    profiles: ['5.15', '6.18'],
    options: { ...options, profile: '6.18' },
    commands: [
      ...commands.slice(0, 2),
      { command: { op: 'pin_pages', device: 'mdev0', ...range, prot: 1 } },
      { command: { op: 'unpin_pages', device: 'mdev0', ...range } },
    ],
  });
  t.match(young.body, { written_for: '6.18' });
  t.strictSame(namesIn(young), ['unpin_pages: ret']);
});

t.test('bad input names its place', async (t) => {
  const profiles = ['5.15', '6.18'];
  const of = (command: object): object => ({
    profiles,
    commands: [{ command: { op: 'put_container', container: 'c' } }, { command }],
  });
  const cases: [object, string][] = [
    [{ profiles: ['5.15'], host: 'recorded' }, 'profiles'],
    [{ profiles: ['5.15', '6.6'], host: 'recorded' }, 'profiles/1'],
    [{ profiles, host: 'recorded', commands: [] }, 'commands'],
    [of({ op: 'pin', device: 'd' }), 'commands/1/command/op'],
    [of({ op: 'pin_pages', device: 'd', user_pfn: [1] }), 'commands/1/command/prot'],
    [
      of({ op: 'map_dma', container: 'c', task: 't', iova: 0, vaddr: '0x0', size: '0x1000' }),
      'commands/1/command/iova',
    ],
    [of({ op: 'ack_notification', device: 'd', notification: 'n', ret: 'NOTIFY' }), 'commands/1/command/ret'],
  ];
  for (const [body, field] of cases) {
    const { status, body: problem } = await differential(body);
    t.equal(status, 400, field);
    t.ok(
      (problem.errors as { field: string }[]).some((error) => error.field === field),
      JSON.stringify(problem),
    );
  }
});

t.test(
  'more runs than MAX_DIFFERENTIALS at one time are a 503; a journal beyond the bound is refused before it is read',
  async (t) => {
    const pairs = Array.from({ length: 900 }, () => [
      { command: { op: 'adjust_locked_vm', task: 'qemu', delta: 1 } },
      { command: { op: 'adjust_locked_vm', task: 'qemu', delta: -1 } },
    ]).flat();
    const body = { profiles: ['5.15', '6.18'], options: { template: 'default' }, commands: pairs };
    const replies = await Promise.all(Array.from({ length: MAX_DIFFERENTIALS + 1 }, () => differential(body)));
    t.strictSame(replies.map(({ status }) => status).sort(), [200, 200, 503]);
    t.match(replies.find(({ status }) => status === 503)?.body, { type: /#too-many$/, limit: MAX_DIFFERENTIALS });
    const row = { id: 'h', generation: 1, options: JSON.stringify(DEFAULT_HOST_OPTIONS), created_at: 0 };
    await t.rejects(planOfJournal(new MemoryStore(), row, MAX_DIFFERENTIAL_COMMANDS + 1, null), {
      name: 'TooManyCommands',
    });
  },
);

/** One of every command, with every field that a journal can show. */
const EVERY: Command[] = [
  map(0n, 4),
  unmap(0n, 4, { bitmap: { pgsize: 4096n, size: 8n, addr: 1n }, argsz: 48, flags: 1, task: 'qemu' }),
  pin([1, 2], RW),
  pinRange(0x1800n, 2),
  unpin([1]),
  {
    op: 'dirty_pages',
    container: 'c',
    flags: 4,
    argsz: null,
    range: { iova: 0n, size: 4096n, pgsize: 4096n, bitmap_size: 8n, bitmap_addr: 4096n },
    task: 't',
  },
  { op: 'dma_rw', device: 'd', iova: 1n, length: 2, write: true, data: 'AQI=', task: null },
  listen({ kind: 'webhook', url: 'http://127.0.0.1:1/', secret: '(hidden)' }),
  listen(builtin('slow'), { priority: -1, events: 2 ** 40, type: 7 }),
  { op: 'unregister_notifier', device: 'd', notifier: 'n', type: 1 },
  ack(1, { reason: 'webhook_failed', detail: 'why', ret: -5 }),
  { op: 'notification_timeout', notification: 'notification-1' },
  { op: 'kill_operation', operation: 'pin_pages-4' },
  { op: 'put_device', device: 'd', group: null, dma_unmap: false },
  { op: 'put_device_in_container', device: 'd', container: 'c', notifier: null },
  { op: 'open_device', device: 'd' },
  { op: 'close_device', device: 'd' },
  { op: 'put_container', container: 'c' },
  { op: 'close_container', container: 'c', notify_only: true },
  { op: 'set_iommu', container: 'c', type: 99, task: 't' },
  {
    op: 'put_group',
    group: 'g',
    kind: 'iommu',
    reserved: [{ start: 1n, last: 2n }],
    aperture: { start: 0n, last: 9n },
  },
  { op: 'put_group', group: 'g', kind: 'noiommu' },
  { op: 'open_group', group: 'g' },
  { op: 'open_group', group: 'g', task: 't' },
  { op: 'close_group', group: 'g' },
  { op: 'set_container', group: 'g', container: 'c', task: null },
  { op: 'unset_container', group: 'g' },
  { op: 'put_task', task: 't', rlimit_memlock: 'unlimited', cap_ipc_lock: true, thread_of: 'u' },
  { op: 'put_task', task: 't', rlimit_memlock: 0n, cap_ipc_lock: false, cap_sys_rawio: true, thread_of: null },
  { op: 'patch_task', task: 't', rlimit_memlock: 2n ** 64n - 1n },
  { op: 'patch_task', task: 't', cap_sys_rawio: false },
  {
    op: 'mmap',
    task: 't',
    addr: 4096n,
    length: 4096n,
    prot: 1,
    backing: { kind: 'pfnmap', pfns: [[1, 2]], struct_page: true, reserved: false, ptes: ['rw'] },
    noreplace: true,
    stop_at: 'before_start',
  },
  { op: 'munmap', task: 't', addr: 1n, length: 2n, stop_at: 'after_pte_clear' },
  { op: 'mprotect', task: 't', addr: 1n, length: 2n, prot: 3, stop_at: 'before_end' },
  { op: 'exit', task: 't', thread_only: true, stop_at: 'after_start' },
  { op: 'exec', task: 't' },
  { op: 'adjust_locked_vm', task: 't', delta: -3 },
  { op: 'put_page', pfn: 5, kind: 'zero' },
  { op: 'put_page_contents', contents: 'pattern' },
  { op: 'put_fault', fault: 'f', point: 'charge', call: 'pin_pages', nth: 2 },
  { op: 'delete_fault', fault: 'f' },
  { op: 'put_vhost_dev', dev: 'v', variant: 'merged', nvqs: 2, switches: { reader: 'seqlock', count: 'recorded' } },
  { op: 'vhost_set_owner', dev: 'v', task: 't', stop_at: 'before_start' },
  { op: 'vhost_set_features', dev: 'v', task: 't', features: 2 ** 33 },
  { op: 'vhost_set_vring_num', dev: 'v', vq: 0, task: 't', num: 8, stop_at: 'after_unregister' },
  { op: 'vhost_set_vring_addr', dev: 'v', vq: 0, task: 't', flags: 1, desc: 1n, avail: 2n, used: 4n },
  { op: 'vhost_set_backend', dev: 'v', vq: 0, task: 't', active: true },
  { op: 'vhost_round', dev: 'v', vq: 0 },
  { op: 'vhost_access', dev: 'v', vq: 0, area: 'used', off: 2, write: true, data: 'AQA=', stop_at: 'inside_map' },
  { op: 'vhost_access', dev: 'v', vq: 0, area: 'desc', off: 0, write: false, length: 3 },
  { op: 'close_vhost_dev', dev: 'v' },
  { op: 'patch_host', ttl_s: null, dma_entry_limit: 3, notifier_timeout_ms: 9 },
  ...EVERY_MEMORY,
  ...EVERY_CONSUMER,
  ...EVERY_VFIO_PCI,
];

t.test('every command comes back from its JSON as it was', async (t) => {
  const compile = schemaCompiler() as unknown as (of: object) => (value: unknown) => { error?: Error };
  const check = compile({ schema: CommandBody, httpPart: 'body' });
  for (const command of EVERY) {
    const json = JSON.parse(JSON.stringify(printedFields(command as unknown as Fields))) as CommandJson;
    t.equal(check(json).error, undefined, `${command.op} fits`);
    t.strictSame(commandOf(json), command, command.op);
  }
  const known = new Set(
    (CommandBody.anyOf as { properties: { op: { const: string } } }[]).map(({ properties }) => properties.op.const),
  );
  t.strictSame([...known].sort(), [...new Set(EVERY.map(({ op }) => op))].sort(), 'none was forgotten here');
  const dispatch = readFileSync(new URL('../../src/kernel/execute.ts', import.meta.url), 'utf8');
  const own = [...dispatch.matchAll(/^ {4}case '(\w+)':/gm)].map(([, op]) => op);
  const consumers = Object.keys(newConsumerStates()) as ConsumerName[];
  const theirs = consumers.flatMap((name) => Object.keys(consumerOf(name).commands));
  t.strictSame([...known].sort(), [...own, ...theirs].sort(), 'it is every command that the kernel executes');
});

interface Run {
  code: number;
  out: string;
  err: string;
}

async function cli(...argv: string[]): Promise<Run> {
  const out: string[] = [];
  const err: string[] = [];
  const code = await main(
    argv,
    (text) => out.push(text),
    (text) => err.push(text),
  );
  return { code, out: out.join('\n'), err: err.join('\n') };
}

function file(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

t.test(
  'the command line: a page of a journal, JSON lines, bare commands, the body of a request, a running service',
  async (t) => {
    const expected = (await differential({ profiles: ['5.15', '6.18'], host: 'recorded' })).body;
    const profiles = ['--profiles', '5.15,6.18'];
    const made = ['--template', 'default', '--json'];
    const page = file('page.json', JSON.stringify({ items: journal }));
    const lines = file('lines.jsonl', `${journal.map((item) => JSON.stringify(item)).join('\n')}\n`);
    const request = file('request.json', JSON.stringify({ commands: journal, options: { template: 'default' } }));
    const { port } = app.http.server.address() as AddressInfo;
    const runs = [
      [page, ...made],
      [lines, ...made],
      [request, '--json'],
      ['--host', `http://127.0.0.1:${port}/v1/hosts/recorded`, '--json'],
    ];
    for (const argv of runs) {
      const { code, out, err } = await cli(...profiles, ...argv);
      t.equal(code, 1, `${argv[0]}: ${err}`);
      t.strictSame(JSON.parse(out), expected, String(argv[0]));
    }
    const bare = file('bare.json', JSON.stringify([{ op: 'put_container', container: 'c' }]));
    t.match(await cli(...profiles, bare), {
      code: 0,
      out: /1 command, written for 5\.15\n\n5\.15 against 6\.18: 0 differences$/,
    });
    const text = await cli(...profiles, page, '--template', 'default');
    t.match(text.out, /^1\. unpin_pages: ret \(first at \d+, 2 times\)\n {3}command {3}\{"op":"unpin_pages"/m);
    t.match(text.out, / {3}made by {3}pinForm: "user_pfn" \/ "iova" - .*\(without it the difference is gone\)/);
    t.match(text.out, / {13}WARNING: at vfio_iommu_type1_detach_group: listeners-left-at-detach/);
    t.match(text.out, /said in another form:\n {3}6\.18 {2}pin_pages: user_pfn as iova and npage/);
    const until = ['--host', `${base}/v1/hosts/recorded`, '--until', '2', '--no-causes'];
    t.match(await cli(...profiles, ...until), { code: 0, out: /^2 commands/ });
  },
);

t.test('the command line: bad usage and bad input end with 2 and say why', async (t) => {
  const good = file('good.json', '[]');
  const cases: [string[], RegExp][] = [
    [[good], /--profiles names two kernels or more\nusage:/],
    [['--profiles', '5.15,6.6', good], /no profile '6\.6'/],
    [['--profiles', '5.15,6.18'], /one FILE, or --host URL/],
    [['--profiles', '5.15,6.18', '--host', 'ftp://x'], /is not the URL of a host/],
    [['--profiles', '5.15,6.18', '--until', 'x', good], /--until x is not a number/],
    [['--profiles', '5.15,6.18', '--bogus', good], /bogus/],
    [['--profiles', '5.15,6.18', join(folder, 'none')], /ENOENT/],
    [['--profiles', '5.15,6.18', '--template', 'full', good], /options: .*template must be one of/],
    [
      ['--profiles', '5.15,6.18', file('torn.jsonl', '{"op":"put_container","container":"c"}\n{"op":')],
      /line 2 is not JSON/,
    ],
    [
      ['--profiles', '5.15,6.18', file('wrong.json', '[{"op":"pin_pages","device":"d","user_pfn":[1]}]')],
      /command 1: .*prot is required/,
    ],
    [['--profiles', '5.15,6.18', '--host', `${base}/v1/hosts/nowhere`], /answered 404: no host 'nowhere'/],
    [['--profiles', '5.15,6.18', '--host', 'http://127.0.0.1:9/v1/hosts/x'], /127\.0\.0\.1:9/],
  ];
  for (const [argv, why] of cases) {
    const { code, out, err } = await cli(...argv);
    t.strictSame([code, out], [2, ''], argv.join(' '));
    t.match(err, why);
  }
});
