//! Magic numbers, types of records, and the fixed structures of the formats.

use ring_abi::types::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first bytes of a saved domain.
pub const XL_MAGIC: &[u8; 32] = b"Xen saved domain, xl format\n \0 \r";
/// `byteorder` as a little-endian machine writes it.
pub const BYTEORDER: u32 = 0x0102_0304;
/// The configuration is JSON.
pub const MANDATORY_JSON: u32 = 1;
/// libxl's stream has version 2.
pub const MANDATORY_STREAM_V2: u32 = 2;

/// `xl`'s header. Behind it come `optional_data_len` bytes: the length of the configuration in four bytes, and the configuration.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct XlHeader {
    /// [`XL_MAGIC`].
    pub magic: [u8; 32],
    /// [`BYTEORDER`].
    pub byteorder: u32,
    /// What a reader must know.
    pub mandatory_flags: u32,
    /// What a reader may know.
    pub optional_flags: u32,
    /// Bytes behind the header.
    pub optional_data_len: u32,
}

/// `"LibxlFmt"`, big-endian in the stream.
pub const LIBXL_IDENT: u64 = 0x4c69_6278_6c46_6d74;
/// libxl's version.
pub const LIBXL_VERSION: u32 = 2;
/// Options of libxl that a reader accepts: none.
pub const LIBXL_OPTIONS: u32 = 0;
/// Bytes of libxl's header.
pub const LIBXL_HEADER_BYTES: usize = 16;

/// The last record of libxl's.
pub const LIBXL_END: u32 = 0;
/// libxc's stream follows.
pub const LIBXL_LIBXC_CONTEXT: u32 = 1;
/// What a device model keeps; PV domains have none.
pub const LIBXL_EMULATOR_XENSTORE_DATA: u32 = 2;
/// What a device model keeps; PV domains have none.
pub const LIBXL_EMULATOR_CONTEXT: u32 = 3;

/// libxc's marker.
pub const IMAGE_MARKER: u64 = u64::MAX;
/// `"XENF"`, big-endian in the stream.
pub const IMAGE_ID: u32 = 0x5845_4e46;
/// The version that is written.
pub const IMAGE_VERSION: u32 = 3;
/// The oldest version that is read.
pub const IMAGE_VERSION_OLDEST: u32 = 2;
/// Bytes of the image header.
pub const IMAGE_HEADER_BYTES: usize = 24;

/// libxc's domain header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DomainHeader {
    /// [`DOMAIN_X86_PV`].
    pub kind: u32,
    /// Bits of an offset in a page.
    pub page_shift: u16,
    /// Zero.
    pub reserved: u16,
    /// Version of the hypervisor that the domain comes from.
    pub xen_major: u32,
    /// The same.
    pub xen_minor: u32,
}

/// A PV domain.
pub const DOMAIN_X86_PV: u32 = 1;

/// The head of a record, in libxl's stream as in libxc's. The body is padded to a multiple of eight bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RecordHead {
    /// Which record.
    pub kind: u32,
    /// Bytes of the body, without padding.
    pub length: u32,
}

/// Set in the types of records that a reader may skip.
pub const OPTIONAL: u32 = 1 << 31;

macro_rules! records {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        $($(#[$doc])* pub const $name: u32 = $value;)*

        /// A record's name in the specification.
        #[must_use]
        pub fn record_name(kind: u32) -> &'static str {
            match kind {
                $($name => $text,)*
                _ => "unknown type",
            }
        }
    };
}

