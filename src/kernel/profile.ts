// The kernels a host can behave as: one table of named behaviours, no version comparison anywhere else.

export interface Profile {
  readonly name: ProfileName;
  /** Release whose function names appear in splats. */
  readonly release: string;
  /** A page pin is a biased reference of the raw page counter: 1024, or 1 before FOLL_PIN. */
  readonly pinBias: 1 | 1024;
  /** Whether a pin or an IOMMU map from a device in a group of several devices is refused with EINVAL. */
  readonly multiDeviceGroupPin: 'allowed' | 'EINVAL';
  /** What the second registration of a notifier block that is on the chain does. */
  readonly doubleRegister: 'warn-and-succeed';
  /** When a leftover pin of a vfio_dma that goes away without notification is warned about. */
  readonly leftoverCheck: 'at-removal';
  /** How vfio_dma_do_unmap() walks the overlapping mappings. */
  readonly unmapOrder: 'ascending';
  /** The bisect test fails on a restart, after a notification: the result of the call. */
  readonly bisectOnRestart: 'success';
  /** Reference of the shared zero page that a pin obtains. */
  readonly zeroPagePin: 'released-at-once';
  /** Reference of other reserved pages that a pin obtains. */
  readonly reservedPagePin: 'kept-for-ever';
  /** Ids in the capability chain of VFIO_IOMMU_GET_INFO for a container without IOMMU-backed group. */
  readonly infoCapabilities: readonly number[];
}

export type ProfileName = '5.15';

export const PROFILES: Readonly<Record<ProfileName, Profile>> = {
  '5.15': {
    name: '5.15',
    release: '5.15.85',
    pinBias: 1024,
    multiDeviceGroupPin: 'EINVAL',
    doubleRegister: 'warn-and-succeed',
    leftoverCheck: 'at-removal',
    unmapOrder: 'ascending',
    bisectOnRestart: 'success',
    zeroPagePin: 'released-at-once',
    reservedPagePin: 'kept-for-ever',
    infoCapabilities: [2, 3],
  },
};

export const PROFILE_NAMES = Object.keys(PROFILES) as ProfileName[];
export const DEFAULT_PROFILE: ProfileName = '5.15';
