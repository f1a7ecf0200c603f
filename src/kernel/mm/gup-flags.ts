// Flags of get_user_pages() (FOLL_*), as the kernel numbers them.

export const FOLL_WRITE = 0x1;
/** The page is used: marked dirty where it is to be written. */
export const FOLL_TOUCH = 0x2;
export const FOLL_GET = 0x4;
/** Also what the area forbids: a write to what is copied on write, a read of what may be read some day. */
export const FOLL_FORCE = 0x10;
/** Do not wait: a fault that would answers "retry later". */
export const FOLL_NOWAIT = 0x20;
export const FOLL_NOFAULT = 0x80;
export const FOLL_HWPOISON = 0x100;
export const FOLL_TRIED = 0x800;
export const FOLL_REMOTE = 0x2000;
export const FOLL_LONGTERM = 0x10000;
export const FOLL_PIN = 0x40000;
/** Only what is present, without a lock and without a fault. */
export const FOLL_FAST_ONLY = 0x80000;

export const FOLL_KNOWN =
  FOLL_WRITE |
  FOLL_TOUCH |
  FOLL_GET |
  FOLL_FORCE |
  FOLL_NOWAIT |
  FOLL_NOFAULT |
  FOLL_HWPOISON |
  FOLL_TRIED |
  FOLL_REMOTE |
  FOLL_LONGTERM |
  FOLL_PIN |
  FOLL_FAST_ONLY;
