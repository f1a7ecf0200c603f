// Models what a BUG leaves behind: the task that hit it dies with iommu->lock held, so the container never answers again.

import { ERRNO, Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { finishOperation, type Operation } from '../operation.ts';
import type { Fields, Outcome } from '../outcome.ts';
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
    if (operation.state !== 'done' && operation.locals.container === container.id) {
      finishOperation(host, operation, deadOutcome(container, operation));
      if (operation.kind !== 'unmap_dma' && operation.kind !== 'set_container')
        getGroup(host, operation.locals.group).container_users--;
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
    case 'unregister_notifier':
    case 'set_container':
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
