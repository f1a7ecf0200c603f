// kill -9 of a real process on a real file, at random moments under load: nothing acknowledged is lost, nothing is doubled.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { type Reply, ServiceProcess } from './process.ts';

const SEED = Number(process.env.SEED ?? 20161114);
const KILLS = Number(process.env.KILLS ?? 50);
const CLIENTS = 6;
/** Pages of each client's own mapping. */
const PAGES = 24;
const HOST = '/v1/hosts/default';

/** mulberry32. */
function random(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

interface Request {
  path: string;
  body: Record<string, unknown>;
  key: string;
  /** What it changes, once it is known to have happened. */
  apply: (reply: Reply) => void;
}

/** A client with a mapping of its own: what it was told, and the request whose fate it does not know. */
class Client {
  readonly refs = new Map<number, number>();
  unknown: Request | null = null;
  readonly acknowledged: { path: string; body: Record<string, unknown>; key: string; reply: Reply }[] = [];
  private requests = 0;
  private lastSeq = 0;
  /** The mapping exists; every third client also unmaps and maps again. */
  mapped = false;

  constructor(
    readonly id: number,
    private readonly next: () => number,
  ) {}

  get firstPage(): number {
    return 0x1000 * (this.id + 1);
  }

  get range(): { iova: string; size: string } {
    return { iova: `0x${(this.firstPage * 4096).toString(16)}`, size: `0x${(PAGES * 4096).toString(16)}` };
  }

  private entries(): number[] {
    const count = 1 + Math.floor(this.next() * 8);
    return Array.from({ length: count }, () => this.firstPage + Math.floor(this.next() * PAGES));
  }

  /** Something that the emulated kernel accepts, given what the client knows. */
  choose(): Request {
    const key = `client-${this.id}-${this.requests++}`;
    if (!this.mapped) {
      const vaddr = `0x${(0x7f0000000000 + this.id * 0x100000).toString(16)}`;
      const body = { task: 'qemu', ...this.range, vaddr, flags: ['READ', 'WRITE'] };
      const apply = (): void => {
        this.mapped = true;
      };
      return { path: '/containers/vfio0/map_dma', body, key, apply };
    }
    const pinned = [...this.refs.keys()];
    const what = this.next();
    if (what < 0.08 && this.id % 3 === 0) {
      const apply = (): void => {
        this.mapped = false;
        this.refs.clear();
      };
      return { path: '/containers/vfio0/unmap_dma', body: { ...this.range }, key, apply };
    }
    if (what < 0.6 || pinned.length === 0) {
      const user_pfn = this.entries();
      const apply = (): void => user_pfn.forEach((page) => void this.refs.set(page, (this.refs.get(page) ?? 0) + 1));
      return { path: '/devices/mdev0/pin_pages', body: { user_pfn, prot: ['READ', 'WRITE'] }, key, apply };
    }
    const user_pfn = [pinned[Math.floor(this.next() * pinned.length)] as number];
    const apply = (): void =>
      user_pfn.forEach((page) => {
        const left = (this.refs.get(page) ?? 0) - 1;
        if (left > 0) this.refs.set(page, left);
        else this.refs.delete(page);
      });
    return { path: '/devices/mdev0/unpin_pages', body: { user_pfn }, key, apply };
  }

  /** Sends a request; false when its fate is unknown. */
  async send(service: ServiceProcess, request: Request): Promise<boolean> {
    const { path, body, key } = request;
    const reply = await service.request('POST', `${HOST}${path}`, body, { 'idempotency-key': key });
    if (reply === null || reply.status === 503) {
      this.unknown = request;
      return false;
    }
    if (reply.status !== 200)
      throw new Error(`${path} ${JSON.stringify(body)}: ${reply.status} ${JSON.stringify(reply.body)}`);
    this.unknown = null;
    request.apply(reply);
    const seq = reply.body.seq as number;
    if (seq <= this.lastSeq) throw new Error(`${key}: seq ${seq} after ${this.lastSeq}`);
    this.lastSeq = seq;
    this.acknowledged.push({ path, body, key, reply });
    if (this.acknowledged.length > 200) this.acknowledged.shift();
    return true;
  }

  /** Works until the connection breaks. */
  async work(service: ServiceProcess): Promise<void> {
    while (await this.send(service, this.choose()));
  }
}

t.setTimeout(600_000);
// One listener for each process that is started.
process.setMaxListeners(0);

t.test(`crash: ${KILLS} kills, seed ${SEED}`, async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'crash-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const database = join(folder, 'emulator.db');
  const next = random(SEED);
  const clients = Array.from({ length: CLIENTS }, (_, id) => new Client(id, random(SEED + 1 + id)));
  const settings = { CHECKPOINT_COMMANDS: '300' };
  let killedInStart = 0;
  let resolvedUnknown = 0;
  let replays = 0;
  let checked = 0;

  const first = await ServiceProcess.start(database, settings);
  if (first === null) throw new Error('the first start failed');
  let service: ServiceProcess = first;
  const delivery = { kind: 'builtin', behavior: 'unpin_all' };
  t.equal(
    (await service.request('POST', `${HOST}/devices/mdev0/notifiers`, { id: 'n', events: ['DMA_UNMAP'], delivery }))
      ?.status,
    201,
  );

  for (let kill = 0; kill < KILLS; kill++) {
    const working = Promise.all(clients.map((client) => client.work(service)));
    await new Promise((resolve) => setTimeout(resolve, 20 + next() * 180));
    await service.kill();
    await working;
    if (next() < 0.15) {
      const killed = await ServiceProcess.start(database, settings, 100 + next() * 700);
      if (killed === null) killedInStart++;
      else await killed.kill();
    }
    const restarted = await ServiceProcess.start(database, settings);
    if (restarted === null) throw new Error('the restart failed');
    service = restarted;
    for (const client of clients) {
      if (client.unknown === null) continue;
      resolvedUnknown++;
      if (!(await client.send(service, client.unknown))) throw new Error('a retry got no answer');
    }
    for (const client of clients) {
      const sample = client.acknowledged[Math.floor(next() * client.acknowledged.length)];
      if (sample === undefined) continue;
      const again = await service.request('POST', `${HOST}${sample.path}`, sample.body, {
        'idempotency-key': sample.key,
      });
      if (again?.replayed !== true) throw new Error(`${sample.key} was not replayed: ${JSON.stringify(again)}`);
      t.same(again.body, sample.reply.body, `${sample.key}: the retried key gives the first reply`);
      replays++;
    }
    const ready = await service.request('GET', '/readyz');
    t.same([ready?.status, ready?.body.quarantined], [200, []], `kill ${kill + 1}: nothing is quarantined`);
    const invariants = await service.request('GET', `${HOST}/invariants`);
    t.same(invariants?.body, { ok: true, violations: [] }, `kill ${kill + 1}: invariants hold`);
    for (const client of clients) {
      const { iova } = client.range;
      const pfns = await service.request('GET', `${HOST}/containers/vfio0/mappings/${iova}/pfns`);
      const items = (pfns?.body.items ?? []) as { iova: string; ref_count: number }[];
      const found = items.map((item) => [Number(item.iova) / 4096, item.ref_count]);
      const expected = [...client.refs].sort(([a], [b]) => a - b);
      t.same(
        [pfns?.status, found],
        client.mapped ? [200, expected] : [404, []],
        `kill ${kill + 1}: client ${client.id} finds what it was told`,
      );
      checked += expected.length;
    }
  }
  t.comment(
    `${resolvedUnknown} requests of unknown fate retried, ${replays} keys replayed, ${killedInStart} kills during recovery, ${checked} records compared`,
  );
  t.ok(resolvedUnknown > KILLS / 2, 'kills met requests in flight');
  t.equal(await service.stop(), 0, 'the last process ends cleanly');
});

