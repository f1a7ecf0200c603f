// Which recorded traces a run replays: all, those with some features, or a number of them spread over eras and features.

import { parseLines } from './trace-lines.ts';

/** What a trace of any unit says of itself. */
export interface Selectable {
  file: string;
  line: number;
  era: string;
  features: string[];
}

export interface Selection {
  /** Only traces with one of these; null: with any or none. */
  features: readonly string[] | null;
  withoutFeatures: readonly string[];
  /** How many; null: all. */
  limit: number | null;
}

/** What selects the traces that have no feature. */
export const NO_FEATURE = 'none';

/** Why a trace is not replayed; null: it is. */
export type ReasonToSkip = (trace: Selectable) => string | null;

/** Decides for the traces of some files. With a limit the files are read once to know what there is. Throws TraceError. */
export function select(files: readonly string[], selection: Selection): ReasonToSkip {
  const byFeature: ReasonToSkip = ({ features }) => reasonByFeature(features, selection);
  if (selection.limit === null) return byFeature;
  const chosen = spread(candidates(files, byFeature), selection.limit);
  return (trace) => byFeature(trace) ?? (chosen.has(placeOf(trace)) ? null : '--limit');
}

function reasonByFeature(own: readonly string[], { features, withoutFeatures }: Selection): string | null {
  const shown = own.length === 0 ? [NO_FEATURE] : own;
  if (features !== null && !shown.some((feature) => features.includes(feature))) return `features ${shown.join('+')}`;
  const unwanted = shown.filter((feature) => withoutFeatures.includes(feature));
  return unwanted.length === 0 ? null : `without ${unwanted.join('+')}`;
}

interface Candidate {
  place: string;
  /** Era and set of features. */
  kind: string;
}

const placeOf = ({ file, line }: Selectable): string => `${file}:${line}`;

function* candidates(files: readonly string[], byFeature: ReasonToSkip): Iterable<Candidate> {
  for (const file of files)
    for (const trace of parseLines(file, (json, line) => headerOf(file, line, json)))
      if (byFeature(trace) === null)
        yield { place: placeOf(trace), kind: `${trace.era} ${[...trace.features].sort().join('+')}` };
}

/** Whatever else is wrong with a line is said when it is read whole. */
function headerOf(file: string, line: number, json: unknown): Selectable {
  const { era, features } = (json ?? {}) as { era?: unknown; features?: unknown };
  return { file, line, era: String(era), features: Array.isArray(features) ? features.map(String) : [] };
}

/** The first of every kind, then the second of every kind that has one, and so on. */
function spread(all: Iterable<Candidate>, limit: number): Set<string> {
  const kinds = new Map<string, string[]>();
  for (const { place, kind } of all) {
    const places = kinds.get(kind);
    if (places === undefined) kinds.set(kind, [place]);
    else places.push(place);
  }
  const chosen = new Set<string>();
  const deepest = Math.max(0, ...[...kinds.values()].map(({ length }) => length));
  for (let i = 0; i < deepest; i++)
    for (const places of kinds.values()) {
      const place = places[i];
      if (place !== undefined && chosen.size < limit) chosen.add(place);
    }
  return chosen;
}
