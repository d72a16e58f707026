//! The numbers of the ABI as types of their own, and page geometry.

use core::fmt;

use crate::layout::constants;

macro_rules! newtype {
    ($( $(#[$meta:meta])* $name:ident($raw:ty), $fmt:literal; )*) => {$(
        $(#[$meta])*
        #[repr(transparent)]
        #[derive(
            Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
        )]
        pub struct $name($raw);

        impl $name {
            /// Wraps a raw number. Any number is accepted: the code that looks up what the number names checks the
            /// number.
            #[must_use]
            pub const fn new(raw: $raw) -> Self {
                Self(raw)
            }

            /// The number on the wire.
            #[must_use]
            pub const fn raw(self) -> $raw {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $fmt, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $fmt, self.0)
            }
        }
    )*};
}

newtype! {
    /// Machine frame number: machine address divided by 4096.
    Mfn(u64), "{:#x}";
    /// Guest frame number as a guest writes it in its page tables: for PV the same number as the mfn.
    Gfn(u64), "{:#x}";
    /// Pseudo-physical frame number: the guest's own linear count from 0.
    Pfn(u64), "{:#x}";
    /// Machine address in bytes.
    Maddr(u64), "{:#x}";
    /// Address as a guest's code uses it: what is there follows from the guest's page tables.
    GuestVa(u64), "{:#x}";
    /// Domain number; numbers from [`DOMID_FIRST_RESERVED`] name no ordinary domain.
    DomId(u16), "{}";
    /// Number of a virtual CPU within its domain.
    VcpuId(u32), "{}";
    /// Event channel port of one domain. Port 0 is never valid.
    Port(u32), "{}";
    /// Physical interrupt as the domain that owns the interrupt names it; legacy lines have their own numbers.
    Pirq(u32), "{}";
    /// Grant reference: index into the granting domain's grant table.
    GrantRef(u32), "{}";
    /// Handle of a mapped grant, chosen by the hypervisor for the mapping domain.
    GrantHandle(u32), "{}";
}

/// log2 of the page size.
pub const PAGE_SHIFT: u32 = 12;
/// Page size in bytes.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Clears the offset within a page from an address.
pub const PAGE_MASK: u64 = !(PAGE_SIZE as u64 - 1);

impl Mfn {
    /// The invalid frame: all bits one, as the M2P and P2M tables store it.
    pub const INVALID: Self = Self(u64::MAX);

    /// Address of the frame's first byte. Bits of the number above 2^52 are lost.
    #[must_use]
    pub const fn maddr(self) -> Maddr {
        Maddr(self.0 << PAGE_SHIFT)
    }

    /// The frame `count` frames further on.
    ///
    /// # Panics
    /// If the number would wrap. So this is for counts of this program's own; for a guest's counts use
    /// [`Self::checked_add`].
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "const, and by a plain count")]
    pub const fn add(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// The frame `count` frames further on, unless the number would wrap.
    #[must_use]
    pub const fn checked_add(self, count: u64) -> Option<Self> {
        match self.0.checked_add(count) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }

    /// The same frame as a guest names it.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0)
    }
}

impl Gfn {
    /// The same frame as the machine numbers it; for a PV guest the numbers are equal.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0)
    }
}

impl Pfn {
    /// The invalid frame: all bits one.
    pub const INVALID: Self = Self(u64::MAX);

    /// The frame `count` frames further on.
    ///
    /// # Panics
    /// If the number would wrap. So this is for counts of this program's own.
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "const, and by a plain count")]
    pub const fn add(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Maddr {
    /// Frame that holds the address.
    #[must_use]
    pub const fn mfn(self) -> Mfn {
        Mfn(self.0 >> PAGE_SHIFT)
    }

    /// Offset within the page, 0 to 4095.
    #[must_use]
    pub const fn offset(self) -> usize {
        (self.0 & !PAGE_MASK) as usize
    }

    /// The address `bytes` further on.
    ///
    /// # Panics
    /// If the address would wrap. So this is for counts of this program's own; for a guest's counts use
    /// [`Self::checked_add`].
    #[must_use]
    #[allow(clippy::should_implement_trait, reason = "const, and by a plain count")]
    pub const fn add(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }

    /// The address `bytes` further on; `None` if the address would wrap.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl GuestVa {
    /// Number of bytes from `base` up to this address. The count goes around the end of the address space if `base` is
    /// the higher address.
    #[must_use]
    pub const fn bytes_from(self, base: Self) -> u64 {
        self.0.wrapping_sub(base.0)
    }

    /// Address of element `index` of an array of `T` that begins at this address; `None` if the address would wrap.
    #[must_use]
    pub const fn element<T>(self, index: u64) -> Option<Self> {
        match index.checked_mul(size_of::<T>() as u64) {
            Some(offset) => self.checked_add(offset),
            None => None,
        }
    }

    /// Offset within the page, 0 to 4095.
    #[must_use]
    pub const fn offset(self) -> usize {
        (self.0 & !PAGE_MASK) as usize
    }

    /// The address `bytes` further on; behind the last address comes 0.
    #[must_use]
    pub const fn wrapping_add(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }

    /// The address `bytes` further on; `None` if the address would wrap.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(raw) => Some(Self(raw)),
            None => None,
        }
    }
}

