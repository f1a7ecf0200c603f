// The numbered cases of KVM, in every profile that they are stated for, and what a mail says about them.

import t from 'tap';

import type { Backing } from '../../src/kernel/command.ts';
import { execute } from '../../src/kernel/execute.ts';
import { violations } from '../../src/kernel/invariants.ts';
import { pageLock } from '../../src/kernel/lock.ts';
import { FOLL_GET, FOLL_WRITE } from '../../src/kernel/mm/gup-flags.ts';
import { isZeroPage } from '../../src/kernel/mm/page.ts';
import type { Phase } from '../../src/kernel/phase.ts';
import { restoreHost, sections } from '../../src/kernel/snapshot.ts';
import { decode, encode } from '../../src/service/codec.ts';
import { G, KvmHost, LOG_DIRTY, READONLY, SLOT_PAGES } from './kvm-machine.ts';
import { at, P53, P58, P515, P614, PAGE, READ } from './mm-threads.ts';

/** 4.10 and 5.4 are one era for KVM, 5.8 belongs to it too. */
const OLD = ['4.10', P53, P58];
const NEW = [P515, P614];
const ALL = [...OLD, ...NEW];
/** Where a reference is not what a fault rests on: the ordinary order, and the page put as soon as it is got. */
const PUTS = [{}, { early_put: true }];

const MAIL = 'Re: [PATCH 1/2] KVM: MMU: Do not treat ZONE_DEVICE pages as being reserved (8 November 2019)';

/** A BAR: device memory without struct pages. */
const bar = (rest: Partial<Extract<Backing, { kind: 'pfnmap' }>> = {}): Backing => ({
  kind: 'pfnmap',
  pfn: 0xfe000,
  struct_page: false,
  reserved: false,
  ...rest,
});

function onBacking(profile: string, backing: Backing, npage = 4, switches = {}): KvmHost {
  const m = new KvmHost(profile);
  m.mmap(0, npage, backing);
  m.run({ op: 'put_vm', vm: 'V', ...switches });
  m.slot(0, G, 0, npage);
  return m;
}

/** What a fault that was stopped at `stop_at` ends with after `between`, and whether the page's references are as before it. */
function interrupted(m: KvmHost, stop_at: Phase, between: () => void): [string, boolean] {
  m.touch(0, true);
  const pfn = m.pfn(0) as number;
  const before = m.refs(pfn);
  const fault = m.fault(0, true, { stop_at });
  t.equal(m.state(fault), 'stopped');
  between();
  const word = m.goOn(fault);
  return [word, m.refs(pfn) === before];
}

