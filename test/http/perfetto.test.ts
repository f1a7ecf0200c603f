// The trace over HTTP: paged, every kind of entry in its schema, and the document that the Perfetto UI opens.

import t from 'tap';
import type { PerfettoEvent } from '../../src/http/perfetto/events.ts';
import type { PerfettoTrace } from '../../src/http/perfetto/perfetto.ts';
import type { TRACE_EVENTS } from '../../src/http/views/trace.ts';
import { Client, startApp } from './client.ts';
import { listening, mapped, POLL, pinned, prepare, type Step, UNMAP } from './fixtures.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
let hosts = 0;

const machine = (options: Record<string, unknown> = {}): Promise<string> => client.newHost(`p${++hosts}`, options);
const A = '0x7f0000000000';
const notifier = (id: string, callbacks: object): Step => [
  'POST',
  '/mms/mm-1/notifiers',
  { id, kind: 'plain', callbacks },
];
const access = (write: boolean, addr = A): Step => ['POST', '/tasks/qemu/access', { addr, write }];

const DEVICE_MEMORY = { addr: '0x600000000000', length: '0x1000', prot: ['READ'] };

/** A host on which everything has happened that the trace can tell. */
async function eventful(): Promise<string> {
  const at = await machine({ notifier_timeout_ms: 600_000 });
  await prepare(
    client,
    at,
    notifier('n1', { invalidate_range_start: 'ok', invalidate_range_end: 'ok', invalidate_range: 'take_lock:vq' }),
    notifier('n2', { invalidate_range_start: 'take_lock:m', change_pte: 'ok' }),
    ['POST', '/mms/mm-1/notifiers', { id: 'i1', kind: 'interval', start: A, length: '0x10000' }],
    ['POST', '/tasks/qemu/mmap', { ...DEVICE_MEMORY, backing: { kind: 'pfnmap', pfn: 5000, ptes: ['sigbus'] } }],
    access(false, DEVICE_MEMORY.addr),
    access(false),
    access(true),
    mapped,
    listening(POLL),
    pinned,
    ['POST', '/devices/mdev0/pin_pages', { user_pfn: [18], prot: ['READ'] }],
    ['POST', '/devices/mdev0/unpin_pages', { user_pfn: [16, 17] }],
    ['PUT', '/vfio_pci/nic0', {}],
    ['POST', '/vfio_pci/nic0/bars/0/read', { pos: '0x0', count: 4 }],
    ['POST', '/tasks/qemu/munmap', { addr: A, length: '0x2000', stop_at: 'after_start' }],
    ['POST', '/tasks/qemu/munmap', { addr: '0x7f0000100000', length: '0x1000' }],
  );
  return at;
}

const perfetto = async (at: string, query = ''): Promise<PerfettoTrace> =>
  (await client.ask('GET', `${at}/trace?format=perfetto${query}`)).body as unknown as PerfettoTrace;

const of = (events: readonly PerfettoEvent[], ...phases: string[]): PerfettoEvent[] =>
  events.filter(({ ph }) => phases.includes(ph));

/** What is wrong with a document, in words. */
function mistakes({ traceEvents }: PerfettoTrace): string[] {
  const found: string[] = [];
  const named = new Set(of(traceEvents, 'M').map(({ tid }) => tid));
  const lanes = new Map<number, PerfettoEvent[]>();
  const asyncs = new Map<string, PerfettoEvent[]>();
  const flows = new Map<string, number>();
  let ts = 0;
  for (const event of traceEvents) {
    const { ph, name, tid, id, cat } = event;
    const what = `${ph} ${name} at ${event.ts}`;
    if (ph === 'M') continue;
    if (event.ts <= ts) found.push(`${what} is not later than ${ts}`);
    ts = event.ts;
    if (!named.has(tid)) found.push(`${what}: track ${tid} has no name`);
    const lane = lanes.get(tid) ?? [];
    lanes.set(tid, lane);
    const key = `${cat} ${id}`;
    const open = asyncs.get(key) ?? [];
    if (ph === 'b' || ph === 'e' || ph === 'n') asyncs.set(key, open);
    if (ph === 'B') lane.push(event);
    if (ph === 'E' && lane.pop()?.name !== name) found.push(`${what} ends what is not open`);
    if (ph === 'b') open.push(event);
    if (ph === 'e' && open.pop()?.name !== name) found.push(`${what} ends what is not open`);
    if (ph === 'n' && open.length === 0) found.push(`${what} is in no slice`);
    if (ph === 's' || ph === 'f') {
      if (lane.length === 0) found.push(`${what} is in no slice`);
      flows.set(String(id), (flows.get(String(id)) ?? 0) + (ph === 's' ? 1 : -1));
      if (ph === 's' && flows.get(String(id)) !== 1) found.push(`${what}: flow ${id} is not the only one`);
    }
  }
  for (const [tid, lane] of lanes) if (lane.length > 0) found.push(`track ${tid} has ${lane.length} open slices`);
  for (const [key, open] of asyncs) if (open.length > 0) found.push(`${key} is open`);
  for (const [id, ends] of flows) if (ends !== 0) found.push(`flow ${id} has one end`);
  return found;
}

