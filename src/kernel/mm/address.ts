// Models the kernel's arithmetic on user addresses and lengths in bytes.

const U64 = 2n ** 64n;

/** PAGE_ALIGN() of an unsigned long: up to whole pages, modulo 2^64. */
export const pageAlign = (bytes: bigint): bigint => ((bytes + 0xfffn) & ~0xfffn) % U64;
