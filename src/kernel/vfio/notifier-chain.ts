// Models the blocking notifier chain of kernel/notifier.c: a singly linked list whose links lie in the blocks themselves.

import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { warnOnce } from '../mm/warn-once.ts';
import type { NotifierBlock } from './notifier.ts';
import type { Vfio } from './vfio.ts';

export interface NotifierChain {
  /** The block that is called first. */
  head: string | null;
  /** Operations that are walking the chain: they hold its lock for reading. */
  readers: string[];
  /** Operations that wait for the lock, in order of arrival; a waiting writer holds off new readers. */
  waiters: string[];
}

export const emptyChain = (): NotifierChain => ({ head: null, readers: [], waiters: [] });

const blockOf = (vfio: Vfio, id: string): NotifierBlock => vfio.notifiers.get(id) as NotifierBlock;

/** The blocks in calling order, each once. */
export function blocksOf(vfio: Vfio, chain: NotifierChain): string[] {
  const seen = new Set<string>();
  for (let id = chain.head; id !== null && !seen.has(id); id = blockOf(vfio, id).next) seen.add(id);
  return [...seen];
}

/** Whether a double registration has made the chain a loop, so that a walk to its end never returns. */
export function isEndless(vfio: Vfio, chain: NotifierChain): boolean {
  const last = blocksOf(vfio, chain).at(-1);
  return last !== undefined && blockOf(vfio, last).next !== null;
}

/** A walk over an endless chain: the caller spins for ever. */
export class EndlessChain extends Error {}

/**
 * Models notifier_chain_register(): by descending priority, equal ones in order of registration. A block that is on the chain
 * is warned about and left where it is, or, in old kernels, linked again, which cuts the chain or closes it to a loop.
 * Throws EndlessChain.
 */
export function chainRegister(host: Host, chain: NotifierChain, id: string): void {
  const { vfio, profile } = host;
  const block = blockOf(vfio, id);
  const path = ['blocking_notifier_chain_register', 'vfio_register_notifier'];
  const seen = new Set<string>();
  let before: NotifierBlock | null = null;
  let at = chain.head;
  while (at !== null) {
    if (seen.has(at)) throw new EndlessChain();
    seen.add(at);
    if (at === id && profile.doubleRegister === 'warns') {
      splat(host, 'WARN', 'notifier_chain_register', `listener-registered-twice: double register of ${id}`, path);
      return;
    }
    if (at === id && profile.doubleRegister === 'warns-once-and-corrupts')
      warnOnce(host, 'notifier_chain_register', `listener-registered-twice: double register of ${id}`, path);
    const other = blockOf(vfio, at);
    if (block.priority > other.priority) break;
    before = other;
    at = other.next;
  }
  block.next = at;
  if (before === null) chain.head = id;
  else before.next = id;
}

/** Models notifier_chain_unregister(). ENOENT. Throws EndlessChain. */
export function chainUnregister(host: Host, chain: NotifierChain, id: string): void {
  const seen = new Set<string>();
  let before: NotifierBlock | null = null;
  for (let at = chain.head; at !== null; ) {
    if (seen.has(at)) throw new EndlessChain();
    seen.add(at);
    const block = blockOf(host.vfio, at);
    if (at === id) {
      if (before === null) chain.head = block.next;
      else before.next = block.next;
      return;
    }
    before = block;
    at = block.next;
  }
  throw new Errno('ENOENT', `notifier '${id}' is not registered`);
}

/** Models list_add(): the entry at the head of a list of devices. */
export function listAdd(host: Host, list: NotifierChain, id: string): void {
  blockOf(host.vfio, id).next = list.head;
  list.head = id;
}

/** Models list_del(). */
export function listDel(host: Host, list: NotifierChain, id: string): void {
  if (blocksOf(host.vfio, list).includes(id)) chainUnregister(host, list, id);
}
