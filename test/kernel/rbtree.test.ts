// Tests of src/kernel/lib/rbtree.ts and src/kernel/vfio/pfn-list.ts against a tree of objects written from the textbook
// (Cormen et al., Introduction to Algorithms, RB-INSERT and RB-DELETE with a sentinel) and against sorted arrays.

import t from 'tap';
import {
  CHUNK_SIZE,
  checkFreeSlots,
  checkRbTree,
  LEFT,
  RbLinks,
  RIGHT,
  type Side,
} from '../../src/kernel/lib/rbtree.ts';
import {
  checkPfnList,
  firstPfn,
  lowerBound,
  newPfnList,
  nextPfn,
  type PfnChunk,
  type PfnList,
  PfnSlab,
  vfioFindVpfn,
  vfioLinkPfn,
  vfioUnlinkPfn,
} from '../../src/kernel/vfio/pfn-list.ts';

const SEED = Number(process.env.SEED ?? 20150);
t.comment(`SEED=${SEED}`);

/** Random integers below n from a seed (xorshift32). */
function randomFrom(seed: number): (n: number) => number {
  let x = seed | 0 || 1;
  return (n) => {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (x >>> 0) % n;
  };
}

const PAGE_MAX = 2 ** 52 - 1;

// The textbook's tree

interface BookNode {
  key: number;
  red: boolean;
  left: BookNode;
  right: BookNode;
  up: BookNode;
}

class BookTree {
  readonly nil: BookNode;
  root: BookNode;

  constructor() {
    const nil = { key: Number.NaN, red: false } as BookNode;
    nil.left = nil.right = nil.up = nil;
    this.nil = nil;
    this.root = nil;
  }

  private leftRotate(x: BookNode): void {
    const y = x.right;
    x.right = y.left;
    if (y.left !== this.nil) y.left.up = x;
    this.transplant(x, y);
    y.left = x;
    x.up = y;
  }

  private rightRotate(x: BookNode): void {
    const y = x.left;
    x.left = y.right;
    if (y.right !== this.nil) y.right.up = x;
    this.transplant(x, y);
    y.right = x;
    x.up = y;
  }

  private transplant(u: BookNode, v: BookNode): void {
    if (u.up === this.nil) this.root = v;
    else if (u === u.up.left) u.up.left = v;
    else u.up.right = v;
    v.up = u.up;
  }

  insert(key: number): void {
    const z: BookNode = { key, red: true, left: this.nil, right: this.nil, up: this.nil };
    for (let x = this.root; x !== this.nil; x = key < x.key ? x.left : x.right) z.up = x;
    if (z.up === this.nil) this.root = z;
    else if (key < z.up.key) z.up.left = z;
    else z.up.right = z;
    this.insertFixup(z);
  }

  private insertFixup(start: BookNode): void {
    let z = start;
    while (z.up.red) {
      if (z.up === z.up.up.left) {
        const y = z.up.up.right;
        if (y.red) {
          z.up.red = false;
          y.red = false;
          z.up.up.red = true;
          z = z.up.up;
        } else {
          if (z === z.up.right) {
            z = z.up;
            this.leftRotate(z);
          }
          z.up.red = false;
          z.up.up.red = true;
          this.rightRotate(z.up.up);
        }
      } else {
        const y = z.up.up.left;
        if (y.red) {
          z.up.red = false;
          y.red = false;
          z.up.up.red = true;
          z = z.up.up;
        } else {
          if (z === z.up.left) {
            z = z.up;
            this.rightRotate(z);
          }
          z.up.red = false;
          z.up.up.red = true;
          this.leftRotate(z.up.up);
        }
      }
    }
    this.root.red = false;
  }

  delete(key: number): void {
    let z = this.root;
    while (z.key !== key) z = key < z.key ? z.left : z.right;
    let y = z;
    let wasRed = y.red;
    let x: BookNode;
    if (z.left === this.nil) {
      x = z.right;
      this.transplant(z, z.right);
    } else if (z.right === this.nil) {
      x = z.left;
      this.transplant(z, z.left);
    } else {
      y = z.right;
      while (y.left !== this.nil) y = y.left;
      wasRed = y.red;
      x = y.right;
      if (y.up === z) x.up = y;
      else {
        this.transplant(y, y.right);
        y.right = z.right;
        y.right.up = y;
      }
      this.transplant(z, y);
      y.left = z.left;
      y.left.up = y;
      y.red = z.red;
    }
    if (!wasRed) this.deleteFixup(x);
  }

