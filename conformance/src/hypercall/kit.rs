//! What the cases for hypercalls share.

use alloc::boxed::Box;
use alloc::format;
use core::mem::ManuallyDrop;

pub(super) use alloc::vec::Vec;
pub(super) use pvrt::probe::{self, Trap, attempt};
pub(super) use pvrt::space::*;
pub(super) use ring_abi::errno::Errno::{self, *};
pub(super) use ring_abi::hypercall::*;
pub(super) use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use pvrt::hypercall::event;
use ring_abi::evtchn::*;
use ring_abi::guest_context::IretContext;
use ring_abi::mmu::MMUEXT_NEW_USER_BASEPTR;
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::shared_info::*;
use ring_abi::vcpu::*;

use super::asm;
use crate::case::Running;
pub(super) use crate::{Env, Problem, Verdict};

/// A domain that does not exist.
pub(super) const NO_DOMAIN: u16 = 12345;
/// A vCPU that does not exist.
pub(super) const NO_VCPU: u32 = 8191;
/// Makes a hypercall without an effect.
pub(super) fn nothing() -> i64 {
    call(__HYPERVISOR_XEN_VERSION, [0; 5])
}

/// Runs a case with traps caught, and afterwards restores all that cases change of the vCPU.
pub(super) fn run(env: &mut Env, body: fn(&Env) -> Verdict) -> Running<'_> {
    Box::pin(async move {
        let mut verdict = Ok(());
        let quiet = quiet();
        // What came until now is looked at afterwards.
        clear_upcall();
        probe::install();
        let trap = attempt(|| verdict = body(env));
        let info = pvrt::shared_info();
        info.store_u8(UPCALL_MASK_OFFSET, 1);
        pvrt::install_handlers();
        quiet.into_iter().for_each(|port| ManuallyDrop::new(Opened(port)).set_mask(false));
        // The case may have replaced the runtime's timer. The event of this one makes the runtime set its own
        // again.
        fire_at(1);
        // The case may have cleared the selector under the runtime's events, so all words are selected again.
        info.store_u64(PENDING_SEL_OFFSET, u64::MAX);
        info.store_u8(UPCALL_PENDING_OFFSET, 1);
        match trap {
            Some(trap) => Err(Problem::Fail(format!("unexpected {trap:x?}"))),
            None => verdict,
        }
    })
}

/// Masks the runtime's ports, and returns them. An event of theirs may come at any moment: a case would take it for its own, or
/// find that the upcall handler has masked events.
fn quiet() -> Vec<u32> {
    /// As many closed ports in a row say that no open one follows.
    const CLOSED: u32 = 64;
    let (mut masked, mut closed) = (Vec::new(), 0);
    for number in 1..EVTCHN_2L_NR_CHANNELS as u32 {
        let port = ManuallyDrop::new(Opened(number));
        match port.status() {
            Ok(status) if status.status == EVTCHNSTAT_CLOSED => closed += 1,
            Ok(_) if !port.is_masked() => {
                closed = 0;
                port.set_mask(true);
                masked.push(number);
            }
            Ok(_) => closed = 0,
            Err(_) => break,
        }
        if closed == CLOSED {
            break;
        }
    }
    masked
}

/// Checks that a call did not fail, and returns its value.
pub(super) fn value(what: &str, got: i64) -> Verdict<u64> {
    ensure!(got >= 0, "{what}: {}", Got(got));
    Ok(got as u64)
}

/// Checks that a call returned 0.
pub(super) fn done(what: &str, got: i64) -> Verdict {
    ensure!(got == 0, "{what}: {}", Got(got));
    Ok(())
}

/// Checks that a call returned one of the errors `wanted`.
pub(super) fn refused(what: &str, got: i64, wanted: &[Errno]) -> Verdict {
    let holds = wanted.iter().any(|errno| errno.negated() == got);
    ensure!(holds, "{what}: {}, not {wanted:?}", Got(got));
    Ok(())
}

