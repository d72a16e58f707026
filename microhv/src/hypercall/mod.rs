//! Hypercalls: dispatch, what a handler gets and gives, a file for each family.
//!
//! A handler decodes, checks, then commits; the commit cannot fail. What takes long looks at
//! `Platform::work_pending` and returns [`Current::again`] or [`HypercallError::Again`]: the guest re-executes the call,
//! with the arguments given or as it was, after whatever was waiting.

mod batch;
pub mod callback;
pub mod console;
pub mod descriptor;
pub mod domctl;
pub(crate) mod error;
pub mod evtchn;
mod flush;
pub mod grant;
pub mod memory;
pub mod mmu;
pub mod mmuext;
pub mod multicall;
pub mod page;
pub mod physdev;
pub mod platform_op;
pub mod sched;
pub mod state;
pub mod sysctl;
#[cfg(test)]
mod tests;
pub mod vcpu;
pub mod version;

use ring_abi::evtchn::EVTCHNOP_SEND;
use ring_abi::guest_context::CpuUserRegs;
use ring_abi::hypercall as nr;
use ring_abi::types::GuestVa;
use ring_abi::vcpu::VCPUOP_IS_UP;
use ring_abi::version::XENVER_VERSION;

pub use self::error::{Answer, HypercallError};
use crate::domain::{Current, Domain, Vcpu};
use crate::platform::Platform;
use crate::return_stack;

/// The arguments: rdi, rsi, rdx, r10, r8, r9.
pub type Args = [u64; 6];

/// How a hypercall ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// rax gets this.
    Done(u64),
    /// The call is to be executed again, with the arguments that [`Current::again`] left in the vCPU.
    Continue,
    /// The registers were replaced as a whole (`iret`, a resumed context): rax is not written.
    NoReturn,
}

impl Outcome {
    /// Success, rax = 0.
    pub const OK: Self = Self::Done(0);
}

/// What a handler gives: rax gets `-errno` of an error.
pub type HypercallResult = Answer<Outcome>;

/// Executes the hypercall that the registers describe, if it is one of the short ones that need nothing but the caller and the registers.
/// Returns whether it was one; for any other, [`dispatch`] is to be called.
#[inline(always)]
pub fn at_once(domain: &Domain, vcpu: &Vcpu, regs: &mut CpuUserRegs) -> bool {
    let number = regs.rax;
    vcpu.history.record(number as u32);
    // Linux asks for the version to have events delivered.
    if number == u64::from(nr::__HYPERVISOR_XEN_VERSION) && regs.rdi as u32 == XENVER_VERSION {
        regs.rax = version::VERSION;
    } else if number == u64::from(nr::__HYPERVISOR_STACK_SWITCH) {
        regs.rax = state::stack_switch(vcpu, regs.rdi, regs.rsi);
    } else if number == u64::from(nr::__HYPERVISOR_VCPU_OP)
        && regs.rdi as u32 == VCPUOP_IS_UP
        && let Some(other) = vcpu::find(domain, regs.rsi)
    {
        regs.rax = other.is_up().into();
    } else {
        return false;
    }
    true
}

/// Executes the hypercall that the registers describe, which [`at_once`] has recorded and left, and sets them to its result.
#[inline(always)]
pub fn dispatch<P: Platform>(cur: &mut Current<'_, P>) {
    let number = cur.regs.rax;
    if number == u64::from(nr::__HYPERVISOR_EVENT_CHANNEL_OP) {
        // Ahead of the table: the most frequent call, whose most frequent operation needs no list of arguments.
        return event_channel_op(cur);
    }
    let args = arguments(cur.regs);
    let result = call(cur, number, &args);
    finish(cur, result);
}

#[inline(always)]
const fn arguments(regs: &CpuUserRegs) -> Args {
    [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9]
}

/// Sets the registers to what a call gave.
#[inline(always)]
fn finish<P: Platform>(cur: &mut Current<'_, P>, result: HypercallResult) {
    if let Ok(Outcome::Done(value)) = result {
        cur.regs.rax = value;
    } else {
        finish_otherwise(cur, result);
    }
}