  private deleteFixup(start: BookNode): void {
    let x = start;
    while (x !== this.root && !x.red) {
      if (x === x.up.left) {
        let w = x.up.right;
        if (w.red) {
          w.red = false;
          x.up.red = true;
          this.leftRotate(x.up);
          w = x.up.right;
        }
        if (!w.left.red && !w.right.red) {
          w.red = true;
          x = x.up;
        } else {
          if (!w.right.red) {
            w.left.red = false;
            w.red = true;
            this.rightRotate(w);
            w = x.up.right;
          }
          w.red = x.up.red;
          x.up.red = false;
          w.right.red = false;
          this.leftRotate(x.up);
          x = this.root;
        }
      } else {
        let w = x.up.left;
        if (w.red) {
          w.red = false;
          x.up.red = true;
          this.rightRotate(x.up);
          w = x.up.left;
        }
        if (!w.right.red && !w.left.red) {
          w.red = true;
          x = x.up;
        } else {
          if (!w.left.red) {
            w.right.red = false;
            w.red = true;
            this.leftRotate(w);
            w = x.up.left;
          }
          w.red = x.up.red;
          x.up.red = false;
          w.left.red = false;
          this.rightRotate(x.up);
          x = this.root;
        }
      }
    }
    x.red = false;
  }
}

/** The first difference of keys, colours or shape between a tree of slots and the textbook's; null when there is none. */
function difference(
  links: RbLinks,
  slot: number,
  keyOf: (slot: number) => number,
  book: BookTree,
  node = book.root,
): string | null {
  if (slot === 0 || node === book.nil) {
    return slot === 0 && node === book.nil ? null : `slot ${slot} against key ${node.key}: one of them is null`;
  }
  if (keyOf(slot) !== node.key) return `key ${keyOf(slot)}, expected ${node.key}`;
  if (links.isRed(slot) !== node.red) return `key ${node.key} is ${node.red ? 'black' : 'red'}`;
  return (
    difference(links, links.left(slot), keyOf, book, node.left) ??
    difference(links, links.right(slot), keyOf, book, node.right)
  );
}

const printBook = (book: BookTree, node = book.root): string =>
  node === book.nil
    ? '.'
    : `${node.key}${node.red ? 'r' : 'b'}(${printBook(book, node.left)} ${printBook(book, node.right)})`;
const printTree = (links: RbLinks, slot: number, keyOf: (slot: number) => number): string =>
  slot === 0
    ? '.'
    : `${keyOf(slot)}${links.isRed(slot) ? 'r' : 'b'}(${printTree(links, links.left(slot), keyOf)} ${printTree(links, links.right(slot), keyOf)})`;

// A tree of numbers, used as the owner of any RbLinks would

class NumberTree {
  readonly links = new RbLinks();
  readonly keys: number[] = [];
  readonly book = new BookTree();
  root = 0;
  count = 0;
  readonly keyOf = (slot: number) => this.keys[slot] as number;

  insert(key: number): number {
    let parent = 0;
    let side: Side = LEFT;
    for (let node = this.root; node !== 0; node = this.links.child(node, side)) {
      parent = node;
      side = key < this.keyOf(node) ? LEFT : RIGHT;
    }
    const slot = this.links.alloc();
    this.keys[slot] = key;
    this.links.linkNode(slot, parent, side);
    this.root = this.links.insertColor(this.root, slot);
    this.count++;
    this.book.insert(key);
    return slot;
  }

  find(key: number): number {
    let node = this.root;
    while (node !== 0 && this.keyOf(node) !== key) node = this.links.child(node, key < this.keyOf(node) ? LEFT : RIGHT);
    return node;
  }

  erase(key: number): void {
    const slot = this.find(key);
    this.root = this.links.erase(this.root, slot);
    this.links.free(slot);
    this.count--;
    this.book.delete(key);
  }

  check(): string[] {
    return checkRbTree(this.links, this.root, this.count, (a, b) => this.keyOf(a) < this.keyOf(b));
  }

  /** Throws where the tree is unsound or differs from the textbook's. */
  verify(when: string): void {
    const wrong = this.check()[0] ?? difference(this.links, this.root, this.keyOf, this.book);
    if (wrong !== null) throw new Error(`${when} (SEED=${SEED}): ${wrong}`);
  }
}

function* permutations(keys: number[]): Iterable<number[]> {
  if (keys.length === 0) yield [];
  for (const key of keys) for (const rest of permutations(keys.filter((other) => other !== key))) yield [key, ...rest];
}

const upTo = (n: number) => Array.from({ length: n }, (_, i) => i);
const ORDERS: Record<string, (n: number) => number[]> = {
  forward: upTo,
  backward: (n) => upTo(n).reverse(),
  checkerboard: (n) => [...upTo(n).filter((i) => i % 2 === 0), ...upTo(n).filter((i) => i % 2 === 1)],
  'prime stride': (n) => upTo(n).map((i) => (i * 7919) % n),
};