/// Checks a call that prepares a case and is no part of the case's rule: a failure is an error, not a broken
/// rule.
pub(super) fn given(what: &str, got: i64) -> Verdict<u64> {
    if got < 0 {
        return Err(Problem::Error(format!("{what}: {}", Got(got))));
    }
    Ok(got as u64)
}

/// A value of rax, printed with the name of the error.
pub(super) struct Got(pub(super) i64);

impl core::fmt::Display for Got {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match Errno::check(self.0) {
            Err(errno) if errno.negated() == self.0 => write!(f, "-{}", errno.name()),
            _ => write!(f, "{:#x}", self.0),
        }
    }
}

/// Checks that the trap `vector` came, and returns the trap.
pub(super) fn trapped(what: &str, trap: Option<Trap>, vector: u64) -> Verdict<Trap> {
    match trap {
        Some(trap) if trap.vector == vector => Ok(trap),
        Some(trap) => Err(Problem::Fail(format!(
            "{what}: vector {:#x} in place of {vector:#x}: {trap:x?}",
            trap.vector
        ))),
        None => Err(Problem::Fail(format!("{what}: no trap, instead of vector {vector:#x}"))),
    }
}

/// Checks that no trap came.
pub(super) fn untrapped(what: &str, trap: Option<Trap>) -> Verdict {
    ensure!(trap.is_none(), "{what}: {trap:x?}");
    Ok(())
}

/// Reads a word, which must not trap.
pub(super) fn load(what: &str, at: u64) -> Verdict<u64> {
    probe::read(at).map_err(|trap| Problem::Fail(format!("{what}: {trap:x?}")))
}

/// Writes a word, which must not trap.
pub(super) fn store(what: &str, at: u64, value: u64) -> Verdict {
    untrapped(what, probe::write(at, value))
}

/// Makes two pages that hold 1 and 2, and two addresses where nothing is mapped.
pub(super) fn two() -> Verdict<Scratch> {
    let scratch = Scratch::new(2);
    store("page 0", scratch.page(0), 1)?;
    store("page 1", scratch.page(1), 2)?;
    Ok(scratch)
}

/// This domain's number.
pub(super) fn own_domid() -> Verdict<u16> {
    event::own_domid()
        .map(|dom| dom.raw())
        .map_err(|errno| Problem::Error(format!("own number: {}", errno.name())))
}

/// Whether the vCPU exists.
pub(super) fn has_vcpu(vcpu: u32) -> bool {
    vcpu_op(VCPUOP_IS_UP, vcpu, 0) >= 0
}

/// Makes an operation on event channels.
pub(super) fn channel<T>(command: u32, arg: &mut T) -> i64 {
    op(__HYPERVISOR_EVENT_CHANNEL_OP, command, arg)
}

/// A port of this domain that a case opened; closed on drop.
pub(super) struct Opened(pub(super) u32);

impl Opened {
    /// Opens a port by which this vCPU can send itself events.
    pub(super) fn ipi() -> Verdict<Self> {
        Self::ipi_to(0)
    }

    /// Opens a port by which `vcpu` can be sent events.
    pub(super) fn ipi_to(vcpu: u32) -> Verdict<Self> {
        let mut arg = EvtchnBindIpi { vcpu, port: 0 };
        given("bind_ipi", channel(EVTCHNOP_BIND_IPI, &mut arg))?;
        Ok(Self(arg.port))
    }

