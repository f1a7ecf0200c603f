// Every status that the document promises is provoked, and every response on the way is checked against it.

import t from 'tap';
import { containerRefusals } from './statuses/containers.ts';
import { deviceRefusals } from './statuses/devices.ts';
import { differentialRefusals } from './statuses/differential.ts';
import { dmaRefusals } from './statuses/dma.ts';
import { everyOperation } from './statuses/every-operation.ts';
import { exclusiveStatuses } from './statuses/exclusive.ts';
import { groupRefusals } from './statuses/groups.ts';
import { hostRefusals } from './statuses/hosts.ts';
import { kvmStatuses } from './statuses/kvm.ts';
import { app, client, operations } from './statuses/machine.ts';
import { memoryStatuses } from './statuses/memory.ts';
import { notifierRefusals } from './statuses/notifiers.ts';
import { successes } from './statuses/successes.ts';
import { taskRefusals } from './statuses/tasks.ts';
import { vfioPciStatuses } from './statuses/vfio-pci.ts';
import { vhostStatuses } from './statuses/vhost.ts';

t.teardown(() => app.close());

t.test('every operation', everyOperation);
t.test('successes', successes);
t.test('hosts', hostRefusals);
t.test('tasks and memory', taskRefusals);
t.test('memory operations', memoryStatuses);
t.test('containers', containerRefusals);
t.test('groups', groupRefusals);
t.test('devices and pins', deviceRefusals);
t.test('mappings', dmaRefusals);
t.test('notifiers', notifierRefusals);
t.test('virtual machines', kvmStatuses);
t.test('vhost devices', vhostStatuses);
t.test('differential runs', differentialRefusals);
t.test('device-exclusive access', exclusiveStatuses);
t.test('vfio-pci', vfioPciStatuses);

t.test('nothing that is documented was left out', async (t) => {
  const documented = operations.flatMap(({ operation }) =>
    Object.keys(operation.responses).map((status) => `${operation.operationId} ${status}`),
  );
  t.same(
    documented.filter((each) => !client.seen.has(each)),
    [],
  );
});
