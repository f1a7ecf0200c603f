// Schemas of what GETs show of virtual machines.

import Type from 'typebox';
import { Count, closed, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, id, object, str } from './fields.ts';

const gfn = PageFrame('Guest page frame number: guest-physical address / 4096');
const pfn = PageFrame('Host page frame number');
const SWITCHES = {
  zone_device_bug: bool('Historic: pages of ZONE_DEVICE are taken for reserved, and their references never dropped'),
  early_put: bool('References are dropped as soon as a page is got, which only the fault path can do with'),
  allow_unsafe_mappings: bool('kvm_vcpu_map() also maps what can be neither pinned nor watched'),
};

export const VmFields = {
  id,
  task: str('Task that made it'),
  mm: str('Its address space'),
  notifier: str('Its notifier'),
  ...SWITCHES,
};
export const VmView = object('Vm', {
  ...VmFields,
  memslots: Count('Memslots'),
  sptes: Count('Pages that the guest reaches without a fault'),
  maps: Count('Mappings of guest pages that are open'),
  caches: Count('gfn_to_pfn_caches'),
});

export const vmReply = {
  id: 'vm0',
  task: 'qemu',
  mm: 'mm-1',
  notifier: 'kvm-vm0',
  zone_device_bug: false,
  early_put: false,
  allow_unsafe_mappings: false,
};
export const vmExample = { ...vmReply, memslots: 1, sptes: 1, maps: 0, caches: 0 };

export const MemslotFields = {
  vm: str('Virtual machine'),
  slot: Count('Number'),
  flags: Count('KVM_MEM_ bits: 1 LOG_DIRTY_PAGES, 2 READONLY'),
  guest_phys_addr: U64Out('First byte, guest side'),
  memory_size: U64Out('Bytes'),
  userspace_addr: U64Out('First byte, host side'),
  invalid: bool('It is being deleted or moved'),
};
export const MemslotView = object('Memslot', {
  ...MemslotFields,
  dirty: Nullable(
    Type.Array(Type.Array(Type.Integer({ minimum: 0 }), { minItems: 2, maxItems: 2 })),
    'Runs of [first gfn, pages] that may have been written; null: not logged',
  ),
});
export const memslotReply = {
  vm: 'vm0',
  slot: 0,
  flags: 0,
  guest_phys_addr: '0x100000',
  memory_size: '0x10000',
  userspace_addr: '0x7f0000000000',
  invalid: false,
};
export const memslotExample = { ...memslotReply, dirty: null };

export const SpteView = object('Spte', {
  gfn,
  hva: U64Out('Host virtual address of the page'),
  pfn,
  writable: bool('The guest may write'),
  accessed: bool('Used since a young callback cleared it'),
  stale: bool('The page table of the host does not map the page so: only between a start and its end'),
});
export const spteExample = {
  gfn: 256,
  hva: '0x7f0000000000',
  pfn: 1048576,
  writable: true,
  accessed: true,
  stale: false,
};

export const MmuStateView = object('MmuState', {
  mmu_notifier_seq: Count('Invalidations that have ended'),
  mmu_notifier_count: Count('Invalidations that are open'),
  mmu_notifier_range: Nullable(
    Type.Union([
      closed({ unit: Names(['gfn'], 'gfns'), start: gfn, end: Count('One past the last') }),
      closed({
        unit: Names(['hva', 'any'], 'Addresses'),
        start: U64Out('First byte'),
        end: U64Out('One past the last'),
      }),
    ]),
    'Hull of the open ranges; null: none is open, or any of them makes every fault retry',
  ),
  mn_active_invalidate_count: Count('Invalidations of the mm, where memslots wait for them'),
  tlb_flushes: Count('TLB flushes so far'),
  updaters: Type.Array(Type.String(), { description: 'Changes of the memslots that wait' }),
  async_pf: Type.Array(
    closed({
      vcpu: Count('vCPU'),
      gfn,
      worker: str('Operation that brings the page in'),
      done: bool('It is there, and the vCPU has not looked yet'),
    }),
    { description: 'Faults that a worker waits for' },
  ),
  leaked: Type.Array(closed({ pfn, references: Count('References') }), {
    description: 'References of pages of the whole host that nobody will drop',
  }),
});
export const mmuStateExample = {
  mmu_notifier_seq: 3,
  mmu_notifier_count: 0,
  mmu_notifier_range: null,
  mn_active_invalidate_count: 0,
  tlb_flushes: 1,
  updaters: [],
  async_pf: [],
  leaked: [],
};

export const HostMapFields = {
  vm: str('Virtual machine'),
  id,
  gfn,
  pfn,
  kva: U64Out('Address of the kernel'),
  struct_page: bool('kmap(); false: memremap()'),
  writable: bool('Writable'),
  holds: Names(['get', 'pin', 'none'], 'What keeps the page alive'),
  freed: bool('The page was freed under the mapping'),
};
export const HostMapView = object('HostMap', HostMapFields);
export const hostMapExample = {
  vm: 'vm0',
  id: 'm0',
  gfn: 256,
  pfn: 1048576,
  kva: '0xffff888100000000',
  struct_page: true,
  writable: true,
  holds: 'get',
  freed: false,
};

export const PfnCacheFields = {
  vm: str('Virtual machine'),
  id,
  gfn,
  page: Count('Host virtual page: address / 4096'),
  pfn: Nullable(pfn, 'null: never valid yet'),
  valid: bool('No invalidation has revoked it'),
};
export const PfnCacheView = object('PfnCache', PfnCacheFields);
export const pfnCacheExample = { vm: 'vm0', id: 'c0', gfn: 256, page: 34091302912, pfn: 1048576, valid: true };
