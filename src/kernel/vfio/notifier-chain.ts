// Models the blocking notifier chain of kernel/notifier.c: a singly linked list, which a block that is linked twice corrupts.
// A block is linked in each chain apart: in the kernel its one link would also tie chains together.

import { Errno } from '../errno.ts';
import { type Host, splat } from '../host.ts';
import { warnOnce } from '../mm/warn-once.ts';

export interface NotifierChain {
  /** The block that is called first. */
  head: string | null;
  /** The block after each block that is or was on the chain; null at the end. */
  next: Record<string, string | null>;
  /** Operations that are walking the chain: they hold its lock for reading. */
  readers: string[];
  /** Operations that wait for the lock, in order of arrival; a waiting writer holds off new readers. */
  waiters: string[];
}

export const emptyChain = (): NotifierChain => ({ head: null, next: {}, readers: [], waiters: [] });

const nextOf = (chain: NotifierChain, id: string): string | null => chain.next[id] ?? null;
const priorityOf = ({ vfio }: Host, id: string): number => vfio.notifiers.get(id)?.priority ?? 0;

/** The blocks in calling order, each once. */
export function blocksOf(chain: NotifierChain): string[] {
  const seen = new Set<string>();
  for (let id = chain.head; id !== null && !seen.has(id); id = nextOf(chain, id)) seen.add(id);
  return [...seen];
}

/** Whether a double registration has made the chain a loop, so that a walk to its end never returns. */
export function isEndless(chain: NotifierChain): boolean {
  const last = blocksOf(chain).at(-1);
  return last !== undefined && nextOf(chain, last) !== null;
}

/** A walk over an endless chain: the caller spins for ever. */
export class EndlessChain extends Error {}

/**
 * Models notifier_chain_register(): by descending priority, equal ones in order of registration. A block that is on the chain
 * is warned about and left where it is, or, in old kernels, linked again, which cuts the chain or closes it to a loop.
 * Throws EndlessChain.
 */
export function chainRegister(host: Host, chain: NotifierChain, id: string): void {
  const { doubleRegister } = host.profile;
  const priority = priorityOf(host, id);
  const path = ['blocking_notifier_chain_register', 'vfio_register_notifier'];
  const seen = new Set<string>();
  let before: string | null = null;
  let at = chain.head;
  while (at !== null) {
    if (seen.has(at)) throw new EndlessChain();
    seen.add(at);
    if (at === id && doubleRegister === 'warns') {
      splat(host, 'WARN', 'notifier_chain_register', `listener-registered-twice: double register of ${id}`, path);
      return;
    }
    if (at === id && doubleRegister === 'warns-once-and-corrupts')
      warnOnce(host, 'notifier_chain_register', `listener-registered-twice: double register of ${id}`, path);
    if (priority > priorityOf(host, at)) break;
    before = at;
    at = nextOf(chain, at);
  }
  chain.next[id] = at;
  if (before === null) chain.head = id;
  else chain.next[before] = id;
}

/** Models notifier_chain_unregister(). ENOENT. Throws EndlessChain. */
export function chainUnregister(chain: NotifierChain, id: string): void {
  const seen = new Set<string>();
  let before: string | null = null;
  for (let at = chain.head; at !== null; at = nextOf(chain, at)) {
    if (seen.has(at)) throw new EndlessChain();
    seen.add(at);
    if (at === id) {
      unlink(chain, before, id);
      return;
    }
    before = at;
  }
  throw new Errno('ENOENT', `notifier '${id}' is not registered`);
}

function unlink(chain: NotifierChain, before: string | null, id: string): void {
  const next = nextOf(chain, id);
  if (before === null) chain.head = next;
  else chain.next[before] = next;
  // A block that is its own successor stays reachable, as in the kernel.
  if (!blocksOf(chain).includes(id)) delete chain.next[id];
}

/** Models list_add(): the entry at the head of a list of devices. */
export function listAdd(list: NotifierChain, id: string): void {
  list.next[id] = list.head;
  list.head = id;
}
