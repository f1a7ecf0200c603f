// Runs the tests of one file in this process, without tap's runner: which pass, and under which title. Known assertions only.

import assert from 'node:assert/strict';

type Body = (t: TestPoint) => unknown;

/** How a run chooses tests, and what it is told of them. Paths are titles from the outermost test on. */
export interface TestWatch {
  chosen(path: string): boolean;
  begin(path: string): void;
  end(path: string, leaf: boolean, failure: unknown): void;
}

/** Separates the titles of a path. */
export const INSIDE = ' > ';

/** What a test's body gets: tap's assertions as far as the kernel's tests use them. The first that fails ends the test. */
export class TestPoint {
  private last: Promise<void> = Promise.resolve();
  private subtests = 0;

  constructor(
    private readonly path: string,
    private readonly watch: TestWatch,
  ) {}

  /** Tests of one parent run one after the other. */
  test(title: string, body: Body): Promise<void> {
    this.subtests++;
    const path = this.path === '' ? title : `${this.path}${INSIDE}${title}`;
    this.last = this.last.then(() => runTest(path, body, this.watch));
    return this.last;
  }

  /** The subtests have ended. True if there were any. */
  async done(): Promise<boolean> {
    await this.last;
    return this.subtests > 0;
  }

  comment(): void {}

  equal(found: unknown, wanted: unknown, message?: string): void {
    assert.ok(Object.is(found, wanted) || found === wanted, message ?? `${String(found)} is not ${String(wanted)}`);
  }

  not(found: unknown, unwanted: unknown, message?: string): void {
    assert.ok(found !== unwanted, message ?? `is ${String(unwanted)}`);
  }

  ok(found: unknown, message?: string): void {
    assert.ok(found, message ?? `${String(found)} is falsy`);
  }

  notOk(found: unknown, message?: string): void {
    assert.ok(!found, message ?? `${String(found)} is truthy`);
  }

  fail(message?: string): void {
    assert.fail(message ?? 'failed');
  }

  same(found: unknown, wanted: unknown): void {
    assert.deepEqual(found, wanted);
  }

  strictSame(found: unknown, wanted: unknown): void {
    assert.deepEqual(found, wanted);
  }

  match(found: unknown, pattern: unknown, message?: string): void {
    assert.ok(matches(found, pattern), message ?? 'does not match');
  }

  notMatch(found: unknown, pattern: unknown, message?: string): void {
    assert.ok(!matches(found, pattern), message ?? 'matches');
  }

  throws(body: () => unknown, wanted?: unknown): void {
    try {
      body();
    } catch (error) {
      if (typeof wanted !== 'string' && wanted !== undefined) this.match(error, wanted);
      return;
    }
    assert.fail('nothing was thrown');
  }
}

/** Every part of the pattern is in what was found; a string is matched by a part of it or by an expression. */
function matches(found: unknown, pattern: unknown): boolean {
  if (pattern instanceof RegExp) return pattern.test(found instanceof Error ? found.message : String(found));
  if (typeof pattern === 'string' && typeof found === 'string') return found.includes(pattern);
  if (typeof pattern !== 'object' || pattern === null) return Object.is(found, pattern);
  if (typeof found !== 'object' || found === null) return false;
  return Object.entries(pattern).every(([key, part]) => matches((found as Record<string, unknown>)[key], part));
}

async function runTest(path: string, body: Body, watch: TestWatch): Promise<void> {
  if (!watch.chosen(path)) return;
  const point = new TestPoint(path, watch);
  let failure: unknown = null;
  watch.begin(path);
  try {
    await body(point);
  } catch (error) {
    failure = error;
  }
  const leaf = !(await point.done());
  watch.end(path, leaf, failure);
}