for (const profile of ALL) {
  t.test(`C-1 ${profile}: a fault maps the page and keeps no reference of it`, async (t) => {
    for (const switches of PUTS) {
      const m = KvmHost.withMemory(profile, switches);
      m.touch(0, true);
      const pfn = m.pfn(0) as number;
      t.equal(m.faults(0), 'FIXED');
      t.strictSame([m.maps(0), m.refs(pfn)], [`${pfn} rw`, 1]);
      t.equal(m.faults(1), 'FIXED', 'a page that was never touched is faulted in');
      t.strictSame([m.maps(1), m.refs(m.pfn(1) as number)], [`${m.pfn(1)} rw`, 1]);
      t.strictSame(m.codes(), []);
    }
  });

  t.test(`C-2 ${profile}: an invalidation that has started makes the fault RETRY`, async (t) => {
    for (const switches of PUTS)
      for (const stop_at of ['after_seq_snapshot', 'after_gup'] as const) {
        const m = KvmHost.withMemory(profile, switches);
        const found = interrupted(m, stop_at, () => m.open(0, 1));
        t.strictSame(found, ['RETRY mmu_notifier_count', true]);
        t.equal(m.maps(0), null);
      }
  });

  t.test(
    `C-3 ${profile}: an invalidation that has started and ended makes the fault RETRY; the next one gets the new page`,
    async (t) => {
      for (const switches of PUTS) {
        const m = KvmHost.withMemory(profile, switches);
        m.touch(0, true);
        const old = m.pfn(0) as number;
        const fault = m.fault(0, true, { stop_at: 'after_gup' });
        const dontneed = m.run({
          op: 'madvise',
          addr: at(0),
          length: PAGE,
          advice: 'DONTNEED',
          stop_at: 'after_start',
        });
        m.resume(dontneed);
        t.equal(m.refs(old), switches === PUTS[0] ? 1 : 0, 'the reference of the fault alone keeps the old page');
        t.equal(m.goOn(fault), 'RETRY mmu_notifier_seq');
        t.strictSame([m.maps(0), m.refs(old)], [null, 0]);
        t.equal(m.faults(0), 'FIXED');
        t.equal(m.maps(0), `${m.pfn(0)} rw`);
        t.not(m.pfn(0), old);
        t.strictSame(m.codes(), []);
      }
    },
  );

  t.test(`C-5 ${profile}: an invalidation that ends before the snapshot makes nothing RETRY`, async (t) => {
    for (const switches of PUTS) {
      const m = KvmHost.withMemory(profile, switches);
      m.touch(0, true);
      m.close(0, 1);
      t.equal(m.vm.mmu_notifier_seq, 1);
      t.equal(m.faults(0), 'FIXED');
      t.equal(m.refs(m.pfn(0) as number), 1);
    }
  });

  t.test(`C-6 ${profile}: an invalidation between snapshot and insertion makes the fault RETRY`, async (t) => {
    for (const switches of PUTS)
      for (const stop_at of ['after_seq_snapshot', 'after_gup'] as const) {
        const m = KvmHost.withMemory(profile, switches);
        t.strictSame(
          interrupted(m, stop_at, () => m.close(0, 1)),
          ['RETRY mmu_notifier_seq', true],
        );
        t.equal(m.maps(0), null);
        t.equal(m.faults(0), 'FIXED');
      }
  });

  t.test(`C-10 ${profile}: whatever a fault ends with, the page has the references that it had`, async (t) => {
    for (const switches of PUTS) {
      const m = KvmHost.withMemory(profile, switches);
      m.touch(0, true);
      const pfn = m.pfn(0) as number;
      const fault = m.fault(0, true, { stop_at: 'after_gup' });
      t.equal(m.refs(pfn), switches === PUTS[0] ? 2 : 1, 'got meanwhile');
      const open = m.open(0, 1);
      t.equal(m.goOn(fault), 'RETRY mmu_notifier_count');
      t.equal(m.refs(pfn), 1);
      m.resume(open);
      t.equal(m.faults(0), 'FIXED');
      t.equal(m.refs(pfn), 1);
    }
  });

  t.test(`C-11 ${profile}: the SPTE is gone and the TLB is flushed when the start of a munmap returns`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.fault(0);
    m.fault(1);
    const { tlb_flushes } = m.vm;
    const munmap = m.range('munmap', 0, 1, 'after_start');
    t.strictSame([m.maps(0), m.vm.tlb_flushes - tlb_flushes], [null, 1]);
    t.equal(m.maps(1), `${m.pfn(1)} rw`);
    m.resume(munmap);
    t.strictSame(m.codes(), []);
    t.equal(m.faults(0), 'EFAULT', 'no area is behind the gfn any more');
  });

  t.test(
    `mmu_lock (${profile}): an invalidation waits for the insertion that holds mmu_lock, and takes the SPTE away`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      const fault = m.fault(0, true, { stop_at: 'before_insert' });
      const munmap = m.range('munmap', 0, 1);
      t.equal(m.blockedOn(munmap), 'spinlock:mmu_lock:V');
      t.equal(m.goOn(fault), 'FIXED');
      t.strictSame([m.state(munmap), m.maps(0), m.codes()], ['done', null, []]);
    },
  );

  t.test(
    `C-14 ${profile}: device memory is mapped without a reference; where it does not answer, EFAULT`,
    async (t) => {
      const m = onBacking(profile, bar({ ptes: ['rw', 'lazy', 'lazy-retry', 'sigbus'] }));
      t.equal(m.faults(0), 'FIXED');
      t.strictSame([m.maps(0), m.refs(0xfe000)], [`${0xfe000} rw`, 0]);
      t.equal(m.faults(1), 'FIXED', 'the handler of the device maps it first');
      t.equal(m.maps(1), `${0xfe001} rw`);
      t.equal(m.faults(2), 'FIXED');
      t.equal(m.faults(3), 'EFAULT');
      t.strictSame([m.refs(0xfe003), m.maps(3)], [0, null]);
      m.range('munmap', 0, 4);
      t.strictSame([m.vm.sptes.size, m.codes()], [0, []]);
    },
  );

  t.test(`C-15 ${profile}: a device is removed after the guest has used its page`, async (t) => {
    const m = new KvmHost(profile);
    for (const pfn of [500, 501]) m.run({ op: 'put_page', pfn, kind: 'zone_device' });
    t.equal(m.refs(500), 1, 'idle with one reference');
    m.mmap(0, 2, { kind: 'pages', pfns: [[500, 2]] });
    m.vmWithSlot();
    t.equal(m.faults(0), 'FIXED');
    t.strictSame([m.maps(0), m.refs(500)], ['500 rw', 2]);
    m.mark();
    const removal = m.run({ op: 'remove_device_pages', pfn: 500, npage: 2 });
    t.strictSame([removal.refusal, removal.parked], [undefined, undefined]);
    t.strictSame([m.refs(500), m.maps(0), m.started()], [0, null, [`CLEAR ${m.mm().id} 0+2`]]);
    t.equal(m.faults(0), 'EFAULT', 'its memory is gone');
    t.strictSame([m.touch(0, true).fields.fault, m.codes()], ['SIGBUS', []]);
  });

  t.test(`C-16 ${profile}: a mapping of the host keeps its page alive, and stale, until it is unmapped`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.touch(0, true);
    const pfn = m.pfn(0) as number;
    const map = m.map(0, { map: 'M' });
    const held = profile === P614 ? 1024 : 1;
    t.match(map.fields, { id: 'M', pfn, holds: profile === P614 ? 'pin' : 'get', struct_page: true, writable: true });
    t.equal(m.refs(pfn), 1 + held);
    m.madvise('DONTNEED', 0, 1);
    t.equal(m.refs(pfn), held);
    m.touch(0, true);
    t.not(m.pfn(0), pfn, 'the address has another page');
    const written = m.run({ op: 'vcpu_map_rw', vm: 'V', map: 'M', offset: 8, data: 'AQID' });
    t.equal(written.refusal, undefined);
    t.equal(m.run({ op: 'vcpu_map_rw', vm: 'V', map: 'M', offset: 8, length: 3 }).fields.data, 'AQID');
    t.equal(
      m.run({ op: 'access', addr: at(0) + 8n, write: false, length: 3 }).fields.data,
      'AAAA',
      'the guest does not see it',
    );
    m.unmap('M');
    t.strictSame([m.refs(pfn), m.codes()], [0, []]);
  });

  t.test(`C-17 ${profile}: a mapping whose reference is dropped at once is USE_AFTER_FREE`, async (t) => {
    const m = KvmHost.withMemory(profile, { early_put: true });
    m.touch(0, true);
    const pfn = m.pfn(0) as number;
    t.equal(m.map(0, { map: 'M' }).fields.holds, 'none');
    t.equal(m.refs(pfn), 1);
    m.run({ op: 'vcpu_map_rw', vm: 'V', map: 'M', offset: 0, length: 4 });
    t.strictSame(m.codes(), [], 'as long as the address keeps the page');
    m.madvise('DONTNEED', 0, 1);
    t.equal(m.refs(pfn), 0);
    m.run({ op: 'vcpu_map_rw', vm: 'V', map: 'M', offset: 0, data: 'AQID' });
    t.strictSame(m.codes(), ['USE_AFTER_FREE']);
    m.unmap('M', true);
    t.strictSame(m.codes(), ['USE_AFTER_FREE', 'USE_AFTER_FREE'], 'it marks the page dirty too');
  });

  t.test(`C-18 ${profile}: no memslot, no mapping: EINVAL`, async (t) => {
    const m = KvmHost.withMemory(profile);
    t.equal(m.word(m.run({ op: 'vcpu_map', vm: 'V', gfn: 1 })), 'EINVAL');
    m.range('munmap', 3, 1);
    t.equal(m.word(m.map(3)), 'EINVAL', 'nor where nothing is behind the gfn');
    m.slot(1, 0x900, 0, 1, READONLY);
    t.equal(m.word(m.run({ op: 'vcpu_map', vm: 'V', gfn: 0x900 })), 'EINVAL', 'nor for writing in a read-only slot');
    t.strictSame(m.unmap('none').fields, { id: 'none', unmapped: false }, 'unmapping nothing is no error');
  });

  t.test(`C-19 ${profile}: a write to a read-only memslot is emulated, a read is mapped read-only`, async (t) => {
    const m = KvmHost.withMemory(profile, {}, READONLY);
    m.touch(0, true);
    t.equal(m.faults(0), 'EMULATE read_only');
    t.equal(m.maps(0), null);
    t.equal(m.faults(0, false), 'FIXED');
    t.equal(m.maps(0), `${m.pfn(0)} r`, 'although the page may be written');
    t.equal(m.word(m.fault(0, false, { gfn: 1 })), 'EMULATE mmio', 'a gfn of no memslot');
  });

  t.test(
    `opportunistic writes (${profile}): a read maps what may be written writable, and anything else read-only`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.touch(0, true);
      m.fault(0, false);
      t.equal(m.maps(0), `${m.pfn(0)} rw`);
      m.fault(1, false);
      t.equal(m.maps(1), `${m.pfn(1)} r`, 'the zero page');
      t.ok(isZeroPage(m.host, m.pfn(1) as number));
      t.equal(m.faults(1, true), 'RETRY mmu_notifier_seq', 'its own fault has put another page there');
      t.equal(m.faults(1, true), 'FIXED');
      t.equal(m.maps(1), `${m.pfn(1)} rw`);
    },
  );

  t.test(
    `C-21 ${profile}: a KSM merge takes the SPTE at its first start; then read-only; a guest write breaks COW`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.fault(0);
      m.fault(1);
      const merge = m.run({
        op: 'ksm_merge',
        addr: at(0),
        with: { task: 'T', addr: at(1) },
        stop_at: 'after_start',
      });
      t.equal(m.maps(0), null);
      t.equal(m.resume(merge).ret, 0);
      const shared = m.pfn(0) as number;
      t.equal(shared, m.pfn(1));
      t.equal(m.faults(0, false), 'FIXED');
      t.equal(m.maps(0), `${shared} r`);
      m.mark();
      t.equal(m.faults(0, true), 'RETRY mmu_notifier_seq', 'its own fault has invalidated the page since the snapshot');
      t.strictSame(m.started(), [`CLEAR ${m.mm().id} 0+1`]);
      t.equal(m.faults(0, true), 'FIXED');
      t.not(m.pfn(0), shared);
      t.strictSame([m.maps(0), m.codes()], [`${m.pfn(0)} rw`, []]);
    },
  );
}

