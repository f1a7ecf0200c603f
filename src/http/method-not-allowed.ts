// What no route answers: 405 where the path exists with other methods, 404 where it does not.

import type { FastifyReply, FastifyRequest, RouteOptions } from 'fastify';
import { sendError } from './errors.ts';
import { Problem } from './problems.ts';

/** The methods of every path, collected while routes are added. */
export class Paths {
  private readonly patterns = new Map<string, { pattern: RegExp; methods: Set<string> }>();

  add({ url, method }: Pick<RouteOptions, 'url' | 'method'>): void {
    const segments = url
      .split('/')
      .map((segment) => (segment.startsWith(':') ? '[^/]+' : segment.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')));
    const entry = this.patterns.get(url) ?? { pattern: new RegExp(`^${segments.join('/')}$`), methods: new Set() };
    for (const one of typeof method === 'string' ? [method] : method) entry.methods.add(one);
    this.patterns.set(url, entry);
  }

  /** Methods that a path answers to. */
  methodsOf(path: string): string[] {
    const found = [...this.patterns.values()].filter(({ pattern }) => pattern.test(path));
    return [...new Set(found.flatMap(({ methods }) => [...methods]))].sort();
  }
}

export const notFound =
  (paths: Paths) =>
  (request: FastifyRequest, reply: FastifyReply): FastifyReply => {
    const path = request.url.split('?', 1)[0] ?? '';
    const methods = paths.methodsOf(path);
    const problem =
      methods.length === 0
        ? new Problem('not-found', `nothing is at ${path.slice(0, 200)}`)
        : new Problem(
            'method-not-allowed',
            `${request.method}: ${path.slice(0, 200)} answers to ${methods.join(', ')}`,
            {},
            { allow: methods.join(', ') },
          );
    return sendError(problem, request, reply);
  };
