// npm test: the set-up, then every test, or those named: npm test -- test/store/store.test.ts

import { spawn } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { setupOrExit } from './setup.mjs';

await setupOrExit();
const tap = fileURLToPath(new URL('../node_modules/tap/dist/esm/run.mjs', import.meta.url));
const child = spawn(process.execPath, [tap, 'run', ...process.argv.slice(2)], { stdio: 'inherit' });
for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => child.kill(signal));
child.on('close', (code, signal) => {
  process.exitCode = signal === null ? (code ?? 1) : 1;
});
