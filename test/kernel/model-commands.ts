// Random commands for the model-based test: few iovas, few pages, small limits, so that they meet.

import fc from 'fast-check';
import type { Command } from '../../src/kernel/command.ts';
import { READ, WRITE } from '../../src/kernel/command.ts';
import {
  ANON,
  block,
  DEVICE,
  FIRST_IOVA,
  HOLE,
  IOVA_PAGES,
  LAID_OUT,
  MIXED,
  often,
  READ_ONLY,
  READ_ONLY_DEVICE,
  TOP_IOVA,
} from './model-begin.ts';
import type { Rules } from './naive-rules.ts';
import { PAGE } from './naive-types.ts';

/** A command, or something that becomes one when it is known what waits and which form a pin has. */
export type Recipe =
  | { do: 'command'; command: Command; inside: number | null }
  | { do: 'pin'; device: string; iovas: bigint[]; offset: bigint; npage: number | null; prot: number }
  | { do: 'unpin'; device: string; iovas: bigint[]; offset: bigint; npage: number | null; inside: number | null }
  | { do: 'answer'; which: number; ret: number; times: number }
  | { do: 'time out'; which: number; times: number }
  | { do: 'unpin in handler'; which: number; all: boolean }
  | { do: 'handle'; which: number; attempt: number }
  | { do: 'pin what is mapped'; which: number; device: string; pages: number[] }
  | { do: 'unmap what is mapped'; which: number; task: string | null; flags: number; inside: number | null }
  | { do: 'give a vaddr'; which: number; task: string; vaddr: bigint }
  | { do: 'get bitmap'; which: number; more: number }
  | { do: 'fail'; point: 'record_alloc' | 'charge'; call: 'pin_pages' | 'unpin_pages' | 'unmap_dma'; nth: number }
  | {
      do: 'move bytes';
      which: number;
      device: string;
      at: bigint;
      length: number;
      byte: number | null;
      task: string | null;
    }
  | { do: 'bind' | 'unbind'; group: string; device: string | null }
  | { do: 'log a write'; which: number; at: bigint; length: number }
  | { do: 'tear down' }
  | { do: 'reopen'; group: string; device: string }
  | { do: 'straddle the end'; which: number }
  | { do: 'kill'; which: number }
  | { do: 'late ack'; back: number }
  | { do: 'checkpoint' | 'restart' };

const task = fc.constantFrom('A', 'A', 'A', 'A1', 'B');
const device = fc.oneof(
  often(6, fc.constant('D1')),
  often(4, fc.constant('D2')),
  often(1, fc.constant('E1')),
  often(1, fc.constantFrom('D0', 'D3', 'D4')),
);
const container = fc.oneof(often(19, fc.constant('C')), often(1, fc.constant('X')));
const group = fc.oneof(
  often(6, fc.constantFrom('G1', 'G2')),
  often(1, fc.constant('G3')),
  often(2, fc.constant('H1')),
  often(1, fc.constant('H2')),
);
const listener = fc.constantFrom('L0', 'L0', 'L1', 'L2');
const lowIova = fc.nat({ max: IOVA_PAGES - 1 }).map((i) => (FIRST_IOVA + BigInt(i)) * PAGE);
const topIova = fc.nat({ max: 5 }).map((i) => (TOP_IOVA + BigInt(i)) * PAGE);
const iova = fc.oneof(often(24, lowIova), often(1, topIova));
const npage = fc.oneof(often(8, fc.constantFrom(1, 2, 3, 4)), often(1, fc.constant(IOVA_PAGES)));
const prot = fc.constantFrom(READ, READ, READ | WRITE, READ | WRITE, WRITE, 0);
const vaddr = fc
  .tuple(
    fc.oneof(
      often(5, fc.constantFrom(ANON, LAID_OUT)),
      often(5, fc.constantFrom(READ_ONLY, HOLE, DEVICE, READ_ONLY_DEVICE)),
    ),
    fc.nat({ max: 3 }),
  )
  .map(([area, i]) => area + BigInt(i) * PAGE);
