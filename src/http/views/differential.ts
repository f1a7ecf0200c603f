// Schemas of a differential report: of each pair of kernels the first difference of each kind.

import Type from 'typebox';
import { PROFILE_NAMES } from '../../kernel/profile.ts';
import { Count, Int, Names, Nullable, U64Out } from '../schema.ts';
import { bool, object, str } from './fields.ts';

const open = (description: string) => Type.Object({}, { additionalProperties: true, description });
const position = (description: string) =>
  Nullable(Count('Place in the list, from 1; the seq in a journal'), description);
const profile = Names(PROFILE_NAMES, 'Kernel');
const pair = { minItems: 2, maxItems: 2 };
const command = Nullable(open('The command as the journal shows it'), 'null: no command did it');
const times = Int('How often', 1);

const Cause = object('DifferenceCause', {
  behaviour: str('Row of the table of behaviours'),
  meaning: str('What it is about'),
  values: Type.Array(Type.Unknown(), { ...pair, description: 'Its values in the two kernels' }),
  proof: Names(
    ['removes', 'creates'],
    "removes: with the first kernel's value in the second the difference is gone. creates: with the second kernel's value in the first it is there",
  ),
});

const Difference = object('Difference', {
  kind: Names(
    ['refusal', 'return-value', 'field', 'wait', 'splat', 'notification', 'state'],
    'What differs: the result or errno, ret, a field, whether it waits, a splat, the listeners called, what the host holds afterwards',
  ),
  name: str('The kind in detail, in the order of the profiles'),
  position: position('Where it is first; 0: before the first command; null: found when all were done'),
  command,
  notification: Nullable(Type.String(), 'Notification inside whose handler the call was made'),
  answers: Type.Array(open('What a caller sees'), { ...pair, description: 'In the order of the profiles' }),
  times: Int('How often there is a difference of this name', 1),
  causes: Nullable(
    Type.Array(Cause, { description: 'Empty: no single row makes it' }),
    'Behaviours that make the first one, each proved by playing the commands again; null: not looked for',
  ),
});

const note = { profile, what: str('What, or why'), position: position('Where first'), command, times };

const Comparison = object('Comparison', {
  profiles: Type.Array(profile, pair),
  equal: bool('Whether nothing differs'),
  differences: Type.Array(Difference, { description: 'In the order of the commands' }),
  truncated: Type.Optional(Type.Literal(true, { description: 'There are more differences than are shown' })),
  translated: Type.Array(object('Translated', note), {
    description: 'Commands that had to be said in the form of another kernel',
  }),
  left_out: Type.Array(object('LeftOut', note), {
    description: 'Commands that a kernel has no form for, or whose handler it does not call: not executed there',
  }),
  handlers: Type.Array(
    object('HandlerRule', {
      profile,
      rule: Names(['as-always', 'as-before', 'not-recorded', 'left-waiting'], 'How they were answered'),
      what: str('The rule in words'),
      position: position('Unmap that called the first one'),
      call: object('HandlerCall', {
        device: str('Device'),
        notifier: str('Notifier'),
        iova: U64Out('First byte of the vfio_dma'),
        size: U64Out('Size of the vfio_dma'),
        attempt: Int('Attempt', 1),
      }),
      times,
    }),
    { description: 'Handler calls that the commands have no answer to' },
  ),
});

export const DifferentialReport = object('DifferentialReport', {
  ret: Int('0'),
  written_for: Names(PROFILE_NAMES, 'Kernel that the commands were written for'),
  profiles: Type.Array(profile),
  commands: Count('Commands that were run'),
  equal: bool('Whether nothing differs in any pair'),
  comparisons: Type.Array(Comparison, { description: 'The first profile with each of the others' }),
});
