// Valid request bodies made from their schemas, with the place of every field in them, and random ones.

import fc from 'fast-check';

export interface Schema {
  type?: string | string[];
  properties?: Record<string, Schema>;
  required?: string[];
  items?: Schema;
  minItems?: number;
  maxItems?: number;
  anyOf?: Schema[];
  enum?: unknown[];
  const?: unknown;
  pattern?: string;
  format?: string;
  contentEncoding?: string;
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
}

export type Step = string | number;

/** A value in a sample: where it is, and what it may be. */
export interface Place {
  path: Step[];
  schema: Schema;
  required: boolean;
}

export interface Sample {
  value: unknown;
  places: Place[];
}

const ID = '^[a-zA-Z0-9]';

function textFor({ format, contentEncoding, pattern = '', minLength = 0 }: Schema): string {
  if (contentEncoding === 'base64') return 'AQI=';
  if (format === 'u64') return '0x1000';
  if (pattern.startsWith('^https?')) return 'http://127.0.0.1:1/';
  if (pattern.startsWith('^(mutex')) return 'mutex:a1';
  if (pattern.startsWith('^(ok|')) return 'take_lock:a1';
  return pattern.startsWith(ID) ? 'a1' : 'x'.repeat(Math.max(1, minLength));
}

/** Samples of a schema that between them take every branch of every union in it; all optional fields are set. */
export function samplesOf(schema: Schema, path: Step[] = [], required = true): Sample[] {
  const here: Place = { path, schema, required };
  const single = (value: unknown): Sample[] => [{ value, places: [here] }];
  if (schema.anyOf !== undefined)
    return schema.anyOf.flatMap((branch) =>
      samplesOf(branch, path, required).map(({ value, places }) => ({ value, places: [here, ...places.slice(1)] })),
    );
  if (schema.const !== undefined) return single(schema.const);
  if (schema.enum !== undefined) return single(schema.enum[0]);
  switch (schema.type) {
    case 'string':
      return single(textFor(schema));
    case 'integer':
      return single(Math.max(1, schema.minimum ?? 1));
    case 'boolean':
      return single(true);
    case 'null':
      return single(null);
    case 'array': {
      const length = Math.min(Math.max(1, schema.minItems ?? 1), schema.maxItems ?? 1);
      if (length === 0 || schema.items === undefined) return single([]);
      return samplesOf(schema.items, [...path, 0]).map(({ value, places }) => ({
        value: new Array(Math.max(length, schema.minItems ?? 1)).fill(value),
        places: [here, ...places.map((place) => ({ ...place, required: false }))],
      }));
    }
    default:
      return objectSamples(schema, path, here);
  }
}

function objectSamples(schema: Schema, path: Step[], here: Place): Sample[] {
  const fields = Object.entries(schema.properties ?? {}).map(([name, field]) => ({
    name,
    samples: samplesOf(field, [...path, name], schema.required?.includes(name) ?? false),
  }));
  const count = Math.max(1, ...fields.map(({ samples }) => samples.length));
  return Array.from({ length: count }, (_, i) => {
    const chosen = fields.map(({ name, samples }) => ({
      name,
      sample: samples[Math.min(i, samples.length - 1)] as Sample,
    }));
    return {
      value: Object.fromEntries(chosen.map(({ name, sample }) => [name, sample.value])),
      places: [here, ...chosen.flatMap(({ sample }) => sample.places)],
    };
  });
}

/** A copy with another value at a place, or without it. */
export function changed(value: unknown, path: readonly Step[], change: { to: unknown } | 'removed'): unknown {
  const [step, ...rest] = path;
  if (step === undefined) return change === 'removed' ? undefined : change.to;
  if (Array.isArray(value)) return value.map((item, i) => (i === step ? changed(item, rest, change) : item));
  const { [step]: inner, ...others } = value as Record<Step, unknown>;
  if (rest.length === 0 && change === 'removed') return others;
  return { ...others, [step]: changed(inner, rest, change) };
}

