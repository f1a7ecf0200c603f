// The vocabulary of the wire: ids, byte addresses, counts, flags, pages of lists. Every message is built from these.

import Type, { type TObject, type TProperties, type TSchema } from 'typebox';
import { PHASES, type Phase } from '../kernel/phase.ts';
import { DEFAULT_PAGE, MAX_ADDRESS_DIGITS, MAX_ARRAY, MAX_CURSOR, MAX_NOTIFICATION_ID, MAX_PAGE } from './limits.ts';

export const ID_PATTERN = '^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$';
export const MAX_PFN = 2 ** 52 - 1;
export const INT_MAX = 2 ** 31 - 1;
export const INT_MIN = -(2 ** 31);
export const UINT_MAX = 2 ** 32 - 1;

/** An object without further fields: an unknown field is refused, or is a defect of ours in a reply. */
export const closed = <P extends TProperties>(properties: P, options: Record<string, unknown> = {}): TObject<P> =>
  Type.Object(properties, { additionalProperties: false, ...options });

export const Id = (description: string, example: string) =>
  Type.String({ pattern: ID_PATTERN, description, examples: [example] });

/** A notification of either kind, or an operation: both are made as `<what>-<n>`. */
export const NotificationId = Type.String({
  pattern: '^[a-zA-Z0-9][a-zA-Z0-9._-]*$',
  maxLength: MAX_NOTIFICATION_ID,
  description: 'Notification or operation',
});

/** A byte address or size in a request: hex in either case, or decimal; 0 .. 2^64 - 1. */
export const U64 = (description: string) =>
  Type.String({ pattern: '^(0[xX][0-9a-fA-F]+|[0-9]+)$', maxLength: MAX_ADDRESS_DIGITS, format: 'u64', description });

/** A byte address or size in a reply. */
export const U64Out = (description: string) => Type.String({ pattern: '^0x(0|[1-9a-f][0-9a-f]{0,15})$', description });

export const Int = (description: string, minimum = Number.MIN_SAFE_INTEGER, maximum = Number.MAX_SAFE_INTEGER) =>
  Type.Integer({ minimum, maximum, description });

/** An int of the kernel's interface. */
export const CInt = (description: string) => Int(description, INT_MIN, INT_MAX);
export const Count = (description: string) => Int(description, 0);
export const PageFrame = (description: string) => Int(description, 0, MAX_PFN);
export const PageFrames = (description: string) =>
  Type.Array(Type.Integer({ minimum: 0, maximum: MAX_PFN }), { maxItems: MAX_ARRAY, description });

export const Names = <const N extends string>(names: readonly N[], description: string) =>
  Type.Unsafe<N>({ type: 'string', enum: [...names], description });

/** Flag names, or the kernel's bit mask as an integer, so that undefined bits can be sent. */
export const Flags = <const N extends string>(names: readonly N[], description: string) =>
  Type.Union(
    [
      Type.Array(Type.Unsafe<N>({ type: 'string', enum: [...names] }), { maxItems: 64 }),
      Type.Integer({ minimum: Number.MIN_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER }),
    ],
    { description },
  );

/** Bytes (RFC 4648 section 4). */
export const Base64 = (description: string) =>
  Type.String({
    pattern: '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$',
    contentEncoding: 'base64',
    description,
  });

export const Nullable = <S extends TSchema>(schema: S, description: string) =>
  Type.Union([schema, Type.Null()], { description });

/** Query of a paged list. */
export const PageQuery = {
  limit: Type.Optional(
    Type.Integer({ minimum: 1, maximum: MAX_PAGE, default: DEFAULT_PAGE, description: 'Items at most' }),
  ),
  cursor: Type.Optional(
    Type.String({ minLength: 1, maxLength: MAX_CURSOR, description: 'next_cursor of the page before' }),
  ),
};

/** Query of a log: entries are numbered, `since` is exclusive. */
export const SinceQuery = {
  since: Type.Optional(
    Type.Integer({
      minimum: 0,
      maximum: Number.MAX_SAFE_INTEGER,
      default: 0,
      description: 'Only entries with a larger n',
    }),
  ),
  limit: PageQuery.limit,
};

export const PageOf = <S extends TSchema>(item: S) =>
  closed({
    items: Type.Array(item),
    next_cursor: Nullable(Type.String(), 'Cursor of the next page; null at the end of the list'),
  });

export const LogOf = <S extends TSchema>(item: S) =>
  closed({
    items: Type.Array(item),
    truncated: Type.Optional(Type.Literal(true, { description: 'Older entries in the span have been dropped' })),
  });

/** Reply of a command: the kernel's return value, what it filled in, and the command's position in the journal. */
export const ReplyOf = <P extends TProperties>(fields: P, options: Record<string, unknown> = {}) =>
  closed(
    {
      ret: Int('Return value of the emulated kernel'),
      ...fields,
      seq: Count("Position of the command in the host's journal"),
      warnings: Type.Optional(
        Type.Array(Type.String(), { description: 'What the kernel would only have warned about' }),
      ),
    },
    options,
  );

/** Where an operation of the memory side stops. */
export const StopAt = Type.Optional(
  Type.Unsafe<Phase>({
    title: 'StopAt',
    type: 'string',
    enum: [...PHASES],
    description: 'Phase at which it stops next; the reply is then 202 with the operation',
  }),
);

/** Who makes a call that belongs to no task: its locks count. */
export const Caller = Type.Optional(Id('Task that makes the call, with the locks that it holds', 'qemu'));

/** Path parameters; each names an object of the default host in its example. */
export const Path = {
  host: Id('Host: one emulated Linux machine', 'default'),
  task: Id('Task', 'qemu'),
  container: Id('VFIO container', 'vfio0'),
  group: Id('VFIO group', '26'),
  device: Id('Mediated device', 'mdev0'),
  notifier: Id('Notifier', 'n0'),
  fault: Id('Fault rule', 'f0'),
  pfn: Type.Integer({ minimum: 0, maximum: MAX_PFN, description: 'Host page frame number', examples: [100] }),
  gup: Id('Pages that were got with get_user_pages()', 'g1'),
  file: Id('File', 'f1'),
  mm: Id('Address space', 'mm-1'),
  mmuNotifier: Id('Notifier of an mm', 'n1'),
  vm: Id('Virtual machine', 'vm0'),
  slot: Type.Integer({ minimum: 0, maximum: INT_MAX, description: 'Memslot', examples: [0] }),
  vhostDev: Id('vhost device', 'v0'),
  vq: Type.Integer({ minimum: 0, maximum: INT_MAX, description: 'Virtqueue', examples: [0] }),
  exclusiveDevice: Id('Device that can have pages to itself', 'gpu0'),
  grant: Id('Grant of such a device', 'g0'),
  pci: Id('vfio-pci device', 'nic0'),
  ioeventfd: Id('ioeventfd of a vfio-pci device', 'kick0'),
  region: Type.Integer({
    minimum: 0,
    maximum: INT_MAX,
    description: 'Region: 0 to 5 a BAR, 6 the ROM, 8 VGA',
    examples: [0],
  }),
};
