// What the service writes to a log: the shape of pino's methods that it uses.

export interface ServiceLog {
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

export const silentLog: ServiceLog = { info: () => {}, warn: () => {}, error: () => {} };
