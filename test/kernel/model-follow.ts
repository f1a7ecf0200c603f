// Carries out what a random run consists of: recipes become commands when it is known what is mapped and what waits.

import type { Command } from '../../src/kernel/command.ts';
import { ANON, pinCommand, unpinCommand } from './model-begin.ts';
import type { Recipe } from './model-commands.ts';
import type { World } from './model-world.ts';
import { type NaiveMapping, type NaiveNotification, PAGE } from './naive-types.ts';

const nameOf = (notification: NaiveNotification | undefined): string | null =>
  notification === undefined ? null : `notification-${notification.n}`;

/** Carries a recipe out; every command in it is compared. */
export function follow(world: World, recipe: Recipe): void {
  const waiting = [...world.model.pending.values()];
  const at = (which: number) => waiting[which % Math.max(1, waiting.length)];
  const handler = (inside: number | null): string | null => (inside === null ? null : nameOf(at(inside)));
  const { rules } = world.model;
  switch (recipe.do) {
    case 'command':
      world.step(recipe.command, handler(recipe.inside));
      return;
    case 'pin': {
      const { device, iovas, offset, prot } = recipe;
      world.step(pinCommand(rules, device, from(iovas, offset), prot, saidBy(recipe)));
      return;
    }
    case 'unpin': {
      const { device, iovas, offset, inside } = recipe;
      world.step(unpinCommand(rules, device, from(iovas, offset), saidBy(recipe)), handler(inside));
      return;
    }
    case 'answer':
    case 'time out':
      answer(world, recipe, at(recipe.which));
      return;
    case 'checkpoint':
      world.checkpoint();
      return;
    case 'restart':
      world.restart();
      return;
    case 'handle':
      handle(world, at(recipe.which), recipe.attempt);
      return;
    case 'unpin in handler':
      unpinInHandler(world, at(recipe.which), recipe.all);
      return;
    case 'fail': {
      const { point, call, nth } = recipe;
      world.step({ op: 'put_fault', fault: `${point}-${call}`, point, call, nth });
      return;
    }
    case 'straddle the end':
      straddleTheEnd(world, at(recipe.which));
      return;
    case 'reopen':
      reopen(world, recipe.group, recipe.device);
      return;
    case 'bind':
      bind(world, recipe.group, recipe.device);
      return;
    case 'unbind':
      unbind(world, recipe.group);
      return;
    case 'tear down':
      for (const group of [...(world.model.containers.get('C')?.groups ?? [])]) unbind(world, group);
      return;
    case 'kill': {
      const op = world.model.asleep[recipe.which % Math.max(1, world.model.asleep.length)];
      if (op !== undefined) world.step({ op: 'kill_operation', operation: op.id });
      return;
    }
    case 'late ack': {
      const n = world.model.next - 1 - recipe.back;
      if (n < 1 || world.model.pending.has(n)) return;
      const notification = `notification-${n}`;
      world.step({ op: 'ack_notification', device: 'D1', notification, ret: 1, reason: 'ack', detail: null });
      return;
    }
    default:
      followMapping(world, recipe, handler);
  }
}

/** While a mapping is announced, another thread removes it and maps across the end of where it was. */
function straddleTheEnd(world: World, pending: NaiveNotification | undefined): void {
  if (pending === undefined) return;
  const { iova, size, n, device } = pending;
  unpinInHandler(world, pending, true);
  const range = { container: 'C', iova, size, flags: 0, argsz: null, bitmap: null };
  world.step({ op: 'unmap_dma', ...range, task: 'A' });
  const across = { container: 'C', task: 'A', vaddr: ANON, iova: iova + size - PAGE, size: 2n * PAGE };
  world.step({ op: 'map_dma', ...across, flags: 3, argsz: 32 });
  const answer = { device, notification: `notification-${n}`, ret: 1, reason: 'ack' as const, detail: null };
  world.step({ op: 'ack_notification', ...answer });
}

/** The group is opened anew while a block for its own events is still on its chain. */
function reopen(world: World, group: string, device: string): void {
  const notifier = { id: `K-${device}`, events: 1, type: 1, priority: 0, delivery: { kind: 'poll' } } as const;
  world.step({ op: 'register_notifier', device, notifier });
  unbind(world, group);
  world.step({ op: 'close_group', group });
  world.step({ op: 'open_group', group });
  bind(world, group, device);
}

/** A group joins, and a device of it is opened: from 6.0 on with a driver that listens. */
function bind(world: World, group: string, device: string | null): void {
  world.step({ op: 'set_container', group, container: 'C', task: null });
  if (device === null) return;
  world.step({ op: 'open_device', device });
  const notifier = { id: `K-${device}`, events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } } as const;
  if (world.model.rules.deviceIsListener) world.step({ op: 'register_notifier', device, notifier });
}

/** Closes the devices of a group, and takes it out of its container. */
function unbind(world: World, group: string): void {
  for (const device of world.model.groups.get(group)?.devices ?? [])
    while ((world.model.devices.get(device)?.open ?? 0) > 0) {
      const { outcome } = world.step({ op: 'close_device', device });
      if (outcome.refusal !== undefined) break;
    }
  world.step({ op: 'unset_container', group });
}

