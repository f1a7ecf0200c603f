// Models hw/vfio/common.c of QEMU 7.2: reads the lines that its memory listener traces and gives the ioctls it makes of them.

const PAGE = 4096n;
const SPACE = 1n << 64n;

interface Line {
  /** 1-based line number in its file. */
  line: number;
  thread: number;
  /** Microseconds since the epoch. */
  at: number;
}

/** One traced call of the listener. `first` and `last` are the section's addresses, both inclusive. */
export type TraceLine = Line &
  (
    | { event: 'region_add_ram'; first: bigint; last: bigint; vaddr: bigint }
    | { event: 'region_add_skip' | 'region_del' | 'region_del_skip'; first: bigint; last: bigint }
  );

/** One line of an .ioctl file that maps or unmaps. */
export type IoctlLine = Line &
  (
    | { op: 'map_dma'; iova: bigint; size: bigint; vaddr: bigint; flags: number }
    | { op: 'unmap_dma'; iova: bigint; size: bigint }
    | { op: 'open' | 'set_container' | 'set_iommu' | 'get_device_fd' | 'device_reset'; argument: string }
  );

/** A VFIO_IOMMU_MAP_DMA or VFIO_IOMMU_UNMAP_DMA that the listener makes; `line` is the trace line it comes from. */
export type DmaCall = Line &
  (
    | { op: 'map_dma'; iova: bigint; size: bigint; vaddr: bigint; flags: number }
    | { op: 'unmap_dma'; iova: bigint; size: bigint }
  );

export const MAP_READ = 1;
export const MAP_WRITE = 2;

/** A line that is not what QEMU prints. The message begins with the line's number. */
export class MalformedLine extends Error {
  constructor(
    readonly line: number,
    readonly expected: string,
    readonly found: string,
  ) {
    super(`line ${line}: expected ${expected}, found ${JSON.stringify(found)}`);
    this.name = 'MalformedLine';
  }
}

const RANGE = '0x([0-9a-f]+) - 0x([0-9a-f]+)';
const BODIES = {
  region_add_ram: {
    pattern: new RegExp(`^region_add \\[ram\\] ${RANGE} \\[0x([0-9a-f]+)\\]$`),
    form: "'region_add [ram] 0xFIRST - 0xLAST [0xVADDR]'",
  },
  region_add_skip: {
    pattern: new RegExp(`^SKIPPING region_add ${RANGE}$`),
    form: "'SKIPPING region_add 0xFIRST - 0xLAST'",
  },
  region_del: { pattern: new RegExp(`^region_del ${RANGE}$`), form: "'region_del 0xFIRST - 0xLAST'" },
  region_del_skip: {
    pattern: new RegExp(`^SKIPPING region_del ${RANGE}$`),
    form: "'SKIPPING region_del 0xFIRST - 0xLAST'",
  },
} as const;

/** The lines of a file without the end of its last one. An empty file has none. */
function linesOf(text: string): string[] {
  if (text === '') return [];
  return (text.endsWith('\n') ? text.slice(0, -1) : text).split('\n');
}

/** `THREAD@SECONDS.MICROSECONDS:REST`, as -msg timestamp=on prints it. */
function readStamp(source: string, line: number): Line & { rest: string } {
  const [, thread, seconds, micros, rest] = /^(\d{1,10})@(\d{1,10})\.(\d{6}):(.*)$/.exec(source) ?? [];
  if (thread === undefined || seconds === undefined || micros === undefined || rest === undefined)
    throw new MalformedLine(line, "'THREAD@SECONDS.MICROSECONDS:' with six decimals", source);
  return { line, thread: Number(thread), at: Number(seconds) * 1e6 + Number(micros), rest };
}

function readAddress(digits: string | undefined, line: number, source: string): bigint {
  if (digits === undefined || digits.length > 16)
    throw new MalformedLine(line, 'an address of at most 64 bits', source);
  return BigInt(`0x${digits}`);
}