t.test('insertColor and erase: worked examples of the textbook', async (t) => {
  const tree = new NumberTree();
  for (const key of [41, 38, 31, 12, 19, 8]) tree.insert(key);
  t.equal(
    printTree(tree.links, tree.root, tree.keyOf),
    '38b(19r(12b(8r(. .) .) 31b(. .)) 41b(. .))',
    'after six inserts',
  );
  const after: Record<number, string> = {
    8: '38b(19r(12b(. .) 31b(. .)) 41b(. .))',
    12: '38b(19b(. 31r(. .)) 41b(. .))',
    19: '38b(31b(. .) 41b(. .))',
    31: '38b(. 41r(. .))',
    38: '41b(. .)',
    41: '.',
  };
  for (const key of [8, 12, 19, 31, 38, 41]) {
    tree.erase(key);
    t.equal(printTree(tree.links, tree.root, tree.keyOf), after[key], `after ${key} is erased`);
    t.equal(printBook(tree.book), after[key], 'the reference agrees');
  }
});

t.test(
  'every order of inserting and erasing 5 keys, and every order of inserting 7: shape and colours of the textbook',
  async (t) => {
    let sequences = 0;
    const erases = [...permutations(upTo(5))];
    for (const inserts of permutations(upTo(5))) {
      for (const order of erases) {
        const tree = new NumberTree();
        for (const key of inserts) tree.insert(key);
        for (const key of order) {
          tree.erase(key);
          tree.verify(`inserted ${inserts}, erased ${order} up to ${key}`);
        }
        sequences++;
      }
    }
    for (const inserts of permutations(upTo(7))) {
      for (const order of [inserts, upTo(7), upTo(7).reverse()]) {
        const tree = new NumberTree();
        for (const key of inserts) {
          tree.insert(key);
          tree.verify(`inserting ${inserts} up to ${key}`);
        }
        for (const key of order) {
          tree.erase(key);
          tree.verify(`inserted ${inserts}, erased ${order} up to ${key}`);
        }
        sequences++;
      }
    }
    t.equal(sequences, 120 * 120 + 3 * 5040);
  },
);

for (const [name, order] of Object.entries(ORDERS)) {
  t.test(`${name} insertion, erased in each order: shape and colours after every step`, async (t) => {
    const n = 300;
    for (const [eraseName, eraseOrder] of Object.entries(ORDERS)) {
      const tree = new NumberTree();
      for (const key of order(n)) {
        tree.insert(key);
        tree.verify(`${name} insert of ${key}`);
      }
      const forward = [];
      for (let slot = tree.links.first(tree.root); slot !== 0; slot = tree.links.next(slot))
        forward.push(tree.keyOf(slot));
      t.same(forward, upTo(n), 'first and next give every key ascending');
      const backward = [];
      for (let slot = tree.links.last(tree.root); slot !== 0; slot = tree.links.prev(slot))
        backward.push(tree.keyOf(slot));
      t.same(backward, upTo(n).reverse(), 'last and prev give every key descending');
      for (const key of eraseOrder(n)) {
        tree.erase(key);
        tree.verify(`${name} insert, ${eraseName} erase of ${key}`);
      }
      t.equal(tree.root, 0, `empty after ${eraseName} erase`);
      t.equal(tree.links.liveCount, 0);
    }
  });
}

t.test('many trees of random operations: shape and colours of the textbook after every step', async (t) => {
  const random = randomFrom(SEED);
  let steps = 0;
  for (let round = 0; round < 200; round++) {
    const tree = new NumberTree();
    const span = 2 + random(120);
    for (let step = 0; step < 300; step++, steps++) {
      const key = random(span);
      if (tree.find(key) === 0) tree.insert(key);
      else tree.erase(key);
      tree.verify(`round ${round} step ${step}`);
    }
  }
  t.equal(steps, 60_000);
});

// The records

const keyOf = (slab: PfnSlab) => (slot: number) => slab.iova(slot);

/** Position of the first entry that is not below the key. */
function position(sorted: number[], key: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if ((sorted[middle] as number) < key) low = middle + 1;
    else high = middle;
  }
  return low;
}

function verifyList(slab: PfnSlab, list: PfnList, sorted: number[], when: string): void {
  let wrong = checkPfnList(slab, list)[0] ?? checkFreeSlots(slab.links)[0];
  if (list.count !== sorted.length) wrong ??= `count ${list.count}, expected ${sorted.length}`;
  let i = 0;
  for (let slot = firstPfn(slab, list); slot !== 0; slot = nextPfn(slab, slot), i++) {
    if (slab.iova(slot) !== sorted[i]) wrong ??= `record ${i} has iova ${slab.iova(slot)}, expected ${sorted[i]}`;
    if (slab.pfn(slot) !== PAGE_MAX - slab.iova(slot)) wrong ??= `record ${i} has pfn ${slab.pfn(slot)}`;
  }
  if (wrong !== undefined) throw new Error(`${when} (SEED=${SEED}): ${wrong}`);
}

