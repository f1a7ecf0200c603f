// Failures that are forced on a later call, as the kernel's own fault injection does: the n-th allocation or wait of that call.

import type { Command, Op } from './command.ts';
import { Errno, NoSuchObject } from './errno.ts';
import type { Host } from './host.ts';
import { MAX_FAULTS } from './limits.ts';
import type { Done } from './outcome.ts';

/**
 * `record_alloc`: the allocation of a vfio_pfn fails. `charge`: a fatal signal arrives while locked_vm's lock is waited for.
 * `subscriptions_alloc`: the allocation of an mm's notifier_subscriptions fails.
 * Of vfio-pci: `vma_list_alloc`: no memory for an entry of vma_list; `request_regions`: somebody else has the BARs; `iomap`,
 * `map_rom`: they cannot be mapped; `config_write`: the write does not reach the device.
 */
export const FAULT_POINTS = [
  'record_alloc',
  'charge',
  'subscriptions_alloc',
  'vma_list_alloc',
  'request_regions',
  'iomap',
  'map_rom',
  'config_write',
] as const;
export type FaultPoint = (typeof FAULT_POINTS)[number];

/** Holds for the next call of one operation, and is gone after it, met or not. */
export interface FaultRule {
  id: string;
  point: FaultPoint;
  /** The operation whose next call meets it. */
  call: Op;
  /** Which attempt of that call fails, from 1. */
  nth: number;
}

/** Sets a rule. EINVAL: nth below 1. EEXIST: set with another body, and not met yet. ENOSPC: the host has MAX_FAULTS. */
export function putFault(host: Host, command: Extract<Command, { op: 'put_fault' }>): Done {
  const { fault: id, point, call, nth } = command;
  if (!Number.isSafeInteger(nth) || nth < 1) throw new Errno('EINVAL', `nth: ${nth} is not a count from 1`);
  const set = host.faults.get(id);
  if (set !== undefined && (set.point !== point || set.call !== call || set.nth !== nth))
    throw new Errno('EEXIST', `fault '${id}' exists: the ${set.point} number ${set.nth} of the next ${set.call} fails`);
  const created = set === undefined;
  if (created && host.faults.size >= MAX_FAULTS)
    throw new Errno('ENOSPC', `faults: the host has ${MAX_FAULTS}, the most it can hold`);
  host.faults.set(id, { id, point, call, nth });
  return { ret: 0, created, fields: { id, point, call, nth } };
}

/** Takes a rule back that no call has met yet. */
export function deleteFault(host: Host, { fault: id }: Extract<Command, { op: 'delete_fault' }>): Done {
  if (!host.faults.delete(id)) throw new NoSuchObject('fault', id);
  return { ret: 0, fields: { id } };
}

/** The rules of a call that begins; they are used up. */
export function takeFaults(faults: Map<string, FaultRule>, { op }: Command): Host['failing'] {
  const taken: Host['failing'] = [];
  for (const { id, point, call, nth } of faults.values()) {
    if (call !== op) continue;
    faults.delete(id);
    taken.push({ point, left: nth });
  }
  return taken;
}

/** Whether this attempt of the call is one that a rule lets fail. */
export function shouldFail(host: Host, point: FaultPoint): boolean {
  let fails = false;
  for (const rule of host.failing) if (rule.point === point && --rule.left === 0) fails = true;
  return fails;
}
