// What a caller of the store must respect, checked alike by every store.

import type { Projection } from '../kernel/projection.ts';
import type { Manifest } from '../service/ports.ts';

/** Throws unless the manifest is at least as new as the newest one and every piece that it names has been written. */
export function checkManifest(
  manifest: Manifest,
  newest: Manifest | null,
  pieces: Iterable<{ key: string; seq: number }>,
): void {
  if (newest !== null && newest.seq > manifest.seq) {
    throw new Error(
      `host ${manifest.host}: a checkpoint at seq ${newest.seq} is newer than one at seq ${manifest.seq}`,
    );
  }
  const missing = new Set(Object.keys(manifest.sections));
  for (const { key, seq } of pieces) if (manifest.sections[key] === seq) missing.delete(key);
  for (const key of missing) throw missingSection(manifest, key);
}

export const missingSection = ({ host, seq, sections }: Manifest, key: string): Error =>
  new Error(`host ${host}: section ${key} at seq ${sections[key]} of the checkpoint at seq ${seq} is missing`);

/** Throws unless each row lies in the slots of its part. */
export function checkParts(parts: Projection[]): void {
  for (const part of parts) {
    if (part.part === 'objects') continue;
    for (const { slot } of part.rows) {
      if (slot < part.first_slot || slot >= part.end_slot) {
        throw new Error(`${part.part} slot ${slot} lies outside of [${part.first_slot}, ${part.end_slot})`);
      }
    }
  }
}