/** Values that a schema may refuse: of every type, and beyond every bound. */
export function suspects({ minimum, maximum, maxItems, minItems, maxLength, items, anyOf }: Schema): unknown[] {
  const found: unknown[] = [null, true, 1.5, 7, -1, 'neither this nor that', '', [], {}, ['?'], [[]], { '?': 1 }];
  found.push('18446744073709551616', '0x10000000000000000', '-1', '0x', '1e3', ' 1');
  if (minimum !== undefined && minimum > Number.MIN_SAFE_INTEGER) found.push(minimum - 1);
  if (maximum !== undefined) found.push(maximum < Number.MAX_SAFE_INTEGER ? maximum + 1 : 2 ** 53);
  if (maxLength !== undefined) found.push('1'.repeat(maxLength + 1));
  const item = items === undefined ? undefined : samplesOf(items)[0]?.value;
  if (maxItems !== undefined && item !== undefined) found.push(new Array(maxItems + 1).fill(item));
  if (minItems !== undefined && minItems > 0) found.push(new Array(minItems - 1).fill(item));
  for (const branch of anyOf ?? []) found.push(...suspects(branch).slice(18));
  return found;
}

const IDS = [
  'gpu0',
  'g0',
  'qemu',
  'vfio0',
  '26',
  'mdev0',
  'n0',
  't1',
  'vfio1',
  '27',
  'mdev1',
  'f0',
  'mm-1',
  'n1',
  'f1',
  'g1',
];
const LOCKS = ['mutex:a1', 'mutex:a2', 'page_lock:100', 'spinlock:a1'];
const BEHAVIOURS = ['ok', 'ignore', 'eagain', 'ebusy', 'sleep', 'take_lock:a1', 'take_lock:spinlock:a1'];
const EDGES = [
  '0',
  '0x0',
  '0x1000',
  '0x2000',
  '0x10000',
  '0x7f0000000000',
  '0x7f0000001000',
  '0x800',
  '0x8000000000000000',
  '0xfffffffffffff000',
  '0xffffffffffffffff',
];

/** Random values of a schema, mostly about things that exist. */
export function arbitraryOf(schema: Schema): fc.Arbitrary<unknown> {
  if (schema.anyOf !== undefined) return fc.oneof(...schema.anyOf.map(arbitraryOf));
  if (schema.const !== undefined) return fc.constant(schema.const);
  if (schema.enum !== undefined) return fc.constantFrom(...schema.enum);
  switch (schema.type) {
    case 'string':
      if (schema.format === 'u64')
        return fc.oneof(fc.constantFrom(...EDGES), fc.bigInt(0n, 2n ** 64n - 1n).map(String));
      if (schema.contentEncoding === 'base64')
        return fc.uint8Array({ maxLength: 9 }).map((bytes) => Buffer.from(bytes).toString('base64'));
      if (schema.pattern?.startsWith(ID)) return fc.constantFrom(...IDS);
      if (schema.pattern?.startsWith('^(mutex')) return fc.constantFrom(...LOCKS);
      if (schema.pattern?.startsWith('^(ok|')) return fc.constantFrom(...BEHAVIOURS);
      return schema.pattern?.startsWith('^https?')
        ? fc.constant('http://127.0.0.1:1/')
        : fc.string({ minLength: 1, maxLength: 8 });
    case 'integer': {
      const { minimum = 0, maximum = 100 } = schema;
      const small = [0, 1, 2, 16, 17, 512, 513, -1].filter((n) => n >= minimum && n <= maximum);
      return fc.oneof(
        fc.constantFrom(minimum, maximum, ...small),
        fc.integer({ min: Math.max(minimum, -9), max: Math.min(maximum, 600) }),
      );
    }
    case 'boolean':
      return fc.boolean();
    case 'null':
      return fc.constant(null);
    case 'array': {
      const items = arbitraryOf(schema.items ?? {});
      return fc.array(items, { minLength: schema.minItems ?? 0, maxLength: Math.min(schema.maxItems ?? 4, 4) });
    }
    default:
      return fc.record(
        Object.fromEntries(Object.entries(schema.properties ?? {}).map(([name, field]) => [name, arbitraryOf(field)])),
        { requiredKeys: schema.required ?? [] },
      );
  }
}
