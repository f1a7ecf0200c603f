// Settings: environment variables, and flags of the same names in kebab-case, which win. Every error is found before any is reported.

import { isIP } from 'node:net';
import envSchema from 'env-schema';
import { CHECKPOINT_COMMANDS, DEFAULT_JOURNAL_KEEP } from './service/limits.ts';
import { webhookAllowErrors } from './service/webhook-policy.ts';

export interface Settings {
  HOST: string;
  PORT: number;
  /** `file:<path>` or `memory:`. */
  DATABASE_URL: string;
  LOG_LEVEL: string;
  /** null: no authentication. */
  API_TOKEN: string | null;
  ALLOW_ANONYMOUS: boolean;
  /** Host names and networks that webhooks may go to beside loopback. */
  WEBHOOK_ALLOW: string[];
  /** Commands that a host's journal keeps beyond checkpoints. */
  JOURNAL_KEEP: number;
  /** Commands of a host between two of its checkpoints: what a restart executes again at most. */
  CHECKPOINT_COMMANDS: number;
}

/** The service can't start as it is set up: what is wrong, one line each. */
export class StartError extends Error {
  constructor(readonly errors: readonly string[]) {
    super(errors.join('\n'));
    this.name = 'StartError';
  }
}

const text = (rest: object = {}) => ({ type: 'string', ...rest });

const SCHEMA = {
  type: 'object',
  properties: {
    HOST: text({ default: '127.0.0.1', pattern: '^[A-Za-z0-9.:_-]{1,253}$' }),
    PORT: { type: 'integer', default: 7180, minimum: 0, maximum: 65535 },
    DATABASE_URL: text({ default: 'file:./data/emulator.db', pattern: '^(file:.+|memory:)$' }),
    LOG_LEVEL: text({ default: 'info', enum: ['trace', 'debug', 'info', 'warn', 'error', 'fatal', 'silent'] }),
    API_TOKEN: text({ pattern: '^[A-Za-z0-9._~+/-]{1,4096}=*$' }),
    ALLOW_ANONYMOUS: text({ default: '0', enum: ['0', '1', 'false', 'true'] }),
    WEBHOOK_ALLOW: text({ default: '' }),
    JOURNAL_KEEP: { type: 'integer', default: DEFAULT_JOURNAL_KEEP, minimum: 1, maximum: 1_000_000_000 },
    CHECKPOINT_COMMANDS: { type: 'integer', default: CHECKPOINT_COMMANDS, minimum: 1, maximum: 1_000_000_000 },
  },
};
const NAMES = Object.keys(SCHEMA.properties);

/** What an error of a pattern means. */
const EXPECTED: Record<string, string> = {
  HOST: 'must be a host name or an address',
  DATABASE_URL: 'must be file:<path> or memory:',
  API_TOKEN: 'must be letters, digits and . _ ~ + / - (RFC 6750), as it is sent in a header',
};

type Given = Record<string, string>;

/** Throws StartError with every error. */
export function readSettings(env: Readonly<Record<string, string | undefined>>, args: readonly string[]): Settings {
  const flags = readFlags(args);
  const errors = [...flags.errors];
  const given = { ...namedIn(env), ...flags.given };
  const values = checkSchema(given, errors);
  const allowed = String(values.WEBHOOK_ALLOW ?? '')
    .split(',')
    .map((entry) => entry.trim())
    .filter((entry) => entry !== '');
  errors.push(...webhookAllowErrors(allowed).map((error) => `WEBHOOK_ALLOW: ${error}`));
  const settings = {
    ...(values as unknown as Settings),
    API_TOKEN: given.API_TOKEN ?? null,
    ALLOW_ANONYMOUS: ['1', 'true'].includes(String(values.ALLOW_ANONYMOUS)),
    WEBHOOK_ALLOW: allowed,
  };
  if (!isLoopback(settings.HOST) && settings.API_TOKEN === null && !settings.ALLOW_ANONYMOUS)
    errors.push(`HOST: ${settings.HOST} is not loopback: set API_TOKEN, or ALLOW_ANONYMOUS=1 to let everyone in`);
  if (errors.length > 0) throw new StartError(errors);
  return settings;
}

/** An empty variable counts as unset: that is how compose files pass on what is not set. */
const namedIn = (env: Readonly<Record<string, string | undefined>>): Given =>
  Object.fromEntries(NAMES.flatMap((name) => (env[name] === undefined || env[name] === '' ? [] : [[name, env[name]]])));

/** `--name value`, `--name=value`; `--allow-anonymous` alone means 1. */
function readFlags(args: readonly string[]): { given: Given; errors: string[] } {
  const given: Given = {};
  const errors: string[] = [];
  for (let i = 0; i < args.length; i++) {
    const [flag = '', ...rest] = (args[i] as string).split('=');
    const name = flag.slice(2).replaceAll('-', '_').toUpperCase();
    if (!/^--[a-z-]+$/.test(flag) || !NAMES.includes(name)) {
      errors.push(`${flag}: is not a flag (known: ${NAMES.map(flagOf).join(', ')})`);
      continue;
    }
    const next = args[i + 1];
    if (rest.length > 0) given[name] = rest.join('=');
    else if (next !== undefined && !next.startsWith('--')) given[name] = args[++i] as string;
    else if (name === 'ALLOW_ANONYMOUS') given[name] = '1';
    else errors.push(`${flag}: needs a value`);
  }
  return { given, errors };
}

const flagOf = (name: string): string => `--${name.toLowerCase().replaceAll('_', '-')}`;

/** What `--help` prints: each flag, its variable and its default. */
export function usage(): string {
  const line = ([name, schema]: [string, { default?: unknown }]): string =>
    `  ${flagOf(name).padEnd(24)}${name.padEnd(22)}${schema.default ?? ''}`.trimEnd();
  const head = `  ${'flag'.padEnd(24)}${'or variable'.padEnd(22)}default`;
  const lines = Object.entries(SCHEMA.properties as Record<string, { default?: unknown }>).map(line);
  return ['npm start -- [flags]', head, ...lines, 'docs/reference/settings.md says what they do'].join('\n');
}

interface SchemaError {
  instancePath: string;
  keyword: string;
  message?: string;
  params: { allowedValues?: string[] };
}

/** The values with their defaults; what does not fit is added to `errors` and left at its default. */
function checkSchema(given: Given, errors: string[]): Record<string, unknown> {
  const validate = (data: Given): Record<string, unknown> =>
    envSchema({ schema: structuredClone(SCHEMA), data, env: false });
  try {
    return validate(given);
  } catch (error) {
    const found = (error as { errors?: SchemaError[] }).errors;
    if (found === undefined) throw error;
    const sane = { ...given };
    for (const { instancePath, keyword, message, params } of found) {
      const name = instancePath.slice(1);
      const expected =
        keyword === 'pattern'
          ? EXPECTED[name]
          : keyword === 'enum'
            ? `must be one of ${params.allowedValues?.join(', ')}`
            : message;
      errors.push(`${name}: ${name === 'API_TOKEN' ? '' : `'${given[name]}' `}${expected}`);
      delete sane[name];
    }
    return validate(sane);
  }
}

const isLoopback = (host: string): boolean =>
  host === 'localhost' || host === '::1' || (isIP(host) === 4 && host.startsWith('127.'));
