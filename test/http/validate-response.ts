// Checks what the service answers against its own OpenAPI document, and says which operation and status it was.

import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';

export interface Media {
  schema: object;
  examples?: Record<string, { value: unknown }>;
}
export interface ResponseObject {
  $ref?: string;
  description: string;
  headers?: Record<string, unknown>;
  content?: Record<string, Media>;
}
export interface Parameter {
  $ref?: string;
  name: string;
  in: 'path' | 'query' | 'header';
  required?: boolean;
  example?: unknown;
  schema: Record<string, unknown>;
}
export interface OperationObject {
  operationId: string;
  tags: string[];
  summary: string;
  description: string;
  parameters?: Parameter[];
  requestBody?: { required: boolean; content: Record<string, Media> };
  responses: Record<string, ResponseObject>;
}
export interface OpenApi {
  openapi: string;
  tags: { name: string }[];
  paths: Record<string, Record<string, OperationObject>>;
  components: Record<string, Record<string, unknown>>;
}

export interface Operation {
  path: string;
  method: string;
  operation: OperationObject;
}

const escapeStep = (step: string): string => encodeURIComponent(step.replaceAll('~', '~0').replaceAll('/', '~1'));

export class Document {
  readonly operations: Operation[];
  private readonly ajv = new Ajv2020({ strict: false, allErrors: true });
  private readonly compiled = new Map<string, ValidateFunction>();
  private readonly matchers: { pattern: RegExp; found: Operation }[];

  constructor(readonly root: OpenApi) {
    this.ajv.addFormat('u64', (text: string) => !/^(0x[0-9a-f]+|[0-9]+)$/i.test(text) || BigInt(text) < 2n ** 64n);
    this.ajv.addSchema(root, 'document');
    this.operations = Object.entries(root.paths).flatMap(([path, item]) =>
      Object.entries(item).map(([method, operation]) => ({ path, method, operation })),
    );
    this.matchers = this.operations.map((found) => ({
      pattern: new RegExp(`^${found.path.replace(/[.]/g, '\\.').replace(/\{[^}]+\}/g, '[^/]+')}$`),
      found,
    }));
  }

  operationOf(method: string, url: string): Operation | undefined {
    const path = url.split('?', 1)[0] ?? '';
    const matching = this.matchers.filter(
      ({ pattern, found }) => found.method === method.toLowerCase() && pattern.test(path),
    );
    return matching.sort(
      (a, b) => b.found.path.replace(/\{[^}]+\}/g, '').length - a.found.path.replace(/\{[^}]+\}/g, '').length,
    )[0]?.found;
  }

  byId(operationId: string): Operation {
    const found = this.operations.find(({ operation }) => operation.operationId === operationId);
    if (found === undefined) throw new Error(`no operation ${operationId}`);
    return found;
  }

  /** Follows one reference into the components. */
  resolve<T extends { $ref?: string }>(value: T): T {
    if (value.$ref === undefined) return value;
    const [kind = '', name = ''] = value.$ref.replace('#/components/', '').split('/');
    return this.root.components[kind]?.[name] as T;
  }

  parametersOf({ operation }: Operation): Parameter[] {
    return (operation.parameters ?? []).map((parameter) => this.resolve(parameter));
  }

  /** What is wrong with a response; null where the document describes it. */
  violation({ path, method, operation }: Operation, status: number, contentType: string, body: unknown): string | null {
    const described = operation.responses[String(status)];
    if (described === undefined) return `${operation.operationId}: status ${status} is not documented`;
    const type = contentType.split(';', 1)[0] ?? '';
    const content = this.resolve(described).content ?? {};
    if (content[type] === undefined)
      return `${operation.operationId} ${status}: content type ${type} is not documented`;
    const place =
      described.$ref === undefined
        ? `#/paths/${escapeStep(path)}/${method}/responses/${status}/content/${escapeStep(type)}/schema`
        : `${described.$ref}/content/${escapeStep(type)}/schema`;
    const check = this.validatorAt(place);
    if (check(body)) return null;
    return `${operation.operationId} ${status}: ${this.ajv.errorsText(check.errors)} in ${JSON.stringify(body).slice(0, 500)}`;
  }

  /** What is wrong with a request body; null where it fits. */
  bodyViolation({ path, method, operation }: Operation, body: unknown): string | null {
    const check = this.validatorAt(
      `#/paths/${escapeStep(path)}/${method}/requestBody/content/application~1json/schema`,
    );
    return check(body) ? null : `${operation.operationId} body: ${this.ajv.errorsText(check.errors)}`;
  }

  private validatorAt(place: string): ValidateFunction {
    let check = this.compiled.get(place);
    if (check === undefined) {
      check = this.ajv.compile({ $ref: `document${place}` });
      this.compiled.set(place, check);
    }
    return check;
  }
}
