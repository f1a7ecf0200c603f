// Commands of devices that can have pages to themselves as JSON, as GET .../journal shows them.

import Type, { type TProperties } from 'typebox';
import type { ExclusiveCommand } from '../kernel/exclusive/exclusive.ts';
import { Base64, Count, closed, Id, Int, StopAt, U64 } from './schema.ts';
import { DeviceKind } from './views/exclusive.ts';

const command = <const O extends ExclusiveCommand['op'], P extends TProperties>(op: O, fields: P) =>
  closed({ op: Type.Literal(op), ...fields });

const device = Id('Device', 'gpu0');
const grant = Id('Grant', 'g0');
const range = { start: U64('First byte'), length: U64('Bytes') };

export const EXCLUSIVE_COMMANDS = [
  command('put_exclusive_device', {
    device,
    task: Id('Task', 'a'),
    kind: DeviceKind,
    owner_filter: Type.Boolean(),
    ...range,
  }),
  command('delete_exclusive_device', { device }),
  command('make_device_exclusive', { device, ...range, grant: Type.Optional(grant), stop_at: StopAt }),
  command('drop_exclusive_grant', { device, grant }),
  command('map_exclusive_grant', {
    device,
    grant,
    sequence: Type.Optional(Count('What read_begin answered')),
    stop_at: StopAt,
  }),
  command('dmirror_exclusive', { device, ...range, stop_at: StopAt }),
  command('check_exclusive', { device, ...range }),
  command('mirror_range', { device, ...range, fault: Type.Boolean(), write: Type.Boolean(), stop_at: StopAt }),
  command('device_access', {
    device,
    addr: U64('First byte'),
    write: Type.Boolean(),
    length: Type.Optional(Int('Bytes to read', 0)),
    data: Type.Optional(Base64('Bytes to write')),
  }),
] as const;
