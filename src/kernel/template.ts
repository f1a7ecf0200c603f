// What a new host contains. The template 'default' is ready for a first map_dma: nothing mapped, no notifier registered.

import { READ, WRITE } from './command.ts';
import type { Host } from './host.ts';
import { mmapAtBoot } from './mm/mmap.ts';
import { putTask } from './mm/task.ts';
import { putContainer, setIommu } from './vfio/container.ts';
import { openDevice, putDevice } from './vfio/device.ts';
import { putGroup, setContainer } from './vfio/group.ts';

const GIB = 2n ** 30n;

/** Fills a host that has executed nothing yet; part of its making, so it is not in the journal. */
export function applyTemplate(host: Host): void {
  if (host.options.template === 'empty') return;
  putTask(host, { op: 'put_task', task: 'qemu', rlimit_memlock: GIB, cap_ipc_lock: false, thread_of: null });
  mmapAtBoot(host, {
    op: 'mmap',
    task: 'qemu',
    addr: 0x7f0000000000n,
    length: 4n * GIB,
    prot: READ | WRITE,
    backing: { kind: 'anon' },
    noreplace: true,
  });
  putContainer(host, { op: 'put_container', container: 'vfio0' });
  putGroup(host, { op: 'put_group', group: '26', kind: 'mdev' });
  putDevice(host, { op: 'put_device', device: 'mdev0', group: '26' });
  setContainer(host, { op: 'set_container', group: '26', container: 'vfio0', task: 'qemu' });
  setIommu(host, { op: 'set_iommu', container: 'vfio0', type: 3, task: 'qemu' });
  openDevice(host, { op: 'open_device', device: 'mdev0' });
}
