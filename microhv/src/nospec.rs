//! What guests choose, in bounds even where a CPU only guesses that it is (Spectre v1): indices, addresses, frames.
//!
//! A CPU that takes a failed check for a passed one executes ahead what is behind the check, and the caches keep a trace of the
//! address that was read there. So what a guest chooses is checked, and then becomes 0 by a conditional move if the check
//! fails: the CPU waits for both operands of such a move, and guesses neither. The moves are assembly, which the compiler
//! cannot leave out as it leaves out what repeats a check. A frame has too many checks for that: behind them is a [`barrier`].
//!
//! Code that guests reach has no other way to a table's entry: the house's rule `index` finds each.
#![allow(unsafe_code)] // the moves and the barrier, and entries at the indices that come out of them

#[cfg(all(target_arch = "x86_64", not(miri)))]
use core::arch::asm;

/// What a value becomes whose check fails. In memory: a constant would cost each move a register.
#[cfg(all(target_arch = "x86_64", not(miri)))]
static ZERO: u64 = 0;

/// `index` if it is below `len`, else 0.
#[inline(always)]
pub fn clamp(index: usize, len: usize) -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut clamped = index;
        // SAFETY: reads registers and a word of our own.
        unsafe {
            asm!(
                "cmp {index}, {len}",
                "cmovae {index}, qword ptr [rip + {zero}]",
                index = inout(reg) clamped, len = in(reg) len, zero = sym ZERO,
                options(pure, readonly, nostack),
            );
        }
        clamped
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    portable(index, len)
}

/// What an address becomes that is not the guest's: one that is not canonical, so that to use it faults. A CPU that looks at no
/// more than the lower 48 bits while it guesses reads address 0, which is the guest's.
pub const NOWHERE: u64 = 1 << 63;

#[cfg(all(target_arch = "x86_64", not(miri)))]
static NOWHERE_IN_MEMORY: u64 = NOWHERE;

/// `address`, unless it is in `FROM..TO`: then [`NOWHERE`]. There is no branch in this, so nothing for a CPU to guess.
///
/// Both limits are multiples of 2^33 at least, the upper one in the upper half.
#[inline(always)]
pub fn outside<const FROM: u64, const TO: u64>(address: u64) -> u64 {
    const { assert!(FROM < TO && TO >> 63 == 1 && (FROM | TO).trailing_zeros() > 32) };
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut chosen = address;
        // What is outside is one range, from `TO` by way of the last address and 0 to `FROM`. All of this is assembly, and so as
        // short: a compiler would keep parts of it in registers that a loop needs for other things.
        // SAFETY: reads registers and a word of our own.
        unsafe {
            asm!(
                "mov {part}, {chosen}",
                "sar {part}, {shift}",
                "add {part:e}, {above}",
                "cmp {part:e}, {parts}",
                "cmovae {chosen}, qword ptr [rip + {nowhere}]",
                part = out(reg) _, chosen = inout(reg) chosen, nowhere = sym NOWHERE_IN_MEMORY,
                shift = const (FROM | TO).trailing_zeros(),
                above = const TO.wrapping_neg() >> (FROM | TO).trailing_zeros(),
                parts = const FROM.wrapping_sub(TO) >> (FROM | TO).trailing_zeros(),
                options(pure, readonly, nostack),
            );
        }
        chosen
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    {
        if (FROM..TO).contains(&address) { NOWHERE } else { address }
    }
}

/// Nothing that comes behind is executed ahead while the CPU guesses what checks before this will say.
///
/// That is LFENCE on a CPU that speculates. Elsewhere it is a NOP of the same three bytes: the section `.barriers` has the place
/// of each, as an offset from the word that says so.
#[inline(always)]
pub fn barrier() {
    #[cfg(any(test, feature = "testing"))]
    crate::testing::looks::note(crate::testing::looks::Look::Barrier);
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: changes no register. No option says that memory is not touched, so no access moves across this.
    unsafe {
        asm!(
            "2: nop dword ptr [rax]",
            ".pushsection .barriers, \"a\", @progbits",
            ".long 2b - .",
            ".popsection",
            options(nostack, preserves_flags),
        );
    }
}

/// [`clamp`] without assembly.
#[cfg(any(test, miri, not(target_arch = "x86_64")))]
const fn portable(index: usize, len: usize) -> usize {
    if index < len { index } else { 0 }
}

/// `index` modulo `N`, a power of two.
#[inline(always)]
pub fn wrap<const N: usize>(index: usize) -> usize {
    const { assert!(N.is_power_of_two() && N <= 1 << 31) };
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        let mut wrapped = index;
        // SAFETY: reads a register.
        unsafe {
            asm!("and {:e}, {}", inout(reg) wrapped, const N - 1, options(pure, nomem, nostack));
        }
        // SAFETY: the remainder is below `N`, which saves checks of bounds.
        unsafe { core::hint::assert_unchecked(wrapped < N) };
        wrapped
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    {
        index % N
    }
}

/// Entries at indices that guests choose.
pub trait At {
    /// An entry.
    type Entry;

    /// The entry at `index`, if there is one.
    fn at(&self, index: usize) -> Option<&Self::Entry>;

