// Models what a BUG leaves behind: the task that hit it dies with iommu->lock held, so the container never answers again.

import { ERRNO, Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { containerOf, containerUserOf, finishOperation, type Operation } from '../operation.ts';
import type { Fields, Outcome } from '../outcome.ts';
import { abortThread, type ThreadOperation } from '../thread.ts';
import type { Container } from './container.ts';
import { readSoFar } from './dma-rw.ts';
import { getGroup } from './group.ts';
import { zeroedOutput } from './pin.ts';

/** Raises a BUG in a container: a splat, the container dead, and every operation that waits in it refused with EIO. */
export function killContainer(host: Host, container: Container, where: string, what: string, path: string[]): void {
  splat(host, 'BUG', where, what, path);
  container.dead = { text: `BUG at ${where}: ${what}`, where, seq: host.seq, at: host.call.at };
  for (const [id, pending] of host.vfio.notifications)
    if (pending.notification.container === container.id) host.vfio.notifications.delete(id);
  for (const operation of [...host.operations.values()])
    if (operation.state !== 'done' && containerOf(operation) === container.id) {
      if (operation.thread !== undefined) {
        abortThread(host, operation as ThreadOperation, deadError(container, operation));
        continue;
      }
      finishOperation(host, operation, deadOutcome(container, operation));
      const user = containerUserOf(operation);
      if (user !== null) getGroup(host, user).container_users--;
    }
}

/** What the kernel has filled in for a call by then. */
function leftBy(operation: Operation): Fields {
  switch (operation.kind) {
    case 'unmap_dma':
      return { notifications: operation.locals.notifications };
    case 'pin_pages':
      return zeroedOutput(operation.locals.command);
    case 'dma_rw':
      return readSoFar(operation.locals);
    case 'register_notifier':
      return { events_left: 0 };
    default:
      return {};
  }
}

/** A loop in a notifier chain is walked for ever, with its lock held: the container is lost. */
export function softLockup(host: Host, container: Container, op: string): Errno {
  const what = `soft-lockup: ${op} walks a notifier chain that a double registration has closed to a loop`;
  killContainer(host, container, 'notifier_call_chain', what, ['blocking_notifier_call_chain']);
  return new Errno('EIO', `container '${container.id}' died: ${what}`, {
    hint: 'a block must not be registered twice in this kernel; see dmesg',
  });
}

/** The same for a call that runs as a thread: it releases its locks, and its container, before it returns. */
const deadError = (container: Container, operation: Operation): Errno =>
  new Errno('EIO', `container '${container.id}' died: ${container.dead?.text ?? ''}`, {
    hint: 'see dmesg; reset the host or use another container',
    left: leftBy(operation),
  });

/** What a call that was blocked in a container gets when the container dies. */
function deadOutcome(container: Container, operation: Operation): Outcome {
  return {
    ret: -ERRNO.EIO,
    fields: {},
    refusal: {
      errno: 'EIO',
      detail: `container '${container.id}' died: ${container.dead?.text ?? ''}`,
      hint: 'see dmesg; reset the host or use another container',
      left: leftBy(operation),
    },
    finished: [],
    emitted: [],
  };
}
