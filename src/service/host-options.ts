// The options of a host as they are stored: what PUT created it with, for comparison and reset, and what PATCH made of them.

import type { HostOptions } from '../kernel/command.ts';
import { DEFAULT_PROFILE, PROFILES } from '../kernel/profile.ts';

/** What PUT fills in for a field that is not given. */
export const DEFAULT_HOST_OPTIONS: Readonly<HostOptions> = {
  profile: DEFAULT_PROFILE,
  template: 'empty',
  dma_entry_limit: 65535,
  notifier_timeout_ms: 10_000,
  total_pages: 16_777_216,
  fixes: [],
  ttl_s: null,
};

export interface StoredOptions {
  current: HostOptions;
  created_with: HostOptions;
}

export const copyOptions = (options: HostOptions): HostOptions => ({ ...options, fixes: [...options.fixes] });

/** The options in a fixed order of fields, so that equal options are equal text. */
const inOrder = (o: HostOptions): HostOptions => ({
  profile: o.profile,
  template: o.template,
  dma_entry_limit: o.dma_entry_limit,
  notifier_timeout_ms: o.notifier_timeout_ms,
  total_pages: o.total_pages,
  fixes: [...o.fixes],
  ttl_s: o.ttl_s,
});

export const optionsToText = ({ current, created_with }: StoredOptions): string =>
  JSON.stringify({ ...inOrder(current), created_with: inOrder(created_with) });

/** Throws where the text is not the options of a host that this release can make. */
export function optionsFromText(text: string): StoredOptions {
  const { created_with, ...current } = JSON.parse(text) as HostOptions & { created_with: HostOptions };
  for (const options of [current, created_with]) checkOptions(options);
  return { current, created_with };
}

function checkOptions(options: HostOptions): void {
  const { profile, fixes, ttl_s } = options;
  for (const name of ['dma_entry_limit', 'notifier_timeout_ms', 'total_pages'] as const)
    if (typeof options[name] !== 'number') throw new Error(`${name} is no number`);
  if (ttl_s !== null && typeof ttl_s !== 'number') throw new Error('ttl_s is neither a number nor null');
  if (!Array.isArray(fixes)) throw new Error('fixes is no list');
  if (!Object.hasOwn(PROFILES, profile)) throw new Error(`profile '${profile}' is not known`);
}

export const sameOptions = (a: HostOptions, b: HostOptions): boolean =>
  JSON.stringify(inOrder(a)) === JSON.stringify(inOrder(b));
