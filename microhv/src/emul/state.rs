//! What a toolstack takes away of what a guest may see of the CPU: `XEN_DOMCTL_set_cpu_policy`.
//!
//! A policy only hides. So a policy of one machine is refused on another that lacks something of it, and no policy offers state that
//! microhv does not switch. A guest's user mode may execute the CPU's own `cpuid`, which hides nothing; but states that are
//! hidden are also kept out of XCR0, without which their instructions do not work.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ring_abi::guest_context::XenCpuidLeaf;

use crate::platform::CpuidResult;

/// First of the hypervisor's leaves.
pub const HYPERVISOR_BASE: u32 = 0x4000_0000;
/// Leaf 1, ecx.
pub(super) const XSAVE: u32 = 1 << 26;
pub(super) const OSXSAVE: u32 = 1 << 27;
pub(super) const HYPERVISOR: u32 = 1 << 31;
// States that features need: x87 and SSE; AVX besides; AVX-512 besides.
pub(super) const XCR0_SSE: u64 = 3;
pub(super) const XCR0_AVX: u64 = 1 << 2 | XCR0_SSE;
pub(super) const XCR0_AVX512: u64 = XCR0_AVX512_ALONE | XCR0_SSE;
/// First of the extended leaves.
const EXTENDED: u32 = 0x8000_0000;
/// Bits of leaf 1's ecx that no policy decides.
const DYNAMIC: u32 = OSXSAVE | HYPERVISOR;
const AVX: u32 = 1 << 28;
/// Leaf 7, ebx.
const AVX512F: u32 = 1 << 16;
/// Components of XCR0 that only AVX-512 has.
const XCR0_AVX512_ALONE: u64 = 7 << 5;

/// A register of a leaf, and of its sub-leaf where there are several, whose bits are features.
struct Word(u32, u32, fn(&mut CpuidResult) -> &mut u32);

const WORDS: [Word; 9] = [
    Word(1, 0, |leaf| &mut leaf.ecx),
    Word(1, 0, |leaf| &mut leaf.edx),
    Word(7, 0, |leaf| &mut leaf.ebx),
    Word(7, 0, |leaf| &mut leaf.ecx),
    Word(7, 0, |leaf| &mut leaf.edx),
    Word(0xd, 1, |leaf| &mut leaf.eax),
    Word(EXTENDED + 1, 0, |leaf| &mut leaf.ecx),
    Word(EXTENDED + 1, 0, |leaf| &mut leaf.edx),
    Word(EXTENDED + 7, 0, |leaf| &mut leaf.edx),
];

impl Word {
    const fn is_of(&self, leaf: u32, subleaf: u32) -> bool {
        self.0 == leaf && (self.1 == subleaf || !has_subleaves(leaf))
    }
}

/// Whether a leaf that a guest may see differs by its sub-leaf.
pub(crate) const fn has_subleaves(leaf: u32) -> bool {
    matches!(leaf, 4 | 7 | 0xd)
}

/// What a policy hides, as far as its leaves were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Draft {
    hidden: [u32; WORDS.len()],
    hidden_states: u64,
    /// The last basic and the last extended leaf; 0: the CPU's.
    last: [u32; 2],
}

impl Draft {
    /// Takes a leaf of the policy, of which the guest would see `most` without one. `false`: the policy shows more than that, or
    /// another maker's CPU. What is no feature (model names, caches, sizes) stays as the CPU has it.
    #[must_use]
    pub(crate) fn take(&mut self, given: &XenCpuidLeaf, mut most: CpuidResult) -> bool {
        let mut wanted = CpuidResult { eax: given.a, ebx: given.b, ecx: given.c, edx: given.d };
        match given.leaf {
            0 | EXTENDED => {
                let rest = |of: &CpuidResult| [of.ebx, of.ecx, of.edx];
                // Leaf 1 of either kind says what a kernel cannot do without.
                let is_possible = (given.leaf + 1..=most.eax).contains(&wanted.eax);
                self.last[(given.leaf >> 31) as usize] = wanted.eax;
                return is_possible && rest(&wanted) == rest(&most);
            }
            0xd if given.subleaf == 0 => {
                self.hide_states(u64::from(most.eax & !wanted.eax));
                return wanted.eax & !most.eax == 0;
            }
            1 => {
                most.ecx &= !DYNAMIC;
                wanted.ecx &= !DYNAMIC;
            }
            _ => {}
        }
        let all = WORDS.iter().zip(&mut self.hidden);
        let mut is_possible = true;
        for (Word(.., register), hidden) in all.filter(|(word, _)| word.is_of(given.leaf, given.subleaf)) {
            let (most, wanted) = (*register(&mut most), *register(&mut wanted));
            is_possible &= wanted & !most == 0;
            *hidden = most & !wanted;
        }
        // A state whose feature is hidden is hidden, too.
        self.hide_states(match given.leaf {
            1 if most.ecx & !wanted.ecx & XSAVE != 0 => u64::MAX,
            1 if most.ecx & !wanted.ecx & AVX != 0 => !XCR0_SSE,
            7 if most.ebx & !wanted.ebx & AVX512F != 0 => XCR0_AVX512_ALONE,
            _ => 0,
        });
        is_possible
    }

    /// States that build on AVX's go with that.
    fn hide_states(&mut self, states: u64) {
        self.hidden_states |= states;
        if self.hidden_states & XCR0_AVX & !XCR0_SSE != 0 {
            self.hidden_states |= !XCR0_SSE;
        }
    }
}

