// What the tests of statuses share: one app, its document and its client, hosts in the states that statuses need.

import type { Test } from 'tap';
import { Client, type Reply, startApp } from '../client.ts';
import { IGNORE, listening, mapped, POLL, pinned, type Step, prepare as send, UNMAP } from '../fixtures.ts';
import type { Operation } from '../validate-response.ts';

export const app = await startApp();
export const client = new Client(app);
export const { operations } = client.document;

export const inV1 = operations.filter(({ path }) => path.startsWith('/v1/'));
export const hasHost = ({ path }: Operation): boolean => path.includes('{host}');
export const documents = ({ operation }: Operation, status: number): boolean => String(status) in operation.responses;
let hosts = 0;

export const prepare = (at: string, ...steps: Step[]): Promise<void> => send(client, at, ...steps);

/** A new host of the template, and the base of its paths. */
export async function machine(options: Record<string, unknown> = {}): Promise<{ host: string; at: string }> {
  const host = `h${++hosts}`;
  return { host, at: await client.newHost(host, options) };
}

/** A host whose container vfio0 died of the BUG that an ignoring driver provokes. */
export async function deadContainer(): Promise<{ host: string; at: string }> {
  const made = await machine();
  await prepare(made.at, mapped, listening(IGNORE), pinned);
  const { status } = await client.ask('POST', `${made.at}/containers/vfio0/unmap_dma`, UNMAP);
  if (status !== 410) throw new Error(`the container lives: ${status}`);
  return made;
}

/** A host that died of a BUG of mm: somebody registered for an address space without users. */
export async function deadHost(): Promise<{ host: string; at: string }> {
  const made = await machine();
  const notifier = { kind: 'plain', callbacks: {} };
  await prepare(made.at, ['POST', '/mms/mm-1/notifiers', { id: 'n1', ...notifier }], ['POST', '/tasks/qemu/exit', {}]);
  const { status, text } = await client.ask('POST', `${made.at}/mms/mm-1/notifiers`, notifier);
  if (status !== 410) throw new Error(`the host lives: ${status} ${text}`);
  return made;
}

/** A host where an unmap waits for a poll handler. */
export async function waitingUnmap(): Promise<{ host: string; at: string; unmap: Reply }> {
  const made = await machine({ notifier_timeout_ms: 600_000 });
  await prepare(made.at, mapped, listening(POLL), pinned);
  const unmap = await client.ask('POST', `${made.at}/containers/vfio0/unmap_dma`, UNMAP, {
    headers: { prefer: 'respond-async' },
  });
  return { ...made, unmap };
}

export const notificationOf = async (at: string): Promise<string> => {
  const { body } = await client.ask('GET', `${at}/devices/mdev0/notifications`);
  return String((body.items as { id: string }[])[0]?.id);
};

/** One refusal of the emulated kernel. */
export interface Case {
  operationId: string;
  status: number;
  errno?: string;
  before?: Step[];
  path?: Record<string, string>;
  body?: unknown;
  headers?: Record<string, string>;
}

export const closedContainer: Step = ['POST', '/containers/vfio0/close', {}];

/** Provokes each refusal on a host of its own, with the example of the operation where no body is given. */
export async function refusals(t: Test, cases: readonly Case[]): Promise<void> {
  for (const { operationId, status, errno, before = [], path = {}, body, headers } of cases) {
    const { host, at } = await machine();
    await prepare(at, ...before);
    const reply = await client.example(operationId, {
      host,
      path,
      body,
      ...(headers === undefined ? {} : { headers }),
    });
    t.match(reply, { status, body: { errno, status, detail: /.{5}/ } }, `${operationId} ${status}`);
    t.ok(Number(reply.body.ret) < 0);
  }
}
