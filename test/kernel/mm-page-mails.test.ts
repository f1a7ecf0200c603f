// What mails say about the host mm and its notifiers, as tests: each title names the mail by subject and date.

import t from 'tap';
import type { Script } from '../../src/kernel/mm/mmu-notifier/subscriptions.ts';
import { at, BASE, bytes, type PageMachine, pageMachine, pinning } from './page-machine.ts';

const VHOST = 'Re: [RFC PATCH V2 5/5] vhost: access vq metadata through kernel virtual address (7 March 2019)';
const EXCLUSIVE = 'Re: [PATCH v8 5/8] mm: Device exclusive memory access (18 May 2021)';
const RESERVED = 'Re: [PATCH 1/2] KVM: MMU: Do not treat ZONE_DEVICE pages as being reserved (8 November 2019)';

const takes = (lock: string): Script => ({ actions: [{ action: 'lock', lock, hold: false }], returns: 0 });

/** A page of a shared file at page 0, and two anonymous pages of equal bytes at 8 and 9, all of A. */
function ring(profile: string): PageMachine {
  const m = pageMachine(profile, ['A', 'W']);
  m.run({ op: 'put_file', file: 'f', size: bytes(4) });
  m.file('A', 0, 4, 'f');
  m.write('A', 0);
  m.anon('A', 8, 8);
  for (const page of [8, 9, 10, 11]) m.fill('A', page, 1);
  return m;
}

const merge = (m: PageMachine, page: number, tree: number): unknown =>
  m.run({ op: 'ksm_merge', task: 'A', addr: at(page), with: { task: 'A', addr: at(tree) } }).ret;

/** Operations on a page that hold its lock while they tell of it. */
const WITH_PAGE_LOCK: readonly [string, (m: PageMachine) => unknown][] = [
  ['KSM', (m) => merge(m, 8, 9)],
  ['mkclean', (m) => m.run({ op: 'mkclean', pfn: m.pfn('A', 0) }).ret],
  ['unmap of an anonymous page', (m) => m.run({ op: 'reclaim', pfn: m.pfn('A', 10) }).ret],
  ['unmap of a page of a file', (m) => m.run({ op: 'reclaim', pfn: m.pfn('A', 0) }).ret],
  ['migrate', (m) => m.run({ op: 'migrate', pfn: m.pfn('A', 11) }).ret],
];

const codes = (m: PageMachine): string[] => m.host.violations.since(0, 1000).items.map(({ code }) => code);

for (const profile of ['5.4', '5.8', '5.15', '6.18'])
  t.test(`A-20/B-15 (${profile}): start and end run with the page locked, in ${VHOST}`, async (t) => {
    for (const [name, operate] of WITH_PAGE_LOCK) {
      const m = ring(profile);
      m.watch('A');
      m.mark();
      operate(m);
      const calls = m.trace('notify');
      for (const callback of ['invalidate_range_start', 'invalidate_range_end']) {
        const held = calls.filter((call) => call.callback === callback).map(({ locks_held }) => locks_held as string[]);
        t.ok(held.length > 0, `${name}: ${callback}`);
        for (const locks of held)
          t.equal(locks.filter((lock) => lock.startsWith('page_lock:')).length >= 1, true, `${name}: ${callback}`);
      }
    }
  });

for (const profile of ['5.4', '5.8', '5.15'])
  t.test(
    `B-13 (${profile}): who has invalidate_range only is told of KSM and mkclean by the end, not under the page-table lock, in ${VHOST}`,
    async (t) => {
      for (const [name, operate, pairs] of [
        ['KSM', (m: PageMachine) => merge(m, 10, 8), 2],
        ['mkclean', (m: PageMachine) => m.run({ op: 'mkclean', pfn: m.pfn('A', 0) }).ret, 1],
      ] as const) {
        const m = ring(profile);
        merge(m, 8, 9);
        m.watch('A', 'N', ['invalidate_range']);
        m.mark();
        operate(m);
        t.equal(m.told().length, pairs, `${name}: once for each pair`);
        for (const locks of m.locksHeld()) {
          t.match(locks, /page_lock/, name);
          t.notMatch(locks, /ptl/, name);
        }
        const order = m.trace('pte', 'notify').map(({ event, change }) => change ?? event);
        t.strictSame(order.slice(-3), ['clear', 'set', 'notify'], `${name}: late`);
      }
    },
  );

t.test(`B-13 (6.18): who has invalidate_range only is never told, in ${VHOST}`, async (t) => {
  const m = ring('6.18');
  m.watch('A', 'N', ['invalidate_range']);
  m.mark();
  for (const [, operate] of WITH_PAGE_LOCK) operate(m);
  t.strictSame(m.told(), []);
});

