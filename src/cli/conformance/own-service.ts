// A service for one run: in this process, with a store in memory, on a free port of loopback.

import type { AddressInfo } from 'node:net';
import { buildApp } from '../../app.ts';
import { readSettings } from '../../settings.ts';
import type { RunningService } from './over-http.ts';

export async function startService(): Promise<RunningService> {
  const settings = readSettings({ DATABASE_URL: 'memory:', PORT: '0', LOG_LEVEL: 'silent' }, []);
  const app = await buildApp(settings);
  await app.http.listen({ host: '127.0.0.1', port: 0 });
  const { port } = app.http.server.address() as AddressInfo;
  return { url: `http://127.0.0.1:${port}`, close: app.close };
}
