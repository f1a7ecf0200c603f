// The OpenAPI document and the pages for people: committed, complete, true, and usable in a browser.

import { accessSync, constants, readFileSync } from 'node:fs';
import { chromium } from 'playwright-core';
import t from 'tap';
import { documentText } from '../../src/http/openapi.ts';
import { catalogue } from '../../src/http/problems.ts';
import { Client, exampleBody, startApp } from './client.ts';
import { Document, type OpenApi } from './validate-response.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());
const { document } = client;

t.test('openapi/openapi.json is what the routes say', (t) => {
  const committed = readFileSync(new URL('../../openapi/openapi.json', import.meta.url), 'utf8');
  t.ok(committed === documentText(app.http.swagger()), 'up to date: otherwise run `npm run openapi`');
  t.end();
});

t.test('it is served as it is committed', async (t) => {
  const { status, body } = await client.ask('GET', '/openapi.json');
  t.equal(status, 200);
  t.same(body, JSON.parse(documentText(app.http.swagger())));
});

t.test(
  'every operation says what it is, with a curl line and two examples that are true to their schemas',
  async (t) => {
    const ids = document.operations.map(({ operation }) => operation.operationId);
    t.equal(new Set(ids).size, ids.length, 'operation ids are unique');
    const tags = document.root.tags.map(({ name }) => name);
    for (const found of document.operations) {
      // The service refuses requests where nothing else gets its turn for seconds.
      await new Promise((resolve) => setImmediate(resolve));
      const { operation, method } = found;
      const { operationId, summary, description } = operation;
      t.ok(summary.length > 3 && description.length > 20, operationId);
      t.match(
        description,
        /```sh\ncurl -s .*http:\/\/127\.0\.0\.1:7180\/[^\n]*\n```$/,
        `${operationId}: one line of curl`,
      );
      t.notMatch(description, /\{[a-z]+\}/, `${operationId}: every parameter of the line has a value`);
      t.ok(operation.tags.length === 1 && tags.includes(operation.tags[0] as string), `${operationId}: one known tag`);
      const examples = Object.entries(operation.responses).flatMap(([status, response]) =>
        Object.entries(document.resolve(response).content ?? {}).flatMap(([type, media]) =>
          Object.values(media.examples ?? {}).map(({ value }) => ({ status: Number(status), type, value })),
        ),
      );
      for (const { status, type, value } of examples)
        t.equal(document.violation(found, status, type, value), null, `${operationId} ${status}: the example fits`);
      t.ok(
        examples.some(({ status }) => status < 300),
        `${operationId}: an example of success`,
      );
      const canRefuse = Object.keys(operation.responses).some((status) => Number(status) >= 400);
      if (canRefuse)
        t.ok(
          examples.some(({ status }) => status >= 400),
          `${operationId}: an example of a refusal`,
        );
      if (operation.requestBody !== undefined)
        t.equal(document.bodyViolation(found, exampleBody(found)), null, `${operationId}: the body fits`);
      t.equal(
        operation.requestBody !== undefined,
        ['post', 'put', 'patch'].includes(method),
        `${operationId}: a body exactly where the method has one`,
      );
    }
  },
);

t.test('every path in it is a route', (t) => {
  for (const { path, method } of document.operations)
    t.ok(
      app.http.hasRoute({ method: method.toUpperCase() as 'GET', url: path.replace(/\{(\w+)\}/g, ':$1') }),
      `${method} ${path}`,
    );
  t.end();
});

t.test('the first operation shown is map_dma, and its example works on a new database', async (t) => {
  const [first] = document.operations;
  t.equal(first?.operation.operationId, 'map_dma');
  t.equal(document.root.tags[0]?.name, first?.operation.tags[0]);
  t.match(await client.example('map_dma'), { status: 200, body: { ret: 0 } });
});

t.test('the type of every problem leads to its entry in the catalogue', async (t) => {
  const page = await client.ask('GET', '/docs/problems');
  t.match(page.headers['content-type'], /html/);
  for (const { slug } of catalogue()) t.match(page.text, `id="${slug}"`);
  const { body } = await client.ask('GET', '/v1/hosts/nowhere');
  const [path, slug] = String(body.type).split('#');
  t.equal(path, '/docs/problems');
  t.ok(catalogue().some((entry) => entry.slug === slug));
});

t.test('a path that leads out of the pages is a 404', async (t) => {
  for (const path of ['/index.html', '..%2f..%2fpackage.json', 'a%2f..%2f..%2fpackage.json', 'a%5c..%5cb'])
    t.match(await client.ask('GET', `/docs/static/${path}`), { status: 404, body: { title: 'Not found' } }, path);
});

t.test('the pages work over plain http by address: nothing is upgraded to https', async (t) => {
  for (const page of ['/docs', '/docs/', '/docs/problems']) {
    const { headers, status } = await client.ask('GET', page);
    t.equal(status, 200, page);
    const csp = headers['content-security-policy'];
    t.match(csp, /default-src 'self'/, page);
    t.notMatch(csp, /upgrade-insecure-requests/, page);
    t.notOk(headers['strict-transport-security'], page);
  }
  const { text } = await client.ask('GET', '/docs/');
  for (const [, asset = ''] of text.matchAll(/(?:src|href)="([^"]+)"/g))
    t.equal((await client.ask('GET', new URL(asset, 'http://x/docs/').pathname)).status, 200, asset);
});

const BROWSERS = [process.env.CHROMIUM, '/usr/bin/chromium', '/usr/bin/chromium-browser', '/usr/bin/google-chrome'];

function installedBrowser(): string | undefined {
  return BROWSERS.find((path) => {
    try {
      if (path !== undefined) accessSync(path, constants.X_OK);
      return path !== undefined;
    } catch {
      return false;
    }
  });
}

t.test('Swagger UI in a browser: the first "Try it out" works with the example it shows', async (t) => {
  const executablePath = installedBrowser();
  if (executablePath === undefined) {
    t.comment(`no browser is installed (${BROWSERS.slice(1).join(', ')}; CHROMIUM names another): not opened`);
    t.equal(process.env.CHROMIUM, undefined, 'a browser that CHROMIUM names is there');
    return;
  }
  const own = await startApp();
  t.teardown(() => own.close());
  const url = await own.http.listen({ host: '127.0.0.1', port: 0 });
  const browser = await chromium.launch({ executablePath, args: ['--no-sandbox'] });
  t.teardown(() => browser.close());
  const page = await browser.newPage();
  const errors: string[] = [];
  page.on('pageerror', (error) => errors.push(error.message));
  await page.goto(`${url}/docs`);
  const operation = page.locator('.opblock').first();
  await operation.locator('.opblock-summary-control').click();
  await operation.locator('.try-out__btn').click();
  await operation.locator('button.execute').click();
  const status = operation.locator('.live-responses-table .response-col_status').last();
  await status.waitFor();
  t.match(await status.textContent(), /^200/);
  t.match(await operation.locator('.live-responses-table .response-col_description').last().textContent(), /"ret": 0/);
  t.same(errors, []);
  const mappings = await own.http.inject('/v1/hosts/default/containers/vfio0/mappings');
  t.match(mappings.json(), { items: [{ iova: '0x0', task: 'qemu' }] }, 'the mapping is there');
});

t.test('the document does not depend on how the service is set up', async (t) => {
  const locked = await startApp({ API_TOKEN: 'x' });
  t.teardown(() => locked.close());
  t.same(new Document(locked.http.swagger() as unknown as OpenApi).root, document.root);
});
