// The one entrance to a host: executes a command, whole, and says what came of it. No logic here, only the switch.

import type { Call, Command, HostOptions } from './command.ts';
import { deleteFault, putFault } from './fault-rule.ts';
import { Host, trace } from './host.ts';
import { mmap, mprotect, munmap } from './mm/mmap.ts';
import { putPage } from './mm/page.ts';
import { putPageContents } from './mm/page-bytes.ts';
import { adjustLockedVm, exitTask, patchTask, putTask } from './mm/task.ts';
import { finishOperation } from './operation.ts';
import { type Done, type Outcome, refusalOf } from './outcome.ts';
import { patchHost } from './patch-host.ts';
import type { Profile } from './profile.ts';
import { applyTemplate } from './template.ts';
import { closeContainer, putContainer, setIommu } from './vfio/container.ts';
import { closeDevice, openDevice, putDevice, putDeviceInContainer } from './vfio/device.ts';
import { dirtyPages } from './vfio/dirty-pages.ts';
import { dmaRw } from './vfio/dma-rw.ts';
import { closeGroup, openGroup, putGroup, setContainer, unsetContainer } from './vfio/group.ts';
import { mapDma } from './vfio/map.ts';
import { ackNotification, notificationTimeout, registerNotifier, unregisterNotifier } from './vfio/notifier.ts';
import { pinPages } from './vfio/pin.ts';
import { unmapDma } from './vfio/unmap.ts';
import { unpinPages } from './vfio/unpin.ts';
import { killOperation } from './vfio/vaddr.ts';

function dispatch(host: Host, command: Command): Done {
  switch (command.op) {
    case 'patch_host':
      return patchHost(host, command);
    case 'put_task':
      return putTask(host, command);
    case 'patch_task':
      return patchTask(host, command);
    case 'mmap':
      return mmap(host, command);
    case 'munmap':
      return munmap(host, command);
    case 'mprotect':
      return mprotect(host, command);
    case 'exit':
      return exitTask(host, command);
    case 'adjust_locked_vm':
      return adjustLockedVm(host, command);
    case 'put_page':
      return putPage(host, command);
    case 'put_page_contents':
      return putPageContents(host, command);
    case 'put_container':
      return putContainer(host, command);
    case 'close_container':
      return closeContainer(host, command);
    case 'put_group':
      return putGroup(host, command);
    case 'open_group':
      return openGroup(host, command);
    case 'close_group':
      return closeGroup(host, command);
    case 'set_container':
      return setContainer(host, command);
    case 'unset_container':
      return unsetContainer(host, command);
    case 'set_iommu':
      return setIommu(host, command);
    case 'put_device':
      return putDevice(host, command);
    case 'put_device_in_container':
      return putDeviceInContainer(host, command);
    case 'open_device':
      return openDevice(host, command);
    case 'close_device':
      return closeDevice(host, command);
    case 'dirty_pages':
      return dirtyPages(host, command);
    case 'dma_rw':
      return dmaRw(host, command);
    case 'map_dma':
      return mapDma(host, command);
    case 'unmap_dma':
      return unmapDma(host, command);
    case 'pin_pages':
      return pinPages(host, command);
    case 'unpin_pages':
      return unpinPages(host, command);
    case 'register_notifier':
      return registerNotifier(host, command);
    case 'unregister_notifier':
      return unregisterNotifier(host, command);
    case 'ack_notification':
      return ackNotification(host, command);
    case 'notification_timeout':
      return notificationTimeout(host, command);
    case 'kill_operation':
      return killOperation(host, command);
    case 'put_fault':
      return putFault(host, command);
    case 'delete_fault':
      return deleteFault(host, command);
  }
}

/** An operation that the command started and that never had to wait ends with it. */
function endStarted(host: Host, result: Omit<Outcome, 'finished' | 'emitted'>): void {
  for (const operation of host.started)
    if (operation.state === 'running') finishOperation(host, operation, { ...result, finished: [], emitted: [] });
}

/** Executes one call at the next position of the host's journal. Same host, same call: same outcome, bit for bit. */
export function execute(host: Host, call: Call): Outcome {
  host.begin(call);
  let result: Omit<Outcome, 'finished' | 'emitted'>;
  try {
    result = dispatch(host, call.command);
  } catch (error) {
    result = refusalOf(error);
  }
  endStarted(host, result);
  const errno = result.refusal?.errno ?? null;
  trace(host, 'operation', call.command.op, { ret: result.ret, errno, parked: result.parked ?? null });
  return { ...result, finished: host.finished, emitted: host.emitted };
}

/**
 * Makes a host as its template says. `created_at` in milliseconds since the epoch. `behaviours` take the place of its profile's:
 * a kernel that never was, which shows what one behaviour alone changes.
 */
export function createHost(
  id: string,
  options: HostOptions,
  created_at: number,
  behaviours: Partial<Profile> = {},
): Host {
  const host = new Host(id, options, created_at, undefined, undefined, behaviours);
  applyTemplate(host);
  return host;
}
