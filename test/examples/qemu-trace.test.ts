// The reader of QEMU's traces: every recorded line is understood, every malformed one refused by its number.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { BOOTS, loadBoot, recordedBoot, UnreadableBoot } from '../../examples/boots.ts';
import { regionsOf } from '../../examples/guest.ts';
import { memlockLimit, memoryBlocks } from '../../examples/qemu.ts';
import {
  listenerCalls,
  MalformedLine,
  readIoctls,
  readTrace,
  TraceMismatch,
  withFlags,
} from '../../examples/qemu-trace.ts';

function recorded(name: string): string {
  return readFileSync(fileURLToPath(new URL(`../../examples/qemu/${name}`, import.meta.url)), 'utf8');
}

const STAMP = '375@1795260155.545915:';
const ADD = `${STAMP}vfio_listener_region_add_ram region_add [ram] 0x0 - 0x9ffff [0x7efce7e00000]`;
const DEL = `${STAMP}vfio_listener_region_del region_del 0x0 - 0x9ffff`;
const SKIP = `${STAMP}vfio_listener_region_add_skip SKIPPING region_add 0xfe050180 - 0xfe0503ff`;

// The table of examples/qemu/README.md: the file itself is the expectation.
const table = recorded('README.md')
  .split('\n')
  .filter((row) => row.startsWith('| boot-'))
  .map((row) => row.split('|').map((cell) => cell.trim()))
  .map(([, run = '', , , addRam, del, skips = '', peak, left]) => {
    const [addSkip, delSkip] = skips.split('/').map(Number);
    return { run, addRam: Number(addRam), del: Number(del), addSkip, delSkip, peak: Number(peak), left: Number(left) };
  });

t.test('recorded boots: each is in the README once', async (t) => {
  t.same(table.map(({ run }) => run).sort(), [...BOOTS].sort());
});

for (const { run, addRam, del, addSkip, delSkip, peak, left } of table)
  t.test(`${run}: counts are those of the README`, async (t) => {
    const text = recorded(`${run}.trace`);
    const trace = readTrace(text);
    t.equal(trace.length, text.split('\n').length - 1, 'every line is read');
    t.same(
      trace.map(({ line }) => line),
      trace.map((_, i) => i + 1),
      'lines are numbered from 1',
    );
    const count = (event: string) => trace.filter((entry) => entry.event === event).length;
    t.equal(count('region_add_ram'), addRam);
    t.equal(count('region_del'), del);
    t.equal(count('region_add_skip'), addSkip);
    t.equal(count('region_del_skip'), delSkip);

    // Replayed on a set of ranges: no mapping overlaps another, each removal is exactly one mapping.
    const live = new Map<bigint, bigint>();
    let most = 0;
    for (const call of listenerCalls(trace)) {
      if (call.op === 'unmap_dma') {
        t.equal(live.get(call.iova), call.size, `line ${call.line} removes a whole mapping`);
        live.delete(call.iova);
        continue;
      }
      const overlaps = [...live].some(([iova, size]) => iova < call.iova + call.size && call.iova < iova + size);
      t.equal(overlaps, false, `line ${call.line} maps what is free`);
      live.set(call.iova, call.size);
      most = Math.max(most, live.size);
    }
    t.equal(most, peak);
    t.equal(live.size, left);
  });

for (const run of BOOTS)
  t.test(`${run}: the calls derived from the trace are the ioctls of the same run`, async (t) => {
    const derived = listenerCalls(readTrace(recorded(`${run}.trace`)));
    const ioctls = readIoctls(recorded(`${run}.ioctl`));
    const made = ioctls.filter((ioctl) => ioctl.op === 'map_dma' || ioctl.op === 'unmap_dma');
    t.equal(derived.length, made.length);
    const plain = ({ line, at, thread, ...call }: (typeof made)[number] | (typeof derived)[number]) =>
      call.op === 'map_dma' ? { ...call, flags: 'compared below' } : call;
    t.same(derived.map(plain), made.map(plain), 'operations, iovas, sizes and vaddrs, in order');

    const flags = withFlags(derived, ioctls).map((call) => (call.op === 'map_dma' ? call.flags : null));
    t.same(
      flags,
      made.map((ioctl) => (ioctl.op === 'map_dma' ? ioctl.flags : null)),
      'flags are taken from the ioctls',
    );
    t.same([...new Set(flags.filter((value) => value !== null))].sort(), [1, 3], 'read only and read-write both occur');

    const beforeDevice = ioctls.slice(
      0,
      ioctls.findIndex((ioctl) => ioctl.op === 'get_device_fd'),
    );
    const beforeUnmap = derived.findIndex((call) => call.op === 'unmap_dma');
    t.equal(
      beforeDevice.filter((ioctl) => ioctl.op === 'map_dma').length,
      beforeUnmap,
      'what is mapped before the device is open is what is mapped before the first unmap',
    );
    t.same(
      ioctls.flatMap((ioctl) => (ioctl.op === 'set_iommu' ? [ioctl.argument] : [])),
      ['3'],
      'the container is TYPE1v2',
    );
  });

