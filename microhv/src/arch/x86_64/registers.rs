//! Registers of the vCPU that runs: the library's [`Registers`].
#![allow(unsafe_code)] // segment bases

use microhv::platform::{Registers, SegmentBase};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr6, Dr7};

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
        // The caller checked the value: no breakpoint in the hypervisor.
        match index {
            0 => Dr0::write(value),
            1 => Dr1::write(value),
            2 => Dr2::write(value),
            3 => Dr3::write(value),
            6 => cpu::set_dr6(value),
            _ => Dr7::write_raw(value),
        }
    }

    fn debug_register(&self, index: u8) -> u64 {
        match index {
            0 => Dr0::read(),
            1 => Dr1::read(),
            2 => Dr2::read(),
            3 => Dr3::read(),
            6 => Dr6::read_raw(),
            _ => Dr7::read_raw(),
        }
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
