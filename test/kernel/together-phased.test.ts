// A random test of all that lives with the same pages: guests, a vhost ring, a BAR, pins of a mediated device, over operations
// that stop at their phases. After every command all that must hold is recomputed, and nobody who keeps the contract may be
// said to break it. TOGETHER_SEED replays one run, TOGETHER_RUNS makes more of them.

import t from 'tap';
import type { Command } from '../../src/kernel/command.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import type { ProfileName } from '../../src/kernel/profile.ts';
import { randomFrom } from './mm-machine.ts';
import { at } from './page-machine.ts';
import { BAR, TogetherRun } from './together-machine.ts';

const SEED = Number(process.env.TOGETHER_SEED ?? 20_261_121);
const RUNS = process.env.TOGETHER_SEED === undefined ? Number(process.env.TOGETHER_RUNS ?? 100) : 1;
const STEPS = 100;
const PROFILES: readonly ProfileName[] = ['4.10', '5.4', '5.8', '5.15', '6.18'];

/** What the runs together must have come to. */
const SOMETIMES = [
  'vcpu_fault FIXED',
  'vcpu_fault RETRY mmu_notifier_count',
  'vcpu_fault RETRY mmu_notifier_seq',
  'vcpu_fault RETRY memslot_invalid',
  'vcpu_fault RETRY async_queued',
  'vcpu_fault EMULATE mmio',
  'vcpu_fault EFAULT',
  'vcpu_fault waits for page_lock',
  'vcpu_fault waits for spinlock',
  'vcpu_fault waits for memory_lock',
  'vcpu_map waits for page_lock',
  'set_memory_region waits for kvm_invalidations',
  'set_memory_region waits for kvm_srcu',
  'a guest maps a BAR',
  'the host maps a BAR of the guest',
  'all areas of the ring are mapped',
  'the ring is not mapped while it is invalidated',
  'an invalidation waits for who is inside the ring',
  'a fork waits for who is inside the ring',
  'memory is disabled while a guest maps the BAR',
  'access SIGBUS',
  'access waits for memory_lock',
  'vfio_pci_hot_reset EBUSY',
  'a pin, an SPTE and a map of the ring on one page',
  'migrate EAGAIN',
  'ksm_merge ok',
  'ksm_merge EFAULT',
  'oom_reap EAGAIN',
  'a device has a page that a guest has not',
  'a guest takes a page from a device',
  'access waits for a grant',
  'make_device_exclusive EFAULT',
  'map_exclusive_grant ok',
  'map_exclusive_grant EBUSY',
  'fork ENOMEM',
  'fork ok',
  'exit ok',
] as const;

const reached = new Set<string>();

t.setTimeout(600_000);

/** Pages that devices had to themselves after the last command. */
const ofDevices = new WeakMap<TogetherRun, Set<number>>();

function atomicPages({ m }: TogetherRun): Set<number> {
  const mappings = [...m.host.consumers.exclusive.devices.values()].flatMap((device) => [...device.mappings.values()]);
  return new Set(mappings.filter(({ access }) => access === 'atomic').map(({ pfn }) => pfn));
}

/** What has come of a command, or of an operation that has just ended. */
function observe(run: TogetherRun, { op }: Command, { fields, refusal, parked }: Outcome): void {
  const { host } = run.m;
  for (const { state, kind, blocked_on } of host.operations.values()) {
    if (state !== 'blocked') continue;
    reached.add(`${kind} waits for ${blocked_on?.replace(/:.*/, '')}`);
    if (blocked_on?.startsWith('vhost_ref:') === true || blocked_on?.startsWith('spinlock:vhost') === true)
      reached.add(`${kind === 'fork' ? 'a fork' : 'an invalidation'} waits for who is inside the ring`);
  }
  for (const { kind, blocked_on } of host.operations.values())
    if (host.locks.get(blocked_on ?? '')?.holders.some(({ by }) => by.startsWith('grant:')) === true)
      reached.add(`${kind} waits for a grant`);
  observeSharing(run, op);
  const [had, has] = [ofDevices.get(run) ?? new Set(), atomicPages(run)];
  if (op === 'vcpu_fault' && had.size > has.size) reached.add('a guest takes a page from a device');
  ofDevices.set(run, has);
  if (parked !== undefined) return;
  const reason = fields.reason === null || fields.reason === undefined ? '' : ` ${fields.reason}`;
  reached.add(`${op} ${refusal?.errno ?? fields.result ?? fields.fault ?? 'ok'}${reason}`);
}

