// The OpenAPI document: what @fastify/swagger finds in the routes, completed from what each operation says about itself.

import { readFileSync } from 'node:fs';
import type { FastifyDynamicSwaggerOptions } from '@fastify/swagger';
import { type AnySpec, TAGS } from './describe.ts';
import { type Json, type JsonObject, responsesOf, schemaJson, sharedComponents } from './openapi-responses.ts';

const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as {
  version: string;
};

const BASE = 'http://127.0.0.1:7180';
const METHODS = ['get', 'put', 'post', 'patch', 'delete'] as const;

const INTRODUCTION = `Behaves as the Linux kernel does towards a mediated-device vendor driver: VFIO type1 pin and unpin, DMA map and unmap, and blocking DMA_UNMAP notifiers.

The host \`default\` is ready for a first \`map_dma\`: task \`qemu\` has 4 GiB of anonymous memory at 0x7f0000000000, container \`vfio0\` is a TYPE1v2, group \`26\` has the open device \`mdev0\`.

* Byte addresses and sizes are strings: \`"0x1000"\`, in requests also decimal. Page frame numbers and counts are integers.
* A request that does not fit its schema is 400 and names the field. Every well-formed value goes to the emulated kernel, which answers with its errno as a problem (RFC 9457).
* Every reply waits until what it shows is durable.
* A wrong method is 405 with \`Allow\`.`;

/** The first example of a parameter or a body, for the curl line. */
function curlOf(method: string, path: string, operation: JsonObject, spec: AnySpec): string {
  const parameters = (operation.parameters ?? []) as JsonObject[];
  let url = path;
  const query: string[] = [];
  for (const { name, in: where, required, example } of parameters) {
    if (where === 'path') url = url.replace(`{${name}}`, String(example));
    if (where === 'query' && required === true) query.push(`${name}=${String(example)}`);
  }
  const target = `${BASE}${url}${query.length === 0 ? '' : `?${query.join('&')}`}`;
  const quoted = target.includes('?') ? `'${target}'` : target;
  const verb = method === 'get' ? '' : ` -X ${method.toUpperCase()}`;
  const data =
    spec.bodyExample === undefined
      ? ''
      : ` -H 'content-type: application/json' -d '${JSON.stringify(spec.bodyExample)}'`;
  return `curl -s${verb} ${quoted}${data}`;
}

function completeOperation(path: string, method: string, operation: JsonObject): JsonObject {
  const spec = operation['x-spec'] as unknown as AnySpec;
  const { 'x-spec': _, requestBody, ...rest } = operation;
  const refusals = spec.refusals === undefined ? '' : `\n\nErrnos: ${spec.refusals.join(', ')}.`;
  const description = `${spec.description}${refusals}\n\n\`\`\`sh\n${curlOf(method, path, operation, spec)}\n\`\`\``;
  const body = bodyOf(spec);
  const security: JsonObject = spec.does === 'process' && spec.operationId !== 'metrics' ? { security: [] } : {};
  return {
    ...rest,
    description,
    ...security,
    ...(body === null ? {} : { requestBody: body }),
    responses: responsesOf(spec, method),
  };
}

function bodyOf(spec: AnySpec): JsonObject | null {
  if (spec.body === undefined) return null;
  const schema = schemaJson(spec.body) as JsonObject;
  const mayBeAbsent = schema.type === 'object' && !Array.isArray(schema.required);
  const examples = { example: { value: spec.bodyExample as Json } };
  return { required: !mayBeAbsent, content: { 'application/json': { schema, examples } } };
}

/** Moves every schema with a title to the components, once. */
function hoistTitled(value: Json, schemas: JsonObject): Json {
  if (Array.isArray(value)) return value.map((item) => hoistTitled(item, schemas));
  if (value === null || typeof value !== 'object') return value;
  const copy: JsonObject = {};
  for (const [key, item] of Object.entries(value))
    copy[key] = key === 'value' || key === 'example' ? item : hoistTitled(item, schemas);
  const { title, ...schema } = copy;
  if (typeof title !== 'string' || !('properties' in copy || 'anyOf' in copy || 'enum' in copy)) return copy;
  schemas[title] = schema;
  return { $ref: `#/components/schemas/${title}` };
}

