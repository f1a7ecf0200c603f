// Models kvm_vcpu_map() and kvm_vcpu_unmap(): the host itself uses a page of the guest. No notifier watches such a mapping:
// what keeps its page alive is a reference, or a pin.

import { Errno } from '../errno.ts';
import type { Host } from '../host.ts';
import { fromBase64, toBase64 } from '../lib/base64.ts';
import { PAGE_SIZE } from '../lib/u64.ts';
import { MAX_HOST_MAPS, MAX_WRITTEN_PAGES } from '../limits.ts';
import { anyMm } from '../mm/mm.ts';
import { readPage, writePage } from '../mm/page-bytes.ts';
import type { Done, Fields } from '../outcome.ts';
import type { Phase } from '../phase.ts';
import type { Handlers, Step } from '../steps.ts';
import { pushSteps, runOperation, type ThreadOperation } from '../thread.ts';
import { report } from '../violation.ts';
import { hasStructPage, releasePfn, setPfnDirty } from './pfn.ts';
import type { Found } from './resolve.ts';
import { markGfnDirty } from './spte.ts';
import { callerOf, getLiveVm, getVm, gfnToMemslot, type HostMap, pageOfGfn, type Vm } from './vm.ts';
import { underVmSrcu } from './vm-srcu.ts';

export type MapCommand =
  | { op: 'vcpu_map'; vm: string; gfn: number; map?: string; stop_at?: Phase }
  /** dirty: the page was written; kernels that pin know it themselves. */
  | { op: 'vcpu_unmap'; vm: string; map: string; dirty: boolean }
  /** The host uses the mapping: reads `length` bytes, or writes base64 `data`. */
  | { op: 'vcpu_map_rw'; vm: string; map: string; offset: number; length?: number; data?: string };

/** A mapping to be made. */
export interface MapRequest {
  vm: string;
  map: string;
  gfn: number;
  page: number;
}

export type MapStep =
  | { do: 'vcpu_map'; vm: string; map: string; gfn: number; cleanup?: true }
  | { do: 'vcpu_mapped'; request: MapRequest; found: Extract<Found, { pfn: number }>; cleanup?: true }
  | { do: 'vcpu_unmap'; vm: string; map: string; dirty: boolean; cleanup?: true }
  | { do: 'vcpu_map_rw'; vm: string; map: string; offset: number; length: number; data: string | null; cleanup?: true };

/** page_offset_base: all of memory, mapped in order. */
const PAGE_OFFSET = 0xffff888000000000n;
/** VMALLOC_START: where memremap() finds a place. */
const VMALLOC_START = 0xffffc90000000000n;

/** Most pfns that the direct mapping of x86-64 with four-level page tables has place for: 64 TiB. */
const DIRECT_MAP_PAGES = 2 ** 34;

/** Models kmap() and memremap(). EFAULT: the page is beyond what the kernel can map. */
function kernelAddress(host: Host, { next_map }: Vm, pfn: number): bigint {
  if (pfn >= DIRECT_MAP_PAGES) throw new Errno('EFAULT', `page ${pfn}: the kernel has no address for it`);
  return hasStructPage(host, pfn) ? PAGE_OFFSET + (BigInt(pfn) << 12n) : VMALLOC_START + (BigInt(next_map) << 12n);
}

export const mapFields = (vm: string, { page: _page, early_put: _early, ...map }: HostMap): Fields => ({ vm, ...map });

/**
 * Maps a page of the guest for writing. Fields: id, gfn, pfn, kva, struct_page, writable, holds.
 * ESRCH, EBUSY: the vm. ENOSPC: MAX_HOST_MAPS. EEXIST: the id. EINVAL: no page can be got behind the gfn, or, where mappings
 * pin, only one that cannot be pinned. EFAULT: no address of the kernel.
 */
