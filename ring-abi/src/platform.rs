//! `platform_op`: what dom0 asks of the machine.

use crate::layout::{constants, wire};

constants! { "platform.h";
    XENPF_INTERFACE_VERSION: u32 = 0x3000001 => "XENPF_INTERFACE_VERSION";
    XENPF_SETTIME32: u32 = 17 => "XENPF_settime32";
    XENPF_SETTIME64: u32 = 62 => "XENPF_settime64";
    XENPF_SETTIME: u32 = 62 => "XENPF_settime";
    XENPF_ADD_MEMTYPE: u32 = 31 => "XENPF_add_memtype";
    XENPF_DEL_MEMTYPE: u32 = 32 => "XENPF_del_memtype";
    XENPF_READ_MEMTYPE: u32 = 33 => "XENPF_read_memtype";
    XENPF_MICROCODE_UPDATE: u32 = 35 => "XENPF_microcode_update";
    XENPF_PLATFORM_QUIRK: u32 = 39 => "XENPF_platform_quirk";
    XENPF_EFI_RUNTIME_CALL: u32 = 49 => "XENPF_efi_runtime_call";
    XENPF_FIRMWARE_INFO: u32 = 50 => "XENPF_firmware_info";
    XEN_FW_DISK_INFO: u32 = 1 => "XEN_FW_DISK_INFO";
    XEN_FW_DISK_MBR_SIGNATURE: u32 = 2 => "XEN_FW_DISK_MBR_SIGNATURE";
    XEN_FW_VBEDDC_INFO: u32 = 3 => "XEN_FW_VBEDDC_INFO";
    XEN_FW_EFI_INFO: u32 = 4 => "XEN_FW_EFI_INFO";
    XEN_FW_EFI_VERSION: u32 = 0 => "XEN_FW_EFI_VERSION";
    XEN_FW_EFI_CONFIG_TABLE: u32 = 1 => "XEN_FW_EFI_CONFIG_TABLE";
    XEN_FW_EFI_VENDOR: u32 = 2 => "XEN_FW_EFI_VENDOR";
    XEN_FW_EFI_MEM_INFO: u32 = 3 => "XEN_FW_EFI_MEM_INFO";
    XEN_FW_EFI_RT_VERSION: u32 = 4 => "XEN_FW_EFI_RT_VERSION";
    XEN_FW_EFI_PCI_ROM: u32 = 5 => "XEN_FW_EFI_PCI_ROM";
    XEN_FW_EFI_APPLE_PROPERTIES: u32 = 6 => "XEN_FW_EFI_APPLE_PROPERTIES";
    XEN_FW_KBD_SHIFT_FLAGS: u32 = 5 => "XEN_FW_KBD_SHIFT_FLAGS";
    XENPF_ENTER_ACPI_SLEEP: u32 = 51 => "XENPF_enter_acpi_sleep";
    XENPF_ACPI_SLEEP_EXTENDED: u32 = 1 => "XENPF_ACPI_SLEEP_EXTENDED";
    XENPF_CHANGE_FREQ: u32 = 52 => "XENPF_change_freq";
    XENPF_GETIDLETIME: u32 = 53 => "XENPF_getidletime";
    XENPF_SET_PROCESSOR_PMINFO: u32 = 54 => "XENPF_set_processor_pminfo";
    XEN_PROCESSOR_PM_CX: u32 = 1 => "XEN_PROCESSOR_PM_CX";
    XEN_PROCESSOR_PM_PX: u32 = 2 => "XEN_PROCESSOR_PM_PX";
    XEN_PROCESSOR_PM_TX: u32 = 4 => "XEN_PROCESSOR_PM_TX";
    XEN_PM_CX: u32 = 0 => "XEN_PM_CX";
    XEN_PM_PX: u32 = 1 => "XEN_PM_PX";
    XEN_PM_TX: u32 = 2 => "XEN_PM_TX";
    XEN_PM_PDC: u32 = 3 => "XEN_PM_PDC";
    XEN_PX_PCT: u32 = 1 => "XEN_PX_PCT";
    XEN_PX_PSS: u32 = 2 => "XEN_PX_PSS";
    XEN_PX_PPC: u32 = 4 => "XEN_PX_PPC";
    XEN_PX_PSD: u32 = 8 => "XEN_PX_PSD";
    XEN_CPUPERF_SHARED_TYPE_HW: u32 = 1 => "XEN_CPUPERF_SHARED_TYPE_HW";
    XEN_CPUPERF_SHARED_TYPE_ALL: u32 = 2 => "XEN_CPUPERF_SHARED_TYPE_ALL";
    XEN_CPUPERF_SHARED_TYPE_ANY: u32 = 3 => "XEN_CPUPERF_SHARED_TYPE_ANY";
    XENPF_GET_CPUINFO: u32 = 55 => "XENPF_get_cpuinfo";
    XEN_PCPU_FLAGS_ONLINE: u32 = 1 => "XEN_PCPU_FLAGS_ONLINE";
    XEN_PCPU_FLAGS_INVALID: u32 = 2 => "XEN_PCPU_FLAGS_INVALID";
    XENPF_GET_CPU_VERSION: u32 = 48 => "XENPF_get_cpu_version";
    XENPF_CPU_ONLINE: u32 = 56 => "XENPF_cpu_online";
    XENPF_CPU_OFFLINE: u32 = 57 => "XENPF_cpu_offline";
    XENPF_CPU_HOTADD: u32 = 58 => "XENPF_cpu_hotadd";
    XENPF_MEM_HOTADD: u32 = 59 => "XENPF_mem_hotadd";
    XENPF_CORE_PARKING: u32 = 60 => "XENPF_core_parking";
    XEN_CORE_PARKING_SET: u32 = 1 => "XEN_CORE_PARKING_SET";
    XEN_CORE_PARKING_GET: u32 = 2 => "XEN_CORE_PARKING_GET";
    XENPF_RESOURCE_OP: u32 = 61 => "XENPF_resource_op";
    XEN_RESOURCE_OP_MSR_READ: u32 = 0 => "XEN_RESOURCE_OP_MSR_READ";
    XEN_RESOURCE_OP_MSR_WRITE: u32 = 1 => "XEN_RESOURCE_OP_MSR_WRITE";
    XENPF_GET_SYMBOL: u32 = 63 => "XENPF_get_symbol";
}

