// Cases 68 to 82: what VFIO_IOMMU_UNMAP_DMA removes, and what it refuses.

import type { Test } from 'tap';
import { H, type Machine, PAGE, RW, setup } from '../machine.ts';
import { ALL, EARLY, errno, LATE, numbered } from './numbered.ts';

const TOP = 2n ** 64n - PAGE;
const A: [bigint, bigint] = [0x10000n, 0x2000n];
const B: [bigint, bigint] = [0x12000n, 0x2000n];
const size = (m: Machine, ...range: Parameters<Machine['unmap']>): unknown => {
  const { ret, fields } = m.unmap(...range);
  return ret === 0 ? fields.size : ret;
};

export async function unmapBasics(t: Test): Promise<void> {
  await numbered(t, ALL, '68 unmap_dma: an unpinned mapping goes without notification', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    t.match(m.unmap(0x10000n, 0x4000n), { ret: 0, fields: { size: 0x4000n, notifications: 0 } });
    t.same([m.calls, m.mappings()], [[], []]);
  });
  await numbered(t, ALL, '69 unmap_dma: nothing mapped is 0 with size 0', (t, profile) => {
    const outcome = setup({ profile }).unmap(0x10000n, PAGE);
    t.match(outcome, { ret: 0, fields: { size: 0n, warnings: ['NOTHING_UNMAPPED'] } });
  });
  await numbered(t, ALL, '70 unmap_dma: three mappings and holes: size is their sum', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x1000n);
    m.map(0x20000n, 0x2000n);
    m.map(0x80000n, 0x4000n);
    t.equal(size(m, 0n, 0x100000n), 0x7000n);
    t.same(m.mappings(), []);
  });
  await numbered(t, ALL, '72 unmap_dma: bisecting the last mapping is EINVAL and removes nothing', (t, profile) => {
    const m = setup({ profile });
    m.map(...A);
    m.map(...B);
    t.equal(errno(m.unmap(0x10000n, 0x3000n)), 'EINVAL');
    t.equal(errno(m.unmap(0x11000n, 0x3000n)), 'EINVAL', 'nor the first');
    t.same(m.mappings(), [A, B]);
  });
  await numbered(
    t,
    ALL,
    '73 unmap_dma: v1 removes the whole mapping that the request starts with, and none that it starts inside',
    (t, profile) => {
      const m = setup({ profile, v1: true });
      m.map(0x10000n, 0x4000n);
      t.equal(size(m, 0x11000n, PAGE), 0n);
      t.equal(size(m, 0x10000n, PAGE), 0x4000n);
      t.same(m.mappings(), []);
    },
  );
  await numbered(t, LATE, '74 unmap_dma: v1 stops at a mapping that starts before the request', (t, profile) => {
    const m = setup({ profile, v1: true });
    m.map(...A);
    m.map(...B);
    t.equal(size(m, 0x11000n, 0x3000n), 0n);
    t.same(m.mappings(), [A, B]);
  });
  await numbered(
    t,
    EARLY,
    '74 unmap_dma: v1 removes what the descent meets before the mapping that starts before the request',
    (t, profile) => {
      const straddled = (...mappings: [bigint, bigint][]): Machine => {
        const m = setup({ profile, v1: true });
        for (const mapping of mappings) m.map(...mapping);
        return m;
      };
      t.equal(size(straddled(A, B), 0x11000n, 0x3000n), 0n, 'it is the root');
      const m = straddled(B, A);
      t.equal(size(m, 0x11000n, 0x3000n), B[1], 'the other is the root');
      t.same(m.mappings(), [A]);
    },
  );
  await numbered(
    t,
    ALL,
    '76 unmap_dma: a range beyond the space wraps in 4.10, later EINVAL or EOVERFLOW',
    (t, profile) => {
      const outcome = setup({ profile }).unmap(TOP, 0x2000n);
      if (profile === '4.10') t.same([outcome.ret, outcome.fields.size], [0, 0n]);
      else t.equal(errno(outcome), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
    },
  );
  await numbered(t, ALL, '77 unmap_dma: an empty range that ends at 2^64 is 0', (t, profile) => {
    t.equal(size(setup({ profile }), 0xffffffff00000000n, 0x100000000n), 0n);
  });
  await numbered(t, ALL, '78 unmap_dma: a mapping that ends at 2^64 is not found before 6.18', (t, profile) => {
    const m = setup({ profile });
    m.map(TOP, PAGE);
    const found = profile === '6.18';
    t.same(size(m, TOP, PAGE), found ? PAGE : 0n);
    t.same(m.mappings(), found ? [] : [[TOP, PAGE]]);
    t.equal(errno(m.map(TOP, PAGE)), undefined, 'nor does the overlap test find it');
  });
  await numbered(t, ALL, '80 unmap_dma: another mm unmaps nothing, from 6.0 on everything', (t, profile) => {
    const m = setup({ profile });
    m.task('T2');
    m.map(...A);
    const allowed = profile === '6.18';
    t.equal(size(m, ...A, { task: 'T2' }), allowed ? A[1] : 0n);
    t.same(m.mappings(), allowed ? [] : [A]);
  });
  await numbered(
    t,
    ALL,
    '81 unmap_dma: after the mapping thread has exited a sibling unmaps nothing in 4.10',
    (t, profile) => {
      const m = setup({ profile });
      m.task('T1', 0, false, 'T');
      m.map(0x10000n, PAGE, RW, { task: 'T1' });
      m.run({ op: 'exit', task: 'T1' });
      t.equal(size(m, 0x10000n, PAGE), profile === '4.10' ? 0n : PAGE);
    },
  );
  await numbered(
    t,
    ALL,
    '81 unmap_dma: after the leader alone has exited siblings unmap nothing before 6.18, but in 4.10 what they mapped',
    (t, profile) => {
      const m = setup({ profile });
      m.task('T1', 0, false, 'T');
      m.map(0x10000n, PAGE, RW, { task: 'T1' });
      m.run({ op: 'exit', task: 'T', thread_only: true });
      const works = profile === '4.10' || profile === '6.18';
      t.equal(errno(m.pin([0x10000n])), works ? undefined : 'ENODEV');
      t.equal(size(m, 0x10000n, PAGE, { task: 'T1' }), works ? PAGE : 0n);
    },
  );
  await numbered(t, ALL, '82 unmap_dma: with an IOMMU-backed group every page is uncharged', (t, profile) => {
    const m = setup({ profile });
    m.iommuGroup('GI');
    m.map(0x10000n, 0x4000n);
    m.pin([0x10000n]);
    t.equal(size(m, 0x10000n, 0x4000n), 0x4000n);
    t.same([m.lv(), m.page(H).pins], [0, 0]);
  });
}
