//! Page-table entries: bits, and which entries a guest may write at which level.

use core::sync::atomic::{AtomicU64, Ordering};

use ring_abi::segment::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START};
use ring_abi::types::{GuestVa, Mfn};

pub use ring_abi::pte::{A, D, FRAME, G, MARK, NX, P, PAT, PCD, PSE, PWT, RW, US};

/// The guest kernel's own mark in level 1 entries (`_PAGE_GUEST_KERNEL`).
pub const GUEST_KERNEL: u64 = 1 << 52;
/// Low bits that software may use: 9-11.
pub const GUEST_FLAGS: u64 = 0xe00;
/// Bits that software may use.
pub const SOFTWARE: u64 = GUEST_FLAGS | 0x7ff << 52;
/// Bits of the memory type at level 1.
pub const MEMORY_TYPE: u64 = PWT | PCD | PAT;

/// Bits that a present entry of level 2 to 4 may have.
const TABLE_ALLOWED: u64 = FRAME | P | RW | US | A | D | SOFTWARE | NX;
/// Bits that a present entry of level 1 may have.
const LEAF_ALLOWED: u64 = TABLE_ALLOWED | G | MEMORY_TYPE;
/// Bits whose change alone needs no new look at the frame (XSA-182: no other).
const HARMLESS: u64 = NX | SOFTWARE | G | D | A | US;

/// First level 4 slot of the hypervisor.
pub const HYPERVISOR_FIRST_SLOT: usize = index(HYPERVISOR_VIRT_START, 4);
/// Last level 4 slot of the hypervisor.
pub const HYPERVISOR_LAST_SLOT: usize = index(HYPERVISOR_VIRT_END, 4) - 1;

const _: () = assert!(HYPERVISOR_FIRST_SLOT == 256 && HYPERVISOR_LAST_SLOT == 271);

/// Bytes of the lower half of the address space.
pub const LOW_HALF: u64 = 1 << 47;

/// Whether the level 4 slot is the hypervisor's. (I11)
#[inline]
pub const fn is_hypervisor_slot(slot: usize) -> bool {
    slot >= HYPERVISOR_FIRST_SLOT && slot <= HYPERVISOR_LAST_SLOT
}

/// Whether `va` is canonical and not in the hypervisor's slots.
#[inline]
pub const fn is_guest_address(va: GuestVa) -> bool {
    // With the origin moved to the end of the hypervisor's range, the guest's high and low halves are one
    // range.
    va.raw().wrapping_sub(HYPERVISOR_VIRT_END) < HYPERVISOR_VIRT_END.wrapping_neg() + LOW_HALF
}

/// Whether the processor takes `address`: bits 47-63 are equal.
#[inline]
pub const fn is_canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Index of `address` in a table of `level` 1-4.
#[inline]
pub const fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * (level as u32 - 1)) & 511) as usize
}

/// An entry of a page table, of any bits: as a guest wants the entry, or as the table holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pte(u64);

impl Pte {
    /// No entry.
    pub const NONE: Self = Self(0);

    /// An entry of these bits.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The entry in a slot.
    #[inline]
    pub fn load(slot: &AtomicU64) -> Self {
        Self(slot.load(Ordering::Acquire))
    }