    /// Opens a port that `remote` may bind.
    pub(super) fn unbound(remote: u16) -> Verdict<Self> {
        let mut arg = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: remote, port: 0 };
        given("alloc_unbound", channel(EVTCHNOP_ALLOC_UNBOUND, &mut arg))?;
        Ok(Self(arg.port))
    }

    /// Opens two ports of this domain that are bound to each other: the first was unbound, the second bound
    /// the first.
    pub(super) fn pair() -> Verdict<(Self, Self)> {
        let first = Self::unbound(DOMID_SELF)?;
        let mut arg =
            EvtchnBindInterdomain { remote_dom: DOMID_SELF, remote_port: first.0, ..Default::default() };
        given("bind_interdomain", channel(EVTCHNOP_BIND_INTERDOMAIN, &mut arg))?;
        let second = Self(arg.local_port);
        first.clear();
        second.clear();
        Ok((first, second))
    }

    /// Sends an event through the port.
    pub(super) fn send(&self) -> i64 {
        channel(EVTCHNOP_SEND, &mut EvtchnSend { port: self.0 })
    }

    /// Closes the port before drop does.
    pub(super) fn close(&self) -> i64 {
        channel(EVTCHNOP_CLOSE, &mut EvtchnClose { port: self.0 })
    }

    /// The port's status.
    pub(super) fn status(&self) -> Verdict<EvtchnStatus> {
        let mut arg = EvtchnStatus { dom: DOMID_SELF, port: self.0, ..Default::default() };
        value("status", channel(EVTCHNOP_STATUS, &mut arg))?;
        Ok(arg)
    }

    fn word(&self, offset: usize) -> usize {
        offset + self.0 as usize / 64 * 8
    }

    fn bit(&self) -> u64 {
        1 << (self.0 % 64)
    }

    /// The port's pending bit.
    pub(super) fn is_pending(&self) -> bool {
        pvrt::shared_info().load_u64(self.word(EVTCHN_PENDING_OFFSET)) & self.bit() != 0
    }

    /// The selector's bit for the port's word.
    pub(super) fn is_selected(&self) -> bool {
        pvrt::shared_info().load_u64(PENDING_SEL_OFFSET) & 1 << (self.0 / 64) != 0
    }

    /// Clears the port's pending bit, the whole selector and the upcall flag.
    pub(super) fn clear(&self) {
        pvrt::shared_info().and_u64(self.word(EVTCHN_PENDING_OFFSET), !self.bit());
        clear_upcall();
    }

    /// Sets or clears the port's mask bit.
    pub(super) fn set_mask(&self, masked: bool) {
        let info = pvrt::shared_info();
        if masked {
            info.or_u64(self.word(EVTCHN_MASK_OFFSET), self.bit());
        } else {
            info.and_u64(self.word(EVTCHN_MASK_OFFSET), !self.bit());
        }
    }

    /// The port's mask bit.
    pub(super) fn is_masked(&self) -> bool {
        pvrt::shared_info().load_u64(self.word(EVTCHN_MASK_OFFSET)) & self.bit() != 0
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.set_mask(false);
        self.close();
    }
}

/// `evtchn_upcall_pending`.
pub(super) fn upcall_pending() -> bool {
    pvrt::shared_info().load_u8(UPCALL_PENDING_OFFSET) != 0
}

/// `evtchn_upcall_mask`.
pub(super) fn upcall_mask() -> u8 {
    pvrt::shared_info().load_u8(UPCALL_MASK_OFFSET)
}

/// Sets `evtchn_upcall_mask`.
pub(super) fn set_upcall_mask(mask: u8) {
    pvrt::shared_info().store_u8(UPCALL_MASK_OFFSET, mask);
}

/// Clears the selector and the upcall flag, so that only later events set them.
pub(super) fn clear_upcall() {
    let info = pvrt::shared_info();
    info.store_u64(PENDING_SEL_OFFSET, 0);
    info.store_u8(UPCALL_PENDING_OFFSET, 0);
}

/// Sets this vCPU's one-shot timer, and returns the call's result.
pub(super) fn fire_at(timeout_abs_ns: u64) -> i64 {
    let arg = VcpuSetSingleshotTimer { timeout_abs_ns, flags: 0, ..Default::default() };
    vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, (&raw const arg) as u64)
}

/// Makes an operation on a vCPU.
pub(super) fn vcpu_op(command: u32, vcpu: u32, at: u64) -> i64 {
    call(__HYPERVISOR_VCPU_OP, [command.into(), vcpu.into(), at, 0, 0])
}

