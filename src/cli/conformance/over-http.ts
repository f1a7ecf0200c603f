// The HTTP backend: every call and every look is a real request to a service, on connections that are kept alive.

import { Pool } from 'undici';
import type { Command, HostOptions } from '../../kernel/command.ts';
import { profileWith } from '../../kernel/profile.ts';
import type { Question } from './commands.ts';
import { requestOf } from './http-request.ts';
import { CONTAINER, threadsOf } from './layout.ts';
import type { Backend, Machine, Parked, Reply, Returned, Splat } from './machine.ts';
import { infoOf, labelOf, lockedVmOf, mappingOf, notificationIn, outputOf, pageOf, type Shown } from './observe.ts';
import type { State } from './trace.ts';
import type { MemoryModel } from './trace-format.ts';

/** Connections that are used at the same time. */
const CONNECTIONS = 8;
/** Items in one page of a list: the most that the service gives. */
const LIST_LIMIT = 10_000;

/** A service to talk to, and how to end it. */
export interface RunningService {
  url: string;
  token?: string;
  close: () => Promise<void>;
}

/** No service answers at the address, or it does not let us in. */
export class Unusable extends Error {}

interface Response {
  status: number;
  body: Shown;
}

export class OverHttp implements Backend {
  readonly name: string;
  private readonly pool: Pool;
  private hosts = 0;

  constructor(private readonly service: RunningService) {
    this.name = `over HTTP, ${service.url}`;
    this.pool = new Pool(service.url, { connections: CONNECTIONS });
  }

  async begin(options: HostOptions, model: MemoryModel): Promise<Machine> {
    const { taskKept } = profileWith(options.profile, options.fixes);
    return new HttpMachine(await this.open(options), model, taskKept === 'thread');
  }

  /** A new host, and a client of it. Throws Unusable. */
  async open(options: HostOptions): Promise<Client> {
    const id = `conformance-${process.pid}-${++this.hosts}`;
    const client = new Client(this.pool, `/v1/hosts/${id}`, this.service.token);
    const { ttl_s: _, ...body } = options;
    const made = await client.send('PUT', '', body).catch((error: Error & { code?: string }) => {
      throw new Unusable(`${this.service.url}: ${error.code ?? ''} ${error.message}`);
    });
    if (made.status !== 201)
      throw new Unusable(
        `${this.service.url}: PUT /v1/hosts/${id} answered ${made.status}: ${JSON.stringify(made.body)}`,
      );
    return client;
  }

  async close(): Promise<void> {
    await this.pool.close();
    await this.service.close();
  }
}

export class Client {
  constructor(
    private readonly pool: Pool,
    private readonly base: string,
    private readonly token: string | undefined,
  ) {}

