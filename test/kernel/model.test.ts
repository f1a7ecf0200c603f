// A long random run of commands on the kernel and on a naive model of it: same answers, same state, invariants after each step.
// SEED and RUNS choose another run; a seed that failed is added to FAILED_ONCE.

import fc from 'fast-check';
import t from 'tap';
import { assemble, follow, prepare, type Recipe, recipe } from './model-commands.ts';
import { World } from './model-world.ts';
import type { Milestone } from './naive-types.ts';

t.setTimeout(240_000);

const SEED = Number(process.env.SEED ?? 20161117);
const RUNS = Number(process.env.RUNS ?? 2000);
/** Steps of one run. */
const MAX_STEPS = 90;

/** Seeds that failed once, with the path that fast-check printed. */
const FAILED_ONCE: { seed: number; path: string }[] = [];

const MILESTONES: readonly Milestone[] = [
  'rollback in the middle of a batch',
  'eleventh notification and BUG',
  'competing unmap inside a callback',
  'register waits for a callback',
  'unregister waits for a callback',
  'late ack',
  'restart whose range bisects',
  'ENOMEM of the limit',
  'nested call refused as a deadlock',
  'walk waits behind a writer',
  'restart of the service inside an unmap',
];

/** The model is part of the world, so that both see every call. */
type State = Record<string, never>;

class Step implements fc.Command<State, World> {
  constructor(readonly recipe: Recipe) {}
  check = (): boolean => true;
  run(_state: State, world: World): void {
    follow(world, this.recipe);
  }
  toString = (): string =>
    JSON.stringify(this.recipe, (_key, value) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value));
}

/** How a run begins. */
const beginning = fc.record({
  dma_entry_limit: fc.constantFrom(2, 3, 8),
  rlimitPages: fc.constantFrom(0, 2, 3, 64, 64),
  type: fc.oneof({ weight: 12, arbitrary: fc.constant(3) }, { weight: 1, arbitrary: fc.constantFrom(0, 1) }),
});

const seen = new Map<Milestone, number>();
let steps = 0;

const property = fc.property(
  beginning,
  fc.commands([recipe.map((chosen) => new Step(chosen))], { maxCommands: MAX_STEPS, size: 'max' }),
  ({ dma_entry_limit, rlimitPages, type }, commands) => {
    const world = new World(dma_entry_limit);
    for (const command of prepare(rlimitPages)) world.step(command);
    if (type !== 0) for (const command of assemble(type)) world.step(command);
    fc.modelRun(() => ({ model: {}, real: world }), commands);
    steps += world.host.seq;
    for (const milestone of world.model.seen) seen.set(milestone, (seen.get(milestone) ?? 0) + 1);
  },
);

t.test(`model: ${RUNS} random runs of up to ${MAX_STEPS} steps agree with the naive model`, async (t) => {
  t.comment(`SEED=${SEED} RUNS=${RUNS}`);
  for (const { seed, path } of FAILED_ONCE) fc.assert(property, { seed, path, numRuns: 1 });
  t.doesNotThrow(() => fc.assert(property, { seed: SEED, numRuns: RUNS }), `seed ${SEED}`);
  t.comment(`${steps} commands executed; ${[...seen].map(([what, runs]) => `${what}: ${runs} runs`).join('; ')}`);
  t.ok(steps > RUNS * 20, 'the runs are not empty');
});

t.test(
  'model: the run reached every situation that it must reach',
  { skip: RUNS < 2000 && 'a short run' },
  async (t) => {
    for (const milestone of MILESTONES) t.ok((seen.get(milestone) ?? 0) > 0, milestone);
  },
);
