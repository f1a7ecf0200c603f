// Models QEMU's side: a task with the guest's memory in it, a container of type1 v2, and the calls of the memory listener.

import { type HostClient, type Prot, Refused } from './client.ts';
import { type DmaCall, MAP_READ, MAP_WRITE } from './qemu-trace.ts';

export const TASK = 'qemu';
export const CONTAINER = 'vfio0';

/** QEMU aligns what it allocates for guest memory to 2 MiB, for huge pages. */
const BLOCK = 0x200000n;
/** What libvirt allows above the size of the memory to a guest with VFIO devices. */
const LOCKED_BEYOND_RAM = 1n << 30n;

export interface Block {
  addr: bigint;
  length: bigint;
}

/** The blocks of anonymous memory that all vaddrs of the calls lie in, ascending, in as few pieces as possible. */
export function memoryBlocks(calls: readonly DmaCall[]): Block[] {
  const ranges = calls
    .filter((call) => call.op === 'map_dma')
    .map(({ vaddr, size }) => ({
      first: (vaddr / BLOCK) * BLOCK,
      end: ((vaddr + size + BLOCK - 1n) / BLOCK) * BLOCK,
    }))
    .sort((a, b) => (a.first < b.first ? -1 : 1));
  const blocks: Block[] = [];
  for (const { first, end } of ranges) {
    const last = blocks.at(-1);
    if (last === undefined || last.addr + last.length < first) blocks.push({ addr: first, length: end - first });
    else if (last.addr + last.length < end) last.length = end - last.addr;
  }
  return blocks;
}

/** Guest memory and one GiB: what libvirt sets RLIMIT_MEMLOCK to. */
export function memlockLimit(blocks: readonly Block[]): bigint {
  return blocks.reduce((sum, block) => sum + block.length, LOCKED_BEYOND_RAM);
}

function protOf(flags: number): Prot {
  const prot: Prot = [];
  if (flags & MAP_READ) prot.push('READ');
  if (flags & MAP_WRITE) prot.push('WRITE');
  return prot;
}

export class Qemu {
  readonly #groups: string[] = [];

  constructor(private readonly client: HostClient) {}

  /** Starts the process: its memory and its limit. */
  async start(blocks: readonly Block[], rlimitMemlock: bigint): Promise<void> {
    await this.client.putTask(TASK, rlimitMemlock);
    for (const { addr, length } of blocks) await this.client.mmap(TASK, addr, length);
  }

  /** Attaches a device's group; the first one opens the container and chooses its type. */
  async attach(group: string, device: string): Promise<void> {
    await this.client.putGroup(group);
    await this.client.putDevice(device, group);
    if (this.#groups.length === 0) await this.client.putContainer(CONTAINER);
    await this.client.setContainer(group, CONTAINER, TASK);
    if (this.#groups.length === 0) await this.client.setIommu(CONTAINER, 'TYPE1v2', TASK);
    this.#groups.push(group);
  }

  /**
   * Makes one call of the listener and returns how often drivers were called for it. Throws Refused if the kernel refuses,
   * and an Error if it unmapped another size than it was asked for: no call of a recorded boot may do either.
   */
  async call(call: DmaCall): Promise<number> {
    const { iova, size } = call;
    if (call.op === 'map_dma') {
      await this.client.mapDma(CONTAINER, { task: TASK, iova, vaddr: call.vaddr, size, flags: protOf(call.flags) });
      return 0;
    }
    const unmapped = await this.client.unmapDma(CONTAINER, { task: TASK, iova, size });
    if (unmapped.size !== size)
      throw new Error(
        `trace line ${call.line}: unmapped 0x${unmapped.size.toString(16)} of 0x${size.toString(16)} bytes`,
      );
    return unmapped.notifications;
  }

  /** Set when the container died of a BUG. */
  async death(): Promise<{ text: string; where: string } | null> {
    try {
      return (await this.client.container(CONTAINER)).dead;
    } catch (error) {
      if (error instanceof Refused) return null;
      throw error;
    }
  }

  /**
   * The process ends, with its devices closed by now: nothing is unmapped, closing the groups drops the mappings. Returns
   * how many there are after that.
   */
  async exit(): Promise<number> {
    for (const group of this.#groups) await this.client.closeGroup(group);
    const left = (await this.client.mappings(CONTAINER)).length;
    await this.client.closeContainer(CONTAINER);
    await this.client.exitTask(TASK);
    return left;
  }
}
