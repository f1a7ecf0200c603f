// What each kernel does, as the behaviour reference dates it: the naive model's own statement, written without a look at the
// emulator's table of behaviours, so that an error in either shows.

export const NAIVE_PROFILES = ['4.10', '5.4', '5.8', '5.15', '6.18'] as const;
export type NaiveProfile = (typeof NAIVE_PROFILES)[number];

const RELEASES: Readonly<Record<NaiveProfile, string>> = {
  '4.10': '4.10.0',
  '5.4': '5.4.0',
  '5.8': '5.8.1',
  '5.15': '5.15.85',
  '6.18': '6.18.2',
};

/** The rules of one kernel. Where a rule came or went between two releases, the name of the first release with it stands here. */
export function rulesOf(profile: NaiveProfile) {
  const [major = 0, minor = 0] = profile.split('.').map(Number);
  const since = (version: string): boolean => {
    const [first = 0, second = 0] = version.split('.').map(Number);
    return major > first || (major === first && minor >= second);
  };
  return {
    profile,
    release: RELEASES[profile],
    // What a call takes
    takesArrays: !since('6.0'),
    mapFlags: since('5.12') ? 7 : 3,
    unmapFlags: since('5.12') ? 7 : since('5.8') ? 1 : 0,
    overflow: since('6.18') ? 'EOVERFLOW' : 'EINVAL',
    refusesWrappingUnmap: since('4.15'),
    answersNesting: !since('6.2'),
    answersUnmapAll: since('5.12'),
    /** UPDATE_VADDR: never, always, or in containers without mdev group only. */
    answersUpdateVaddr: since('6.3') ? 'without mdev' : since('5.12') ? 'always' : 'never',
    /** Capabilities of GET_INFO in order; 1 only where there are ranges. */
    capabilities: since('5.10') ? [2, 3, 1] : since('5.8') ? [2, 1] : since('5.4') ? [1] : [],
    capabilityAlign: since('6.6') ? 8 : 1,
    // Pins
    pinBias: since('5.7') ? 1024 : 1,
    onlyDeviceOfItsGroup: since('5.7') && !since('6.1'),
    wantsMdevGroup: !since('5.2'),
    wantsOpenDevice: since('5.19'),
    /** Whose ref of the zero page: kept for ever, given back at once, never taken. */
    zeroPage: since('6.14') ? 'none' : since('5.15') ? 'returned' : 'kept',
    countsPfnmapFromStart: !since('5.8'),
    refusesReadOnlyPfnmap: since('5.12'),
    wantsStructPage: since('6.4'),
    leaksWithoutRecord: !since('5.10'),
    // Accounting
    ownerIsLeader: since('4.18'),
    mappingKeepsMm: since('6.3'),
    capAtMap: since('4.18'),
    testsLimitAlways: !since('4.12'),
    chargesUnderLimit: since('4.12'),
    warnsOfUnderflow: since('5.3'),
    entryLimit: since('5.1'),
    // Map and unmap
    validRanges: since('5.4'),
    endWraps: !since('6.18'),
    ascending: since('5.12'),
    /** Calls into the back end hold group_lock for reading; attach and detach want it for writing. */
    groupLockAroundCalls: !since('4.13'),
    foreignMmMayUnmap: since('6.0'),
    bisectOnRestartSucceeds: since('5.12'),
    // Listeners
    deviceIsListener: since('6.0'),
    /** A block twice: links it again unseen, or with one WARN, or refuses with a WARN. */
    doubleRegister: since('5.8') ? 'refused' : since('5.2') ? 'one WARN' : 'unseen',
    checksLeftoversAtDetach: !since('5.12'),
    checksGroupChainAtOpen: since('4.19') && !since('6.0'),
    // IOMMU-backed groups
    pagesAtATime: since('5.12') ? 512 : 1,
    leaksFailedReplay: !since('5.10'),
    keepsChunkOverLimit: !since('4.12'),
    // Dirty log, dma_rw, vaddr
    dirtyLog: since('5.8'),
    allDirtyAfterDetach: since('5.12'),
    dmaRw: since('5.7'),
    countsWholePages: !since('5.10'),
    vaddrUpdate: since('6.3') ? 'refuses' : since('5.12') ? 'waits' : 'none',
  } as const;
}

export type Rules = ReturnType<typeof rulesOf>;