for (const profile of OLD) {
  t.test(`C-7 ${profile}: an invalidation outside of all memslots makes the fault RETRY`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.mmap(64, 4);
    m.touch(0, true);
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    const open = m.open(64, 1);
    t.equal(m.vm.mmu_notifier_count, 1);
    t.equal(m.goOn(fault), 'RETRY mmu_notifier_count');
    m.resume(open);
    t.strictSame([m.vm.mmu_notifier_count, m.vm.mmu_notifier_seq], [0, 1]);
  });

  t.test(`C-22 ${profile}: the reference of the zero page is never dropped`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.touch(0, false);
    const zero = m.pfn(0) as number;
    const before = m.refs(zero);
    t.equal(m.faults(0, false), 'FIXED');
    t.strictSame([m.refs(zero) - before, m.host.consumers.kvm.leaked.get(zero)], [1, 1]);
    m.faults(1, false);
    t.equal(m.refs(zero) - before, 2, 'one for each fault');
  });
}

for (const profile of NEW) {
  t.test(`C-7 ${profile}: an invalidation outside of all memslots disturbs nobody`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.mmap(64, 4);
    m.touch(0, true);
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    const open = m.open(64, 1);
    t.strictSame([m.vm.mmu_notifier_count, m.vm.mn_active_invalidate_count], [0, 1]);
    t.equal(m.goOn(fault), 'FIXED');
    m.resume(open);
    t.strictSame([m.vm.mmu_notifier_seq, m.vm.mn_active_invalidate_count], [0, 0]);
  });

  t.test(`C-9 ${profile}: the hull of the open ranges stays until all have ended`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.touch(5, true);
    const one = m.open(1, 1);
    const nine = m.open(9, 1);
    m.resume(one);
    const unit = profile === P515 ? Number(at(0) >> 12n) : G;
    t.strictSame(m.vm.mmu_notifier_range, { start: unit + 1, end: unit + 10 });
    t.equal(m.faults(5), 'RETRY mmu_notifier_count');
    t.equal(m.faults(12), 'FIXED', 'outside of the hull');
    m.resume(nine);
    t.equal(m.vm.mmu_notifier_count, 0);
    t.equal(m.faults(5), 'FIXED');
  });

  t.test(`C-22 ${profile}: the zero page is counted as any other`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.touch(0, false);
    const before = m.refs(m.pfn(0) as number);
    t.equal(m.faults(0, false), 'FIXED');
    t.strictSame([m.refs(m.pfn(0) as number), m.host.consumers.kvm.leaked.size], [before, 0]);
  });
}

