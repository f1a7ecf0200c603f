// A host that is served: its actor, and what follows its commits.

import type { Host } from '../kernel/host.ts';
import { Checkpointer, type CheckpointSettings, NOTHING_WRITTEN } from './checkpointer.ts';
import { HostActor, type Surroundings } from './host-actor.ts';
import type { StoredOptions } from './host-options.ts';
import type { HostRow } from './ports.ts';
import { Projector } from './projector.ts';
import type { Recovered } from './recovery.ts';

export class RunningHost {
  readonly state = 'running';
  readonly actor: HostActor;
  readonly checkpointer: Checkpointer;
  readonly projector: Projector;
  private readonly unanswered: Recovered['unanswered'];

  constructor(
    recovered: Recovered,
    around: Omit<Surroundings, 'onCommitted' | 'onBroken'>,
    checkpoints: CheckpointSettings,
    onBroken: (error: Error) => void,
  ) {
    const { host, row, options, written, replayed, unanswered } = recovered;
    const onCommitted = (journalBytes: number): void => {
      this.checkpointer.count(1, journalBytes);
      this.projector.schedule();
    };
    this.actor = new HostActor(host, row, options, { ...around, onCommitted, onBroken });
    this.checkpointer = new Checkpointer(this.actor, around, checkpoints, written);
    this.projector = new Projector(this.actor, around);
    this.unanswered = unanswered;
    this.checkpointer.count(replayed.commands, replayed.bytes);
  }

  get row(): Readonly<HostRow> {
    return this.actor.row;
  }

  /** Begins what needs no request: deliveries that were pending, the relational rows. */
  start(): void {
    this.actor.resume(this.unanswered);
    this.projector.schedule();
  }

  close(error: Error): void {
    this.actor.close(error);
    this.projector.stop();
  }
}

/** A host that has just been made, in the form that recovery gives. */
export const newborn = (host: Host, row: HostRow, options: StoredOptions): Recovered => ({
  host,
  row,
  options,
  written: NOTHING_WRITTEN,
  replayed: { commands: 0, bytes: 0 },
  unanswered: [],
});