/** Completes the document that @fastify/swagger made of the routes. */
export function completeDocument(document: JsonObject): JsonObject {
  const paths: JsonObject = {};
  for (const [path, item] of Object.entries(document.paths as JsonObject)) {
    const operations: JsonObject = {};
    for (const method of METHODS) {
      const operation = (item as JsonObject)[method];
      if (operation !== undefined) operations[method] = completeOperation(path, method, operation as JsonObject);
    }
    paths[path] = operations;
  }
  const schemas: JsonObject = {};
  const parameters: JsonObject = {};
  const shared = hoistTitled(sharedComponents(), schemas) as JsonObject;
  const hoisted = hoistParameters(hoistTitled(paths, schemas) as JsonObject, parameters);
  return {
    ...document,
    paths: hoisted,
    components: { ...(document.components as JsonObject), ...shared, parameters, schemas },
  };
}

const inWords = (name: string): string[] =>
  name.split(/[-_]/).map((word) => `${word.charAt(0).toUpperCase()}${word.slice(1)}`);

/** Moves parameters to the components, where many operations share them; one that only shares a name stays where it is. */
function hoistParameters(paths: JsonObject, parameters: JsonObject): JsonObject {
  for (const item of Object.values(paths) as JsonObject[])
    for (const operation of Object.values(item) as JsonObject[]) {
      const found = (operation.parameters ?? []) as JsonObject[];
      if (found.length === 0) continue;
      operation.parameters = found.map((parameter) => {
        const words = inWords(String(parameter.name));
        const isHeader = parameter.in === 'header';
        const name = `${isHeader ? '' : inWords(String(parameter.in)).join('')}${words.join('')}`;
        const shared = isHeader ? { ...parameter, name: words.join('-') } : parameter;
        parameters[name] ??= shared;
        if (JSON.stringify(parameters[name]) !== JSON.stringify(shared)) return parameter;
        return { $ref: `#/components/parameters/${name}` };
      });
    }
  return paths;
}

export const swaggerOptions: FastifyDynamicSwaggerOptions = {
  openapi: {
    openapi: '3.1.0',
    info: {
      title: 'vfio-mdev-emulator',
      version,
      summary: 'The kernel side of a mediated-device vendor driver',
      description: INTRODUCTION,
      license: { name: 'Apache-2.0', identifier: 'Apache-2.0' },
    } as never,
    servers: [{ url: '/', description: 'This service' }],
    tags: Object.entries(TAGS).map(([name, description]) => ({ name, description })),
    security: [{ bearer: [] }, {}],
    components: {
      securitySchemes: { bearer: { type: 'http', scheme: 'bearer', description: 'API_TOKEN, where one is set' } },
    },
  },
  transformObject: (found) =>
    'openapiObject' in found ? (completeDocument(found.openapiObject as never) as never) : (found as never),
};

/** Columns of a line of the committed document. */
const LINE = 300;

/** The document as it is committed: what fits on one line is on one, so that the file stays small and a change of it readable. */
export const documentText = (document: object): string => `${printed(document as Json, '')}\n`;

function printed(value: Json, indent: string): string {
  const flat = JSON.stringify(value);
  if (value === null || typeof value !== 'object' || indent.length + flat.length <= LINE) return flat;
  const inner = `${indent} `;
  if (Array.isArray(value)) return `[\n${value.map((item) => inner + printed(item, inner)).join(',\n')}\n${indent}]`;
  const fields = Object.entries(value).filter(([, field]) => field !== undefined);
  const lines = fields.map(([key, field]) => `${inner}${JSON.stringify(key)}: ${printed(field, inner)}`);
  return `{\n${lines.join(',\n')}\n${indent}}`;
}
