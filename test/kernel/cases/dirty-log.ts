// Cases 114 to 122: VFIO_IOMMU_DIRTY_PAGES, and the bitmap of an unmap.

import type { Test } from 'tap';
import type { Outcome } from '../../../src/kernel/outcome.ts';
import { type Machine, PAGE, RW, setup, V } from '../machine.ts';
import { dataOf, read, write } from './access.ts';
import { errno, LOGGING, numbered } from './numbered.ts';

const log = (m: Machine, flags: 1 | 2): Outcome =>
  m.run({ op: 'dirty_pages', container: 'C', flags, argsz: null, range: null, task: null });

/** GET_BITMAP of a range: the numbers of the pages that are dirty, or the errno. */
function dirty(m: Machine, iova: bigint, size: bigint): number[] | string | undefined {
  const range = { iova, size, pgsize: PAGE, bitmap_size: 512n };
  const outcome = m.run({ op: 'dirty_pages', container: 'C', flags: 4, argsz: null, range, task: null });
  return outcome.refusal === undefined ? bitsOf(outcome.fields.bitmap) : errno(outcome);
}

const bitsOf = (bitmap: unknown): number[] =>
  [...Buffer.from(bitmap as string, 'base64')].flatMap((byte, i) =>
    [0, 1, 2, 3, 4, 5, 6, 7].filter((bit) => (byte >> bit) & 1).map((bit) => 8 * i + bit),
  );