const oddSize = fc.constantFrom(0n, 0x800n, 2n ** 64n - PAGE);
const iovas = fc.array(iova, { minLength: 1, maxLength: 5 });
/** How many pages the call says that it names; null: as many as it does. */
const said = fc.oneof(often(24, fc.constant(null)), often(1, fc.constantFrom(0, -1, 513)));
const offset = fc.constantFrom(0n, 0n, 0n, 0n, 0x10n, 0x800n);
const inside = fc.oneof(often(3, fc.constant(null)), often(2, fc.nat({ max: 2 })));

const mapDma = fc.record({
  op: fc.constant('map_dma' as const),
  container,
  task,
  iova: fc.oneof(often(15, iova), often(1, fc.constant(0x10800n))),
  vaddr,
  size: fc.oneof(
    often(
      15,
      npage.map((n) => BigInt(n) * PAGE),
    ),
    often(1, oddSize),
  ),
  flags: fc.constantFrom(READ | WRITE, READ | WRITE, READ | WRITE, READ | WRITE, READ, READ, WRITE, 0, 8, 4),
  argsz: fc.oneof(often(30, fc.constant(32)), often(1, fc.constant(31))),
});

const unmapRange = fc.oneof(
  often(6, fc.record({ iova, size: npage.map((n) => BigInt(n) * PAGE), flags: fc.constant(0) })),
  often(4, fc.constant({ iova: FIRST_IOVA * PAGE, size: 0x20000n, flags: 0 })),
  often(2, fc.constant({ iova: 0n, size: 0n, flags: 2 })),
  often(1, fc.record({ iova, size: oddSize, flags: fc.constantFrom(0, 2, 8) })),
  often(1, fc.record({ iova, size: npage.map((n) => BigInt(n) * PAGE), flags: fc.constantFrom(4, 1) })),
);
const unmapDma = fc
  .record({ container, task: fc.constantFrom(null, null, 'A', 'A', 'A1', 'B'), range: unmapRange })
  .map(({ container, task, range }) => ({
    op: 'unmap_dma' as const,
    container,
    task,
    ...range,
    argsz: null,
    bitmap: (range.flags & 1) === 0 ? null : { pgsize: PAGE, size: 8n },
  }));

const anonRange = fc
  .tuple(fc.nat({ max: 5 }), fc.integer({ min: 1, max: 4 }))
  .map(([i, n]) => ({ addr: ANON + BigInt(i) * PAGE, length: BigInt(n) * PAGE }));

const register = fc
  .record({
    device,
    listener,
    events: fc.constantFrom(1, 1, 1, 1, 1, 0, 3),
    type: fc.constantFrom(0, 0, 0, 0, 0, 1, 2),
  })
  .map(({ device, listener, events, type }) => ({
    op: 'register_notifier' as const,
    device,
    notifier: block(listener, events, type),
  }));
const unregister = fc.record({
  op: fc.constant('unregister_notifier' as const),
  device,
  notifier: listener,
  type: fc.constantFrom(null, null, 0, 0, 1, 2),
});

const memoryCommand: fc.Arbitrary<Command> = fc.oneof(
  often(
    3,
    anonRange.map((range) => ({ op: 'munmap' as const, task: 'A', ...range })),
  ),
  often(
    3,
    fc
      .tuple(anonRange, fc.constantFrom(READ, READ | WRITE))
      .map(([range, p]) => ({ op: 'mprotect' as const, task: 'A', ...range, prot: p })),
  ),
  often(
    3,
    fc
      .tuple(anonRange, fc.constantFrom(READ, READ | WRITE, READ | WRITE), fc.boolean())
      .map(([range, p, noreplace]) => ({
        op: 'mmap' as const,
        task: 'A',
        ...range,
        prot: p,
        backing: { kind: 'anon' as const },
        noreplace,
      })),
  ),
  often(
    1,
    fc.constant({
      op: 'mmap' as const,
      task: 'A',
      addr: LAID_OUT,
      length: 6n * PAGE,
      prot: READ | WRITE,
      backing: MIXED,
      noreplace: false,
    }),
  ),
  often(
    1,
    fc.record({
      op: fc.constant('put_page' as const),
      pfn: fc.constantFrom(100, 104, 120, 121),
      kind: fc.constantFrom('normal' as const, 'reserved' as const),
    }),
  ),
  often(
    3,
    fc
      .tuple(fc.constantFrom('A', 'B'), fc.constantFrom(0, 1, 2, 3, 8))
      .map(([id, pages]) => ({ op: 'patch_task' as const, task: id, rlimit_memlock: BigInt(pages) * PAGE + 7n })),
  ),
  often(
    2,
    fc
      .tuple(fc.constantFrom('A', 'A', 'A1'), fc.boolean())
      .map(([id, cap_ipc_lock]) => ({ op: 'patch_task' as const, task: id, cap_ipc_lock })),
  ),
  often(
    2,
    fc
      .tuple(fc.constantFrom('A', 'A1', 'B'), fc.integer({ min: -2, max: 2 }))
      .map(([id, delta]) => ({ op: 'adjust_locked_vm' as const, task: id, delta })),
  ),
  often(
    1,
    fc
      .constantFrom(['A1', false], ['B', false], ['A', true], ['A', false])
      .map(([id, thread_only]) => ({ op: 'exit' as const, task: id as string, thread_only: thread_only as boolean })),
  ),
);

