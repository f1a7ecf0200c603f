// What GETs show of vfio-pci devices. Pure: nothing here changes a host.

import type { Host } from '../host.ts';
import { addressOf, sizeOf } from '../lib/u64.ts';
import type { Fields } from '../outcome.ts';
import { readCommand } from '../vfio-pci/config.ts';
import {
  allowsFault,
  deviceFields,
  getVfioPci,
  type ListedVma,
  memoryLock,
  requireGate,
  vmaLock,
} from '../vfio-pci/device.ts';
import { ioeventfdFields } from '../vfio-pci/ioeventfd.ts';
import { vmasOf } from '../vfio-pci/zap.ts';
import { byId, type Listed, listed } from './page.ts';

export const viewVfioPci = (host: Host, id: string): Fields => deviceFields(host, getVfioPci(host, id));

export function listVfioPci(host: Host, after: string | null, limit: number): Listed<string> {
  requireGate(host);
  return listed(
    byId(host.consumers.vfio_pci.devices, after),
    limit,
    ({ id }) => id,
    (device) => deviceFields(host, device),
  );
}

/** The register as a read of config space gives it, and both of its halves. */
export function viewCommand(host: Host, id: string): Fields {
  const device = getVfioPci(host, id);
  const { vconfig_command, phys_command } = device;
  return {
    value: readCommand(device),
    vconfig: vconfig_command,
    phys: phys_command,
    enabled: deviceFields(host, device).enabled as boolean,
    faults_allowed: allowsFault(host, device),
  };
}

/** Areas on vma_list, by number. */
export function listVmaList(host: Host, id: string, after: number | null, limit: number): Listed<number> {
  const { vma_list } = getVfioPci(host, id);
  const show = ({ mm, vma, start, end }: ListedVma): Fields => {
    const area = vmasOf(host, mm, id).find(({ ops }) => ops?.id === vma) ?? { start, end };
    return { mm, vma, addr: addressOf(area.start), length: sizeOf(area.end - area.start), alive: host.mm.mms.has(mm) };
  };
  const rest = vma_list.filter(({ vma }) => after === null || vma > after).sort((a, b) => a.vma - b.vma);
  return listed(rest, limit, ({ vma }) => vma, show);
}

function showLock(host: Host, id: string): Fields {
  const lock = host.locks.get(id);
  return {
    lock: id,
    holders: (lock?.holders ?? []).map(({ by, mode }) => ({ by, mode })),
    waiters: (lock?.waiters ?? []).map(({ by, mode }) => ({ by, mode })),
  };
}

export function viewLocks(host: Host, id: string): Fields {
  const device = getVfioPci(host, id);
  return { vma_lock: showLock(host, vmaLock(device)), memory_lock: showLock(host, memoryLock(device)) };
}

export const listIoeventfds = (host: Host, id: string, after: string | null, limit: number): Listed<string> =>
  listed(byId(getVfioPci(host, id).ioeventfds, after), limit, (each) => each.id, ioeventfdFields);
