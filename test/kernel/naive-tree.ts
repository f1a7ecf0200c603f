// A red-black tree as textbooks have it (Cormen et al., chapter 13), with node objects and a sentinel: kernels up to 5.11 take
// the mapping that they meet first from the root, and up to 6.17 lose mappings that end at 2^64, so the shape can be seen.

export interface TreeNode<T> {
  item: T;
  red: boolean;
  left: TreeNode<T>;
  right: TreeNode<T>;
  parent: TreeNode<T>;
}

type Side = 'left' | 'right';
const other = (side: Side): Side => (side === 'left' ? 'right' : 'left');

export class NaiveTree<T> {
  /** Stands for every missing child and for the parent of the root. */
  readonly nil: TreeNode<T>;
  root: TreeNode<T>;

  /** `goesLeft`: whether a new item has its place before another one. */
  constructor(private readonly goesLeft: (item: T, other: T) => boolean) {
    const nil = { item: null, red: false } as unknown as TreeNode<T>;
    nil.left = nil;
    nil.right = nil;
    nil.parent = nil;
    this.nil = nil;
    this.root = nil;
  }

  inOrder(): T[] {
    const found: T[] = [];
    const visit = (node: TreeNode<T>): void => {
      if (node === this.nil) return;
      visit(node.left);
      found.push(node.item);
      visit(node.right);
    };
    visit(this.root);
    return found;
  }

  /** The same shape of the same items in another tree. */
  copyTo(tree: NaiveTree<T>): void {
    const copy = (node: TreeNode<T>, parent: TreeNode<T>): TreeNode<T> => {
      if (node === this.nil) return tree.nil;
      const { item, red } = node;
      const made: TreeNode<T> = { item, red, left: tree.nil, right: tree.nil, parent };
      made.left = copy(node.left, made);
      made.right = copy(node.right, made);
      return made;
    };
    tree.root = copy(this.root, tree.nil);
  }

  /** Goes down from the root as `way` says, until it says stop or there is no node; the last node where it stopped, or null. */
  descend(way: (item: T) => Side | 'stop'): T | null {
    for (let node = this.root; node !== this.nil; ) {
      const side = way(node.item);
      if (side === 'stop') return node.item;
      node = node[side];
    }
    return null;
  }

  insert(item: T): void {
    let parent = this.nil;
    let side: Side = 'left';
    for (let node = this.root; node !== this.nil; node = node[side]) {
      parent = node;
      side = this.goesLeft(item, node.item) ? 'left' : 'right';
    }
    const added: TreeNode<T> = { item, red: true, left: this.nil, right: this.nil, parent };
    if (parent === this.nil) this.root = added;
    else parent[side] = added;
    this.mendInsert(added);
  }

  private rotate(node: TreeNode<T>, side: Side): void {
    const risen = node[other(side)];
    node[other(side)] = risen[side];
    if (risen[side] !== this.nil) risen[side].parent = node;
    this.replace(node, risen);
    risen[side] = node;
    node.parent = risen;
  }

  /** Puts a subtree where another one hangs. */
  private replace(old: TreeNode<T>, by: TreeNode<T>): void {
    if (old.parent === this.nil) this.root = by;
    else if (old === old.parent.left) old.parent.left = by;
    else old.parent.right = by;
    by.parent = old.parent;
  }

  private mendInsert(added: TreeNode<T>): void {
    let node = added;
    while (node.parent.red) {
      const grandparent = node.parent.parent;
      const side: Side = node.parent === grandparent.left ? 'left' : 'right';
      const uncle = grandparent[other(side)];
      if (uncle.red) {
        node.parent.red = false;
        uncle.red = false;
        grandparent.red = true;
        node = grandparent;
        continue;
      }
      if (node === node.parent[other(side)]) {
        node = node.parent;
        this.rotate(node, side);
      }
      node.parent.red = false;
      grandparent.red = true;
      this.rotate(grandparent, other(side));
    }
    this.root.red = false;
  }

  erase(item: T): void {
    const node = this.nodeOf(this.root, item);
    if (node === null) throw new Error('the item is not in the tree');
    let removedRed = node.red;
    let risen: TreeNode<T>;
    if (node.left === this.nil) {
      risen = node.right;
      this.replace(node, risen);
    } else if (node.right === this.nil) {
      risen = node.left;
      this.replace(node, risen);
    } else {
      let next = node.right;
      while (next.left !== this.nil) next = next.left;
      removedRed = next.red;
      risen = next.right;
      if (next.parent === node) risen.parent = next;
      else {
        this.replace(next, risen);
        next.right = node.right;
        next.right.parent = next;
      }
      this.replace(node, next);
      next.left = node.left;
      next.left.parent = next;
      next.red = node.red;
    }
    if (!removedRed) this.mendErase(risen);
    this.nil.parent = this.nil;
  }

  private nodeOf(node: TreeNode<T>, item: T): TreeNode<T> | null {
    if (node === this.nil) return null;
    if (node.item === item) return node;
    return this.nodeOf(node.left, item) ?? this.nodeOf(node.right, item);
  }

  private mendErase(risen: TreeNode<T>): void {
    let node = risen;
    while (node !== this.root && !node.red) {
      const side: Side = node === node.parent.left ? 'left' : 'right';
      let sibling = node.parent[other(side)];
      if (sibling.red) {
        sibling.red = false;
        node.parent.red = true;
        this.rotate(node.parent, side);
        sibling = node.parent[other(side)];
      }
      if (!sibling.left.red && !sibling.right.red) {
        sibling.red = true;
        node = node.parent;
        continue;
      }
      if (!sibling[other(side)].red) {
        sibling[side].red = false;
        sibling.red = true;
        this.rotate(sibling, other(side));
        sibling = node.parent[other(side)];
      }
      sibling.red = node.parent.red;
      node.parent.red = false;
      sibling[other(side)].red = false;
      this.rotate(node.parent, side);
      node = this.root;
    }
    node.red = false;
  }
}
