// The titles of the numbered conformance cases: one subtest a profile, "<number> [<profile>] <what holds>", and a list of those that ran.

import type { Test } from 'tap';
import type { Outcome } from '../../../src/kernel/outcome.ts';
import { PROFILE_NAMES } from '../../../src/kernel/profile.ts';
import type { Machine } from '../machine.ts';

export const ALL: readonly string[] = PROFILE_NAMES;
/** Those with notifier blocks and arrays of user_pfn. */
export const OLD = ['4.10', '5.4', '5.8', '5.15'];
/** Those with the dma_unmap op and contiguous pins. */
export const NEW = ['6.18'];
/** Those that warn of leftover pins at detach, unmap by the shape of the tree, and leak what a failure leaves. */
export const EARLY = ['4.10', '5.4', '5.8'];
export const LATE = ['5.15', '6.18'];
/** Those with a dirty log and dma_rw. */
export const LOGGING = ['5.8', '5.15', '6.18'];

/** Every "<number> <profile>" whose subtest has run. */
export const ran = new Set<string>();

/** One subtest a profile. `title` begins with the number of the case. */
export async function numbered(
  parent: Test,
  profiles: readonly string[],
  title: string,
  run: (t: Test, profile: string) => void,
): Promise<void> {
  const [number, ...rest] = title.split(' ');
  for (const profile of profiles)
    await parent.test(`${number} [${profile}] ${rest.join(' ')}`, async (t) => {
      run(t, profile);
      ran.add(`${number} ${profile}`);
    });
}

export const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
/** The output slots of a pin, refused or not. */
export const pfns = ({ fields, refusal }: Outcome): unknown => fields.phys_pfn ?? refusal?.left?.phys_pfn;

/** WARNs whose text has a label. */
export const warnings = (m: Machine, label: string): number =>
  m.dmesg('WARN').filter(({ text }) => text.includes(label)).length;

/** What an unpin of n pages answers: the count, or from 6.0 on nothing. */
export const unpinned = (profile: string, n: number): number => (profile === '6.18' ? 0 : n);

export const unregister = (m: Machine, device = 'D1', notifier = 'L1'): Outcome =>
  m.run({ op: 'unregister_notifier', device, notifier, type: null });

/** Gives a container a second mdev group with an open, listening device D2. */
export function secondDevice(m: Machine): void {
  m.group('G2', 'C');
  m.device('D2', 'G2');
  m.listen('D2', 'L2');
}

/** The first device leaves as a driver should: listener gone, fd closed, group detached. */
export function detachFirst(m: Machine): Outcome {
  unregister(m);
  m.run({ op: 'close_device', device: 'D1' });
  return m.run({ op: 'unset_container', group: 'G1' });
}
