// The rows of the table of behaviours as the measurements and the page see them: names, and values as text.

import { BEHAVIOURS, type Behaviour, type BehaviourName, PROFILE_NAMES, type Profile } from '../../kernel/profile.ts';

/** A table of behaviours: the kernel's, or in a test one with planted values. */
export type Table = Readonly<Record<string, Behaviour<unknown>>>;

export const TABLE: Table = BEHAVIOURS;

/** A value as the page shows it; equal values have equal texts. */
export const textOf = (value: unknown): string =>
  Array.isArray(value) ? (value.length === 0 ? 'none' : value.join(', ')) : String(value);

/** The values of a row, by their text, that it does not have in the given profile. */
export function otherValues({ values }: Behaviour<unknown>, profile: string): Map<string, unknown> {
  const all = new Map(PROFILE_NAMES.map((name) => [textOf(values[name]), values[name]]));
  all.delete(textOf(values[profile as keyof typeof values]));
  return all;
}

/** A profile whose row has another value. */
export const bent = (profile: Profile, row: string, value: unknown): Profile => ({ ...profile, [row]: value });

/** A profile that says of each row that it is asked for. */
export function watched(profile: Profile, asked: (row: BehaviourName) => void): Profile {
  return new Proxy(profile, {
    get(target, key) {
      asked(key as BehaviourName);
      return target[key as BehaviourName];
    },
  });
}