t.test('the checker of these tests finds what it looks for', (t) => {
  const event = (ph: PerfettoEvent['ph'], ts: number, extra: object = {}): PerfettoEvent => ({
    name: 'x',
    ph,
    ts,
    pid: 1,
    tid: 1,
    ...extra,
  });
  const of = (...traceEvents: PerfettoEvent[]): string[] =>
    mistakes({ traceEvents: [event('M', 0), ...traceEvents] } as PerfettoTrace);
  t.same(of(event('B', 1), event('E', 2)), []);
  t.match(of(event('B', 2), event('E', 2)), [/not later/]);
  t.match(of(event('B', 1)), [/1 open slices/]);
  t.match(of(event('E', 1)), [/not open/]);
  t.match(of(event('b', 1, { cat: 'a', id: '1' }), event('e', 2, { cat: 'a', id: '2' })), [/not open/, /a 1 is open/]);
  t.match(of(event('B', 1), event('s', 2, { id: '1' }), event('E', 3)), [/one end/]);
  t.match(of(event('i', 1, { tid: 7 })), [/no name/]);
  t.end();
});

t.test('every slice is closed, every flow has two ends, time only goes on', async (t) => {
  const at = await eventful();
  const document = await perfetto(at);
  t.same(mistakes(document), []);
  t.match(document, {
    displayTimeUnit: 'ms',
    otherData: { host: at.split('/').at(-1), profile: '5.15', truncated: false },
  });
  const tracks = of(document.traceEvents, 'M')
    .filter(({ name }) => name === 'thread_name')
    .map(({ args }) => args?.name);
  for (const track of ['task qemu', 'device mdev0', 'notifier n1', 'notifier n2', 'notifier i1'])
    t.ok(tracks.includes(track), track);
  t.equal(new Set(tracks).size, tracks.length, 'no track twice');
});

t.test('an event leads to each of its callbacks', async (t) => {
  const at = await eventful();
  const { traceEvents } = await perfetto(at);
  const { body } = await client.ask('GET', `${at}/trace?limit=10000`);
  const entries = body.items as { event: string }[];
  const callbacks = of(traceEvents, 'B').filter(({ cat }) => cat === 'callback');
  t.equal(callbacks.length, entries.filter(({ event }) => event === 'notify').length);
  t.equal(of(traceEvents, 's').length, callbacks.length);
  for (const end of of(traceEvents, 'f')) t.equal(end.bp, 'e');
  const inRange = of(traceEvents, 'B').filter(({ name }) => name === 'invalidate_range');
  t.ok(inRange.length > 0);
  t.match(inRange[0]?.args, { notifier: 'n1', locks_held: [/^mmap_lock/, /^ptl/], mmu_event: 'CLEAR', start: A });
});

t.test('a pin lasts until its last page is unpinned, what waits says for what, counters say how many', async (t) => {
  const at = await eventful();
  const { traceEvents } = await perfetto(at);
  const pins = of(traceEvents, 'b', 'e').filter(({ cat }) => cat === 'pin');
  t.match(
    pins.map(({ ph, name, args }) => [ph, name, args?.open ?? null]),
    [
      ['b', 'pin 2 pages', null],
      ['b', 'pin 1 pages', null],
      ['e', 'pin 2 pages', null],
      ['e', 'pin 1 pages', true],
    ],
  );
  const waits = of(traceEvents, 'b').filter(({ name }) => name === 'waits for mmap_lock:mm-1');
  t.equal(waits.length, 1, 'the second munmap waits for the first');
  const values = (counter: string): unknown[] =>
    of(traceEvents, 'C').flatMap(({ name, args }) => (name === counter ? [args?.value] : []));
  t.same(values('pinned_pages'), [2, 3, 1]);
  t.same(values('locked_vm mm-1'), [2, 3, 1]);
  t.same(values('active ranges mm-1'), [1, 0, 1, 0], 'the range that is open is closed where the trace ends');
});

