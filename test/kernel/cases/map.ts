// Cases 58 to 66: what VFIO_IOMMU_MAP_DMA takes and refuses.

import type { Test } from 'tap';
import { H, Machine, PAGE, RW, setup, V } from '../machine.ts';
import { ALL, errno, numbered } from './numbered.ts';

const TOP = 2n ** 64n - PAGE;

export async function mapBasics(t: Test): Promise<void> {
  await numbered(t, ALL, '58 map_dma: size 0, misalignment, flags and argsz are EINVAL', (t, profile) => {
    const m = setup({ profile });
    const refused = [
      m.map(0x10000n, 0n),
      m.map(0x10001n, PAGE),
      m.map(0x10000n, 0x1001n),
      m.map(0x10000n, PAGE, RW, { vaddr: V + 1n }),
      m.map(0x10000n, PAGE, 0),
      m.map(0x10000n, PAGE, 8),
      m.map(0x10000n, PAGE, RW, { argsz: 31 }),
    ];
    t.same(refused.map(errno), Array(7).fill('EINVAL'));
    t.same(m.mappings(), []);
  });
  await numbered(
    t,
    ALL,
    '60 map_dma: the last page of the space is taken, one more is EINVAL or EOVERFLOW',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(m.map(TOP, PAGE).ret, 0);
      t.equal(errno(m.map(TOP, 0x2000n)), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
    },
  );
  await numbered(t, ALL, '61 map_dma: a vaddr that wraps is EINVAL or EOVERFLOW', (t, profile) => {
    const m = setup({ profile });
    t.equal(m.map(0x10000n, PAGE, RW, { vaddr: TOP }).ret, 0);
    t.equal(errno(m.map(0x20000n, 0x2000n, RW, { vaddr: TOP })), profile === '6.18' ? 'EOVERFLOW' : 'EINVAL');
  });
  await numbered(
    t,
    ALL,
    '62 map_dma: dma_entry_limit 2: the third is ENOSPC, or EEXIST where it overlaps; never in 4.10',
    (t, profile) => {
      const m = setup({ profile, dma_entry_limit: 2 });
      t.same([m.map(0x10000n, PAGE).ret, m.map(0x20000n, PAGE).ret], [0, 0]);
      t.equal(errno(m.map(0x30000n, PAGE)), profile === '4.10' ? undefined : 'ENOSPC');
      t.equal(errno(m.map(0x20000n, PAGE)), 'EEXIST');
      m.unmap(0x10000n, PAGE);
      t.equal(m.map(0x40000n, PAGE).ret, 0);
    },
  );
  await numbered(t, ALL, '64 map_dma: 1 TiB of a bogus vaddr is 0 and charges nothing', (t, profile) => {
    const m = setup({ profile });
    t.equal(m.map(0n, 1n << 40n, RW, { vaddr: 0x500000000000n }).ret, 0);
    t.equal(m.lv(), 0);
  });
  await numbered(t, ALL, '65 map_dma: EINVAL before SET_IOMMU', (t, profile) => {
    const m = new Machine({ profile });
    m.task('T');
    m.run({ op: 'put_container', container: 'C' });
    m.group('G1', 'C');
    t.equal(errno(m.map(0x10000n, PAGE)), 'EINVAL');
  });
  await numbered(t, ALL, '66 map_dma: with an IOMMU-backed group a hole is EFAULT and nothing stays', (t, profile) => {
    const m = setup({ profile, dma_entry_limit: 1 });
    m.iommuGroup('GI');
    t.equal(errno(m.map(0x10000n, 0x4000n, RW, { vaddr: V + 1022n * PAGE })), 'EFAULT');
    t.same([m.mappings(), m.lv(), m.page(H + 1022).pins], [[], 0, 0]);
    t.equal(m.map(0x10000n, PAGE).ret, 0, 'its entry was given back');
  });
  await numbered(
    t,
    ALL,
    '66 map_dma: a reserved region is EINVAL, and from 5.4 on refuses a group over mappings',
    (t, profile) => {
      const m = setup({ profile });
      const checked = profile !== '4.10';
      m.map(0x80000n, PAGE);
      const attached = m.iommuGroup('GR', { reserved: [{ start: 0x80000n, last: 0x8ffffn }] });
      t.equal(errno(attached), checked ? 'EINVAL' : undefined);
      m.unmap(0x80000n, PAGE);
      if (checked) m.run({ op: 'set_container', group: 'GR', container: 'C', task: 'T' });
      t.equal(errno(m.map(0x80000n, PAGE)), checked ? 'EINVAL' : undefined);
      t.equal(m.map(0x90000n, PAGE).ret, 0);
    },
  );
}