impl DomId {
    /// The domain that manages the machine.
    pub const DOM0: Self = Self(0);
    /// The caller itself.
    pub const SELF: Self = Self(DOMID_SELF);
    /// Owner of memory-mapped devices.
    pub const IO: Self = Self(DOMID_IO);
    /// Owner of the hypervisor's own shareable frames.
    pub const XEN: Self = Self(DOMID_XEN);
    /// Owner of copy-on-write frames.
    pub const COW: Self = Self(DOMID_COW);
    /// No domain.
    pub const INVALID: Self = Self(DOMID_INVALID);

    /// Whether this is a number that no ordinary domain can have.
    #[must_use]
    pub const fn is_reserved(self) -> bool {
        self.0 >= DOMID_FIRST_RESERVED
    }

    /// `caller` if this is [`DomId::SELF`], else itself.
    #[must_use]
    pub const fn or_self(self, caller: Self) -> Self {
        if self.0 == DOMID_SELF { caller } else { self }
    }
}

constants! { "xen.h";
    DOMID_FIRST_RESERVED: u16 = 0x7ff0 => "DOMID_FIRST_RESERVED";
    DOMID_SELF: u16 = 0x7ff0 => "DOMID_SELF";
    DOMID_IO: u16 = 0x7ff1 => "DOMID_IO";
    DOMID_XEN: u16 = 0x7ff2 => "DOMID_XEN";
    DOMID_COW: u16 = 0x7ff3 => "DOMID_COW";
    DOMID_INVALID: u16 = 0x7ff4 => "DOMID_INVALID";
    DOMID_IDLE: u16 = 0x7fff => "DOMID_IDLE";
    DOMID_MASK: u16 = 0x7fff => "DOMID_MASK";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_addresses() {
        assert_eq!(Mfn::new(0).maddr().raw(), 0);
        assert_eq!(Mfn::new(3).maddr().raw(), 0x3000);
        assert_eq!(Maddr::new(0x3fff).mfn(), Mfn::new(3));
        assert_eq!(Maddr::new(0x3fff).offset(), 0xfff);
        assert_eq!(Maddr::new(u64::MAX).offset(), 0xfff);
        assert_eq!(Mfn::new(u64::MAX).checked_add(1), None);
        assert_eq!(Mfn::new(1).checked_add(1), Some(Mfn::new(2)));
        assert_eq!(GuestVa::new(u64::MAX).offset(), 0xfff);
        assert_eq!(GuestVa::new(u64::MAX).checked_add(1), None);
        assert_eq!(GuestVa::new(u64::MAX).wrapping_add(1), GuestVa::new(0));
        assert_eq!(GuestVa::new(1).bytes_from(GuestVa::new(u64::MAX)), 2);
        assert_eq!(GuestVa::new(8).element::<u64>(3), Some(GuestVa::new(32)));
        assert_eq!(GuestVa::new(8).element::<u64>(u64::MAX / 8), None);
        assert_eq!(GuestVa::new(8).element::<u64>(1 << 61), None);
    }

    #[test]
    fn reserved_domains() {
        assert!(!DomId::new(0x7fef).is_reserved());
        assert!(DomId::new(0x7ff0).is_reserved());
        assert!(DomId::new(0xffff).is_reserved());
        assert_eq!(DomId::SELF.or_self(DomId::new(4)), DomId::new(4));
        assert_eq!(DomId::new(5).or_self(DomId::new(4)), DomId::new(5));
    }
}
