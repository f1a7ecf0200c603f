// The bytes of commands, outcomes and sections: every type comes back as it went in, and equal outcomes have equal digests.

import assert from 'node:assert/strict';
import { Decoder } from 'cbor-x';
import fc from 'fast-check';
import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import type { Outcome, Value } from '../../src/kernel/outcome.ts';
import {
  asStored,
  decode,
  decodeAnswer,
  decodeCall,
  digestOf,
  encode,
  encodeAnswer,
  encodeCall,
} from '../../src/service/codec.ts';

const seed = Number(process.env.SEED ?? Date.now() % 2 ** 31);
console.log(`# seed ${seed}`);

const roundTrip = (value: unknown): unknown => decode(encode(value));

t.test('a bigint stays a bigint, small ones and those beyond 2^63 too', async (t) => {
  const edges = [0n, 1n, 23n, 24n, 255n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n - 1n, 2n ** 63n];
  for (const n of [...edges, 2n ** 64n - 4096n, 2n ** 64n - 1n, -1n, -(2n ** 63n)]) t.equal(roundTrip(n), n);
});

t.test('a number stays a number, beyond 2^32 and below zero too', async (t) => {
  const edges = [0, 1, 23, 24, 255, 256, 65535, 65536, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 52 - 1, 2 ** 53 - 1, 1.5];
  for (const n of edges) {
    t.equal(roundTrip(n), n);
    if (n !== 0) t.equal(roundTrip(-n), -n);
  }
});

t.test('typed arrays keep their class, their values and only their own part of the buffer', async (t) => {
  const arrays = [
    new Uint8Array([1, 2, 255]),
    new Uint16Array([1, 65535]),
    new Uint32Array([0, 2 ** 32 - 1]),
    new Int32Array([-1, 2 ** 31 - 1]),
    new Float64Array([1.5, 2 ** 52]),
    new BigUint64Array([0n, 2n ** 64n - 1n]),
    new Uint32Array(0),
    new Uint32Array([1, 2, 3, 4]).subarray(1, 3),
  ];
  for (const array of arrays) {
    const back = roundTrip({ array }) as { array: typeof array };
    t.equal(back.array.constructor, array.constructor);
    t.strictSame([...back.array], [...array]);
    t.equal(back.array.byteLength, array.byteLength);
  }
});

t.test('what is decoded does not share memory with the bytes', async (t) => {
  const bytes = encode({ column: new Uint8Array([1, 2, 3]) });
  const { column } = decode(bytes) as { column: Uint8Array };
  bytes.fill(0);
  t.strictSame([...column], [1, 2, 3]);
});

t.test('Maps keep their keys, their order and their difference from objects', async (t) => {
  const map = new Map<unknown, unknown>([
    ['b', 1],
    ['a', { x: 1n }],
    [7, new Map([[1n, [null, true]]])],
  ]);
  const back = roundTrip({ map, object: { b: 1, a: 2 } }) as { map: typeof map; object: object };
  t.ok(back.map instanceof Map);
  t.strictSame([...back.map.keys()], ['b', 'a', 7]);
  t.strictSame(back.map, map);
  t.notOk(back.object instanceof Map);
  t.strictSame(Object.keys(back.object), ['b', 'a']);
});

t.test('a field that is undefined is absent, at any depth; nothing else is touched', async (t) => {
  const value = { a: undefined, b: [{ c: undefined, d: 1 }], m: new Map([['k', { e: undefined, f: 0n }]]), n: null };
  const back = roundTrip(value) as Record<string, unknown>;
  t.notOk('a' in back);
  t.strictSame(back, { b: [{ d: 1 }], m: new Map([['k', { f: 0n }]]), n: null });
  t.ok('a' in value, 'the value itself is left as it was');
  const clean = { a: [1, { b: 2n }], m: new Map([[1, new Uint8Array(1)]]) };
  t.equal(asStored(clean), clean, 'a value without such a field is not copied');
});

t.test('bytes that are cut short or followed by more are refused', async (t) => {
  const bytes = encode({ a: [1n, 'text', 2 ** 40] });
  for (let end = 0; end < bytes.length; end++) t.throws(() => decode(bytes.subarray(0, end)), `${end} bytes`);
  t.throws(() => decode(Buffer.concat([bytes, bytes])));
});