/**
 * Reads the output of `-trace 'vfio_listener_*'`. Every line must be one of the four events that a guest without an IOMMU
 * of its own causes; the others (region_add_iommu, ...) have no meaning for a replay and are refused too.
 * Throws MalformedLine with the number of the first line that is wrong and what was expected there.
 */
export function readTrace(text: string): TraceLine[] {
  return linesOf(text).map((source, index) => readTraceLine(source, index + 1));
}

function readTraceLine(source: string, line: number): TraceLine {
  const { rest, ...stamp } = readStamp(source, line);
  const space = rest.indexOf(' ');
  const name = space < 0 ? rest : rest.slice(0, space);
  const event = name.replace(/^vfio_listener_/, '') as keyof typeof BODIES;
  if (!name.startsWith('vfio_listener_') || !Object.hasOwn(BODIES, event)) {
    const known = Object.keys(BODIES).map((known) => `vfio_listener_${known}`);
    throw new MalformedLine(line, `one of ${known.join(', ')}`, name);
  }

  const body = space < 0 ? '' : rest.slice(space + 1);
  const { pattern, form } = BODIES[event];
  const match = pattern.exec(body);
  if (match === null) throw new MalformedLine(line, `${form} after ${name}`, body);
  const first = readAddress(match[1], line, body);
  const last = readAddress(match[2], line, body);
  if (last < first) throw new MalformedLine(line, 'a range whose last address is not below its first', body);
  if (event === 'region_add_skip' || event === 'region_del_skip') return { ...stamp, event, first, last };

  // The listener rounds RAM to whole pages before it prints: only skipped (MMIO) sections may lie anywhere.
  if (first % PAGE !== 0n || (last + 1n) % PAGE !== 0n)
    throw new MalformedLine(line, 'a range of whole 4 KiB pages', body);
  if (event === 'region_del') return { ...stamp, event, first, last };

  const vaddr = readAddress(match[3], line, body);
  if (vaddr % PAGE !== 0n) throw new MalformedLine(line, 'a page-aligned vaddr', body);
  if (vaddr + (last - first) >= SPACE) throw new MalformedLine(line, 'a vaddr whose range ends below 2^64', body);
  if (last - first + 1n === SPACE) throw new MalformedLine(line, 'RAM smaller than the whole address space', body);
  return { ...stamp, event, first, last, vaddr };
}

const IOCTLS = [
  {
    pattern:
      /^MAP_DMA iova=0x([0-9a-f]+) size=0x([0-9a-f]+) vaddr=0x([0-9a-f]+) flags=0x([0-9a-f]+) ret=-?\d+ live=\d+$/,
    read: (m: string[]) => ({
      op: 'map_dma' as const,
      ...hexFields(m, 'iova', 'size', 'vaddr'),
      flags: hexNumber(m[4]),
    }),
  },
  {
    pattern: /^UNMAP_DMA iova=0x([0-9a-f]+) size=0x([0-9a-f]+) flags=0x0 ret=-?\d+ unmapped=0x[0-9a-f]+ live=\d+$/,
    read: (m: string[]) => ({ op: 'unmap_dma' as const, ...hexFields(m, 'iova', 'size') }),
  },
  { pattern: /^OPEN (group|container)$/, read: (m: string[]) => ({ op: 'open' as const, argument: m[1] ?? '' }) },
  { pattern: /^GROUP_SET_CONTAINER()$/, read: () => ({ op: 'set_container' as const, argument: '' }) },
  { pattern: /^SET_IOMMU (\d+)$/, read: (m: string[]) => ({ op: 'set_iommu' as const, argument: m[1] ?? '' }) },
  { pattern: /^GET_DEVICE_FD (\S+)$/, read: (m: string[]) => ({ op: 'get_device_fd' as const, argument: m[1] ?? '' }) },
  { pattern: /^DEVICE_RESET()$/, read: () => ({ op: 'device_reset' as const, argument: '' }) },
];

