//! Registers of the vCPU that runs: the library's [`Registers`].
#![allow(unsafe_code)] // segment bases, debug registers

use microhv::platform::{Registers, SegmentBase};

use super::cpu::{self, msr};
use super::machine::Machine;
use super::{fpu, guest_access};

impl Registers for Machine {
    #[inline]
    fn swap_gs(&self) {
        cpu::swapgs();
    }

    fn set_segment_base(&self, base: SegmentBase, value: u64) {
        // SAFETY: the value is canonical, and the hypervisor uses neither FS nor GS. Hypercalls come from kernel mode,
        // whose GS base is the active one.
        unsafe { cpu::write_msr(base_msr(base), value) };
    }

    fn segment_base(&self, base: SegmentBase) -> u64 {
        cpu::read_msr(base_msr(base))
    }

    fn load_user_gs(&self, selector: u16) {
        // The selector's base is wanted in the other slot: load it as user mode would, then swap back.
        cpu::swapgs();
        guest_access::load_gs_selector(selector);
        cpu::swapgs();
    }

    fn set_debug_register(&self, index: u8, value: u64) {
        // SAFETY: the caller checked the value: no breakpoint in the hypervisor.
        unsafe { cpu::set_debug_register(index, value) };
    }

    fn debug_register(&self, index: u8) -> u64 {
        cpu::debug_register(index)
    }

    fn set_task_switched(&self, on: bool) {
        fpu::set_task_switched(on);
    }

    fn set_xcr0(&self, value: u64) {
        fpu::set_guest_xcr0(value);
    }
}

fn base_msr(base: SegmentBase) -> u32 {
    match base {
        SegmentBase::Fs => msr::FS_BASE,
        SegmentBase::GsKernel => msr::GS_BASE,
        SegmentBase::GsUser => msr::SHADOW_GS_BASE,
    }
}
