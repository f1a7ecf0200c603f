// Schemas of what GETs show of devices that can have pages to themselves.

import Type from 'typebox';
import { Count, closed, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, id, object, str } from './fields.ts';

export const DeviceKind = Names(['interval', 'plain'], 'Kind of its notifier');

export const ExclusiveDeviceFields = {
  id,
  task: str('Task that opened it'),
  mm: str('Its address space'),
  notifier: str('Its notifier'),
  kind: DeviceKind,
  owner_filter: bool("Its callback ignores the EXCLUSIVE of the device's own calls"),
  start: Nullable(U64Out('First byte'), 'What an interval notifier watches; null: all of the mm'),
  length: Nullable(U64Out('Bytes'), 'null: all of the mm'),
};
export const ExclusiveDeviceView = object('ExclusiveDevice', {
  ...ExclusiveDeviceFields,
  mappings: Count('Pages that the device has mapped'),
  grants: Count('Grants that are held, or being made'),
});
export const exclusiveDeviceReply = {
  id: 'gpu0',
  task: 'qemu',
  mm: 'mm-1',
  notifier: 'exclusive-gpu0',
  kind: 'interval',
  owner_filter: true,
  start: '0x0',
  length: '0xfffffffffffff000',
};
export const exclusiveDeviceExample = { ...exclusiveDeviceReply, mappings: 1, grants: 1 };

const Slot = closed({
  addr: U64Out('Page'),
  granted: bool('The device has it to itself'),
  reason: Nullable(
    Names(['page_locked', 'not_anon', 'replaced', 'still_mapped'], 'Reason'),
    'Why it was not granted; null: it was, or it is not decided yet',
  ),
  pfn: Nullable(PageFrame('Host page'), 'null: not granted'),
});
export const Slots = Type.Array(Slot, { description: 'Pages that GUP has found, in order' });
export const slotsExample = [{ addr: '0x7f0000000000', granted: true, reason: null, pfn: 1048576 }];

export const GrantView = object('ExclusiveGrant', {
  id,
  busy: bool('The call that makes it goes on'),
  slots: Slots,
});
export const grantExample = { id: 'g0', busy: false, slots: slotsExample };

export const DeviceMappingView = object('DeviceMapping', {
  addr: U64Out('Page'),
  pfn: PageFrame('Host page'),
  access: Names(['read', 'write', 'atomic'], 'What the device may do; atomic: as long as it has the page to itself'),
  stale: bool(
    'The page table does not give it any more: only between a start and its end, or where a driver did not look',
  ),
});
export const deviceMappingExample = { addr: '0x7f0000000000', pfn: 1048576, access: 'atomic', stale: false };

export const MirroredPages = Type.Array(
  closed({
    addr: U64Out('Page'),
    valid: bool('It is present'),
    writable: bool('It may be written'),
    pfn: Nullable(PageFrame('Host page'), 'null: not valid'),
  }),
  { description: 'What the walk has found, in order' },
);
