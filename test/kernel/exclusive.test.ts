// The numbered cases of device-exclusive access (host-mm F.7), in every profile that has it.

import t from 'tap';
import {
  FAULT_FLAG_ALLOW_RETRY,
  FAULT_FLAG_KILLABLE,
  FAULT_FLAG_RETRY_NOWAIT,
  FAULT_FLAG_TRIED,
} from '../../src/kernel/mm/fault-flags.ts';
import { FOLL_GET, FOLL_NOWAIT, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { ExclusiveMachine, errno, exclusiveMachine, P515, P614 } from './exclusive-machine.ts';
import { Machine, R } from './machine.ts';
import { at, bytes } from './page-machine.ts';

const RETRYING = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE;

for (const [name, profile] of [
  ['P515', P515],
  ['P614', P614],
] as const) {
  t.test(
    `F-1 (${name}): every page of an anonymous buffer is granted, with one EXCLUSIVE of the owner each`,
    async (t) => {
      const m = exclusiveMachine(profile, 3);
      const pfns = [0, 1, 2].map((page) => m.pfn('A', page));
      const made = m.make(0, 3);
      t.equal(made.ret, 3);
      t.strictSame(m.slots(made), ['granted', 'granted', 'granted']);
      t.strictSame(m.events(), ['EXCLUSIVE/D 0-1', 'EXCLUSIVE/D 1-2', 'EXCLUSIVE/D 2-3']);
      t.strictSame(
        m.trace('invalidate_end').map(({ mmu_event, owner }) => `${mmu_event}/${owner}`),
        Array(3).fill('EXCLUSIVE/D'),
        'as many ends',
      );
      for (const [page, pfn] of pfns.entries()) {
        t.equal(m.entry('A', page), 'exclusive');
        t.equal(m.pfn('A', page), pfn);
        t.strictSame(m.counts(pfn), [2, 0], 'the reference of the entry and the one of the grant; no mapping');
        t.equal(m.lockOf(pfn), 'grant:D/g');
      }
      t.equal(m.mm('A').rss, 0);
      m.drop();
      for (const pfn of pfns) {
        t.strictSame(m.counts(pfn), [1, 0]);
        t.equal(m.lockOf(pfn), undefined);
      }
    },
  );

  t.test(
    `F-1 (${name}): the events come under mmap_lock, the page lock and the anon_vma lock, never under the ptl`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.watch('A');
      m.mark();
      m.make(0, 1);
      t.strictSame(m.locksHeld(), [
        'mmap_lock page_lock anon_vma',
        'mmap_lock page_lock anon_vma',
        'mmap_lock page_lock anon_vma',
      ]);
      t.strictSame(
        m.trace('invalidate_start', 'pte', 'invalidate_end').map(({ event, change }) => change ?? event),
        ['invalidate_start', 'clear', 'exclusive', 'invalidate_end'],
      );
    },
  );

  t.test(`F-2 (${name}): a read of one page restores that page alone, with EXCLUSIVE and no owner`, async (t) => {
    const m = exclusiveMachine(profile, 3);
    m.take(0, 3);
    t.strictSame(m.mapped(), ['0 atomic', '1 atomic', '2 atomic']);
    m.mark();
    t.equal(m.cpuReads('A', 1), 2, 'the data are as before');
    t.strictSame(m.events(), ['EXCLUSIVE/null 1-2']);
    t.strictSame(m.mapped(), ['0 atomic', '2 atomic']);
    t.strictSame(
      [0, 1, 2].map((page) => m.entry('A', page)),
      ['exclusive', 'writable', 'exclusive'],
    );
    t.strictSame(m.counts(m.pfn('A', 1)), [1, 1]);
    t.strictSame(m.codes(), []);
  });

  t.test(
    `F-2 (${name}): the start of a restore comes under the page lock, its end after the page is unlocked`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const pfn = m.pfn('A', 0);
      m.take(0, 1);
      m.watch('A');
      m.mark();
      m.read('A', 0);
      t.strictSame(
        m.locksHeld(),
        ['mmap_lock page_lock', 'mmap_lock page_lock', 'mmap_lock'],
        'D, N at the start, N at the end',
      );
      t.strictSame(
        m
          .trace('invalidate_start', 'pte', 'invalidate_end', 'lock')
          .filter(({ lock, state }) => lock === undefined || (lock === `page_lock:${pfn}` && state !== 'waits'))
          .map(({ event, change, state }) => change ?? state ?? event),
        ['held', 'invalidate_start', 'set', 'released', 'invalidate_end'],
      );
    },
  );

  t.test(
    `F-3 (${name}): the device reads what the CPU wrote; its atomic mappings end with the CPU's next access`,
    async (t) => {
      const m = exclusiveMachine(profile, 4);
      t.equal(errno(m.dmirror(0, 4)), '0');
      t.strictSame(
        [0, 1, 2, 3].map((page) => m.deviceReads(page)),
        [1, 2, 3, 4],
      );
      t.equal(m.check_exclusive(0, 4), 'EPERM', 'before any access of the CPU');
      for (let page = 0; page < 4; page++) m.cpuWrites('A', page, m.cpuReads('A', page) + 1);
      t.equal(m.check_exclusive(0, 4), '0');
      t.strictSame(
        [0, 1, 2, 3].map((page) => m.cpuReads('A', page)),
        [2, 3, 4, 5],
      );
      t.equal(m.deviceReads(0), 'EFAULT');
    },
  );

  t.test(`F-3 (${name}): what the device wrote is what the CPU reads`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    t.equal(m.deviceWrites(0, 77), '0');
    t.equal(m.cpuReads('A', 0), 77);
  });

  t.test(
    `F-5 (${name}): after a fork parent and child have data of their own; the only event is PROTECTION_PAGE`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      m.take(0, 2);
      m.mark();
      t.equal(m.run({ op: 'fork', task: 'A', child: 'C' }).ret, 0);
      t.strictSame(m.events(), ['PROTECTION_PAGE/null 0-2']);
      t.strictSame(m.mapped(), [], 'exclusivity ends at the fork');
      for (const task of ['A', 'C']) t.equal(m.entry(task, 0), 'read-only');
      t.strictSame(m.counts(m.pfn('A', 0)), [2, 2]);
      m.cpuWrites('A', 0, m.cpuReads('A', 0) + 10);
      m.cpuWrites('C', 0, m.cpuReads('C', 0) + 20);
      t.strictSame([m.cpuReads('A', 0), m.cpuReads('C', 0)], [11, 21]);
      t.strictSame(m.codes(), []);
    },
  );

  t.test(
    `F-6 (${name}): an access that may retry drops mmap_lock, waits for the grant, and answers RETRY`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const pfn = m.pfn('A', 0);
      m.make(0, 1);
      const access = m.faults('A', 0, RETRYING);
      t.equal(m.waitsFor(access), `page_lock:${pfn}`);
      t.equal(m.host.locks.get('mmap_lock:mm-1'), undefined, 'mmap_lock is free');
      m.drop();
      t.strictSame(m.outcomeOf(access)?.fields, { fault: 'RETRY', pfn: null, mmap_lock: 'dropped' });
      t.equal(m.entry('A', 0), 'exclusive', 'this attempt has changed nothing');
      t.equal(m.faults('A', 0, RETRYING | FAULT_FLAG_TRIED).fields.fault, 'NOPAGE');
      t.equal(m.entry('A', 0), 'writable');
    },
  );

  t.test(
    `F-6 (${name}): RETRY_NOWAIT answers RETRY with mmap_lock kept; without ALLOW_RETRY it means nothing`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      m.make(0, 1);
      const { fields } = m.faults('A', 0, FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_RETRY_NOWAIT);
      t.strictSame(fields, { fault: 'RETRY', pfn: null, mmap_lock: 'held' });
      t.not(m.faults('A', 0, FAULT_FLAG_RETRY_NOWAIT).parked, undefined);
      m.drop();
      t.equal(m.entry('A', 0), 'writable');
    },
  );

  t.test(
    `F-6 (${name}): without ALLOW_RETRY, and at the second attempt, the access waits under mmap_lock`,
    async (t) => {
      for (const flags of [0, FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_TRIED]) {
        const m = exclusiveMachine(profile, 1);
        const pfn = m.pfn('A', 0);
        m.make(0, 1);
        const access = m.faults('A', 0, flags);
        t.equal(m.waitsFor(access), `page_lock:${pfn}`);
        t.equal(m.host.locks.get('mmap_lock:mm-1')?.holders.length, 1, 'it has mmap_lock');
        t.equal(
          m.host.mm.pages.refcount(pfn),
          profile === P515 ? 2 : 3,
          'a reference while it waits, in newer kernels',
        );
        m.drop();
        t.equal(m.outcomeOf(access)?.fields.fault, 'NOPAGE');
        t.strictSame(m.counts(pfn), [1, 1]);
      }
    },
  );

  t.test(`F-6 (${name}): a fatal signal ends the killable wait for the page`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.make(0, 1);
    const access = m.read('A', 0);
    m.run({ op: 'signal', task: 'A', fatal: true });
    t.equal(m.outcomeOf(access)?.refusal?.errno, 'EINTR');
    t.equal(m.entry('A', 0), 'exclusive');
  });

  t.test(`F-6 (${name}): GUP waits for the grant too, and with FOLL_NOWAIT finds nothing`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.make(0, 1);
    const flags = FOLL_GET | FOLL_WRITE;
    t.equal(m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags: flags | FOLL_NOWAIT }).ret, 0);
    const got = m.run({ op: 'gup', task: 'A', addr: at(0), npage: 1, flags });
    t.match(m.waitsFor(got), /^page_lock:/);
    m.drop();
    t.equal(m.outcomeOf(got)?.ret, 1);
    t.equal(m.entry('A', 0), 'writable', 'GUP revokes exclusivity');
  });

  t.test(`F-7 (${name}): ENOMEM: a fork while a grant is held; after its drop the fork succeeds`, async (t) => {
    const m = exclusiveMachine(profile, 2);
    m.make(0, 2);
    m.program();
    m.mark();
    t.equal(errno(m.run({ op: 'fork', task: 'A', child: 'C' })), 'ENOMEM');
    t.strictSame(m.events(), ['PROTECTION_PAGE/null 0-2'], 'the pair is delivered all the same');
    t.strictSame(
      [0, 1].map((page) => m.entry('A', page)),
      ['exclusive', 'exclusive'],
    );
    t.notOk(m.host.mm.tasks.has('C'));
    m.drop();
    t.equal(errno(m.run({ op: 'fork', task: 'A', child: 'C' })), '0');
    t.equal(m.entry('C', 0), 'read-only');
  });

  t.test(`F-9 (${name}): a shared page of a file is counted and not granted, without an event`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.run({ op: 'put_file', file: 'f', size: bytes(4) });
    m.file('A', 1, 1, 'f');
    m.anon('A', 2, 1);
    const made = m.make(0, 3);
    t.equal(made.ret, 3);
    t.strictSame(m.slots(made), ['granted', 'not_anon', 'granted']);
    t.strictSame(m.events(), ['EXCLUSIVE/D 0-1', 'EXCLUSIVE/D 2-3']);
    t.equal(m.entry('A', 1), 'writable');
    t.strictSame(m.counts(m.pfn('A', 1)), [2, 1], 'its mapping and the page cache: nothing of the call is left');
  });

  t.test(
    `F-10 (${name}): a hole ends the range; EFAULT: a hole at its first page, and an area that may not be written`,
    async (t) => {
      const m = exclusiveMachine(profile, 3);
      const made = m.make(0, 6);
      t.equal(made.ret, 3);
      t.strictSame(m.slots(made), ['granted', 'granted', 'granted']);
      m.drop();
      t.equal(errno(m.make(3, 2)), 'EFAULT');
      m.anon('A', 10, 1, R);
      t.equal(errno(m.make(10, 1)), 'EFAULT');
      t.equal(m.host.consumers.exclusive.devices.get('D')?.grants.size, 0);
      t.equal(m.host.mm.gups.size, 0);
    },
  );

  t.test(
    `F-11 (${name}): a page that is replaced between GUP and the walk is not granted; the others are`,
    async (t) => {
      const m = exclusiveMachine(profile, 3);
      const old = m.pfn('A', 1);
      const stopped = m.make(0, 3, { stop_at: 'after_gup' });
      m.run({ op: 'madvise', task: 'A', addr: at(1), length: bytes(1), advice: 'DONTNEED' });
      m.cpuWrites('A', 1, 99);
      m.mark();
      const made = m.resume(stopped) as Outcome;
      t.equal(made.ret, 3, 'it counts what GUP has found');
      t.strictSame(m.slots(made), ['granted', 'replaced', 'granted']);
      t.strictSame(m.events(), ['EXCLUSIVE/D 0-1', 'EXCLUSIVE/D 2-3'], 'nobody maps the old page any more');
      t.strictSame(m.counts(old), [0, 0]);
      t.equal(m.cpuReads('A', 1), 99);
    },
  );

  t.test(`F-11 (${name}): EAGAIN: migration does not replace a page of which GUP has a reference`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    const stopped = m.make(0, 1, { stop_at: 'after_gup' });
    m.mark();
    t.equal(errno(m.run({ op: 'migrate', pfn })), 'EAGAIN');
    t.strictSame(m.events(), ['CLEAR/null 0-1']);
    t.strictSame(m.slots(m.resume(stopped) as Outcome), ['granted']);
  });

  t.test(`F-13 (${name}): a second device first revokes the page from the first one`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.open('D2');
    m.take(0, 1);
    m.mark();
    const made = m.make(0, 1, { device: 'D2' });
    t.strictSame(m.slots(made), ['granted']);
    t.strictSame(m.events(), ['EXCLUSIVE/null 0-1', 'EXCLUSIVE/D2 0-1']);
    t.strictSame(
      m.trace('notify').map(({ notifier, owner }) => `${notifier} ${owner}`),
      ['exclusive-D null', 'exclusive-D2 null', 'exclusive-D D2', 'exclusive-D2 D2'],
    );
    t.strictSame(m.mapped('D'), []);
    t.strictSame(m.codes(), []);
  });

  t.test(`F-13 (${name}): a device that asks again for its own page goes through a revocation`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.take(0, 1);
    m.mark();
    m.make(0, 1);
    t.strictSame(m.events(), ['EXCLUSIVE/null 0-1', 'EXCLUSIVE/D 0-1']);
    t.strictSame(m.mapped(), []);
  });

  t.test(
    `F-14 (${name}): a page that is shared after a fork is copied for the parent first; the child keeps the old one`,
    async (t) => {
      const m = exclusiveMachine(profile, 1);
      const old = m.pfn('A', 0);
      m.run({ op: 'fork', task: 'A', child: 'C' });
      m.mark();
      const made = m.make(0, 1);
      t.strictSame(m.slots(made), ['granted']);
      t.strictSame(m.events(), ['CLEAR/null 0-1', 'EXCLUSIVE/D 0-1']);
      t.not(m.pfn('A', 0), old);
      t.strictSame([m.pfn('C', 0), m.entry('C', 0)], [old, 'read-only']);
      t.strictSame(m.counts(old), [1, 1]);
    },
  );

  t.test(`F-15 (${name}): munmap of an exclusive page frees it, with UNMAP and no EXCLUSIVE`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.take(0, 1);
    m.mark();
    m.munmap('A', 0, 1);
    t.strictSame(m.events(), ['UNMAP/null 0-1']);
    t.strictSame(m.counts(pfn), [0, 0]);
    t.strictSame(m.mapped(), []);
  });

  t.test(`F-17 (${name}): EAGAIN: an exclusive page is not migrated, and its entry stays`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.take(0, 1);
    m.mark();
    t.equal(errno(m.run({ op: 'migrate', pfn })), 'EAGAIN');
    t.strictSame([m.events(), m.entry('A', 0), m.pfn('A', 0), m.mapped()], [[], 'exclusive', pfn, ['0 atomic']]);
  });

  t.test(`F-18 (${name}): memory that was never touched, or only read, is allocated and granted`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    m.anon('A', 4, 2);
    m.read('A', 5);
    const made = m.make(4, 2);
    t.strictSame(m.slots(made), ['granted', 'granted']);
    t.strictSame(m.events(), ['CLEAR/null 5-6', 'EXCLUSIVE/D 4-5', 'EXCLUSIVE/D 5-6'], 'the zero page is replaced');
    t.strictSame(m.counts(m.pfn('A', 4)), [2, 0]);
  });

  t.test(`F-19 (${name}): EINVAL: a range that overflows, one that is not aligned, and one of no pages`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    for (const [start, length] of [
      [2n ** 64n - 4096n, 4096n],
      [2n ** 64n - 4096n, 8192n],
      [at(0) + 1n, 4096n],
      [at(0), 4095n],
      [at(0), 0n],
    ] as const)
      for (const op of ['make_device_exclusive', 'dmirror_exclusive', 'check_exclusive'] as const)
        t.equal(errno(m.run({ op, device: 'D', start, length })), 'EINVAL', `${op} ${start} ${length}`);
  });

  t.test(
    `F-21 (${name}): after one collision every further attempt collides, unless the CPU touches the page first`,
    async (t) => {
      const m = exclusiveMachine(profile, 2);
      let sequence = m.begin();
      m.make(0, 1, { grant: 'first' });
      m.munmap('A', 1, 1);
      t.equal(m.retry(sequence), 1, 'the injected collision');
      t.strictSame(m.program(sequence, { grant: 'first' }).fields, { collided: true });
      m.drop({ grant: 'first' });
      for (const grant of ['second', 'third']) {
        m.mark();
        sequence = m.begin();
        m.make(0, 1, { grant });
        t.strictSame(m.events(), ['EXCLUSIVE/null 0-1', 'EXCLUSIVE/D 0-1']);
        t.equal(m.retry(sequence), 1, 'the restore of the entry that the last attempt left is not filtered');
        t.strictSame([m.program(sequence, { grant }).fields, m.mapped()], [{ collided: true }, []]);
        m.drop({ grant });
      }
      m.read('A', 0);
      sequence = m.begin();
      m.make(0, 1);
      t.equal(m.retry(sequence), 0);
      t.strictSame([m.program(sequence).ret, m.mapped()], [1, ['0 atomic']]);
    },
  );

  t.test(`munmap (${name}): a grant does not hold it up, and keeps the page until it is dropped`, async (t) => {
    const m = exclusiveMachine(profile, 1);
    const pfn = m.pfn('A', 0);
    m.make(0, 1);
    m.munmap('A', 0, 1);
    t.strictSame(m.counts(pfn), [1, 0], 'the reference of the grant');
    t.equal(m.lockOf(pfn), 'grant:D/g');
    m.drop();
    t.strictSame(m.counts(pfn), [0, 0]);
  });
}

