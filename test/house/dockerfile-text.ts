// Reads a Dockerfile into stages: what each copies, runs and ends as. Enough to lay an image out without an engine.

import { type Copy, DockerfileParser, type JSONInstruction } from 'dockerfile-ast';

export interface CopyStep {
  kind: 'copy';
  /** Name of the stage it copies from; null: the build context. */
  from: string | null;
  sources: string[];
  destination: string;
}

export interface RunStep {
  kind: 'run';
  command: string;
}

export interface Stage {
  name: string;
  /** Image or earlier stage that it starts from. */
  base: string;
  steps: (CopyStep | RunStep)[];
  /** The last of each, its arguments as written. */
  last: Map<string, string[]>;
  env: Map<string, string>;
}

export function readDockerfile(text: string): Stage[] {
  const stages: Stage[] = [];
  for (const instruction of DockerfileParser.parse(text).getInstructions()) {
    const keyword = instruction.getKeyword();
    const args = instruction.getExpandedArguments().map((argument) => argument.getValue());
    if (keyword === 'FROM') {
      stages.push({
        name: args[2] ?? `stage${stages.length}`,
        base: args[0] as string,
        steps: [],
        last: new Map(),
        env: new Map(),
      });
      continue;
    }
    const stage = stages.at(-1);
    if (stage === undefined) throw new Error(`${keyword} before FROM`);
    if (keyword === 'COPY') {
      const flag = (instruction as Copy).getFlags().find((found) => found.getName() === 'from');
      const words = args.filter((word) => !word.startsWith('--'));
      stage.steps.push({
        kind: 'copy',
        from: flag?.getValue() ?? null,
        sources: words.slice(0, -1),
        destination: words.at(-1) as string,
      });
    } else if (keyword === 'RUN') {
      stage.steps.push({ kind: 'run', command: args.join(' ') });
    } else if (keyword === 'ENV') {
      for (const pair of args) {
        const at = pair.indexOf('=');
        stage.env.set(pair.slice(0, at), pair.slice(at + 1));
      }
    }
    stage.last.set(keyword, keyword === 'CMD' ? jsonOf(instruction as JSONInstruction) : args);
  }
  return stages;
}

/** The words of an exec form; an empty list where the shell form is used. */
function jsonOf(instruction: JSONInstruction): string[] {
  return instruction.getOpeningBracket() === null
    ? []
    : instruction.getJSONStrings().map((argument) => JSON.parse(argument.getValue()) as string);
}

/** A stage with the steps, settings and last instructions of the stages that it starts from in front. */
export function flatten(stages: Stage[], name: string): Stage {
  const stage = stages.find((found) => found.name === name);
  if (stage === undefined) throw new Error(`no stage ${name}`);
  if (!stages.some((found) => found.name === stage.base)) return stage;
  const base = flatten(stages, stage.base);
  return {
    ...stage,
    base: base.base,
    steps: [...base.steps, ...stage.steps],
    last: new Map([...base.last, ...stage.last]),
    env: new Map([...base.env, ...stage.env]),
  };
}
