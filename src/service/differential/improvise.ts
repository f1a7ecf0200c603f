// Handler calls that the recording does not have: how the same driver would answer them, by the first rule that applies.

import type { Command } from '../../kernel/command.ts';
import type { Host } from '../../kernel/host.ts';
import { npageOf, pageNumberOf } from '../../kernel/lib/u64.ts';
import type { Notification } from '../../kernel/outcome.ts';
import { ledgerRuns } from '../../kernel/vfio/ledger.ts';
import { NOTIFY_OK } from '../../kernel/vfio/notifier.ts';
import { type Answer, type HandlerCall, type Recording, returnOf } from './recording.ts';
import { unpinsOf } from './translate.ts';

/** How a handler call was answered that the recording does not have. */
export type Rule = 'as-always' | 'as-before' | 'not-recorded' | 'left-waiting';

/** What is still to be done inside a handler: commands of the recording, commands of no position, and the answer. */
export type Step =
  /** `keep`: it is the command of that position, not another performance of it. */
  | { position: number; keep: boolean }
  | { answer: Pick<Answer, 'op'> & Partial<Answer>; position: null }
  | { unpin: Command; position: null };

const answering = (answer: Pick<Answer, 'op'> & Partial<Answer>): Step => ({ answer, position: null });

/** What the service does for the builtin 'slow', in a call that was recorded or not. */
export const SLOW_BUILTIN: Step = answering({ op: 'ack_notification', ret: NOTIFY_OK, reason: 'slow_builtin' });

/** The steps of a call for which the recording has none. */
export function improvised(
  recording: Recording,
  host: Host,
  unmap: number,
  notification: Notification,
): { rule: Rule; steps: Step[] } {
  if (recording.alwaysUnpinsAll(notification)) return { rule: 'as-always', steps: unpinSteps(host, notification) };
  const alike = recording.alike(unmap, notification);
  if (alike === null) return { rule: 'not-recorded', steps: [answering({ op: 'ack_notification' })] };
  return { rule: 'as-before', steps: stepsOf(recording, alike) };
}

/** Unpins whatever a device has pinned in the announced range, and returns NOTIFY_OK. */
function unpinSteps(host: Host, { device, container, iova, size }: Notification): Step[] {
  const iommu = host.vfio.containers.get(container)?.iommu ?? null;
  const runs = iommu === null ? [] : ledgerRuns(iommu, device, pageNumberOf(iova), npageOf(size));
  const unpins = runs.flatMap((run) => unpinsOf(host.profile, device, run));
  return [
    ...unpins.map((unpin): Step => ({ unpin, position: null })),
    answering({ op: 'ack_notification', ret: NOTIFY_OK }),
  ];
}

function stepsOf(recording: Recording, alike: HandlerCall): Step[] {
  const inside = alike.inside.filter((position) => position !== alike.answer);
  return [
    ...inside.map((position): Step => ({ position, keep: false })),
    answering(returnOf(recording, alike) ?? { op: 'ack_notification' }),
  ];
}