export async function dirtyLog(t: Test): Promise<void> {
  await numbered(t, ['4.10', '5.4'], '114 dirty_pages: ENOTTY before 5.8', (t, profile) => {
    t.equal(errno(log(setup({ profile }), 1)), 'ENOTTY');
  });
  await numbered(t, LOGGING, '114 dirty_pages: nothing pinned, no IOMMU: all zero', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    t.equal(log(m, 1).ret, 0);
    t.same(dirty(m, 0x10000n, 0x4000n), []);
  });
  await numbered(
    t,
    LOGGING,
    '116 dirty_pages: a page that was pinned is dirty once, a pinned one on every GET',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      log(m, 1);
      m.pin([0x11000n]);
      m.pin([0x12000n]);
      m.unpin([0x11000n]);
      t.same(dirty(m, 0x10000n, 0x4000n), [1, 2]);
      t.same(dirty(m, 0x10000n, 0x4000n), [2]);
      m.unpin([0x12000n]);
      t.same(dirty(m, 0x10000n, 0x4000n), [2], 'pinned at the last GET');
      t.same(dirty(m, 0x10000n, 0x4000n), []);
    },
  );
  await numbered(
    t,
    LOGGING,
    '116 dirty_pages: bits count from the first page of the request; mappings join in one word',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x3000n);
      m.map(0x13000n, 0x42000n, RW, { vaddr: V + 0x100000n });
      log(m, 1);
      m.pin([0x12000n]);
      m.pin([0x13000n]);
      m.pin([0x54000n]);
      t.equal(dirty(m, 0x11000n, 0x44000n), 'EINVAL', 'the range cuts a mapping');
      t.same(dirty(m, 0x10000n, 0x45000n), [2, 3, 68]);
      t.same(
        dirty(m, 0x0n, 0x60000n),
        [18, 19, 84, 87],
        'bits that a shifted report moved past the end of a mapping stay in its last word',
      );
    },
  );
  await numbered(t, LOGGING, '117 dma_rw: a write marks the pages it touches, in 5.8 only whole ones', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x8000n);
    log(m, 1);
    t.equal(write(m, 0x11010n, new Uint8Array(16)).ret, 0);
    t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [] : [1]);
    write(m, 0x12ff8n, new Uint8Array(16));
    t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [] : [2, 3]);
    write(m, 0x14000n, new Uint8Array(0x1001));
    t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [4] : [4, 5]);
  });
  await numbered(
    t,
    LOGGING,
    '118 dirty_pages: GET before START is EINVAL, STOP is 0, START twice keeps the bits',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      t.equal(dirty(m, 0x10000n, 0x4000n), 'EINVAL');
      t.equal(log(m, 2).ret, 0);
      log(m, 1);
      m.pin([0x10000n]);
      m.unpin([0x10000n]);
      t.equal(log(m, 1).ret, 0);
      t.same(dirty(m, 0x10000n, 0x4000n), [0]);
    },
  );
  await numbered(
    t,
    LOGGING,
    '118 dirty_pages: a v1 container is EACCES; flags and sizes that do not fit are EINVAL',
    (t, profile) => {
      t.equal(errno(log(setup({ profile, v1: true }), 1)), 'EACCES');
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      log(m, 1);
      const get = (flags: number, change: Record<string, bigint>, argsz: number | null = null): string | undefined => {
        const range = { iova: 0x10000n, size: 0x4000n, pgsize: PAGE, bitmap_size: 8n, ...change };
        return errno(m.run({ op: 'dirty_pages', container: 'C', flags, argsz, range, task: 'T' }));
      };
      t.same([get(3, {}), get(8, {}), get(0, {}), get(4, {}, 47), get(4, {}, 7)], Array(5).fill('EINVAL'));
      t.same(
        [
          get(4, { pgsize: 0x2000n }),
          get(4, { bitmap_size: 0n }),
          get(4, { size: 0x4800n }),
          get(4, { iova: 0x10800n }),
        ],
        Array(4).fill('EINVAL'),
      );
      t.equal(get(4, { iova: 0xfffffffffffff000n, size: 0x2000n }), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
      t.equal(get(4, { bitmap_addr: 0x3000n }), 'EFAULT', 'nothing is mapped there');
      t.equal(get(4, { bitmap_addr: 0x7fffffffffffn }), 'EINVAL', 'no address of user space');
    },
  );
  await numbered(
    t,
    LOGGING,
    '120 dirty_pages: an IOMMU-backed group that never pinned dirties all, after a pin only what was pinned',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      log(m, 1);
      t.same(dirty(m, 0x10000n, 0x4000n), [0, 1, 2, 3]);
      m.device('DI', 'GI');
      t.equal(errno(m.pin([0x11000n], { device: 'DI' })), profile === '6.18' ? 'EINVAL' : undefined);
      if (profile === '6.18') {
        m.listen('DI', 'LI');
        m.pin([0x11000n], { device: 'DI' });
      }
      t.same(dirty(m, 0x10000n, 0x4000n), [1]);
    },
  );
  await numbered(
    t,
    LOGGING,
    '120 dirty_pages: of two IOMMU-backed groups each must have pinned before only pins are dirty',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      for (const id of ['I1', 'I2']) {
        m.iommuGroup(id);
        m.device(`D${id}`, id);
        m.listen(`D${id}`, `L${id}`);
      }
      log(m, 1);
      m.pin([0x11000n], { device: 'DI1' });
      t.same(dirty(m, 0x10000n, 0x4000n), [0, 1, 2, 3]);
      m.pin([0x11000n], { device: 'DI2' });
      t.same(dirty(m, 0x10000n, 0x4000n), [1], 'a success with all pages pinned already counts');
    },
  );
  await numbered(
    t,
    LOGGING,
    '121 unset_container: such a group leaves: everything is dirty once, from 5.12 on',
    (t, profile) => {
      const m = setup({ profile });
      m.iommuGroup('GI');
      m.map(0x10000n, 0x4000n);
      log(m, 1);
      m.run({ op: 'unset_container', group: 'GI' });
      t.same(dirty(m, 0x10000n, 0x4000n), profile === '5.8' ? [] : [0, 1, 2, 3]);
      t.same(dirty(m, 0x10000n, 0x4000n), []);
    },
  );
  await numbered(
    t,
    LOGGING,
    '122 unmap_dma: GET_DIRTY_BITMAP reports what the listener has just unpinned',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      const unmap = (): Outcome =>
        m.run({
          op: 'unmap_dma',
          container: 'C',
          task: 'T',
          iova: 0x10000n,
          size: 0x4000n,
          flags: 1,
          argsz: null,
          bitmap: { pgsize: PAGE, size: 8n },
        });
      t.equal(errno(unmap()), 'EINVAL', 'the log does not run');
      log(m, 1);
      m.pin([0x12000n]);
      const outcome = unmap();
      t.same([outcome.fields.size, bitsOf(outcome.fields.bitmap), m.calls.length], [0x4000n, [2], 1]);
    },
  );
  await numbered(
    t,
    LOGGING,
    '122 unmap_dma: a bitmap that faults is EFAULT and the mapping stays; one in memory is written there',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      log(m, 1);
      m.pin([0x10000n]);
      const unmap = (addr: bigint): Outcome =>
        m.run({
          op: 'unmap_dma',
          container: 'C',
          task: 'T',
          iova: 0x10000n,
          size: PAGE,
          flags: 1,
          argsz: null,
          bitmap: { pgsize: PAGE, size: 8n, addr },
        });
      t.equal(errno(unmap(0x3000n)), 'EFAULT');
      t.same(m.mappings(), [[0x10000n, PAGE]]);
      t.same([unmap(V + 0x10010n).fields.size, m.lv()], [PAGE, 0]);
      m.map(0x10000n, PAGE, RW, { vaddr: V + 0x10000n });
      t.same(dataOf(read(m, 0x10010n, 8)), [1, 0, 0, 0, 0, 0, 0, 0]);
    },
  );
}
