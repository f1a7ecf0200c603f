// The scenarios in which several of those who live with the same pages meet, by their numbers.

import { g1 } from './g1.ts';
import { g2 } from './g2.ts';
import { g3 } from './g3.ts';
import { g4 } from './g4.ts';
import { g5 } from './g5.ts';
import { g6 } from './g6.ts';
import type { Machine } from './machine.ts';

export type Profile = '5.4' | '5.8' | '5.15' | '6.18';

export interface Scenario {
  title: string;
  /** Kernels in which all that take part exist. */
  profiles: readonly Profile[];
  run(machine: Machine): Promise<void>;
}

export const SCENARIOS: Readonly<Record<string, Scenario>> = { g1, g2, g3, g4, g5, g6 };
