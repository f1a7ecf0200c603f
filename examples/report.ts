// What the demo prints: where a replay is, and what came of it.

import { type Leak, rangeText } from './client.ts';
import type { DriverStats } from './drivers/vendor-driver.ts';
import type { RunReport, Step } from './replay.ts';

/** Leaks that the printed report lists; --json has all. */
const LEAKS_SHOWN = 12;

export interface Output {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

/** On a terminal one line that is overwritten; otherwise a line for every unmap that drivers were told of. */
export class ProgressLine {
  #shown = false;

  constructor(private readonly output: Output) {}

  step(step: Step): void {
    const text = stepText(step);
    if (this.output.isTTY === true) {
      this.output.write(`\r\x1b[K${text.slice(0, (this.output.columns || 80) - 1)}`);
      this.#shown = true;
    } else if (step.notifications > 0 || step.died || step.done === step.total) this.output.write(`${text}\n`);
  }

  /** Leaves the line, so that what comes next starts on its own. */
  end(): void {
    if (this.#shown) this.output.write('\r\x1b[K');
    this.#shown = false;
  }
}

function stepText({ run, done, total, call, held, notifications, died, mapped, locked_vm }: Step): string {
  const percent = `${Math.floor((100 * done) / total)}%`.padStart(4);
  const what = `${call.op === 'map_dma' ? 'map  ' : 'unmap'} ${rangeText(call.iova, call.size)}`;
  const released = Object.entries(held).map(([device, pages]) => `${device} ${pages}`);
  const told = notifications > 0 ? `: ${notifications} notifications, unpinned ${released.join(' ')}` : '';
  return `${run} ${percent}  ${mapped} mapped ${locked_vm} pinned  ${what}${died ? ': BUG' : told}`;
}

/** The report of one run, for people. */
export function reportText(report: RunReport): string {
  const { mappings, drivers, dmesg, died } = report;
  const stats = Object.entries(drivers);
  const rlimit = BigInt(report.rlimit_memlock);
  const lines = [
    `${report.run}: ${report.calls_made} of ${report.calls} calls of QEMU's listener, seed ${report.seed}, ${(report.ms / 1000).toFixed(1)} s`,
    ...report.bugs.map((bug) => `  bug switched on   ${bug}`),
    ...(report.flags_recorded ? [] : ['  flags             no .ioctl beside the trace: every mapping READ and WRITE']),
    `  mappings          ${mappings.made} made, ${mappings.removed} removed, ${mappings.left_at_exit} at the end`,
    `  unmaps            ${report.unmaps_that_notified} met pinned pages and had to wait for the drivers`,
    ...stats.map(([device, driver]) => `  ${device.padEnd(17)} ${driverText(driver)}`),
    `  peak locked_vm    ${report.peak_locked_vm} pages of ${rlimit / 4096n} (RLIMIT_MEMLOCK)`,
    ...(report.after_exit === null
      ? []
      : [`  after exit        ${report.after_exit.mappings} mappings, locked_vm ${report.after_exit.locked_vm}`]),
    `  leaks             ${report.leaks.length === 0 ? 'none' : `${report.leaks.length} runs of pages`}`,
    ...report.leaks.slice(0, LEAKS_SHOWN).map((leak) => `    ${leakText(leak)}`),
    ...(report.leaks.length > LEAKS_SHOWN ? [`    and ${report.leaks.length - LEAKS_SHOWN} more (GET /leaks)`] : []),
    `  invariants        ${report.invariants.ok ? 'hold' : JSON.stringify(report.invariants.violations)}`,
    `  dmesg             ${dmesg.entries} entries, ${dmesg.warn} WARN, ${dmesg.bug} BUG, ${dmesg.deadlock} DEADLOCK`,
    ...dmesg.splats.flatMap((splat) => splat.split('\n').map((line) => `    ${line}`)),
    ...(died === null ? [] : ['  container         dead: every call that would change it is 410 from here on']),
    report.findings.length === 0 ? '  clean             every pin was let go' : '  CAUGHT',
    ...report.findings.map((finding) => `    ${finding}`),
  ];
  return `${lines.join('\n')}\n`;
}

function leakText({ device, iova, size, references, state, notified, first_pin }: Leak): string {
  const what = `${device} ${rangeText(BigInt(iova), BigInt(size))} ${state}, ${references} reference${references === 1 ? '' : 's'} a page`;
  return `${what}, first pinned by ${first_pin.request_id} (seq ${first_pin.seq}), a notifier ${notified ? 'had run' : 'had not run'}`;
}

function driverText(stats: DriverStats): string {
  const refused = Object.entries(stats.refused).map(([errno, times]) => `${errno} ${times}`);
  const parts = [
    `${stats.pinned_pages} pages pinned in ${stats.pin_calls} calls`,
    ...(refused.length > 0 ? [`refused: ${refused.join(', ')}`] : []),
    `${stats.unpinned_pages} unpinned in ${stats.unpin_calls}`,
    `${stats.notifications} notifications, ${stats.notifications_that_unpinned} with pages of its own`,
  ];
  return parts.join('; ');
}