/// Bytes of the union in [`XenPlatformOp`].
pub const PAYLOAD_BYTES: usize = 128;

wire! { "platform.h";
    /// `XENPF_settime32`.
    struct XenpfSettime32 = "struct xenpf_settime32", 16 {
        0x0 secs: u32,
        0x4 nsecs: u32,
        /// System time in ns that the wall time belongs to.
        0x8 system_time: u64,
    }

    /// `XENPF_settime64`.
    struct XenpfSettime64 = "struct xenpf_settime64", 24 {
        0x00 secs: u64,
        0x08 nsecs: u32,
        /// Must be zero.
        0x0c mbz: u32,
        /// System time in ns that the wall time belongs to.
        0x10 system_time: u64,
    }

    /// `XENPF_microcode_update`.
    struct XenpfMicrocodeUpdate = "struct xenpf_microcode_update", 16 {
        0x0 data: u64,
        0x8 length: u32,
        0xc _pad0: u32 = "",
    }

    /// `XENPF_platform_quirk`.
    struct XenpfPlatformQuirk = "struct xenpf_platform_quirk", 4 {
        0x0 quirk_id: u32,
    }

    /// `XENPF_firmware_info`.
    struct XenpfFirmwareInfo = "struct xenpf_firmware_info", 40 {
        /// `XEN_FW_*`.
        0x0 r#type: u32,
        0x4 index: u32,
        /// By type.
        0x8 u: [u64; 4],
    }

    /// `XENPF_enter_acpi_sleep`.
    struct XenpfEnterAcpiSleep = "struct xenpf_enter_acpi_sleep", 12 {
        /// PM1a control value, or sleep control of hardware-reduced ACPI.
        0x0 val_a: u16,
        /// PM1b control value, or sleep type.
        0x2 val_b: u16,
        /// 1 to 5.
        0x4 sleep_state: u32,
        /// `XENPF_ACPI_SLEEP_EXTENDED`.
        0x8 flags: u32,
    }

    /// `XENPF_change_freq`.
    struct XenpfChangeFreq = "struct xenpf_change_freq", 16 {
        0x0 flags: u32,
        0x4 cpu: u32,
        /// Hz.
        0x8 freq: u64,
    }

    /// `XENPF_getidletime`.
    struct XenpfGetidletime = "struct xenpf_getidletime", 32 {
        0x00 cpumap_bitmap: u64,
        0x08 cpumap_nr_cpus: u32,
        0x0c _pad0: u32 = "",
        0x10 idletime: u64,
        0x18 now: u64,
    }

    /// `XENPF_set_processor_pminfo`.
    struct XenpfSetProcessorPminfo = "struct xenpf_set_processor_pminfo", 112 {
        /// ACPI id.
        0x0 id: u32,
        /// `XEN_PM_*`.
        0x4 r#type: u32,
        /// By type.
        0x8 u: [u64; 13],
    }

    /// `XENPF_get_cpuinfo`.
    struct XenpfPcpuinfo = "struct xenpf_pcpuinfo", 20 {
        /// In: CPU asked about.
        0x00 xen_cpuid: u32,
        /// Out: highest present.
        0x04 max_present: u32,
        /// Out: `XEN_PCPU_FLAGS_*`.
        0x08 flags: u32,
        /// Out.
        0x0c apic_id: u32,
        /// Out.
        0x10 acpi_id: u32,
    }

    /// `XENPF_get_cpu_version`.
    struct XenpfPcpuVersion = "struct xenpf_pcpu_version", 32 {
        0x00 xen_cpuid: u32,
        0x04 max_present: u32,
        0x08 vendor_id: [u8; 12],
        0x14 family: u32,
        0x18 model: u32,
        0x1c stepping: u32,
    }

    /// `XENPF_cpu_online` and `XENPF_cpu_offline`.
    struct XenpfCpuOl = "struct xenpf_cpu_ol", 4 {
        0x0 cpuid: u32,
    }

    /// `XENPF_core_parking`.
    struct XenpfCoreParking = "struct xenpf_core_parking", 8 {
        0x0 r#type: u32,
        0x4 idle_nums: u32,
    }

    /// One entry of `XENPF_resource_op`.
    struct XenpfResourceEntry = "struct xenpf_resource_entry", 24 {
        /// In: `XEN_RESOURCE_OP_*`. Out: negative errno.
        0x00 u: u32,
        0x04 rsvd: u32,
        0x08 idx: u64,
        0x10 val: u64,
    }

    /// `XENPF_resource_op`.
    struct XenpfResourceOp = "struct xenpf_resource_op", 16 {
        0x0 nr_entries: u32,
        0x4 cpu: u32,
        0x8 entries: u64,
    }

    /// `XENPF_get_symbol`.
    struct XenpfSymdata = "struct xenpf_symdata", 32 {
        0x00 namelen: u32,
        0x04 symnum: u32,
        0x08 name: u64,
        0x10 address: u64,
        0x18 r#type: u8,
        0x19 _pad0: [u8; 7] = "",
    }

    /// Argument of `platform_op`.
    struct XenPlatformOp = "struct xen_platform_op", 136 {
        /// `XENPF_*`.
        0x0 cmd: u32,
        /// `XENPF_INTERFACE_VERSION`.
        0x4 interface_version: u32,
        /// One of the structures above, by `cmd`.
        0x8 u: [u64; PAYLOAD_BYTES / 8],
    }
}

crate::payload::impl_payload!(XenPlatformOp);

impl XenPlatformOp {
    /// An operation of the present interface version.
    #[must_use]
    pub fn new<T: crate::payload::Payload>(cmd: u32, payload: &T) -> Self {
        let mut op = Self { cmd, interface_version: XENPF_INTERFACE_VERSION, ..Self::default() };
        op.set_payload(payload);
        op
    }
}
