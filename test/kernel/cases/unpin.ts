// Cases 33 to 42: what an unpin does, and where it stops.

import type { Test } from 'tap';
import { H, PAGE, R, RW, setup, V } from '../machine.ts';
import { ALL, errno, numbered, OLD, secondDevice, unpinned, unregister } from './numbered.ts';

export async function unpinBasics(t: Test): Promise<void> {
  await numbered(
    t,
    ALL,
    '33 unpin_pages: the last reference removes the record, uncharges, and dirties the page',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, 0x4000n);
      m.pin([0x10000n]);
      m.pin([0x10000n]);
      t.equal(m.unpin([0x10000n]).ret, unpinned(profile, 1));
      t.same([m.records(0x10000n), m.lv()], [[[0x10000n, H, 1]], 1]);
      t.match(m.page(H), { pins: 1, dirty: false });
      t.equal(m.unpin([0x10000n]).ret, unpinned(profile, 1));
      t.same([m.records(0x10000n), m.lv()], [[], 0]);
      t.match(m.page(H), { pins: 0, dirty: true });
    },
  );
  await numbered(t, ALL, '34 unpin_pages: a page of a read-only mapping is not dirtied', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE, R);
    m.pin([0x10000n]);
    m.unpin([0x10000n]);
    t.match(m.page(H), { pins: 0, dirty: false });
  });
  await numbered(t, ALL, '36 unpin_pages: an unmapped iova is EINVAL, or a WARN', (t, profile) => {
    const outcome = setup({ profile }).unpin([0x50000n]);
    if (profile !== '6.18') t.equal(errno(outcome), 'EINVAL');
    else t.same([outcome.ret, outcome.fields.warnings], [0, ['unpin-stopped-early']]);
  });
  await numbered(t, OLD, '37 unpin_pages: stops at an unmapped iova and returns what was done', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    t.equal(m.unpin([0x10000n, 0x50000n, 0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
  });
  await numbered(
    t,
    ALL,
    '38 unpin_pages: stops at a gap, with a WARN from 6.0 on; the page behind it stays pinned',
    (t, profile) => {
      const m = setup({ profile });
      m.map(0x10000n, PAGE);
      m.map(0x12000n, PAGE, RW, { vaddr: V + 2n * PAGE });
      m.pin([0x10000n]);
      m.pin([0x12000n]);
      const outcome = m.unpin([0x10000n, 0x11000n, 0x12000n]);
      t.equal(outcome.ret, unpinned(profile, 1));
      t.same(outcome.fields.warnings, profile === '6.18' ? ['unpin-stopped-early'] : undefined);
      t.same([m.records(0x10000n), m.records(0x12000n)], [[], [[0x12000n, H + 2, 1]]]);
    },
  );
  await numbered(t, ALL, '40 unpin_pages: any device of the container may drop a pin', (t, profile) => {
    const m = setup({ profile });
    secondDevice(m);
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    t.equal(m.unpin([0x10000n], { device: 'D2' }).ret, unpinned(profile, 1));
    t.same([m.records(0x10000n), m.lv()], [[], 0]);
  });
  await numbered(t, OLD, '41 unpin_pages: needs no listener', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    unregister(m);
    t.equal(m.unpin([0x10000n]).ret, 1);
    t.equal(m.lv(), 0);
  });
  await numbered(
    t,
    ['6.18'],
    '41 unpin_pages: works when the listener of the device that pinned is gone, by a device with one',
    (t, profile) => {
      const m = setup({ profile });
      secondDevice(m);
      m.map(0x10000n, PAGE);
      m.pin([0x10000n]);
      unregister(m);
      t.same(m.unpin([0x10000n]).fields.warnings, ['device-without-unmap-callback']);
      t.equal(m.lv(), 1, 'a driver without dma_unmap op unpins nothing');
      t.same(m.unpin([0x10000n], { device: 'D2' }).fields.warnings, undefined);
      t.equal(m.lv(), 0);
    },
  );
  await numbered(t, ALL, '42 unpin_pages: works after the task has exited, without a charge error', (t, profile) => {
    const m = setup({ profile });
    m.map(0x10000n, PAGE);
    m.pin([0x10000n]);
    m.run({ op: 'exit', task: 'T' });
    t.equal(m.unpin([0x10000n]).ret, unpinned(profile, 1));
    t.same([m.records(0x10000n), m.page(H).pins, m.dmesg('WARN')], [[], 0, []]);
  });
}
