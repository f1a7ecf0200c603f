// An operation as its route declares it: what Fastify checks a request with, and what the OpenAPI document says about it.

import Type, { type TObject, type TProperties, type TSchema } from 'typebox';
import type { ErrnoName } from '../kernel/errno.ts';
import { MAX_IDEMPOTENCY_KEY, MAX_NOTIFICATION_ID, MAX_REQUEST_ID } from './limits.ts';

/** Groups of operations in the order in which they are shown: the first operation is the one to try first. */
export const TAGS = {
  dma: 'DMA mappings of a container, and the pinned pages in them',
  pins: 'Pin and unpin, as a vendor driver calls them',
  notifiers: 'DMA_UNMAP notifiers: who is told before a mapping goes away',
  devices: 'Mediated devices',
  containers: 'VFIO containers',
  groups: 'VFIO groups',
  tasks: 'Tasks and their memory',
  pages: 'Host pages',
  files: 'Files and their page cache',
  mms: 'Address spaces',
  'mmu-notifiers': 'mmu notifiers: who is told before page tables of an address space change',
  kvm: 'Virtual machines: what they map of the host for their guests',
  vhost: 'vhost devices, whose rings the kernel maps',
  'vfio-pci': 'vfio-pci devices: BARs that tasks map, gated by the memory enable bit',
  exclusive: 'Devices that have pages of a process to themselves until somebody else looks at them',
  operations: 'Operations that wait',
  faults: 'Failures that the next call of an operation is to meet',
  'looking-in': 'Kernel log, trace, journal, invariants, leaks',
  hosts: 'Hosts: one emulated Linux machine each',
  differential: 'The same commands under several kernels',
  process: 'The service itself',
} as const;
export type Tag = keyof typeof TAGS;

export interface Success {
  status: number;
  description: string;
  schema?: TSchema;
  contentType?: string;
  example?: unknown;
}

export interface RefusalExample {
  errno: ErrnoName | 'NOT_FOUND';
  detail: string;
  hint?: string;
  at_index?: number;
  [left: string]: unknown;
}

export interface Spec<P extends TProperties, Q extends TProperties, B extends TSchema> {
  operationId: string;
  tag: Tag;
  summary: string;
  description: string;
  params?: P;
  query?: Q;
  body?: B;
  /** Body of the curl line and of "Try it out". */
  bodyExample?: unknown;
  /** 'command' is journaled and may carry X-Notification; 'host' changes a whole host; 'read' changes nothing. */
  does: 'command' | 'host' | 'read' | 'process';
  /** May wait: with Prefer: respond-async it is 202 with the operation. */
  waits?: boolean;
  success: Success[];
  /** What the emulated kernel may answer instead. */
  refusals?: readonly ErrnoName[];
  /** Statuses beyond those that follow from the rest. */
  alsoStatuses?: readonly number[];
  refusalExample?: RefusalExample;
}

export type AnySpec = Spec<TProperties, TProperties, TSchema>;

/** What a route hands to Fastify; the document is made from `x-spec`. */
export interface RouteSchema<P extends TProperties, Q extends TProperties, B extends TSchema> {
  params: TObject<P>;
  querystring: TObject<Q>;
  body: B;
  operationId: string;
  tags: string[];
  summary: string;
  description: string;
  'x-spec': AnySpec;
}

const text = (pattern: string, maxLength: number, description: string) =>
  Type.Optional(Type.String({ pattern, minLength: 1, maxLength, description }));

const REQUEST_ID = {
  'x-request-id': text(
    '^[A-Za-z0-9._~:/+=@-]+$',
    MAX_REQUEST_ID,
    'Name of this request in log, journal, dmesg and problems; made when absent',
  ),
};
const IN_HANDLER = {
  'x-notification': text(
    '^[A-Za-z0-9._-]+$',
    MAX_NOTIFICATION_ID,
    'The call is made inside the handler of this notification',
  ),
};
const IDEMPOTENCY = {
  'idempotency-key': text(
    '^[\\x21-\\x7e]+$',
    MAX_IDEMPOTENCY_KEY,
    'A retry with the same key and body gets the first reply again',
  ),
};
const PREFER = {
  prefer: Type.Optional(
    Type.String({ maxLength: 1024, description: '`respond-async`: answer 202 as soon as the operation waits' }),
  ),
};

/** Headers that an operation reads, in lower case as Node has them. Others are let through. */
export function headersOf(spec: AnySpec, isPost: boolean): TSchema {
  return Type.Object({
    ...REQUEST_ID,
    ...(spec.does === 'command' ? IN_HANDLER : {}),
    ...(isPost && (spec.does === 'command' || spec.does === 'host') ? IDEMPOTENCY : {}),
    ...(spec.waits === true ? PREFER : {}),
  });
}

/** The schema of a route from the description of its operation. Types of params, query and body follow from it. */
export function describe<
  P extends TProperties = Record<never, never>,
  Q extends TProperties = Record<never, never>,
  B extends TSchema = TSchema,
>(spec: Spec<P, Q, B>): RouteSchema<P, Q, B> {
  const { params, query, body, operationId, tag, summary, description } = spec;
  const schema = {
    ...(params === undefined ? {} : { params: Type.Object(params, { additionalProperties: false }) }),
    ...(spec.does === 'process' ? {} : { querystring: Type.Object(query ?? {}, { additionalProperties: false }) }),
    ...(body === undefined ? {} : { body }),
    operationId,
    tags: [tag],
    summary,
    description,
    'x-spec': spec as unknown as AnySpec,
  };
  return schema as RouteSchema<P, Q, B>;
}
