// The process: settings, start, the line that says where, signals, exit codes.

import type { AddressInfo } from 'node:net';
import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';
import { type App, buildApp } from './app.ts';
import { readSettings, type Settings, StartError } from './settings.ts';

/** Exit codes: 1 is a crash. */
const STOPPED = 0;
const CRASHED = 1;
const CANNOT_START = 2;

/** The whole stop takes less than 8 s: connections that are still busy are cut, then the process ends as it is. */
const CUT_CONNECTIONS_MS = 6_500;
const LAST_MOMENT_MS = 7_500;

function loggerOf({ LOG_LEVEL }: Settings): Logger {
  return process.stdout.isTTY ? pino({ level: LOG_LEVEL }, pretty({ sync: true })) : pino({ level: LOG_LEVEL });
}

/** Everything acknowledged is in the journal, so a stop that is not finished in time loses nothing. */
async function stop({ http, logger, close }: App): Promise<never> {
  setTimeout(() => http.server.closeAllConnections(), CUT_CONNECTIONS_MS);
  setTimeout(() => {
    logger.warn('the stop is not finished in time: the next start reads the journal');
    process.exit(STOPPED);
  }, LAST_MOMENT_MS);
  await close();
  process.exit(STOPPED);
}

function crash(logger: Pick<Logger, 'fatal'>, error: unknown): never {
  logger.fatal({ err: error }, 'crash');
  process.exit(CRASHED);
}

/** SIGTERM and SIGINT stop the service; repeats change nothing. Before there is an app, nothing is unfinished. */
function stopOnSignals(logger: Logger): { app: App | null } {
  const running: { app: App | null } = { app: null };
  let stopping = false;
  for (const signal of ['SIGTERM', 'SIGINT'] as const)
    process.on(signal, () => {
      if (stopping) return;
      stopping = true;
      logger.info({ signal }, 'stopping');
      if (running.app === null) process.exit(STOPPED);
      stop(running.app).catch((error: unknown) => crash(logger, error));
    });
  return running;
}

async function listen({ http }: App, { HOST, PORT }: Settings): Promise<string> {
  try {
    await http.listen({ host: HOST, port: PORT, listenTextResolver: (address) => `bound to ${address}` });
  } catch (error) {
    throw new StartError([`HOST, PORT: ${(error as Error).message}`]);
  }
  const { address, port } = http.server.address() as AddressInfo;
  return `http://${address.includes(':') ? `[${address}]` : address}:${port}`;
}

async function main(): Promise<void> {
  const settings = readSettings(process.env, process.argv.slice(2));
  const logger = loggerOf(settings);
  process.on('uncaughtException', (error) => crash(logger, error));
  process.on('unhandledRejection', (error) => crash(logger, error));
  const running = stopOnSignals(logger);
  const app = await buildApp(settings, { logger });
  running.app = app;
  const url = await listen(app, settings);
  logger.child({}, { level: 'info' }).info(`listening on ${url}`);
}

try {
  await main();
} catch (error) {
  if (!(error instanceof StartError)) throw error;
  for (const line of error.errors) console.error(line);
  process.exit(CANNOT_START);
}
