// Models the checks of lib/rbtree_test.c: whether a tree of RbLinks is sound, recomputed from every node.

import type { RbLinks } from './rbtree.ts';

/** Violations that one check reports at most: one broken link can cause a violation at every node. */
const MAX_VIOLATIONS = 100;

/**
 * Every way in which a tree is not a red-black tree of `count` nodes in strict order: empty for a sound one. Trusts no link,
 * ends on a cycle, and takes O(count).
 */
export function checkRbTree(
  links: RbLinks,
  root: number,
  count: number,
  isBefore: (a: number, b: number) => boolean,
): string[] {
  const violations: string[] = [];
  const path: { node: number; black: number }[] = [];
  let seen = 0;
  let height = -1;
  let before = 0;
  let above = 0;
  let black = 0;
  let node = root;
  for (;;) {
    while (node !== 0) {
      if (!links.isLive(node)) return [...violations, `slot ${node}, a child of ${above}, is not in use`];
      if (++seen > links.liveCount) return [...violations, `slot ${node} is reached twice`];
      if (links.parent(node) !== above) violations.push(`slot ${node} has parent ${links.parent(node)}, not ${above}`);
      if (links.isRed(node) && above === 0) violations.push(`slot ${node} is the root and red`);
      if (links.isRed(node) && links.isRed(above))
        violations.push(`slots ${above} and ${node} are parent and child and red`);
      if (!links.isRed(node)) black++;
      path.push({ node, black });
      above = node;
      node = links.left(node);
    }
    if (height === -1) height = black;
    else if (black !== height) violations.push(`below slot ${above} a path has ${black} black nodes, not ${height}`);
    const reached = path.pop();
    if (reached === undefined) break;
    if (before !== 0 && !isBefore(before, reached.node))
      violations.push(`slot ${before} is not before slot ${reached.node}`);
    if (violations.length >= MAX_VIOLATIONS) return violations;
    before = reached.node;
    above = reached.node;
    black = reached.black;
    node = links.right(reached.node);
  }
  if (seen !== count) violations.push(`the tree of slot ${root} has ${seen} nodes, not ${count}`);
  return violations;
}

/** Every way in which the chain of free slots is broken: empty for a sound one. */
export function checkFreeSlots(links: RbLinks): string[] {
  const { high_water, free_head, free_count } = links.slotState();
  let seen = 0;
  for (let slot = free_head; slot !== 0; slot = links.left(slot)) {
    if (slot >= high_water || links.isLive(slot)) return [`slot ${slot} is chained as free but in use`];
    if (++seen > free_count) return [`the chain of free slots is longer than ${free_count}`];
  }
  return seen === free_count ? [] : [`the chain of free slots has ${seen} slots, not ${free_count}`];
}
