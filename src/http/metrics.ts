// Numbers for Prometheus. Labels come from the routes and the commands, never from what clients name: their number is bounded.

import type { FastifyReply, FastifyRequest } from 'fastify';
import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client';
import type { ServicePort } from './api.ts';

/** Seconds: from a fraction of a commit to a long poll. */
const BUCKETS = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 60];

export class Metrics {
  private readonly registry = new Registry();
  private readonly duration: Histogram<'method' | 'route' | 'status'>;
  private readonly commands: Counter<'op' | 'errno'>;

  constructor(service: Pick<ServicePort, 'stats' | 'readiness'>) {
    const { registry } = this;
    const registers = [registry];
    collectDefaultMetrics({ register: registry });
    this.duration = new Histogram({
      name: 'emulator_http_request_duration_seconds',
      help: 'Time from a request to the end of its reply; its count is the number of requests',
      labelNames: ['method', 'route', 'status'],
      buckets: BUCKETS,
      registers,
    });
    this.commands = new Counter({
      name: 'emulator_commands_total',
      help: 'Commands by what the emulated kernel answered; an empty errno is success',
      labelNames: ['op', 'errno'],
      registers,
    });
    const read = (name: string, help: string, value: () => number): void => {
      new Gauge({
        name,
        help,
        registers,
        collect() {
          this.set(value());
        },
      });
    };
    read('emulator_commits', 'Group commits since the start', () => service.stats().commits);
    read('emulator_committed_commands', 'Entries in them', () => service.stats().committed);
    read('emulator_commits_failed', 'Group commits that failed', () => service.stats().failed);
    read('emulator_uncommitted', 'Entries that wait for their commit', () => service.stats().waiting);
    read('emulator_waiting_requests', 'Requests in the service', () => service.stats().waiting_requests);
    read('emulator_hosts', 'Hosts', () => service.stats().hosts);
    read('emulator_hosts_quarantined', 'Hosts that are not served', () => service.readiness().quarantined.length);
  }

  get contentType(): string {
    return this.registry.contentType;
  }

  text(): Promise<string> {
    return this.registry.metrics();
  }

  /** A reply was sent. */
  observe(request: FastifyRequest, reply: FastifyReply): void {
    const route = request.routeOptions.url ?? 'none';
    const method = request.routeOptions.url === undefined ? 'any' : request.method;
    this.duration.observe({ method, route, status: String(reply.statusCode) }, reply.elapsedTime / 1000);
    const { op, errno } = request.logged;
    if (op !== undefined) this.commands.inc({ op, errno: errno ?? '' });
  }
}
