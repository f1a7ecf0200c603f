// A client of an app in this process: every response is checked against the OpenAPI document, and what was seen is counted.

import { type App, buildApp, type Overrides } from '../../src/app.ts';
import { readSettings } from '../../src/settings.ts';
import { MemoryStore } from '../../src/store/memory-store.ts';
import { Document, type OpenApi, type Operation } from './validate-response.ts';

export interface Reply {
  status: number;
  headers: Record<string, string>;
  /** Parsed JSON, or the text where it is none. */
  body: Record<string, unknown>;
  text: string;
}

export interface Asked {
  headers?: Record<string, string>;
  /** Sent as it is instead of JSON. */
  raw?: string;
}

export async function startApp(env: Record<string, string> = {}, overrides: Overrides = {}): Promise<App> {
  const settings = readSettings({ DATABASE_URL: 'memory:', LOG_LEVEL: 'silent', ...env }, []);
  return buildApp(settings, { store: new MemoryStore(), ...overrides });
}

export class Client {
  /** `<operationId> <status>` of every response. */
  readonly seen = new Set<string>();
  readonly document: Document;

  constructor(
    readonly app: App,
    document?: Document,
  ) {
    this.document = document ?? new Document(app.http.swagger() as unknown as OpenApi);
  }

  /** Throws where the response is not what the document says. */
  async ask(method: string, url: string, body?: unknown, { headers = {}, raw }: Asked = {}): Promise<Reply> {
    const hasBody = raw !== undefined || body !== undefined;
    const response = await this.app.http.inject({
      method: method as 'GET',
      url,
      headers: { ...(hasBody ? { 'content-type': 'application/json' } : {}), ...headers },
      ...(hasBody ? { payload: raw ?? JSON.stringify(body) } : {}),
    });
    const type = String(response.headers['content-type'] ?? '');
    const parsed: unknown = type.includes('json') && response.payload !== '' ? response.json() : response.payload;
    const found = this.document.operationOf(method, url);
    if (found !== undefined && response.statusCode !== 405) {
      const wrong = this.document.violation(found, response.statusCode, type, parsed);
      if (wrong !== null) throw new Error(wrong);
      this.seen.add(`${found.operation.operationId} ${response.statusCode}`);
    }
    return {
      status: response.statusCode,
      headers: response.headers as Record<string, string>,
      body: parsed as Record<string, unknown>,
      text: response.payload,
    };
  }

  /** Asks an operation with the values of its own examples, on another host where one is given. */
  example(
    operationId: string,
    changes: {
      host?: string;
      path?: Record<string, string>;
      body?: unknown;
      headers?: Record<string, string>;
      raw?: string;
    } = {},
  ): Promise<Reply> {
    const found = this.document.byId(operationId);
    const { method } = found;
    const body = changes.body ?? exampleBody(found);
    const url = this.urlOf(found, { ...(changes.host === undefined ? {} : { host: changes.host }), ...changes.path });
    return this.ask(method.toUpperCase(), url, changes.raw === undefined ? body : undefined, {
      ...(changes.headers === undefined ? {} : { headers: changes.headers }),
      ...(changes.raw === undefined ? {} : { raw: changes.raw }),
    });
  }

  /** An operation's URL from the examples of its parameters. */
  urlOf(found: Operation, path: Record<string, string> = {}): string {
    let url = found.path;
    const query: string[] = [];
    for (const { name, in: where, required, example } of this.document.parametersOf(found)) {
      if (where === 'path') url = url.replace(`{${name}}`, path[name] ?? String(example));
      if (where === 'query' && required === true) query.push(`${name}=${encodeURIComponent(String(example))}`);
    }
    return query.length === 0 ? url : `${url}?${query.join('&')}`;
  }

  /** A new host of the template 'default'. */
  async newHost(id: string, options: Record<string, unknown> = {}): Promise<string> {
    const { status, text } = await this.ask('PUT', `/v1/hosts/${id}`, { template: 'default', ...options });
    if (status !== 201) throw new Error(`host ${id}: ${text}`);
    return `/v1/hosts/${id}`;
  }
}

export const exampleBody = ({ operation }: Operation): unknown =>
  Object.values(operation.requestBody?.content['application/json']?.examples ?? {})[0]?.value;