const from = (iovas: readonly bigint[], offset: bigint): bigint[] => iovas.map((iova) => iova + offset);
const saidBy = ({ npage, iovas }: { npage: number | null; iovas: bigint[] }): number => npage ?? iovas.length;

type OfMapping = Extract<
  Recipe,
  { do: 'pin what is mapped' | 'unmap what is mapped' | 'give a vaddr' | 'get bitmap' | 'move bytes' | 'log a write' }
>;

/** What begins at a mapping that exists. */
function followMapping(world: World, recipe: OfMapping, handler: (inside: number | null) => string | null): void {
  const mapping = mappingAt(world, recipe.which);
  if (mapping === undefined) return;
  const { iova, size } = mapping;
  const { rules } = world.model;
  switch (recipe.do) {
    case 'pin what is mapped': {
      // An index beyond the mapping's end pins what lies behind it: often nothing, and then all is rolled back.
      const iovas = recipe.pages.map((page) => (iova + BigInt(page) * PAGE) % 2n ** 64n);
      world.step(pinCommand(rules, recipe.device, iovas, mapping.prot));
      return;
    }
    case 'unmap what is mapped': {
      const { task, flags, inside } = recipe;
      const bitmap = (flags & 1) === 0 ? null : { pgsize: PAGE, size: 8n };
      const range: Command = { op: 'unmap_dma', container: 'C', task, iova, size, flags, argsz: null, bitmap };
      world.step(range, handler(inside));
      return;
    }
    case 'give a vaddr': {
      const invalid = world.model.containers.get('C')?.iommu?.maps.find((m) => m.invalid) ?? mapping;
      const { task, vaddr } = recipe;
      const range = { iova: invalid.iova, size: invalid.size };
      world.step({ op: 'map_dma', container: 'C', task, ...range, vaddr, flags: 4, argsz: 32 });
      return;
    }
    case 'move bytes': {
      const { device, at, length, byte, task } = recipe;
      const data = byte === null ? null : Buffer.alloc(length, byte).toString('base64');
      world.step({ op: 'dma_rw', device, iova: iova + at, length, write: byte !== null, data, task });
      return;
    }
    case 'log a write': {
      const log = { op: 'dirty_pages', container: 'C', argsz: null, task: null } as const;
      const range = { iova, size, pgsize: PAGE, bitmap_size: 8n };
      const data = Buffer.alloc(recipe.length, 0x5a).toString('base64');
      world.step({ ...log, flags: 1, range: null });
      const write = { iova: iova + recipe.at, length: recipe.length, write: true, data, task: null };
      world.step({ op: 'dma_rw', device: 'D1', ...write });
      world.step({ ...log, flags: 4, range });
      return;
    }
    case 'get bitmap': {
      const following = (world.model.containers.get('C')?.iommu?.maps ?? []).filter((m) => m.iova >= iova);
      const last = following[Math.min(recipe.more, following.length - 1)] ?? mapping;
      const range = { iova, size: last.iova + last.size - iova, pgsize: PAGE, bitmap_size: 8n };
      world.step({ op: 'dirty_pages', container: 'C', flags: 4, argsz: null, range, task: null });
    }
  }
}

function answer(
  world: World,
  recipe: Extract<Recipe, { do: 'answer' | 'time out' }>,
  first: NaiveNotification | undefined,
): void {
  let next = first;
  for (let i = 0; i < recipe.times && next !== undefined; i++) {
    const { n, device, op } = next;
    const notification = `notification-${n}`;
    if (recipe.do === 'time out') world.step({ op: 'notification_timeout', notification });
    else world.step({ op: 'ack_notification', device, notification, ret: recipe.ret, reason: 'ack', detail: null });
    next = [...world.model.pending.values()].find((pending) => pending.op === op);
  }
}

/** A driver that unpins everything at its n-th call for a mapping, as often as the unmap meets another mapping. */
function handle(world: World, first: NaiveNotification | undefined, attempt: number): void {
  let next = first;
  while (next !== undefined) {
    const { op, n, device } = next;
    if (next.attempt >= attempt) unpinInHandler(world, next, true);
    const notification = `notification-${n}`;
    world.step({ op: 'ack_notification', device, notification, ret: 1, reason: 'ack', detail: null });
    next = [...world.model.pending.values()].find((pending) => pending.op === op);
  }
}

function mappingAt(world: World, which: number): NaiveMapping | undefined {
  const maps = world.model.containers.get('C')?.iommu?.maps ?? [];
  return maps[which % Math.max(1, maps.length)];
}

/** What a good driver does: unpins what is pinned in the announced range, or only one reference of each page. */
function unpinInHandler(world: World, pending: NaiveNotification | undefined, all: boolean): void {
  const iommu = world.model.containers.get(pending?.container ?? '')?.iommu;
  const mapping = iommu?.maps.find(({ iova }) => iova === pending?.iova);
  if (pending === undefined || mapping === undefined) return;
  const iovas = [...mapping.pins].flatMap(([iova, { ref_count }]) => new Array<bigint>(all ? ref_count : 1).fill(iova));
  if (iovas.length === 0) return;
  const { rules } = world.model;
  const device = rules.deviceIsListener ? pending.device : 'D2';
  const calls = rules.takesArrays ? [iovas] : iovas.map((iova) => [iova]);
  for (const call of calls) world.step(unpinCommand(rules, device, call), nameOf(pending));
}
