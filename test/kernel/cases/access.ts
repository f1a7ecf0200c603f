// Cases 124 to 128: vfio_dma_rw(), VFIO_IOMMU_GET_INFO, and mappings whose vaddr is invalid.

import type { Test } from 'tap';
import type { Outcome } from '../../../src/kernel/outcome.ts';
import { checkExtension, listMappings, viewInfo } from '../../../src/kernel/view/vfio.ts';
import { type Machine, PAGE, R, RW, setup, V, W } from '../machine.ts';
import { ALL, detachFirst, errno, LATE, LOGGING, numbered } from './numbered.ts';

export const write = (m: Machine, iova: bigint, bytes: Uint8Array, task: string | null = null): Outcome =>
  m.run({
    op: 'dma_rw',
    device: 'D1',
    iova,
    length: bytes.length,
    write: true,
    data: Buffer.from(bytes).toString('base64'),
    task,
  });

export const read = (m: Machine, iova: bigint, length: number, task: string | null = null): Outcome =>
  m.run({ op: 'dma_rw', device: 'D1', iova, length, write: false, data: null, task });

export const dataOf = ({ fields, refusal }: Outcome): number[] => [
  ...Buffer.from((fields.data ?? refusal?.left?.data ?? '') as string, 'base64'),
];

async function accesses(t: Test): Promise<void> {
  await numbered(t, ['4.10', '5.4'], '124 dma_rw: not there before 5.7', (t, profile) => {
    t.equal(errno(read(setup({ profile }), 0x10000n, 8)), 'EOPNOTSUPP');
  });
  await numbered(
    t,
    LOGGING,
    '124 dma_rw: joins adjacent mappings; a hole is EINVAL after the first part; length 0 is EINVAL',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x11000n, PAGE, RW, { vaddr: V + 0x8000n });
      const bytes = Uint8Array.from({ length: 16 }, (_, i) => i + 1);
      t.same([write(m, 0x10ff8n, bytes).ret, dataOf(read(m, 0x10ff8n, 16))], [0, [...bytes]]);
      const outcome = read(m, 0x11ff8n, 16);
      t.same([errno(outcome), dataOf(outcome).length], ['EINVAL', 8]);
      t.equal(errno(write(m, 0x11ffcn, bytes)), 'EINVAL');
      t.same(dataOf(read(m, 0x11ffcn, 4)), [1, 2, 3, 4], 'the first part stays written');
      t.equal(errno(read(m, 0x10000n, 0)), 'EINVAL');
    },
  );
  await numbered(
    t,
    LOGGING,
    '124 dma_rw: the bytes lie in the host page: another mapping of it reads them, another page does not',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x20000n, 0x2000n);
      write(m, 0x10000n, Uint8Array.of(7, 8));
      t.same(dataOf(read(m, 0x20000n, 3)), [7, 8, 0]);
      t.same(dataOf(read(m, 0x21000n, 2)), [0, 0]);
      t.equal(m.host.mm.pages.bytes.size, 1, 'a page never written costs no memory');
    },
  );
  await numbered(
    t,
    LOGGING,
    '125 dma_rw: EPERM without R, or for a write without W; EFAULT from another mm; EPERM when the mm is gone',
    (t, profile) => {
      const m = setup({ profile });
      m.task('U');
      m.run({ op: 'unregister_notifier', device: 'D1', notifier: 'L1', type: null });
      m.map(0x10000n, PAGE, R);
      m.map(0x11000n, PAGE, W);
      m.map(0x12000n, PAGE, RW);
      const one = Uint8Array.of(1);
      t.same(
        [0x10000n, 0x11000n, 0x12000n].map((iova) => errno(write(m, iova, one))),
        ['EPERM', 'EPERM', undefined],
      );
      t.same(
        [0x10000n, 0x11000n, 0x12000n].map((iova) => errno(read(m, iova, 1))),
        [undefined, 'EPERM', undefined],
      );
      t.same([errno(read(m, 0x12000n, 1, 'U')), errno(read(m, 0x12000n, 1, 'T'))], ['EFAULT', undefined]);
      m.run({ op: 'exit', task: 'T' });
      t.equal(errno(read(m, 0x12000n, 1)), 'EPERM');
    },
  );
}