/// Stops the runtime's timer, and returns its port, unmasked and without a pending event. A case must not close that port.
pub(super) fn timer_port() -> Verdict<ManuallyDrop<Opened>> {
    vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, 0, 0);
    given("stopping the timer", vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0))?;
    for number in 1..64 {
        let port = ManuallyDrop::new(Opened(number));
        let status = port.status()?;
        if (status.status, status.u[0], status.vcpu) == (EVTCHNSTAT_VIRQ, VIRQ_TIMER, 0) {
            port.set_mask(false);
            port.clear();
            return Ok(port);
        }
    }
    Err(Problem::Error("the timer has no port".into()))
}

/// Executes `cpuid` behind Xen's emulation prefix, and returns eax, ebx, ecx, edx.
#[allow(unsafe_code)]
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let (eax, ebx, ecx, edx): (u32, u64, u32, u32);
    // SAFETY: prefix and instruction are emulated as one; rbx, which the compiler keeps, is put back.
    unsafe {
        core::arch::asm!(
            "xchg {ebx}, rbx",
            ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e",
            "cpuid",
            "xchg {ebx}, rbx",
            ebx = inout(reg) 0u64 => ebx,
            inout("eax") leaf => eax,
            inout("ecx") subleaf => ecx,
            out("edx") edx,
        );
    }
    [eax, ebx as u32, ecx, edx]
}

/// System time of this vCPU, in nanoseconds.
pub(super) fn now() -> u64 {
    pvrt::time::now_ns()
}

/// Waits until `holds`, at most `ms`, without giving up the CPU.
pub(super) fn wait_until(ms: u64, holds: impl Fn() -> bool) -> bool {
    let end = now() + ms * 1_000_000;
    while !holds() {
        if now() > end {
            return false;
        }
        // The hypervisor handles timers and events when a hypercall returns.
        nothing();
    }
    true
}

/// A frame by which `iret` goes to `code` in kernel mode, with events masked and on a stack of its own.
pub(super) fn kernel_frame(code: &asm::Code) -> IretContext {
    IretContext {
        rip: code.start,
        cs: (FLAT_KERNEL_CS & !3).into(),
        rflags: 2,
        rsp: asm::stack_top(),
        ss: FLAT_KERNEL_SS.into(),
        ..IretContext::default()
    }
}

/// Makes the hypercall iret, and returns the trap in which the code at the frame's rip ended.
#[allow(unsafe_code)]
pub(super) fn iret(frame: &IretContext) -> Option<Trap> {
    // SAFETY: frames are made by `kernel_frame`, for code of `asm` that ends in a trap.
    attempt(|| unsafe { asm::iret(frame) })
}

/// User mode on the kernel's own page tables, set up until drop.
pub(super) struct User;

impl User {
    /// Sets the page tables of user mode, and the kernel stack for entries from user mode.
    pub(super) fn new() -> Verdict<Self> {
        given("user tables", extended(MMUEXT_NEW_USER_BASEPTR, base(), 0))?;
        given("stack_switch", call(__HYPERVISOR_STACK_SWITCH, [0xe02b, asm::stack_top(), 0, 0, 0]))?;
        Ok(Self)
    }

    /// Runs `code` in user mode with `rax`, and returns the trap in which the code ended.
    pub(super) fn run(&self, code: &asm::Code, rax: u64) -> Option<Trap> {
        iret(&self.frame(code, rax))
    }

    /// A frame by which `iret` goes to `code` in user mode. The frame's stack pointer is in the kernel's
    /// stack area, which the code never touches.
    pub(super) fn frame(&self, code: &asm::Code, rax: u64) -> IretContext {
        IretContext {
            rax,
            cs: (FLAT_KERNEL_CS | 3).into(),
            rsp: asm::stack_top() - 4096,
            ..kernel_frame(code)
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        extended(MMUEXT_NEW_USER_BASEPTR, 0, 0);
    }
}
