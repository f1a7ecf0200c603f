// Models lib/rbtree.c: red-black trees that know nothing of their payload. A node is a slot, a 32-bit index.
//
// - RbLinks holds the links of all nodes of all trees of one kind; a tree is its root slot, kept by its owner, 0 when empty.
// - Slot 0 is the null link: never handed out, never written, black.
// - The payload lies beside it, under the same slot; the owner descends by its own keys, then links and rebalances.
// - Links live in chunks of CHUNK_SIZE slots that are never moved; free slots are chained through their left link.
// - Each chunk has the version (`version` at the time) of its last write, so that a checkpoint copies only what changed.
// Shape and colours after any sequence of operations are those that the kernel's trees have: old profiles walk by shape.

export { checkFreeSlots, checkRbTree } from './rbtree-check.ts';

export const CHUNK_SHIFT = 12;
export const CHUNK_SIZE = 1 << CHUNK_SHIFT;
export const CHUNK_MASK = CHUNK_SIZE - 1;

export const LEFT = 0;
export const RIGHT = 1;
export type Side = 0 | 1;

/** A packed parent link is the parent's slot times two, plus one when the node is red. */
const RED = 1;
/** The packed parent link of a slot that is not in use; no node has the parent that it would mean. */
const FREE = 0xffffffff;
/** Slots are below this, so that a packed link never reads as FREE. */
const SLOT_LIMIT = 0x7fffffff;

/** The links of one chunk: children in pairs (left, right), and the packed parent links. */
export interface LinkColumns {
  child: Uint32Array;
  parent: Uint32Array;
}

/** The part of the state of RbLinks that lies in no chunk. */
export interface SlotState {
  /** Number of slots that were ever handed out, plus slot 0. */
  high_water: number;
  /** First free slot below the high-water mark, 0 for none. */
  free_head: number;
  free_count: number;
}

export class RbLinks {
  /** The seq of the command that is being executed: set by the owner, given to every chunk that is written. */
  version = 0;
  private readonly children: Uint32Array[] = [];
  private readonly parents: Uint32Array[] = [];
  private readonly versions: number[] = [];
  private high_water = 1;
  private free_head = 0;
  private free_count = 0;
  private state_version = 0;

  static restore(
    state: SlotState,
    chunks: readonly (LinkColumns & { version: number })[],
    stateVersion: number,
  ): RbLinks {
    const links = new RbLinks();
    for (const { child, parent, version } of chunks) {
      if (child.length !== 2 * CHUNK_SIZE || parent.length !== CHUNK_SIZE)
        throw new Error('a chunk of links has the wrong length');
      links.children.push(child.slice());
      links.parents.push(parent.slice());
      links.versions.push(version);
    }
    const chunksInUse = state.high_water === 1 ? 0 : Math.ceil(state.high_water / CHUNK_SIZE);
    if (chunks.length !== chunksInUse) throw new Error(`${chunks.length} chunks of links, not ${chunksInUse}`);
    links.high_water = state.high_water;
    links.free_head = state.free_head;
    links.free_count = state.free_count;
    links.state_version = stateVersion;
    return links;
  }

  // Slots

  get chunkCount(): number {
    return this.parents.length;
  }

  /** Number of slots in use, whatever trees they are in. */
  get liveCount(): number {
    return this.high_water - 1 - this.free_count;
  }

  /** Version of the slot state: it changes with every alloc and free. */
  get stateVersion(): number {
    return this.state_version;
  }

  chunkVersion(chunk: number): number {
    return this.versions[chunk] as number;
  }

  slotState(): SlotState {
    return { high_water: this.high_water, free_head: this.free_head, free_count: this.free_count };
  }

  /** The links of a chunk themselves, not a copy. */
  linkColumns(chunk: number): LinkColumns {
    return { child: this.children[chunk] as Uint32Array, parent: this.parents[chunk] as Uint32Array };
  }

  isLive(slot: number): boolean {
    return slot > 0 && slot < this.high_water && this.packed(slot) !== FREE;
  }

  /** Marks the chunk of a slot as written; for payload that shares the chunk's version. */
  touch(slot: number): void {
    this.versions[slot >>> CHUNK_SHIFT] = this.version;
  }

  /** Hands out a slot with null links: the one freed last, else a new one. */
  alloc(): number {
    this.state_version = this.version;
    const free = this.free_head;
    if (free !== 0) {
      this.free_head = this.child(free, LEFT);
      this.free_count--;
      this.setChild(free, LEFT, 0);
      this.setPacked(free, 0);
      return free;
    }
    const slot = this.high_water;
    if (slot >= SLOT_LIMIT) throw new Error('out of slots');
    if (slot >>> CHUNK_SHIFT === this.parents.length) {
      this.children.push(new Uint32Array(2 * CHUNK_SIZE));
      this.parents.push(new Uint32Array(CHUNK_SIZE));
      this.versions.push(this.version);
    }
    this.high_water = slot + 1;
    this.touch(slot);
    return slot;
  }