for (const profile of ['4.10', P53, P58, P515]) {
  t.test(`C-15 ${profile}: with kvmZoneDeviceBug the removal waits for a reference that nobody drops`, async (t) => {
    const m = new KvmHost(profile);
    m.run({ op: 'put_page', pfn: 500, kind: 'zone_device' });
    m.mmap(0, 1, { kind: 'pages', pfns: [[500, 1]] });
    m.vmWithSlot({ zone_device_bug: true });
    t.equal(m.faults(0), 'FIXED');
    t.strictSame([m.refs(500), m.host.consumers.kvm.leaked.get(500)], [3, 1]);
    const removal = m.run({ op: 'remove_device_pages', pfn: 500, npage: 1 });
    t.equal(m.blockedOn(removal), 'page_idle:500');
    m.run({ op: 'exit' });
    t.equal(m.blockedOn(removal), 'page_idle:500', 'the end of the process does not help');
  });

  t.test(`C-18 ${profile}: device memory is memremapped, and keeps no reference`, async (t) => {
    const m = onBacking(profile, bar());
    const map = m.map(0, { map: 'M' });
    t.match(map.fields, { holds: 'none', struct_page: false, pfn: 0xfe000 });
    m.unmap('M');
    t.equal(m.refs(0xfe000), 0);
    t.equal(m.word(m.run({ op: 'put_vm', vm: 'W', allow_unsafe_mappings: true })), 'EOPNOTSUPP');
  });
}

t.test(`C-18 ${P614}: device memory is EINVAL, unless allow_unsafe_mappings`, async (t) => {
  const m = onBacking(P614, bar());
  t.equal(m.word(m.map(0)), 'EINVAL');
  const unsafe = onBacking(P614, bar(), 4, { allow_unsafe_mappings: true });
  t.match(unsafe.map(0, { map: 'M' }).fields, { holds: 'none', struct_page: false });
  t.equal(unsafe.unmap('M').fields.unmapped, true);
  t.equal(m.word(m.run({ op: 'put_vm', vm: 'W', zone_device_bug: true })), 'EOPNOTSUPP');
});

/** A page of a file whose lock task U holds: a fault that maps it has to wait. */
function lockedFilePage(profile: string): { m: KvmHost; pfn: number } {
  const m = new KvmHost(profile);
  m.task('U');
  m.run({ op: 'put_file', file: 'f', size: BigInt(SLOT_PAGES) * PAGE });
  m.mmap(0, SLOT_PAGES, { kind: 'file', file: 'f', pgoff: 0, shared: true });
  m.vmWithSlot();
  m.touch(0, true);
  const pfn = m.pfn(0) as number;
  m.madvise('DONTNEED', 0, 1);
  m.run({ op: 'lock', task: 'U', lock: pageLock(pfn) });
  return { m, pfn };
}

