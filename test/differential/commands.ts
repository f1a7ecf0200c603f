// Commands in short forms, for a host of the template 'default' (task qemu, container vfio0, group 26, open device mdev0).

import type { Command, Delivery, HostOptions } from '../../src/kernel/command.ts';
import { runDifferential } from '../../src/service/differential/differential.ts';
import type { Item } from '../../src/service/differential/item.ts';
import type { Report } from '../../src/service/differential/report.ts';
import { DEFAULT_HOST_OPTIONS } from '../../src/service/host-options.ts';

export const PAGE = 0x1000n;
export const RAM = 0x7f0000000000n;
export const READ = 1;
export const RW = 3;

/** A command, or one that is made inside the handler of a notification. */
export type Line = Command | { inside: string; command: Command };

export const map = (iova: bigint, npage: number, more: object = {}): Command => ({
  op: 'map_dma',
  container: 'vfio0',
  task: 'qemu',
  iova,
  vaddr: RAM,
  size: BigInt(npage) * PAGE,
  flags: RW,
  argsz: 32,
  ...more,
});
export const unmap = (iova: bigint, npage: number, more: object = {}): Command => ({
  op: 'unmap_dma',
  container: 'vfio0',
  task: null,
  iova,
  size: BigInt(npage) * PAGE,
  flags: 0,
  argsz: null,
  bitmap: null,
  ...more,
});
export const pin = (user_pfn: number[], prot = READ, device = 'mdev0'): Command => ({
  op: 'pin_pages',
  device,
  user_pfn,
  npage: user_pfn.length,
  prot,
});
export const unpin = (user_pfn: number[], device = 'mdev0'): Command => ({
  op: 'unpin_pages',
  device,
  user_pfn,
  npage: user_pfn.length,
});
export const pinRange = (iova: bigint, npage: number): Command => ({
  op: 'pin_pages',
  device: 'mdev0',
  user_pfn: [],
  npage,
  contiguous: { iova },
  prot: READ,
});
export const listen = (delivery: Delivery = { kind: 'poll' }, more: object = {}, device = 'mdev0'): Command => ({
  op: 'register_notifier',
  device,
  notifier: { id: `nb-${device}`, events: 1, type: 0, priority: 0, delivery, ...more },
});
export const builtin = (behavior: 'unpin_all' | 'ignore' | 'slow'): Delivery => ({
  kind: 'builtin',
  behavior,
  n: 1,
  delay_ms: 0,
});
export const ack = (n: number, more: object = {}): Command => ({
  op: 'ack_notification',
  device: 'mdev0',
  notification: `notification-${n}`,
  ret: 1,
  reason: 'ack',
  detail: null,
  ...more,
});
export const inHandler = (n: number, command: Command): Line => ({ inside: `notification-${n}`, command });
export const detach: readonly Command[] = [
  { op: 'close_device', device: 'mdev0' },
  { op: 'unset_container', group: '26' },
];

export const itemsOf = (lines: readonly Line[]): Item[] =>
  lines.map((line, i) => ({
    command: 'op' in line ? line : line.command,
    notification: 'op' in line ? null : line.inside,
    at: 1000 + i,
    request_id: `request-${i + 1}`,
  }));

/** Runs the lines; they are written for the first profile unless the options name another. */
export function differential(
  profiles: string[],
  lines: readonly Line[],
  options: Partial<HostOptions> = {},
  causes = true,
): Promise<Report> {
  const host: HostOptions = {
    ...DEFAULT_HOST_OPTIONS,
    fixes: [],
    template: 'default',
    profile: profiles[0] as string,
    ...options,
  };
  const { signal } = new AbortController();
  return runDifferential({ items: itemsOf(lines), options: host }, { profiles, causes, signal });
}

export interface Seen {
  kind: string;
  name: string;
  position: number | null;
  answers: [Record<string, unknown>, Record<string, unknown>];
  times: number;
  causes: { behaviour: string; proof: string }[] | null;
}

/** The differences of the first comparison. */
export const seenIn = ({ comparisons }: Report): Seen[] => comparisons[0]?.differences as unknown as Seen[];

/** Name, position, and the behaviours that make it. */
export const summaryOf = (report: Report): [string, number | null, string[]][] =>
  seenIn(report).map(({ name, position, causes }) => [
    name,
    position,
    (causes ?? []).map(({ behaviour }) => behaviour),
  ]);

export const named = (report: Report, name: string): Seen => {
  const found = seenIn(report).find((difference) => difference.name === name);
  if (found === undefined) throw new Error(`no difference '${name}': ${JSON.stringify(summaryOf(report))}`);
  return found;
};
