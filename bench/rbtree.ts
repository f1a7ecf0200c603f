// Measures the vfio_pfn records of src/kernel/vfio/pfn-list.ts against a Map and a sorted array, all in the same run:
// insert, find and erase in ascending and in random order, nanoseconds an operation and bytes a record.
// Run: node --import=tsx bench/rbtree.ts [records, default 1000000]

import { setTimeout } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { newPfnList, PfnSlab, vfioFindVpfn, vfioLinkPfn, vfioUnlinkPfn } from '../src/kernel/vfio/pfn-list.ts';

interface Subject {
  insert(iova: number, pfn: number): void;
  find(iova: number): number;
  erase(iova: number): void;
}

const RECORDS = Number(process.argv[2] ?? 1_000_000);
/** Random inserts and erases in a sorted array move half of it each: fewer of them tell enough. */
const ARRAY_RECORDS = Math.min(RECORDS, 100_000);

function pfnSlab(): Subject {
  const slab = new PfnSlab();
  const list = newPfnList(1);
  return {
    insert: (iova, pfn) => vfioLinkPfn(slab, list, iova, pfn),
    find: (iova) => slab.pfn(vfioFindVpfn(slab, list, iova)),
    erase: (iova) => vfioUnlinkPfn(slab, list, vfioFindVpfn(slab, list, iova)),
  };
}

/** No order: what a plain program would keep, without walks in address order. */
function mapOfObjects(): Subject {
  const map = new Map<number, { iova: number; pfn: number; ref_count: number }>();
  return {
    insert: (iova, pfn) => map.set(iova, { iova, pfn, ref_count: 1 }),
    find: (iova) => map.get(iova)?.pfn ?? -1,
    erase: (iova) => map.delete(iova),
  };
}

function sortedArray(): Subject {
  const keys: number[] = [];
  const pfns: number[] = [];
  const position = (iova: number) => {
    let low = 0;
    let high = keys.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((keys[middle] as number) < iova) low = middle + 1;
      else high = middle;
    }
    return low;
  };
  return {
    insert: (iova, pfn) => {
      const at = position(iova);
      keys.splice(at, 0, iova);
      pfns.splice(at, 0, pfn);
    },
    find: (iova) => pfns[position(iova)] as number,
    erase: (iova) => {
      const at = position(iova);
      keys.splice(at, 1);
      pfns.splice(at, 1);
    },
  };
}

function shuffled(n: number): Float64Array {
  const order = Float64Array.from({ length: n }, (_, i) => i);
  let x = 20150;
  for (let i = n - 1; i > 0; i--) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    const j = (x >>> 0) % (i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

/** Bytes in use: array buffers are given back a while after the collection that finds them unused. */
async function memory(): Promise<number> {
  collectGarbage();
  await setTimeout(50);
  collectGarbage();
  const { heapUsed, arrayBuffers } = process.memoryUsage();
  return heapUsed + arrayBuffers;
}

function nsPerOperation(order: Float64Array, operate: (iova: number) => void): string {
  const start = process.hrtime.bigint();
  for (const iova of order) operate(iova);
  return (Number(process.hrtime.bigint() - start) / order.length).toFixed(0);
}

async function measure(make: () => Subject, order: Float64Array, name: string, orderName: string) {
  const before = await memory();
  const subject = make();
  const insert = nsPerOperation(order, (iova) => subject.insert(iova, iova + 1));
  const bytes = (((await memory()) - before) / order.length).toFixed(1);
  let wrong = 0;
  const find = nsPerOperation(order, (iova) => {
    if (subject.find(iova) !== iova + 1) wrong++;
  });
  const erase = nsPerOperation(order, (iova) => subject.erase(iova));
  if (wrong > 0) throw new Error(`${name}: ${wrong} records were not found`);
  return {
    what: name,
    order: orderName,
    records: order.length,
    'insert ns': insert,
    'find ns': find,
    'erase ns': erase,
    'bytes a record': bytes,
  };
}

const SUBJECTS: [string, () => Subject, number][] = [
  ['PfnSlab', pfnSlab, RECORDS],
  ['Map of objects', mapOfObjects, RECORDS],
  ['sorted arrays', sortedArray, ARRAY_RECORDS],
];

const ascending = (n: number) => Float64Array.from({ length: n }, (_, i) => i);
// One small round first, so that every subject is measured as compiled code.
for (const [name, make] of SUBJECTS) await measure(make, shuffled(20_000), name, 'warm-up');
const rows = [];
for (const [name, make, n] of SUBJECTS) {
  rows.push(await measure(make, ascending(n), name, 'ascending'), await measure(make, shuffled(n), name, 'random'));
}
console.table(rows);
