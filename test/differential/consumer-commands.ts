// One of every command of KVM, of ZONE_DEVICE and of devices that can have pages to themselves, with every field.

import type { ExclusiveCommand } from '../../src/kernel/exclusive/exclusive.ts';
import type { KvmCommand } from '../../src/kernel/kvm/kvm.ts';
import type { ZoneDeviceCommand } from '../../src/kernel/zone-device/zone-device.ts';

const stop = { stop_at: 'after_gup' } as const;
const vm = 'vm0';
const device = 'gpu0';
const range = { start: 4096n, length: 8192n };

const KVM: readonly KvmCommand[] = [
  { op: 'put_vm', vm, task: 't', zone_device_bug: true, early_put: true, allow_unsafe_mappings: true },
  { op: 'delete_vm', vm },
  {
    op: 'set_memory_region',
    vm,
    slot: 1,
    flags: 2,
    guest_phys_addr: 4096n,
    memory_size: 8192n,
    userspace_addr: 2n ** 40n,
    ...stop,
  },
  { op: 'vcpu_fault', vm, gfn: 1, write: true, async_pf: true, vcpu: 2, ...stop },
  { op: 'vcpu_map', vm, gfn: 1, map: 'm', ...stop },
  { op: 'vcpu_unmap', vm, map: 'm', dirty: true },
  { op: 'vcpu_map_rw', vm, map: 'm', offset: 8, length: 4 },
  { op: 'vcpu_map_rw', vm, map: 'm', offset: 8, data: 'AQI=' },
  { op: 'refresh_pfn_cache', vm, cache: 'c', gfn: 1, ...stop },
  { op: 'delete_pfn_cache', vm, cache: 'c' },
];

const EXCLUSIVE: readonly ExclusiveCommand[] = [
  { op: 'put_exclusive_device', device, task: 't', kind: 'interval', owner_filter: true, ...range },
  { op: 'delete_exclusive_device', device },
  { op: 'make_device_exclusive', device, ...range, grant: 'g0', ...stop },
  { op: 'drop_exclusive_grant', device, grant: 'g0' },
  { op: 'map_exclusive_grant', device, grant: 'g0', sequence: 3, ...stop },
  { op: 'dmirror_exclusive', device, ...range, ...stop },
  { op: 'check_exclusive', device, ...range },
  { op: 'mirror_range', device, ...range, fault: true, write: false, ...stop },
  { op: 'device_access', device, addr: 4096n, write: false, length: 4 },
  { op: 'device_access', device, addr: 4096n, write: true, data: 'AQI=' },
];

const ZONE_DEVICE: readonly ZoneDeviceCommand[] = [{ op: 'remove_device_pages', pfn: 4096, npage: 2, ...stop }];

export const EVERY_CONSUMER = [...KVM, ...EXCLUSIVE, ...ZONE_DEVICE];
