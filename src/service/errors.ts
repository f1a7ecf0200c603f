// What the service refuses before the emulated kernel is asked. One class per answer; http/ maps each to a status.

import { QUARANTINE_RETRY_AFTER_S, RETRY_AFTER_S } from './limits.ts';

/** 404. */
export class NoSuchHost extends Error {
  constructor(readonly host: string) {
    super(`no host '${host}'`);
    this.name = 'NoSuchHost';
  }
}

/** 409: the host was created with other options. */
export class HostExists extends Error {
  constructor(readonly host: string) {
    super(`host '${host}' exists and was created with other options`);
    this.name = 'HostExists';
  }
}

export type UnavailableReason = 'draining' | 'recovering' | 'quarantined';

/** 503 with Retry-After. */
export class HostUnavailable extends Error {
  readonly retry_after_s: number;

  constructor(
    /** Null where the whole service refuses. */
    readonly host: string | null,
    readonly reason: UnavailableReason,
    detail?: string,
  ) {
    super(detail ?? `${host === null ? 'the service' : `host '${host}'`} is ${reason}`);
    this.name = 'HostUnavailable';
    this.retry_after_s = reason === 'quarantined' ? QUARANTINE_RETRY_AFTER_S : RETRY_AFTER_S;
  }
}

/** 422: the key was used with another request. */
export class IdempotencyMismatch extends Error {
  constructor(readonly key: string) {
    super(`Idempotency-Key '${key}' was used with another request`);
    this.name = 'IdempotencyMismatch';
  }
}

/** 503: a bound of the service is reached. */
export class TooMany extends Error {
  readonly retry_after_s = RETRY_AFTER_S;

  constructor(
    /** What there are too many of. */
    readonly what: string,
    readonly limit: number,
  ) {
    super(`${what}: ${limit} are the most at one time`);
    this.name = 'TooMany';
  }
}

/** 409: the journal of a host does not begin with its first command any more. */
export class JournalIncomplete extends Error {
  constructor(
    readonly host: string,
    readonly oldest: number | null,
  ) {
    const kept = oldest === null ? 'nothing is kept' : `the oldest that is kept is ${oldest}`;
    super(`the journal of host '${host}' does not begin with its first command: ${kept}`);
    this.name = 'JournalIncomplete';
  }
}

/** 413: more than a differential run takes. */
export class TooManyCommands extends Error {
  constructor(
    /** What there are too many of. */
    readonly what: string,
    readonly limit: number,
  ) {
    super(`a differential run takes at most ${limit} ${what}`);
    this.name = 'TooManyCommands';
  }
}