/// What is hidden from a domain.
#[derive(Debug, Default)]
pub struct Levels {
    is_set: AtomicBool,
    hidden: [AtomicU32; WORDS.len()],
    hidden_states: AtomicU64,
    last: [AtomicU32; 2],
}

impl Levels {
    /// What is hidden now.
    pub(crate) fn draft(&self) -> Draft {
        let words = |of: &AtomicU32| of.load(Ordering::Relaxed);
        Draft {
            hidden: self.hidden.each_ref().map(words),
            hidden_states: self.hidden_states.load(Ordering::Relaxed),
            last: self.last.each_ref().map(words),
        }
    }

    /// Hides what a whole policy hides, before the domain runs.
    pub(crate) fn set(&self, draft: &Draft) {
        for (word, hidden) in self.hidden.iter().zip(draft.hidden) {
            word.store(hidden, Ordering::Relaxed);
        }
        for (word, last) in self.last.iter().zip(draft.last) {
            word.store(last, Ordering::Relaxed);
        }
        self.hidden_states.store(draft.hidden_states, Ordering::Relaxed);
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Of these components of XCR0, those that the domain may set.
    #[inline]
    pub(crate) fn states(&self, all: u64) -> u64 {
        let left = all & !self.hidden_states.load(Ordering::Relaxed);
        // XCR0 without SSE is offered to nobody.
        if left & XCR0_SSE == XCR0_SSE { left } else { 0 }
    }

    /// Whether the domain has a policy.
    #[inline]
    pub(super) fn is_set(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// What is left of an answer that the domain would see without a policy.
    pub(super) fn apply(&self, leaf: u32, subleaf: u32, mut shown: CpuidResult) -> CpuidResult {
        let last = self.last[(leaf >> 31) as usize].load(Ordering::Relaxed);
        if last != 0 && leaf >> 28 != HYPERVISOR_BASE >> 28 {
            match leaf {
                0 | EXTENDED => shown.eax = last,
                _ if leaf > last => return CpuidResult::default(),
                _ => {}
            }
        }
        let all = WORDS.iter().zip(&self.hidden);
        for (Word(.., register), hidden) in all.filter(|(word, _)| word.is_of(leaf, subleaf)) {
            *register(&mut shown) &= !hidden.load(Ordering::Relaxed);
        }
        shown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: CpuidResult = CpuidResult { eax: 0xe7, ebx: 0xffff_0000, ecx: !0, edx: 0xff };

    fn leaf(leaf: u32, of: CpuidResult) -> XenCpuidLeaf {
        XenCpuidLeaf { leaf, subleaf: u32::MAX, a: of.eax, b: of.ebx, c: of.ecx, d: of.edx }
    }

    fn set(leaves: &[XenCpuidLeaf]) -> Levels {
        let (levels, mut draft) = (Levels::default(), Draft::default());
        assert!(leaves.iter().all(|leaf| draft.take(leaf, MOST)));
        levels.set(&draft);
        levels
    }

    #[test]
    fn a_policy_hides_and_never_shows_more() {
        let levels = set(&[leaf(1, CpuidResult { ecx: 1 | XSAVE | AVX, edx: 0xf, ..MOST })]);
        let seen = levels.apply(1, 0x77, MOST);
        assert_eq!((seen.ecx, seen.edx), (1 | XSAVE | AVX | DYNAMIC, 0xf), "whatever ecx was");
        assert_eq!((seen.eax, seen.ebx), (MOST.eax, MOST.ebx), "no features");
        assert_eq!(levels.apply(7, 0, MOST), MOST);
        assert_eq!(levels.states(0xe7), 0xe7);
        assert!(!Draft::default().take(&leaf(1, CpuidResult { edx: 0x100, ..MOST }), MOST));
        assert!(!Draft::default().take(&leaf(EXTENDED + 7, CpuidResult { edx: 0x100, ..MOST }), MOST));
    }

    #[test]
    fn a_hidden_feature_hides_its_state() {
        let seven = |ebx| XenCpuidLeaf { subleaf: 0, ..leaf(7, CpuidResult { ebx, ..MOST }) };
        assert_eq!(set(&[leaf(1, CpuidResult { ecx: !AVX, ..MOST })]).states(0xe7), 3);
        assert_eq!(set(&[leaf(1, CpuidResult { ecx: !XSAVE, ..MOST })]).states(0xe7), 0);
        assert_eq!(set(&[seven(MOST.ebx & !AVX512F)]).states(0xe7), 7);
        assert_eq!(set(&[seven(MOST.ebx)]).states(0xe7), 0xe7);
        let states = |eax| XenCpuidLeaf { subleaf: 0, ..leaf(0xd, CpuidResult { eax, ..MOST }) };
        assert_eq!(set(&[states(0xe3)]).states(0xe7), 3, "AVX-512 without AVX is no state");
        assert!(!Draft::default().take(&states(0x200), MOST));
    }

    #[test]
    fn leaves_end_where_a_policy_says() {
        let of = |eax| CpuidResult { eax, ..MOST };
        let levels = set(&[leaf(0, of(7))]);
        assert_eq!((levels.apply(0, 0, MOST).eax, levels.apply(8, 0, MOST)), (7, CpuidResult::default()));
        assert_eq!(levels.apply(EXTENDED + 8, 0, MOST), MOST, "the other range");
        assert_eq!(levels.apply(HYPERVISOR_BASE, 0, MOST), MOST);
        for eax in [0, 0xe8] {
            assert!(!Draft::default().take(&leaf(0, of(eax)), MOST), "{eax:#x}");
        }
        assert!(!Draft::default().take(&leaf(0, CpuidResult { ebx: 1, ..of(7) }), MOST), "another maker's");
    }
}
