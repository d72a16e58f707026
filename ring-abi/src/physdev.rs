//! `physdev_op`: interrupts and PCI devices of the machine.

use crate::layout::{constants, wire};

constants! { "physdev.h";
    PHYSDEVOP_EOI: u32 = 12 => "PHYSDEVOP_eoi";
    PHYSDEVOP_PIRQ_EOI_GMFN_V1: u32 = 17 => "PHYSDEVOP_pirq_eoi_gmfn_v1";
    PHYSDEVOP_PIRQ_EOI_GMFN_V2: u32 = 28 => "PHYSDEVOP_pirq_eoi_gmfn_v2";
    PHYSDEVOP_IRQ_STATUS_QUERY: u32 = 5 => "PHYSDEVOP_irq_status_query";
    XENIRQSTAT_NEEDS_EOI: u32 = 1 => "XENIRQSTAT_needs_eoi";
    XENIRQSTAT_SHARED: u32 = 2 => "XENIRQSTAT_shared";
    PHYSDEVOP_SET_IOPL: u32 = 6 => "PHYSDEVOP_set_iopl";
    PHYSDEVOP_SET_IOBITMAP: u32 = 7 => "PHYSDEVOP_set_iobitmap";
    PHYSDEVOP_APIC_READ: u32 = 8 => "PHYSDEVOP_apic_read";
    PHYSDEVOP_APIC_WRITE: u32 = 9 => "PHYSDEVOP_apic_write";
    PHYSDEVOP_ALLOC_IRQ_VECTOR: u32 = 10 => "PHYSDEVOP_alloc_irq_vector";
    PHYSDEVOP_FREE_IRQ_VECTOR: u32 = 11 => "PHYSDEVOP_free_irq_vector";
    MAP_PIRQ_TYPE_MSI: i32 = 0 => "MAP_PIRQ_TYPE_MSI";
    MAP_PIRQ_TYPE_GSI: i32 = 1 => "MAP_PIRQ_TYPE_GSI";
    MAP_PIRQ_TYPE_UNKNOWN: i32 = 2 => "MAP_PIRQ_TYPE_UNKNOWN";
    MAP_PIRQ_TYPE_MSI_SEG: i32 = 3 => "MAP_PIRQ_TYPE_MSI_SEG";
    MAP_PIRQ_TYPE_MULTI_MSI: i32 = 4 => "MAP_PIRQ_TYPE_MULTI_MSI";
    PHYSDEVOP_MAP_PIRQ: u32 = 13 => "PHYSDEVOP_map_pirq";
    PHYSDEVOP_UNMAP_PIRQ: u32 = 14 => "PHYSDEVOP_unmap_pirq";
    PHYSDEVOP_MANAGE_PCI_ADD: u32 = 15 => "PHYSDEVOP_manage_pci_add";
    PHYSDEVOP_MANAGE_PCI_REMOVE: u32 = 16 => "PHYSDEVOP_manage_pci_remove";
    PHYSDEVOP_RESTORE_MSI: u32 = 19 => "PHYSDEVOP_restore_msi";
    PHYSDEVOP_MANAGE_PCI_ADD_EXT: u32 = 20 => "PHYSDEVOP_manage_pci_add_ext";
    PHYSDEVOP_SETUP_GSI: u32 = 21 => "PHYSDEVOP_setup_gsi";
    PHYSDEVOP_GET_FREE_PIRQ: u32 = 23 => "PHYSDEVOP_get_free_pirq";
    XEN_PCI_MMCFG_RESERVED: u32 = 1 => "XEN_PCI_MMCFG_RESERVED";
    PHYSDEVOP_PCI_MMCFG_RESERVED: u32 = 24 => "PHYSDEVOP_pci_mmcfg_reserved";
    XEN_PCI_DEV_EXTFN: u32 = 1 => "XEN_PCI_DEV_EXTFN";
    XEN_PCI_DEV_VIRTFN: u32 = 2 => "XEN_PCI_DEV_VIRTFN";
    XEN_PCI_DEV_PXM: u32 = 4 => "XEN_PCI_DEV_PXM";
    PHYSDEVOP_PCI_DEVICE_ADD: u32 = 25 => "PHYSDEVOP_pci_device_add";
    PHYSDEVOP_PCI_DEVICE_REMOVE: u32 = 26 => "PHYSDEVOP_pci_device_remove";
    PHYSDEVOP_RESTORE_MSI_EXT: u32 = 27 => "PHYSDEVOP_restore_msi_ext";
    PHYSDEVOP_PREPARE_MSIX: u32 = 30 => "PHYSDEVOP_prepare_msix";
    PHYSDEVOP_RELEASE_MSIX: u32 = 31 => "PHYSDEVOP_release_msix";
    PHYSDEVOP_DBGP_RESET_PREPARE: u32 = 1 => "PHYSDEVOP_DBGP_RESET_PREPARE";
    PHYSDEVOP_DBGP_RESET_DONE: u32 = 2 => "PHYSDEVOP_DBGP_RESET_DONE";
    PHYSDEVOP_DBGP_BUS_UNKNOWN: u32 = 0 => "PHYSDEVOP_DBGP_BUS_UNKNOWN";
    PHYSDEVOP_DBGP_BUS_PCI: u32 = 1 => "PHYSDEVOP_DBGP_BUS_PCI";
    PHYSDEVOP_DBGP_OP: u32 = 29 => "PHYSDEVOP_dbgp_op";
    PHYSDEVOP_IRQ_UNMASK_NOTIFY: u32 = 4 => "PHYSDEVOP_IRQ_UNMASK_NOTIFY";
    PHYSDEVOP_PIRQ_EOI_GMFN: u32 = 28 => "PHYSDEVOP_pirq_eoi_gmfn";
}