  async send(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<Response> {
    const authorization = this.token === undefined ? {} : { authorization: `Bearer ${this.token}` };
    const json = body === undefined ? {} : { 'content-type': 'application/json' };
    const reply = await this.pool.request({
      method: method as 'GET',
      path: this.base + path,
      headers: { ...headers, ...json, ...authorization },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    const text = await reply.body.text();
    const response = { status: reply.statusCode, body: (text === '' ? {} : JSON.parse(text)) as Shown };
    if (response.status === 400 || response.status >= 500)
      throw new Error(
        `${method} ${this.base}${path} answered ${response.status}: ${text}; it was sent ${JSON.stringify(body)}`,
      );
    return response;
  }

  /** A GET that must succeed. */
  async get(path: string): Promise<Shown> {
    const { status, body } = await this.send('GET', path);
    if (status !== 200) throw new Error(`GET ${path} answered ${status}: ${JSON.stringify(body)}`);
    return body;
  }

  /** All items of a paged list. */
  async list(path: string): Promise<Shown[]> {
    const items: Shown[] = [];
    let cursor: string | null = null;
    do {
      const page: Shown = await this.get(`${path}?limit=${LIST_LIMIT}${cursor === null ? '' : `&cursor=${cursor}`}`);
      items.push(...(page.items as Shown[]));
      cursor = (page.next_cursor as string | null) ?? null;
    } while (cursor !== null);
    return items;
  }
}

/** What a reply or a problem says. A container that died is gone (410), which the replayer knows from dmesg. */
const returned = (op: string, body: Shown): Returned => ({
  ret: body.ret as number,
  errno: body.status === 404 ? 'NOT_FOUND' : ((body.errno as string | undefined) ?? null),
  out: outputOf(op, body),
});

class HttpMachine implements Machine {
  private lastSplat = 0;

  constructor(
    private readonly client: Client,
    private readonly model: MemoryModel,
    /** Whether a mapping belongs to the thread that made it, not to its process. */
    private readonly ownedByThread: boolean,
  ) {}

  async call(command: Command, inside: string | null): Promise<Reply> {
    const { method, path, body } = requestOf(command);
    const headers = { prefer: 'respond-async', ...(inside === null ? {} : { 'x-notification': inside }) };
    const response = await this.client.send(method, path, body, headers);
    return response.status === 202 ? this.waiting(response.body) : returned(command.op, response.body);
  }

  async resume(operation: string): Promise<Reply> {
    return this.waiting(await this.client.get(`/operations/${operation}`));
  }

  /** An operation as the service shows it: done, or what it waits for. */
  private async waiting(operation: Shown): Promise<Reply> {
    const { id, kind, state, result, problem, blocked_on } = operation as { id: string; kind: string } & Shown;
    if (state === 'done') return returned(kind, (problem ?? result) as Shown);
    const notification = notificationIn(blocked_on);
    if (notification === '') return { operation: id, notification: null };
    for (const device of Object.keys(this.model.devices)) {
      const { items } = (await this.client.get(`/devices/${device}/notifications`)) as { items: Shown[] };
      const found = items.find((item) => item.id === notification);
      if (found !== undefined) return { operation: id, notification: shownNotification(found) };
    }
    throw new Error(`operation ${id} waits for ${notification}, which no device is told of`);
  }

  async ask(question: Question): Promise<Returned> {
    const info = question.ask === 'get_info';
    const path = info ? `info?argsz=${question.argsz}` : `extensions/${question.ext}`;
    const { status, body } = await this.client.send('GET', `/containers/${CONTAINER}/${path}`);
    return status === 200 && info ? infoOf(body, question.argsz) : returned(question.ask, body);
  }

  async splats(): Promise<Splat[]> {
    const splats: Splat[] = [];
    for (;;) {
      const { items } = (await this.client.get(`/dmesg?since=${this.lastSplat}&limit=${LIST_LIMIT}`)) as {
        items: Shown[];
      };
      const last = items.at(-1);
      if (last === undefined) return splats;
      this.lastSplat = last.n as number;
      for (const { kind, where, text } of items)
        if (kind !== null) splats.push({ kind, where, ...labelOf(text as string) } as Splat);
      if (items.length < LIST_LIMIT) return splats;
    }
  }

  async state(): Promise<State> {
    const path = `/containers/${CONTAINER}`;
    const processes = Object.keys(this.model.processes);
    const [container, tasks] = await Promise.all([
      this.client.send('GET', path),
      Promise.all(processes.map((process) => this.liveThread(process))),
    ]);
    const { dma_avail, iommu_type, notifiers, dirty_page_tracking } =
      container.status === 404 ? NO_CONTAINER : container.body;
    const listed = iommu_type === null ? [] : await this.client.list(`${path}/mappings`);
    const mappings = await Promise.all(
      listed.map(async (mapping) =>
        mappingOf(
          mapping,
          mapping.npinned === 0 ? [] : await this.client.list(`${path}/mappings/${mapping.iova}/pfns`),
          this.ownedByThread,
        ),
      ),
    );
    const pages = (await this.client.list('/pages')).filter(({ pfn }) => this.isInModel(pfn as number));
    return {
      mappings,
      locked_vm: Object.fromEntries(processes.map((process, i) => [process, lockedVmOf(tasks[i] as Shown)])),
      pages: pages.flatMap(pageOf),
      dma_avail: dma_avail as number | null,
      ...(dirty_page_tracking === true ? { dirty_tracking: true } : {}),
      ...(iommu_type === null ? {} : { listeners: (notifiers as unknown[]).length }),
    };
  }

  /** The pages of a trace are numbered from 1; others are memory that the host itself hands out. */
  private isInModel(pfn: number): boolean {
    return pfn >= 1 && pfn <= this.model.pages.count;
  }

  /** A thread that can still say what its process is charged; the first one when none is left. */
  private async liveThread(process: string): Promise<Shown> {
    const threads = threadsOf(this.model, process);
    const first = await this.client.get(`/tasks/${threads[0]}`);
    if (first.alive === true) return first;
    for (const thread of threads.slice(1)) {
      const shown = await this.client.get(`/tasks/${thread}`);
      if (shown.alive === true) return shown;
    }
    return first;
  }

  async end(): Promise<void> {
    await this.client.send('DELETE', '');
  }
}

const NO_CONTAINER: Shown = { dma_avail: null, iommu_type: null, notifiers: [] };

const shownNotification = ({ id, device, notifier, iova, size }: Shown): Parked['notification'] =>
  ({ id, device, listener: notifier, iova, size }) as Parked['notification'];
