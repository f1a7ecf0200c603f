// What several of those who live with the same pages do to each other, beside the numbered scenarios.

import t from 'tap';
import { profileWith } from '../../src/kernel/profile.ts';
import { at, P58, P515, P614, PAGE } from './mm-threads.ts';
import { PciHost } from './vfio-pci-machine.ts';

const READ_WRITE = 3;

t.test('failed_start_count is a fix of every kernel that has interval notifiers, the newest among them', async (t) => {
  for (const name of [P58, P515, P614]) {
    t.equal(profileWith(name, []).failedStartKeepsCount, true, name);
    t.equal(profileWith(name, ['failed_start_count']).failedStartKeepsCount, false, name);
  }
});

/** A guest that has BAR0 of a device at gfn 0x1000: pages 0 to 3. */
function guestWithBar(profile: string): PciHost {
  const m = new PciHost(profile);
  m.mapBar(0, 4);
  m.run({ op: 'put_vm', vm: 'V' });
  const where = { guest_phys_addr: 0x1000n * PAGE, memory_size: 4n * PAGE, userspace_addr: at(0) };
  m.run({ op: 'set_memory_region', vm: 'V', slot: 0, flags: 0, ...where });
  return m;
}

t.test('a BAR has no struct page for KVM: faults and kvm_vcpu_map() take no reference of it', async (t) => {
  for (const profile of [P58, P515]) {
    const m = guestWithBar(profile);
    const { pfn, result } = m.run({ op: 'vcpu_fault', vm: 'V', gfn: 0x1000, write: true, async_pf: false }).fields;
    t.equal(result, 'FIXED', profile);
    t.equal(pfn, m.device().pfns[0], profile);
    const mapped = m.run({ op: 'vcpu_map', vm: 'V', gfn: 0x1001, map: 'm' });
    t.match(mapped.fields, { struct_page: false, holds: 'none', pfn: (pfn as number) + 1 }, profile);
    t.equal(m.host.mm.pages.refcount((pfn as number) + 1), 0, profile);
  }
});

t.test(
  'P58: a fault that has dropped vma_lock fills its area after the zap: it stays mapped while the memory is disabled',
  async (t) => {
    const m = guestWithBar(P58);
    const fault = m.fault(0, { stop_at: 'before_populate' });
    const disable = m.memory(false);
    t.equal(m.operation(disable).blocked_on, 'memory_lock:d');
    t.equal(m.resume(fault).fields.fault, 'NOPAGE');
    t.equal(m.operation(disable).outcome?.ret, 0);
    t.strictSame([m.populated(0, 4), m.device().vma_list], [4, []]);
  },
);

t.test('P515, P614: such a fault holds what the zap waits for, and is zapped', async (t) => {
  for (const profile of [P515, P614]) {
    const m = guestWithBar(profile);
    const fault = m.fault(0, { stop_at: 'before_populate' });
    const disable = m.memory(false);
    t.equal(m.operation(disable).state, 'blocked', profile);
    t.equal(m.resume(fault).fields.fault, 'NOPAGE', profile);
    t.equal(m.operation(disable).outcome?.ret, 0, profile);
    t.equal(m.populated(0, 4), 0, profile);
  }
});

t.test(
  'vfio_pin_pages() of a BAR: its pages are never counted, and EINVAL where the profile refuses them',
  async (t) => {
    for (const profile of [P58, P515, P614]) {
      const m = guestWithBar(profile);
      m.fault(0);
      m.run({ op: 'put_container', container: 'C' });
      m.run({ op: 'put_group', group: 'G', kind: 'mdev' });
      m.run({ op: 'set_container', group: 'G', container: 'C', task: null });
      m.run({ op: 'set_iommu', container: 'C', type: 3, task: 'T' });
      m.run({ op: 'put_device', device: 'D', group: 'G' });
      m.run({ op: 'open_device', device: 'D' });
      const delivery = { kind: 'poll' } as const;
      m.run({ op: 'register_notifier', device: 'D', notifier: { id: 'L', events: 1, type: 0, priority: 0, delivery } });
      const mapping = { iova: 0n, vaddr: at(0), size: 4n * PAGE, flags: READ_WRITE, argsz: 32 };
      m.run({ op: 'map_dma', container: 'C', task: 'T', ...mapping });
      const array = m.host.profile.pinForm === 'user_pfn';
      const entries = array ? { user_pfn: [0], npage: 1 } : { user_pfn: [], npage: 1, contiguous: { iova: 0n } };
      const pinned = m.run({ op: 'pin_pages', device: 'D', ...entries, prot: 1 });
      t.equal(pinned.refusal?.errno ?? pinned.ret, array ? 1 : 'EINVAL', `${profile}: ${pinned.refusal?.detail}`);
      t.equal(m.host.mm.pages.refcount(m.device().pfns[0] as number), 0, profile);
    }
  },
);
