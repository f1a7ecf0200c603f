// The semantics of this release as one number: raised when the same commands would give other outcomes than before.

/** Stands in every journal row and checkpoint, so that a host that does not match can say which release wrote it. */
export const SEMANTICS_REVISION = 2;
