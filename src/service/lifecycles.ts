// What happens to hosts as a whole (made, reset, deleted), one thing after the other for each id.

export class Lifecycles {
  private readonly last = new Map<string, Promise<void>>();

  has(id: string): boolean {
    return this.last.has(id);
  }

  /** Runs something after whatever was begun before for the same id. */
  run<T>(id: string, work: () => Promise<T>): Promise<T> {
    const running = (this.last.get(id) ?? Promise.resolve()).then(work);
    const settled = running.then(
      () => undefined,
      () => undefined,
    );
    const ended: Promise<void> = settled.then(() => this.forget(id, ended));
    this.last.set(id, ended);
    return running;
  }

  /** Resolves when nothing is happening to the host, at once if so. */
  async ended(id: string): Promise<void> {
    for (let last = this.last.get(id); last !== undefined; last = this.last.get(id)) await last;
  }

  async idle(): Promise<void> {
    while (this.last.size > 0) await Promise.all(this.last.values());
  }

  private forget(id: string, ended: Promise<void>): void {
    if (this.last.get(id) === ended) this.last.delete(id);
  }
}
