//! Numbers that must not be mixed up: frames, addresses, domains, ports, grants.
//!
//! Each is a transparent wrapper of the integer that stands on the wire. `new` says "this number means that", nothing
//! more: whether the frame or port exists is for the one who looks it up.

use core::fmt;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// The address bits that name the page.
pub const PAGE_MASK: u64 = !(PAGE_SIZE as u64 - 1);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($raw:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
        )]
        #[repr(transparent)]
        pub struct $name($raw);

        impl $name {
            /// The number `raw` as what this type says it is.
            #[inline]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The plain number.
            #[inline]
            pub const fn raw(self) -> $raw {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

number!(
    /// Machine frame number: a page of the machine's memory.
    Mfn(u64), "{:#x}"
);
number!(
    /// Guest frame number: what a guest writes in its page tables; for a PV guest the same number as the mfn.
    Gfn(u64), "{:#x}"
);
number!(
    /// Pseudo-physical frame number: the guest's own linear count of its pages.
    Pfn(u64), "{:#x}"
);
number!(
    /// Machine address in bytes.
    Maddr(u64), "{:#x}"
);
number!(
    /// Domain id.
    DomId(u16), "{}"
);
number!(
    /// vCPU number within its domain.
    VcpuId(u32), "{}"
);
number!(
    /// Event channel port within its domain.
    Port(u32), "{}"
);
number!(
    /// Grant reference within the granting domain.
    GrantRef(u32), "{}"
);
number!(
    /// Handle of a grant mapping within the mapping domain.
    GrantHandle(u32), "{}"
);

impl Mfn {
    /// The address of the frame's first byte.
    #[inline]
    pub const fn maddr(self) -> Maddr {
        Maddr(self.0 << PAGE_SHIFT)
    }

    /// The frame `count` later.
    #[inline]
    pub const fn add(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Maddr {
    /// The frame that holds the address.
    #[inline]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// The address's place in its frame, in bytes.
    #[inline]
    pub const fn offset(self) -> usize {
        (self.0 & !PAGE_MASK) as usize
    }

    /// The address `bytes` later.
    #[inline]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// First id that names no domain of its own. ABI: `xen/include/public/xen.h`.
pub const DOMID_FIRST_RESERVED: u16 = 0x7ff0;
/// The caller's own domain.
pub const DOMID_SELF: u16 = 0x7ff0;
/// Owner of I/O memory.
pub const DOMID_IO: u16 = 0x7ff1;
/// Owner of the hypervisor's shared pages.
pub const DOMID_XEN: u16 = 0x7ff2;
/// Owner of copy-on-write pages.
pub const DOMID_COW: u16 = 0x7ff3;
/// No domain.
pub const DOMID_INVALID: u16 = 0x7ff4;
/// An idle vCPU's domain.
pub const DOMID_IDLE: u16 = 0x7fff;

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
    /// The caller's own domain.
    pub const SELF: Self = Self(DOMID_SELF);
    /// Owner of I/O memory.
    pub const IO: Self = Self(DOMID_IO);
    /// Owner of the hypervisor's shared pages.
    pub const XEN: Self = Self(DOMID_XEN);
    /// Owner of copy-on-write pages.
    pub const COW: Self = Self(DOMID_COW);
    /// No domain.
    pub const INVALID: Self = Self(DOMID_INVALID);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_addresses_convert() {
        assert_eq!(Mfn::new(3).maddr(), Maddr::new(0x3000));
        assert_eq!(Maddr::new(0x3fff).mfn(), Mfn::new(3));
        assert_eq!(Maddr::new(0x3fff).offset(), 0xfff);
    }
}
