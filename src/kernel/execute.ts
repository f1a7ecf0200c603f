// The one entrance to a host: executes a command, whole, and says what came of it. No logic here, only the switch.

import { requireLiveHost } from './bug.ts';
import type { Call, Command, HostOptions } from './command.ts';
import { traceCommand } from './command-trace.ts';
import { executeConsumer, settleConsumers } from './consumers.ts';
import { exec } from './exec.ts';
import { deleteFault, putFault } from './fault-rule.ts';
import { Host } from './host.ts';
import { access } from './mm/access.ts';
import { exitTask } from './mm/exit.ts';
import { putFile } from './mm/file.ts';
import { fork } from './mm/fork.ts';
import { gup, putGup } from './mm/gup-steps.ts';
import { ksmMerge } from './mm/ksm.ts';
import { madvise } from './mm/madvise.ts';
import { migrate, migrateVma } from './mm/migrate.ts';
import { mkclean } from './mm/mkclean.ts';
import { mlock } from './mm/mlock.ts';
import { mmap } from './mm/mmap.ts';
import { ackMmuNotification } from './mm/mmu-notifier/ack.ts';

import { getOpsNotifier, putMmuNotifier } from './mm/mmu-notifier/get.ts';
import {
  insertIntervalNotifier,
  intervalReadBegin,
  intervalReadRetry,
  intervalSetSeq,
  removeIntervalNotifier,
} from './mm/mmu-notifier/interval-commands.ts';
import { invalidate, mmuCall } from './mm/mmu-notifier/invalidate.ts';
import { registerMmuNotifier, unregisterMmuNotifier } from './mm/mmu-notifier/register.ts';
import { mapSecondary, unmapSecondary } from './mm/mmu-notifier/secondary.ts';
import { mprotect } from './mm/mprotect.ts';
import { mremap } from './mm/mremap.ts';
import { munmap } from './mm/munmap.ts';
import { oomReap } from './mm/oom-reap.ts';
import { putPage } from './mm/page.ts';
import { putPageContents } from './mm/page-bytes.ts';
import { reclaim } from './mm/reclaim.ts';
import { clearSoftDirty } from './mm/soft-dirty.ts';
import { adjustLockedVm, patchTask, putTask, signalTask } from './mm/task.ts';
import { lockByTask, unlockByTask } from './mm/task-locks.ts';
import { punchHole, truncate } from './mm/truncate.ts';
import { finishOperation, isDetached, type Operation } from './operation.ts';
import { type Done, type Outcome, refusalOf } from './outcome.ts';
import { patchHost } from './patch-host.ts';
import type { Profile } from './profile.ts';
import { applyTemplate } from './template.ts';
import { resumeOperation, runThreads, stepOperation } from './thread.ts';
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
    case 'fork':
      return fork(host, command);
    case 'gup':
      return gup(host, command);
    case 'put_gup':
      return putGup(host, command);
    case 'mremap':
      return mremap(host, command);
    case 'madvise':
      return madvise(host, command);
    case 'mlock':
      return mlock(host, command);
    case 'clear_soft_dirty':
      return clearSoftDirty(host, command);
    case 'oom_reap':
      return oomReap(host, command);
    case 'signal':
      return signalTask(host, command);
    case 'access':
      return access(host, command);
    case 'mprotect':
      return mprotect(host, command);
    case 'exit':
      return exitTask(host, command);
    case 'exec':
      return exec(host, command);
    case 'adjust_locked_vm':
      return adjustLockedVm(host, command);
    case 'put_page':
      return putPage(host, command);
    case 'put_file':
      return putFile(host, command);
    case 'truncate':
      return truncate(host, command);
    case 'punch_hole':
      return punchHole(host, command);
    case 'ksm_merge':
      return ksmMerge(host, command);
    case 'mkclean':
      return mkclean(host, command);
    case 'reclaim':
      return reclaim(host, command);
    case 'migrate':
      return migrate(host, command);
    case 'migrate_vma':
      return migrateVma(host, command);
    case 'lock':
      return lockByTask(host, command);
    case 'unlock':
      return unlockByTask(host, command);
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
    case 'ack_mmu_notification':
      return ackMmuNotification(host, command);
    case 'notification_timeout':
      return notificationTimeout(host, command);
    case 'kill_operation':
      return killOperation(host, command);
    case 'step_operation':
      return stepOperation(host, command.operation);
    case 'resume_operation':
      return resumeOperation(host, command.operation, command.stop_at ?? null);
    case 'register_mmu_notifier':
      return registerMmuNotifier(host, command);
    case 'unregister_mmu_notifier':
      return unregisterMmuNotifier(host, command);
    case 'get_mmu_notifier':
      return getOpsNotifier(host, command);
    case 'put_mmu_notifier':
      return putMmuNotifier(host, command);
    case 'insert_interval_notifier':
      return insertIntervalNotifier(host, command);
    case 'remove_interval_notifier':
      return removeIntervalNotifier(host, command);
    case 'interval_read_begin':
      return intervalReadBegin(host, command);
    case 'interval_read_retry':
    case 'interval_check_retry':
      return intervalReadRetry(host, command);
    case 'interval_set_seq':
      return intervalSetSeq(host, command);
    case 'map_secondary':
      return mapSecondary(host, command);
    case 'unmap_secondary':
      return unmapSecondary(host, command);
    case 'invalidate':
      return invalidate(host, command);
    case 'mmu_call':
      return mmuCall(host, command);
    case 'put_fault':
      return putFault(host, command);
    case 'delete_fault':
      return deleteFault(host, command);
    default:
      return executeConsumer(host, command);
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
    requireLiveHost(host);
    result = dispatch(host, call.command);
  } catch (error) {
    result = refusalOf(error);
  }
  runThreads(host);
  settleConsumers(host);
  runThreads(host);
  endStarted(host, result);
  traceCommand(host, call.command, result);
  const { finished, emitted } = host;
  const detached = host.detached.filter((id) => isDetached(host.operations.get(id) as Operation));
  return { ...result, finished, emitted, ...(detached.length === 0 ? {} : { detached }) };
}

/**
 * Makes a host as its template says. `created_at` in milliseconds since the epoch. `profile`, where given, instead of the one
 * that the options name: such a host cannot be restored from its journal, it only shows what a behaviour changes.
 */
export function createHost(id: string, options: HostOptions, created_at: number, profile?: Profile): Host {
  const host = new Host(id, options, created_at, undefined, undefined, profile);
  applyTemplate(host);
  return host;
}