  /** Takes a slot back. Precondition: it is live and in no tree. */
  free(slot: number): void {
    if (!this.isLive(slot)) throw new Error(`slot ${slot} is not live`);
    this.setChild(slot, LEFT, this.free_head);
    this.setChild(slot, RIGHT, 0);
    this.setPacked(slot, FREE);
    this.free_head = slot;
    this.free_count++;
    this.state_version = this.version;
  }

  // Links

  child(slot: number, side: Side): number {
    return (this.children[slot >>> CHUNK_SHIFT] as Uint32Array)[((slot & CHUNK_MASK) << 1) | side] as number;
  }

  left(slot: number): number {
    return this.child(slot, LEFT);
  }

  right(slot: number): number {
    return this.child(slot, RIGHT);
  }

  parent(slot: number): number {
    return this.packed(slot) >>> 1;
  }

  isRed(slot: number): boolean {
    return (this.packed(slot) & RED) !== 0;
  }

  private packed(slot: number): number {
    return (this.parents[slot >>> CHUNK_SHIFT] as Uint32Array)[slot & CHUNK_MASK] as number;
  }

  private setChild(slot: number, side: Side, to: number): void {
    const chunk = slot >>> CHUNK_SHIFT;
    (this.children[chunk] as Uint32Array)[((slot & CHUNK_MASK) << 1) | side] = to;
    this.versions[chunk] = this.version;
  }

  private setPacked(slot: number, packed: number): void {
    const chunk = slot >>> CHUNK_SHIFT;
    (this.parents[chunk] as Uint32Array)[slot & CHUNK_MASK] = packed;
    this.versions[chunk] = this.version;
  }

  private setParent(slot: number, to: number): void {
    this.setPacked(slot, (to << 1) | (this.packed(slot) & RED));
  }

  private setRed(slot: number): void {
    this.setPacked(slot, this.packed(slot) | RED);
  }

  private setBlack(slot: number): void {
    this.setPacked(slot, this.packed(slot) & ~RED);
  }

  /** Which child of its parent a node is. */
  private sideOf(slot: number, parent: number): Side {
    return this.child(parent, RIGHT) === slot ? RIGHT : LEFT;
  }

  /** Makes `to` the child that `from` is of `parent`; with no parent, the root is left to the caller. */
  private replaceChild(parent: number, from: number, to: number): void {
    if (parent !== 0) this.setChild(parent, this.sideOf(from, parent), to);
  }

  /** Lowers a node to the given side; its child on the other side takes its place. Colours stay. Returns the root. */
  private rotate(root: number, node: number, side: Side): number {
    const other = (1 - side) as Side;
    const riser = this.child(node, other);
    const inner = this.child(riser, side);
    const parent = this.parent(node);
    this.setChild(node, other, inner);
    if (inner !== 0) this.setParent(inner, node);
    this.replaceChild(parent, node, riser);
    this.setParent(riser, parent);
    this.setChild(riser, side, node);
    this.setParent(node, riser);
    return root === node ? riser : root;
  }

  // Trees

  /**
   * Models rb_link_node(): hangs a node, red, into the empty link of a parent; 0 for the first node of a tree.
   * insertColor() must follow before anything else touches the tree.
   */
  linkNode(node: number, parent: number, side: Side): void {
    this.setChild(node, LEFT, 0);
    this.setChild(node, RIGHT, 0);
    this.setPacked(node, (parent << 1) | RED);
    if (parent !== 0) this.setChild(parent, side, node);
  }

  /** Models rb_insert_color(): rebalances after linkNode(). Returns the root; for the first node, the node. */
  insertColor(root: number, inserted: number): number {
    let node = inserted;
    for (;;) {
      const parent = this.parent(node);
      if (parent === 0) {
        this.setBlack(node);
        return node;
      }
      if (!this.isRed(parent)) return root;
      // A red parent is not the root: there is a grandparent.
      const grandparent = this.parent(parent);
      const side = this.sideOf(parent, grandparent);
      const other = (1 - side) as Side;
      const uncle = this.child(grandparent, other);
      if (this.isRed(uncle)) {
        this.setBlack(uncle);
        this.setBlack(parent);
        this.setRed(grandparent);
        node = grandparent;
        continue;
      }
      let top = parent;
      if (this.child(parent, other) === node) {
        // An inner grandchild becomes an outer one; the root is above both.
        this.rotate(root, parent, side);
        top = node;
      }
      this.setBlack(top);
      this.setRed(grandparent);
      return this.rotate(root, grandparent, other);
    }
  }

