// One range between its start and its end, or one callback under the page-table lock, without a change of memory around it.

import type { Command } from '../../command.ts';
import { ERRNO, Errno } from '../../errno.ts';
import type { Host } from '../../host.ts';
import { hex, isPageAligned, pageNumberOf, U64_MAX } from '../../lib/u64.ts';
import { mmapLock } from '../../lock.ts';
import type { Done } from '../../outcome.ts';
import type { Handlers } from '../../steps.ts';
import { runOperation } from '../../thread.ts';
import { getAnyMm, type MmId } from '../mm.ts';
import { isResident } from '../page-table.ts';
import { ptlOf } from '../ptl.ts';
import { callEach, END_OF_SPACE, type MmuRange } from './range.ts';
import type { CallbackName } from './subscriptions.ts';

export type InvalidateStep =
  /** EAGAIN: a subscriber has refused the range; nobody is told of its end. */
  | { do: 'require_started'; cleanup?: true }
  | { do: 'call_all'; mm: MmId; callback: CallbackName; start: number; end: number; pfn: number | null; cleanup?: true }
  /** The answer of the callbacks is the answer of the operation. */
  | { do: 'return_young'; cleanup?: true };

/** The pages of [start, end); ULONG_MAX is the end of the space. EINVAL: an end is not page aligned, or the range is empty. */
function pageRange(start: bigint, end: bigint): { start: number; end: number } {
  if (!isPageAligned(start)) throw new Errno('EINVAL', `start: ${hex(start)} is not page aligned`);
  if (end !== U64_MAX && !isPageAligned(end)) throw new Errno('EINVAL', `end: ${hex(end)} is not page aligned`);
  if (end <= start) throw new Errno('EINVAL', `range [${hex(start)}, ${hex(end)}) is empty`);
  return { start: pageNumberOf(start), end: end === U64_MAX ? END_OF_SPACE : pageNumberOf(end) };
}

/** EINVAL: RELEASE, which only the exit sends. EOPNOTSUPP: an event, or an owner, that the profile does not have. */
function requireEvent({ profile }: Host, { event, owner }: Pick<MmuRange, 'event' | 'owner'>): void {
  if (event === 'RELEASE') throw new Errno('EINVAL', 'event: RELEASE is sent by the exit of the mm alone');
  if (profile.ownerEvents) return;
  if (event === 'MIGRATE' || event === 'EXCLUSIVE')
    throw new Errno('EOPNOTSUPP', `event: ${profile.release} has no ${event}`);
  if (owner !== null) throw new Errno('EOPNOTSUPP', `owner: ranges of ${profile.release} have none`);
}

/**
 * A start and its end around nothing, under mmap_lock for reading, as registrations must wait for them.
 * EINVAL: the range; RELEASE. EOPNOTSUPP: the event, the owner. EAGAIN: not blockable, and a subscriber refuses.
 */
export function invalidate(host: Host, command: Extract<Command, { op: 'invalidate' }>): Done {
  const { mm: id, event, blockable, owner = null, only_end = false, stop_at, task } = command;
  const mm = getAnyMm(host, id).id;
  const { start, end } = pageRange(command.start, command.end);
  const range: MmuRange = { mm, start, end, event, blockable, owner };
  requireEvent(host, range);
  const lock = mmapLock(mm);
  return runOperation(
    host,
    { kind: 'invalidate', locals: { task: task ?? null, mm } },
    [
      { do: 'lock', lock, mode: 'R' },
      { do: 'phase', phase: 'before_start' },
      { do: 'invalidate_start', range },
      { do: 'require_started' },
      { do: 'phase', phase: 'after_start' },
      { do: 'phase', phase: 'before_end' },
      { do: 'invalidate_end', range, only_end, cleanup: true },
      { do: 'phase', phase: 'after_end' },
      { do: 'unlock', lock, cleanup: true },
    ],
    stop_at ?? null,
  );
}

/**
 * Calls one callback of every notifier that has it, under the page-table lock. ret: what the young callbacks answer together.
 * EINVAL: the range. EOPNOTSUPP: a callback that the profile does not have.
 */
export function mmuCall(host: Host, command: Extract<Command, { op: 'mmu_call' }>): Done {
  const { mm: id, callback, task } = command;
  const mm = getAnyMm(host, id);
  const { start, end } = pageRange(command.start, command.end ?? command.start + 0x1000n);
  const { profile } = host;
  if (
    callback === 'invalidate_range'
      ? !profile.invalidateRangeCallback
      : !profile.changePteCallback && callback === 'change_pte'
  )
    throw new Errno('EOPNOTSUPP', `callback: struct mmu_notifier_ops of ${profile.release} has no ${callback}`);
  if (callback === 'arch_invalidate_secondary_tlbs' && profile.invalidateRangeCallback)
    throw new Errno('EOPNOTSUPP', `callback: struct mmu_notifier_ops of ${profile.release} has no ${callback}`);
  const pfn = callback === 'change_pte' && isResident(mm.page_table.flags(start)) ? mm.page_table.pfn(start) : null;
  const lock = ptlOf(id, start);
  return runOperation(
    host,
    { kind: 'mmu_call', locals: { task: task ?? null, mm: id } },
    [
      { do: 'lock', lock, mode: 'W' },
      { do: 'call_all', mm: id, callback, start, end, pfn },
      { do: 'return_young' },
      { do: 'unlock', lock, cleanup: true },
    ],
    null,
  );
}

export const invalidateSteps: Handlers<InvalidateStep> = {
  require_started(_host, { thread: { returned } }) {
    if (returned !== 0)
      throw new Errno(
        returned === -ERRNO.EBUSY ? 'EBUSY' : 'EAGAIN',
        'a subscriber refuses a range that is not blockable',
      );
  },
  call_all: (host, operation, { mm, callback, start, end, pfn }) =>
    callEach(host, operation, callback, { mm, start, end }, pfn),
  return_young(_host, { thread }) {
    thread.ret = thread.returned;
  },
};