const lifeCommand: fc.Arbitrary<Command> = fc.oneof(
  often(2, fc.record({ op: fc.constant('open_device' as const), device })),
  often(3, fc.record({ op: fc.constant('close_device' as const), device })),
  often(2, fc.record({ op: fc.constant('set_container' as const), group, container, task: fc.constant(null) })),
  often(2, fc.record({ op: fc.constant('unset_container' as const), group })),
  often(
    2,
    fc.record({
      op: fc.constant('set_iommu' as const),
      container,
      type: fc.constantFrom(3, 3, 1, 9, 99),
      task: fc.constant(null),
    }),
  ),
  often(1, fc.record({ op: fc.constantFrom('open_group' as const, 'close_group' as const), group })),
  often(1, fc.record({ op: fc.constant('close_container' as const), container })),
  often(1, fc.record({ op: fc.constant('put_container' as const), container })),
);

const dirtyPages: fc.Arbitrary<Command> = fc.oneof(
  often(
    4,
    fc.constantFrom(1, 1, 2, 8).map((flags) => ({
      op: 'dirty_pages' as const,
      ...{ container: 'C', flags, argsz: null, range: null, task: null },
    })),
  ),
  often(
    3,
    fc
      .record({ iova, size: npage.map((n) => BigInt(n) * PAGE), pgsize: fc.constantFrom(PAGE, PAGE, PAGE, 0x2000n) })
      .map((range) => ({
        op: 'dirty_pages' as const,
        ...{ container: 'C', flags: 4, argsz: null, range: { ...range, bitmap_size: 8n }, task: null },
      })),
  ),
);

/** Lengths that stay in a page, cross one, or fill one. */
const dmaRw: fc.Arbitrary<Command> = fc
  .record({
    device,
    page: iova,
    at: fc.constantFrom(0n, 0n, 0x10n, 0xff8n),
    length: fc.constantFrom(0, 16, 16, 4096, 4112),
    write: fc.boolean(),
    task: fc.constantFrom(null, null, null, 'A', 'B'),
    byte: fc.nat({ max: 255 }),
  })
  .map(({ device, page, at, length, write, task, byte }) => ({
    op: 'dma_rw' as const,
    ...{ device, iova: page + at, length, write, task },
    data: write ? Buffer.alloc(length, byte).toString('base64') : null,
  }));

const command: fc.Arbitrary<Command> = fc.oneof(
  often(20, mapDma),
  often(13, unmapDma),
  often(6, register),
  often(4, unregister),
  often(8, memoryCommand),
  often(3, lifeCommand),
  often(5, dirtyPages),
  often(2, dmaRw),
);

const handlerReturn = fc.constantFrom(0, 0, 1, 1, 0x8001, 0x8002);
const times = fc.oneof(often(6, fc.constant(1)), often(2, fc.constantFrom(2, 12)));
const which = fc.nat({ max: 3 });
const failing = fc.oneof(
  fc.record({ point: fc.constant('record_alloc' as const), call: fc.constant('pin_pages' as const) }),
  fc.record({
    point: fc.constant('charge' as const),
    call: fc.constantFrom('pin_pages' as const, 'pin_pages' as const, 'unpin_pages' as const, 'unmap_dma' as const),
  }),
);
const as = <N extends string>(name: N) => fc.constant(name);

