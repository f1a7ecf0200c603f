// The bytes of commands, outcomes and checkpoint sections: CBOR, with every JavaScript type kept apart.
// A bigint is always an 8-byte CBOR integer and a number never is, so 0n comes back as 0n and 2^40 as a number.

import { createHash } from 'node:crypto';
import { Encoder } from 'cbor-x';
import type { Call } from '../kernel/command.ts';
import type { Outcome, Value } from '../kernel/outcome.ts';

/** Plain maps instead of cbor-x's own records: the bytes of a row can be read by any CBOR library. */
const cbor = new Encoder({ useRecords: false, mapsAsObjects: true, copyBuffers: true, tagUint8Array: true });

/** Bytes of a value in the form of asStored(). */
export function encode(value: unknown): Uint8Array {
  return cbor.encode(asStored(value));
}

/** Throws where the bytes are not one whole CBOR value. */
export function decode(bytes: Uint8Array): unknown {
  return cbor.decode(bytes);
}

export const encodeCall = (call: Call): Uint8Array => encode(call);
export const decodeCall = (bytes: Uint8Array): Call => decode(bytes) as Call;

/** The reply that is kept under an idempotency key. */
export interface KeptAnswer {
  seq: number;
  outcome: Outcome;
  operation: string | null;
  request_id: string;
  profile: string;
}

export const encodeAnswer = ({ seq, outcome, operation, request_id, profile }: KeptAnswer): Uint8Array =>
  encode({ seq, outcome, operation, request_id, profile });
export const decodeAnswer = (bytes: Uint8Array): KeptAnswer => decode(bytes) as KeptAnswer;

/** UTF-8 has no half of a surrogate pair: in its place a reader finds U+FFFD. */
const LONE_SURROGATE = /\p{Surrogate}/gu;

/** The same value as it will be decoded: no field is undefined, all text is well-formed. Copied only as far as that changes it. */
export function asStored<T>(value: T): T {
  return stripped(value) as T;
}

function stripped(value: unknown): unknown {
  if (typeof value === 'string') return value.replace(LONE_SURROGATE, '\ufffd');
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return value;
  if (Array.isArray(value)) return strippedItems(value);
  if (value instanceof Map) {
    for (const [key, item] of value) {
      if (stripped(item) !== item) return new Map([...value].map(([k, v]) => [k, stripped(v)]));
      if (stripped(key) !== key) throw new TypeError('a key of a Map is not as it would be stored');
    }
    return value;
  }
  return strippedFields(value as Record<string, unknown>);
}

function strippedItems(items: unknown[]): unknown[] {
  let copy: unknown[] | null = null;
  for (let i = 0; i < items.length; i++) {
    const item = items[i];
    if (typeof item !== 'object' && typeof item !== 'string') continue;
    const kept = stripped(item);
    if (kept === item) continue;
    copy ??= items.slice();
    copy[i] = kept;
  }
  return copy ?? items;
}

function strippedFields(fields: Record<string, unknown>): Record<string, unknown> {
  let copy: Record<string, unknown> | null = null;
  for (const key of Object.keys(fields)) {
    const field = fields[key];
    const kept = stripped(field);
    if (kept === field && field !== undefined) continue;
    copy ??= { ...fields };
    if (kept === undefined) delete copy[key];
    else copy[key] = kept;
  }
  return copy ?? fields;
}

/**
 * First 16 bytes of SHA-256 of what a command did, in a form whose order does not depend on how the outcome was built.
 * Left out: `detail` and `hint`, whose wording may be improved without a change of semantics.
 */
export function digestOf(outcome: Outcome): Uint8Array {
  const { ret, created, fields, refusal, parked, finished, emitted, detached } = outcome;
  const refused =
    refusal === undefined ? null : [refusal.errno, refusal.at_index ?? null, canonical(refusal.left ?? null)];
  const form = [ret, created ?? null, canonical(fields), refused, parked ?? null, finished, emitted];
  if (detached !== undefined) form.push(detached);
  return createHash('sha256').update(cbor.encode(form)).digest().subarray(0, 16);
}

/** A value as nested arrays: [items] for an array, [key, value, ...] in the order of the keys for an object. */
function canonical(value: Value): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return [value.some((item) => typeof item === 'object') ? value.map(canonical) : value];
  const form: unknown[] = [];
  for (const key of Object.keys(value).sort()) {
    const field = value[key];
    if (field !== undefined) form.push(key, canonical(field));
  }
  return form;
}

export const digestsEqual = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** SHA-256 of a section whose last change the kernel does not know, to see whether it has changed. */
export const hashOf = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('base64');
