// A client of one emulated host over HTTP. Every POST carries an Idempotency-Key, so that a retry after a lost reply takes
// effect once; what is done inside a notifier's handler names the notification.

import { randomUUID } from 'node:crypto';

export type Prot = ('READ' | 'WRITE')[];

/** RFC 9457 with the kernel's own words. */
export interface Problem {
  status: number;
  title: string;
  detail: string;
  instance?: string;
  errno?: string;
  ret?: number;
  at_index?: number;
  hint?: string;
}

/** The service said no: the emulated kernel's errno, or an HTTP error of its own. */
export class Refused extends Error {
  constructor(
    readonly request: string,
    readonly problem: Problem,
  ) {
    super(`${request}: ${problem.status} ${problem.errno ?? problem.title}: ${problem.detail}`);
    this.name = 'Refused';
  }

  get errno(): string {
    return this.problem.errno ?? `HTTP ${this.problem.status}`;
  }
}

export interface Notification {
  id: string;
  device: string;
  notifier: string;
  event: 'DMA_UNMAP';
  iova: string;
  size: string;
  container: string;
  attempt: number;
  seq: number;
}

export type NotifyReturn = 'NOTIFY_OK' | 'NOTIFY_DONE' | 'NOTIFY_STOP' | 'NOTIFY_BAD';

export type Delivery = { kind: 'poll' } | { kind: 'webhook'; url: string; secret: string };

export interface DmesgEntry {
  n: number;
  seq: number;
  level: string;
  text: string;
  kind?: 'WARN' | 'BUG' | 'DEADLOCK' | null;
  where?: string | null;
}

/** References that are left in a run of pages: `leaked` with a mapping that is gone, or `pinned` in one that is there. */
export interface Leak {
  device: string;
  container: string;
  iova: string;
  size: string;
  npage: number;
  references: number;
  state: string;
  notified: boolean;
  first_pin: { seq: number; request_id: string };
  last_pin: { seq: number; request_id: string };
  warn: string;
}

export interface Task {
  id: string;
  /** Pages; null once it has exited. */
  locked_vm: number | null;
  alive: boolean;
}

interface Sent {
  body?: unknown;
  /** The notification inside whose handler the call is made. */
  notification?: string;
  signal?: AbortSignal;
}

/** A lost connection or a 503 is tried again this often; a key makes that safe. */
const TRIES = 5;

export function hex(address: bigint): string {
  return `0x${address.toString(16)}`;
}

/** `[0x1000, 0x3000)` */
export function rangeText(iova: bigint, size: bigint): string {
  return `[${hex(iova)}, ${hex(iova + size)})`;
}

export class HostClient {
  #requests = 0;

  /** `name` begins the id of every request, so that a splat tells who caused it. */
  constructor(
    readonly baseUrl: string,
    readonly host: string,
    readonly name: string,
    readonly token: string | undefined,
  ) {}

  /** The same host, spoken to by somebody else. */
  as(name: string): HostClient {
    return new HostClient(this.baseUrl, this.host, name, this.token);
  }

  // hosts and tasks