for (const profile of ALL) {
  t.test(`C-13 ${profile}: a page that takes waiting is no error: a worker waits, and the guest goes on`, async (t) => {
    const { m, pfn } = lockedFilePage(profile);
    t.equal(m.word(m.fault(0, true, { async_pf: true })), 'RETRY async_queued');
    t.equal(m.word(m.fault(0, true, { async_pf: true })), 'RETRY async_halt', 'it is waited for already');
    t.strictSame([m.maps(0), m.vm.async_pf.length], [null, 1]);
    const worker = m.host.operations.get(m.vm.async_pf[0]?.worker ?? '');
    t.equal(worker?.blocked_on, pageLock(pfn));
    const waits = m.fault(0, true);
    t.equal(m.blockedOn(waits), pageLock(pfn), 'a fault that is not asynchronous waits itself');
    m.run({ op: 'unlock', task: 'U', lock: pageLock(pfn) });
    t.strictSame([worker?.state, m.vm.async_pf[0]?.done], ['done', true]);
    t.equal(m.word(m.operation(waits).outcome as never), 'FIXED');
    t.equal(m.word(m.fault(0, true, { async_pf: true })), 'FIXED');
    t.equal(m.vm.async_pf.length, 0, 'the vCPU has seen that the page is there');
    t.equal(m.refs(pfn), 2, 'the file and the mapping');
  });

  t.test(`C-13 ${profile}: the 65th page of a vCPU is waited for by the fault itself`, async (t) => {
    const m = new KvmHost(profile);
    m.task('U');
    m.run({ op: 'put_file', file: 'f', size: 80n * PAGE });
    m.mmap(0, 80, { kind: 'file', file: 'f', pgoff: 0, shared: true });
    m.run({ op: 'put_vm', vm: 'V' });
    m.slot(0, G, 0, 80);
    const locks: string[] = [];
    for (let page = 0; page < 66; page++) {
      m.touch(page, true);
      locks.push(pageLock(m.pfn(page) as number));
    }
    m.madvise('DONTNEED', 0, 80);
    for (const lock of locks) m.run({ op: 'lock', task: 'U', lock });
    for (let page = 0; page < 64; page++)
      t.equal(m.word(m.fault(page, true, { async_pf: true })), 'RETRY async_queued');
    t.equal(m.blockedOn(m.fault(64, true, { async_pf: true })), locks[64] as string);
    t.equal(
      m.word(m.fault(65, true, { async_pf: true, vcpu: 1 })),
      'RETRY async_queued',
      'another vCPU has a queue of its own',
    );
    for (const lock of locks) m.run({ op: 'unlock', task: 'U', lock });
    t.ok(m.vm.async_pf.every(({ done }) => done));
  });

  t.test(`memslots (${profile}): EINVAL and EEXIST as KVM_SET_USER_MEMORY_REGION has them`, async (t) => {
    const m = KvmHost.withMemory(profile);
    t.equal(m.word(m.slot(1, G + 8, 0, 16)), 'EEXIST');
    t.equal(m.word(m.slot(0, G, 0, 8)), 'EINVAL', 'another size');
    t.equal(m.word(m.slot(0, G, 1, 16)), 'EINVAL', 'another userspace_addr');
    t.equal(m.word(m.slot(0, G, 0, 16, READONLY)), 'EINVAL', 'another READONLY');
    t.equal(m.word(m.slot(7, 0, 0, 0)), 'EINVAL', 'no such slot to delete');
    t.equal(m.word(m.slot(509, 0, 0, 1)), 'EINVAL');
    t.equal(m.word(m.slot(1, 0, 0, 1, 4)), 'EINVAL', 'an unknown flag');
    const region = { op: 'set_memory_region', vm: 'V', slot: 1, flags: 0 } as const;
    for (const odd of ['guest_phys_addr', 'memory_size', 'userspace_addr'] as const) {
      const sound = { guest_phys_addr: 0n, memory_size: PAGE, userspace_addr: at(0) };
      t.equal(m.word(m.run({ ...region, ...sound, [odd]: 0x801n })), 'EINVAL', odd);
    }
    const end = { guest_phys_addr: 2n ** 64n - PAGE, memory_size: 2n * PAGE, userspace_addr: at(0) };
    t.equal(m.word(m.run({ ...region, ...end })), 'EINVAL');
    const huge = { guest_phys_addr: 0n, memory_size: 2n ** 43n, userspace_addr: 0n };
    t.equal(m.word(m.run({ ...region, ...huge })), 'EINVAL', 'more than KVM_MEM_MAX_NR_PAGES');
    const high = { guest_phys_addr: 0n, memory_size: PAGE, userspace_addr: 0x7ffffffff000n };
    t.equal(m.word(m.run({ ...region, ...high })), 'EINVAL', 'beyond TASK_SIZE');
  });

  t.test(`memslots (${profile}): a slot that is moved or deleted takes its SPTEs with it`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.fault(0);
    m.slot(0, 0x800, 0, 16);
    t.equal(m.vm.sptes.size, 0);
    t.equal(m.word(m.fault(0, true)), 'EMULATE mmio');
    t.equal(m.word(m.fault(0, true, { gfn: 0x800 })), 'FIXED');
    m.slot(0, 0x800, 0, 0);
    t.strictSame([m.vm.sptes.size, m.vm.memslots.size], [0, 0]);
  });

  t.test(`memslots (${profile}): an update waits for the faults that saw the old slots`, async (t) => {
    const m = KvmHost.withMemory(profile);
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    const deletion = m.slot(0, G, 0, 0);
    t.equal(m.blockedOn(deletion), 'kvm_srcu:V');
    t.equal(m.goOn(fault), 'FIXED');
    t.strictSame([m.state(deletion), m.vm.sptes.size], ['done', 0]);
  });

  t.test(`memslots (${profile}): what a fault on a slot that is being deleted is told`, async (t) => {
    const m = KvmHost.withMemory(profile);
    const deletion = m.slot(0, G, 0, 0, 0, 'slot_invalid');
    t.equal(m.faults(0), NEW.includes(profile) ? 'RETRY memslot_invalid' : 'EMULATE mmio');
    t.equal(m.word(m.map(0)), 'EINVAL');
    m.resume(deletion);
    t.equal(m.faults(0), 'EMULATE mmio');
  });

  t.test(
    `memslots (${profile}): a change ${NEW.includes(profile) ? 'waits for the invalidations of the mm' : 'waits for no invalidation'}`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.mmap(64, 4);
      const open = m.open(64, 1);
      const deletion = m.slot(0, G, 0, 0);
      if (NEW.includes(profile)) {
        t.equal(m.blockedOn(deletion), 'kvm_invalidations:V');
        t.equal(m.vm.memslots.size, 1);
        const other = m.open(65, 1);
        m.resume(open);
        t.equal(m.blockedOn(deletion), 'kvm_invalidations:V', 'the other one is open');
        m.resume(other);
        t.equal(m.state(deletion), 'done');
      } else t.equal(deletion.parked, undefined);
      t.equal(m.vm.memslots.size, 0);
    },
  );

  t.test(
    `memslots (${profile}): the dirty log has what the guest, and mappings of the host, may have written`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.fault(0);
      m.slot(0, G, 0, 16, LOG_DIRTY);
      t.equal(m.maps(0), `${m.pfn(0)} r`, 'the next write is seen');
      m.fault(0);
      m.fault(3, false);
      m.map(5, { map: 'M' });
      m.unmap('M', true);
      t.strictSame([...(m.vm.memslots.get(0)?.dirty_bitmap?.keys() ?? [])], [0, 5]);
      m.slot(0, G, 0, 16);
      t.equal(m.vm.memslots.get(0)?.dirty_bitmap, null);
    },
  );

  t.test(
    `young callbacks (${profile}): accessed is told, cleared, and flushed by clear_flush_young alone`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.fault(0);
      const call = (callback: 'test_young' | 'clear_young' | 'clear_flush_young'): number =>
        m.run({ op: 'mmu_call', mm: m.mm().id, callback, start: at(0), end: at(4) }).ret;
      const { tlb_flushes } = m.vm;
      t.strictSame([call('test_young'), call('test_young')], [1, 1]);
      t.strictSame([call('clear_young'), call('test_young'), m.vm.tlb_flushes], [1, 0, tlb_flushes]);
      m.fault(0);
      t.strictSame([call('clear_flush_young'), call('clear_flush_young'), m.vm.tlb_flushes], [1, 0, tlb_flushes + 1]);
    },
  );

  t.test(`exit (${profile}): release drops everything, and the vm takes no calls any more`, async (t) => {
    const m = KvmHost.withMemory(profile);
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    m.fault(1);
    m.run({ op: 'exit' });
    t.equal(m.vm.sptes.size, 0);
    t.equal(m.goOn(fault), 'RETRY mm_exited');
    t.strictSame([m.vm.sptes.size, m.faults(1)], [0, 'ESRCH']);
    t.equal(m.run({ op: 'delete_vm', vm: 'V' }).refusal, undefined);
  });

  t.test(
    `fatal signal (${profile}): a page that is not got because of it is ${profile === P614 ? 'EINTR' : 'EFAULT'}`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.signal();
      t.equal(m.faults(0), profile === P614 ? 'EINTR' : 'EFAULT');
    },
  );

  t.test(`delete_vm (${profile}): EBUSY while a page is mapped or a call goes on`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.map(0, { map: 'M' });
    t.equal(m.word(m.run({ op: 'delete_vm', vm: 'V' })), 'EBUSY');
    m.unmap('M');
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    t.equal(m.word(m.run({ op: 'delete_vm', vm: 'V' })), 'EBUSY');
    m.resume(fault);
    t.equal(m.run({ op: 'delete_vm', vm: 'V' }).refusal, undefined);
    t.strictSame([m.host.consumers.kvm.vms.size, m.host.mm.mmu_notifiers.size], [0, 0]);
  });

  t.test(`C.5 (${profile}): which pages are marked dirty, and when`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.fault(0);
    const pfn = m.pfn(0) as number;
    const { pages } = m.host.mm;
    t.equal(pages.isDirty(pfn), profile === P614, 'at the fault');
    m.run({ op: 'gup', addr: at(0), npage: 1, flags: FOLL_GET | FOLL_WRITE, gup: 'g' });
    m.range('munmap', 0, 1);
    t.ok(pages.isDirty(pfn), 'as its SPTE goes');
    const z = new KvmHost(profile);
    z.run({ op: 'put_page', pfn: 500, kind: 'zone_device' });
    z.mmap(0, 1, { kind: 'pages', pfns: [[500, 1]] });
    z.vmWithSlot();
    z.fault(0);
    z.range('munmap', 0, 1);
    t.strictSame([z.host.mm.pages.isDirty(500), z.refs(500)], [false, 1], 'never a page of a device');
  });

  t.test(`remapped (${profile}): a guest write to an entry that is read-only`, async (t) => {
    const m = onBacking(profile, bar({ ptes: ['r', 'r', 'r', 'r'] }));
    const old = OLD.includes(profile);
    t.equal(m.faults(0), old ? 'FIXED' : 'EMULATE read_only');
    t.equal(m.maps(0), old ? `${0xfe000} rw` : null);
    t.equal(m.faults(1, false), 'FIXED');
    t.equal(m.maps(1), old ? `${0xfe001} rw` : `${0xfe001} r`);
  });

  t.test(`remapped (${profile}): a page with a struct page that nobody refers to`, async (t) => {
    const m = onBacking(profile, bar({ struct_page: true }));
    t.equal(m.faults(0), profile === P515 ? 'EFAULT' : 'FIXED');
    t.equal(m.refs(0xfe000), 0, 'as before');
    const stopped = m.fault(1, true, { stop_at: 'after_gup' });
    if (profile !== P515) t.equal(m.refs(0xfe001), profile === P614 ? 0 : 1);
    else t.equal(m.word(stopped), 'EFAULT');
  });
}

