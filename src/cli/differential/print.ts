// A differential report for people: the first difference of each kind, in the order of the commands.

import type { JsonFields } from '../../http/parse.ts';

interface Note {
  profile: string;
  what: string;
  position: number | null;
  times: number;
}

interface Difference {
  kind: string;
  name: string;
  position: number | null;
  command: JsonFields | null;
  notification: string | null;
  answers: [JsonFields, JsonFields];
  times: number;
  causes: { behaviour: string; meaning: string; values: unknown[]; proof: 'removes' | 'creates' }[] | null;
}

export interface ReportJson {
  written_for: string;
  commands: number;
  equal: boolean;
  comparisons: {
    profiles: [string, string];
    differences: Difference[];
    truncated?: true;
    translated: Note[];
    left_out: Note[];
    handlers: Note[];
  }[];
}

const count = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`;
const placeOf = (position: number | null): string =>
  position === null ? 'found when all were done' : position === 0 ? 'before the first command' : `first at ${position}`;

/** The whole report as text. */
export function printReport({ written_for, commands, comparisons }: ReportJson): string {
  const lines = [`${count(commands, 'command')}, written for ${written_for}`];
  for (const { profiles, differences, truncated, translated, left_out, handlers } of comparisons) {
    lines.push('', `${profiles.join(' against ')}: ${count(differences.length, 'difference')}`);
    for (const [i, difference] of differences.entries()) lines.push('', ...linesOf(difference, i + 1, profiles));
    if (truncated === true) lines.push('', 'There are more differences than are shown.');
    lines.push(...section('said in another form', translated), ...section('left out', left_out));
    lines.push(...section('handler calls without a recorded answer', handlers));
  }
  return lines.join('\n');
}

function linesOf(difference: Difference, n: number, profiles: readonly string[]): string[] {
  const { name, position, times, command, notification, answers } = difference;
  const width = 9;
  const row = (head: string, text: string): string => `   ${head.padEnd(width)} ${text}`;
  return [
    `${n}. ${name} (${placeOf(position)}, ${count(times, 'time')})`,
    ...(command === null ? [] : [row('command', JSON.stringify(command))]),
    ...(notification === null ? [] : [row('inside', notification)]),
    ...answers.map((answer, i) => row(profiles[i] as string, printAnswer(answer))),
    ...causeLines(difference).map((text, i) => row(i === 0 ? 'made by' : '', text)),
  ];
}

/** A splat keeps its lines: they are what the kernel log will show. */
function printAnswer(answer: JsonFields): string {
  const { text, ...rest } = answer;
  if (typeof text !== 'string') return JSON.stringify(answer);
  return [JSON.stringify(rest), ...text.split('\n')].join('\n             ');
}

function causeLines({ causes }: Difference): string[] {
  if (causes === null) return ['(not looked for)'];
  if (causes.length === 0) return ['(no single behaviour)'];
  return causes.map(({ behaviour, meaning, values, proof }) => {
    const [mine, theirs] = values.map((value) => JSON.stringify(value));
    const proved = proof === 'removes' ? 'without it the difference is gone' : 'it alone makes the difference';
    return `${behaviour}: ${mine} / ${theirs} - ${meaning} (${proved})`;
  });
}

const section = (title: string, notes: readonly Note[]): string[] =>
  notes.length === 0
    ? []
    : [
        '',
        `${title}:`,
        ...notes.map(
          (note) => `   ${note.profile}  ${note.what} (${placeOf(note.position)}, ${count(note.times, 'time')})`,
        ),
      ];