t.test('a call and an answer come back whole', async (t) => {
  const command: Command = {
    op: 'unmap_dma',
    container: 'vfio0',
    task: null,
    iova: 0n,
    size: 2n ** 64n - 4096n,
    flags: 2,
    argsz: null,
    bitmap: { pgsize: 4096n, size: 2n ** 63n },
  };
  const call = { at: 1_700_000_000_000, request_id: 'r', notification: null, command };
  t.strictSame(decodeCall(encodeCall(call)), call);
  const outcome: Outcome = {
    ret: -22,
    fields: {},
    refusal: { errno: 'EINVAL', detail: 'd' },
    finished: [],
    emitted: [],
  };
  const answer = { seq: 3, outcome, operation: null, request_id: 'r', profile: '5.15' };
  t.strictSame(decodeAnswer(encodeAnswer({ ...answer, replayed: true } as typeof answer)), answer);
});

const value: fc.Arbitrary<Value> = fc.letrec<{ value: Value }>((tie) => ({
  value: fc.oneof(
    { maxDepth: 4 },
    fc.constant(null),
    fc.boolean(),
    fc.maxSafeInteger(),
    fc.bigInt(0n, 2n ** 64n - 1n),
    fc.string(),
    fc.array(tie('value'), { maxLength: 5 }),
    fc.dictionary(fc.stringMatching(/^[a-z_]{1,8}$/), tie('value'), { maxKeys: 5, noNullPrototype: true }),
  ),
})).value;

t.test('any value comes back the same', async (t) => {
  const property = fc.property(value, (v) => assert.deepStrictEqual(roundTrip(v), v));
  t.doesNotThrow(() => fc.assert(property, { seed, numRuns: 1000 }));
});

const outcomeOf = (fields: Outcome['fields']): Outcome => ({ ret: 0, fields, finished: [], emitted: [] });

/** The same value with the fields of every object put together in the opposite order. */
function reversed(v: Value): Value {
  if (Array.isArray(v)) return v.map(reversed);
  if (typeof v !== 'object' || v === null) return v;
  return Object.fromEntries(
    Object.entries(v)
      .reverse()
      .map(([key, field]) => [key, reversed(field)]),
  );
}

t.test('the digest does not depend on the order in which an outcome was put together', async (t) => {
  const property = fc.property(value, (v) =>
    assert.deepStrictEqual(digestOf(outcomeOf({ v: reversed(v) })), digestOf(outcomeOf({ v }))),
  );
  t.doesNotThrow(() => fc.assert(property, { seed, numRuns: 1000 }));
});

t.test('different outcomes have different digests', async (t) => {
  const refused: Outcome = {
    ...outcomeOf({}),
    ret: -14,
    refusal: { errno: 'EFAULT', detail: 'd', at_index: 1, left: { phys_pfn: [7] } },
  };
  const outcomes: Outcome[] = [
    outcomeOf({}),
    { ...outcomeOf({}), ret: 1 },
    { ...outcomeOf({}), created: true },
    { ...outcomeOf({}), created: false },
    { ...outcomeOf({}), parked: 'unmap_dma-1' },
    { ...outcomeOf({}), finished: ['a'] },
    { ...outcomeOf({}), emitted: ['a'] },
    { ...outcomeOf({}), finished: ['a', 'b'] },
    outcomeOf({ size: 0n }),
    outcomeOf({ size: 0 }),
    outcomeOf({ size: '0' }),
    outcomeOf({ size: null }),
    outcomeOf({ size: [] }),
    outcomeOf({ size: {} }),
    outcomeOf({ size: [[]] }),
    outcomeOf({ size: ['a', 1] }),
    outcomeOf({ size: { a: 1 } }),
    outcomeOf({ size: [['a', 1]] }),
    outcomeOf({ size: [{ a: 1 }] }),
    refused,
    { ...refused, refusal: { errno: 'EINVAL', detail: 'd', at_index: 1, left: { phys_pfn: [7] } } },
    { ...refused, refusal: { errno: 'EFAULT', detail: 'd', at_index: 2, left: { phys_pfn: [7] } } },
    { ...refused, refusal: { errno: 'EFAULT', detail: 'd', at_index: 1, left: { phys_pfn: [8] } } },
  ];
  const digests = outcomes.map((outcome) => Buffer.from(digestOf(outcome)).toString('hex'));
  t.equal(new Set(digests).size, outcomes.length);
  for (const digest of digests) t.match(digest, /^[0-9a-f]{32}$/);
});

t.test('wording is no part of the digest', async (t) => {
  const refused = (detail: string, hint?: string): Outcome => ({
    ...outcomeOf({}),
    ret: -22,
    refusal: { errno: 'EINVAL', detail, hint },
  });
  t.strictSame(digestOf(refused('one', 'try this')), digestOf(refused('two')));
});

t.test('a plain CBOR reader understands the bytes', async (t) => {
  const plain = new Decoder({ useRecords: false, mapsAsObjects: true });
  t.strictSame(plain.decode(encode({ iova: 2n ** 63n, npage: 2 ** 40 })), { iova: 2n ** 63n, npage: 2 ** 40 });
});