/** Who has the same pages now. */
function observeSharing(run: TogetherRun, op: Command['op']): void {
  const { kvm, vhost, vfio_pci } = run.m.host.consumers;
  const { pages } = run.m.host.mm;
  const ring = vhost.devs.get('net')?.vqs[0];
  const behind = Object.values(ring?.maps ?? {}).flatMap((map) => map?.pfns ?? []);
  if (ring !== undefined && Object.values(ring.maps).every((map) => map !== null))
    reached.add('all areas of the ring are mapped');
  if (ring !== undefined && ring.invalidate_count > 0 && Object.values(ring.prefetched).includes(-14))
    reached.add('the ring is not mapped while it is invalidated');
  const reachable = [...kvm.vms.values()].flatMap(({ sptes }) => [...sptes.values()].map(({ pfn }) => pfn));
  if ([...atomicPages(run)].some((pfn) => !reachable.includes(pfn)))
    reached.add('a device has a page that a guest has not');
  const bars = vfio_pci.devices.get('nic')?.pfns[0];
  for (const vm of kvm.vms.values()) {
    for (const { pfn } of vm.sptes.values()) {
      if (pages.pinCount(pfn) > 0 && behind.includes(pfn))
        reached.add('a pin, an SPTE and a map of the ring on one page');
      if (bars !== undefined && pfn >= bars) {
        reached.add('a guest maps a BAR');
        if (op === 'vfio_pci_config_write') reached.add('memory is disabled while a guest maps the BAR');
      }
    }
    for (const { struct_page } of vm.maps.values()) if (!struct_page) reached.add('the host maps a BAR of the guest');
  }
}

const newRun = (seed: number, profile?: ProfileName): TogetherRun => {
  const random = randomFrom(seed);
  return new TogetherRun(seed, random, profile ?? (PROFILES[random(PROFILES.length)] as ProfileName), observe);
};

function perform(seed: number): string | null {
  const run = newRun(seed);
  try {
    for (let step = 0; step < STEPS && run.m.host.dead === null; step++) run.step();
    if (run.m.host.dead !== null) return null;
    run.quiesce();
    const broken = run.broken().map(({ code, text, operation }) => `${code} ${text} (${operation})`);
    if (broken.length > 0) throw new Error(`reported: ${broken.join('; ')}`);
    run.tearDown();
    return null;
  } catch (error) {
    // A BUG ends every thread where it stands.
    if (run.m.host.dead !== null) return null;
    const { message, stack } = error as Error;
    return [`TOGETHER_SEED=${seed} (${run.profile}), step ${run.log.length}: ${message}`, stack, ...run.log].join('\n');
  }
}

t.test(`${RUNS} runs keep every invariant and the contract (from seed ${SEED})`, async (t) => {
  for (let i = 0; i < RUNS; i++) {
    const failure = perform(SEED + i);
    t.equal(failure, null, `seed ${SEED + i}`);
    if (failure !== null) return;
  }
});

t.test('the runs came to every situation that they must come to', async (t) => {
  if (RUNS < 100) return;
  for (const situation of SOMETIMES) t.ok(reached.has(situation), situation);
});

t.test('somebody who maps in windows, and keeps what it maps, is found among the others', async (t) => {
  const found = new Map<string, number>();
  for (let seed = SEED; seed < SEED + 6; seed++) {
    const run = newRun(seed, PROFILES[seed % PROFILES.length]);
    const { mm = 'mm-1' } = run.m.host.mm.tasks.get('A') ?? {};
    const handler = { kind: 'script', scripts: {} } as const;
    const callbacks = ['invalidate_range_start', 'invalidate_range_end'] as const;
    run.run({ op: 'register_mmu_notifier', mm: mm as string, id: 'wrong', callbacks: [...callbacks], handler });
    for (let step = 0; step < STEPS; step++) {
      run.step();
      run.run({ op: 'map_secondary', id: 'wrong', addr: at(step % BAR), writable: false });
    }
    for (const { code, text } of run.broken()) {
      t.match(text, /^wrong /, 'nobody else is blamed');
      found.set(code, (found.get(code) ?? 0) + 1);
    }
  }
  for (const code of ['SPTE_IN_WINDOW', 'STALE_SECONDARY'])
    t.ok((found.get(code) ?? 0) > 0, `${code}: ${found.get(code)} times`);
});

t.test('a seed replays: the same commands, the same trace', async (t) => {
  const traceOf = (seed: number): unknown[] => {
    const run = newRun(seed);
    for (let step = 0; step < 40; step++) run.step();
    return [run.log, run.m.host.trace.since(0, 100_000).items];
  };
  t.strictSame(traceOf(SEED), traceOf(SEED));
});