export function vcpuMap(
  host: Host,
  { vm: id, gfn, map: wanted, stop_at }: Extract<MapCommand, { op: 'vcpu_map' }>,
): Done {
  const vm = getLiveVm(host, id);
  if (vm.maps.size >= MAX_HOST_MAPS)
    throw new Errno('ENOSPC', `vm '${id}' has ${MAX_HOST_MAPS} mappings open, the most it keeps`);
  if (wanted !== undefined && vm.maps.has(wanted)) throw new Errno('EEXIST', `map '${wanted}' is open`);
  let map = wanted;
  while (map === undefined || vm.maps.has(map)) map = `map-${vm.next_map++}`;
  const done = runOperation(
    host,
    { kind: 'vcpu_map', locals: callerOf(host, vm) },
    underVmSrcu(id, [{ do: 'vcpu_map', vm: id, map, gfn }]),
    stop_at ?? null,
  );
  return { ...done, created: true };
}

/** The pfn is known, or none can be got. */
export function mapResolved(host: Host, operation: ThreadOperation, request: MapRequest, found: Found): void {
  if (!('pfn' in found)) throw new Errno('EINVAL', `gfn ${request.gfn}: no page can be mapped (${found.error})`);
  const vm = getVm(host, request.vm);
  const release: Step = { do: 'kvm_release_pfn', vm: vm.id, pfn: found.pfn, cleanup: true };
  pushSteps(operation, [
    ...(vm.early_put ? [release] : []),
    { do: 'phase', phase: 'after_gup', fields: { vm: vm.id, gfn: request.gfn, pfn: found.pfn } },
    { do: 'vcpu_mapped', request, found },
    release,
  ]);
}

/** What the mapping holds from here on, instead of the thread. */
function keep(host: Host, { thread }: ThreadOperation, vm: Vm, pfn: number): HostMap['holds'] {
  const at = thread.pages.lastIndexOf(pfn);
  if (at < 0) return 'none';
  if (host.profile.kvmMapReference === 'get') {
    thread.pages.splice(at, 1);
    return 'get';
  }
  anyMm(host, vm.mm).has_pinned = true;
  if (!host.mm.pages.pin(pfn, host.profile.pinBias, host.seq))
    throw new Errno('EINVAL', `page ${pfn} cannot be pinned: its counter is ${host.mm.pages.refcount(pfn)}`);
  return 'pin';
}

/**
 * Takes a mapping away. `dirty` counts in kernels that do not know it from the mapping. A mapping that is not open is no error.
 * Fields: id, unmapped.
 */
export function vcpuUnmap(host: Host, { vm: id, map, dirty }: Extract<MapCommand, { op: 'vcpu_unmap' }>): Done {
  const vm = getVm(host, id);
  if (!vm.maps.has(map)) return { ret: 0, fields: { id: map, unmapped: false } };
  return runOperation(
    host,
    { kind: 'vcpu_unmap', locals: callerOf(host, vm) },
    [{ do: 'vcpu_unmap', vm: id, map, dirty }],
    null,
  );
}

/**
 * Reads or writes through a mapping. Fields: id, pfn, data of a read.
 * EINVAL: no such mapping; both or neither of length and data; bytes beyond the page. ENOMEM: MAX_WRITTEN_PAGES.
 */
export function vcpuMapRw(host: Host, command: Extract<MapCommand, { op: 'vcpu_map_rw' }>): Done {
  const { vm: id, map, offset, length, data } = command;
  const vm = getVm(host, id);
  if (!vm.maps.has(map)) throw new Errno('EINVAL', `map '${map}' is not open`);
  if ((length === undefined) === (data === undefined))
    throw new Errno('EINVAL', 'an access takes either length (a read) or data (a write)');
  const bytes = data === undefined ? null : fromBase64(data);
  const size = data === undefined ? (length as number) : (bytes?.length ?? 0);
  if (size < 1 || offset < 0 || offset + size > PAGE_SIZE)
    throw new Errno('EINVAL', `bytes [${offset}, ${offset + size}) are not one page's`);
  return runOperation(
    host,
    { kind: 'vcpu_map_rw', locals: callerOf(host, vm) },
    [{ do: 'vcpu_map_rw', vm: id, map, offset, length: size, data: data ?? null }],
    null,
  );
}

