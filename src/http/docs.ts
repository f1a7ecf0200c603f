// The pages for people: the OpenAPI document, Swagger UI, and the catalogue behind the `type` of problems.

import swagger from '@fastify/swagger';
import swaggerUi from '@fastify/swagger-ui';
import type { Api } from './api.ts';
import { swaggerOptions } from './openapi.ts';
import { catalogue } from './problems.ts';

/** Works on plain http by address too: nothing is upgraded to https. Swagger UI sets styles inline. */
const CSP =
  "default-src 'self'; base-uri 'self'; img-src 'self' data:; script-src 'self'; style-src 'self' 'unsafe-inline'; object-src 'none'; frame-ancestors 'self'; form-action 'self'";

/** Before the routes: @fastify/swagger only sees those that come after it. */
export async function registerDocs(app: Api): Promise<void> {
  await app.register(swagger, swaggerOptions);
  await app.register(swaggerUi, {
    routePrefix: '/docs',
    staticCSP: CSP,
    uiConfig: { docExpansion: 'list', deepLinking: true, defaultModelsExpandDepth: 0, validatorUrl: null },
    theme: { title: 'vfio-mdev-emulator' },
  });
  app.get('/openapi.json', { schema: { hide: true } }, () => app.swagger());
  app.get('/docs/problems', { schema: { hide: true } }, (_request, reply) => {
    reply.header('content-security-policy', CSP).type('text/html; charset=utf-8').send(problemsPage());
  });
}

function problemsPage(): string {
  const rows = catalogue().map(
    ({ slug, status, title }) =>
      `<tr id="${slug}"><td>${status}</td><td><code>${slug}</code></td><td>${title}</td></tr>`,
  );
  return `<!doctype html><html lang="en"><meta charset="utf-8"><title>Problems</title><h1>Problems</h1><table><tr><th>Status</th><th>Type</th><th>Meaning</th></tr>${rows.join('')}</table></html>\n`;
}
