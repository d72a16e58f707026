//! Machine checks on this machine: banks are turned on, read, told of and cleared.
#![allow(unsafe_code)] // registers of the CPU

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use microhv::machine_check::{Bank, Verdict, is_own, judge, status_msr};
use ring_abi::guest_context::CpuUserRegs;

use super::machine::Cur;
use super::{cpu, panic};

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
/// `MCG_CAP`: there is `MCG_CTL`.
const CTL_P: u64 = 1 << 8;
/// `MCG_CAP`: the CPU tells which errors software must act upon.
const SER_P: u64 = 1 << 24;
/// The most banks that are looked at; no CPU so far has more.
const MAX_BANKS: usize = 32;
/// How many TSC ticks pass at least between two looks for errors that were corrected: about a second.
const LOOK_TICKS: u64 = 1 << 31;

/// CPUs have machine checks at all. Set before any other CPU starts.
static ARE_THERE: AtomicBool = AtomicBool::new(false);
/// Corrected errors so far.
static CORRECTED: AtomicU32 = AtomicU32::new(0);
/// TSC of each CPU's last look.
static LOOKED_AT: [AtomicU64; microhv::platform::MAX_CPUS] =
    [const { AtomicU64::new(0) }; microhv::platform::MAX_CPUS];

/// The banks that have errors.
struct Banks {
    banks: [Bank; MAX_BANKS],
    count: usize,
}

/// This CPU's banks: others may have more, or fewer.
fn banks_of_cpu() -> u32 {
    if !ARE_THERE.load(Ordering::Relaxed) {
        return 0;
    }
    (cpu::read_msr(MCG_CAP) as u32 & 0xff).min(MAX_BANKS as u32)
}

impl Banks {
    fn read() -> Self {
        let mut found = Self { banks: [Bank::default(); MAX_BANKS], count: 0 };
        for number in 0..banks_of_cpu() {
            if let Some(bank) = Bank::read(number, cpu::read_msr) {
                found.banks[found.count] = bank;
                found.count += 1;
            }
        }
        found
    }

    fn get(&self) -> &[Bank] {
        &self.banks[..self.count]
    }

    fn judge(&self, is_guest: bool) -> Verdict {
        let tells_actions = cpu::read_msr(MCG_CAP) & SER_P != 0;
        judge(cpu::read_msr(MCG_STATUS), self.get(), tells_actions, is_guest)
    }

    /// Makes room for the next errors. Banks may hold an error that came meanwhile, which is then lost.
    fn clear(&self) {
        for bank in self.get() {
            // SAFETY: the bank is there; 0 clears.
            unsafe { cpu::write_msr(status_msr(bank.number), 0) };
        }
    }
}

impl fmt::Display for Banks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().iter().try_for_each(|bank| write!(f, "; {bank}"))
    }
}

/// Turns all banks of this CPU on. Errors from before the reset are told.
pub(crate) fn set_up() {
    const MCE_MCA: u32 = 1 << 7 | 1 << 14;
    let one = cpu::cpuid(1, 0);
    if one.edx & MCE_MCA != MCE_MCA {
        return;
    }
    let capabilities = cpu::read_msr(MCG_CAP);
    ARE_THERE.store(true, Ordering::Relaxed);
    let count = banks_of_cpu();
    let left = Banks::read();
    if !left.get().is_empty() {
        log::warn!("hardware errors from before the start{left}");
    }
    left.clear();
    // Bank 0 of Intel's family 6 up to Core belongs to the firmware.
    let is_intel = cpu::cpuid(0, 0).ebx == 0x756e_6547;
    let (family, model) = (one.eax >> 8 & 0xf, one.eax >> 4 & 0xf | one.eax >> 12 & 0xf0);
    let first = u32::from(is_intel && family == 6 && model < 0x1a);
    // SAFETY: the registers are enumerated; CR4.MCE is set, so what they turn on is an exception and no reset.
    unsafe {
        if capabilities & CTL_P != 0 {
            cpu::write_msr(MCG_CTL, u64::MAX);
        }
        for bank in first..count {
            cpu::write_msr(status_msr(bank) - 1, u64::MAX);
        }
    }
}

/// A machine check while a guest ran, on the CPU's main stack.
#[cold]
pub(crate) fn of_guest(cur: &Cur<'_>) {
    let banks = Banks::read();
    let verdict = banks.judge(true);
    if verdict == Verdict::Panic {
        panic::machine_check(cur.regs, &banks);
    }
    log::error!("machine check while d{}v{} ran{banks}", cur.domain.id.raw(), cur.vcpu.id);
    // Banks of a thread beside this one stay, for that thread to read.
    if is_own(cpu::read_msr(MCG_STATUS)) {
        banks.clear();
    }
    if verdict == Verdict::EndDomain {
        cur.crash(format_args!("the hardware lost what the domain had{banks}"));
    }
    end();
}

/// A machine check in the hypervisor, on a stack of its own: nothing may be locked or logged here.
pub(crate) fn of_hypervisor(regs: &CpuUserRegs) {
    let banks = Banks::read();
    if banks.judge(false) == Verdict::Panic {
        panic::machine_check(regs, &banks);
    }
    // The banks keep what they have for the next look, which tells.
    end();
}

/// Lets the next machine check come: one within this would reset the machine.
fn end() {
    // SAFETY: the register is there, since a machine check came.
    unsafe { cpu::write_msr(MCG_STATUS, 0) };
}

/// Tells of errors that no machine check came for, or that came in the hypervisor and let it go on. By this CPU's timer
/// interrupt and ahead of idleness: a CPU that runs one vCPU without end and has no timer set tells later.
#[inline]
pub(crate) fn look(now: u64) {
    let looked_at = &LOOKED_AT[super::percpu::this_cpu().index()];
    if now.wrapping_sub(looked_at.load(Ordering::Relaxed)) >= LOOK_TICKS {
        looked_at.store(now, Ordering::Relaxed);
        look_now();
    }
}

#[inline(never)]
fn look_now() {
    let banks = Banks::read();
    for bank in banks.get() {
        if !bank.is_corrected() {
            log::error!("hardware error, of which nothing was used yet: {bank}");
            continue;
        }
        // A part that fails often is told of more and more seldom.
        let count = CORRECTED.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        if count.is_power_of_two() {
            log::warn!("hardware error, corrected, {count} so far: {bank}");
        }
    }
    banks.clear();
}