  /** True if the host is new. */
  async putHost(options: { profile: string; template: 'empty' | 'default' }): Promise<boolean> {
    return (await this.#send('PUT', '', { body: options })).status === 201;
  }
  async resetHost(): Promise<void> {
    await this.#post('/reset', {});
  }
  async putTask(task: string, rlimitMemlock: bigint): Promise<void> {
    await this.#put(`/tasks/${task}`, { rlimit_memlock: hex(rlimitMemlock) });
  }
  task(task: string): Promise<Task> {
    return this.#get(`/tasks/${task}`);
  }
  async mmap(task: string, addr: bigint, length: bigint): Promise<void> {
    await this.#post(`/tasks/${task}/mmap`, {
      addr: hex(addr),
      length: hex(length),
      prot: ['READ', 'WRITE'],
      noreplace: true,
    });
  }
  async exitTask(task: string): Promise<void> {
    await this.#post(`/tasks/${task}/exit`, {});
  }

  // containers, groups, devices

  async putContainer(container: string): Promise<void> {
    await this.#put(`/containers/${container}`, {});
  }
  async setIommu(container: string, type: string, task: string): Promise<void> {
    await this.#post(`/containers/${container}/set_iommu`, { type, task });
  }
  async closeContainer(container: string): Promise<void> {
    await this.#post(`/containers/${container}/close`, {});
  }
  container(container: string): Promise<{ dead: { text: string; where: string } | null }> {
    return this.#get(`/containers/${container}`);
  }
  async mappings(container: string): Promise<{ iova: string; size: string; npinned: number }[]> {
    return this.#items(`/containers/${container}/mappings`);
  }
  async putGroup(group: string): Promise<void> {
    await this.#put(`/groups/${group}`, { kind: 'mdev' });
  }
  async setContainer(group: string, container: string, task: string): Promise<void> {
    await this.#post(`/groups/${group}/set_container`, { container, task });
  }
  async closeGroup(group: string): Promise<void> {
    await this.#post(`/groups/${group}/close`, {});
  }
  async putDevice(device: string, group: string): Promise<void> {
    await this.#put(`/devices/${device}`, { group });
  }
  async openDevice(device: string): Promise<void> {
    await this.#post(`/devices/${device}/open`, {});
  }
  async closeDevice(device: string): Promise<void> {
    await this.#post(`/devices/${device}/close`, {});
  }

  // DMA mappings and pins

  async mapDma(
    container: string,
    call: { task: string; iova: bigint; vaddr: bigint; size: bigint; flags: Prot },
  ): Promise<void> {
    const { task, iova, vaddr, size, flags } = call;
    await this.#post(`/containers/${container}/map_dma`, {
      task,
      iova: hex(iova),
      vaddr: hex(vaddr),
      size: hex(size),
      flags,
    });
  }
  /** Returns when every driver has let go of the range; `size` is what was really unmapped. */
  async unmapDma(
    container: string,
    call: { task: string; iova: bigint; size: bigint },
  ): Promise<{ size: bigint; notifications: number }> {
    const { task, iova, size } = call;
    const reply = await this.#post<{ size: string; notifications: number }>(`/containers/${container}/unmap_dma`, {
      task,
      iova: hex(iova),
      size: hex(size),
    });
    return { size: BigInt(reply.size), notifications: reply.notifications };
  }
  async pinPages(device: string, userPfn: number[], prot: Prot): Promise<number[]> {
    const body = { user_pfn: userPfn, prot };
    return (await this.#post<{ phys_pfn: number[] }>(`/devices/${device}/pin_pages`, body)).phys_pfn;
  }
  /** Returns how many entries were processed, as vfio_unpin_pages() does. */
  async unpinPages(device: string, userPfn: number[], notification?: string): Promise<number> {
    const sent = { body: { user_pfn: userPfn }, notification };
    const { body } = await this.#send('POST', `/devices/${device}/unpin_pages`, sent);
    return (body as { ret: number }).ret;
  }

  // notifiers

  async registerNotifier(device: string, id: string, delivery: Delivery): Promise<void> {
    await this.#post(`/devices/${device}/notifiers`, { id, events: ['DMA_UNMAP'], delivery });
  }
  async unregisterNotifier(device: string, id: string): Promise<void> {
    await this.#send('DELETE', `/devices/${device}/notifiers/${id}`, {});
  }
  /** The notifications that wait for an answer; waits up to `waitMs` for the first. */
  async notifications(device: string, waitMs: number, signal: AbortSignal): Promise<Notification[]> {
    const { body } = await this.#send('GET', `/devices/${device}/notifications?wait_ms=${waitMs}`, { signal });
    return (body as { items: Notification[] }).items;
  }
  async ack(notification: Notification, ret: NotifyReturn): Promise<void> {
    await this.#post(`/devices/${notification.device}/notifications/${notification.id}/ack`, { ret });
  }

  // looking in

  dmesg(): Promise<DmesgEntry[]> {
    return this.#items('/dmesg');
  }
  leaks(): Promise<Leak[]> {
    return this.#items('/leaks');
  }
  invariants(): Promise<{ ok: boolean; violations: unknown[] }> {
    return this.#get('/invariants');
  }

  async #get<Reply>(path: string): Promise<Reply> {
    return (await this.#send('GET', path, {})).body as Reply;
  }
  async #put(path: string, body: unknown): Promise<void> {
    await this.#send('PUT', path, { body });
  }
  async #post<Reply>(path: string, body: unknown): Promise<Reply> {
    return (await this.#send('POST', path, { body })).body as Reply;
  }

  /** All pages of a list. */
  async #items<Item>(path: string): Promise<Item[]> {
    const items: Item[] = [];
    let cursor: string | null | undefined;
    do {
      const query = typeof cursor === 'string' ? `?cursor=${encodeURIComponent(cursor)}` : '';
      const page = await this.#get<{ items: Item[]; next_cursor?: string | null }>(`${path}${query}`);
      items.push(...page.items);
      cursor = page.next_cursor;
    } while (typeof cursor === 'string');
    return items;
  }

  async #send(method: string, path: string, sent: Sent): Promise<{ status: number; body: unknown }> {
    const headers: Record<string, string> = { 'x-request-id': `${this.name}-${++this.#requests}` };
    if (sent.body !== undefined) headers['content-type'] = 'application/json';
    if (method === 'POST') headers['idempotency-key'] = randomUUID();
    if (sent.notification !== undefined) headers['x-notification'] = sent.notification;
    if (this.token !== undefined) headers.authorization = `Bearer ${this.token}`;
    const url = `${this.baseUrl}/v1/hosts/${this.host}${path}`;
    const body = sent.body === undefined ? undefined : JSON.stringify(sent.body);

    for (let tried = 1; ; tried++) {
      const response = await fetch(url, { method, headers, body, signal: sent.signal }).catch((error: unknown) => {
        if (sent.signal?.aborted === true) throw error;
        if (tried === TRIES) throw new Error(`no answer from ${this.baseUrl}: ${reasonOf(error)}`);
        return null;
      });
      if (response === null || (response.status === 503 && tried < TRIES)) {
        await response?.body?.cancel();
        await sleep(Number(response?.headers.get('retry-after') ?? 0.2) * 1000);
        continue;
      }
      const text = await response.text();
      const reply: unknown = text === '' ? {} : JSON.parse(text);
      if (!response.ok) throw new Refused(`${method} ${path}`, { ...(reply as Problem), status: response.status });
      return { status: response.status, body: reply };
    }
  }
}

/** fetch() says "fetch failed" and keeps the reason in the cause. */
function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? error.cause.message : error.message;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
