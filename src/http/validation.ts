// Checks requests against their schemas with Ajv and names what does not fit, field by field.

import { Ajv2020, type ErrorObject, type Options, type ValidateFunction } from 'ajv/dist/2020.js';
import type { FastifySchemaCompiler } from 'fastify';
import type { TSchema } from 'typebox';
import { U64_MAX } from '../kernel/lib/u64.ts';
import { ALL_VIOLATIONS_BYTES, MAX_SHOWN_VIOLATIONS } from './limits.ts';
import { type FieldError, violation } from './problems.ts';

const OPTIONS: Options = {
  coerceTypes: false,
  removeAdditional: false,
  useDefaults: false,
  strict: true,
  allowUnionTypes: true,
  verbose: true,
  formats: { u64: (text: string) => !/^(0[xX][0-9a-fA-F]+|[0-9]+)$/.test(text) || BigInt(text) <= U64_MAX },
};

const PLACES = { body: 'body', querystring: 'query', params: 'path', headers: 'header' } as const;
type Place = (typeof PLACES)[keyof typeof PLACES];

/** A body is taken as it is; a query, a path and headers are text, from which numbers are made. */
export function schemaCompiler(): FastifySchemaCompiler<TSchema> {
  const exact = { first: new Ajv2020({ ...OPTIONS }), all: new Ajv2020({ ...OPTIONS, allErrors: true }) };
  const text = {
    first: new Ajv2020({ ...OPTIONS, coerceTypes: true }),
    all: new Ajv2020({ ...OPTIONS, coerceTypes: true, allErrors: true }),
  };
  return ({ schema, httpPart }) => {
    const place: Place = PLACES[(httpPart ?? 'body') as keyof typeof PLACES];
    const ajv = place === 'body' ? exact : text;
    // Compiled at the first request: all of them at once would be most of the time of a start.
    let check: ValidateFunction | undefined;
    let checkAll: ValidateFunction | undefined;
    return (data: unknown) => {
      check ??= ajv.first.compile(schema);
      if (check(data)) return { value: data };
      let errors = check.errors ?? [];
      if (place !== 'body' || isSmall(data)) {
        checkAll ??= ajv.all.compile(schema);
        checkAll(data);
        errors = checkAll.errors ?? errors;
      }
      return { error: violationOf(errors, place) };
    };
  };
}

/** Whether a body is about ALL_VIOLATIONS_BYTES or less. Looks no further than that, and at any depth. */
function isSmall(body: unknown): boolean {
  let room = ALL_VIOLATIONS_BYTES;
  const left = [body];
  while (left.length > 0 && room >= 0) {
    const value = left.pop();
    room -= typeof value === 'string' ? value.length : 1;
    if (typeof value !== 'object' || value === null) continue;
    const items = Object.entries(value);
    room -= items.length;
    if (room < 0) break;
    for (const [key, item] of items) {
      room -= key.length;
      left.push(item);
    }
  }
  return room >= 0;
}

function violationOf(errors: ErrorObject[], place: Place): Error {
  const kept = settleUnions(errors).slice(0, MAX_SHOWN_VIOLATIONS);
  const isNumber = kept.some(
    (error) => error.keyword === 'type' && error.parentSchema?.format === 'u64' && typeof error.data === 'number',
  );
  return violation(
    kept.map((error) => fieldErrorOf(error, place)),
    isNumber
      ? 'Byte addresses and sizes are strings, such as "0x1000" or "4096": a JSON number is exact only up to 2^53'
      : undefined,
  );
}

/** Of every failed union keeps what is wrong with the branch that was most likely meant. */
function settleUnions(errors: ErrorObject[]): ErrorObject[] {
  let kept = errors;
  for (const union of errors.filter((error) => error.keyword === 'anyOf')) {
    const inside = (error: ErrorObject): boolean =>
      error.schemaPath.startsWith(`${union.schemaPath}/`) &&
      (error.instancePath === union.instancePath || error.instancePath.startsWith(`${union.instancePath}/`));
    const branches = new Map<string, ErrorObject[]>();
    for (const error of kept.filter(inside)) {
      const branch = error.schemaPath.slice(union.schemaPath.length + 1).split('/', 1)[0] ?? '';
      branches.set(branch, [...(branches.get(branch) ?? []), error]);
    }
    const chosen = meantBranch([...branches.values()], union);
    kept = kept.filter((error) => error !== union && (!inside(error) || chosen.includes(error)));
    for (const error of chosen) if (!kept.includes(error)) kept.push(error);
  }
  return kept;
}

