import { testProfile } from './model-run.ts';
import type { NaiveProfile } from './naive-rules.ts';
testProfile((process.env.PROFILE ?? '5.15') as NaiveProfile, [], []);
