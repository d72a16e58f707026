//! Instructions that fault in ring 3 and that the ABI promises to a guest kernel: `cpuid`, port I/O, control, debug and
//! model-specific registers, `cli`/`sti`, time stamps.
//!
//! The kernel of a PV guest counts as privilege level 1: what needs IOPL (`cli`, `sti`, ports) works from IOPL 1 on (from 0 on
//! with the assist that makes IOPL architectural), and everything else here is the kernel's alone. A guest's user mode gets `cpuid` in its prefixed form, trapped time
//! stamps, and ports that its kernel opened.

mod control;
pub mod cpuid;
pub mod decode;
pub mod far_returns;
mod instruction;
pub mod msr;
mod ports;
pub mod state;
pub mod table_writes;

use core::sync::atomic::Ordering;

use crate::Hypervisor;
use crate::domain::{Current, Domain};
use crate::platform::{CpuidResult, Platform};
use crate::traps::{self, TrapVector};
pub(crate) use control::{cr4_of_guest, valid_xcr0};
use decode::Privileged;
use instruction::MAX_INSTRUCTION_BYTES;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::types::GuestVa;

/// What became of a faulting instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants say what their fields are")]
pub enum Emulated {
    /// Done; rip is past it.
    Done,
    /// Not ours: the guest gets the exception that the CPU raised.
    NotEmulated,
    /// Done in part: rip stays, and the guest executes the rest.
    Again,
    /// The guest gets #PF for an operand of the instruction.
    PageFault { address: u64, write: bool },
}

/// Executes the prefixed `cpuid` after a #UD, ahead of all else: kernels ask often. `false`: the instruction is another or
/// lies across a page's end, and [`emulate`] has the last word.
pub fn forced_cpuid<P: Platform>(cur: &mut Current<'_, P>) -> bool {
    let rip = cur.regs.rip;
    if rip & 4095 > 4096 - size_of::<u64>() as u64 {
        return false;
    }
    let Ok([word]) = cur.read_frame(GuestVa::new(rip)) else { return false };
    let Some(length) = decode::forced_cpuid(word) else { return false };
    emulate_cpuid(cur);
    retire(cur, rip.wrapping_add(u64::from(length)));
    true
}

/// Goes past the instruction and clears the resume flag, which was meant for this instruction. A guest that steps gets its
/// trap.
fn retire<P: Platform>(cur: &mut Current<'_, P>, next_rip: u64) {
    cur.regs.rip = next_rip;
    cur.regs.rflags &= !traps::flags::RF;
    traps::retired(cur);
}

/// Emulates the instruction at rip after a #GP or #UD (`exception`) in the guest.
pub fn emulate<P: Platform>(cur: &mut Current<'_, P>, exception: TrapVector) -> Emulated {
    let Some((what, length)) = fetch(cur) else { return Emulated::NotEmulated };
    let next_rip = cur.regs.rip.wrapping_add(u64::from(length));
    let user = cur.vcpu.user_mode.load(core::sync::atomic::Ordering::Relaxed);
    // Only the prefixed cpuid and xsetbv may raise #UD in ring 3; the others raise #GP.
    if exception == TrapVector::UNDEFINED && !matches!(what, Privileged::Cpuid | Privileged::Xsetbv) {
        return Emulated::NotEmulated;
    }
    let outcome = match what {
        Privileged::Cpuid => {
            emulate_cpuid(cur);
            Emulated::Done
        }
        Privileged::Rdtsc => give(cur.regs, cur.hv.platform.tsc()),
        Privileged::Port { direction, port, bytes } => ports::access(cur, direction, port, bytes, user),
        Privileged::PortString { direction, bytes, repeat, address32 } => {
            ports::string(cur, direction, bytes, repeat, address32, user)
        }
        Privileged::Cli | Privileged::Sti => {
            // Without effect: a guest masks events in its vcpu_info. The instruction must not fault, since kernels execute
            // it before they patch themselves.
            if ports::iopl_allows(cur, user) { Emulated::Done } else { Emulated::NotEmulated }
        }
        _ if user => Emulated::NotEmulated,
        Privileged::CacheFlush => Emulated::Done, // the guest has no uncached memory without device rights
        Privileged::Clts => {
            cur.set_task_switched(false);
            Emulated::Done
        }
        Privileged::ReadCr { cr, gpr } => control::read_cr(cur, cr, gpr),
        Privileged::WriteCr { cr, gpr } => control::write_cr(cur, cr, gpr),
        Privileged::ReadDr { dr, gpr } => control::read_dr(cur, dr, gpr),
        Privileged::WriteDr { dr, gpr } => control::write_dr(cur, dr, gpr),
        Privileged::Rdmsr => match msr::read(cur.regs.rcx as u32, cur) {
            Some(value) => give(cur.regs, value),
            None => Emulated::NotEmulated,
        },
        Privileged::Wrmsr => match msr::write(cur.regs.rcx as u32, edx_eax(cur.regs), cur) {
            Some(()) => Emulated::Done,
            None => Emulated::NotEmulated,
        },
        Privileged::Rdtscp => {
            cur.regs.rcx = 0;
            give(cur.regs, cur.hv.platform.tsc())
        }
        Privileged::Xsetbv => control::xsetbv(cur),
    };
    if outcome == Emulated::Done {
        retire(cur, next_rip);
    }
    outcome
}