t.test(
  'Tree: 100,000 random operations against a sorted array, the whole tree checked after each of the first 10,000 and at intervals after; bytes per record measured and printed',
  async (t) => {
    const random = randomFrom(SEED + 1);
    const slab = new PfnSlab();
    const list = newPfnList(7);
    const book = new BookTree();
    const sorted: number[] = [];
    const reached = { link: 0, unlink: 0, hit: 0, miss: 0, bound: 0, drained: 0 };
    const verify = (when: string) => {
      verifyList(slab, list, sorted, when);
      const wrong = difference(slab.links, list.root, keyOf(slab), book);
      if (wrong !== null) throw new Error(`${when} (SEED=${SEED}): ${wrong}`);
    };
    let span = 700;
    let growing = true;
    let key = 0;
    for (let n = 1; n <= 100_000; n++) {
      if (n === 10_000) span = 60_000;
      // Runs of neighbours (as drivers pin) and single keys; phases that grow until most keys are there, and shrink to none.
      key = random(4) === 0 ? random(span) : (key + 1) % span;
      const at = position(sorted, key);
      const present = sorted[at] === key;
      const slot = vfioFindVpfn(slab, list, key);
      if ((slot !== 0) !== present) throw new Error(`find of ${key} at ${n} (SEED=${SEED}): slot ${slot}`);
      reached[present ? 'hit' : 'miss']++;
      if (random(10) === 0) {
        const bound = lowerBound(slab, list, key);
        if ((bound === 0 ? undefined : slab.iova(bound)) !== sorted[at])
          throw new Error(`lowerBound of ${key} at ${n} (SEED=${SEED})`);
        reached.bound++;
      }
      if (!present && (growing || random(4) === 0)) {
        const linked = vfioLinkPfn(slab, list, key, PAGE_MAX - key);
        if (slab.ref_count(linked) !== 1) throw new Error(`a new record has ref_count ${slab.ref_count(linked)}`);
        sorted.splice(at, 0, key);
        book.insert(key);
        reached.link++;
      } else if (sorted.length > 0 && (present ? !growing || random(4) === 0 : !growing)) {
        const victim = present ? at : random(sorted.length);
        const iova = sorted[victim] as number;
        vfioUnlinkPfn(slab, list, vfioFindVpfn(slab, list, iova));
        sorted.splice(victim, 1);
        book.delete(iova);
        reached.unlink++;
      }
      if (sorted.length === 0) reached.drained++;
      if (growing ? sorted.length > span * 0.6 : sorted.length === 0) growing = !growing;
      if (n <= 10_000 || n % 1_000 === 0) verify(`operation ${n}`);
    }
    verify('at the end');
    t.comment(`SEED=${SEED} ${JSON.stringify(reached)}, ${sorted.length} records left`);
    for (const [what, times] of Object.entries(reached)) t.ok(times > 0, `${what} was reached`);

    const records = 100 * CHUNK_SIZE - 1;
    for (const offset of [0, 0x800]) {
      const before = process.memoryUsage().arrayBuffers;
      const measured = new PfnSlab();
      const all = newPfnList(1);
      for (let i = 0; i < records; i++) vfioLinkPfn(measured, all, i, i, offset);
      const bytes = (process.memoryUsage().arrayBuffers - before) / records;
      t.comment(
        `bytes per record: ${bytes.toFixed(2)} with ${offset === 0 ? 'no offsets' : 'offsets'} (${records} records)`,
      );
      t.ok(bytes <= 40, 'at most 40 bytes a record');
      t.ok(bytes >= 32, 'the measurement saw the columns');
      t.equal(measured.count, records);
    }
  },
);

class CountingSlab extends PfnSlab {
  comparisons = 0;
  override compareTo(slot: number, iova: number, offset: number): number {
    this.comparisons++;
    return super.compareTo(slot, iova, offset);
  }
}

