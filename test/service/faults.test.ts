// The n-th store call fails, n = 1, 2, 3, ... until none does: nothing acknowledged is lost, nothing happens twice.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import { violations } from '../../src/kernel/invariants.ts';
import type { Answer } from '../../src/service/answer.ts';
import { HostUnavailable } from '../../src/service/errors.ts';
import type { Service } from '../../src/service/service.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import {
  ack,
  context,
  type Fate,
  FaultyStore,
  ManualClock,
  map,
  notifier,
  pin,
  settle,
  startService,
  unmap,
  unpin,
} from './bench.ts';

/** Tries after which the store gets well again, so that a client that retries comes to an end. */
const TRIES = 4;

/** A client of a service whose store fails: it retries under one key until it is answered, and remembers every answer. */
class Client {
  readonly acknowledged = new Map<string, Answer>();
  service: Service | null = null;
  private readonly clock = new ManualClock();
  /** Tells the requests of a service that it was killed: their connections break. */
  private kill: () => void = () => {};
  private killed: Promise<null> = Promise.resolve(null);

  constructor(private readonly store: FaultyStore) {}

  /** A service over the store as it is now; the one before is left where it stands, as by kill -9. */
  async restart(): Promise<void> {
    this.kill();
    this.service = null;
    this.killed = new Promise((resolve) => {
      this.kill = () => resolve(null);
    });
    for (let tries = 1; ; tries++) {
      const starting = startService(this.store, { clock: this.clock, journalKeep: 3 });
      const failed = await this.waitFor(
        starting.then(
          () => null,
          (error: Error) => error,
        ),
      );
      if (failed === null) {
        this.service = await starting;
        // Quarantine for a store that could not be read ends with the next start.
        if (this.service.readiness().quarantined.length === 0) return;
      }
      this.healAfter(tries);
    }
  }

  async send(key: string, command: Command): Promise<Answer> {
    for (let tries = 1; ; tries++) {
      while (this.service === null) await settle(2);
      const asked = this.service.submit('default', command, context({ key, request_id: `${key}/${tries}` }));
      const answer = await this.waitFor(Promise.race([asked.catch(orUnavailable), this.killed]));
      if (answer !== null) {
        this.acknowledged.set(key, answer);
        return answer;
      }
      this.healAfter(tries);
      await this.pause();
    }
  }

  /** Work that may fail without harm and is not repeated. */
  async attempt(work: (service: Service) => Promise<unknown>): Promise<void> {
    await this.waitFor(work(this.running).catch(() => null));
    await this.pause();
  }

  /** Work that is repeated until it succeeds. */
  async insist<T>(work: (service: Service) => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries++) {
      const result = await this.waitFor(work(this.running).then((value) => ({ value }), orUnavailable));
      if (result !== null) return result.value;
      this.healAfter(tries);
      await this.pause();
    }
  }

  private get running(): Service {
    if (this.service === null) throw new Error('the service is not started');
    return this.service;
  }

  private healAfter(tries: number): void {
    if (tries >= TRIES) this.store.failAt = 0;
  }

  /** Time for reloads, which pause at most 5 s; notifications time out later than the whole scenario takes. */
  private async pause(): Promise<void> {
    this.clock.advance(5_000);
    await settle(5);
  }

  private async waitFor<T>(promise: Promise<T>): Promise<T> {
    let done = false;
    const end = (): void => {
      done = true;
    };
    promise.then(end, end);
    for (let i = 0; !done; i++) {
      await settle(2);
      if (i > 20) this.clock.advance(5_000);
      if (i > 1000) throw new Error('a request is never answered');
    }
    return promise;
  }
}

function orUnavailable(error: unknown): null {
  if (error instanceof HostUnavailable) return null;
  throw error;
}

const put = (task: string): Command => ({
  op: 'put_task',
  task,
  rlimit_memlock: 2n ** 63n,
  cap_ipc_lock: false,
  thread_of: null,
});