t.test(`change_pte ${P53}: counts in the sequence; a read-only page takes the place of the old one`, async (t) => {
  const m = KvmHost.withMemory(P53);
  m.fault(0);
  m.run({ op: 'mmu_call', mm: m.mm().id, callback: 'change_pte', start: at(0) });
  t.strictSame([m.vm.mmu_notifier_seq, m.maps(0)], [1, null], 'the entry may be written: dropped');
  m.touch(1, false);
  m.fault(1, false);
  m.run({ op: 'mprotect', addr: at(2), length: PAGE, prot: READ });
  m.run({ op: 'mmu_call', mm: m.mm().id, callback: 'change_pte', start: at(0) });
  t.equal(m.vm.mmu_notifier_seq > 1, true);
});

t.test(`change_pte ${P515}: outside of every invalidation it warns and does nothing`, async (t) => {
  const m = KvmHost.withMemory(P515);
  m.fault(0);
  const warnings = (): number => m.host.dmesg.since(0, 1000).items.filter(({ kind }) => kind === 'WARN').length;
  m.run({ op: 'mmu_call', mm: m.mm().id, callback: 'change_pte', start: at(0) });
  t.strictSame([warnings(), m.vm.mmu_notifier_seq, m.maps(0)], [1, 0, `${m.pfn(0)} rw`]);
});