t.test(
  'vfioLinkPfn: the hint changes no shape, and spares ascending inserts, finds and unlinks the descent',
  async (t) => {
    const random = randomFrom(SEED + 2);
    const hinted = new PfnSlab();
    const plain = new PfnSlab();
    const a = newPfnList(1);
    const b = newPfnList(1);
    const book = new BookTree();
    for (let run = 0; run < 400; run++) {
      let key = random(50_000);
      for (let i = random(12); i >= 0; i--, key++) {
        if (vfioFindVpfn(hinted, a, key) !== 0) continue;
        vfioLinkPfn(hinted, a, key, key);
        // A hint at the wrong end: every insert below the highest record descends from the root.
        [b.hint, b.hint_next] = [plain.links.last(b.root), 0];
        vfioLinkPfn(plain, b, key, key);
        book.insert(key);
      }
      for (let i = random(6); i > 0; i--) {
        const slot = lowerBound(hinted, a, random(50_000));
        if (slot === 0) continue;
        const iova = hinted.iova(slot);
        vfioUnlinkPfn(hinted, a, slot);
        vfioUnlinkPfn(plain, b, vfioFindVpfn(plain, b, iova));
        book.delete(iova);
      }
      const wrong =
        difference(hinted.links, a.root, keyOf(hinted), book) ?? difference(plain.links, b.root, keyOf(plain), book);
      if (wrong !== null) throw new Error(`run ${run} (SEED=${SEED}): ${wrong}`);
    }
    t.ok(a.count > 1000, `${a.count} records`);
    t.same(
      [...hinted.sections()].slice(1).map((section) => section.data()),
      [...plain.sections()].slice(1).map((section) => section.data()),
      'every chunk is the same with and without hint',
    );

    const slab = new CountingSlab();
    const list = newPfnList(1);
    const n = 50_000;
    vfioLinkPfn(slab, list, 0, 0);
    vfioLinkPfn(slab, list, 10 * n, 0);
    slab.comparisons = 0;
    for (let iova = 1; iova <= n; iova++) {
      if (vfioFindVpfn(slab, list, iova) !== 0) throw new Error(`found ${iova} before it was linked`);
      vfioLinkPfn(slab, list, iova, iova);
    }
    t.ok(slab.comparisons <= 5 * n, `${slab.comparisons / n} comparisons for find and link in a gap, ascending`);
    slab.comparisons = 0;
    for (let iova = 1; iova <= n; iova++) vfioUnlinkPfn(slab, list, vfioFindVpfn(slab, list, iova));
    t.ok(slab.comparisons <= 3 * n, `${slab.comparisons / n} comparisons for find and unlink, ascending`);
    t.equal(list.count, 2);
    t.same(checkPfnList(slab, list), []);
  },
);

t.test('vfioFindVpfn, lowerBound: change nothing', async (t) => {
  const slab = new PfnSlab();
  const list = newPfnList(1);
  for (const iova of [5, 1, 9, 3, 7]) vfioLinkPfn(slab, list, iova, iova);
  slab.version = 99;
  const before = structuredClone({ list, sections: [...slab.sections()].map((s) => [s.key, s.version, s.data()]) });
  for (let iova = 0; iova < 12; iova++) {
    t.equal(vfioFindVpfn(slab, list, iova) !== 0, iova % 2 === 1 && iova < 10, `find ${iova}`);
    const bound = lowerBound(slab, list, iova);
    t.equal(bound && slab.iova(bound), iova < 10 ? iova | 1 : 0, `lower bound of ${iova}`);
  }
  t.same({ list, sections: [...slab.sections()].map((s) => [s.key, s.version, s.data()]) }, before);
});

t.test('offset: compared after the page number, its column made when one is not 0', async (t) => {
  const slab = new PfnSlab();
  const list = newPfnList(1);
  const chunk = () => [...slab.sections()][1]?.data() as PfnChunk;
  const aligned = vfioLinkPfn(slab, list, 10, 100);
  vfioLinkPfn(slab, list, 11, 101);
  t.equal(chunk().offset, null, 'no column for offsets of 0');
  const high = vfioLinkPfn(slab, list, 10, 102, 4095);
  const low = vfioLinkPfn(slab, list, 10, 103, 1);
  t.equal(chunk().offset?.length, CHUNK_SIZE);
  t.equal(vfioFindVpfn(slab, list, 10), aligned);
  t.equal(vfioFindVpfn(slab, list, 10, 4095), high);
  t.equal(vfioFindVpfn(slab, list, 10, 1), low);
  t.equal(vfioFindVpfn(slab, list, 10, 2), 0, 'another offset in the same page is another iova');
  t.equal(lowerBound(slab, list, 10), aligned);
  t.equal(lowerBound(slab, list, 10, 2), high);
  const order = [];
  for (let slot = firstPfn(slab, list); slot !== 0; slot = nextPfn(slab, slot))
    order.push([slab.iova(slot), slab.offset(slot)]);
  t.same(order, [
    [10, 0],
    [10, 1],
    [10, 4095],
    [11, 0],
  ]);
  t.same(checkPfnList(slab, list), []);
  vfioUnlinkPfn(slab, list, high);
  t.equal(vfioLinkPfn(slab, list, 12, 1), high, 'the slot is used again');
  t.equal(slab.offset(high), 0, 'without the offset of its last use');
});