#[cold]
#[inline(never)]
fn finish_otherwise<P: Platform>(cur: &mut Current<'_, P>, result: HypercallResult) {
    match result {
        Ok(Outcome::Done(value)) => cur.regs.rax = value,
        Ok(Outcome::NoReturn) => {}
        Ok(Outcome::Continue) | Err(HypercallError::Again) => {
            let regs = &mut *cur.regs;
            regs.rip = regs.rip.wrapping_sub(2); // `syscall` again
            if result.is_ok() {
                [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = cur.vcpu.continuation();
            }
        }
        Err(error) => refuse(cur, error),
    }
}

#[cold]
#[inline(never)]
fn refuse<P: Platform>(cur: &mut Current<'_, P>, error: HypercallError) {
    cur.regs.rax = error.errno() as u64;
}

#[inline(never)]
fn event_channel_op<P: Platform>(cur: &mut Current<'_, P>) {
    if cur.regs.rdi as u32 == EVTCHNOP_SEND {
        match evtchn::send(cur, GuestVa::new(cur.regs.rsi)) {
            Ok(()) => cur.regs.rax = 0,
            Err(error) => refuse(cur, error),
        }
    } else {
        other_event_channel_op(cur);
    }
}

/// Apart, so that a send does not save registers for it.
#[inline(never)]
fn other_event_channel_op<P: Platform>(cur: &mut Current<'_, P>) {
    let _filled = return_stack::fill_at_end();
    let args = arguments(cur.regs);
    let result = evtchn::event_channel_op(cur, &args);
    finish(cur, result);
}

/// Apart, so that the dispatch of all others does not save registers for it.
#[inline(never)]
fn iret<P: Platform>(cur: &mut Current<'_, P>) -> HypercallResult {
    crate::traps::iret(cur);
    Ok(Outcome::NoReturn)
}

impl<P: Platform> Current<'_, P> {
    /// The call is to be executed again, with `args`.
    ///
    /// The vCPU keeps the arguments, and not the outcome, so that an outcome fits into two registers.
    #[cold]
    pub fn again(&self, args: Args) -> Outcome {
        self.vcpu.set_continuation(args);
        Outcome::Continue
    }
}

const _: () = assert!(size_of::<HypercallResult>() == 16);

/// No hypercall above this has a meaning.
const LAST_NUMBER: u32 = nr::__HYPERVISOR_DOMCTL;

/// Hypercall `number` with `args`.
///
/// # Errors
/// `NoSys` for a number without a meaning, else what the handler says.
#[inline(always)] // 4 instructions less a call than as a function between the two callers and the handlers
pub fn call<P: Platform>(cur: &mut Current<'_, P>, number: u64, args: &Args) -> HypercallResult {
    // One comparison, for the upper half of the number too.
    if number > u64::from(LAST_NUMBER) {
        return Err(HypercallError::NoSys);
    }
    match number as u32 {
        nr::__HYPERVISOR_SET_TRAP_TABLE => state::set_trap_table(cur, args),
        nr::__HYPERVISOR_MMU_UPDATE => mmu::mmu_update(cur, args),
        nr::__HYPERVISOR_SET_GDT => descriptor::set_gdt(cur, args),
        nr::__HYPERVISOR_STACK_SWITCH => Ok(Outcome::Done(state::stack_switch(cur.vcpu, args[0], args[1]))),
        nr::__HYPERVISOR_SET_CALLBACKS => callback::set_callbacks(cur, args),
        nr::__HYPERVISOR_FPU_TASKSWITCH => state::fpu_taskswitch(cur, args),
        nr::__HYPERVISOR_PLATFORM_OP => platform_op::platform_op(cur, args),
        nr::__HYPERVISOR_SET_DEBUGREG => state::set_debugreg(cur, args),
        nr::__HYPERVISOR_GET_DEBUGREG => state::get_debugreg(cur, args),
        nr::__HYPERVISOR_UPDATE_DESCRIPTOR => descriptor::update_descriptor(cur, args),
        nr::__HYPERVISOR_MEMORY_OP => memory::memory_op(cur, args),
        nr::__HYPERVISOR_MULTICALL => multicall::multicall(cur, args),
        nr::__HYPERVISOR_UPDATE_VA_MAPPING => mmu::update_va_mapping(cur, args),
        nr::__HYPERVISOR_SET_TIMER_OP => sched::set_timer_op(cur, args),
        nr::__HYPERVISOR_XEN_VERSION => version::xen_version(cur, args),
        nr::__HYPERVISOR_CONSOLE_IO => console::console_io(cur, args),
        nr::__HYPERVISOR_GRANT_TABLE_OP => grant::grant_table_op(cur, args),
        nr::__HYPERVISOR_VM_ASSIST => state::vm_assist(cur, args),
        nr::__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN => mmu::update_va_mapping_otherdomain(cur, args),
        nr::__HYPERVISOR_IRET => iret(cur),
        nr::__HYPERVISOR_VCPU_OP => vcpu::vcpu_op(cur, args),
        nr::__HYPERVISOR_SET_SEGMENT_BASE => state::set_segment_base(cur, args),
        nr::__HYPERVISOR_MMUEXT_OP => mmuext::mmuext_op(cur, args),
        nr::__HYPERVISOR_SCHED_OP => sched::sched_op(cur, args),
        nr::__HYPERVISOR_CALLBACK_OP => callback::callback_op(cur, args),
        nr::__HYPERVISOR_EVENT_CHANNEL_OP => evtchn::event_channel_op(cur, args),
        nr::__HYPERVISOR_PHYSDEV_OP => physdev::physdev_op(cur, args),
        nr::__HYPERVISOR_SYSCTL => sysctl::sysctl(cur, args),
        nr::__HYPERVISOR_DOMCTL => domctl::domctl(cur, args),
        _ => Err(HypercallError::NoSys),
    }
}
