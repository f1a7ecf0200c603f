// What GETs show of devices that can have pages to themselves, of their mappings and grants. Pure: nothing here changes a host.

import {
  deviceFields,
  type ExclusiveDevice,
  type Grant,
  getDevice,
  getGrant,
  secondaryOf,
} from '../exclusive/device.ts';
import { slotFields } from '../exclusive/grant.ts';
import type { Host } from '../host.ts';
import { addressOf, pageNumberOf } from '../lib/u64.ts';
import { anyMm } from '../mm/mm.ts';
import { isStale } from '../mm/mmu-notifier/secondary.ts';
import type { Fields } from '../outcome.ts';
import { byId, type Listed, listed } from './page.ts';

const showDevice = (device: ExclusiveDevice): Fields => ({
  ...deviceFields(device),
  mappings: device.mappings.size,
  grants: device.grants.size,
});

/** ENODEV: the profile has none. NOT_FOUND. */
export const viewExclusiveDevice = (host: Host, id: string): Fields => showDevice(getDevice(host, id));

/** None where the profile has none. */
export const listExclusiveDevices = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.consumers.exclusive.devices, after), limit, ({ id }) => id, showDevice);

const showGrant = ({ id, busy, slots }: Grant): Fields => ({ id, busy, slots: slots.map(slotFields) });

export const viewGrant = (host: Host, device: string, id: string): Fields =>
  showGrant(getGrant(getDevice(host, device), id));

export const listGrants = (host: Host, device: string, after: string | null, limit: number): Listed<string> =>
  listed(byId(getDevice(host, device).grants, after), limit, ({ id }) => id, showGrant);

/** By address. */
export function listDeviceMappings(host: Host, id: string, after: bigint | null, limit: number): Listed<bigint> {
  const { mappings, mm } = getDevice(host, id);
  const first = after === null ? -1 : pageNumberOf(after);
  const rest = [...mappings].filter(([page]) => page > first).sort(([a], [b]) => a - b);
  return listed(
    rest,
    limit,
    ([page]) => addressOf(page),
    ([page, mapping]) => ({
      addr: addressOf(page),
      pfn: mapping.pfn,
      access: mapping.access,
      stale: isStale(anyMm(host, mm), page, secondaryOf(mapping)),
    }),
  );
}
