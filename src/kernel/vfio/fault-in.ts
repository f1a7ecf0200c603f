// A pin, a map or an access that meets pages whose faults tell somebody, or have to wait: it becomes a thread that brings them
// in one by one, and then does at once what it was called for.

import type { Host } from '../host.ts';
import { mmapLock } from '../lock.ts';
import { VM_FAULT_ERROR } from '../mm/fault-flags.ts';
import { takesThread } from '../mm/fault-steps.ts';
import type { MmId, MmStruct } from '../mm/mm.ts';
import { vmaAt } from '../mm/vma.ts';
import { type Locals, newOperation, type Operation, requireRoomForOperation } from '../operation.ts';
import type { Done } from '../outcome.ts';
import type { Handlers, Step } from '../steps.ts';
import { answerOf, newThread, pushSteps, runThreads, schedule, type ThreadOperation } from '../thread.ts';
import { getContainer } from './container.ts';
import { dmaRwAgain, dmaRwNeed } from './dma-rw.ts';
import { dropContainerUser, getGroup, holdContainerUser } from './group.ts';
import { mapAgain, mapNeed } from './map.ts';
import { pinAgain, pinNeed } from './pin.ts';

/** A page that has to be brought in by a thread: entry or byte `index` of the call. */
export interface Need {
  index: number;
  mm: MmStruct;
  page: number;
  write: boolean;
}

/** What an operation of this kind remembers: the address space that it is inside, null while it is inside none. */
export interface FaultInLocals {
  mm?: MmId | null;
}

type FaultInOperation = Extract<Locals, { kind: 'pin_pages' | 'map_dma' | 'dma_rw' }>;

export type FaultInStep =
  /** Looks for the next page from `at` on; where there is none from the first on, the call is made. */
  | { do: 'fault_in'; at: number; cleanup?: true }
  | { do: 'faulted_in'; at: number; cleanup?: true }
  | { do: 'drop_container_user'; group: string; cleanup: true };

/** Whether anything in the host could make a fault more than a look at the page table. */
export const mayTakeThread = ({ locks, mm }: Host): boolean =>
  locks.size > 0 || mm.nonpresent > 0 || mm.mmu_notifiers.size > 0 || mm.next_vma > 1;

/** The page of an area, if a thread has to bring it in; 'hole': the call ends before it. */
export function needOf(host: Host, mm: MmStruct, page: number, write: boolean, index: number): Need | 'hole' | null {
  if (vmaAt(mm, page) === null) return 'hole';
  return takesThread(host, mm, page, write) ? { index, mm, page, write } : null;
}

/**
 * Makes the call a thread, or lets the operation that waited for a vaddr go on as one; until it ends, it is a user of its
 * container. EBUSY: MAX_PARKED_OPERATIONS.
 */
export function faultIn(host: Host, started: FaultInOperation, waiting: Operation | null): Done {
  const group = 'group' in started.locals ? started.locals.group : null;
  const steps: Step[] = [{ do: 'fault_in', at: 0 }];
  if (group !== null) steps.push({ do: 'drop_container_user', group, cleanup: true });
  if (waiting !== null) {
    waiting.thread = newThread(steps);
    schedule(host, waiting as ThreadOperation);
    return { ret: 0, fields: {}, parked: waiting.id };
  }
  requireRoomForOperation(host);
  if (group !== null) holdContainerUser(host, group);
  const operation = newOperation(host, started, newThread(steps)) as ThreadOperation;
  schedule(host, operation);
  runThreads(host);
  return answerOf(operation);
}

function needFrom(host: Host, operation: ThreadOperation, at: number): Need | null {
  switch (operation.kind) {
    case 'pin_pages':
      return pinNeed(host, operation.locals, at);
    case 'map_dma':
      return mapNeed(host, operation.locals.command, at);
    case 'dma_rw':
      return dmaRwNeed(host, operation.locals, at);
    default:
      throw new Error(`${operation.id} brings nothing in`);
  }
}

/** Does what the operation was called for; where it has to wait for a vaddr, it looks at all pages again after that. */
function callAgain(host: Host, operation: ThreadOperation): void {
  let done: Done;
  if (operation.kind === 'pin_pages') done = pinAgain(host, operation);
  else if (operation.kind === 'map_dma') done = mapAgain(host, operation.locals.command);
  else if (operation.kind === 'dma_rw') done = dmaRwAgain(host, operation);
  else throw new Error(`${operation.id} brings nothing in`);
  if (done.parked !== undefined) pushSteps(operation, [{ do: 'fault_in', at: 0 }]);
  operation.thread.ret = done.ret;
  operation.thread.fields = done.fields;
}

function enterMm(operation: ThreadOperation, mm: MmId | null): void {
  if (operation.kind === 'pin_pages' || operation.kind === 'map_dma' || operation.kind === 'dma_rw')
    operation.locals.mm = mm;
}

export const faultInSteps: Handlers<FaultInStep> = {
  fault_in(host, operation, { at }) {
    const need = needFrom(host, operation, at);
    enterMm(operation, need?.mm.id ?? null);
    if (need === null) {
      if (at > 0) pushSteps(operation, [{ do: 'fault_in', at: 0 }]);
      else callAgain(host, operation);
      return;
    }
    const { index, mm, page, write } = need;
    const lock = mmapLock(mm.id);
    pushSteps(operation, [
      { do: 'lock', lock, mode: 'R' },
      { do: 'fault', mm: mm.id, page, write },
      { do: 'unlock', lock, cleanup: true },
      { do: 'faulted_in', at: index + 1 },
    ]);
  },

  /** A page that cannot be brought in is refused by the call itself, in its order. */
  faulted_in(host, operation, { at }) {
    enterMm(operation, null);
    if ((operation.thread.returned & VM_FAULT_ERROR) === 0) pushSteps(operation, [{ do: 'fault_in', at }]);
    else callAgain(host, operation);
  },

  drop_container_user(host, _operation, { group: id }) {
    const group = getGroup(host, id);
    if (group.container !== null && getContainer(host, group.container).dead !== null) group.container_users--;
    else dropContainerUser(host, id);
  },
};
