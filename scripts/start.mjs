// npm start: the set-up, then the service in this very process, so that signals and exit codes are its own.

import { setupOrExit } from './setup.mjs';

await setupOrExit();
await import('../dist/server.js');
