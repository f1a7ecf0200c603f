// A long random run of commands on the kernel and on a naive model of it: same answers, same state, invariants after each step.
// SEED and RUNS choose another run; a run that failed is added to FAILED_ONCE as fast-check shrank it.

import fc from 'fast-check';
import t from 'tap';
import { ANON, assemble, follow, prepare, type Recipe, recipe } from './model-commands.ts';
import { World } from './model-world.ts';
import { type Milestone, PAGE } from './naive-types.ts';

t.setTimeout(240_000);

const SEED = Number(process.env.SEED ?? 20161117);
const RUNS = Number(process.env.RUNS ?? 2000);
/** Steps of one run, about a quarter of which is what most runs have. */
const MAX_STEPS = 90;

/** What a run begins with. */
interface Beginning {
  dma_entry_limit: number;
  rlimitPages: number;
  /** Type of the back end; 0: nothing is assembled. */
  type: number;
  /** Mappings with a pin in each. */
  mappings: number;
}

const mapOf = (task: string, size: bigint): Recipe => ({
  do: 'command',
  command: { op: 'map_dma', container: 'C', task, iova: 0x10000n, vaddr: ANON, size, flags: 3, argsz: 32 },
  inside: null,
});

/** Runs that failed once, as fast-check shrank them. */
const FAILED_ONCE: { what: string; beginning: Beginning; recipes: Recipe[] }[] = [
  {
    what: 'a nested unmap of a foreign mm needs no walk, so that a waiting writer does not deadlock it',
    beginning: { dma_entry_limit: 2, rlimitPages: 0, type: 3, mappings: 0 },
    recipes: [
      mapOf('A1', 9n * PAGE),
      { do: 'pin what is mapped', which: 0, device: 'D1', pages: [0] },
      { do: 'unmap what is mapped', which: 0, task: null, inside: null },
      {
        do: 'command',
        command: {
          op: 'register_notifier',
          device: 'D2',
          notifier: { id: 'L0', events: 1, type: 0, priority: 0, delivery: { kind: 'poll' } },
        },
        inside: null,
      },
      { do: 'unmap what is mapped', which: 0, task: 'B', inside: 0 },
    ],
  },
  {
    what: 'a walk that waited behind an unregistration does not call the block that has gone',
    beginning: { dma_entry_limit: 2, rlimitPages: 2, type: 3, mappings: 0 },
    recipes: [
      mapOf('A', PAGE),
      { do: 'pin what is mapped', which: 0, device: 'D1', pages: [0] },
      { do: 'unmap what is mapped', which: 0, task: null, inside: null },
      { do: 'unmap what is mapped', which: 0, task: null, inside: null },
      { do: 'command', command: { op: 'unregister_notifier', device: 'D2', notifier: 'L0', type: null }, inside: null },
      { do: 'answer', which: 0, ret: 0, times: 1 },
      { do: 'time out', which: 0, times: 1 },
    ],
  },
];

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
  'tries counted anew for another mapping',
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

function begin({ dma_entry_limit, rlimitPages, type, mappings }: Beginning): World {
  const world = new World(dma_entry_limit);
  for (const command of prepare(rlimitPages)) world.step(command);
  if (type !== 0) for (const command of assemble(type, mappings)) world.step(command);
  return world;
}

const beginnings: fc.Arbitrary<Beginning> = fc.record({
  dma_entry_limit: fc.constantFrom(2, 3, 8),
  rlimitPages: fc.constantFrom(0, 2, 3, 64, 64),
  type: fc.oneof({ weight: 12, arbitrary: fc.constant(3) }, { weight: 1, arbitrary: fc.constantFrom(0, 1) }),
  mappings: fc.constantFrom(0, 0, 1, 2, 3),
});

const seen = new Map<Milestone, number>();
let steps = 0;

const property = fc.property(
  beginnings,
  fc.commands([recipe.map((chosen) => new Step(chosen))], { maxCommands: MAX_STEPS, size: 'max' }),
  (beginning, commands) => {
    const world = begin(beginning);
    fc.modelRun(() => ({ model: {}, real: world }), commands);
    steps += world.host.seq;
    for (const milestone of world.model.seen) seen.set(milestone, (seen.get(milestone) ?? 0) + 1);
  },
);

t.test(`model: ${RUNS} random runs of up to ${MAX_STEPS} steps agree with the naive model`, async (t) => {
  t.comment(`SEED=${SEED} RUNS=${RUNS}`);
  t.doesNotThrow(() => fc.assert(property, { seed: SEED, numRuns: RUNS }), `seed ${SEED}`);
  t.comment(`${steps} commands executed; ${[...seen].map(([what, runs]) => `${what}: ${runs} runs`).join('; ')}`);
  t.ok(steps > RUNS * 40, 'the runs are not empty');
});

// A shorter run need not meet everything.
if (RUNS >= 2000)
  t.test('model: the run reached every situation that it must reach', async (t) => {
    for (const milestone of MILESTONES) t.ok((seen.get(milestone) ?? 0) > 0, milestone);
  });

for (const { what, beginning, recipes } of FAILED_ONCE)
  t.test(`model: ${what}`, async (t) => {
    const world = begin(beginning);
    for (const [i, recipe] of recipes.entries()) t.doesNotThrow(() => follow(world, recipe), `step ${i}: ${recipe.do}`);
  });