  /** Models rb_erase(): takes a node out of its tree. Returns the root, 0 when the tree is empty. The slot stays live. */
  erase(root: number, node: number): number {
    let top = root;
    if (this.child(node, LEFT) !== 0 && this.child(node, RIGHT) !== 0) top = this.swapWithSuccessor(top, node);
    const child = this.child(node, LEFT) || this.child(node, RIGHT);
    // An only child is red and its parent black: it takes over place and colour. A black leaf leaves a path one black short.
    if (child !== 0) this.setBlack(child);
    else if (!this.isRed(node)) top = this.eraseColor(top, node);
    const parent = this.parent(node);
    this.replaceChild(parent, node, child);
    if (child !== 0) this.setParent(child, parent);
    this.setChild(node, LEFT, 0);
    this.setChild(node, RIGHT, 0);
    this.setPacked(node, 0);
    return top === node ? child : top;
  }

  /**
   * Exchanges place and colour of a node that has two children with those of its in-order successor. The node is on its way
   * out: its new child keeps the parent link that it had. Returns the root.
   */
  private swapWithSuccessor(root: number, node: number): number {
    const left = this.child(node, LEFT);
    const right = this.child(node, RIGHT);
    const place = this.packed(node);
    const successor = this.first(right);
    const successorPlace = this.packed(successor);
    const orphan = this.child(successor, RIGHT);
    this.replaceChild(place >>> 1, node, successor);
    this.setPacked(successor, place);
    this.setChild(successor, LEFT, left);
    this.setParent(left, successor);
    if (successor === right) {
      this.setChild(successor, RIGHT, node);
      this.setPacked(node, (successor << 1) | (successorPlace & RED));
    } else {
      this.setChild(successor, RIGHT, right);
      this.setParent(right, successor);
      this.setChild(successorPlace >>> 1, LEFT, node);
      this.setPacked(node, successorPlace);
    }
    this.setChild(node, LEFT, 0);
    this.setChild(node, RIGHT, orphan);
    return root === node ? successor : root;
  }

  /**
   * Rebalances for a black leaf that is about to go: every path through it counts one black less than its siblings' paths.
   * The leaf stays linked meanwhile, so that its place needs no name of its own. Returns the root.
   */
  private eraseColor(root: number, leaf: number): number {
    let top = root;
    let node = leaf;
    for (;;) {
      const parent = this.parent(node);
      if (parent === 0) return top;
      const side = this.sideOf(node, parent);
      const other = (1 - side) as Side;
      let sibling = this.child(parent, other);
      if (this.isRed(sibling)) {
        this.setBlack(sibling);
        this.setRed(parent);
        top = this.rotate(top, parent, side);
        sibling = this.child(parent, other);
      }
      let far = this.child(sibling, other);
      if (!this.isRed(far)) {
        const near = this.child(sibling, side);
        if (!this.isRed(near)) {
          this.setRed(sibling);
          if (this.isRed(parent)) {
            this.setBlack(parent);
            return top;
          }
          node = parent;
          continue;
        }
        this.rotate(top, sibling, other);
        far = sibling;
        sibling = near;
      }
      if (this.isRed(parent)) this.setRed(sibling);
      else this.setBlack(sibling);
      this.setBlack(parent);
      this.setBlack(far);
      return this.rotate(top, parent, side);
    }
  }

  /** The outermost node of a subtree on one side; 0 for an empty one. */
  private outermost(root: number, side: Side): number {
    if (root === 0) return 0;
    let node = root;
    for (let child = this.child(node, side); child !== 0; child = this.child(node, side)) node = child;
    return node;
  }

  /** The neighbour of a node in order, on one side; 0 at the end. */
  private neighbour(slot: number, side: Side): number {
    const child = this.child(slot, side);
    if (child !== 0) return this.outermost(child, (1 - side) as Side);
    let node = slot;
    let parent = this.parent(node);
    while (parent !== 0 && this.child(parent, side) === node) {
      node = parent;
      parent = this.parent(node);
    }
    return parent;
  }

  first(root: number): number {
    return this.outermost(root, LEFT);
  }

  last(root: number): number {
    return this.outermost(root, RIGHT);
  }

  next(node: number): number {
    return this.neighbour(node, RIGHT);
  }

  prev(node: number): number {
    return this.neighbour(node, LEFT);
  }
}
