// The emulated machine of a scenario: what is asked of it and what it shows is told line by line, and kept as facts.

import type { Profile } from './scenario.ts';

export interface Reply {
  status: number;
  body: Record<string, unknown>;
}

/** One request to the service: a path from the root of its URL. */
export type Send = (method: string, path: string, body?: object) => Promise<Reply>;

/** First byte of qemu's memory in the template's machine, and what a guest sees at this gfn. */
export const RAM = 0x7f0000000000n;
export const GFN = 0x100;
export const PAGE = 0x1000n;

export const hex = (address: bigint): string => `0x${address.toString(16)}`;
export const addrOf = (page: number): string => hex(RAM + BigInt(page) * PAGE);

export interface TraceEntry {
  n: number;
  event: string;
  op: string;
  [field: string]: unknown;
}

export class Machine {
  /** What the machine showed, by its name in the story. */
  readonly facts: Record<string, unknown> = {};
  private since = 0;

  constructor(
    private readonly send: Send,
    readonly host: string,
    readonly profile: Profile,
    private readonly print: (line: string) => void,
  ) {}

  get path(): string {
    return `/v1/hosts/${this.host}`;
  }

  say(text: string): void {
    this.print(`\n  ${text}`);
  }

  /** A request that the story is about, whatever comes of it. */
  async ask(method: string, path: string, body?: object): Promise<Reply> {
    const reply = await this.send(method, `${this.path}${path}`, body);
    const { ret, errno, state, id } = reply.body;
    const word = errno ?? (reply.status === 202 ? `${id} ${state}` : `ret ${ret}`);
    this.print(`    ${method} ${path} ${body === undefined ? '' : JSON.stringify(body)} -> ${reply.status} ${word}`);
    return reply;
  }

  /** A request that has to succeed. */
  async do(method: string, path: string, body?: object): Promise<Record<string, unknown>> {
    const reply = await this.ask(method, path, body);
    if (reply.status >= 300) throw new Error(`${method} ${path}: ${JSON.stringify(reply.body)}`);
    return reply.body;
  }

  async get(path: string): Promise<Record<string, unknown>> {
    const { status, body } = await this.send('GET', `${this.path}${path}`);
    if (status !== 200) throw new Error(`GET ${path}: ${JSON.stringify(body)}`);
    return body;
  }

  async items(path: string): Promise<Record<string, unknown>[]> {
    return (await this.get(path)).items as Record<string, unknown>[];
  }

  /** Tells a fact of the story, and keeps it. */
  shows(what: string, value: unknown): void {
    if (Object.hasOwn(this.facts, what)) throw new Error(`told twice: ${what}`);
    this.facts[what] = value;
    this.print(`      = ${what}: ${JSON.stringify(value)}`);
  }

  async boot(): Promise<void> {
    this.since = 0;
    await this.send('DELETE', this.path);
    const made = await this.send('PUT', this.path, { template: 'default', profile: this.profile });
    if (made.status !== 201) throw new Error(`PUT ${this.path}: ${JSON.stringify(made.body)}`);
  }

  /** A guest whose memory are the first 16 pages of qemu's. */
  async guest(vm = 'vm0'): Promise<void> {
    await this.do('PUT', `/vms/${vm}`, { task: 'qemu' });
    await this.do('PUT', `/vms/${vm}/memslots/0`, {
      guest_phys_addr: hex(BigInt(GFN) * PAGE),
      memory_size: hex(16n * PAGE),
      userspace_addr: hex(RAM),
    });
  }

  /** A ring of vhost whose descriptors, available and used entries are in pages 0, 1 and 2. */
  async ring(variant: string, dev = 'net'): Promise<void> {
    await this.do('PUT', `/vhost_devs/${dev}`, { variant, nvqs: 1 });
    await this.do('POST', `/vhost_devs/${dev}/set_owner`, { task: 'qemu' });
    await this.do('PUT', `/vhost_devs/${dev}/vqs/0/num`, { task: 'qemu', num: 8 });
    const [desc, avail, used] = [addrOf(0), addrOf(1), addrOf(2)];
    await this.do('PUT', `/vhost_devs/${dev}/vqs/0/addr`, { task: 'qemu', desc, avail, used });
    await this.do('PUT', `/vhost_devs/${dev}/vqs/0/backend`, { task: 'qemu', active: true });
  }

  /** qemu's memory at iova 0, for the mediated device of the template, whose driver ignores DMA_UNMAP. */
  async mdev(): Promise<void> {
    const memory = { iova: '0x0', vaddr: hex(RAM), size: hex(16n * PAGE), flags: ['READ', 'WRITE'] };
    await this.do('POST', '/containers/vfio0/map_dma', { task: 'qemu', ...memory });
    await this.do('POST', '/devices/mdev0/notifiers', {
      id: 'n0',
      events: ['DMA_UNMAP'],
      delivery: { kind: 'builtin', behavior: 'unpin_all' },
    });
  }

