// From the wire's values to the kernel's: byte addresses, bit masks, integers, cursors. And back: bigint is printed as hex.

import { hex } from '../kernel/lib/u64.ts';
import type { Fields, Value } from '../kernel/outcome.ts';
import { badField } from './problems.ts';

/** A byte address or size that the schema has checked already. */
export const u64 = (text: string): bigint => BigInt(text);

/** The page that a byte address lies in. */
export const pageOf = (address: bigint): number => Number(address >> 12n);

/** The low 32 bits, as the kernel's interface takes a flags word. */
export const u32 = (n: number): number => n >>> 0;

/** JSON knows -0, the kernel does not. */
export const int = (n: number): number => n + 0;

/** A mask from flag names or from an integer. */
export function mask(value: readonly string[] | number, bits: Readonly<Record<string, number>>): number {
  if (typeof value === 'number') return u32(value);
  return value.reduce((word, name) => word | (bits[name] ?? 0), 0);
}

/** An unsigned long from names of its bits or from an integer: all its bits count. */
export const word = (value: readonly string[] | number, bits: Readonly<Record<string, number>>): number =>
  typeof value === 'number' ? int(value) : mask(value, bits);

/** A number from one of its names or from itself. */
export const numberOf = (value: string | number, names: Readonly<Record<string, number>>): number =>
  typeof value === 'number' ? int(value) : (names[value] ?? 0);

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };
export type JsonFields = { [key: string]: Json };

/** A value of the kernel as JSON: every bigint is a byte address or size. An array of numbers is passed on as it is. */
export function printed(value: Value): Json {
  if (typeof value === 'bigint') return hex(value);
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return typeof value[0] === 'number' ? (value as number[]) : value.map(printed);
  return printedFields(value);
}

export function printedFields(fields: Fields): JsonFields {
  const json: JsonFields = {};
  for (const key in fields) json[key] = printed(fields[key] as Value);
  return json;
}

/** Where the next page of a list begins: the key of the last item of this one. */
export type Key = string | number | bigint;

const KEY_TAGS = { string: 's', number: 'n', bigint: 'u' } as const;
type KeyKind = keyof typeof KEY_TAGS;
type KeyOf<K extends KeyKind> = K extends 'string' ? string : K extends 'number' ? number : bigint;

export function encodeCursor(key: Key): string {
  const tagged = [KEY_TAGS[typeof key as KeyKind], typeof key === 'bigint' ? hex(key) : key];
  return Buffer.from(JSON.stringify(tagged)).toString('base64url');
}

/**
 * The key inside a cursor; null without a cursor.
 * 400: not a cursor of this kind of list.
 */
export function decodeCursor<K extends KeyKind>(cursor: string | undefined, kind: K): KeyOf<K> | null {
  if (cursor === undefined) return null;
  const tagged = parseJson(Buffer.from(cursor, 'base64url').toString());
  if (Array.isArray(tagged) && tagged.length === 2 && tagged[0] === KEY_TAGS[kind]) {
    const [, key] = tagged as [string, unknown];
    if (kind === 'bigint' && typeof key === 'string' && /^0x[0-9a-f]{1,16}$/.test(key)) return BigInt(key) as KeyOf<K>;
    if (kind === 'number' && Number.isSafeInteger(key)) return key as KeyOf<K>;
    if (kind === 'string' && typeof key === 'string') return key as KeyOf<K>;
  }
  throw badField('query', 'cursor', 'is not a next_cursor of this list');
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