    /// All bits.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Whether any of `bits` is set.
    #[inline]
    pub const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }

    /// Whether the entry is present.
    pub const fn is_present(self) -> bool {
        self.has(P)
    }

    /// The frame that the entry names.
    #[inline]
    pub const fn frame(self) -> Mfn {
        Mfn::new((self.0 & FRAME) >> 12)
    }

    /// Whether the entry, a present one, has only bits that the entry's level allows.
    #[inline]
    pub const fn is_allowed(self, level: u8) -> bool {
        !self.has(!(if level == 1 { LEAF_ALLOWED } else { TABLE_ALLOWED }))
    }

    /// Whether `new` differs from the entry, both present, only in bits that need no new look at the frame.
    #[inline]
    pub const fn differs_harmlessly(self, new: Self) -> bool {
        (self.0 ^ new.0) & !HARMLESS == 0
    }

    /// A present entry as the table holds it. Guest kernel and guest user both run in ring 3: a kernel's level 1 entry
    /// gains US and the mark [`GUEST_KERNEL`]; a user's gains G, so that the translation survives the switch between
    /// the two; entries of level 2 to 4 gain US.
    #[inline]
    pub const fn stored(self, level: u8) -> Self {
        if level > 1 {
            return Self(self.0 | US);
        }
        let is_kernels = !self.has(US) || self.has(GUEST_KERNEL);
        Self(if is_kernels { (self.0 | US | GUEST_KERNEL) & !G } else { self.0 | G })
    }

    /// What a marked entry stands for.
    #[inline]
    pub const fn unmarked(self) -> Self {
        if self.has(MARK) { Self(self.0 & !MARK | RW) } else { self }
    }

    /// Whether the guest's kernel wrote through the entry since D was last cleared. (A user's D is the guest's own.)
    #[inline]
    pub const fn is_written_by_kernel(self) -> bool {
        const WRITTEN: u64 = P | RW | D | GUEST_KERNEL;
        self.0 & WRITTEN == WRITTEN
    }

    /// The entry for a device's memory: the memory type that is cached becomes uncached. `read_only` takes RW away.
    #[inline]
    pub const fn for_device(self, read_only: bool) -> Self {
        let entry = if read_only { self.0 & !RW } else { self.0 };
        Self(match (self.has(PCD), self.has(PWT), self.has(PAT)) {
            (false, false, false) => entry | PWT | PCD, // write-back
            (false, true, _) => entry | PCD,            // write-through, or write-protected with PAT
            _ => entry,                                 // UC, UC-, WC
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn stored(raw: u64, level: u8) -> u64 {
        Pte::new(raw).stored(level).raw()
    }

    const fn uncached(raw: u64) -> u64 {
        Pte::new(raw).for_device(false).raw()
    }

    #[test]
    fn addresses_of_the_hypervisor_are_no_guest_addresses() {
        assert!(is_guest_address(GuestVa::new(0)));
        assert!(is_guest_address(GuestVa::new(0x7fff_ffff_ffff)));
        assert!(!is_guest_address(GuestVa::new(0x8000_0000_0000)));
        assert!(!is_guest_address(GuestVa::new(0xffff_7fff_ffff_ffff)));
        assert!(!is_guest_address(GuestVa::new(0xffff_8000_0000_0000)));
        assert!(!is_guest_address(GuestVa::new(0xffff_87ff_ffff_ffff)));
        assert!(is_guest_address(GuestVa::new(0xffff_8800_0000_0000)));
        assert!(is_guest_address(GuestVa::new(u64::MAX)));
    }

    #[test]
    fn entries_are_stored_as_guests_expect_to_read_them() {
        assert_eq!(stored(P | RW, 1), P | RW | US | GUEST_KERNEL);
        assert_eq!(stored(P | RW | G, 1), P | RW | US | GUEST_KERNEL);
        assert_eq!(stored(P | US, 1), P | US | G);
        let kernel = stored(P | RW, 1);
        assert_eq!(stored(kernel, 1), kernel);
        assert_eq!(stored(P, 3), P | US);
    }

    #[test]
    fn large_pages_and_memory_types_stay_out_of_upper_levels() {
        for level in 2..=4 {
            for bit in [PSE, G, PWT, PCD] {
                assert!(!Pte::new(P | bit).is_allowed(level));
            }
            assert!(Pte::new(P | RW | US | A | D | NX | SOFTWARE | FRAME).is_allowed(level));
        }
        assert!(Pte::new(u64::MAX).is_allowed(1));
    }

    #[test]
    fn write_access_and_frame_always_need_a_new_look() {
        let is_harmless = |bits| Pte::new(P).differs_harmlessly(Pte::new(P | bits));
        assert!(is_harmless(A | D | US | NX | G | 0xe00));
        assert!(!is_harmless(RW));
        assert!(!is_harmless(0x1000));
        assert!(!is_harmless(PCD));
    }

    #[test]
    fn device_memory_is_never_cached() {
        assert_eq!(uncached(P), P | PWT | PCD);
        assert_eq!(uncached(P | PWT), P | PWT | PCD);
        assert_eq!(uncached(P | PWT | PAT), P | PWT | PCD | PAT);
        assert_eq!(uncached(P | PAT), P | PAT, "write-combining stays");
        assert_eq!(uncached(P | PCD), P | PCD);
        assert_eq!(Pte::new(P | RW | PCD).for_device(true), Pte::new(P | PCD));
    }
}