for (const profile of ['5.4', '5.8', '5.15', '6.18'])
  for (const [name, operate] of [
    ['KSM', (m: PageMachine) => merge(m, 8, 9)],
    ['mkclean', (m: PageMachine) => m.run({ op: 'mkclean', pfn: m.pfn('A', 0) }).ret],
    ['rmap', (m: PageMachine) => m.run({ op: 'reclaim', pfn: m.pfn('A', 10) }).ret],
  ] as const)
    t.test(
      `B-15 (${profile}): the page lock under the vq mutex, and the vq mutex in the callback, is LOCK_INVERSION with ${name}, in ${VHOST}`,
      async (t) => {
        const m = ring(profile);
        const page = `page_lock:${m.pfn('A', 9)}`;
        m.run({ op: 'lock', task: 'W', lock: 'mutex:vq' });
        m.run({ op: 'lock', task: 'W', lock: page });
        m.run({ op: 'unlock', task: 'W', lock: page });
        m.run({ op: 'unlock', task: 'W', lock: 'mutex:vq' });
        t.strictSame(codes(m), []);
        m.watch('A', 'vhost', ['invalidate_range_end'], { invalidate_range_end: takes('mutex:vq') });
        operate(m);
        // More than one where an rmap lock is held too: it comes after the page lock.
        const found = m.host.violations
          .since(0, 10)
          .items.map(({ code, notifier, callback }) => `${code} in ${notifier}.${callback}`);
        t.strictSame([...new Set(found)], ['LOCK_INVERSION in vhost.invalidate_range_end'], 'though nobody waited');
        const [violation] = m.host.violations.since(0, 10).items;
        t.match(violation?.paths.join('\n'), /page_lock -> mutex:vq/);
        t.match(violation?.paths.join('\n'), /mutex:vq -> page_lock/);
        t.match(m.m.dmesg('WARN').at(-1)?.text, /LOCK_INVERSION/);
      },
    );

for (const profile of ['5.4', '5.8', '5.15'])
  t.test(`B-14 (${profile}): a mutex in invalidate_range is SLEEP_IN_ATOMIC, in ${VHOST}`, async (t) => {
    const m = ring(profile);
    m.watch('A', 'vhost', ['invalidate_range'], { invalidate_range: takes('mutex:vq') });
    m.run({ op: 'reclaim', pfn: m.pfn('A', 10) });
    t.ok(codes(m).includes('SLEEP_IN_ATOMIC'), 'reclaim of an anonymous page calls it under the page-table lock');
    const reported = m.host.violations.since(0, 10).items.filter(({ code }) => code === 'SLEEP_IN_ATOMIC');
    t.ok(reported.some(({ locks_held }) => locks_held.some((lock) => lock.startsWith('ptl:'))));
  });

t.test(
  `a worker that marks a page dirty with the lock, under the vq mutex that the callback takes, is found: ${VHOST}`,
  async (t) => {
    const m = ring('5.15');
    m.watch('A', 'vhost', ['invalidate_range_start'], {
      invalidate_range_start: {
        actions: [
          { action: 'lock', lock: 'mutex:vq', hold: false },
          { action: 'dirty_lock', page: BASE + 8 },
        ],
        returns: 0,
      },
    });
    merge(m, 8, 9);
    t.ok(codes(m).includes('DEADLOCK'), 'the callback takes the lock of the page that its caller has locked');
    t.ok(codes(m).includes('SELF_RECURSION'));
  },
);

for (const profile of ['5.15', '6.18'])
  t.test(`swap-in makes an invalid entry valid and tells nobody (${profile}), unlike ${EXCLUSIVE}`, async (t) => {
    const m = pageMachine(profile);
    m.anon('A', 0, 2);
    m.fill('A', 0, 7);
    m.run({ op: 'reclaim', pfn: m.pfn('A', 0) });
    m.watch('A', 'N', ['invalidate_range_start', 'invalidate_range_end', 'invalidate_range', 'change_pte']);
    m.mark();
    t.equal(m.read('A', 0).fields.fault, 'NOPAGE');
    t.strictSame([m.told(), m.pairs(), m.byte('A', 0)], [[], [], 7]);
  });

for (const profile of ['5.4', '5.15', '6.18'])
  t.test(
    `a reference of a page proves that it was mapped once, not that it is (${profile}): ${RESERVED}`,
    async (t) => {
      const m = pinning(profile);
      m.run({ op: 'put_file', file: 'f', size: bytes(4) });
      m.file('T', 0, 4, 'f');
      m.pin(0);
      const pinned = m.pfn('T', 0);
      m.run({ op: 'truncate', file: 'f', size: 0n });
      m.run({ op: 'truncate', file: 'f', size: bytes(4) });
      t.equal(m.read('T', 0).fields.fault, 'NOPAGE');
      t.not(m.pfn('T', 0), pinned, 'truncate takes no notice of the pin');
      t.equal(m.host.mm.pages.pinCount(pinned), 1);
      t.equal(m.counts(pinned)[1], 0);
    },
  );

t.test(`start and end are not always called with mmap_sem held: ${RESERVED}`, async (t) => {
  const held = (operate: (m: PageMachine) => unknown): boolean => {
    const m = ring('5.15');
    m.watch('A');
    m.mark();
    operate(m);
    return m.locksHeld().every((locks) => locks.includes('mmap_lock'));
  };
  t.equal(
    held((m) => m.munmap('A', 8, 1)),
    true,
  );
  t.equal(
    held((m) => merge(m, 8, 9)),
    true,
  );
  t.equal(
    held((m) => m.run({ op: 'mkclean', pfn: m.pfn('A', 0) })),
    false,
  );
  t.equal(
    held((m) => m.run({ op: 'reclaim', pfn: m.pfn('A', 10) })),
    false,
  );
  t.equal(
    held((m) => m.run({ op: 'migrate', pfn: m.pfn('A', 10) })),
    false,
  );
  t.equal(
    held((m) => m.run({ op: 'truncate', file: 'f', size: 0n })),
    false,
  );
});
