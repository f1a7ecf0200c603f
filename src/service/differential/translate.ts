// Commands whose form differs between kernels, said in the form of another one: pins, and the registration of listeners.

import type { Command, NotifierSpec } from '../../kernel/command.ts';
import { addressOf, hex, isPageAligned, PAGES_IN_U64, pageNumberOf } from '../../kernel/lib/u64.ts';
import { PIN_PAGES_MAX_ENTRIES } from '../../kernel/limits.ts';
import type { Profile } from '../../kernel/profile.ts';

type Pin = Extract<Command, { op: 'pin_pages' | 'unpin_pages' }>;

/** `commands` in the place of one; `how` where they are not the command itself. */
export interface Translated {
  commands: Command[];
  how: string | null;
}
/** The kernel has no call for it. */
export interface Inexpressible {
  inexpressible: string;
}

/** A command that was written for the kernel `from`, for the kernel `to`. One that is not in the form of `from` stays as it is. */
export function translate(command: Command, from: Profile, to: Profile): Translated | Inexpressible {
  const same: Translated = { commands: [command], how: null };
  switch (command.op) {
    case 'pin_pages':
    case 'unpin_pages': {
      const form = command.contiguous === undefined ? 'user_pfn' : 'iova';
      if (from.pinForm === to.pinForm || form !== from.pinForm) return same;
      return form === 'user_pfn' ? asRanges(command) : asArray(command);
    }
    case 'register_notifier': {
      if (from.listener === to.listener || to.listener === 'notifier') return same;
      const { type } = command.notifier;
      if (type !== 0)
        return { inexpressible: `a notifier of type ${type}: from 6.0 on there is the dma_unmap op alone` };
      return withoutPriority(command.notifier, same, (notifier) => ({ ...command, notifier }));
    }
    case 'put_device_in_container': {
      const { notifier } = command;
      if (from.listener === to.listener || to.listener === 'notifier' || notifier === null) return same;
      if (notifier.type !== 0)
        return { commands: [{ ...command, notifier: null }], how: `its notifier of type ${notifier.type} left away` };
      return withoutPriority(notifier, same, (changed) => ({ ...command, notifier: changed }));
    }
    default:
      return same;
  }
}

/** As a driver names its dma_unmap op: neither type nor priority are said of it. */
function withoutPriority(
  notifier: NotifierSpec,
  same: Translated,
  command: (notifier: NotifierSpec) => Command,
): Translated {
  const { explicit: _, ...op } = notifier;
  if (notifier.priority === 0) return { ...same, commands: [command(op)] };
  const how = 'without priority: listeners are called in the order in which their devices were opened';
  return { commands: [command({ ...op, priority: 0 })], how };
}

const inRange = (command: Pin, iova: bigint, npage: number): Command => ({
  ...command,
  user_pfn: [],
  npage,
  contiguous: { iova },
});

/** An array as ranges: each run of consecutive page frame numbers is one call. */
function asRanges(command: Pin): Translated | Inexpressible {
  const { user_pfn, npage } = command;
  // Refused by their count before any entry is looked at.
  if (npage <= 0 || npage > PIN_PAGES_MAX_ENTRIES)
    return { commands: [inRange(command, addressOf(user_pfn[0] ?? 0), npage)], how: 'user_pfn as iova and npage' };
  if (npage > user_pfn.length)
    return {
      inexpressible: `npage ${npage} with ${user_pfn.length} entries of user_pfn: there is no array to read beyond`,
    };
  const runs = runsOf(user_pfn.slice(0, npage));
  const commands = runs.map(({ first, count }) => inRange(command, addressOf(first), count));
  const how = runs.length === 1 ? 'user_pfn as iova and npage' : 'user_pfn that is not contiguous as several ranges';
  return { commands, how };
}

function runsOf(pfns: readonly number[]): { first: number; count: number }[] {
  const runs: { first: number; count: number }[] = [];
  for (const pfn of pfns) {
    const last = runs.at(-1);
    if (last !== undefined && last.first + last.count === pfn) last.count++;
    else runs.push({ first: pfn, count: 1 });
  }
  return runs;
}

/** A range as an array of page frame numbers, which has no place for an offset in a page. */
function asArray(command: Pin): Translated | Inexpressible {
  const { contiguous: range, ...rest } = command;
  const { npage } = command;
  const iova = range?.iova ?? 0n;
  if (!isPageAligned(iova)) return { inexpressible: `iova ${hex(iova)} is not page aligned: user_pfn counts pages` };
  // One entry more than the kernel takes is enough for it to say so.
  const length = Math.min(Math.max(npage, 0), PIN_PAGES_MAX_ENTRIES + 1);
  const first = pageNumberOf(iova);
  if (first + length > PAGES_IN_U64)
    return { inexpressible: `${npage} pages from ${hex(iova)} pass the end of user_pfn` };
  const user_pfn = Array.from({ length }, (_, i) => first + i);
  return { commands: [{ ...rest, user_pfn }], how: 'iova and npage as user_pfn' };
}

/** The unpin that takes a range of a refused pin back: whoever splits a pin has to keep it all or nothing. */
export const undoOf = ({ device, user_pfn, npage, contiguous }: Pin): Command => ({
  op: 'unpin_pages',
  device,
  user_pfn,
  npage,
  ...(contiguous === undefined ? {} : { contiguous }),
});

/** The calls that drop every reference of a run of pages, in the form of a kernel. */
export function unpinsOf(
  { pinForm }: Profile,
  device: string,
  { iova, npage, references }: { iova: number; npage: number; references: number },
): Command[] {
  const calls: Command[] = [];
  for (let n = 0; n < references; n++)
    for (let first = iova; first < iova + npage; first += PIN_PAGES_MAX_ENTRIES) {
      const count = Math.min(PIN_PAGES_MAX_ENTRIES, iova + npage - first);
      const range = { op: 'unpin_pages' as const, device, npage: count };
      if (pinForm === 'iova') calls.push({ ...range, user_pfn: [], contiguous: { iova: addressOf(first) } });
      else calls.push({ ...range, user_pfn: Array.from({ length: count }, (_, i) => first + i) });
    }
  return calls;
}
