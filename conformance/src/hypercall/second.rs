//! The second vCPU as cases use it: its registers, bringing it up and down, orders to it, and its
//! `vcpu_info`.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering};

use ring_abi::guest_context::{VGCF_IN_KERNEL, VcpuGuestContext};
use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};
use ring_abi::shared_info::{
    PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET, vcpu_info_offset,
};
use ring_abi::vcpu::*;

use super::asm::second::{self, DOWN};
use super::kit::*;

/// The vCPU of all these cases.
pub(super) const SECOND: u32 = 1;

/// Whether the second vCPU has been initialised.
pub(super) static INITIALISED: AtomicBool = AtomicBool::new(false);
/// Whether a case has moved the second vCPU's `vcpu_info`.
pub(super) static MOVED: AtomicBool = AtomicBool::new(false);

pub(super) fn there() -> Verdict {
    require!(has_vcpu(SECOND), "one vCPU alone");
    Ok(())
}

/// Checks that there is a second vCPU, not yet initialised.
pub(super) fn untouched() -> Verdict {
    there()?;
    require!(!INITIALISED.load(Ordering::Relaxed), "the second vCPU is in use since an earlier run");
    Ok(())
}

pub(super) fn context() -> Box<VcpuGuestContext> {
    let (entry, stack, upcall) = second::entries();
    let mut context = Box::new(VcpuGuestContext::default());
    context.flags = VGCF_IN_KERNEL;
    context.user_regs.rip = entry;
    context.user_regs.rsp = stack;
    context.user_regs.rdi = 0x1234_5678;
    context.user_regs.cs = FLAT_KERNEL_CS;
    context.user_regs.ss = FLAT_KERNEL_SS;
    context.kernel_ss = FLAT_KERNEL_SS.into();
    context.kernel_sp = stack;
    context.ctrlreg[3] = base() << 12;
    context.event_callback_eip = upcall;
    context.failsafe_callback_eip = upcall;
    context
}

pub(super) fn initialise_with(context: &VcpuGuestContext) -> i64 {
    vcpu_op(VCPUOP_INITIALISE, SECOND, (&raw const *context) as u64)
}

pub(super) fn is_up() -> bool {
    vcpu_op(VCPUOP_IS_UP, SECOND, 0) == 1
}

/// Waits, and gives up the CPU so that the other vCPU runs.
pub(super) fn until(holds: impl Fn() -> bool) -> bool {
    let end = now() + 5_000_000_000;
    while !holds() {
        if now() > end {
            return false;
        }
        call(__HYPERVISOR_SCHED_OP, [0; 5]);
    }
    true
}

/// The second vCPU, up; brought down on drop.
pub(super) struct Second;

impl Second {
    pub(super) fn up() -> Verdict<Self> {
        there()?;
        second::order().store(0, Ordering::SeqCst);
        if !INITIALISED.load(Ordering::Relaxed) {
            given("initialise", initialise_with(&context()))?;
            INITIALISED.store(true, Ordering::Relaxed);
        }
        let before = second::rounds().load(Ordering::SeqCst);
        given("up", vcpu_op(VCPUOP_UP, SECOND, 0))?;
        let this = Self;
        ensure!(until(|| second::rounds().load(Ordering::SeqCst) != before), "it does not run");
        Ok(this)
    }

    pub(super) fn tell(&self, order: u64) {
        second::order().store(order, Ordering::SeqCst);
    }

    pub(super) fn is_done(&self) -> bool {
        second::order().load(Ordering::SeqCst) == 0
    }

    /// Gives the second vCPU an order, and waits until the vCPU has carried it out.
    pub(super) fn make(&self, order: u64) -> Verdict {
        self.tell(order);
        ensure!(until(|| self.is_done()), "order {order} is not done");
        Ok(())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        // Ends whatever wait the second vCPU is in.
        if let Ok(port) = Opened::ipi_to(SECOND) {
            set_mask(0);
            port.send();
            self.tell(DOWN);
            until(|| !is_up());
        }
        set_mask(1);
    }
}

/// An address in the second vCPU's `vcpu_info` within shared_info.
pub(super) fn info(offset: usize) -> usize {
    vcpu_info_offset(SECOND as usize).unwrap_or(0) + offset
}

pub(super) fn set_mask(mask: u8) {
    pvrt::shared_info().store_u8(info(UPCALL_MASK_OFFSET), mask);
}

pub(super) fn clear_record() {
    pvrt::shared_info().store_u64(info(PENDING_SEL_OFFSET), 0);
    pvrt::shared_info().store_u8(info(UPCALL_PENDING_OFFSET), 0);
}

pub(super) fn is_announced() -> bool {
    pvrt::shared_info().load_u8(info(UPCALL_PENDING_OFFSET)) != 0
}

pub(super) fn not_moved() -> Verdict {
    require!(!MOVED.load(Ordering::Relaxed), "its vcpu_info was moved by an earlier run");
    Ok(())
}