/** A page that was swapped out and in again between GUP and the walk. */
function swappedInBetween(profile: string): { m: ExclusiveMachine; pfn: number; made: Outcome } {
  const m = exclusiveMachine(profile, 1);
  const pfn = m.pfn('A', 0);
  const stopped = m.make(0, 1, { stop_at: 'after_gup' });
  m.run({ op: 'reclaim', pfn });
  m.read('A', 0);
  return { m, pfn, made: m.resume(stopped) as Outcome };
}

t.test(
  'F-11 (P515): an entry that has become read-only since is converted, not granted, and not rolled back',
  async (t) => {
    const { m, pfn, made } = swappedInBetween(P515);
    t.strictSame([m.slots(made), made.fields.grant], [['replaced'], null]);
    t.strictSame([m.entry('A', 0), m.pfn('A', 0), m.lockOf(pfn)], ['exclusive', pfn, undefined]);
    m.mark();
    t.equal(m.cpuReads('A', 0), 1);
    t.strictSame([m.events(), m.entry('A', 0)], [['EXCLUSIVE/null 0-1'], 'read-only'], 'the next fault restores it');
  },
);

t.test(
  'F-11 (P614): a page that comes back from swap as its own entry keeps the right to be written, and is granted',
  async (t) => {
    const { m, made } = swappedInBetween(P614);
    t.strictSame([m.slots(made), m.entry('A', 0)], [['granted'], 'exclusive']);
  },
);

for (const profile of ['4.10', '5.4', '5.8'])
  t.test(`device-exclusive access (${profile}): ENODEV: every command`, async (t) => {
    const m = new ExclusiveMachine(new Machine({ profile }), ['A']);
    const range = { device: 'D', start: at(0), length: bytes(1) };
    const outcomes = [
      m.open(),
      m.run({ op: 'delete_exclusive_device', device: 'D' }),
      m.make(0, 1),
      m.drop(),
      m.program(),
      m.dmirror(0, 1),
      m.run({ op: 'check_exclusive', ...range }),
      m.mirror(0, 1),
      m.run({ op: 'device_access', device: 'D', addr: at(0), write: false, length: 1 }),
    ];
    t.strictSame(new Set(outcomes.map(errno)), new Set(['ENODEV']));
  });