t.test(`G-5 ${P53}: a start that fails elsewhere leaves KVM's count raised for ever`, async (t) => {
  const m = KvmHost.withMemory(P53);
  m.plain('N', ['invalidate_range_start'], { invalidate_range_start: -11 });
  m.touch(1, true);
  m.run({ op: 'oom_reap' });
  t.ok(m.vm.mmu_notifier_count > 0);
  t.equal(m.faults(1), 'RETRY mmu_notifier_count');
  t.equal(m.faults(1), 'RETRY mmu_notifier_count');
});

for (const profile of NEW)
  t.test(`G-5 ${profile}: where another's start fails, the core ends what KVM has counted`, async (t) => {
    const m = KvmHost.withMemory(profile);
    m.plain('N', ['invalidate_range_start'], { invalidate_range_start: -11 });
    m.touch(1, true);
    m.run({ op: 'oom_reap' });
    t.strictSame([m.vm.mmu_notifier_count, m.vm.mn_active_invalidate_count], [0, 0]);
    t.equal(m.faults(1), 'FIXED');
  });

t.test(
  `gfn_to_pfn_cache ${P614}: valid until the start of an invalidation, and refreshed only when none is open`,
  async (t) => {
    const m = KvmHost.withMemory(P614);
    m.touch(0, true);
    const refresh = (stop_at?: Phase) =>
      m.run({ op: 'refresh_pfn_cache', vm: 'V', cache: 'c', gfn: G, ...(stop_at === undefined ? {} : { stop_at }) });
    t.match(refresh().fields, { pfn: m.pfn(0), valid: true });
    t.equal(m.refs(m.pfn(0) as number), 1, 'no reference is kept');
    const munmap = m.range('munmap', 0, 1, 'after_start');
    t.equal(m.vm.caches.get('c')?.valid, false);
    m.resume(munmap);
    t.equal(refresh().refusal?.errno, 'EFAULT');
    m.mmap(0, 1);
    const stopped = refresh('after_gup');
    const old = m.pfn(0);
    m.madvise('DONTNEED', 0, 1);
    t.match(m.resume(stopped).fields, { valid: true });
    t.not(m.vm.caches.get('c')?.pfn, old, 'it has looked again');
    t.equal(m.vm.caches.get('c')?.pfn, m.pfn(0));
    const open = m.open(0, 1);
    t.equal(refresh().refusal?.errno, 'EAGAIN');
    m.resume(open);
    t.equal(refresh().refusal, undefined);
    t.equal(m.run({ op: 'delete_pfn_cache', vm: 'V', cache: 'c' }).refusal, undefined);
  },
);

