// A long random run of commands on the kernel and on a naive model of it, in one profile: same answers, same state, invariants
// after each step. SEED and RUNS choose another run; a run that failed is added to FAILED_ONCE as fast-check shrank it.

import fc from 'fast-check';
import t from 'tap';
import { assemble, type Beginning, beginningsOf, prepare } from './model-begin.ts';
import { type Recipe, recipesOf } from './model-commands.ts';
import { follow } from './model-follow.ts';
import { World } from './model-world.ts';
import { BeyondModel } from './naive-domain.ts';
import { type NaiveProfile, rulesOf } from './naive-rules.ts';
import type { Milestone } from './naive-types.ts';

const SEED = Number(process.env.SEED ?? 20161117);
const DEFAULT_RUNS = 800;
const RUNS = Number(process.env.RUNS ?? DEFAULT_RUNS);
/** Steps of one run, about a quarter of which is what most runs have. */
const MAX_STEPS = 90;

/** The model is part of the world, so that both see every call. */
type State = Record<string, never>;

class Step implements fc.Command<State, World> {
  constructor(readonly recipe: Recipe) {}
  /** A run that comes to what the model can't know ends there. */
  check = (): boolean => true;
  run(_state: State, world: World): void {
    if (world.over) return;
    try {
      follow(world, this.recipe);
    } catch (error) {
      if (!(error instanceof BeyondModel)) throw error;
      world.over = true;
    }
  }
  toString = (): string =>
    JSON.stringify(this.recipe, (_key, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value));
}

/** A host and its model as a run begins with them. */
export function begin(beginning: Beginning, profile: NaiveProfile): World {
  const world = new World(beginning.dma_entry_limit, profile);
  for (const command of prepare(beginning)) world.prepare(command);
  try {
    if (beginning.type !== 0) for (const command of assemble(beginning, world.model.rules)) world.step(command);
  } catch (error) {
    if (!(error instanceof BeyondModel)) throw error;
    world.over = true;
  }
  return world;
}

/** A run that failed once, as fast-check shrank it. */
export interface FailedOnce {
  what: string;
  beginning: Partial<Beginning>;
  recipes: Recipe[];
}

const PLAIN: Beginning = {
  dma_entry_limit: 2,
  rlimitPages: 0,
  cap: false,
  type: 3,
  mappings: 0,
  iommu: 'none',
  top: false,
};

/** The tests of one profile: random runs, what they must have met, and the runs that failed once. */
export function testProfile(
  profile: NaiveProfile,
  milestones: readonly Milestone[],
  failedOnce: readonly FailedOnce[],
): void {
  t.setTimeout(240_000);
  const seen = new Map<Milestone, number>();
  const counts = { steps: 0, over: 0 };
  const rules = rulesOf(profile);
  const property = fc.property(
    beginningsOf(rules),
    fc.commands([recipesOf(rules).map((chosen) => new Step(chosen))], { maxCommands: MAX_STEPS, size: 'max' }),
    (beginning, commands) => {
      const world = begin(beginning, profile);
      fc.modelRun(() => ({ model: {}, real: world }), commands);
      counts.steps += world.host.seq;
      if (world.over) counts.over++;
      for (const milestone of world.model.seen) seen.set(milestone, (seen.get(milestone) ?? 0) + 1);
    },
  );

  t.test(
    `model [${profile}]: ${RUNS} random runs of up to ${MAX_STEPS} steps agree with the naive model`,
    async (t) => {
      t.comment(`SEED=${SEED} RUNS=${RUNS}`);
      t.doesNotThrow(
        () => fc.assert(property, { seed: SEED, numRuns: RUNS, includeErrorInReport: true }),
        `seed ${SEED}`,
      );
      const met = [...seen].sort(([, a], [, b]) => a - b).map(([what, runs]) => `${what}: ${runs} runs`);
      t.comment(`${counts.steps} commands executed, ${counts.over} runs went beyond the model; ${met.join('; ')}`);
      t.ok(counts.steps > RUNS * 40, 'the runs are not empty');
      t.ok(counts.over < RUNS / 10, 'few runs go beyond the model');
    },
  );

  // A shorter run need not meet everything.
  if (RUNS >= DEFAULT_RUNS)
    t.test(`model [${profile}]: the run reached every situation that it must reach`, async (t) => {
      for (const milestone of milestones) t.ok((seen.get(milestone) ?? 0) > 0, milestone);
    });

  for (const { what, beginning, recipes } of failedOnce)
    t.test(`model [${profile}]: ${what}`, async (t) => {
      const world = begin({ ...PLAIN, ...beginning }, profile);
      for (const [i, recipe] of recipes.entries())
        t.doesNotThrow(() => follow(world, recipe), `step ${i}: ${recipe.do}`);
    });
}