/// Reads and decodes the instruction at rip, which may end at the last mapped byte before a hole.
///
/// One word holds nearly all of them, and its copy is the cheapest.
fn fetch<P: Platform>(cur: &Current<'_, P>) -> Option<(Privileged, u8)> {
    let rip = cur.regs.rip;
    let in_page = 4096 - (rip & 4095) as usize;
    if in_page >= size_of::<u64>() {
        let [word] = cur.read_frame(GuestVa::new(rip)).ok()?;
        if let Some(decoded) = decode::decode(&word.to_le_bytes()) {
            return Some(decoded);
        }
    }
    fetch_long(cur, in_page.min(MAX_INSTRUCTION_BYTES))
}

#[cold]
fn fetch_long<P: Platform>(cur: &Current<'_, P>, in_page: usize) -> Option<(Privileged, u8)> {
    let rip = GuestVa::new(cur.regs.rip);
    let mut bytes = [0; MAX_INSTRUCTION_BYTES];
    let (first, rest) = bytes.split_at_mut(in_page);
    cur.copy_from_guest(first, rip).ok()?;
    if let Some(decoded) = decode::decode(first) {
        return Some(decoded);
    }
    cur.copy_from_guest(rest, rip.wrapping_add(in_page as u64)).ok()?;
    decode::decode(&bytes)
}

fn emulate_cpuid<P: Platform>(cur: &mut Current<'_, P>) {
    let (leaf, subleaf) = (cur.regs.rax as u32, cur.regs.rcx as u32);
    let vcpu = cur.vcpu.id.raw();
    let result = if cur.domain.levels.is_set() {
        shown(cur.hv, cur.domain, vcpu, leaf, subleaf)[1]
    } else {
        most_shown(cur.hv, Some(cur.domain), vcpu, cur.hv.platform.xcr0_mask(), leaf, subleaf)
    };
    cur.regs.rax = u64::from(result.eax);
    cur.regs.rbx = u64::from(result.ebx);
    cur.regs.rcx = u64::from(result.ecx);
    cur.regs.rdx = u64::from(result.edx);
}

/// What a vCPU of a domain (`None`: of any) sees in a leaf if no policy hides anything but other states than these.
#[inline(always)]
fn most_shown<P: Platform>(
    hv: &Hypervisor<P>,
    domain: Option<&Domain>,
    vcpu: u32,
    xcr0_mask: u64,
    leaf: u32,
    subleaf: u32,
) -> CpuidResult {
    let platform = &hv.platform;
    // The facts that only the hypervisor's leaves contain are looked up only for those leaves.
    let hypervisor_leaf = leaf >> 28 == cpuid::HYPERVISOR_BASE >> 28;
    let of_leaf = |value: &dyn Fn() -> u32| if hypervisor_leaf { value() } else { 0 };
    let context = cpuid::CpuidContext {
        vcpu,
        hardware_domain: domain.is_some_and(|domain| domain.privileged),
        xcr0_mask,
        tsc_khz: of_leaf(&|| platform.time_params().tsc_khz),
        tsc_mode: of_leaf(&|| domain.map_or(0, |domain| domain.tsc_mode.load(Ordering::Relaxed))),
        machine_address_bits: of_leaf(&|| platform.cpuid(0x8000_0008, 0).eax) as u8,
    };
    cpuid::query(leaf, subleaf, &context, |leaf, subleaf| platform.cpuid(leaf, subleaf))
}

/// The same, apart from the path of guests that ask.
#[cold]
#[inline(never)]
fn most_shown_rarely<P: Platform>(
    hv: &Hypervisor<P>,
    domain: Option<&Domain>,
    vcpu: u32,
    xcr0_mask: u64,
    leaf: u32,
    subleaf: u32,
) -> CpuidResult {
    most_shown(hv, domain, vcpu, xcr0_mask, leaf, subleaf)
}

/// What a vCPU of a domain would see in a leaf without a policy, and what it sees.
pub(crate) fn shown<P: Platform>(
    hv: &Hypervisor<P>,
    domain: &Domain,
    vcpu: u32,
    leaf: u32,
    subleaf: u32,
) -> [CpuidResult; 2] {
    let all = hv.platform.xcr0_mask();
    let seen = |states| most_shown_rarely(hv, Some(domain), vcpu, states, leaf, subleaf);
    [seen(all), domain.levels.apply(leaf, subleaf, seen(domain.levels.states(all)))]
}

/// What a guest without a policy sees in a leaf.
pub(crate) fn most_shown_to_any<P: Platform>(hv: &Hypervisor<P>, leaf: u32, subleaf: u32) -> CpuidResult {
    most_shown_rarely(hv, None, 0, hv.platform.xcr0_mask(), leaf, subleaf)
}

impl<P: Platform> Current<'_, P> {
    /// The components of XCR0 that the guest may set; 0: none.
    #[inline]
    fn xcr0_mask(&self) -> u64 {
        self.domain.levels.states(self.hv.platform.xcr0_mask())
    }
}

/// Sets edx:eax.
fn give(regs: &mut CpuUserRegs, value: u64) -> Emulated {
    regs.rax = value & 0xffff_ffff;
    regs.rdx = value >> 32;
    Emulated::Done
}

const fn edx_eax(regs: &CpuUserRegs) -> u64 {
    regs.rdx << 32 | regs.rax & 0xffff_ffff
}
