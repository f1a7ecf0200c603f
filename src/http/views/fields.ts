// Fields that many views have.

import Type, { type TProperties } from 'typebox';
import { Count, closed, Int } from '../schema.ts';

export const id = Type.String({ description: 'Id' });
export const names = (description: string) => Type.Array(Type.String(), { description });
export const bool = (description: string) => Type.Boolean({ description });
export const str = (description: string) => Type.String({ description });
export const at = Int('Milliseconds since the epoch', 0);
export const object = <P extends TProperties>(title: string, properties: P) => closed(properties, { title });

export const bug = closed({
  text: str('What the BUG says'),
  where: str('Kernel function'),
  seq: Count('Command that hit it'),
  at,
});
