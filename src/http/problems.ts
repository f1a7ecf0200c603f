// The one error catalogue: every "no" that a client can get, as an RFC 9457 problem.

import { ERRNO, type ErrnoName } from '../kernel/errno.ts';

/** 409 and 410, 413 by name; every other errno of the kernel is 422. */
const STATUS_OF_ERRNO: Partial<Record<ErrnoName, number>> = {
  EEXIST: 409,
  EBUSY: 409,
  EDEADLK: 409,
  EIO: 410,
  E2BIG: 413,
};

export const statusOfErrno = (errno: ErrnoName): number => STATUS_OF_ERRNO[errno] ?? 422;

const ERRNO_TITLES: Record<ErrnoName, string> = {
  EPERM: 'Operation not permitted',
  ENOENT: 'No such entry',
  ESRCH: 'No such process',
  EINTR: 'Interrupted',
  EIO: 'Dead after an emulated BUG',
  E2BIG: 'Too many entries',
  EBADF: 'Closed',
  EAGAIN: 'Try again',
  ENOMEM: 'Out of memory, or over the memory lock limit',
  EACCES: 'Permission denied',
  EFAULT: 'Bad address',
  EBUSY: 'Busy',
  EEXIST: 'Exists already',
  ENODEV: 'No such device',
  EINVAL: 'Invalid argument',
  ENOTTY: 'Not supported by the back end',
  ENOSPC: 'No entry left',
  EDEADLK: 'Would deadlock',
  EOVERFLOW: 'Value too large',
  EBADFD: 'Bad state',
  EOPNOTSUPP: 'Not supported in this profile',
  EHWPOISON: 'Poisoned page',
};

/** Everything that is not the emulated kernel's answer. */
export const CAUSES = {
  schema: { status: 400, title: 'Request does not fit the schema' },
  json: { status: 400, title: 'Malformed JSON' },
  request: { status: 400, title: 'Malformed request' },
  unauthorized: { status: 401, title: 'Missing or wrong token' },
  'not-found': { status: 404, title: 'Not found' },
  'method-not-allowed': { status: 405, title: 'Method not allowed' },
  'host-exists': { status: 409, title: 'Host exists with other options' },
  'journal-incomplete': { status: 409, title: 'The journal does not begin with its first command' },
  'too-many-commands': { status: 413, title: 'More than a differential run takes' },
  'body-too-large': { status: 413, title: 'Body too large' },
  'content-type': { status: 415, title: 'Content type not supported' },
  'idempotency-mismatch': { status: 422, title: 'Idempotency-Key used with another request' },
  unavailable: { status: 503, title: 'Not available now' },
  'too-many': { status: 503, title: 'A bound of the service is reached' },
  defect: { status: 500, title: 'Defect of the emulator' },
} as const;

export type Cause = keyof typeof CAUSES;

/** One violation of the schema; `field` is the path of the value, steps separated by "/". */
export interface FieldError {
  in: 'body' | 'query' | 'path' | 'header';
  field: string;
  message: string;
  limit?: number | string;
  value?: unknown;
}

export interface ProblemBody {
  type: string;
  title: string;
  status: number;
  detail: string;
  instance: string;
  [extension: string]: unknown;
}

const typeOf = (slug: string): string => `/docs/problems#${slug}`;

/** A problem that is thrown; the error handler adds the request id and sends it. */
export class Problem extends Error {
  constructor(
    readonly kind: Cause,
    detail: string,
    readonly extensions: Record<string, unknown> = {},
    readonly headers: Record<string, string> = {},
  ) {
    super(detail);
    this.name = 'Problem';
  }
}

export function problemOfCause(
  cause: Cause,
  detail: string,
  instance: string,
  extensions: Record<string, unknown> = {},
): ProblemBody {
  const { status, title } = CAUSES[cause];
  return { type: typeOf(cause), title, status, detail, instance, ...extensions };
}

export function problemOfErrno(
  errno: ErrnoName,
  detail: string,
  instance: string,
  extensions: Record<string, unknown> = {},
): ProblemBody {
  return {
    type: typeOf(errno.toLowerCase()),
    title: ERRNO_TITLES[errno],
    status: statusOfErrno(errno),
    detail,
    instance,
    errno,
    ret: -ERRNO[errno],
    ...extensions,
  };
}

/** EIO of a device that is there: a refusal like any other, where EIO else means that something has died. */
export const problemOfIoError = (
  detail: string,
  instance: string,
  extensions: Record<string, unknown> = {},
): ProblemBody => ({
  ...problemOfErrno('EIO', detail, instance, extensions),
  title: 'I/O error',
  status: 422,
});

export const violation = (errors: FieldError[], hint?: string): Problem =>
  new Problem('schema', errors.map((error) => `${error.in}: ${error.field} ${error.message}`).join('; '), {
    errors,
    ...(hint === undefined ? {} : { hint }),
  });

export const badField = (where: FieldError['in'], field: string, message: string): Problem =>
  violation([{ in: where, field, message }]);

/** The catalogue as rows, for the page behind the problems' `type`. */
export function catalogue(): { slug: string; status: number; title: string }[] {
  const causes = Object.entries(CAUSES).map(([slug, { status, title }]) => ({ slug, status, title }));
  const errnos = (Object.keys(ERRNO) as ErrnoName[]).map((errno) => ({
    slug: errno.toLowerCase(),
    status: statusOfErrno(errno),
    title: `${errno} (${-ERRNO[errno]}): ${ERRNO_TITLES[errno]}`,
  }));
  return [...causes, ...errnos].sort((a, b) => a.status - b.status || a.slug.localeCompare(b.slug));
}