wire! { "physdev.h";
    /// `PHYSDEVOP_eoi`.
    struct PhysdevEoi = "struct physdev_eoi", 4 {
        0x0 irq: u32,
    }

    /// `PHYSDEVOP_pirq_eoi_gmfn_v1` and `_v2`.
    struct PhysdevPirqEoiGmfn = "struct physdev_pirq_eoi_gmfn", 8 {
        /// Frame of a bitmap of pirqs that need an EOI.
        0x0 gmfn: u64,
    }

    /// `PHYSDEVOP_irq_status_query`.
    struct PhysdevIrqStatusQuery = "struct physdev_irq_status_query", 8 {
        0x0 irq: u32,
        /// Out: `XENIRQSTAT_*`.
        0x4 flags: u32,
    }

    /// `PHYSDEVOP_set_iopl`.
    struct PhysdevSetIopl = "struct physdev_set_iopl", 4 {
        /// 0 to 3.
        0x0 iopl: u32,
    }

    /// `PHYSDEVOP_set_iobitmap`.
    struct PhysdevSetIobitmap = "struct physdev_set_iobitmap", 16 {
        /// Address of the bitmap; a clear bit allows the port.
        0x0 bitmap: u64,
        0x8 nr_ports: u32,
        0xc _pad0: u32 = "",
    }

    /// `PHYSDEVOP_apic_read` and `PHYSDEVOP_apic_write`.
    struct PhysdevApic = "struct physdev_apic", 16 {
        0x0 apic_physbase: u64,
        0x8 reg: u32,
        0xc value: u32,
    }

    /// `PHYSDEVOP_alloc_irq_vector` and `PHYSDEVOP_free_irq_vector`.
    struct PhysdevIrq = "struct physdev_irq", 8 {
        0x0 irq: u32,
        0x4 vector: u32,
    }

    /// `PHYSDEVOP_map_pirq`.
    struct PhysdevMapPirq = "struct physdev_map_pirq", 40 {
        0x00 domid: u16,
        0x02 _pad0: u16 = "",
        /// `MAP_PIRQ_TYPE_*`.
        0x04 r#type: i32,
        /// GSI, or ignored for MSI.
        0x08 index: i32,
        /// In: pirq wanted or negative. Out: pirq.
        0x0c pirq: i32,
        /// Bus in bits 0-7, and segment in 16-31 for `MAP_PIRQ_TYPE_MSI_SEG`.
        0x10 bus: i32,
        0x14 devfn: i32,
        /// MSI-X entry, or number of vectors for `MAP_PIRQ_TYPE_MULTI_MSI`.
        0x18 entry_nr: i32,
        0x1c _pad1: u32 = "",
        /// Machine address of the MSI-X table; 0 for MSI.
        0x20 table_base: u64,
    }

    /// `PHYSDEVOP_unmap_pirq`.
    struct PhysdevUnmapPirq = "struct physdev_unmap_pirq", 8 {
        0x0 domid: u16,
        0x2 _pad0: u16 = "",
        0x4 pirq: i32,
    }

    /// `PHYSDEVOP_manage_pci_add` and `_remove`.
    struct PhysdevManagePci = "struct physdev_manage_pci", 2 {
        0x0 bus: u8,
        0x1 devfn: u8,
    }

    /// `PHYSDEVOP_restore_msi`.
    struct PhysdevRestoreMsi = "struct physdev_restore_msi", 2 {
        0x0 bus: u8,
        0x1 devfn: u8,
    }

    /// `PHYSDEVOP_manage_pci_add_ext`.
    struct PhysdevManagePciExt = "struct physdev_manage_pci_ext", 16 {
        0x0 bus: u8,
        0x1 devfn: u8,
        0x2 _pad0: u16 = "",
        0x4 is_extfn: u32,
        0x8 is_virtfn: u32,
        0xc physfn_bus: u8 = "physfn.bus",
        0xd physfn_devfn: u8 = "physfn.devfn",
        0xe _pad1: u16 = "",
    }

    /// Argument of the old `physdev_op_compat`: command and any of the first seven structures.
    struct PhysdevOp = "struct physdev_op", 24 {
        0x0 cmd: u32,
        0x4 _pad0: u32 = "",
        0x8 u: [u64; 2],
    }

    /// `PHYSDEVOP_setup_gsi`.
    struct PhysdevSetupGsi = "struct physdev_setup_gsi", 8 {
        0x0 gsi: i32,
        /// 0 edge, 1 level.
        0x4 triggering: u8,
        /// 0 active high, 1 active low.
        0x5 polarity: u8,
        0x6 _pad0: u16 = "",
    }

    /// `PHYSDEVOP_get_free_pirq`.
    struct PhysdevGetFreePirq = "struct physdev_get_free_pirq", 8 {
        /// `MAP_PIRQ_TYPE_*`.
        0x0 r#type: i32,
        /// Out.
        0x4 pirq: u32,
    }

    /// `PHYSDEVOP_pci_mmcfg_reserved`.
    struct PhysdevPciMmcfgReserved = "struct physdev_pci_mmcfg_reserved", 16 {
        0x0 address: u64,
        0x8 segment: u16,
        0xa start_bus: u8,
        0xb end_bus: u8,
        0xc flags: u32,
    }

    /// `PHYSDEVOP_pci_device_add`; an optional u32 (proximity domain) follows.
    struct PhysdevPciDeviceAdd = "struct physdev_pci_device_add", 12 {
        0x0 seg: u16,
        0x2 bus: u8,
        0x3 devfn: u8,
        /// `XEN_PCI_DEV_*`.
        0x4 flags: u32,
        0x8 physfn_bus: u8 = "physfn.bus",
        0x9 physfn_devfn: u8 = "physfn.devfn",
        0xa _pad0: u16 = "",
    }

    /// `PHYSDEVOP_pci_device_remove`, `_restore_msi_ext`, `_prepare_msix` and `_release_msix`.
    struct PhysdevPciDevice = "struct physdev_pci_device", 4 {
        0x0 seg: u16,
        0x2 bus: u8,
        0x3 devfn: u8,
    }

    /// `PHYSDEVOP_dbgp_op`.
    struct PhysdevDbgpOp = "struct physdev_dbgp_op", 6 {
        0x0 op: u8,
        0x1 bus: u8,
        0x2 pci: PhysdevPciDevice = "u.pci",
    }
}
