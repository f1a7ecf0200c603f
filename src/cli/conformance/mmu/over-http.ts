// The HTTP backend of mmu notifier traces: every call and every look is a real request to a service.

import type { Command, HostOptions } from '../../../kernel/command.ts';
import { hex } from '../../../kernel/lib/u64.ts';
import { notificationIn, type Shown } from '../observe.ts';
import type { Client } from '../over-http.ts';
import { LAYOUT, TASK } from './layout.ts';
import type { MmuBackend, MmuMachine, PendingCallback, Returned, Standing } from './machine.ts';
import { type DmesgLine, splatOf } from './observe.ts';
import type { State } from './trace.ts';

export class MmuOverHttp implements MmuBackend {
  /** `open` makes a host and gives a client of it. */
  constructor(private readonly open: (options: HostOptions) => Promise<Client>) {}

  async begin(options: HostOptions): Promise<MmuMachine> {
    const client = await this.open(options);
    let mm = '';
    for (const command of LAYOUT) {
      const { method, path, body } = requestOf(command, mm);
      const reply = await client.send(method, path, body);
      if (command.op === 'put_task') mm = reply.body.mm as string;
    }
    return new HttpMmuMachine(client, mm);
  }
}

interface Request {
  method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  path: string;
  body?: unknown;
}

const post = (path: string, body: unknown = {}): Request => ({ method: 'POST', path, body });

/** The request that performs a command of a trace, or of the layout. */
function requestOf(command: Command, mm: string): Request {
  const notifiers = `/mms/${mm}/notifiers`;
  switch (command.op) {
    case 'put_task':
      return { method: 'PUT', path: `/tasks/${command.task}`, body: { rlimit_memlock: 'unlimited' } };
    case 'mmap': {
      const { task, addr, length, prot } = command;
      return post(`/tasks/${task}/mmap`, { addr: hex(addr), length: hex(length), prot });
    }
    case 'exit':
      return post(`/tasks/${command.task}/exit`, { stop_at: command.stop_at });
    case 'register_mmu_notifier': {
      const { id, callbacks, handler: delivery, interrupted } = command;
      return post(notifiers, { id, kind: 'plain', callbacks, delivery, interrupted });
    }
    case 'get_mmu_notifier': {
      const { ops, callbacks, handler: delivery, interrupted } = command;
      return post(`/mms/${mm}/get_notifier`, { ops, callbacks, delivery, interrupted });
    }
    case 'insert_interval_notifier': {
      const { id, start, length, handler: delivery } = command;
      return post(notifiers, { id, kind: 'interval', start: hex(start), length: hex(length), delivery });
    }
    case 'unregister_mmu_notifier':
    case 'remove_interval_notifier':
      return { method: 'DELETE', path: `${notifiers}/${command.id}` };
    case 'put_mmu_notifier':
      return post(`${notifiers}/${command.id}/put`);
    case 'interval_read_begin':
      return post(`${notifiers}/${command.id}/read_begin`);
    case 'interval_read_retry':
    case 'interval_check_retry':
    case 'interval_set_seq':
      return post(`${notifiers}/${command.id}/${command.op.replace('interval_', '')}`, { sequence: command.sequence });
    case 'invalidate': {
      const { event, blockable, only_end, stop_at } = command;
      const range = { start: hex(command.start), end: hex(command.end) };
      return post(`/mms/${mm}/invalidate`, { ...range, event, blockable, only_end, stop_at });
    }
    case 'mmu_call': {
      const { callback, start, end } = command;
      return post(`/mms/${mm}/call`, { callback, start: hex(start), ...(end === undefined ? {} : { end: hex(end) }) });
    }
    case 'ack_mmu_notification':
      return post(`/mms/${mm}/notifications/${command.notification}/ack`, { ret: command.ret });
    case 'resume_operation':
      return post(`/operations/${command.operation}/resume`);
    default:
      throw new Error(`${command.op} is in no trace of the mmu notifiers`);
  }
}

class HttpMmuMachine implements MmuMachine {
  readonly task = TASK;
  private lastSplat = 0;

  constructor(
    private readonly client: Client,
    readonly mm: string,
  ) {}

  async call(command: Command, inside: string | null): Promise<Returned | string> {
    const { method, path, body } = requestOf(command, this.mm);
    const headers = { prefer: 'respond-async', ...(inside === null ? {} : { 'x-notification': inside }) };
    const response = await this.client.send(method, path, body, headers);
    return response.status === 202 ? (response.body.id as string) : returned(response.body);
  }

  async standing(operation: string): Promise<Standing> {
    const { state, blocked_on, result, problem } = await this.client.get(`/operations/${operation}`);
    if (state === 'done') return { state, returned: returned((problem ?? result) as Shown) };
    if (state === 'stopped') return { state };
    const id = notificationIn(blocked_on);
    const callback = id === '' ? null : ((await this.notifications()).find((each) => each.id === id) ?? null);
    return { state: 'blocked', callback };
  }

  private async notifications(): Promise<PendingCallback[]> {
    const { status, body } = await this.client.send('GET', `/mms/${this.mm}/notifications`);
    return status === 200 ? (body.items as PendingCallback[]) : [];
  }

  async pending(): ReturnType<MmuMachine['pending']> {
    const callbacks = await this.notifications();
    if (callbacks.length === 0) return [];
    const operations = await this.client.list('/operations');
    return callbacks.flatMap((callback) => {
      const waiting = operations.find(({ blocked_on }) => notificationIn(blocked_on) === callback.id);
      return waiting === undefined ? [] : [{ operation: waiting.id as string, callback }];
    });
  }

  async splats(): ReturnType<MmuMachine['splats']> {
    const { items } = (await this.client.get(`/dmesg?since=${this.lastSplat}&limit=10000`)) as {
      items: (DmesgLine & { n: number })[];
    };
    this.lastSplat = items.at(-1)?.n ?? this.lastSplat;
    return items.flatMap(splatOf);
  }

  async state(): Promise<State> {
    const { status, body: mm } = await this.client.send('GET', `/mms/${this.mm}`);
    if (status === 404) return { mm_count: 0, subscriptions: false, users: {} };
    const [subs, notifiers] = await Promise.all([
      this.client.get(`/mms/${this.mm}/subscriptions`),
      this.client.list(`/mms/${this.mm}/notifiers`),
    ]);
    const objects = notifiers.filter(({ ops }) => ops !== undefined && ops !== null);
    const users = Object.fromEntries(objects.map(({ id, users: count }) => [id, count as number]));
    if (subs.invalidate_seq === null) return { mm_count: mm.count as number, subscriptions: false, users };
    const intervals = notifiers.filter(({ kind }) => kind === 'interval');
    return {
      mm_count: mm.count as number,
      subscriptions: true,
      has_intervals: subs.has_itree as boolean,
      seq: subs.invalidate_seq as number,
      active_ranges: subs.active_invalidate_ranges as number,
      listeners: subs.list as string[],
      intervals: subs.intervals as string[],
      deferred: subs.deferred as string[],
      interval_seq: Object.fromEntries(intervals.map(({ id, invalidate_seq }) => [id, invalidate_seq as number])),
      users,
    };
  }

  async end(): Promise<void> {
    await this.client.send('DELETE', '');
  }
}

const returned = ({ ret, errno, id, sequence }: Shown): Returned => ({
  ret: ret as number,
  errno: (errno as string | undefined) ?? null,
  fields: { id: id as string, sequence: sequence as number },
});