function meantBranch(branches: ErrorObject[][], union: ErrorObject): ErrorObject[] {
  const depth = union.instancePath.split('/').length;
  const isOfAnother = (error: ErrorObject): boolean =>
    error.keyword === 'const' && error.instancePath.split('/').length <= depth + 1;
  const named = branches.filter((branch) => !branch.some(isOfAnother));
  const isOther = (error: ErrorObject): boolean =>
    (error.keyword === 'type' && error.instancePath === union.instancePath) ||
    isOfAnother(error) ||
    (error.keyword === 'enum' && error.instancePath.split('/').length <= depth + 1 && isTakenElsewhere(error, named));
  const meant = branches.filter((branch) => !branch.some(isOther));
  if (meant.length > 0) {
    const least = Math.min(...meant.map((branch) => distance(branch, union)));
    return meant.filter((branch) => distance(branch, union) === least).flat();
  }
  const reasons = branches.flatMap((branch) => branch.filter(isOther));
  const first = reasons[0];
  if (first === undefined) return [union];
  const typed = reasons.find((reason) => reason.parentSchema?.format === 'u64') ?? first;
  const messages = [...new Set(reasons.map((reason) => messageOf(reason).replace(/^must be /, '')))];
  return [
    {
      ...typed,
      schemaPath: union.schemaPath,
      message: `must be ${messages.join(' or ')}`,
      keyword: typed.keyword === 'type' ? 'type' : 'union',
    },
  ];
}

/** Whether another branch has the field, and takes its value. One that wants no object at all does not have it. */
function isTakenElsewhere({ instancePath }: ErrorObject, branches: ErrorObject[][]): boolean {
  const field = instancePath.split('/').at(-1);
  const isAgainst = (error: ErrorObject): boolean =>
    error.instancePath === instancePath ||
    error.params.additionalProperty === field ||
    (error.keyword === 'type' && instancePath.startsWith(`${error.instancePath}/`));
  return branches.some((branch) => !branch.some(isAgainst));
}

/** How far a value is from a branch: other fields than the branch has count more than wrong values in its fields. */
function distance(branch: ErrorObject[], union: ErrorObject): number {
  const isShape = ({ keyword, instancePath }: ErrorObject): boolean =>
    instancePath === union.instancePath && (keyword === 'required' || keyword === 'additionalProperties');
  return branch.filter(isShape).length * 1000 + branch.length;
}

function fieldErrorOf(error: ErrorObject, place: Place): FieldError {
  const steps = error.instancePath
    .split('/')
    .slice(1)
    .map((step) => step.replaceAll('~1', '/').replaceAll('~0', '~'));
  const below: unknown = error.params.missingProperty ?? error.params.additionalProperty;
  if (typeof below === 'string') steps.push(below.slice(0, 200));
  const field: FieldError = {
    in: place,
    field: steps.join('/') || place,
    message: error.message === undefined || !error.schemaPath.endsWith('/anyOf') ? messageOf(error) : error.message,
  };
  const limit: unknown = error.keyword === 'format' ? `0x${U64_MAX.toString(16)}` : error.params.limit;
  if (typeof limit === 'number' || typeof limit === 'string') field.limit = limit;
  const shown =
    ['number', 'boolean'].includes(typeof error.data) ||
    error.data === null ||
    (typeof error.data === 'string' && error.data.length <= 100);
  if (shown && below === undefined && !field.field.endsWith('secret')) field.value = error.data;
  return field;
}

const ARTICLES: Record<string, string> = {
  integer: 'an integer',
  array: 'an array',
  object: 'an object',
  string: 'a string',
  boolean: 'true or false',
  null: 'null',
  number: 'a number',
};

function messageOf(error: ErrorObject): string {
  const { params, parentSchema } = error;
  switch (error.keyword) {
    case 'required':
      return 'is required';
    case 'additionalProperties':
      return `is not a known field${known(parentSchema)}`;
    case 'type':
      return `must be ${ARTICLES[String(params.type)] ?? String(params.type)}`;
    case 'enum':
      return `must be one of ${(params.allowedValues as unknown[]).map((value) => JSON.stringify(value)).join(', ')}`;
    case 'const':
      return `must be ${JSON.stringify(params.allowedValue)}`;
    case 'minimum':
      return `must be at least ${params.limit}`;
    case 'maximum':
      return `must be at most ${params.limit}`;
    case 'maxItems':
      return `must have at most ${params.limit} entries`;
    case 'minItems':
      return `must have at least ${params.limit} entries`;
    case 'maxLength':
      return `must have at most ${params.limit} characters`;
    case 'minLength':
      return `must have at least ${params.limit} characters`;
    case 'format':
      return 'must be at most 0xffffffffffffffff';
    case 'pattern':
      return parentSchema?.format === 'u64'
        ? 'must be hexadecimal ("0x1000") or decimal ("4096")'
        : `must match ${params.pattern}`;
    default:
      return error.message ?? 'is not valid';
  }
}

function known(schema: ErrorObject['parentSchema']): string {
  const names = Object.keys((schema?.properties ?? {}) as object);
  return names.length === 0 ? ': none is expected' : ` (known: ${names.join(', ')})`;
}
