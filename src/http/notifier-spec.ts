// A notifier block as a request describes it: in its own registration and in the shortcut that makes a device.

import Type, { type Static } from 'typebox';
import type { Delivery, NotifierSpec } from '../kernel/command.ts';
import { MAX_SECRET, MAX_TIMEOUT_MS, MAX_URL } from './limits.ts';
import { int, numberOf, word } from './parse.ts';
import { CInt, closed, Flags, Id, INT_MAX, Int, Names } from './schema.ts';

const EVENTS = { DMA_UNMAP: 1 };
/** VFIO_IOMMU_NOTIFY and VFIO_GROUP_NOTIFY. */
const TYPES = { IOMMU: 0, GROUP: 1 };

export const NotifierType = Type.Union(
  [Names(['IOMMU', 'GROUP'], 'Notifier type by name'), Int('Notifier type by number')],
  {
    description: 'IOMMU (0, the default), GROUP (1), or any number',
  },
);

const DeliveryBody = Type.Union(
  [
    closed({ kind: Type.Literal('poll') }),
    closed({
      kind: Type.Literal('webhook'),
      url: Type.String({
        pattern: '^https?://[^\\s]+$',
        maxLength: MAX_URL,
        description: 'Where notifications are POSTed',
      }),
      secret: Type.String({
        minLength: 1,
        maxLength: MAX_SECRET,
        description: 'Key of the signature (Standard Webhooks)',
      }),
    }),
    closed({
      kind: Type.Literal('builtin'),
      behavior: Names(
        ['unpin_all', 'unpin_one_reference', 'ignore', 'unpin_on_nth', 'stop', 'repin', 'slow'],
        'What the vendor driver does in its handler',
      ),
      n: Type.Optional(Int('The attempt at which unpin_on_nth unpins (default 1)', 1, INT_MAX)),
      delay_ms: Type.Optional(Int('How long slow takes (default 0)', 0, MAX_TIMEOUT_MS)),
    }),
  ],
  { description: 'How the handler is called' },
);

const fields = {
  id: Type.Optional(Id('Id of the block; made when absent. The same id again is the same block', 'n0')),
  events: Flags(['DMA_UNMAP'], 'The events word'),
  type: Type.Optional(NotifierType),
  priority: Type.Optional(CInt('Higher ones are called first (default 0)')),
  delivery: DeliveryBody,
};

export const NotifierBody = closed(fields);

/** As a command has it, where type and priority are never absent. */
export const CommandNotifier = closed({
  ...fields,
  explicit: Type.Optional(Type.Boolean({ description: 'Type or priority were named by the caller' })),
});

export const notifierType = (type: string | number): number => numberOf(type, TYPES);

function deliveryOf(body: Static<typeof DeliveryBody>): Delivery {
  if (body.kind !== 'builtin') return body;
  const { kind, behavior, n = 1, delay_ms = 0 } = body;
  return { kind, behavior, n, delay_ms: int(delay_ms) };
}

/** Of a command: that it was named is a field of its own. */
export function commandNotifierOf({ explicit, ...body }: Static<typeof CommandNotifier>): NotifierSpec {
  const { explicit: _, ...spec } = notifierOf(body);
  return explicit === true ? { ...spec, explicit } : spec;
}

export function notifierOf({ id, events, type, priority, delivery }: Static<typeof NotifierBody>): NotifierSpec {
  return {
    ...(id === undefined ? {} : { id }),
    events: word(events, EVENTS),
    type: notifierType(type ?? 'IOMMU'),
    priority: int(priority ?? 0),
    ...(type === undefined && priority === undefined ? {} : { explicit: true }),
    delivery: deliveryOf(delivery),
  };
}
