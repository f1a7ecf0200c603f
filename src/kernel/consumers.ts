// Every consumer of a host's memory: a folder of its own, and one line in each list here.

import type { Command } from './command.ts';
import type { Consumer, VmaOps } from './consumer.ts';
import { type ExclusiveCommand, type ExclusiveState, type ExclusiveStep, exclusive } from './exclusive/exclusive.ts';
import type { Host } from './host.ts';
import { type KvmCommand, type KvmStep, kvm } from './kvm/kvm.ts';
import type { KvmState } from './kvm/vm.ts';
import type { MmId } from './mm/mm.ts';
import type { Done } from './outcome.ts';
import type { Step } from './steps.ts';
import type { ThreadOperation } from './thread.ts';
import { type VfioPciCommand, type VfioPciState, type VfioPciStep, vfioPci } from './vfio-pci/vfio-pci.ts';
import { type VhostCommand, type VhostState, type VhostStep, vhost } from './vhost/vhost.ts';
import {
  type ZoneDeviceCommand,
  type ZoneDeviceState,
  type ZoneDeviceStep,
  zoneDevice,
} from './zone-device/zone-device.ts';

export interface ConsumerStates {
  exclusive: ExclusiveState;
  kvm: KvmState;
  vhost: VhostState;
  vfio_pci: VfioPciState;
  zone_device: ZoneDeviceState;
}
export type ConsumerCommand = ExclusiveCommand | KvmCommand | VhostCommand | VfioPciCommand | ZoneDeviceCommand;
export type ConsumerStep = ExclusiveStep | KvmStep | VhostStep | VfioPciStep | ZoneDeviceStep;
export type ConsumerName = keyof ConsumerStates;

type AnyConsumer = Consumer<Command, { do: string }, unknown>;

/** Made at the first use: the modules refer to each other. */
let table: Readonly<Record<ConsumerName, AnyConsumer>> | null = null;

function consumers(): Readonly<Record<ConsumerName, AnyConsumer>> {
  table ??= { exclusive, kvm, vhost, vfio_pci: vfioPci, zone_device: zoneDevice } as unknown as Record<
    ConsumerName,
    AnyConsumer
  >;
  return table;
}

export const consumerOf = (name: ConsumerName): AnyConsumer => consumers()[name];

/** Operations of the areas that a consumer has mapped. */
export function vmaOpsOf(name: ConsumerName): VmaOps {
  const { vmaOps } = consumerOf(name);
  if (vmaOps === undefined) throw new Error(`consumer '${name}' has no areas`);
  return vmaOps;
}

/** Whether an operation of a consumer is a user of the address space that its locals name. */
export const isUserOfMm = (kind: string): boolean =>
  Object.values(consumers()).some(({ users }) => users?.some((op) => op === kind));

export const newConsumerStates = (): ConsumerStates =>
  Object.fromEntries(
    Object.entries(consumers()).map(([name, { newState }]) => [name, newState()]),
  ) as unknown as ConsumerStates;

/** Every step that a consumer can take. */
export const consumerSteps = (): Record<string, unknown> =>
  Object.assign({}, ...Object.values(consumers()).map(({ steps }) => steps));

/** Executes a command that is a consumer's own. */
export function executeConsumer(host: Host, command: ConsumerCommand): Done {
  for (const { commands } of Object.values(consumers())) {
    const execute = (commands as Record<string, ((host: Host, command: Command) => Done) | undefined>)[command.op];
    if (execute !== undefined) return execute(host, command);
  }
  throw new Error(`no consumer has the command '${command.op}'`);
}

/** Page references, and pins, that consumers hold: one for each mention. */
export const consumerReferences = (host: Host): number[] =>
  Object.values(consumers()).flatMap(({ references }) => [...(references?.(host) ?? [])]);
export const consumerPins = (host: Host): number[] =>
  Object.values(consumers()).flatMap(({ pins }) => [...(pins?.(host) ?? [])]);

export function settleConsumers(host: Host): void {
  for (const { settle } of Object.values(consumers())) settle?.(host);
}

/** Operations that one which waits for something of a consumer's waits for. */
export function consumerWaits(host: Host, on: string): string[] {
  for (const { waitsFor } of Object.values(consumers())) {
    const found = waitsFor?.(host, on) ?? null;
    if (found !== null) return found;
  }
  return [];
}

export const checkConsumers = (host: Host): string[] => Object.values(consumers()).flatMap(({ check }) => check(host));

/** No range of an mm is between its start and its end any more. */
export function quietConsumers(host: Host, operation: ThreadOperation, mm: MmId): void {
  for (const { quiet } of Object.values(consumers())) quiet?.(host, operation, mm);
}

/** What the consumers do when the last process of an mm exits. */
export const consumerExits = (host: Host, mm: MmId): Step[] =>
  Object.values(consumers()).flatMap(({ exit }) => exit?.(host, mm) ?? []);