    /// The same, and the index once it is clamped: what goes on to use the entry by its index uses this one.
    fn find(&self, index: usize) -> Option<(usize, &Self::Entry)>;

    /// The entry at `index`, to be changed, if there is one.
    fn at_mut(&mut self, index: usize) -> Option<&mut Self::Entry>;
}

impl<T> At for [T] {
    type Entry = T;

    #[inline(always)]
    fn at(&self, index: usize) -> Option<&T> {
        self.find(index).map(|(_, entry)| entry)
    }

    #[inline(always)]
    fn find(&self, index: usize) -> Option<(usize, &T)> {
        let len = self.len();
        if index >= len {
            return None;
        }
        // Behind the check, so that the index needs no second register.
        let index = clamp(index, len);
        // SAFETY: the index was below the length, and stayed so.
        Some((index, unsafe { self.get_unchecked(index) }))
    }

    #[inline(always)]
    fn at_mut(&mut self, index: usize) -> Option<&mut T> {
        let len = self.len();
        // SAFETY: as in `at`.
        if index < len { Some(unsafe { self.get_unchecked_mut(clamp(index, len)) }) } else { None }
    }
}

/// Tables of a fixed size, a power of two: one instruction brings an index into bounds.
pub trait Wrapped {
    /// An entry.
    type Entry;

    /// The entry at `index` modulo the table's size.
    fn wrapped(&self, index: usize) -> &Self::Entry;

    /// The entry at `index` modulo the table's size, to be changed.
    fn wrapped_mut(&mut self, index: usize) -> &mut Self::Entry;

    /// The entry at `index`, if there is one.
    fn within(&self, index: usize) -> Option<&Self::Entry>;
}

impl<T, const N: usize> Wrapped for [T; N] {
    type Entry = T;

    #[inline(always)]
    fn wrapped(&self, index: usize) -> &T {
        // SAFETY: a remainder of `N`.
        unsafe { self.get_unchecked(wrap::<N>(index)) }
    }

    #[inline(always)]
    fn wrapped_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: a remainder of `N`.
        unsafe { self.get_unchecked_mut(wrap::<N>(index)) }
    }

    #[inline(always)]
    fn within(&self, index: usize) -> Option<&T> {
        if index < N { Some(self.wrapped(index)) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is not a guest's: addresses that are not canonical, and the hypervisor's.
    const FROM: u64 = 1 << 47;
    const TO: u64 = 0xffff_8800_0000_0000;

    #[test]
    fn bounds_are_kept() {
        for len in [0, 1, 2, 3, 64, 1 << 31, 1 << 32, 1 << 63, usize::MAX] {
            for index in [0, 1, len.wrapping_sub(1), len, len.wrapping_add(1), 1 << 32, 1 << 63, usize::MAX] {
                assert_eq!(clamp(index, len), portable(index, len), "{index} of {len}");
            }
        }
    }

    #[test]
    fn no_address_leads_to_the_hypervisor() {
        for address in [0, 1, FROM - 1, TO, TO + 1, 0xffff_ffff_8000_0000, u64::MAX] {
            assert_eq!(outside::<FROM, TO>(address), address);
        }
        for address in [FROM, FROM + 1, 1 << 63, 0xffff_8000_0000_0000, 0xffff_82d0_8000_0000, TO - 1] {
            assert_eq!(outside::<FROM, TO>(address), NOWHERE, "{address:#x}");
        }
        // What is there is not canonical, and of the lower 48 bits nothing is left.
        assert_eq!((NOWHERE >> 47, NOWHERE << 16), (1 << 16, 0));
    }

    #[test]
    fn tables_have_their_entries_and_no_more() {
        let mut table = [10, 11, 12, 13];
        for (index, entry) in table.into_iter().enumerate() {
            assert_eq!((table.at(index), table.within(index)), (Some(&entry), Some(&entry)));
            assert_eq!(table.wrapped(index + 4), &entry);
            assert_eq!(table.at_mut(index), Some(&mut { entry }));
        }
        for none in [4, 5, 1 << 32, usize::MAX] {
            assert_eq!((table.at(none), table.within(none)), (None, None));
            assert_eq!(table.at_mut(none), None);
        }
        assert_eq!((<[u8]>::at(&[], 0), <[u8]>::at(&[], usize::MAX)), (None, None));
        *table.at_mut(3).expect("four entries") = 7;
        *table.wrapped_mut(usize::MAX - 3) = 9;
        assert_eq!(table, [9, 11, 12, 7]);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_get(index: usize, near in 0usize..70, len in 0usize..66) {
            let table: alloc::vec::Vec<usize> = (0..len).collect();
            for index in [index, near] {
                proptest::prop_assert_eq!(table.at(index), table.get(index));
                proptest::prop_assert_eq!(clamp(index, len), portable(index, len));
                proptest::prop_assert_eq!(wrap::<64>(index), index % 64);
                for address in [index as u64, (index as i64 >> 16) as u64] {
                    let expected = if (FROM..TO).contains(&address) { NOWHERE } else { address };
                    proptest::prop_assert_eq!(outside::<FROM, TO>(address), expected);
                }
            }
        }
    }
}
