// The numbered conformance cases of VFIO type1 pinning, each for every profile that it names, and proof that none is missing.

import t from 'tap';
import { PROFILE_NAMES } from '../../src/kernel/profile.ts';
import { accessAndInfo } from './cases/access.ts';
import { accounting } from './cases/accounting.ts';
import { dirtyLog } from './cases/dirty-log.ts';
import { lifecycle } from './cases/lifecycle.ts';
import { mapBasics } from './cases/map.ts';
import { notificationProtocol } from './cases/notification.ts';
import { ran } from './cases/numbered.ts';
import { pinBasics } from './cases/pin.ts';
import { SECTION_7 } from './cases/section-7.ts';
import { unmapBasics } from './cases/unmap.ts';
import { unpinBasics } from './cases/unpin.ts';

t.test('A. pin basics', pinBasics);
t.test('B. unpin', unpinBasics);
t.test('C. accounting', accounting);
t.test('D. map', mapBasics);
t.test('E. unmap', unmapBasics);
t.test('F. notification protocol', notificationProtocol);
t.test('G. group, container and device lifecycle', lifecycle);
t.test('H. dirty log', dirtyLog);
t.test('I. dma_rw, info and vaddr', accessAndInfo);

t.test('every numbered case has run in every profile that it names', async (t) => {
  const named = [...SECTION_7].flatMap(([number, profiles]) => profiles.map((profile) => `${number} ${profile}`));
  t.same(
    named.filter((pair) => !ran.has(pair)),
    [],
  );
  t.equal(named.length, new Set(named).size);
  t.same(
    [...ran].filter((pair) => !SECTION_7.has(Number(pair.split(' ')[0]))),
    [],
    'and no title has a number that there is not',
  );
  const profiles = new Set(named.map((pair) => pair.split(' ')[1]));
  t.same([...profiles].toSorted(), [...PROFILE_NAMES].toSorted());
});
