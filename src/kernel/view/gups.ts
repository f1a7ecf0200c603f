// What GETs show of pages that are held by get_user_pages() and pin_user_pages(). Pure: nothing here changes a host.

import { NoSuchObject } from '../errno.ts';
import type { Host } from '../host.ts';
import { addressOf } from '../lib/u64.ts';
import { FOLL_PIN } from '../mm/gup-flags.ts';
import type { Gup } from '../mm/gup-steps.ts';
import type { Fields } from '../outcome.ts';
import { byId, type Listed, listed } from './page.ts';

const showGup = ({ id, mm, page, flags, pfns, busy }: Gup): Fields => ({
  id,
  mm,
  addr: addressOf(page),
  flags,
  pinned: (flags & FOLL_PIN) !== 0,
  pfns: [...pfns],
  busy,
});

export const listGups = (host: Host, after: string | null, limit: number): Listed<string> =>
  listed(byId(host.mm.gups, after), limit, ({ id }) => id, showGup);

export function viewGup(host: Host, id: string): Fields {
  const gup = host.mm.gups.get(id);
  if (gup === undefined) throw new NoSuchObject('gup', id);
  return showGup(gup);
}
