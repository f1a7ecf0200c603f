// The recorded boots of examples/qemu, and how a file of somebody's own becomes one.

import { existsSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { listenerCalls, MalformedLine, readIoctls, readTrace, withFlags } from './qemu-trace.ts';
import type { Boot } from './replay.ts';

export const BOOTS = ['boot-q35-ovmf', 'boot-i440fx', 'boot-hotplug'] as const;

/** A file that can't be replayed; the message begins with its path and, where there is one, the line. */
export class UnreadableBoot extends Error {
  override name = 'UnreadableBoot';
}

export function recordedBoot(name: string): Boot {
  return loadBoot(fileURLToPath(new URL(`./qemu/${name}.trace`, import.meta.url)));
}

/** Reads a .trace, and the .ioctl of the same name beside it if there is one. */
export function loadBoot(tracePath: string): Boot {
  const name = basename(tracePath, '.trace');
  const calls = listenerCalls(read(tracePath, readTrace));
  const ioctlPath = tracePath.replace(/\.trace$/, '.ioctl');
  if (ioctlPath === tracePath || !existsSync(ioctlPath)) return { name, calls, flagsRecorded: false };
  return { name, calls: read(ioctlPath, (text) => withFlags(calls, readIoctls(text))), flagsRecorded: true };
}

function read<Result>(path: string, reader: (text: string) => Result): Result {
  try {
    return reader(readFileSync(path, 'utf8'));
  } catch (error) {
    if (error instanceof MalformedLine) throw new UnreadableBoot(`${path}: ${error.message}`);
    throw new UnreadableBoot(`${path}: ${error instanceof Error ? error.message : error}`);
  }
}