t.test('addresses: first and last are inclusive, 64 bits wide', async (t) => {
  const top = `${STAMP}vfio_listener_region_del region_del 0xfffffffffffff000 - 0xffffffffffffffff`;
  const calls = listenerCalls(readTrace(`${ADD}\n${SKIP}\n${DEL}\n${top}\n`));
  t.same(calls, [
    {
      line: 1,
      thread: 375,
      at: 1795260155545915,
      op: 'map_dma',
      iova: 0n,
      size: 0xa0000n,
      vaddr: 0x7efce7e00000n,
      flags: 3,
    },
    { line: 3, thread: 375, at: 1795260155545915, op: 'unmap_dma', iova: 0n, size: 0xa0000n },
    { line: 4, thread: 375, at: 1795260155545915, op: 'unmap_dma', iova: 0xfffffffffffff000n, size: 0x1000n },
  ]);
});

t.test('region_del of the whole address space: two calls of half the size, as QEMU makes them', async (t) => {
  const whole = `${STAMP}vfio_listener_region_del region_del 0x0 - 0xffffffffffffffff\n`;
  t.same(
    listenerCalls(readTrace(whole)).map(({ iova, size }) => [iova, size]),
    [
      [0n, 2n ** 63n],
      [2n ** 63n, 2n ** 63n],
    ],
  );
});

t.test('a trace without lines has no calls, and the last line may lack its end', async (t) => {
  t.same(readTrace(''), []);
  t.equal(readTrace(ADD).length, 1);
});

