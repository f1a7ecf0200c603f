// Every step that a thread of the emulated kernel can take, and who takes it. No logic here, only the table.

import { type ConsumerStep, consumerSteps } from './consumers.ts';
import type { Host } from './host.ts';
import { type AccessStep, accessSteps } from './mm/access.ts';
import { type EntryFaultStep, entryFaultSteps } from './mm/entry-fault.ts';
import { type ExclusiveEntryStep, exclusiveEntrySteps } from './mm/exclusive-entry.ts';
import { type ExitStep, exitSteps } from './mm/exit.ts';
import { type FaultStep, faultSteps } from './mm/fault-steps.ts';
import { type ForkStep, forkSteps } from './mm/fork.ts';
import { type GupPageStep, gupPageSteps } from './mm/gup-page.ts';
import { type GupStep, gupSteps } from './mm/gup-steps.ts';
import { type KsmStep, ksmSteps } from './mm/ksm.ts';
import { type LockStep, lockSteps } from './mm/lock-steps.ts';
import { type MadviseStep, madviseSteps } from './mm/madvise.ts';
import { type MigrateStep, type MigrateVmaStep, migrateSteps, migrateVmaSteps } from './mm/migrate.ts';
import { type MkcleanStep, mkcleanSteps } from './mm/mkclean.ts';
import { type MlockStep, mlockSteps } from './mm/mlock.ts';
import { type MmapStep, mmapSteps } from './mm/mmap.ts';
import { type CallbackStep, callbackSteps } from './mm/mmu-notifier/call.ts';
import { type GetStep, getSteps } from './mm/mmu-notifier/get.ts';
import { type IntervalStep, intervalSteps } from './mm/mmu-notifier/interval.ts';
import { type IntervalCommandStep, intervalCommandSteps } from './mm/mmu-notifier/interval-commands.ts';
import { type InvalidateStep, invalidateSteps } from './mm/mmu-notifier/invalidate.ts';
import { type RangeStep, rangeSteps } from './mm/mmu-notifier/range.ts';
import { type RegisterStep, registerSteps } from './mm/mmu-notifier/register.ts';
import { type ReleaseStep, releaseHandlers } from './mm/mmu-notifier/release.ts';
import { type ScriptStep, scriptSteps } from './mm/mmu-notifier/script.ts';
import { type SecondaryStep, secondarySteps } from './mm/mmu-notifier/secondary.ts';
import { type SrcuStep, srcuSteps } from './mm/mmu-notifier/srcu.ts';
import { type MprotectStep, mprotectSteps } from './mm/mprotect.ts';
import { type MremapStep, mremapSteps } from './mm/mremap.ts';
import { type MunmapStep, munmapSteps } from './mm/munmap.ts';
import { type OomReapStep, oomReapSteps } from './mm/oom-reap.ts';
import { type PageLockStep, pageLockSteps } from './mm/page-lock-steps.ts';
import { type ReclaimStep, reclaimSteps } from './mm/reclaim.ts';
import { type RmapStep, rmapSteps } from './mm/rmap.ts';
import { type SoftDirtyStep, softDirtySteps } from './mm/soft-dirty.ts';
import { type TaskLockStep, taskLockSteps } from './mm/task-locks.ts';
import { type TruncateStep, truncateSteps } from './mm/truncate.ts';
import { type UnmapStep, unmapSteps } from './mm/unmap-page.ts';
import { type ZapStep, zapSteps } from './mm/zap.ts';
import type { ThreadOperation } from './thread.ts';
import { type FaultInStep, faultInSteps } from './vfio/fault-in.ts';

/** Plain data. `cleanup`: done also while the thread ends with an error. */
export type Step =
  | ConsumerStep
  | AccessStep
  | EntryFaultStep
  | ExclusiveEntryStep
  | ExitStep
  | FaultStep
  | GupPageStep
  | ForkStep
  | GupStep
  | KsmStep
  | LockStep
  | MadviseStep
  | MigrateStep
  | MigrateVmaStep
  | MkcleanStep
  | MlockStep
  | MmapStep
  | CallbackStep
  | GetStep
  | IntervalCommandStep
  | IntervalStep
  | InvalidateStep
  | RangeStep
  | RegisterStep
  | ReleaseStep
  | ScriptStep
  | SecondaryStep
  | SrcuStep
  | MprotectStep
  | MremapStep
  | MunmapStep
  | OomReapStep
  | PageLockStep
  | ReclaimStep
  | RmapStep
  | SoftDirtyStep
  | TaskLockStep
  | TruncateStep
  | UnmapStep
  | ZapStep
  | FaultInStep;

/** One function for each step of a module. */
export type Handlers<S extends { do: string }> = {
  [K in S['do']]: (host: Host, operation: ThreadOperation, step: Extract<S, { do: K }>) => void;
};

type AnyHandler = (host: Host, operation: ThreadOperation, step: Step) => void;

/** Made at the first use: the modules refer to each other. */
let table: Readonly<Record<string, AnyHandler>> | null = null;

export function performStep(host: Host, operation: ThreadOperation, step: Step): void {
  table ??= {
    ...consumerSteps(),
    ...accessSteps,
    ...entryFaultSteps,
    ...exclusiveEntrySteps,
    ...exitSteps,
    ...faultSteps,
    ...gupPageSteps,
    ...forkSteps,
    ...gupSteps,
    ...ksmSteps,
    ...lockSteps,
    ...madviseSteps,
    ...migrateSteps,
    ...migrateVmaSteps,
    ...mkcleanSteps,
    ...mlockSteps,
    ...mmapSteps,
    ...callbackSteps,
    ...getSteps,
    ...intervalCommandSteps,
    ...intervalSteps,
    ...invalidateSteps,
    ...rangeSteps,
    ...registerSteps,
    ...releaseHandlers,
    ...scriptSteps,
    ...secondarySteps,
    ...srcuSteps,
    ...mprotectSteps,
    ...mremapSteps,
    ...munmapSteps,
    ...oomReapSteps,
    ...pageLockSteps,
    ...reclaimSteps,
    ...rmapSteps,
    ...softDirtySteps,
    ...taskLockSteps,
    ...truncateSteps,
    ...unmapSteps,
    ...zapSteps,
    ...faultInSteps,
  } as unknown as Record<string, AnyHandler>;
  (table[step.do] as AnyHandler)(host, operation, step);
}