export const recipesOf = ({ unmapFlags }: Rules): fc.Arbitrary<Recipe> =>
  fc.oneof(
    often(23, fc.record({ do: as('command'), command, inside })),
    often(8, fc.record({ do: as('pin'), device, iovas, offset, npage: said, prot })),
    often(5, fc.record({ do: as('unpin'), device, iovas, offset, npage: said, inside })),
    often(5, fc.record({ do: as('answer'), which, ret: handlerReturn, times })),
    often(2, fc.record({ do: as('time out'), which, times })),
    often(5, fc.record({ do: as('unpin in handler'), which, all: fc.boolean() })),
    often(3, fc.record({ do: as('handle'), which, attempt: fc.constantFrom(1, 2, 2, 11) })),
    often(
      12,
      fc.record({
        do: as('pin what is mapped'),
        which,
        device: fc.constantFrom('D1', 'D1', 'D2', 'D2', 'E1', 'D3'),
        pages: fc.array(fc.nat({ max: 4 }), { minLength: 1, maxLength: 4 }),
      }),
    ),
    often(
      8,
      fc.record({
        do: as('unmap what is mapped'),
        which,
        task: fc.constantFrom(null, null, 'A', 'A1', 'B'),
        flags: fc.constantFrom(0, 0, 0, ...(unmapFlags === 7 ? [0, 0, 4, 4, 1] : [0, 0, 0, 1])),
        inside,
      }),
    ),
    often(unmapFlags === 7 ? 5 : 1, fc.record({ do: as('give a vaddr'), which, task, vaddr })),
    often(2, fc.record({ do: as('get bitmap'), which, more: fc.nat({ max: 3 }) })),
    often(
      2,
      fc
        .tuple(failing, fc.integer({ min: 1, max: 4 }))
        .map(([{ point, call }, nth]) => ({ do: 'fail' as const, point, call, nth })),
    ),
    often(
      3,
      fc.record({
        do: as('move bytes'),
        which,
        device: fc.constantFrom('D1', 'D2', 'D2'),
        at: fc.constantFrom(0n, 0n, 0x10n, 0xff8n),
        length: fc.constantFrom(16, 16, 4096, 4112, 8208),
        byte: fc.oneof(fc.constant(null), fc.integer({ min: 1, max: 255 })),
        task: fc.constantFrom(null, null, null, 'A', 'A', 'B'),
      }),
    ),
    often(
      2,
      fc
        .tuple(
          fc.constantFrom('bind' as const, 'bind' as const, 'unbind' as const),
          fc.constantFrom(
            ['H1', 'E1'],
            ['H1', null],
            ['H1', 'E1'],
            ['H2', null],
            ['G2', 'D2'],
            ['G1', 'D1'],
            ['G3', 'D3'],
          ),
        )
        .map(([what, [group, device]]) => ({ do: what, group: group as string, device: device as string | null })),
    ),
    often(
      1,
      fc.oneof(
        often(3, fc.constant({ do: 'checkpoint' as const })),
        often(1, fc.constant({ do: 'tear down' as const })),
      ),
    ),
    often(
      1,
      fc
        .constantFrom(['G1', 'D1'], ['G2', 'D2'])
        .map(([group, device]) => ({ do: 'reopen' as const, group: group as string, device: device as string })),
    ),
    often(
      1,
      fc.record({
        do: as('log a write'),
        which,
        at: fc.constantFrom(0n, 0x10n, 0xff8n),
        length: fc.constantFrom(16, 4096, 4112),
      }),
    ),
    often(2, fc.record({ do: as('straddle the end'), which })),
    often(1, fc.record({ do: as('kill'), which })),
    often(1, fc.record({ do: as('late ack'), back: fc.nat({ max: 3 }) })),
    often(1, fc.constantFrom({ do: 'checkpoint' as const }, { do: 'restart' as const })),
  );
