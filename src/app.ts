// The composition root: every part is made and joined here, visibly.

import { pino } from 'pino';
import type { Api, HttpLogger } from './http/api.ts';
import { buildHttp } from './http/http.ts';
import { defaultCheckpoints } from './service/checkpointer.ts';
import type { Clock } from './service/clock.ts';
import type { Store } from './service/ports.ts';
import { Service } from './service/service.ts';
import { WebhookPolicy } from './service/webhook-policy.ts';
import { type Settings, StartError } from './settings.ts';
import { storeOfUrl } from './store/open-store.ts';

/** After the stop every reply is known: whoever does not take it, or still sends a request, is cut off. */
const LAST_REPLIES_MS = 1_000;

/** Parts that a test brings along. */
export interface Overrides {
  /** Not opened yet. */
  store?: Store;
  clock?: Clock;
  logger?: HttpLogger;
}

export interface App {
  http: Api;
  service: Service;
  logger: HttpLogger;
  /** Stops in order: no new work, waiting requests answered, checkpoints, store closed. */
  close(): Promise<void>;
}

/** Opens the store, recovers the hosts and makes the server, which does not listen yet. StartError: the database. */
export async function buildApp(settings: Settings, overrides: Overrides = {}): Promise<App> {
  const logger = overrides.logger ?? pino({ level: settings.LOG_LEVEL });
  const service = new Service({
    store: await openStore(settings, overrides.store),
    webhookPolicy: new WebhookPolicy(settings.WEBHOOK_ALLOW),
    checkpoints: { ...defaultCheckpoints(settings.JOURNAL_KEEP), commands: settings.CHECKPOINT_COMMANDS },
    log: logger,
    ...(overrides.clock === undefined ? {} : { clock: overrides.clock }),
  });
  await service.start();
  const http = await buildHttp({ service, logger, apiToken: settings.API_TOKEN });
  // Before the server closes: it waits for every request, and those that wait for an operation end only now.
  http.addHook('preClose', async () => {
    await service.stop();
    setTimeout(() => http.server.closeAllConnections(), LAST_REPLIES_MS).unref();
  });
  await http.ready();
  return { http, service, logger, close: () => http.close() };
}

async function openStore({ DATABASE_URL }: Settings, given: Store | undefined): Promise<Store> {
  try {
    const store = given ?? storeOfUrl(DATABASE_URL);
    await store.open();
    return store;
  } catch (error) {
    throw new StartError([`DATABASE_URL: ${(error as Error).message}`]);
  }
}
