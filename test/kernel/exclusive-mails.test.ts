// What the mail about device-exclusive memory asks and claims, each a test that names it.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { errno, exclusiveMachine, P515, P614 } from './exclusive-machine.ts';
import { R } from './machine.ts';
import { at, bytes } from './page-machine.ts';

const MAIL = '"Re: [PATCH v8 5/8] mm: Device exclusive memory access", 18 May 2021';

for (const profile of [P515, P614]) {
  t.test(`${MAIL}: restore takes no reference, because the entry has one (${profile})`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    t.strictSame(m.counts(pfn), [1, 1]);
    m.take(0, 1);
    t.strictSame(m.counts(pfn), [1, 0]);
    m.read('A', 0);
    t.strictSame(m.counts(pfn), [1, 1]);
  });

  t.test(
    `${MAIL}: a writable entry is restored dirty, writable where the area is, and always old (${profile})`,
    async (t) => {
      const flagsOf = (prot: number | null): string[] => {
        const m = exclusiveMachine(profile, 1);
        m.take(0, 1);
        if (prot !== null) m.run({ op: 'mprotect', task: 'A', addr: at(0), length: bytes(1), prot });
        const stopped = m.read('A', 0, { stop_at: 'after_pte_set' });
        const flags = m.mm('A').page_table.flags(0x7f0000000);
        m.resume(stopped);
        return ['write', 'dirty', 'young'].filter((_name, bit) => (flags & (0x10 << bit)) !== 0);
      };
      t.strictSame(flagsOf(null), ['write', 'dirty']);
      t.strictSame(flagsOf(R), [], 'a readable entry');
    },
  );

  t.test(`${MAIL}: from not valid to valid nobody is told as a rule; here everybody is (${profile})`, async (t) => {
    const m = exclusiveMachine(profile, 2);
    m.run({ op: 'reclaim', pfn: m.pfn('A', 0) });
    m.take(1, 1);
    m.watch('A');
    m.mark();
    m.read('A', 0);
    t.strictSame(m.told(), [], 'a swap-in');
    m.read('A', 1);
    t.strictSame(m.told(), [
      'exclusive-D.invalidate EXCLUSIVE 1-2',
      'N-A.invalidate_range_start EXCLUSIVE 1-2',
      'N-A.invalidate_range_end EXCLUSIVE 1-2',
    ]);
  });

  t.test(
    `${MAIL}: is CLEAR the right event? it is one of its own, and nobody owns that of a restore (${profile})`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.take(0, 1);
      m.read('A', 0);
      t.strictSame(m.events(), ['EXCLUSIVE/D 0-1', 'EXCLUSIVE/null 0-1']);
    },
  );

  t.test(`${MAIL}: can a page of a file be restored? none is ever exclusive (${profile})`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.run({ op: 'put_file', file: 'f', size: bytes(2) });
    m.file('A', 5, 2, 'f');
    t.strictSame(m.slots(m.make(5, 2)), ['not_anon', 'not_anon']);
    t.strictSame([m.entry('A', 5), m.entry('A', 6)], ['writable', 'writable']);
    m.file('A', 8, 1, 'f', { shared: false });
    t.strictSame(m.slots(m.make(8, 1)), ['granted'], 'its private copy is anonymous');
  });

  t.test(`${MAIL}: do parent and child own the device after fork()? neither of them does (${profile})`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    t.equal(m.deviceWrites(0, 42), '0');
    m.run({ op: 'fork', task: 'A', child: 'C' });
    t.strictSame([m.mapped(), m.deviceWrites(0, 43)], [[], 'EFAULT']);
    for (const task of ['A', 'C']) {
      t.equal(m.entry(task, 0), 'read-only', 'a child never gets an exclusive entry');
      t.equal(m.cpuReads(task, 0), 42, 'every copy has what the device wrote');
    }
  });

  t.test(
    `${MAIL}: fork() keeps no entry it says that it removes: the parent's is present afterwards (${profile})`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const pfn = m.pfn('A', 0);
      m.take(0, 1);
      const fork = m.run({ op: 'fork', task: 'A', child: 'C', stop_at: 'after_pte_set' });
      t.strictSame([m.entry('A', 0), m.counts(pfn)], ['read-only', [2, 2]]);
      m.resume(fork);
    },
  );

  t.test(`${MAIL}: a page lock that is busy fails fork(), with ENOMEM (${profile})`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    m.run({ op: 'lock', task: 'B', lock: `page_lock:${m.pfn('A', 0)}` });
    t.equal(errno(m.run({ op: 'fork', task: 'A', child: 'C' })), 'ENOMEM');
    t.equal(m.entry('A', 0), 'exclusive');
    m.run({ op: 'unlock', task: 'B', lock: `page_lock:${m.pfn('A', 0)}` });
    t.equal(errno(m.run({ op: 'fork', task: 'A', child: 'C' })), '0');
  });

  t.test(
    `${MAIL}: one replaced page fails the whole call? its slot alone, and the count has it (${profile})`,
    async (t) => {
      const m = exclusiveMachine(profile, 4);
      const stopped = m.make(0, 4, { stop_at: 'after_gup' });
      m.run({ op: 'madvise', task: 'A', addr: at(2), length: bytes(1), advice: 'DONTNEED' });
      const made = m.resume(stopped) as Outcome;
      t.strictSame([made.ret, m.slots(made)], [4, ['granted', 'granted', 'replaced', 'granted']]);
    },
  );

  t.test(
    `${MAIL}: what are address and valid for? pages can be replaced between GUP and the walk (${profile})`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const old = m.pfn('A', 0);
      const stopped = m.make(0, 1, { stop_at: 'after_gup' });
      t.equal(m.host.locks.get(`page_lock:${old}`), undefined, 'the page is not locked in between');
      m.run({ op: 'madvise', task: 'A', addr: at(0), length: bytes(1), advice: 'DONTNEED' });
      m.cpuWrites('A', 0, 9);
      t.strictSame(m.slots(m.resume(stopped) as Outcome), ['replaced']);
      t.strictSame([m.entry('A', 0), m.cpuReads('A', 0), m.counts(old)], ['writable', 9, [0, 0]]);
    },
  );

  t.test(
    `${MAIL}: copies that other processes have since a fork are no matter: GUP breaks them off first (${profile})`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.run({ op: 'fork', task: 'A', child: 'C' });
      m.make(0, 1);
      t.not(m.pfn('A', 0), m.pfn('C', 0));
      t.strictSame(
        m.trace('invalidate_start').map(({ mm, mmu_event }) => `${mm} ${mmu_event}`),
        ['mm-1 PROTECTION_PAGE', 'mm-1 CLEAR', 'mm-1 EXCLUSIVE'],
        'nothing of the child',
      );
    },
  );
}
