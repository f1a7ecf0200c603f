// Models what KVM takes a pfn for (kvm_is_reserved_pfn): whose references it gets and drops, and which pages it marks.

import type { Host } from '../host.ts';
import { trace } from '../host.ts';
import { isZeroPage } from '../mm/page.ts';
import { KIND_DEVICE, KIND_REMOVED, KIND_RESERVED, KIND_ZONE_DEVICE } from '../mm/page-frames.ts';
import { warnOnce } from '../mm/warn-once.ts';
import type { Handlers } from '../steps.ts';
import { getVm, type Vm } from './vm.ts';

export type PfnStep =
  /** Drops the reference of a page that the thread has got; nothing where it holds none. */
  { do: 'kvm_release_pfn'; vm: string; pfn: number; cleanup: true };

export const hasStructPage = (host: Host, pfn: number): boolean => host.mm.pages.kind(pfn) !== KIND_DEVICE;

/** Models kvm_is_zone_device_pfn(): only of a page that somebody refers to can it be told. */
function isZoneDevice(host: Host, pfn: number): boolean {
  const { pages } = host.mm;
  const kind = pages.kind(pfn);
  if (kind !== KIND_ZONE_DEVICE && kind !== KIND_REMOVED) return false;
  if (pages.refcount(pfn) !== 0) return true;
  warnOnce(host, 'kvm_is_zone_device_pfn', '!page_count(pfn_to_page(pfn))', ['kvm_is_reserved_pfn']);
  return false;
}

/** Models kvm_is_reserved_pfn(): a page of which KVM neither gets nor drops references. Pages of ZONE_DEVICE are PageReserved. */
export function isReservedPfn(host: Host, { zone_device_bug }: Vm, pfn: number): boolean {
  switch (host.mm.pages.kind(pfn)) {
    case KIND_DEVICE:
    case KIND_RESERVED:
      return true;
    case KIND_ZONE_DEVICE:
    case KIND_REMOVED:
      return zone_device_bug || !isZoneDevice(host, pfn);
    default:
      return isZeroPage(host, pfn) && host.profile.kvmPfnReferences === 'zero-reserved';
  }
}

/** Models kvm_set_pfn_dirty(): neither reserved pages nor those of a device. */
export function setPfnDirty(host: Host, vm: Vm, pfn: number): void {
  const { pages } = host.mm;
  const kind = pages.kind(pfn);
  if (kind === KIND_ZONE_DEVICE || kind === KIND_REMOVED || isZeroPage(host, pfn)) return;
  if (!isReservedPfn(host, vm, pfn) && pages.refcount(pfn) > 0) pages.setDirty(pfn, host.seq);
}

/** Drops a reference, or, where the page is taken for reserved, leaves it for ever. */
export function releasePfn(host: Host, vm: Vm, pfn: number): void {
  const { leaked } = host.consumers.kvm;
  if (host.profile.kvmPfnReferences === 'explicit' || !isReservedPfn(host, vm, pfn)) {
    host.mm.pages.put(pfn, host.seq);
    return;
  }
  leaked.set(pfn, (leaked.get(pfn) ?? 0) + 1);
  trace(host, 'kvm_leak', vm.id, { pfn, refcount: host.mm.pages.refcount(pfn) });
}

export const pfnSteps: Handlers<PfnStep> = {
  kvm_release_pfn(host, { thread }, { vm, pfn }) {
    const at = thread.pages.lastIndexOf(pfn);
    if (at < 0) return;
    thread.pages.splice(at, 1);
    releasePfn(host, getVm(host, vm), pfn);
  },
};
