// The scenarios in which several consumers meet over one address space, over HTTP: the same stories that `npm run example` tells.

import t, { type Test } from 'tap';
import { Machine, type Reply } from '../../examples/together/machine.ts';
import { type Profile, SCENARIOS } from '../../examples/together/scenario.ts';
import { Client, startApp } from './client.ts';

const app = await startApp();
const client = new Client(app);
t.teardown(() => app.close());

type Facts = Record<string, unknown>;
const ERA: Record<Profile, string> = { '5.4': 'P53', '5.8': 'P58', '5.15': 'P515', '6.18': 'P614' };
const NEVER = { 'SPTE_IN_WINDOW, STALE_SECONDARY': [] };

/** Plays a scenario in each of its profiles, and compares everything that it shows. */
function plays(name: string, what: string, expected: (profile: Profile) => Facts): void {
  const { profiles, run } = SCENARIOS[name] as (typeof SCENARIOS)[string];
  for (const profile of profiles)
    t.test(`${name.toUpperCase().replace('G', 'G-')} ${ERA[profile]} (${profile}): ${what}`, async (t: Test) => {
      const send = async (method: string, path: string, body?: object): Promise<Reply> =>
        client.ask(method, path, body);
      const m = new Machine(send, `${name}-${profile}`, profile, (line) => t.comment(line));
      await m.boot();
      await run(m);
      m.shows('SPTE_IN_WINDOW, STALE_SECONDARY', await m.found(/SPTE_IN_WINDOW|STALE_SECONDARY/));
      t.strictSame(m.facts, { ...expected(profile), ...NEVER });
      t.match(await m.get('/invariants'), { ok: true, violations: [] });
    });
}

const start = (...who: string[]): string[] => who.map((notifier) => `${notifier}.invalidate_range_start CLEAR`);
const end = (...who: string[]): string[] => who.map((notifier) => `${notifier}.invalidate_range_end CLEAR`);
const ALL = ['desc', 'avail', 'used'];

plays(
  'g1',
  'DONTNEED takes a page from its mirrors at the start; its pin survives, and the address gets another',
  () => ({
    'the guest reaches the page': true,
    'mapped areas of the ring': ALL,
    'at its start: the SPTE': null,
    'at its start: mapped areas of the ring': ['desc', 'avail'],
    'at its start: the page is dirty': true,
    'at its start: a guest that touches the page': 'RETRY mmu_notifier_count',
    told: [...start('vhost-net', 'kvm-vm0'), ...end('vhost-net', 'kvm-vm0')],
    'the pinned page': { pin_count: 1, mapcount: 0, held: true },
    'the guest touches it again': 'FIXED',
    'mapped areas of the ring after a round': ALL,
    'the guest has the pinned page': false,
    'qemu has what the guest has': true,
    'references of the old page': 0,
    violations: [],
  }),
);

plays('g2', 'MEM=0 takes a BAR from a process and from its guest; the guest gets EFAULT until it is enabled', () => ({
  'qemu touches the BAR': 'NOPAGE',
  'the guest touches the BAR': 'FIXED',
  'the page behind it': { struct_page: false, refs: 0 },
  told: [...start('kvm-vm0'), ...end('kvm-vm0')],
  'the SPTE': null,
  'qemu touches it while disabled': 'SIGBUS',
  'the guest touches it while disabled': 'EFAULT',
  'still no SPTE': null,
  'the SPTE after MEMORY is set': null,
  'the guest touches it while enabled': 'FIXED',
  'it is the same page of the device': true,
  violations: [],
}));

const exclusive = [
  'exclusive-gpu.invalidate EXCLUSIVE',
  ...[...start('kvm-vm0'), ...end('kvm-vm0')].map((call) => call.replace('CLEAR', 'EXCLUSIVE')),
];