t.test(
  'crash: kill -9 in the middle of an unmap: the notification comes again, the retry gets the reply',
  async (t) => {
    const folder = mkdtempSync(join(tmpdir(), 'crash-'));
    t.teardown(() => rmSync(folder, { recursive: true, force: true }));
    const database = join(folder, 'emulator.db');
    let service = (await ServiceProcess.start(database)) as ServiceProcess;
    const post = async (path: string, body: unknown, headers: Record<string, string> = {}): Promise<Reply | null> =>
      service.request('POST', `${HOST}${path}`, body, headers);
    const mapping = { iova: '0x10000', size: '0x4000' };
    await post('/containers/vfio0/map_dma', {
      task: 'qemu',
      ...mapping,
      vaddr: '0x7f0000000000',
      flags: ['READ', 'WRITE'],
    });
    await post('/devices/mdev0/notifiers', { id: 'n', events: ['DMA_UNMAP'], delivery: { kind: 'poll' } });
    await post('/devices/mdev0/pin_pages', { user_pfn: [0x10, 0x11], prot: ['READ'] });

    const poll = async (): Promise<Record<string, unknown>[]> => {
      const reply = await service.request('GET', `${HOST}/devices/mdev0/notifications?wait_ms=20000`);
      return (reply?.body.items ?? []) as Record<string, unknown>[];
    };
    const key = { 'idempotency-key': 'the-unmap' };
    const lost = post('/containers/vfio0/unmap_dma', mapping, key);
    const [before] = await poll();
    await service.kill();
    t.equal(await lost, null, 'the client of the unmap has no answer');

    service = (await ServiceProcess.start(database)) as ServiceProcess;
    const [after] = await poll();
    t.same(after, before, 'the same notification, with its id');
    const retried = post('/containers/vfio0/unmap_dma', mapping, key);
    const inside = { 'x-notification': String(after?.id) };
    t.equal((await post('/devices/mdev0/unpin_pages', { user_pfn: [0x10, 0x11] }, inside))?.body.ret, 2);
    t.equal((await post(`/devices/mdev0/notifications/${after?.id}/ack`, { ret: 'NOTIFY_OK' }))?.status, 200);
    const reply = await retried;
    t.match(reply, { status: 200, body: { ret: 0, size: '0x4000', notifications: 1 } });
    await service.kill();

    service = (await ServiceProcess.start(database)) as ServiceProcess;
    const again = await post('/containers/vfio0/unmap_dma', mapping, key);
    t.same([again?.replayed, again?.body], [true, reply?.body], 'and once more after another kill');
    const leaks = await service.request('GET', `${HOST}/leaks`);
    t.same(leaks?.body, { items: [], references: 0 });
    t.equal(await service.stop(), 0);
  },
);
