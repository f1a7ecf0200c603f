// Time as the service sees it: injected, so that tests decide when a second has passed.

export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  /** Runs something once, `ms` from now; the returned function calls it off. */
  after(ms: number, run: () => void): () => void;
}

/** Node clamps a longer delay to 1 ms. */
const LONGEST_TIMER_MS = 2 ** 31 - 1;

export const systemClock: Clock = {
  now: () => Date.now(),
  after(ms, run) {
    const timer = setTimeout(run, Math.min(ms, LONGEST_TIMER_MS));
    return () => clearTimeout(timer);
  },
};