function hexFields<Name extends string>(match: string[], ...names: Name[]): Record<Name, bigint> {
  return Object.fromEntries(names.map((name, i) => [name, BigInt(`0x${match[i + 1]}`)])) as Record<Name, bigint>;
}

function hexNumber(digits: string | undefined): number {
  return Number.parseInt(digits ?? '', 16);
}

/** Reads an .ioctl file: the calls that reached the kernel in the same run, as they arrived. Throws MalformedLine. */
export function readIoctls(text: string): IoctlLine[] {
  return linesOf(text).map((source, index) => {
    const { rest, ...stamp } = readStamp(source, index + 1);
    for (const { pattern, read } of IOCTLS) {
      const match = pattern.exec(rest);
      if (match !== null) return { ...stamp, ...read(match) };
    }
    throw new MalformedLine(index + 1, 'MAP_DMA, UNMAP_DMA, OPEN, GROUP_SET_CONTAINER, SET_IOMMU, ...', rest);
  });
}

/**
 * The calls that QEMU's VFIO listener makes of its trace: vfio_listener_region_add() maps a RAM section, region_del() unmaps
 * it again, skipped sections are MMIO and cause nothing. A deletion of all 2^64 bytes is two calls, since one could not
 * express its size.
 *
 * The trace does not say whether a section is read-only, and its address doesn't either: firmware turns the same page of
 * RAM into ROM and back by the chipset's shadow registers. Every mapping is therefore read and write here; `withFlags`
 * takes the truth from the ioctls.
 */
export function listenerCalls(trace: readonly TraceLine[]): DmaCall[] {
  return trace.flatMap((entry): DmaCall[] => {
    const { line, thread, at, first } = entry;
    const size = entry.last - first + 1n;
    if (entry.event === 'region_add_ram')
      return [{ line, thread, at, op: 'map_dma', iova: first, size, vaddr: entry.vaddr, flags: MAP_READ | MAP_WRITE }];
    if (entry.event !== 'region_del') return [];
    if (size < SPACE) return [{ line, thread, at, op: 'unmap_dma', iova: first, size }];
    const half = SPACE / 2n;
    return [0n, half].map((iova) => ({ line, thread, at, op: 'unmap_dma', iova, size: half }));
  });
}

/** The .ioctl file of a run does not show what its .trace says. */
export class TraceMismatch extends Error {
  constructor(call: DmaCall | undefined, ioctl: IoctlLine | undefined) {
    const said = call === undefined ? 'the trace ends' : `trace line ${call.line} means ${describe(call)}`;
    const done = ioctl === undefined ? 'the ioctls end' : `ioctl line ${ioctl.line} is ${describe(ioctl)}`;
    super(`${said}, but ${done}`);
    this.name = 'TraceMismatch';
  }
}

function describe(call: DmaCall | IoctlLine): string {
  if (call.op === 'map_dma')
    return `map_dma 0x${call.iova.toString(16)} size 0x${call.size.toString(16)} vaddr 0x${call.vaddr.toString(16)}`;
  if (call.op === 'unmap_dma') return `unmap_dma 0x${call.iova.toString(16)} size 0x${call.size.toString(16)}`;
  return call.op;
}

/**
 * Takes the flags of each mapping from the ioctls of the same run: 0x1 where the section was read-only, 0x3 otherwise.
 * Throws TraceMismatch unless both sides are the same calls in the same order.
 */
export function withFlags(calls: readonly DmaCall[], ioctls: readonly IoctlLine[]): DmaCall[] {
  const made = ioctls.filter((ioctl) => ioctl.op === 'map_dma' || ioctl.op === 'unmap_dma');
  const flagged = calls.map((call, i) => {
    const ioctl = made[i];
    if (ioctl === undefined || describe(call) !== describe(ioctl)) throw new TraceMismatch(call, ioctl);
    return call.op === 'map_dma' && ioctl.op === 'map_dma' ? { ...call, flags: ioctl.flags } : call;
  });
  if (made.length > calls.length) throw new TraceMismatch(undefined, made[calls.length]);
  return flagged;
}
