// Models device-exclusive access: a device has pages of a process to itself until somebody else looks at them.

import type { Consumer } from '../consumer.ts';
import type { Phase } from '../phase.ts';
import { type CallbackStep, callbackSteps, exclusiveCallbacks } from './callbacks.ts';
import { checkExclusivePages } from './check.ts';
import {
  type DeviceStep,
  deleteExclusiveDevice,
  deviceSteps,
  type ExclusiveState,
  mappedWithin,
  putExclusiveDevice,
  secondaryOf,
} from './device.ts';
import { checkExclusive, type DmirrorStep, deviceAccess, dmirrorExclusive, dmirrorSteps } from './dmirror.ts';
import {
  dropExclusiveGrant,
  type GrantStep,
  grantReferences,
  grantSteps,
  makeDeviceExclusive,
  mapExclusiveGrant,
} from './grant.ts';
import { type MakeStep, makeSteps } from './make.ts';
import { type MirrorStep, mirrorRange, mirrorSteps } from './mirror.ts';

export type ExclusiveCommand =
  | {
      op: 'put_exclusive_device';
      device: string;
      task: string;
      kind: 'interval' | 'plain';
      owner_filter: boolean;
      start: bigint;
      length: bigint;
    }
  | { op: 'delete_exclusive_device'; device: string }
  | { op: 'make_device_exclusive'; device: string; start: bigint; length: bigint; grant?: string; stop_at?: Phase }
  | { op: 'drop_exclusive_grant'; device: string; grant: string }
  | { op: 'map_exclusive_grant'; device: string; grant: string; sequence?: number; stop_at?: Phase }
  | { op: 'dmirror_exclusive'; device: string; start: bigint; length: bigint; stop_at?: Phase }
  | { op: 'check_exclusive'; device: string; start: bigint; length: bigint }
  | {
      op: 'mirror_range';
      device: string;
      start: bigint;
      length: bigint;
      fault: boolean;
      write: boolean;
      stop_at?: Phase;
    }
  /** `data`: base64, of a write; `length`: of a read. */
  | { op: 'device_access'; device: string; addr: bigint; write: boolean; length?: number; data?: string };

export type ExclusiveStep = CallbackStep | DeviceStep | DmirrorStep | GrantStep | MakeStep | MirrorStep;

export type { ExclusiveState } from './device.ts';

export const exclusive: Consumer<ExclusiveCommand, ExclusiveStep, ExclusiveState> = {
  newState: () => ({ devices: new Map() }),
  commands: {
    put_exclusive_device: putExclusiveDevice,
    delete_exclusive_device: deleteExclusiveDevice,
    make_device_exclusive: makeDeviceExclusive,
    drop_exclusive_grant: dropExclusiveGrant,
    map_exclusive_grant: mapExclusiveGrant,
    dmirror_exclusive: dmirrorExclusive,
    check_exclusive: checkExclusive,
    mirror_range: mirrorRange,
    device_access: deviceAccess,
  },
  steps: { ...callbackSteps, ...deviceSteps, ...dmirrorSteps, ...grantSteps, ...makeSteps, ...mirrorSteps },
  users: ['make_device_exclusive', 'map_exclusive_grant', 'dmirror_exclusive', 'mirror_range'],
  callbacks: exclusiveCallbacks,
  *secondaries({ consumers }, { handler }, range) {
    const device = handler.kind === 'consumer' ? consumers.exclusive.devices.get(handler.of) : undefined;
    if (device === undefined) return;
    for (const [page, mapping] of mappedWithin(device, range)) yield [page, secondaryOf(mapping)];
  },
  references: grantReferences,
  check: checkExclusivePages,
};
