// The numbered conformance cases of the dirty log, of dma_rw and of invalid vaddrs (parts H and I), in every profile that has them.

import t, { type Test } from 'tap';
import type { Outcome } from '../../src/kernel/outcome.ts';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { type Machine, PAGE, R, RW, setup, V, W } from './machine.ts';

const errno = ({ refusal }: Outcome): string | undefined => refusal?.errno;
const LOGGING = ['5.8', '5.15', '6.18'] as const;

async function inProfiles(
  parent: Test,
  profiles: readonly string[],
  title: string,
  run: (t: Test, profile: string) => void,
): Promise<void> {
  const [number, ...rest] = title.split(' ');
  for (const profile of profiles)
    await parent.test(`${number} [${profile}] ${rest.join(' ')}`, async (t) => run(t, profile));
}

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

const write = (m: Machine, iova: bigint, bytes: Uint8Array, task: string | null = null): Outcome =>
  m.run({
    op: 'dma_rw',
    device: 'D1',
    iova,
    length: bytes.length,
    write: true,
    data: Buffer.from(bytes).toString('base64'),
    task,
  });

const read = (m: Machine, iova: bigint, length: number, task: string | null = null): Outcome =>
  m.run({ op: 'dma_rw', device: 'D1', iova, length, write: false, data: null, task });

const dataOf = ({ fields, refusal }: Outcome): number[] => [
  ...Buffer.from((fields.data ?? refusal?.left?.data ?? '') as string, 'base64'),
];

t.test('H. dirty log', async (t) => {
  await inProfiles(t, ['4.10', '5.4'], '114 dirty_pages: ENOTTY before 5.8', (t, profile) => {
    t.equal(errno(log(setup({ profile }), 1)), 'ENOTTY');
  });
  await inProfiles(t, LOGGING, '114 dirty_pages: nothing pinned, no IOMMU: all zero', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x4000n);
    t.equal(log(m, 1).ret, 0);
    t.same(dirty(m, 0x10000n, 0x4000n), []);
  });
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
    t,
    LOGGING,
    '117 dma_rw: a write marks the pages it touches, in 5.8 only whole ones',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x8000n);
      log(m, 1);
      t.equal(write(m, 0x11010n, new Uint8Array(16)).ret, 0);
      t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [] : [1]);
      write(m, 0x12ff8n, new Uint8Array(16));
      t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [] : [2, 3]);
      write(m, 0x14000n, new Uint8Array(0x1001));
      t.same(dirty(m, 0x10000n, 0x8000n), profile === '5.8' ? [4] : [4, 5]);
    },
  );
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
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
});

t.test('I. dma_rw', async (t) => {
  await inProfiles(t, ['4.10', '5.4'], '124 dma_rw: not there before 5.7', (t, profile) => {
    t.equal(errno(read(setup({ profile }), 0x10000n, 8)), 'EOPNOTSUPP');
  });
  await inProfiles(
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
  await inProfiles(
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
  await inProfiles(
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
});

t.test('I. vaddr', async (t) => {
  const invalidate = (m: Machine, iova: bigint, size: bigint): Outcome => m.unmap(iova, size, { flags: 4 });
  await inProfiles(t, ['4.10', '5.4', '5.8'], '128 unmap_dma: FLAG_VADDR is unknown before 5.12', (t, profile) => {
    t.equal(errno(invalidate(setup({ profile }), 0x10000n, PAGE)), 'EINVAL');
  });
  await inProfiles(t, ['6.18'], '128 unmap_dma: FLAG_VADDR with an mdev group is EBUSY', (t, profile) => {
    t.equal(errno(invalidate(setup({ profile }), 0x10000n, PAGE)), 'EBUSY');
  });
  await inProfiles(t, ['5.15'], '128 map_dma: FLAG_VADDR: what does not fit is refused', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, 0x2000n);
    t.equal(errno(m.map(0x10000n, 0x2000n, 4)), 'EINVAL', 'the vaddr is valid');
    t.same(invalidate(m, 0x10000n, 0x2000n).fields.size, 0x2000n);
    t.equal(errno(invalidate(m, 0x10000n, 0x2000n)), 'EINVAL');
    t.equal(errno(m.map(0x10000n, PAGE, 4)), 'EINVAL', 'another size');
    t.equal(errno(m.map(0x20000n, PAGE, 4)), 'ENOENT');
    t.equal(errno(m.map(0x10000n, 0x2000n, 5)), 'EINVAL', 'with READ');
    t.equal(m.map(0x10000n, 0x2000n, 4, { vaddr: V + 0x4000n }).ret, 0);
    t.same(m.pin([0x10000n]).fields.phys_pfn, [1004]);
  });
  await inProfiles(
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
  await inProfiles(t, ['5.15'], '128 set_container: a replay sleeps until every vaddr is valid', (t, profile) => {
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
  await inProfiles(t, ['5.15'], '128 dma_rw: sleeps in its second mapping and goes on there', (t, profile) => {
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
  await inProfiles(
    t,
    ['6.18'],
    '128 map_dma: FLAG_VADDR by another process moves owner and charge, or is ENOMEM and moves nothing',
    (t, profile) => {
      const m = setup({ profile });
      m.task('U', 1);
      m.iommuGroup('GI');
      m.run({ op: 'close_device', device: 'D1' });
      m.run({ op: 'unset_container', group: 'G1' });
      m.map(0x10000n, 0x2000n);
      invalidate(m, 0x10000n, 0x2000n);
      t.equal(errno(m.map(0x10000n, 0x2000n, 4, { task: 'U' })), 'ENOMEM');
      t.same([m.lv('T'), m.lv('U')], [2, 0]);
      m.run({ op: 'patch_task', task: 'U', rlimit_memlock: 0x2000n });
      t.equal(m.map(0x10000n, 0x2000n, 4, { task: 'U' }).ret, 0);
      t.same([m.lv('T'), m.lv('U')], [0, 2]);
    },
  );
  await inProfiles(t, ['6.18'], '128 set_container: any group is EBUSY while a vaddr is invalid', (t, profile) => {
    const m = setup({ profile });
    m.iommuGroup('GI');
    m.run({ op: 'close_device', device: 'D1' });
    m.run({ op: 'unset_container', group: 'G1' });
    m.map(0x10000n, PAGE);
    invalidate(m, 0x10000n, PAGE);
    t.equal(errno(m.run({ op: 'set_container', group: 'G1', container: 'C', task: 'T' })), 'EBUSY');
  });
});

t.test('every profile is tested here', async (t) => {
  t.same([...PROFILE_NAMES], ['4.10', '5.4', '5.8', '5.15', '6.18']);
});
