// The known defects that a host can be made without, as the document lists them.

import { BEHAVIOURS, type BehaviourName, FIXES } from '../kernel/profile.ts';

export const FIX_NAMES: readonly string[] = Object.keys(FIXES).sort();

/** One line for each fix: the behaviour that it changes, and what to. */
export const fixesText = (): string =>
  FIX_NAMES.map((name) => {
    const changes = Object.entries(FIXES[name] ?? {}) as [BehaviourName, unknown][];
    return `* \`${name}\`: ${changes.map(([key, value]) => `${BEHAVIOURS[key].meaning}: ${value}`).join('; ')}`;
  }).join('\n');
