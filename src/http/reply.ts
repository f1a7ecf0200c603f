// From what the service answers to what the client gets: one function for each kind of reply.

import type { FastifyReply, FastifyRequest } from 'fastify';
import type { Command } from '../kernel/command.ts';
import type { Host } from '../kernel/host.ts';
import type { Fields, Outcome, Refusal, Value } from '../kernel/outcome.ts';
import { viewOperation } from '../kernel/view/host.ts';
import { contextOf } from './context.ts';
import { encodeCursor, type Json, type JsonFields, type Key, printed, printedFields } from './parse.ts';
import { type ProblemBody, problemOfCause, problemOfErrno, problemOfIoError } from './problems.ts';

const hostOf = (request: FastifyRequest): string => (request.params as { host: string }).host;

/** Executes a command on the path's host and replies with its outcome, or with 202 where it waits and the client does not. */
export async function submit(request: FastifyRequest, reply: FastifyReply, command: Command): Promise<unknown> {
  const host = hostOf(request);
  const answer = await request.server.service.submit(host, command, contextOf(request));
  const { outcome, seq } = answer;
  request.logged = { host, op: command.op, seq, ret: outcome.ret, errno: outcome.refusal?.errno };
  if (answer.replayed) reply.header('idempotent-replayed', 'true');
  if (answer.operation !== null) return accepted(request, reply, host, answer.operation, seq);
  if (outcome.refusal !== undefined)
    return sendProblem(
      reply,
      refused(outcome.refusal, command.op, answer.request_id, { profile: answer.profile, seq }),
    );
  reply.code(outcome.created === true ? 201 : 200);
  return done(outcome, seq);
}

const done = ({ ret, fields }: Outcome, seq: number): JsonFields => ({ ret, ...printedFields(fields), seq });

/** 202 with the operation. It may be gone by now (a late replay, a reset): then the reply says what is known of it without. */
async function accepted(
  request: FastifyRequest,
  reply: FastifyReply,
  host: string,
  id: string,
  seq: number,
): Promise<unknown> {
  reply.code(202).header('location', `/v1/hosts/${host}/operations/${id}`);
  if (contextOf(request).respond_async) reply.header('preference-applied', 'respond-async');
  const shown = await showOperation(request, (state) => viewOperation(state, id)).catch(() => ({
    id,
    kind: id.replace(/-\d+$/, ''),
  }));
  return { ret: 0, ...shown, seq };
}

/** Lets a stopped operation go on and replies with it, as this command has left it; later commands may have gone further. */
export async function submitStep(request: FastifyRequest, reply: FastifyReply, command: Command): Promise<unknown> {
  const body = await submit(request, reply, command);
  if (reply.statusCode !== 200 || reply.sent) return body;
  const left = body as JsonFields;
  const shown = await showOperation(request, (state) => viewOperation(state, String(left.id))).catch(() => left);
  if (left.state === 'done') return { ...shown, ...left };
  const { problem: _, ...running } = shown as JsonFields;
  return { ...running, finished_seq: null, result: null, ...left };
}

/** A refusal of the emulated kernel as a problem. What the kernel fills in although it refuses stands beside it. */
export function refused(refusal: Refusal, op: string, instance: string, about: Record<string, unknown>): ProblemBody {
  const { errno, detail, hint, at_index, left } = refusal;
  const extensions = {
    op,
    ...about,
    ...(at_index === undefined ? {} : { at_index }),
    ...(hint === undefined ? {} : { hint }),
    ...(left === undefined ? {} : printedFields(left)),
  };
  if (refusal.io_error === true) return problemOfIoError(detail, instance, extensions);
  return errno === 'NOT_FOUND'
    ? problemOfCause('not-found', detail, instance, extensions)
    : problemOfErrno(errno, detail, instance, extensions);
}

export function sendProblem(reply: FastifyReply, problem: ProblemBody): FastifyReply {
  return reply.code(problem.status).type('application/problem+json').send(problem);
}

/** Runs a view over the path's host. */
export async function show(request: FastifyRequest, view: (host: Host) => Value): Promise<Json> {
  const host = hostOf(request);
  const { seq, value } = await request.server.service.read(host, view);
  request.logged = { host, seq };
  return printed(value);
}