async function info(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '126 GET_INFO: the capability chain of the profile, iova ranges only with an IOMMU-backed group',
    (t, profile) => {
      const m = setup({ profile });
      const ids = (): number[] => (viewInfo(m.host, 'C', 4096).caps as { id: number }[]).map(({ id }) => id);
      t.throws(() => viewInfo(m.host, 'C', 15), { name: 'EINVAL' });
      const short = viewInfo(m.host, 'C', 16);
      t.same([short.argsz, short.cap_offset], [{ '5.8': 56, '5.15': 68, '6.18': 72 }[profile] ?? 16, 0]);
      const mdev = { '5.8': [2], '5.15': [2, 3], '6.18': [2, 3] }[profile] ?? [];
      t.same(ids(), mdev);
      t.equal(viewInfo(m.host, 'C', 24).flags, mdev.length > 0 ? 3 : 1);
      m.iommuGroup('GI');
      t.same(ids(), profile === '4.10' ? [] : [...mdev, 1]);
      t.equal(viewInfo(m.host, 'C', 4096).iova_pgsizes, 0x40201000n);
    },
  );
}

async function invalidVaddrs(t: Test): Promise<void> {
  const invalidate = (m: Machine, iova: bigint, size: bigint): Outcome => m.unmap(iova, size, { flags: 4 });
  await numbered(t, ['4.10', '5.4', '5.8'], '128 unmap_dma: FLAG_VADDR is unknown before 5.12', (t, profile) => {
    t.equal(errno(invalidate(setup({ profile }), 0x10000n, PAGE)), 'EINVAL');
  });
  await numbered(t, ['6.18'], '128 unmap_dma: FLAG_VADDR with an mdev group is EBUSY', (t, profile) => {
    t.equal(errno(invalidate(setup({ profile }), 0x10000n, PAGE)), 'EBUSY');
  });
  await numbered(t, LATE, '128 map_dma: FLAG_VADDR: what does not fit is EINVAL or ENOENT', (t, profile) => {
    const m = setup({ profile });
    if (profile === '6.18') {
      m.iommuGroup('GI');
      detachFirst(m);
    }
    m.map(0x10000n, 0x2000n);
    m.map(0x40000n, PAGE);
    t.equal(errno(m.map(0x10000n, 0x2000n, 4)), 'EINVAL', 'the vaddr is valid');
    t.same(invalidate(m, 0x10000n, 0x2000n).fields.size, 0x2000n);
    t.equal(errno(invalidate(m, 0x10000n, 0x2000n)), 'EINVAL', 'twice');
    t.equal(errno(invalidate(m, 0n, 0x100000n)), 'EINVAL', 'one of two is invalid already');
    t.equal(errno(m.map(0x40000n, PAGE, 4)), 'EINVAL', 'the other was restored');
    t.equal(errno(m.map(0x10000n, PAGE, 4)), 'EINVAL', 'another size');
    t.equal(errno(m.map(0x20000n, PAGE, 4)), 'ENOENT');
    t.equal(errno(m.map(0x10000n, 0x2000n, 5)), 'EINVAL', 'with READ');
    t.equal(m.map(0x10000n, 0x2000n, 4, { vaddr: V + 0x4000n }).ret, 0, 'the first state was kept');
    t.same(
      listMappings(m.host, 'C', null, 1).items.map(({ vaddr }) => vaddr),
      [V + 0x4000n],
    );
  });
  await numbered(
    t,
    ['5.15'],
    '128 pin_pages: sleeps until the vaddr is valid; a fatal signal ends the sleep with EFAULT',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x2000n);
      invalidate(m, 0x10000n, 0x2000n);
      const pin = () => m.start({ op: 'pin_pages', device: 'D1', user_pfn: [16], npage: 1, prot: 1 }).parked as string;
      const [first, second] = [pin(), pin()];
      m.run({ op: 'kill_operation', operation: first });
      t.equal(m.host.operations.get(first)?.outcome?.refusal?.errno, 'EFAULT');
      m.map(0x10000n, 0x2000n, 4);
      t.equal(m.host.operations.get(second)?.outcome?.ret, 1);
      t.equal(errno(m.run({ op: 'kill_operation', operation: second })), 'EINVAL');
    },
  );
  await numbered(t, ['5.15'], '128 set_container: a replay sleeps until every vaddr is valid', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x2000n);
    invalidate(m, 0x10000n, 0x2000n);
    m.run({ op: 'put_group', group: 'GI', kind: 'iommu' });
    const { parked } = m.start({ op: 'set_container', group: 'GI', container: 'C', task: 'T' });
    t.equal(m.lv(), 0);
    m.map(0x10000n, 0x2000n, 4);
    t.equal(m.host.operations.get(parked as string)?.outcome?.ret, 0);
    t.same([m.lv(), m.host.vfio.groups.get('GI')?.container], [2, 'C']);
  });
  await numbered(t, ['5.15'], '128 dma_rw: sleeps in its second mapping and goes on there', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.map(0x11000n, PAGE, RW, { vaddr: V + 0x8000n });
    invalidate(m, 0x11000n, PAGE);
    const data = Buffer.from([1, 2]).toString('base64');
    const { parked } = m.start({
      op: 'dma_rw',
      device: 'D1',
      iova: 0x10fffn,
      length: 2,
      write: true,
      data,
      task: null,
    });
    m.map(0x11000n, PAGE, 4, { vaddr: V + 0x9000n });
    t.equal(m.host.operations.get(parked as string)?.outcome?.ret, 0);
    t.same(dataOf(read(m, 0x10fffn, 2)), [1, 2]);
  });
  await numbered(
    t,
    ['6.18'],
    '128 map_dma: FLAG_VADDR by another process moves owner and charge, or is ENOMEM and moves nothing',
    (t, profile) => {
      const m = setup({ profile });
      m.task('U', 1);
      m.iommuGroup('GI');
      detachFirst(m);
      m.map(0x10000n, 0x2000n);
      invalidate(m, 0x10000n, 0x2000n);
      t.equal(errno(m.map(0x10000n, 0x2000n, 4, { task: 'U' })), 'ENOMEM');
      t.same([m.lv('T'), m.lv('U')], [2, 0]);
      m.run({ op: 'patch_task', task: 'U', rlimit_memlock: 0x2000n });
      t.equal(m.map(0x10000n, 0x2000n, 4, { task: 'U' }).ret, 0);
      t.same([m.lv('T'), m.lv('U')], [0, 2]);
    },
  );
  await numbered(t, ['6.18'], '128 set_container: any group is EBUSY while a vaddr is invalid', (t, profile) => {
    const m = setup({ profile });
    m.iommuGroup('GI');
    detachFirst(m);
    m.map(0x10000n, PAGE);
    invalidate(m, 0x10000n, PAGE);
    t.equal(errno(m.run({ op: 'set_container', group: 'G1', container: 'C', task: 'T' })), 'EBUSY');
  });
  await numbered(
    t,
    ALL,
    '128 CHECK_EXTENSION: UPDATE_VADDR is there from 5.12 on, from 6.3 on without mdev group only',
    (t, profile) => {
      const m = setup({ profile });
      t.equal(checkExtension(m.host, 'C', 10).ret, profile === '5.15' ? 1 : 0);
      m.iommuGroup('GI');
      detachFirst(m);
      t.equal(checkExtension(m.host, 'C', 10).ret, LATE.includes(profile) ? 1 : 0);
    },
  );
}

export async function accessAndInfo(t: Test): Promise<void> {
  await accesses(t);
  await info(t);
  await invalidVaddrs(t);
}
