//! Errors that the hardware reports: what each means for who runs.
//!
//! Intel SDM volume 3, "Machine-Check Architecture"; AMD APM volume 2, "Machine Check Architecture".
#![forbid(unsafe_code)]

use core::fmt;

/// `MCG_STATUS`: what was interrupted can go on.
const RIPV: u64 = 1 << 0;
/// `MCG_STATUS`: the error belongs to what was interrupted. Machine checks come to all CPUs, and threads share banks.
const EIPV: u64 = 1 << 1;
/// `MCi_STATUS`: the bank has an error; an earlier one was lost; no hardware corrected the error; the address and the further
/// word are there; the CPU's state is lost.
const VALID: u64 = 1 << 63;
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
const HAS_MISC: u64 = 1 << 59;
const HAS_ADDRESS: u64 = 1 << 58;
const CONTEXT_LOST: u64 = 1 << 57;
/// Of CPUs that tell which errors software must act upon (`MCG_CAP`, SER_P): to act upon before what was interrupted goes on.
const ACTION_REQUIRED: u64 = 1 << 55;

/// What one bank of registers says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bank {
    /// Which of the banks.
    pub number: u32,
    /// `MCi_STATUS`.
    pub status: u64,
    /// `MCi_ADDR`, if there is one.
    pub address: Option<u64>,
    /// `MCi_MISC`, if there is one.
    pub misc: Option<u64>,
}

impl Bank {
    /// Reads bank `number` if there is an error in that bank.
    pub fn read(number: u32, read_msr: impl Fn(u32) -> u64) -> Option<Self> {
        let status = read_msr(status_msr(number));
        let word = |bit, offset| (status & bit != 0).then(|| read_msr(status_msr(number) + offset));
        (status & VALID != 0).then(|| Self {
            number,
            status,
            address: word(HAS_ADDRESS, 1),
            misc: word(HAS_MISC, 2),
        })
    }

    /// Whether the hardware has corrected the error.
    pub const fn is_corrected(&self) -> bool {
        self.status & UNCORRECTED == 0
    }
}

impl fmt::Display for Bank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bank {}: status {:#018x}", self.number, self.status)?;
        self.address.map_or(Ok(()), |address| write!(f, ", address {address:#x}"))?;
        self.misc.map_or(Ok(()), |misc| write!(f, ", misc {misc:#x}"))
    }
}

/// `MCi_STATUS` of a bank.
pub const fn status_msr(bank: u32) -> u32 {
    0x401 + 4 * bank
}

/// What is to be done about a machine check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// What was interrupted goes on.
    GoOn,
    /// The guest that ran has lost something, and nobody else has.
    EndDomain,
    /// Nobody knows what is lost.
    Panic,
}

/// Whether the error belongs to what this CPU was interrupted in, by `MCG_STATUS`: else the banks are another CPU's to read.
pub const fn is_own(mcg_status: u64) -> bool {
    mcg_status & (RIPV | EIPV) != RIPV
}

/// Judges a machine check by `MCG_STATUS` and the banks. `tells_actions`: the CPU tells which errors software must act upon.
/// `is_guest`: a guest was interrupted, not the hypervisor.
pub fn judge(mcg_status: u64, banks: &[Bank], tells_actions: bool, is_guest: bool) -> Verdict {
    let lost = if is_guest { Verdict::EndDomain } else { Verdict::Panic };
    let of_bank = |bank: &Bank| match bank.status {
        _ if bank.is_corrected() => Verdict::GoOn,
        // The error that was lost may have been any.
        status if status & (CONTEXT_LOST | OVERFLOW) != 0 => Verdict::Panic,
        status if tells_actions && status & ACTION_REQUIRED == 0 => Verdict::GoOn,
        // Of another CPU's, which shares the bank and judges for itself.
        _ if tells_actions && !is_own(mcg_status) => Verdict::GoOn,
        _ => lost,
    };
    let goes_on = if mcg_status & RIPV != 0 { Verdict::GoOn } else { lost };
    banks.iter().map(of_bank).fold(goes_on, Verdict::max)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    fn judged(mcg_status: u64, statuses: &[u64], tells_actions: bool) -> [Verdict; 2] {
        let bank = |status: &u64| Bank { status: VALID | status, ..Bank::default() };
        let banks: std::vec::Vec<Bank> = statuses.iter().map(bank).collect();
        [true, false].map(|is_guest| judge(mcg_status, &banks, tells_actions, is_guest))
    }

    #[test]
    fn a_guest_pays_for_what_only_that_guest_lost() {
        use Verdict::{EndDomain, GoOn, Panic};
        let corrected = 0;
        assert_eq!(judged(RIPV, &[], true), [GoOn; 2], "another CPU's error");
        assert_eq!(judged(RIPV, &[corrected, corrected | OVERFLOW], true), [GoOn; 2]);
        let own = RIPV | EIPV;
        assert_eq!(judged(own, &[UNCORRECTED | ACTION_REQUIRED], true), [EndDomain, Panic]);
        assert_eq!(judged(RIPV, &[UNCORRECTED | ACTION_REQUIRED], true), [GoOn; 2], "of another thread");
        assert_eq!([own, RIPV, EIPV, 0].map(is_own), [true, false, true, true]);
        assert_eq!(judged(RIPV, &[UNCORRECTED], true), [GoOn; 2], "memory that nobody has read yet");
        assert_eq!(judged(RIPV, &[UNCORRECTED], false), [EndDomain, Panic]);
        assert_eq!(judged(0, &[], true), [EndDomain, Panic], "what ran cannot go on");
        assert_eq!(judged(RIPV, &[UNCORRECTED | ACTION_REQUIRED | OVERFLOW], true), [Panic; 2]);
        assert_eq!(judged(RIPV, &[corrected, UNCORRECTED | CONTEXT_LOST, corrected], true), [Panic; 2]);
    }

    #[test]
    fn a_bank_is_read_as_far_as_there_is_something() {
        let registers = |status: u64| {
            move |msr: u32| match msr {
                0x411 => status,
                0x412 if status & HAS_ADDRESS != 0 => 0x1234_5000,
                0x413 if status & HAS_MISC != 0 => 0x8c,
                _ => panic!("register {msr:#x} has nothing"),
            }
        };
        assert_eq!(Bank::read(4, registers(UNCORRECTED)), None);
        let all = Bank::read(4, registers(VALID | UNCORRECTED | HAS_ADDRESS | HAS_MISC)).expect("an error");
        assert_eq!(all.to_string(), "bank 4: status 0xac00000000000000, address 0x12345000, misc 0x8c");
        let bare = Bank::read(4, registers(VALID)).expect("an error");
        assert_eq!(
            (bare.to_string().as_str(), bare.is_corrected()),
            ("bank 4: status 0x8000000000000000", true)
        );
    }
}
