// The VFIO side of a host: containers, groups, devices, notifier blocks, and the tables their records live in.

import { RbLinks } from '../lib/rbtree.ts';
import type { Container } from './container.ts';
import type { Device } from './device.ts';
import { DmaTable } from './dma.ts';
import type { Group } from './group.ts';
import type { LeakedMapping } from './ledger.ts';
import type { NotifierBlock, PendingNotification } from './notifier.ts';
import { PfnSlab } from './pfn-list.ts';

export class Vfio {
  readonly containers = new Map<string, Container>();
  readonly groups = new Map<string, Group>();
  readonly devices = new Map<string, Device>();
  /** Notifier blocks by id: one object, wherever it is registered. */
  readonly notifiers = new Map<string, NotifierBlock>();
  /** Notifier calls whose handler has not answered. */
  readonly notifications = new Map<string, PendingNotification>();
  next_notification = 1;
  /** Pins whose vfio_dma was removed under them: their page references and charges stay. */
  readonly leaked: LeakedMapping[] = [];

  constructor(
    readonly dmas = new DmaTable(new RbLinks()),
    readonly pfns = new PfnSlab(),
  ) {}

  /** The seq that changed records are marked with from now on. */
  setVersion(seq: number): void {
    this.pfns.links.version = seq;
    this.dmas.links.version = seq;
  }
}
