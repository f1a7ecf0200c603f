// Requests that many tests begin with: what a host of the template 'default' needs for a first pin.

import type { Client } from './client.ts';

export const POLL = { id: 'n0', events: ['DMA_UNMAP'], delivery: { kind: 'poll' } };
export const IGNORE = { ...POLL, delivery: { kind: 'builtin', behavior: 'ignore' } };
export const MAP = { task: 'qemu', iova: '0x0', vaddr: '0x7f0000000000', size: '0x10000000', flags: ['READ', 'WRITE'] };
export const PIN = { user_pfn: [16, 17], prot: ['READ', 'WRITE'] };
export const READ = { iova: '0x1000', length: '0x4' };
export const UNMAP = { iova: '0x0', size: '0x10000000' };

/** Method, path below the host, body. */
export type Step = [string, string, unknown?];

/** Sends requests that must succeed, one after the other. */
export async function prepare(client: Client, at: string, ...steps: Step[]): Promise<void> {
  for (const [method, path, body] of steps) {
    const { status, text } = await client.ask(method, `${at}${path}`, body);
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${text}`);
  }
}

export const mapped: Step = ['POST', '/containers/vfio0/map_dma', MAP];
export const listening = (notifier: object): Step => ['POST', '/devices/mdev0/notifiers', notifier];
export const pinned: Step = ['POST', '/devices/mdev0/pin_pages', PIN];