/** Every command of the scenario by its key, in the order of the journal. */
const SCENARIO: [string, Command][] = [
  ['patch', { op: 'patch_host', notifier_timeout_ms: 2 ** 31 }],
  ['register', notifier()],
  ['map', map(0n)],
  ['pin', pin(1, 2, 3)],
  ['pin again', pin(3)],
  ['refused', map(1n)],
  ['task', put('t0')],
  ['unmap', unmap(0n)],
  ['unpin', unpin(1, 2, 3, 3)],
  ['ack', ack('notification-1')],
  ['map again', map(0n)],
];

async function scenario(store: FaultyStore): Promise<Client> {
  const client = new Client(store);
  const send = async (...keys: string[]): Promise<void> => {
    for (const [key, command] of SCENARIO) if (keys.includes(key)) await client.send(key, command);
  };
  await client.restart();
  await send('patch', 'register', 'map');
  await client.attempt((service) => service.checkpoint('default'));
  await send('pin', 'pin again', 'refused');
  await client.attempt((service) => service.sync('default'));
  await client.attempt((service) => service.checkpoint('default'));
  await send('task');
  const parked = client.send('unmap', unmap(0n));
  await client.insist(async (service) => {
    const { value } = await service.read('default', ({ vfio }) => vfio.notifications.has('notification-1'));
    if (!value) throw new HostUnavailable('default', 'recovering');
  });
  await client.restart();
  await send('unpin', 'ack');
  await parked;
  await client.attempt((service) => service.checkpoint('default'));
  await send('map again');
  await client.restart();
  return client;
}

/** What must hold after the scenario, whatever failed. Returns what does not. */
async function check(client: Client, memory: MemoryStore): Promise<string[]> {
  const wrong: string[] = [];
  const service = client.service as Service;
  for (const [i, [key, command]] of SCENARIO.entries()) {
    const answer = client.acknowledged.get(key);
    if (answer?.seq !== i + 1) wrong.push(`'${key}' was acknowledged at seq ${answer?.seq} instead of ${i + 1}`);
    const replayed = await service.submit('default', command, context({ key }));
    if (!replayed.replayed) wrong.push(`'${key}' was executed again`);
    if (
      replayed.seq !== answer?.seq ||
      replayed.request_id !== answer.request_id ||
      replayed.outcome.ret !== answer.outcome.ret
    )
      wrong.push(`'${key}' is answered otherwise when it is asked again`);
  }
  const { value } = await service.read('default', (host) => ({
    seq: host.seq,
    records: host.vfio.pfns.count,
    pinned: host.mm.pages.pinned,
    waiting: host.vfio.notifications.size,
    mappings: host.vfio.dmas.links.liveCount,
    broken: violations(host),
  }));
  const wanted = { seq: SCENARIO.length, records: 0, pinned: 0, waiting: 0, mappings: 1, broken: [] };
  if (JSON.stringify(value) !== JSON.stringify(wanted)) wrong.push(`the host is ${JSON.stringify(value)}`);
  await service.sync('default');
  if (memory.projected('default')?.dma.size !== 1) wrong.push('the projection does not show the mapping');
  return wrong;
}

for (const fate of ['before', 'after'] as Fate[]) {
  for (const sticky of [false, true]) {
    t.test(
      `a store that fails ${sticky ? 'for a while' : 'once'}, ${fate} its work, at any of its calls`,
      async (t) => {
        const failedMethods = new Set<string>();
        for (let n = 1; ; n++) {
          const memory = new MemoryStore();
          await memory.open();
          const store = new FaultyStore(memory);
          Object.assign(store, { failAt: n, sticky, fate });
          const client = await scenario(store);
          store.failAt = 0;
          const wrong = await check(client, memory);
          t.strictSame(wrong, [], `call ${n} (${store.calls[n - 1] ?? 'none'})`);
          await client.service?.stop();
          if (store.fired === 0) {
            t.ok(n > 30, `${n - 1} calls were failed`);
            break;
          }
          failedMethods.add(store.calls[n - 1] as string);
        }
        const all = ['hosts', 'commit', 'journal', 'idempotency', 'unansweredIdempotency', 'writeSections'];
        for (const method of [...all, 'writeManifest', 'manifest', 'sections', 'trim', 'project'])
          t.ok(failedMethods.has(method), `a failing ${method} was met`);
      },
    );
  }
}