  /** Pins or unpins a page of the mediated device, in the form that the kernel has. */
  async pin(op: 'pin_pages' | 'unpin_pages', page: number): Promise<void> {
    const pages = this.profile === '6.18' ? { iova: hex(BigInt(page) * PAGE), npage: 1 } : { user_pfn: [page] };
    await this.do('POST', `/devices/mdev0/${op}`, op === 'pin_pages' ? { ...pages, prot: ['READ', 'WRITE'] } : pages);
  }

  touch(page: number, write = true, task = 'qemu'): Promise<Record<string, unknown>> {
    return this.do('POST', `/tasks/${task}/access`, { addr: addrOf(page), write });
  }

  /** The guest touches a page: FIXED, RETRY and why, or the errno that qemu gets. */
  async guestTouches(gfn: number, write = true): Promise<string> {
    const { body } = await this.ask('POST', '/vms/vm0/faults', { gfn, write });
    if (body.errno !== undefined) return body.errno as string;
    return body.reason === null ? (body.result as string) : `${body.result} ${body.reason}`;
  }

  /** What the guest reaches at a gfn. */
  async spte(gfn: number): Promise<{ pfn: number; writable: boolean } | null> {
    const found = (await this.items('/vms/vm0/sptes')).find((spte) => spte.gfn === gfn);
    return found === undefined ? null : { pfn: found.pfn as number, writable: found.writable as boolean };
  }

  /** What is mapped at a page of a task. */
  async entry(page: number, task = 'qemu'): Promise<{ entry: string; pfn: number | null; writable: boolean }> {
    const [found] = await this.items(`/tasks/${task}/pages?addr=${addrOf(page)}`);
    const pfn = (found?.pfn ?? found?.entry_pfn ?? null) as number | null;
    const flags = (found?.flags ?? []) as string[];
    return { entry: found?.entry as string, pfn, writable: flags.includes('WRITE') };
  }

  async page(pfn: number): Promise<Record<string, unknown>> {
    return this.get(`/pages/${pfn}`);
  }

  /** The areas of the ring that are mapped into the kernel now. */
  async mapped(dev = 'net'): Promise<string[]> {
    return (await this.items(`/vhost_devs/${dev}/vqs/0/maps`)).map(({ area }) => area as string);
  }

  /** What a device with pages to itself has mapped, and for which accesses. */
  async accesses(device: string): Promise<unknown[]> {
    return (await this.items(`/exclusive_devices/${device}/mappings`)).map(({ addr, access }) => ({ addr, access }));
  }

  /** What an operation that was waited for has come to, as guestTouches() says it. */
  async outcomeOf(operation: string): Promise<unknown> {
    const { state, result, problem } = await this.get(`/operations/${operation}`);
    if (problem !== undefined) return (problem as Record<string, unknown>).errno;
    const ended = result as Record<string, unknown> | null;
    if (ended === null) return state;
    return ended.reason === null ? ended.result : `${ended.result} ${ended.reason}`;
  }

  /** Violations that were found, each kind once: whose, where somebody's callback is to blame. */
  async found(codes: RegExp): Promise<string[]> {
    const all = (await this.items('/violations')).filter(({ code }) => codes.test(code as string));
    const named = all.map(({ code, notifier }) => (notifier === null ? `${code}` : `${code} by ${notifier}`));
    return [...new Set(named)].sort();
  }

  /** From here on, told() looks at the trace. */
  async mark(): Promise<void> {
    this.since = (await this.trace()).at(-1)?.n ?? this.since;
  }

  async trace(): Promise<TraceEntry[]> {
    const all: TraceEntry[] = [];
    for (let since = this.since; ; since = all.at(-1)?.n ?? since) {
      const more = (await this.items(`/trace?since=${since}&limit=1000`)) as unknown as TraceEntry[];
      if (more.length === 0) return all;
      all.push(...more);
    }
  }

  /** Callbacks since the mark: who was told what of which event. */
  async told(): Promise<string[]> {
    return (await this.trace())
      .filter(({ event }) => event === 'notify')
      .map(({ notifier, callback, mmu_event }) => `${notifier}.${callback} ${mmu_event}`);
  }

  /** Owners of the EXCLUSIVE ranges since the mark. */
  async owners(): Promise<unknown[]> {
    const started = (await this.trace()).filter(({ event }) => event === 'invalidate_start');
    return started.filter(({ mmu_event }) => mmu_event === 'EXCLUSIVE').map(({ owner }) => owner);
  }

  /** Where in the trace the reader finds what was told. */
  look(what: string): void {
    this.print(`    look at: GET ${this.path}/trace?since=${this.since}  (${what})`);
  }
}
