// The numbered conformance cases of VFIO type1 and the profiles that each names. A case without tag holds in all; one whose versions
// include no profile, or whose subject is out of scope, has none.

const ALL = ['4.10', '5.4', '5.8', '5.15', '6.18'];
const BEFORE_5_19 = ['4.10', '5.4', '5.8', '5.15'];
const SINCE_5_0 = ['5.4', '5.8', '5.15', '6.18'];
const SINCE_5_8 = ['5.8', '5.15', '6.18'];
const SINCE_5_12 = ['5.15', '6.18'];

const inAll = (...numbers: number[]): [number, readonly string[]][] => numbers.map((number) => [number, ALL]);

export const SECTION_7: ReadonlyMap<number, readonly string[]> = new Map([
  // A. pin basics
  ...inAll(1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, 16),
  [17, BEFORE_5_19],
  ...inAll(18, 20, 21, 22, 24, 25, 26, 28, 29, 30),
  [32, ['6.18']],
  // B. unpin
  ...inAll(33, 34, 36),
  [37, BEFORE_5_19],
  ...inAll(38, 40, 41, 42),
  // C. accounting
  ...inAll(44, 45, 46, 48, 49, 50, 52, 53, 54, 56, 57),
  // D. map
  ...inAll(58, 60, 61, 62, 64, 65, 66),
  // E. unmap
  ...inAll(68, 69, 70, 72, 73),
  [74, SINCE_5_12],
  ...inAll(76),
  [77, SINCE_5_0],
  [78, SINCE_5_0],
  ...inAll(80, 81, 82),
  // F. notification protocol
  ...inAll(84, 85, 86, 88, 89, 90, 92, 93, 94),
  [96, BEFORE_5_19],
  ...inAll(97),
  [98, ['4.10', '5.15', '6.18']],
  [100, BEFORE_5_19],
  ...inAll(101, 102),
  // G. group, container and device lifecycle
  ...inAll(104, 105, 106, 108, 109, 110, 112, 113),
  // H. dirty log
  [114, SINCE_5_8],
  [116, SINCE_5_8],
  [117, SINCE_5_8],
  [118, SINCE_5_8],
  [120, SINCE_5_8],
  [121, SINCE_5_12],
  [122, SINCE_5_8],
  // I. dma_rw, info, vaddr, iommufd
  [124, SINCE_5_8],
  [125, SINCE_5_8],
  ...inAll(126),
  [128, SINCE_5_12],
  [129, []],
]);