t.test('slots: the one freed last is used first, 0 never, a second free is refused', async (t) => {
  const slab = new PfnSlab();
  const list = newPfnList(3);
  const slots = upTo(10).map((iova) => vfioLinkPfn(slab, list, iova, iova));
  t.same(slots, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
  for (const slot of slots) slab.setRefCount(slot, 5);
  for (const slot of [4, 9, 2]) vfioUnlinkPfn(slab, list, slot);
  t.equal(slab.count, 7);
  t.same([...slab.slotsOfChunk(0)], [1, 3, 5, 6, 7, 8, 10]);
  t.same(checkFreeSlots(slab.links), []);
  t.throws(() => slab.links.free(9), { message: 'slot 9 is not live' });
  t.throws(() => slab.links.free(0), { message: 'slot 0 is not live' });
  t.throws(() => slab.links.free(11), { message: 'slot 11 is not live' });
  const other = newPfnList(4);
  t.same(
    [20, 21, 22, 23].map((iova) => vfioLinkPfn(slab, other, iova, iova)),
    [2, 9, 4, 11],
  );
  t.same(
    [2, 9, 4, 11].map((slot) => slab.ref_count(slot)),
    [1, 1, 1, 1],
    'a new record has ref_count 1',
  );
  t.same(
    [...slab.slotsOfChunk(0)].map((slot) => slab.dma(slot)),
    [3, 4, 3, 4, 3, 3, 3, 3, 4, 3, 4],
  );
  t.same([...checkPfnList(slab, list), ...checkPfnList(slab, other)], []);
});

t.test('ref_count: wraps modulo 2^32 both ways, and a record at 0 stays', async (t) => {
  const slab = new PfnSlab();
  const list = newPfnList(1);
  const slot = vfioLinkPfn(slab, list, 1, 1);
  t.equal(slab.addRefCount(slot, 1), 2);
  t.equal(slab.setRefCount(slot, 2 ** 32 - 1), 2 ** 32 - 1);
  t.equal(slab.addRefCount(slot, 1), 0);
  t.equal(slab.ref_count(slot), 0);
  t.same([...slab.slotsOfChunk(0)], [slot], 'a ref_count of 0 does not make a slot free');
  t.same(checkPfnList(slab, list), []);
  t.equal(slab.addRefCount(slot, -1), 2 ** 32 - 1);
  t.equal(slab.ref_count(slot), 2 ** 32 - 1);
});

t.test('iova and pfn: page numbers from 0 to 2^52 - 1 are exact', async (t) => {
  const edges = [0, 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 51, 2 ** 51 + 1, PAGE_MAX - 1, PAGE_MAX];
  for (const order of [edges, [...edges].reverse()]) {
    const slab = new PfnSlab();
    const list = newPfnList(2 ** 32 - 1);
    for (const iova of order) vfioLinkPfn(slab, list, iova, PAGE_MAX - iova);
    verifyList(slab, list, edges, 'edges');
    for (const iova of edges) {
      const slot = vfioFindVpfn(slab, list, iova);
      t.same([slab.iova(slot), slab.pfn(slot), slab.dma(slot)], [iova, PAGE_MAX - iova, 2 ** 32 - 1]);
      t.equal(lowerBound(slab, list, iova), slot);
    }
    t.equal(vfioFindVpfn(slab, list, 2 ** 51 - 1), 0);
    t.equal(lowerBound(slab, list, 2 ** 51 + 2), vfioFindVpfn(slab, list, PAGE_MAX - 1));
  }
});

/** Several lists in one slab, changed at random. */
class Lists {
  readonly records: Map<number, number>[];
  readonly lists: PfnList[];

  constructor(
    readonly slab: PfnSlab,
    lists: number,
  ) {
    this.records = upTo(lists).map(() => new Map());
    this.lists = upTo(lists).map((dma) => newPfnList(100 + dma));
  }

  step(random: (n: number) => number, span: number): void {
    const which = random(this.lists.length);
    const list = this.lists[which] as PfnList;
    const records = this.records[which] as Map<number, number>;
    const iova = random(span);
    const slot = vfioFindVpfn(this.slab, list, iova);
    if (slot === 0) {
      vfioLinkPfn(this.slab, list, iova, PAGE_MAX - iova);
      records.set(iova, 1);
    } else if (random(2) === 0) records.set(iova, this.slab.addRefCount(slot, 1));
    else {
      vfioUnlinkPfn(this.slab, list, slot);
      records.delete(iova);
    }
  }
}

t.test(
  'PfnSlab: lists that share a slab stay apart, and a chunk lists its live records with their vfio_dma',
  async (t) => {
    const random = randomFrom(SEED + 3);
    const lists = new Lists(new PfnSlab(), 5);
    const { slab } = lists;
    for (let n = 1; n <= 40_000; n++) {
      lists.step(random, 3000);
      if (n % 4000 !== 0) continue;
      for (const [i, list] of lists.lists.entries()) {
        const iovas = [...(lists.records[i] as Map<number, number>).keys()].sort((a, b) => a - b);
        verifyList(slab, list, iovas, `operation ${n}, list ${i}`);
      }
      const expected = lists.records.flatMap((records, i) =>
        [...records].map(([iova, refs]) => `${100 + i} ${iova} ${refs}`),
      );
      const listed = [];
      for (let chunk = 0; chunk < slab.chunkCount; chunk++) {
        for (const slot of slab.slotsOfChunk(chunk)) {
          if (slot < slab.firstSlot(chunk) || slot >= slab.firstSlot(chunk + 1))
            t.fail(`slot ${slot} in chunk ${chunk}`);
          listed.push(`${slab.dma(slot)} ${slab.iova(slot)} ${slab.ref_count(slot)}`);
        }
      }
      t.same(listed.sort(), expected.sort(), `operation ${n}`);
    }
    t.ok(slab.chunkCount > 1, 'more than one chunk was used');
  },
);

const bytesOf = (data: unknown): Buffer =>
  Buffer.concat(
    Object.values(data as Record<string, unknown>).map((part) =>
      ArrayBuffer.isView(part) ? Buffer.from(part.buffer, part.byteOffset, part.byteLength) : Buffer.from(String(part)),
    ),
  );

t.test(
  'version: every section that an operation changes has the version of that operation, and no section that it leaves',
  async (t) => {
    const random = randomFrom(SEED + 4);
    const lists = new Lists(new PfnSlab(), 2);
    const { slab } = lists;
    slab.version = 1;
    for (let n = 0; n < 30_000; n++) lists.step(random, 20_000);
    t.ok(slab.chunkCount >= 3, `${slab.chunkCount} chunks`);
    let before = new Map([...slab.sections()].map((s) => [s.key, bytesOf(s.data())]));
    let changed = 0;
    let left = 0;
    for (let seq = 2; seq < 300; seq++) {
      slab.version = seq;
      lists.step(random, 20_000);
      const after = new Map([...slab.sections()].map((s) => [s.key, bytesOf(s.data())]));
      for (const { key, version } of slab.sections()) {
        const same = (before.get(key) ?? Buffer.alloc(0)).equals(after.get(key) as Buffer);
        if (!same && version !== seq) t.fail(`${key} changed at ${seq} and has version ${version}`);
        if (same && version !== seq) left++;
        if (!same) changed++;
      }
      before = after;
    }
    t.ok(changed > 300, `${changed} sections were changed`);
    t.ok(left > 300, `${left} sections were left alone and kept their version`);
  },
);

t.test('sections and restore: the same slab again, independent of the first, and the same from then on', async (t) => {
  const random = randomFrom(SEED + 5);
  const first = new Lists(new PfnSlab(), 3);
  for (let n = 1; n <= 20_000; n++) {
    first.slab.version = n;
    first.step(random, 6000);
  }
  vfioLinkPfn(first.slab, first.lists[0] as PfnList, 7000, 1, 0x123);
  const saved = structuredClone(
    [...first.slab.sections()].map(({ key, version, data }) => ({ key, version, data: data() })),
  );
  const untouched = structuredClone(saved);
  const foreign = { key: 'operations', version: 5, data: { high_water: 1 } };
  const second = new Lists(PfnSlab.restore([foreign, ...saved].reverse()), 0);
  second.lists.push(...structuredClone(first.lists));
  second.records.push(...structuredClone(first.records));
  const all = (lists: Lists) => [...lists.slab.sections()].map((s) => [s.key, s.version, s.data()]);
  t.same(all(second), all(first), 'every section and version');
  t.same(
    second.lists.flatMap((list) => checkPfnList(second.slab, list)),
    [],
  );
  t.same(checkFreeSlots(second.slab.links), []);

  const seed = random(2 ** 31);
  for (const lists of [first, second]) {
    const again = randomFrom(seed);
    lists.slab.version = 20_001;
    for (let n = 0; n < 10_000; n++) lists.step(again, 9000);
    const found = vfioFindVpfn(lists.slab, lists.lists[0] as PfnList, 7000, 0x123);
    t.equal(lists.slab.offset(found), 0x123, 'the offset came through');
  }
  t.same(all(second), all(first), 'the same after the same operations');
  t.same(second.lists, first.lists);
  t.same(saved, untouched, 'the restored slab writes into copies');

  const empty = PfnSlab.restore([...new PfnSlab().sections()].map((section) => ({ ...section, data: section.data() })));
  t.equal(empty.count, 0);
  t.equal(vfioLinkPfn(empty, newPfnList(1), 1, 1), 1);
  t.throws(() => PfnSlab.restore(saved.filter((s) => s.key !== 'pfn/1')), { message: 'section pfn/1 is missing' });
  const chunks = saved.length - 1;
  t.throws(() => PfnSlab.restore(saved.filter((s) => s.key === 'pfn/state')), {
    message: `0 chunks of links, not ${chunks}`,
  });
  t.throws(() => PfnSlab.restore(saved.filter((s) => s.key !== 'pfn/state')), {
    message: `${chunks} chunks of links, not 0`,
  });
  const last = `pfn/${chunks - 1}`;
  t.throws(() => PfnSlab.restore(saved.filter((s) => s.key !== last)), {
    message: `${chunks - 1} chunks of links, not ${chunks}`,
  });
  t.throws(
    () =>
      PfnSlab.restore(
        saved.map((s) =>
          s.key === 'pfn/0' ? { ...s, data: { ...(s.data as PfnChunk), pfn: new Float64Array(3) } } : s,
        ),
      ),
    { message: 'a column of vfio_pfn records has the wrong length' },
  );
});

t.test('checkPfnList: names each kind of damage', async (t) => {
  // Slots 1 to 7 with iovas 10 to 70: slot 2 is the root, 4 its right child and red, with children 3 and 6; 6 has 5 and 7.
  const damaged = (damage: (chunk: PfnChunk, list: PfnList) => void): string[] => {
    const slab = new PfnSlab();
    const list = newPfnList(1);
    for (let i = 1; i <= 7; i++) vfioLinkPfn(slab, list, 10 * i, i);
    damage([...slab.sections()][1]?.data() as PfnChunk, list);
    return checkPfnList(slab, list);
  };
  t.same(
    damaged(() => {}),
    [],
    'no damage, no violation',
  );
  const set = (column: { [i: number]: number }, i: number, value: number) => {
    column[i] = value;
  };
  t.same(
    damaged((c) => set(c.iova, 3, 50)),
    ['slot 3 is not before slot 4'],
    'order',
  );
  t.same(
    damaged((c) => set(c.parent, 1, 6 << 1)),
    ['slot 1 has parent 6, not 2'],
    'parent link',
  );
  t.same(
    damaged((c) => set(c.parent, 2, 1)),
    ['slot 2 is the root and red', 'slots 2 and 4 are parent and child and red'],
    'red root',
  );
  t.match(
    damaged((c) => set(c.parent, 3, (4 << 1) | 1)),
    ['slots 4 and 3 are parent and child and red', /path has/],
    'red child of a red parent',
  );
  t.match(
    damaged((c) => set(c.parent, 4, 2 << 1)),
    [/below slot \d a path has 3 black nodes, not 2/],
    'black height',
  );
  t.same(
    damaged((c) => set(c.child, 2 * 3 + 1, 9)),
    ['slot 9, a child of 3, is not in use'],
    'link to a free slot',
  );
  t.match(
    damaged((c) => set(c.child, 2 * 7 + 1, 2)),
    ['slot 2 is reached twice'],
    'cycle',
  );
  t.same(
    damaged((c) => set(c.child, 2 * 6 + 1, 0)),
    ['the tree of slot 2 has 6 nodes, not 7'],
    'lost leaf',
  );
  t.same(
    damaged((_, list) => Object.assign(list, { count: 8 })),
    ['the tree of slot 2 has 7 nodes, not 8'],
    'count',
  );
  t.same(
    damaged((c) => set(c.dma, 5, 2)),
    ['slot 5 belongs to vfio_dma 2, not 1'],
    'owner',
  );
  t.same(
    damaged((_, list) => Object.assign(list, { hint: 3 })),
    ['hint 3 and 0 are not neighbours'],
    'hint',
  );
  t.same(
    damaged((_, list) => Object.assign(list, { hint: 0, hint_next: 4 })),
    ['hint 0 and 4 are not neighbours'],
    'hint before the first',
  );

  const links = new RbLinks();
  for (let i = 0; i < 4; i++) links.alloc();
  for (const slot of [1, 2, 3]) links.free(slot);
  const { child } = links.linkColumns(0);
  child[2 * 2] = 3;
  t.same(checkFreeSlots(links), ['the chain of free slots is longer than 3'], 'cycle in the free chain');
  child[2 * 2] = 4;
  t.same(checkFreeSlots(links), ['slot 4 is chained as free but in use']);
  child[2 * 2] = 0;
  t.same(checkFreeSlots(links), ['the chain of free slots has 2 slots, not 3']);
});
