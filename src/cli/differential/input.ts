// Where the command line finds commands: a page of a journal, JSON lines, a list, or the body of a differential request.

import { readFileSync } from 'node:fs';
import type { TSchema } from 'typebox';
import { ItemBody, itemOf } from '../../http/routes/differential.ts';
import { HostBody, hostOptionsOf } from '../../http/routes/hosts.ts';
import { schemaCompiler } from '../../http/validation.ts';
import type { Item, Plan } from '../../service/differential/item.ts';

/** The file, or what it says of a command, is not what can be run. */
export class BadInput extends Error {}

type Checked = { value: unknown } | { error: Error };
const compile = schemaCompiler() as unknown as (of: {
  schema: TSchema;
  httpPart: string;
}) => (value: unknown) => Checked;
const checkItem = compile({ schema: ItemBody, httpPart: 'body' });
const checkOptions = compile({ schema: HostBody, httpPart: 'body' });

interface Raw {
  items: unknown[];
  options: object;
}

/** Commands of a file. `options` of a host take the place of what the file says. */
export function readPlan(file: string, options: object, profile: string): Plan {
  const raw = rawOf(file);
  const asked = { profile, ...raw.options, ...options };
  const checked = checkOptions(asked);
  if ('error' in checked) throw new BadInput(`${file}: options: ${checked.error.message}`);
  return { items: raw.items.map((item, i) => itemIn(file, item, i)), options: hostOptionsOf(asked as never) };
}

function rawOf(file: string): Raw {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new BadInput(`${file}: ${(error as Error).message}`);
  }
  const whole = parsed(text);
  if (whole !== undefined) return rawOfValue(whole);
  const lines = text.split('\n').flatMap((line, i) => (line.trim() === '' ? [] : [{ line, number: i + 1 }]));
  const items = lines.flatMap(({ line, number }) => {
    const value = parsed(line);
    if (value === undefined) throw new BadInput(`${file}: line ${number} is not JSON`);
    return rawOfValue(value).items;
  });
  return { items, options: {} };
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** A list, a page of a journal, the body of a request, or one item. */
function rawOfValue(value: unknown): Raw {
  if (Array.isArray(value)) return { items: value, options: {} };
  const { items, commands, options } = (value ?? {}) as { items?: unknown; commands?: unknown; options?: object };
  const list = items ?? commands;
  return { items: Array.isArray(list) ? list : [value], options: options ?? {} };
}

function itemIn(file: string, raw: unknown, index: number): Item {
  const isBare = typeof raw === 'object' && raw !== null && 'op' in raw && !('command' in raw);
  const item = isBare ? { command: raw } : raw;
  const checked = checkItem(item);
  if ('error' in checked) throw new BadInput(`${file}: command ${index + 1}: ${checked.error.message}`);
  return itemOf(item as never, index);
}