records! {
    /// The last record.
    END = 0, "END";
    /// Memory.
    PAGE_DATA = 1, "PAGE_DATA";
    /// Widths.
    X86_PV_INFO = 2, "X86_PV_INFO";
    /// The frames of the P2M list.
    X86_PV_P2M_FRAMES = 3, "X86_PV_P2M_FRAMES";
    /// A vCPU's context.
    X86_PV_VCPU_BASIC = 4, "X86_PV_VCPU_BASIC";
    /// A vCPU's further callbacks.
    X86_PV_VCPU_EXTENDED = 5, "X86_PV_VCPU_EXTENDED";
    /// A vCPU's floating-point and vector state.
    X86_PV_VCPU_XSAVE = 6, "X86_PV_VCPU_XSAVE";
    /// The page that the guest shares with the hypervisor.
    SHARED_INFO = 7, "SHARED_INFO";
    /// How the domain sees the TSC.
    X86_TSC_INFO = 8, "X86_TSC_INFO";
    /// Of HVM domains alone.
    HVM_CONTEXT = 9, "HVM_CONTEXT";
    /// Of HVM domains alone.
    HVM_PARAMS = 10, "HVM_PARAMS";
    /// Of an older toolstack.
    TOOLSTACK = 11, "TOOLSTACK";
    /// A vCPU's MSRs.
    X86_PV_VCPU_MSRS = 12, "X86_PV_VCPU_MSRS";
    /// What follows was sent before, and is to be compared.
    VERIFY = 13, "VERIFY";
    /// Of domains whose state is sent again and again.
    CHECKPOINT = 14, "CHECKPOINT";
    /// The same.
    CHECKPOINT_DIRTY_PFN_LIST = 15, "CHECKPOINT_DIRTY_PFN_LIST";
    /// From here on what changes while a domain runs.
    STATIC_DATA_END = 16, "STATIC_DATA_END";
    /// What the domain sees of the CPU.
    X86_CPUID_POLICY = 17, "X86_CPUID_POLICY";
    /// The same, of MSRs.
    X86_MSR_POLICY = 18, "X86_MSR_POLICY";
    /// microhv's: the XXH64 hash, seed 0, of all bytes of the stream before this record's head, `xl`'s header included.
    CHECKSUM = 0x8000_6d68, "CHECKSUM";
}

/// `X86_PV_INFO`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PvInfo {
    /// Bytes of a word of the guest's: 8.
    pub guest_width: u8,
    /// Levels of its page tables: 4.
    pub pt_levels: u8,
    /// Zero.
    pub reserved: [u8; 6],
}

/// A 64-bit guest.
pub const PV_64: PvInfo = PvInfo { guest_width: 8, pt_levels: 4, reserved: [0; 6] };

/// `X86_TSC_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct TscInfo {
    /// As of `settscinfo`.
    pub mode: u32,
    /// The TSC's rate.
    pub khz: u32,
    /// Elapsed time.
    pub nsec: u64,
    /// How often the domain was restored.
    pub incarnation: u32,
    /// Zero.
    pub reserved: u32,
}

/// Pages that one `PAGE_DATA` may have.
pub const MAX_PAGES: usize = 1024;
/// Bytes of another record's body at most.
pub const MAX_BODY: u32 = 128 << 10;
/// Bytes of the configuration at most.
pub const MAX_CONFIG: u32 = 256 << 10;
/// Bytes of a libxl record that is skipped at most.
pub const MAX_LIBXL_BODY: u32 = 16 << 20;
/// The highest frame number of a guest: 16 GiB, and as much again for what is not populated.
pub const MAX_PFN: u64 = (32 << 30) / PAGE_SIZE as u64 - 1;
/// The highest number of a vCPU.
pub const MAX_VCPU: u32 = 127;

/// One page of `PAGE_DATA`: bits 0-51 the frame number in the guest, 60-63 what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageEntry(pub u64);

impl PageEntry {
    const KIND_SHIFT: u32 = 60;
    /// In a table's kind: the table is pinned.
    pub const PINNED: u8 = 8;
    /// The page could not be read where it comes from.
    pub const BROKEN: u8 = 0xd;
    /// There is a page, and its contents are not sent.
    pub const XALLOC: u8 = 0xe;
    /// There is no page.
    pub const XTAB: u8 = 0xf;

    /// Page `pfn`, which is of the kind `XEN_DOMCTL_PFINFO_*`, in its four bits.
    #[must_use]
    pub const fn new(pfn: u64, kind: u8) -> Self {
        Self(pfn | (kind as u64) << Self::KIND_SHIFT)
    }

    /// The frame number in the guest.
    #[must_use]
    pub const fn pfn(self) -> u64 {
        self.0 & ((1 << 52) - 1)
    }

    /// What the page is.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> Self::KIND_SHIFT) as u8
    }

    /// Whether the page's contents are in the record.
    #[must_use]
    pub const fn has_data(self) -> bool {
        self.kind() < Self::BROKEN
    }

    /// The level of a page table; 0 for any other page.
    #[must_use]
    pub const fn level(self) -> u8 {
        if self.has_data() { self.kind() & 7 } else { 0 }
    }

    /// Whether the page is a pinned table.
    #[must_use]
    pub const fn is_pinned(self) -> bool {
        self.has_data() && self.kind() & Self::PINNED != 0
    }

    /// Whether the bits mean something.
    #[must_use]
    pub const fn is_valid(self) -> bool {
        let reserved = self.0 >> 52 & 0xff;
        reserved == 0 && matches!(self.kind(), 0..=4 | 9..=15)
    }
}