/** Looks at an object before a command about it; NoSuchObject is then a 404 that changes nothing. */
export const look = async (request: FastifyRequest, view: (host: Host) => Fields): Promise<Fields> =>
  (await request.server.service.read(hostOf(request), view)).value;

/** Runs a view that returns one page of a list. */
export async function showPage(
  request: FastifyRequest,
  view: (host: Host) => { items: Fields[]; next: Key | null },
): Promise<{ items: Json; next_cursor: string | null }> {
  const host = hostOf(request);
  const { seq, value } = await request.server.service.read(host, view);
  request.logged = { host, seq };
  return { items: printed(value.items), next_cursor: value.next === null ? null : encodeCursor(value.next) };
}

/** Entries of a log, and whether older ones of the span have been dropped. */
export function logBody({ items, truncated }: { items: Fields[]; truncated: boolean }): {
  items: Json;
  truncated?: true;
} {
  return { items: printed(items), ...(truncated ? { truncated: true } : {}) };
}

/** Aborted when the client hangs up or the server stops: what waits only for this reply may end. */
export function endOf(request: FastifyRequest, reply: FastifyReply): AbortSignal {
  const gone = new AbortController();
  reply.raw.once('close', () => gone.abort());
  return AbortSignal.any([gone.signal, request.server.stopping]);
}

/** An operation; what a finished one was refused with becomes a whole problem. */
export async function showOperation(request: FastifyRequest, view: (host: Host) => Fields): Promise<JsonFields> {
  const host = hostOf(request);
  const { value } = await request.server.service.read(host, (state) => ({
    operation: view(state),
    profile: state.profile.name,
  }));
  request.logged = { ...request.logged, host };
  return operationBody(value.operation, value.profile);
}

/** One page of operations. */
export async function showOperations(
  request: FastifyRequest,
  view: (host: Host) => { items: Fields[]; next: Key | null },
): Promise<{ items: Json; next_cursor: string | null }> {
  const host = hostOf(request);
  const { value } = await request.server.service.read(host, (state) => ({
    ...view(state),
    profile: state.profile.name,
  }));
  request.logged = { host };
  const items = value.items.map((operation) => operationBody(operation, value.profile));
  return { items, next_cursor: value.next === null ? null : encodeCursor(value.next) };
}

function operationBody(operation: Fields, profile: string): JsonFields {
  const { problem, ...rest } = printedFields(operation);
  if (problem === undefined) return rest;
  const { errno, detail, ret: _, io_error, ...extensions } = problem as JsonFields;
  const refusal = {
    errno: errno as Refusal['errno'],
    detail: String(detail),
    ...(io_error === true ? { io_error } : {}),
  };
  const about = { profile, seq: rest.seq, ...extensions };
  return {
    ...rest,
    problem: refused(refusal, String(rest.kind), String(rest.request_id), about) as unknown as JsonFields,
  };
}

/** Reads a span of a log. */
export async function showLog<T extends object>(
  request: FastifyRequest,
  span: (host: Host) => { items: T[]; truncated: boolean },
): Promise<{ items: Fields[]; truncated: boolean }> {
  const host = hostOf(request);
  const { seq, value } = await request.server.service.read(host, span);
  request.logged = { host, seq };
  return value as unknown as { items: Fields[]; truncated: boolean };
}

/** The kernel log as dmesg prints it: seconds since the epoch instead of since boot. */
export function printLines(reply: FastifyReply, { items }: { items: Fields[] }): string {
  reply.type('text/plain; charset=utf-8');
  return items
    .flatMap(({ at, text }) =>
      String(text)
        .split('\n')
        .map((line) => `[${(Number(at) / 1000).toFixed(3)}] ${line}\n`),
    )
    .join('');
}

/** One page of items that are sorted by id. */
export function pageOf(
  items: Fields[],
  after: string | null,
  limit: number,
): { items: Json; next_cursor: string | null } {
  const rest = items.filter(({ id }) => after === null || String(id) > after);
  const shown = rest.slice(0, limit);
  const last = shown.at(-1);
  const next_cursor = last === undefined || shown.length === rest.length ? null : encodeCursor(String(last.id));
  return { items: printed(shown), next_cursor };
}
