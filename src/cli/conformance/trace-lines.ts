// Recorded traces as they lie on disk: one JSON object on a line, of one unit of the kernel in each file.

import { readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import type { TSchema } from 'typebox';
import type { Validator } from 'typebox/compile';

/** A trace file that cannot be read: says which file and line. */
export class TraceError extends Error {
  constructor(
    readonly file: string,
    readonly line: number | null,
    problem: string,
  ) {
    super(line === null ? `${file}: ${problem}` : `${file}:${line}: ${problem}`);
    this.name = 'TraceError';
  }
}

/** A line that is no trace. */
export class Malformed extends Error {}

/** Lines of a file, compressed or not. Throws TraceError where it cannot be read, or is empty. */
function linesOf(file: string): string[] {
  let text: string;
  try {
    const bytes = readFileSync(file);
    text = (file.endsWith('.gz') ? gunzipSync(bytes) : bytes).toString('utf8');
  } catch (error) {
    throw new TraceError(file, null, (error as Error).message);
  }
  const lines = text.split('\n');
  if (lines.at(-1) === '') lines.pop();
  if (lines.length === 0) throw new TraceError(file, null, 'no trace in it');
  return lines;
}

/** Parses the lines of a file one by one, as they are asked for. Throws TraceError at the first that is malformed. */
export function* parseLines<T>(file: string, parse: (json: unknown, line: number) => T): Iterable<T> {
  for (const [i, text] of linesOf(file).entries()) {
    try {
      yield parse(jsonOf(text), i + 1);
    } catch (error) {
      if (error instanceof Malformed) throw new TraceError(file, i + 1, error.message);
      throw error;
    }
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Malformed(`not JSON: ${(error as Error).message}`);
  }
}

/** The unit of the kernel that a file is about: traces of VFIO type1 do not name theirs. Throws TraceError. */
export function unitOf(file: string): 'type1' | 'mmu-notifier' {
  for (const unit of parseLines(file, (json) => (json as { unit?: unknown } | null)?.unit))
    return unit === 'mmu-notifier' ? unit : 'type1';
  return 'type1';
}

export function requireSchema(
  validator: Validator<Record<never, never>, TSchema>,
  value: unknown,
  where: string,
): void {
  if (validator.Check(value)) return;
  const error = validator.Errors(value)[0];
  throw new Malformed(`${where}${error?.instancePath ?? ''}: ${error?.message ?? 'does not have the form of a trace'}`);
}
