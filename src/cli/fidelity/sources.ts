// Where the sources of the emulated behaviour contradict each other, and which one is followed. Each names tests that show it.

export interface Disagreement {
  /** What the source that is not followed says. */
  said: string;
  /** What is emulated instead, and in which kernel functions it is so. */
  emulated: string;
  /** Numbers of the cases whose tests show it: each must be one that titles of tests begin with. */
  cases: readonly string[];
}

export interface Mail {
  subject: string;
  from: string;
  date: string;
  /** Empty where nothing that it says of VFIO type1 differs from what was merged. */
  disagreements: readonly Disagreement[];
}

/** Mails that the emulator was begun from. What was merged in the end is emulated, not what a mail proposes. */
export const MAILS: readonly Mail[] = [
  {
    subject: 'Re: [PATCH v11 11/22] vfio iommu: Add blocking notifier to notify DMA_UNMAP',
    from: 'Kirti Wankhede, answering Alex Williamson',
    date: '14 Nov 2016',
    disagreements: [
      {
        said: 'The notifier is called once, after the mappings have been removed, with the range of the request (as posted in v11).',
        emulated:
          'It is called before a mapping is removed, once a try for each mapping that has pins, with the range of that mapping: `vfio_dma_do_unmap()`.',
        cases: ['84', '85', '102'],
      },
      {
        said: 'Records that remain after the notification are a BUG at once.',
        emulated:
          'The notification is repeated: eleven calls for one stuck mapping, and the twelfth encounter is the BUG: `vfio_dma_do_unmap()`.',
        cases: ['88'],
      },
      {
        said: 'The release of a container notifies the vendor drivers, and what remains then is a BUG.',
        emulated:
          'Nobody is told when the last group leaves. What remains is a WARN, at the detach or at the removal of its mapping, and leaks: `vfio_sanity_check_pfn_list()`, `vfio_remove_dma()`.',
        cases: ['104', '106'],
      },
      {
        said: 'At release the pages behind leftover records are looked up again and put ref_count + 1 times.',
        emulated: 'They are never put: page references and charge stay.',
        cases: ['104'],
      },
      {
        said: 'When a group leaves and others stay, the vendor driver has to unpin in the release of its devices.',
        emulated: 'Nothing looks at it: the pins stay, and any device of the container may drop them.',
        cases: ['105'],
      },
      {
        said: 'Arrays of pin and unpin have fewer than PAGE_SIZE elements.',
        emulated: 'They have at most PAGE_SIZE bytes: 512 entries pass, 513 are E2BIG: `vfio_pin_pages()`.',
        cases: ['12'],
      },
      {
        said: 'A pin may fail when the reference count of a record gets to PAGE_SIZE.',
        emulated: 'The count has 32 bits and no bound: it wraps, as `test/kernel/rbtree.test.ts` shows.',
        cases: [],
      },
      {
        said: 'A notifier is registered with a device and a block.',
        emulated:
          'From 4.10 to 5.19 with a type and a word of events as well: `vfio_register_notifier()`. From 6.0 on there is nothing to register: `vfio_iommu_type1_register_device()`.',
        cases: ['100'],
      },
      {
        said: 'The mm of a mapping is got from its task whenever it is needed.',
        emulated: 'So it is up to 6.2; from 6.3 on a mapping keeps the mm itself (behaviour `mmKept`).',
        cases: ['81'],
      },
    ],
  },
  {
    subject: 'Re: [RFC PATCH V2 5/5] vhost: access vq metadata through kernel virtual address',
    from: 'Jerome Glisse',
    date: '7 Mar 2019',
    disagreements: [],
  },
  {
    subject: 'Re: [PATCH 1/2] KVM: MMU: Do not treat ZONE_DEVICE pages as being reserved',
    from: 'Sean Christopherson',
    date: '8 Nov 2019',
    disagreements: [],
  },
  {
    subject: 'Re: [PATCH v3 3/3] vfio-pci: Invalidate mmaps and block MMIO access on disabled memory',
    from: 'Peter Xu',
    date: '23 May 2020',
    disagreements: [],
  },
  {
    subject: 'Re: [PATCH v8 5/8] mm: Device exclusive memory access',
    from: 'Peter Xu',
    date: '18 May 2021',
    disagreements: [],
  },
];

/** Where recorded traces contradict a text of the kernel: the traces are followed. */
export const AGAINST_TEXTS: readonly Disagreement[] = [
  {
    said: '`VFIO_CHECK_EXTENSION` without a back end asks every registered one, so that 5.15 would answer 1 to `TYPE1v2`.',
    emulated: 'It is EINVAL in the traces of 4.10, 5.15 and 6.18, and so it is here. Ask after `SET_IOMMU`.',
    cases: [],
  },
  {
    said: 'In 6.18 a pin or unpin through a device that is not open WARNs.',
    emulated:
      'In the traces the first one WARNs twice, `vfio_assert_device_open()` itself and its caller; later ones once.',
    cases: ['16'],
  },
];