const malformed: [what: string, line: string, expected: RegExp][] = [
  ['an empty line', '', /THREAD@SECONDS\.MICROSECONDS/],
  ['no time', 'vfio_listener_region_del region_del 0x0 - 0x9ffff', /THREAD@SECONDS\.MICROSECONDS/],
  ['five decimals', DEL.replace('545915', '54591'), /six decimals/],
  ['a thread that is no number', DEL.replace('375@', 'x@'), /THREAD/],
  ['a line cut in its stamp', STAMP.slice(0, 12), /THREAD@SECONDS\.MICROSECONDS/],
  ['an unknown event', `${STAMP}kvm_ioctl type 0xae03`, /one of vfio_listener_region_add_ram/],
  [
    'an event of a guest with its own IOMMU',
    `${STAMP}vfio_listener_region_add_iommu region_add [iommu] 0x0 - 0xfff`,
    /one of/,
  ],
  ['an event named like a property of objects', `${STAMP}vfio_listener_constructor x`, /one of/],
  ['an event without anything after it', `${STAMP}vfio_listener_region_del`, /'region_del 0xFIRST - 0xLAST'/],
  ['another event than the text says', DEL.replace(' region_del ', ' region_add '), /'region_del 0xFIRST - 0xLAST'/],
  ['no vaddr', ADD.replace(/ \[0x7.*/, ''), /'region_add \[ram\] 0xFIRST - 0xLAST \[0xVADDR\]'/],
  ['a line cut in its vaddr', ADD.slice(0, -3), /\[0xVADDR\]/],
  ['a vaddr that is no number', ADD.replace('0x7efce7e00000', '(nil)'), /\[0xVADDR\]/],
  ['a decimal address', DEL.replace('0x9ffff', '655359'), /0xLAST/],
  ['upper-case digits, which QEMU never prints', DEL.replace('0x9ffff', '0x9FFFF'), /0xLAST/],
  ['two lines in one', `${DEL}${DEL}`, /0xLAST/],
  ['a carriage return', `${DEL}\r`, /THREAD|0xLAST/],
  ['more than 64 bits', DEL.replace('0x9ffff', '0x1ffffffffffffffff'), /at most 64 bits/],
  ['a range that ends before it begins', DEL.replace('0x0 -', '0xa0000 -'), /last address is not below/],
  ['an exclusive end', DEL.replace('0x9ffff', '0xa0000'), /whole 4 KiB pages/],
  ['a start inside a page', ADD.replace('0x0 -', '0x10 -'), /whole 4 KiB pages/],
  ['a vaddr inside a page', ADD.replace('7e00000', '7e00010'), /page-aligned vaddr/],
  ['a vaddr that wraps', ADD.replace('0x7efce7e00000', '0xffffffffffff0000'), /below 2\^64/],
  ['RAM of 2^64 bytes', ADD.replace('0x9ffff [0x7efce7e00000]', '0xffffffffffffffff [0x0]'), /smaller than the whole/],
];

for (const [what, line, expected] of malformed)
  t.test(`readTrace: ${what} is refused with its line number`, async (t) => {
    for (const at of [1, 2, 4]) {
      const text = `${[...Array(at - 1).fill(ADD), line, DEL].join('\n')}\n`;
      const error = t.throws(() => readTrace(text), MalformedLine) as unknown as MalformedLine;
      t.equal(error.line, at);
      t.match(error.message, new RegExp(`^line ${at}: expected `));
      t.match(error.expected, expected);
    }
  });

t.test('readTrace: each recorded line without its last character is refused or means something else', async (t) => {
  const lines = recorded('boot-i440fx.trace').trimEnd().split('\n').slice(0, 60);
  for (const [i, line] of lines.entries()) {
    const before = readTrace(line);
    let after: unknown;
    try {
      after = readTrace(line.slice(0, -1));
    } catch (error) {
      after = error instanceof MalformedLine ? 'refused' : error;
    }
    t.notSame(after, before, `line ${i + 1}`);
    if (line.includes('add_ram')) t.equal(after, 'refused', `line ${i + 1}`);
  }
});

t.test('readIoctls: a malformed line is refused with its line number', async (t) => {
  const good = `${STAMP}UNMAP_DMA iova=0x0 size=0x1000 flags=0x0 ret=0 unmapped=0x1000 live=0`;
  for (const bad of [
    '',
    `${STAMP}UNMAP_DMA iova=0x0`,
    `${STAMP}MAP_DMA iova=0 size=0 vaddr=0 flags=0`,
    `${STAMP}CLOSE`,
    good.slice(4),
  ]) {
    const error = t.throws(() => readIoctls(`${good}\n${good}\n${bad}\n`), MalformedLine) as unknown as MalformedLine;
    t.equal(error.line, 3);
  }
  t.same(readIoctls(good), [{ line: 1, thread: 375, at: 1795260155545915, op: 'unmap_dma', iova: 0n, size: 0x1000n }]);
});

t.test('withFlags: ioctls of another run are refused with both line numbers', async (t) => {
  const calls = listenerCalls(readTrace(recorded('boot-i440fx.trace')));
  const ioctls = readIoctls(recorded('boot-i440fx.ioctl'));
  const other = readIoctls(recorded('boot-q35-ovmf.ioctl'));
  t.throws(() => withFlags(calls, other), TraceMismatch);
  t.throws(() => withFlags(calls, ioctls.slice(0, -1)), { message: /^trace line \d+ means .* but the ioctls end$/ });
  t.throws(() => withFlags(calls.slice(0, -1), ioctls), { message: /^the trace ends, but ioctl line \d+ is / });
  const wrong = ioctls.map((ioctl, i) => (i === 4 && ioctl.op === 'map_dma' ? { ...ioctl, size: 4096n } : ioctl));
  t.throws(() => withFlags(calls, wrong), {
    message: /^trace line 1 means map_dma 0x0 size 0xa0000 .* ioctl line 5 is map_dma 0x0 size 0x1000 /,
  });
});

t.test(
  'loadBoot: a malformed file is refused with path and line, flags without an .ioctl are read and write',
  async (t) => {
    const lines = recorded('boot-q35-ovmf.trace').split('\n');
    const dir = t.testdir({
      'good.trace': recorded('boot-q35-ovmf.trace'),
      'cut.trace': [...lines.slice(0, 99), lines[99]?.slice(0, 30), ...lines.slice(100)].join('\n'),
      'other.trace': recorded('boot-q35-ovmf.trace'),
      'other.ioctl': recorded('boot-i440fx.ioctl'),
    });
    t.throws(() => loadBoot(`${dir}/cut.trace`), UnreadableBoot);
    t.throws(() => loadBoot(`${dir}/cut.trace`), { message: /cut\.trace: line 100: expected / });
    t.throws(() => loadBoot(`${dir}/other.trace`), { message: /other\.ioctl: trace line \d+ means / });
    t.throws(() => loadBoot(`${dir}/missing.trace`), { message: /missing\.trace: ENOENT/ });
    const good = loadBoot(`${dir}/good.trace`);
    t.equal(good.flagsRecorded, false);
    t.same(new Set(good.calls.map((call) => (call.op === 'map_dma' ? call.flags : 3))), new Set([3]));
    t.equal(recordedBoot('boot-q35-ovmf').flagsRecorded, true);
  },
);

for (const run of BOOTS)
  t.test(`${run}: a few blocks of memory hold every vaddr, each mapping knows the call that removes it`, async (t) => {
    const { calls } = recordedBoot(run);
    const blocks = memoryBlocks(calls);
    t.ok(blocks.length <= 8, `${blocks.length} blocks`);
    for (const call of calls) {
      if (call.op === 'unmap_dma') continue;
      const inside = blocks.filter(({ addr, length }) => addr <= call.vaddr && call.vaddr + call.size <= addr + length);
      t.equal(inside.length, 1, `line ${call.line} lies in one block`);
    }
    for (const [i, { addr }] of blocks.entries()) {
      const previous = blocks[i - 1];
      if (previous !== undefined) t.ok(previous.addr + previous.length < addr, 'blocks do not touch');
    }
    t.equal(memlockLimit(blocks), blocks.reduce((sum, { length }) => sum + length, 0n) + 2n ** 30n);

    const regions = regionsOf(calls);
    const removals = regions.filter((region) => region !== null).map((region) => region.removedBy);
    const unmaps = calls.flatMap((call, i) => (call.op === 'unmap_dma' ? [i] : []));
    t.same(
      removals.filter((index) => index !== null).sort((a, b) => a - b),
      unmaps,
      'every unmap removes one mapping',
    );
  });