t.test('every kind of entry is in it', async (t) => {
  const at = await eventful();
  await prepare(client, at, ['PUT', '/faults/f0', { point: 'charge', call: 'pin_pages', nth: 1 }]);
  const { body } = await client.ask('GET', `${at}/trace?limit=10000`);
  const kinds = new Set((body.items as { event: string }[]).map(({ event }) => event));
  const { traceEvents } = await perfetto(at);
  const shows: Partial<Record<keyof typeof TRACE_EVENTS, (event: PerfettoEvent) => boolean>> = {
    operation: ({ ph, cat, args }) => ph === 'e' && cat === 'operation' && args?.ret === 0,
    phase: ({ ph, name }) => ph === 'n' && name === 'after_start',
    lock: ({ ph, cat }) => ph === 'b' && cat === 'lock',
    invalidate_start: ({ ph, name }) => ph === 'B' && name.startsWith('invalidate_range_start'),
    invalidate_started: ({ ph, name }) => ph === 'E' && name.startsWith('invalidate_range_start'),
    invalidate_end: ({ ph, name }) => ph === 'B' && name.startsWith('invalidate_range_end '),
    invalidate_ended: ({ ph, name }) => ph === 'E' && name.startsWith('invalidate_range_end '),
    notify: ({ ph, cat }) => ph === 'B' && cat === 'callback',
    notify_return: ({ ph, name }) => ph === 'E' && name === 'change_pte',
    pte: ({ ph, cat }) => ph === 'i' && cat === 'pte',
    mmio: ({ ph, cat }) => ph === 'i' && cat === 'mmio',
    fault: ({ ph, cat }) => ph === 'i' && cat === 'fault',
    pin: ({ ph, cat }) => ph === 'b' && cat === 'pin',
    unpin: ({ ph, cat }) => ph === 'e' && cat === 'pin',
    counter: ({ ph }) => ph === 'C',
  };
  for (const [kind, isShown] of Object.entries(shows)) {
    t.ok(traceEvents.some(isShown), `${kind} is shown`);
    t.ok(kinds.has(kind), `${kind} has happened`);
  }
});

t.test('any part of a trace is a whole document', async (t) => {
  const at = await eventful();
  const { body } = await client.ask('GET', `${at}/trace?limit=10000`);
  const last = (body.items as { n: number }[]).length;
  for (let since = 0; since < last; since += 7)
    for (const limit of [1, 5, 40]) {
      const document = await perfetto(at, `&since=${since}&limit=${limit}`);
      t.same(mistakes(document), [], `${limit} entries after ${since}`);
      t.equal(document.otherData.first_n, since + 1);
    }
  const newest = await perfetto(at, '&limit=10');
  t.match(newest.otherData, { first_n: last - 9, last_n: last, truncated: true });
  t.same(mistakes(newest), []);
  const empty = await perfetto(at, `&since=${last}`);
  t.match(empty, { otherData: { first_n: 0, last_n: 0 } });
});

t.test('a DMA_UNMAP handler and its unmap, over two requests', async (t) => {
  const at = await machine({ notifier_timeout_ms: 600_000 });
  await prepare(client, at, mapped, listening(POLL), pinned);
  const unmap = client.ask('POST', `${at}/containers/vfio0/unmap_dma`, UNMAP);
  const { body } = await client.ask('GET', `${at}/devices/mdev0/notifications?wait_ms=5000`);
  const [{ id } = { id: '' }] = body.items as { id: string }[];
  await prepare(client, at, ['POST', '/devices/mdev0/unpin_pages', { user_pfn: [16, 17] }]);
  const before = await perfetto(at);
  t.same(mistakes(before), [], 'while it waits');
  await prepare(client, at, ['POST', `/devices/mdev0/notifications/${id}/ack`, { ret: 'NOTIFY_OK' }]);
  t.equal((await unmap).status, 200);
  const after = await perfetto(at);
  t.same(mistakes(after), []);
  const [call] = of(after.traceEvents, 'B').filter(({ name }) => name === 'DMA_UNMAP');
  t.match(call, { cat: 'callback', args: { notifier: 'n0', notification: id, iova: '0x0' } });
  const ends = of(after.traceEvents, 'e').filter(({ name }) => name === 'unmap_dma');
  t.match(ends, [{ args: { ret: 0 } }]);
});