for (const profile of ['4.10', P53, P58, P515])
  t.test(`gfn_to_pfn_cache ${profile}: EOPNOTSUPP`, async (t) => {
    const m = KvmHost.withMemory(profile);
    t.equal(m.run({ op: 'refresh_pfn_cache', vm: 'V', cache: 'c', gfn: G }).refusal?.errno, 'EOPNOTSUPP');
  });

for (const profile of ALL) {
  t.test(
    `${profile}: a pfn is inserted only if its invalidation will be told, and has not been, in ${MAIL}`,
    async (t) => {
      for (const [between, word] of [
        ['nothing', 'FIXED'],
        ['start', 'RETRY mmu_notifier_count'],
        ['start and end', 'RETRY mmu_notifier_seq'],
      ] as const) {
        const m = KvmHost.withMemory(profile);
        t.ok(m.mm().subscriptions?.list.includes('kvm-V'), 'the notifier is installed before anything is got');
        const fault = m.fault(0, true, { stop_at: 'after_gup' });
        if (between === 'start') m.open(0, 1);
        if (between === 'start and end') m.close(0, 1);
        t.equal(m.goOn(fault), word, between);
        t.strictSame(m.codes(), []);
      }
    },
  );

  t.test(`${profile}: page faults would do with a reference that is dropped at once, in ${MAIL}`, async (t) => {
    const m = KvmHost.withMemory(profile, { early_put: true });
    m.touch(0, true);
    const old = m.pfn(0) as number;
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    m.madvise('DONTNEED', 0, 1);
    t.equal(m.refs(old), 0, 'the page that was got is free');
    t.equal(m.goOn(fault), 'RETRY mmu_notifier_seq', 'and is not mapped');
    t.strictSame([m.maps(0), m.codes()], [null, []]);
  });

  t.test(
    `${profile}: what uses whole pages of the guest needs the reference until it is done, in ${MAIL}`,
    async (t) => {
      for (const early_put of [false, true]) {
        const m = KvmHost.withMemory(profile, { early_put });
        m.map(0, { map: 'M' });
        m.madvise('DONTNEED', 0, 1);
        m.run({ op: 'vcpu_map_rw', vm: 'V', map: 'M', offset: 0, length: 8 });
        t.strictSame(m.codes(), early_put ? ['USE_AFTER_FREE'] : []);
      }
    },
  );

  t.test(
    `${profile}: invalidations are told without mmap_lock too, and cancel faults all the same, in ${MAIL}`,
    async (t) => {
      const m = KvmHost.withMemory(profile);
      m.touch(0, true);
      const fault = m.fault(0, true, { stop_at: 'after_gup' });
      m.mark();
      const reclaim = m.run({ op: 'migrate', pfn: m.pfn(0) as number });
      t.equal(reclaim.refusal?.errno, 'EAGAIN', "the fault's reference keeps the page where it is");
      const told = m.host.trace
        .since(0, 1_000_000)
        .items.filter(({ event, callback }) => event === 'notify' && callback === 'invalidate_range_start');
      t.equal(told.length, 1);
      t.notOk((told[0]?.locks_held as string[] | undefined)?.some((lock) => lock.startsWith('mmap_lock')));
      t.equal(m.goOn(fault), 'RETRY mmu_notifier_seq');
    },
  );

  t.test(`${profile}: the remapped path is safe by the sequence alone, in ${MAIL}`, async (t) => {
    const m = onBacking(profile, bar());
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    m.range('munmap', 0, 1);
    t.equal(m.goOn(fault), 'RETRY mmu_notifier_seq');
    t.strictSame([m.maps(0), m.codes()], [null, []]);
  });
}

t.test(
  'a checkpoint in the middle of a fault and of a deletion that waits for it goes on in another process',
  async (t) => {
    const m = KvmHost.withMemory(P515);
    m.map(3, { map: 'M' });
    const fault = m.fault(0, true, { stop_at: 'after_gup' });
    const deletion = m.slot(0, G, 0, 0);
    const stored = new Map([...sections(m.host)].map(({ key, data }) => [key, decode(encode(data()))]));
    const other = restoreHost('test', m.host.options, 0, stored);
    t.strictSame(violations(other), []);
    for (const host of [m.host, other]) {
      const command = { op: 'resume_operation', operation: fault.parked as string } as const;
      execute(host, { at: 1000, request_id: 'r', notification: null, command });
      t.match(host.operations.get(fault.parked as string)?.outcome?.fields, { result: 'FIXED' });
      t.equal(host.operations.get(deletion.parked as string)?.state, 'done');
      t.strictSame([host.consumers.kvm.vms.get('V')?.sptes.size, violations(host)], [0, []]);
    }
    t.strictSame(
      [...sections(other)].map(({ key, data }) => [key, encode(data())]),
      [...sections(m.host)].map(({ key, data }) => [key, encode(data())]),
    );
  },
);
