// Models vhost as far as it lives with its owner's pages: rings that it reads and writes through the kernel's own addresses.

import type { Consumer } from '../consumer.ts';
import type { Phase } from '../phase.ts';
import { type RingAccessStep, ringAccessSteps } from './access.ts';
import { type CallbackStep, callbackSteps, vhostCallbacks } from './callbacks.ts';
import { checkCounts, checkVhost } from './check.ts';
import { type Area, putVhostDev, type VhostState } from './device.ts';
import { type MapStep, mapSteps } from './maps.ts';
import { closeVhostDev, exitOwner, type OwnerStep, ownerSteps, setOwner } from './owner.ts';
import { accessRing, type RoundStep, round, roundSteps } from './round.ts';
import type { Switches, Variant } from './rules.ts';
import { setBackend, setFeatures, setVringAddr, setVringNum, type VringStep, vringSteps } from './vring.ts';

/** `task`: who calls. */
export type VhostCommand =
  | { op: 'put_vhost_dev'; dev: string; variant: Variant; nvqs: number; switches: Partial<Switches> }
  | { op: 'close_vhost_dev'; dev: string }
  | { op: 'vhost_set_owner'; dev: string; task: string; stop_at?: Phase }
  | { op: 'vhost_set_features'; dev: string; task: string; features: number }
  | { op: 'vhost_set_vring_num'; dev: string; vq: number; task: string; num: number; stop_at?: Phase }
  | {
      op: 'vhost_set_vring_addr';
      dev: string;
      vq: number;
      task: string;
      flags: number;
      desc: bigint;
      avail: bigint;
      used: bigint;
      stop_at?: Phase;
    }
  | { op: 'vhost_set_backend'; dev: string; vq: number; task: string; active: boolean }
  | { op: 'vhost_round'; dev: string; vq: number; stop_at?: Phase }
  /** `data`: base64, of a write; `length`: of a read. */
  | {
      op: 'vhost_access';
      dev: string;
      vq: number;
      area: Area;
      off: number;
      write: boolean;
      length?: number;
      data?: string;
      stop_at?: Phase;
    };

export type VhostStep = MapStep | CallbackStep | RingAccessStep | RoundStep | OwnerStep | VringStep;

export type { VhostState } from './device.ts';

export const vhost: Consumer<VhostCommand, VhostStep, VhostState> = {
  newState: () => ({ devs: new Map() }),
  commands: {
    put_vhost_dev: putVhostDev,
    close_vhost_dev: closeVhostDev,
    vhost_set_owner: setOwner,
    vhost_set_features: setFeatures,
    vhost_set_vring_num: setVringNum,
    vhost_set_vring_addr: setVringAddr,
    vhost_set_backend: setBackend,
    vhost_round: round,
    vhost_access: accessRing,
  },
  steps: { ...mapSteps, ...callbackSteps, ...ringAccessSteps, ...roundSteps, ...ownerSteps, ...vringSteps },
  users: [
    'vhost_set_owner',
    'vhost_set_features',
    'vhost_set_vring_num',
    'vhost_set_vring_addr',
    'vhost_set_backend',
    'vhost_round',
    'vhost_access',
  ],
  callbacks: vhostCallbacks,
  exit: exitOwner,
  quiet: checkCounts,
  check: checkVhost,
};