/** The page of a mapping was freed under it: nothing has kept it. */
function reportFreed(host: Host, operation: ThreadOperation, vm: Vm, { id, pfn, freed }: HostMap, what: string): void {
  if (freed)
    report(host, operation, 'USE_AFTER_FREE', `${vm.id} ${what} page ${pfn} through '${id}' after it was freed`, []);
}

/** After every command: which pages have been freed under mappings that hold nothing. */
export function noteFreed(host: Host, { maps }: Vm): void {
  for (const map of maps.values())
    if (map.early_put && map.holds === 'none' && !map.freed && host.mm.pages.refcount(map.pfn) <= 0) map.freed = true;
}

export const mapSteps: Handlers<MapStep> = {
  vcpu_map(host, operation, { vm: id, map, gfn }) {
    const vm = getVm(host, id);
    const slot = gfnToMemslot(vm, gfn);
    if (slot === null || slot.invalid) throw new Errno('EINVAL', `gfn ${gfn} is in no memslot`);
    if (slot.readonly) throw new Errno('EINVAL', `gfn ${gfn} is in the read-only memslot ${slot.id}`);
    const page = pageOfGfn(slot, gfn);
    const asker = { by: 'map', vm: id, map, gfn, page } as const;
    const wanted = { vm: id, page, write: true, nowait: false, map_writable: false, asker };
    pushSteps(operation, [{ do: 'hva_to_pfn', wanted }]);
  },

  vcpu_mapped(host, operation, { request, found }) {
    const { map: id, gfn, page } = request;
    const vm = getVm(host, request.vm);
    const { pfn, got } = found;
    const kva = kernelAddress(host, vm, pfn);
    if (vm.maps.has(id)) throw new Errno('EEXIST', `map '${id}' is open`);
    const map: HostMap = {
      id,
      gfn,
      page,
      pfn,
      kva,
      struct_page: hasStructPage(host, pfn),
      writable: found.writable,
      holds: keep(host, operation, vm, pfn),
      early_put: vm.early_put && got,
      freed: false,
    };
    vm.maps.set(id, map);
    operation.thread.fields = mapFields(vm.id, map);
  },

  vcpu_unmap(host, operation, { vm: vmId, map: id, dirty }) {
    const vm = getVm(host, vmId);
    const map = vm.maps.get(id) as HostMap;
    const pins = host.profile.kvmMapReference === 'pin';
    const { pfn, gfn, holds, writable } = map;
    const written = pins ? writable : dirty;
    vm.maps.delete(id);
    if (written) markGfnDirty(vm, gfn);
    if (written) reportFreed(host, operation, vm, map, 'marks');
    if (written && !map.freed) setPfnDirty(host, vm, pfn);
    if (holds === 'get') releasePfn(host, vm, pfn);
    if (holds === 'pin') host.mm.pages.unpin(pfn, host.profile.pinBias, false, host.seq);
    operation.thread.fields = { id, unmapped: true };
  },

  vcpu_map_rw(host, operation, { vm: vmId, map: id, offset, length, data }) {
    const vm = getVm(host, vmId);
    const map = vm.maps.get(id) as HostMap;
    const { pfn } = map;
    reportFreed(host, operation, vm, map, data === null ? 'reads' : 'writes');
    const bytes = data === null ? new Uint8Array(length) : (fromBase64(data) as Uint8Array);
    if (data === null) readPage(host, pfn, offset, bytes);
    else if (!map.freed && !writePage(host, pfn, offset, bytes))
      throw new Errno('ENOMEM', `${MAX_WRITTEN_PAGES} pages hold bytes of their own, the most a host keeps`);
    operation.thread.fields = { id, pfn, ...(data === null ? { data: toBase64(bytes) } : {}) };
  },
};
