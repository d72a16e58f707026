//! Physical CPUs.

use crate::nospec::wrap;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The most physical CPUs that are used.
pub const MAX_CPUS: usize = 64;

/// Work that waits on a CPU, a bit each: the run queue is to be looked at.
pub const SOFTIRQ_SCHEDULE: u32 = 1;
/// Timers are to be looked at.
pub const SOFTIRQ_TIMER: u32 = 2;

/// A physical CPU, counted from 0 (the boot CPU).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CpuId(u32);

impl CpuId {
    /// The boot CPU.
    pub const BOOT: Self = Self(0);

    /// CPU number `raw`, or `None` from [`MAX_CPUS`] on.
    pub const fn new(raw: u32) -> Option<Self> {
        if (raw as usize) < MAX_CPUS { Some(Self(raw)) } else { None }
    }

    /// The number.
    #[inline]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The number as an index, below [`MAX_CPUS`] even where a CPU only guesses so: a guest may have named it.
    #[inline]
    pub fn index(self) -> usize {
        wrap::<MAX_CPUS>(self.0 as usize)
    }

    /// A value for each CPU there could be, by its index.
    pub fn each<T>(make: impl FnMut(Self) -> T) -> Box<[T; MAX_CPUS]> {
        let all: Vec<T> = (0..MAX_CPUS as u32).filter_map(Self::new).map(make).collect();
        all.try_into().ok().expect("a value for each number")
    }
}

/// A set of physical CPUs, a bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CpuSet(u64);

impl CpuSet {
    /// Every CPU there could be.
    pub const ALL: Self = Self(u64::MAX);

    /// The set with bit n for CPU n.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n for CPU n.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Just `cpu`.
    pub const fn only(cpu: CpuId) -> Self {
        Self(1 << cpu.0)
    }

    /// Whether the set has `cpu`.
    pub const fn contains(self, cpu: CpuId) -> bool {
        self.0 & (1 << cpu.0) != 0
    }

    /// How many CPUs it has.
    pub const fn count(self) -> u32 {
        self.0.count_ones()
    }

    /// The CPUs in it, the lowest number first.
    pub fn iter(self) -> impl Iterator<Item = CpuId> {
        let mut left = self.0;
        // Bit by bit, since a set of two CPUs should not cost 64 looks. No bit left gives 64, which is no CPU.
        core::iter::from_fn(move || {
            let cpu = CpuId::new(left.trailing_zeros())?;
            left &= left - 1;
            Some(cpu)
        })
    }

    /// The CPUs that are in both sets.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Takes `cpu` out.
    pub const fn without(self, cpu: CpuId) -> Self {
        Self(self.0 & !(1 << cpu.0))
    }

    /// Adds `cpu`.
    pub const fn with(self, cpu: CpuId) -> Self {
        Self(self.0 | 1 << cpu.0)
    }
}

/// The CPUs, and the one that this code runs on.
pub trait Cpus {
    /// The CPU that this runs on.
    fn cpu(&self) -> CpuId;
    /// The CPUs that are up: they run vCPUs, and take part in what all CPUs do.
    fn online(&self) -> CpuSet;
    /// Makes another CPU look at its pending work.
    fn kick(&self, cpu: CpuId);
    /// Lets another CPU, for which there is no work any more, leave the CPUs that are up, and stop until [`Cpus::unpark`]. Whether
    /// the CPU has left them: else the caller asks again.
    #[must_use]
    fn park(&self, cpu: CpuId) -> bool;
    /// Lets a CPU that was parked be one of those that are up. Whether the CPU is: else the caller asks again.
    #[must_use]
    fn unpark(&self, cpu: CpuId) -> bool;
    /// Asks another CPU to save what it keeps in its registers of a vCPU that it does not run. The caller asks again until
    /// nobody is the vCPU's holder.
    fn ask_to_let_go(&self, cpu: CpuId);
    /// Whether an interrupt is waiting: long operations then return a continuation. Once the answer is `true`, it stays so
    /// until an interrupt is taken, at the return to the guest at the latest: while the callers unwind, each hears the
    /// same. (I13)
    fn work_pending(&self) -> bool;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_is_walked_from_the_lowest_number_and_ends() {
        let numbers = |bits| CpuSet::from_bits(bits).iter().map(CpuId::raw).collect::<Vec<_>>();
        assert_eq!(numbers(0), []);
        assert_eq!(numbers(1 << 63 | 0b101), [0, 2, 63]);
        assert_eq!(CpuSet::ALL.iter().count(), MAX_CPUS);
        assert_eq!(CpuSet::from_bits(0b0110).and(CpuSet::from_bits(0b1100)), CpuSet::from_bits(0b0100));
    }
}
