// What a differential run is given: commands in the order in which a host took them, and how they are played on another kernel.

import type { Command, HostOptions } from '../../kernel/command.ts';
import { createHost, execute } from '../../kernel/execute.ts';
import type { Host } from '../../kernel/host.ts';
import type { Outcome } from '../../kernel/outcome.ts';
import { type Profile, profileWith } from '../../kernel/profile.ts';

/** A command as a journal has it. Its position is its place in the list, from 1; in a whole journal that is its seq. */
export interface Item {
  command: Command;
  /** The notification inside whose handler the call is made; null: another thread. */
  notification: string | null;
  /** Milliseconds since the epoch. */
  at: number;
  request_id: string;
}

/** A kernel to play the commands on. */
export interface Kernel {
  profile: string;
  /** Rows of the table of behaviours that have another value than in the profile. */
  behaviours: Partial<Profile>;
}

/** What every run of one differential has in common. */
export interface Plan {
  items: readonly Item[];
  /** Options of the host; `profile` is the kernel that the commands were written for. */
  options: HostOptions;
}

export const hostOf = ({ options }: Plan, { profile, behaviours }: Kernel): Host =>
  createHost('differential', { ...options, profile }, 0, { ...profileWith(profile, options.fixes), ...behaviours });

/** The item at a position. */
export function itemAt({ items }: Plan, position: number): Item {
  const item = items[position - 1];
  if (item === undefined) throw new Error(`no item at position ${position}`);
  return item;
}

/** Executes a command in the name of an item. */
export const executeAs = (host: Host, { at, request_id }: Item, command: Command, inside: string | null): Outcome =>
  execute(host, { at, request_id, notification: inside, command });

/** The same commands with an id for every block that is registered without one: the one that its position gives it. */
export const withIds = (items: readonly Item[]): Item[] =>
  items.map((item, i) => {
    const { command } = item;
    if (command.op !== 'register_notifier' || command.notifier.id !== undefined) return item;
    const notifier = { ...command.notifier, id: `notifier-${i + 1}` };
    return { ...item, command: { ...command, notifier } };
  });