plays(
  'g3',
  'making a page exclusive takes the SPTE; a guest that wants the page back waits for its lock, and takes it',
  () => ({
    'the guest touches the page': 'FIXED',
    'pages that were found': 1,
    'told when it is made': exclusive,
    'owners of EXCLUSIVE': ['gpu'],
    'the SPTE': null,
    'what the page table has': 'device_exclusive',
    'a guest that touches it meanwhile': { state: 'blocked', for_its_lock: true },
    'pages that are mapped for the device': 1,
    'what the device has': [{ addr: '0x7f0000004000', access: 'atomic' }],
    'told when it is restored': exclusive,
    'owners of EXCLUSIVE when it is restored': [null],
    'what the device has after that': [],
    'the fault of the guest, whose own GUP was an invalidation': 'RETRY mmu_notifier_seq',
    'the guest touches it again': 'FIXED',
    'it has the same page': { same: true, writable: true },
    violations: [],
  }),
);

plays(
  'g4',
  'fork copies the pinned page for the child, takes the SPTE, and ends exclusivity without an event of its own',
  () => ({
    'the guest touches its page': 'FIXED',
    'what the device has': [{ addr: '0x7f0000005000', access: 'atomic' }],
    told: exclusive.map((call) => call.replace('EXCLUSIVE', 'PROTECTION_PAGE')),
    'the pinned page: the parent keeps it': { same: true, writable: true },
    'the pinned page: the child has a copy': true,
    "the guest's page": { shared: true, writable: false },
    'the SPTE': null,
    "the device's page": { parent: 'present', child: 'present', shared: true },
    'what the device has after the fork': [],
    'the guest writes': 'RETRY mmu_notifier_seq',
    'it writes again': 'FIXED',
    'the guest has the page of the child': false,
    'the guest has the page of qemu': true,
    violations: [],
  }),
);

plays(
  'g5',
  "an OOM reap that vhost refuses leaves KVM's count raised before 5.15, and balanced from then on",
  (profile) => {
    const balanced = profile === '5.15' || profile === '6.18';
    const [starts, ends] = [start('vhost-net', 'kvm-vm0'), end('vhost-net', 'kvm-vm0')];
    const touch = balanced ? 'FIXED' : 'RETRY mmu_notifier_count';
    return {
      'the guest touches a page': 'FIXED',
      'the reaper': 'EAGAIN',
      told: [...starts, ...(balanced ? ends : [])].map((call) => call.replace('CLEAR', 'UNMAP')),
      'invalidations that KVM believes open': balanced ? 0 : 1,
      'the page was not taken': 'present',
      first: touch,
      second: touch,
      'ranges that are open': [],
      // vhost-net is told an end of what it had refused, and counts down from 0; before 5.15, KVM is told none.
      'contract violations': balanced ? ['FALLIBLE_WITH_END', 'UNBALANCED by vhost-net'] : ['UNBALANCED'],
    };
  },
);

/** What a merge shows, with the callbacks that each of its three pairs makes. */
const merge = (variant: string, pair: string[], violations: string[]): Facts => ({
  [`${variant}: the guest writes the page`]: 'FIXED',
  [`${variant}: told`]: [...pair, ...pair, ...pair],
  [`${variant}: every start has the page lock`]: true,
  [`${variant}: every end has the page lock`]: true,
  [`${variant}: the SPTE`]: null,
  [`${variant}: the guest reads`]: 'FIXED',
  [`${variant}: it has the merged page`]: { merged: true, writable: false },
  [`${variant}: the guest writes: its own copy on write is an invalidation`]: 'RETRY mmu_notifier_seq',
  [`${variant}: it writes again`]: 'FIXED',
  [`${variant}: it has the merged page after that`]: { merged: false, writable: true },
  [`${variant}: violations`]: violations,
});

plays(
  'g6',
  'KSM of a ring page holds its lock in both ends; the second RFC of vhost inverts it with its mutex',
  (profile) => {
    const changed = profile === '6.18' ? [] : ['kvm-vm0.change_pte CLEAR'];
    const both = ['vhost-net', 'kvm-vm0'];
    const fixed = merge('fixed', [...start(...both), ...changed, ...end(...both)], []);
    if (profile === '6.18') return fixed;
    const rfc2 = [...start('kvm-vm0'), ...changed, 'vhost-net.invalidate_range CLEAR', ...end('kvm-vm0')];
    return { ...fixed, ...merge('rfc2', rfc2, ['LOCK_INVERSION by vhost-net', 'SLEEP_IN_ATOMIC by vhost-net']) };
  },
);
