// Statuses of every operation: unknown query, unknown host, body that is too large, token, draining, idempotency key, dead container.

import type { Test } from 'tap';
import { BODY_LIMIT } from '../../../src/http/limits.ts';
import { Client, exampleBody, startApp } from '../client.ts';
import type { Operation } from '../validate-response.ts';
import { client, deadContainer, deadHost, documents, hasHost, inV1, machine, operations } from './machine.ts';

export async function everyOperation(t: Test): Promise<void> {
  await t.test('400: every operation refuses an unknown query parameter by name', async (t) => {
    for (const found of inV1) {
      const url = client.urlOf(found);
      const { status, body } = await client.ask(
        found.method.toUpperCase(),
        `${url}${url.includes('?') ? '&' : '?'}bogus=1`,
        exampleBody(found),
      );
      t.equal(status, 400, found.operation.operationId);
      t.match(body, { detail: /bogus/, errors: [{ in: 'query', field: 'bogus' }] });
    }
  });

  await t.test('404: every operation on an unknown host names the host', async (t) => {
    for (const found of inV1.filter((each) => hasHost(each) && documents(each, 404))) {
      const { status, body } = await client.example(found.operation.operationId, { host: 'nowhere' });
      t.equal(status, 404, found.operation.operationId);
      t.match(body, { title: 'Not found', detail: "no host 'nowhere'" });
      t.notOk('errno' in body);
    }
  });

  await t.test('413 and 415: a body that is too large or not JSON', async (t) => {
    const large = `{"x":"${'x'.repeat(BODY_LIMIT)}"}`;
    for (const { operation } of inV1.filter(({ operation }) => operation.requestBody !== undefined)) {
      const tooLarge = await client.example(operation.operationId, { host: 'default', raw: large });
      t.match(tooLarge, { status: 413, body: { limit: BODY_LIMIT } }, operation.operationId);
      const text = await client.example(operation.operationId, {
        raw: 'iova=0',
        headers: { 'content-type': 'application/x-www-form-urlencoded' },
      });
      t.match(text, { status: 415, body: { accept: 'application/json' } }, operation.operationId);
    }
  });

  await t.test('401: every operation but the open ones wants the token, when one is set', async (t) => {
    const locked = await startApp({ API_TOKEN: 'secret-token' });
    const stranger = new Client(locked, client.document);
    t.teardown(() => locked.close());
    for (const { operation } of operations) {
      const { status, headers, body } = await stranger.example(operation.operationId);
      if (!documents({ operation } as Operation, 401)) t.equal(status, 200, operation.operationId);
      else
        t.match(
          { status, headers, body },
          { status: 401, headers: { 'www-authenticate': /^Bearer/ }, body: { title: /token/ } },
          operation.operationId,
        );
    }
    for (const page of ['/docs', '/openapi.json', '/docs/problems'])
      t.equal((await stranger.ask('GET', page)).status, 200, page);
    for (const authorization of ['Bearer secret-toke', 'Bearer secret-token2', 'Basic secret-token', 'Bearer'])
      t.equal(
        (await stranger.ask('GET', '/v1/hosts', undefined, { headers: { authorization } })).status,
        401,
        authorization,
      );
    for (const authorization of ['Bearer secret-token', 'bearer secret-token'])
      t.equal(
        (await stranger.ask('GET', '/v1/hosts', undefined, { headers: { authorization } })).status,
        200,
        authorization,
      );
    for (const seen of stranger.seen) client.seen.add(seen);
  });

  await t.test('503: while draining, every operation under /v1 says when to try again', async (t) => {
    const draining = await startApp();
    const late = new Client(draining, client.document);
    await draining.service.stop();
    for (const { operation } of inV1) {
      const { status, headers, body } = await late.example(operation.operationId);
      t.match(
        { status, headers, body },
        { status: 503, headers: { 'retry-after': /^\d+$/ }, body: { reason: 'draining' } },
        operation.operationId,
      );
    }
    t.match(await late.ask('GET', '/readyz'), { status: 503, body: { ready: false, draining: true } });
    t.equal((await late.ask('GET', '/healthz')).status, 200);
    await draining.close();
    for (const seen of late.seen) client.seen.add(seen);
  });

  await t.test('422: an idempotency key that was used with another request', async (t) => {
    const { host, at } = await machine();
    const headers = { 'idempotency-key': 'used' };
    await client.ask('POST', `${at}/tasks/qemu/adjust_locked_vm`, { delta: 1 }, { headers });
    for (const found of inV1.filter((each) => each.method === 'post' && documents(each, 422))) {
      if (found.operation.operationId === 'adjust_locked_vm') continue;
      const { status, body } = await client.example(found.operation.operationId, { host, headers });
      t.match({ status, body }, { status: 422, body: { type: /#idempotency-mismatch$/ } }, found.operation.operationId);
    }
    const { status } = await client.ask('POST', `${at}/tasks/qemu/adjust_locked_vm`, { delta: 2 }, { headers });
    t.equal(status, 422);
  });

  await t.test('410: whatever changes a dead container', async (t) => {
    const { host, at } = await deadContainer();
    for (const found of inV1.filter(({ operation }) => /^Errnos: .*EIO/m.test(operation.description))) {
      const { operationId } = found.operation;
      const path = { notifier: 'n0', notification: 'notification-1' };
      const body = operationId === 'put_device' ? { container: 'vfio0' } : undefined;
      const device = operationId === 'put_device' ? 'mdev1' : 'mdev0';
      const { status, body: problem } = await client.example(operationId, { host, path: { ...path, device }, body });
      t.match({ status, problem }, { status: 410, problem: { errno: 'EIO', ret: -5 } }, operationId);
    }
    t.match((await client.ask('GET', `${at}/containers/vfio0`)).body, { dead: { text: /.+/, where: /.+/ } });
    t.equal((await client.ask('GET', `${at}/devices/mdev0`)).status, 200);
    const { body } = await client.ask('GET', `${at}/dmesg`);
    t.ok((body.items as { kind: string }[]).some(({ kind }) => kind === 'BUG'));
  });

  await t.test('410: every command on a dead host; GETs work', async (t) => {
    const { host, at } = await deadHost();
    for (const found of inV1.filter((each) => documents(each, 410))) {
      const { operationId } = found.operation;
      const { status, body } = await client.example(operationId, { host });
      t.match({ status, body }, { status: 410, body: { errno: 'EIO', ret: -5, hint: /reset/ } }, operationId);
    }
    t.match((await client.ask('GET', at)).body, { state: 'dead', dead: { text: /.+/, where: /.+/ } });
    t.equal((await client.ask('GET', `${at}/mms/mm-1/subscriptions`)).status, 200);
    t.equal((await client.ask('POST', `${at}/reset`, {})).status, 200);
    t.equal((await client.ask('POST', `${at}/tasks/qemu/exit`, {})).status, 200);
  });
}
