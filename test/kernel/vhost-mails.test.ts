// What the mail about vhost's metadata maps claims, each claim a test against vhost itself.

import t from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { at } from './page-machine.ts';
import { ERAS, USED, VhostMachine } from './vhost-machine.ts';

const MAIL = '"Re: [RFC PATCH V2 5/5] vhost: access vq metadata through kernel virtual address", 7 Mar 2019';
const OLD = ERAS.filter(([profile]) => profile !== '6.18');
const errno = ({ refusal, ret }: Outcome): string | number => refusal?.errno ?? ret;

/** The ring of task A is a file that it shares, every area written. */
function inFile(m: VhostMachine): VhostMachine {
  m.munmap('A', 0, 24);
  m.file('A', 0, 8, 'ring');
  for (const page of [0, 1, USED]) m.write('A', page);
  m.round();
  m.mark();
  return m;
}

const merge = (m: VhostMachine): Outcome =>
  m.run({ op: 'ksm_merge', task: 'A', addr: at(USED), with: { task: 'A', addr: at(USED + 1) } });

for (const [profile, era] of OLD) {
  t.test(
    `${MAIL}: with invalidate_range alone a write protection is heard of all the same, from the end (${era}, ${profile})`,
    async (t) => {
      const ksm = new VhostMachine({ profile, variant: 'rfc2' });
      ksm.round();
      ksm.mark();
      merge(ksm);
      t.equal(ksm.told()[0], `vhost-v.invalidate_range CLEAR ${USED}-${USED + 1}`);
      t.notOk(ksm.locksHeld()[0]?.includes('ptl'), 'after the page-table lock was released');
      t.strictSame(ksm.mapped(), ['desc', 'avail']);
      const mkclean = inFile(new VhostMachine({ profile, variant: 'rfc2', untouched: true }));
      t.equal(errno(mkclean.run({ op: 'mkclean', pfn: mkclean.pfn('A', USED) })), 1);
      t.match(mkclean.told(), [/^vhost-v\.invalidate_range /]);
      t.strictSame([mkclean.entry('A', USED), mkclean.mapped()], ['read-only', ['desc', 'avail']]);
    },
  );

  t.test(
    `${MAIL}: page lock under the vq mutex and that mutex in the callback break KSM and every walk of rmap (${era}, ${profile})`,
    async (t) => {
      for (const way of ['ksm', 'mkclean', 'reclaim', 'migrate'] as const) {
        const m = new VhostMachine({ profile, variant: 'rfc2', untouched: way === 'mkclean' });
        if (way === 'mkclean') inFile(m);
        else m.round();
        m.put('used', 4, [1]);
        const pfn = m.pfn('A', USED);
        if (way === 'ksm') {
          m.put('used', 4, [0]);
          merge(m);
        } else m.run({ op: way, pfn });
        const { items } = m.host.violations.since(0, 1000);
        const inversion = items.find(({ code }) => code === 'LOCK_INVERSION');
        t.match(inversion?.text, /page_lock/, way);
        t.equal(inversion?.callback, 'invalidate_range');
      }
    },
  );

  t.test(
    `${MAIL}: no sleeping lock in invalidate_range: it runs under the page-table lock (${era}, ${profile})`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'rfc2' });
      m.fork();
      m.mark();
      m.write('A', USED);
      const { items } = m.host.violations.since(0, 1000);
      t.ok(
        items.some(
          ({ code, locks_held }) => code === 'SLEEP_IN_ATOMIC' && locks_held.some((lock) => lock.startsWith('ptl:')),
        ),
      );
    },
  );
}

for (const [profile, era] of ERAS) {
  t.test(`${MAIL}: the end can run with the page locked, and so can the start (${era}, ${profile})`, async (t) => {
    const m = new VhostMachine({ profile, variant: 'fixed' });
    m.round();
    m.mark();
    merge(m);
    t.strictSame(
      m.told().slice(0, 2),
      ['start', 'end'].map((part) => `vhost-v.invalidate_range_${part} CLEAR ${USED}-${USED + 1}`),
    );
    for (const held of m.locksHeld()) t.match(held, /page_lock/);
    const file = inFile(new VhostMachine({ profile, variant: 'fixed', untouched: true }));
    file.run({ op: 'mkclean', pfn: file.pfn('A', USED) });
    t.equal(file.locksHeld().length, 2);
    for (const held of file.locksHeld()) t.match(held, /page_lock/);
    t.strictSame([m.codes(), file.codes()], [[], []]);
  });

  t.test(`${MAIL}: a start may sleep where its range is blockable, and only there (${era}, ${profile})`, async (t) => {
    const m = new VhostMachine({ profile, switches: { blockable_check: 'not_needed' } });
    m.round();
    m.mark();
    m.invalidate(USED, 1);
    t.strictSame(m.codes(), []);
    m.round();
    m.invalidate(USED, 1, {}, false);
    t.strictSame(m.codes(), ['SLEEP_IN_NONBLOCK']);
  });

  t.test(
    `${MAIL}: "return EBUSY" is EAGAIN, and only a range that may not block is aborted by it (${era}, ${profile})`,
    async (t) => {
      const m = new VhostMachine({ profile });
      t.equal(errno(m.invalidate(USED, 1, {}, false)), 'EAGAIN');
      t.equal(errno(m.invalidate(USED, 1)), 0);
      t.equal(errno(m.run({ op: 'oom_reap', task: 'A' })), 'EAGAIN');
    },
  );

  t.test(
    `${MAIL}: set_page_dirty without the page lock is safe inside the callback of a map made for writing (${era}, ${profile})`,
    async (t) => {
      const m = new VhostMachine({ profile, variant: 'fixed' });
      m.round();
      const page = m.pfn('A', USED);
      m.put('used', 4, [1]);
      m.run({ op: 'lock', task: 'B', lock: `page_lock:${page}` });
      m.mark();
      t.equal(errno(m.dontneed(USED, 1)), 0, 'though somebody holds the lock of the page');
      t.equal(m.host.mm.pages.isDirty(page), true);
      t.strictSame([m.trace('lock').filter(({ lock }) => lock === `page_lock:${page}`), m.codes()], [[], []]);
    },
  );

  t.test(`${MAIL}: and not after the callback has returned (${era}, ${profile})`, async (t) => {
    const m = new VhostMachine({ profile, switches: { reader: 'seqlock' } });
    m.round();
    const write = m.put('used', 4, [1], { stop_at: 'inside_map' });
    m.run({ op: 'gup', task: 'A', addr: at(USED), npage: 1, flags: 4, gup: 'g' });
    m.dontneed(USED, 1);
    m.resume(write);
    t.strictSame([...new Set(m.codes())], ['ACCESSOR_IN_REVOKED_MAP', 'STALE_SECONDARY', 'WRITE_AFTER_DIRTY']);
  });

  t.test(`${MAIL}: a page that the kernel maps for writing has a writable entry (${era}, ${profile})`, async (t) => {
    const m = new VhostMachine({ profile, variant: 'fixed' });
    m.fork();
    m.round();
    t.strictSame([m.entry('A', USED), m.mapped()], ['read-only', ['desc', 'avail']]);
    m.write('A', USED);
    m.round();
    t.strictSame([m.entry('A', USED), m.mapped()], ['writable', ['desc', 'avail', 'used']]);
  });
}
