// What is said of the kernel's tests: which of them pin a behaviour, and what their titles are made of.

/** A test of one behaviour in the profiles that it is run in; without profiles where its title names none. */
export interface TestClaim {
  file: string;
  title: string;
  profiles: string[];
}

/** For each row, tests that pin it. */
export type TestPins = Record<string, TestClaim[]>;

/** Titles of all tests without subtests, by file. */
export type Titles = Record<string, string[]>;

/** A title in its two parts: what is tested, and the profile in which. */
export function partTitle(title: string): { title: string; profile: string | null } {
  const profile = /\[([\d.]+)\] /.exec(title)?.[1] ?? null;
  return { title: profile === null ? title : title.replace(`[${profile}] `, ''), profile };
}
