// The process: settings, start, the line that says where, signals, exit codes.

import type { AddressInfo } from 'node:net';
import { type Logger, pino } from 'pino';
import pretty from 'pino-pretty';
import { type App, buildApp } from './app.ts';
import { readSettings, type Settings, StartError, usage } from './settings.ts';

/** Exit codes: 1 is a crash. */
const STOPPED = 0;
const CRASHED = 1;
const CANNOT_START = 2;

/** The whole stop takes less than 8 s: connections that are still busy are cut, then the process ends as it is. */
const CUT_CONNECTIONS_MS = 6_500;
const LAST_MOMENT_MS = 7_500;

/** JSON lines, or on a terminal one readable line for each entry. */
function loggerOf({ LOG_LEVEL }: Settings): Logger {
  if (!process.stdout.isTTY) return pino({ level: LOG_LEVEL });
  const onTerminal = pretty({
    sync: true,
    singleLine: true,
    ignore: 'pid,hostname,method,url,status,ms',
    messageFormat: ({ msg, method, url, status, ms }) =>
      method === undefined ? String(msg) : `${method} ${url} ${status} ${ms} ms`,
  });
  return pino({ level: LOG_LEVEL }, onTerminal);
}

/** Why the port cannot be had, with the system's name of it. */
function whyDeaf({ code, message }: NodeJS.ErrnoException, { HOST, PORT }: Settings): string {
  if (code === 'EADDRINUSE')
    return `another process listens on ${HOST} port ${PORT} (EADDRINUSE): set PORT, 0 is any free one`;
  if (code === 'EACCES') return `this user may not listen on port ${PORT} (EACCES): set PORT`;
  if (code === 'ENOTFOUND') return `${HOST} has no address (ENOTFOUND): set HOST`;
  if (code === 'EADDRNOTAVAIL') return `${HOST} is no address of this machine (EADDRNOTAVAIL): set HOST`;
  return message;
}

/** Everything acknowledged is in the journal, so a stop that is not finished in time loses nothing. */
async function stop({ http, logger, close }: App): Promise<never> {
  setTimeout(() => http.server.closeAllConnections(), CUT_CONNECTIONS_MS);
  setTimeout(() => {
    logger.warn('the stop is not finished in time: the next start reads the journal');
    process.exit(STOPPED);
  }, LAST_MOMENT_MS);
  await close();
  logger.info('stopped');
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

async function listen({ http }: App, settings: Settings): Promise<string> {
  const { HOST: host, PORT } = settings;
  try {
    await http.listen({ host, port: PORT, listenTextResolver: (at) => `Swagger UI: ${at}/docs` });
  } catch (error) {
    throw new StartError([`HOST, PORT: ${whyDeaf(error as NodeJS.ErrnoException, settings)}`]);
  }
  const { address, port } = http.server.address() as AddressInfo;
  return `http://${address.includes(':') ? `[${address}]` : address}:${port}`;
}

async function main(): Promise<void> {
  if (process.argv.includes('--help')) {
    console.log(usage());
    return;
  }
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
