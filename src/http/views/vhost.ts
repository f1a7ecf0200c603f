// Schemas of what GETs show of vhost devices.

import Type from 'typebox';
import { AREAS } from '../../kernel/vhost/device.ts';
import { SWITCHES, type SwitchName, VARIANTS } from '../../kernel/vhost/rules.ts';
import { Count, closed, Int, Names, Nullable, PageFrame, U64Out } from '../schema.ts';
import { bool, id, object, str } from './fields.ts';

const WORDS: Record<SwitchName, string> = {
  reader: 'What an accessor holds inside a map, and a start waits for; seqlock: nothing',
  registration: 'Whether set_num and set_addr register the notifier anew',
  registration_result: 'Whether a registration that failed is noticed',
  count: 'What an end takes back: what it overlaps now, or what its start counted',
  map_struct: 'What becomes of the structure of a map that goes',
  teardown: 'Whether a map that goes outside a callback marks its pages dirty',
  dirty_mark: 'When a start marks pages dirty: before or after it has waited for accessors',
  blockable_check: 'When a start that may not block is refused',
  failed_ioctl: 'Whether set_num and set_addr move the areas although they are refused',
  page_count: 'Pages of an area: its size in pages, or all that it touches',
  speculation_barrier: 'Whether an access through a map has one',
};

const choice = (name: SwitchName) => Names(SWITCHES[name], WORDS[name]);
const each = Object.keys(SWITCHES) as SwitchName[];
type Choice = ReturnType<typeof choice>;

/** Every switch, set. */
export const SwitchesView = closed(
  Object.fromEntries(each.map((name) => [name, choice(name)])) as Record<SwitchName, Choice>,
  { description: 'How it behaves' },
);
/** Those that differ from the variant. */
export const SwitchesBody = closed(
  Object.fromEntries(each.map((name) => [name, Type.Optional(choice(name))])) as Record<
    SwitchName,
    ReturnType<typeof Type.Optional<Choice>>
  >,
  { description: 'What differs from the variant, defect by defect' },
);

export const Variant = Names(VARIANTS, 'Version of the feature: the second RFC, as merged, repaired, with a spinlock');
export const AreaName = Names(AREAS, 'Area of a ring');

export const VhostDevView = object('VhostDev', {
  id,
  variant: Variant,
  switches: SwitchesView,
  features: Count('Feature bits'),
  mm: Nullable(Type.String(), 'Address space of its owner; null: nobody owns it'),
  notifier: Nullable(Type.String(), 'Its notifier; null while none is registered'),
  nvqs: Count('Virtqueues'),
  calls: Count('Calls under way'),
  leaked_maps: Count('Structures of maps that nobody can free any more'),
  accessors: Type.Array(
    closed({
      operation: str('Operation'),
      vq: Count('Virtqueue'),
      area: AreaName,
      revoked: bool('The map is not published any more'),
      dirtied: bool('Its pages were marked dirty already'),
    }),
    { description: 'Who is inside a map now' },
  ),
});
export const vhostDevExample = {
  id: 'v0',
  variant: 'fixed',
  switches: Object.fromEntries(each.map((name) => [name, SWITCHES[name].at(name === 'reader' ? -2 : -1)])),
  features: 0,
  mm: 'mm-1',
  notifier: 'vhost-v0',
  nvqs: 2,
  calls: 0,
  leaked_maps: 0,
  accessors: [],
};

export const VqView = object('VhostVq', {
  vq: Count('Number'),
  num: Count('Entries of the ring'),
  desc: U64Out('Address of the descriptor table'),
  avail: U64Out('Address of the available ring'),
  used: U64Out('Address of the used ring'),
  log: bool('VHOST_VRING_F_LOG'),
  backend: bool('It has a backend: rounds do something'),
  last_avail_idx: Count('Next available entry'),
  last_used_idx: Count('Next used entry'),
  invalidate_count: Int('Invalidations under way; nothing is mapped while it is above 0'),
  areas: Type.Array(
    closed({
      area: AreaName,
      addr: U64Out('First byte'),
      size: U64Out('Bytes'),
      write: bool('The device writes it'),
      mapped: bool('There is a map'),
      prefetched: Nullable(Int('0 or an errno'), 'What the last attempt to map it came to; null: none yet'),
    }),
    { description: 'Where the notifier looks for overlaps' },
  ),
});
export const vqExample = {
  vq: 0,
  num: 8,
  desc: '0x7f0000000000',
  avail: '0x7f0000001000',
  used: '0x7f0000002000',
  log: false,
  backend: true,
  last_avail_idx: 0,
  last_used_idx: 0,
  invalidate_count: 0,
  areas: [
    { area: 'desc', addr: '0x7f0000000000', size: '0x80', write: false, mapped: true, prefetched: 0 },
    { area: 'avail', addr: '0x7f0000001000', size: '0x14', write: false, mapped: true, prefetched: 0 },
    { area: 'used', addr: '0x7f0000002000', size: '0x44', write: true, mapped: false, prefetched: -14 },
  ],
};

export const VhostMapView = object('VhostMap', {
  area: AreaName,
  kva: U64Out("The kernel's address of its first byte"),
  addr: U64Out("The owner's address of it"),
  pfns: Type.Array(PageFrame('Host page'), { description: 'Pages behind it, of which no reference is held' }),
  written: Type.Array(PageFrame('Host page'), { description: 'Those written since, not yet marked dirty' }),
  stale: bool('The page table does not give that any more'),
});
export const vhostMapExample = {
  area: 'used',
  kva: '0xffff888100002000',
  addr: '0x7f0000002000',
  pfns: [1048578],
  written: [],
  stale: false,
};
