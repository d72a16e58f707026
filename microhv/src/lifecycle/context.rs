//! A vCPU's whole state, as `VCPUOP_initialise` and the toolstack exchange it.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use ring_abi::guest_context::{
    CpuUserRegs, VGCF_FAILSAFE_DISABLES_EVENTS, VGCF_I387_VALID, VGCF_IN_KERNEL, VGCF_ONLINE,
    VGCF_SYSCALL_DISABLES_EVENTS, VcpuGuestContext,
};
use ring_abi::types::{Mfn, PAGE_SHIFT, PAGE_SIZE};

use super::LifecycleError;
use crate::Hypervisor;
use crate::domain::{
    Callback, Domain, GateCell, GuestCpu, PauseFlags, TrapGate, VALID_ASSISTS, Vcpu, checked_debug_value,
};
use crate::frames::pte::is_canonical;
use crate::mem::MemError;
use crate::mem::descriptors::{MAX_GDT_ENTRIES, is_ldt_range};
use crate::platform::Platform;
use crate::return_stack;
use crate::time::publish_time;

/// RFLAGS that a guest may set: CF PF AF ZF SF TF DF OF NT RF AC ID; IF and bit 1 are always one.
const RFLAGS_GUEST: u64 = 0x25_4dd5;
const RFLAGS_ALWAYS: u64 = 0x202;

/// The registers that a guest gets when `wanted` is asked for: ring 3, interrupts on, no I/O privilege. (I19)
fn safe_registers(wanted: &CpuUserRegs) -> CpuUserRegs {
    CpuUserRegs {
        error_code: 0,
        entry_vector: 0,
        cs: wanted.cs | 3,
        ss: wanted.ss | 3,
        saved_upcall_mask: 0,
        rflags: wanted.rflags & RFLAGS_GUEST | RFLAGS_ALWAYS,
        ..*wanted
    }
}

/// Checks what needs no look at frames.
fn check(context: &VcpuGuestContext) -> Result<(), LifecycleError> {
    let in_kernel = context.flags & VGCF_IN_KERNEL != 0;
    let addresses = [
        context.user_regs.rip,
        context.event_callback_eip,
        context.failsafe_callback_eip,
        context.syscall_callback_eip,
        context.fs_base,
        context.gs_base_kernel,
        context.gs_base_user,
        context.ldt_base,
    ];
    let fine = addresses.into_iter().all(is_canonical)
        && context.trap_ctxt.iter().all(|trap| is_canonical(trap.address))
        && context.gdt_ents <= u64::from(MAX_GDT_ENTRIES)
        && context.ldt_base.is_multiple_of(PAGE_SIZE as u64)
        && is_ldt_range(context.ldt_base, context.ldt_ents)
        && (in_kernel || context.ctrlreg[1] != 0);
    if fine { Ok(()) } else { Err(LifecycleError::Invalid) }
}

impl<P: Platform> Hypervisor<P> {
    /// Gives a vCPU that does not run its whole state, page-table bases and descriptor tables included; with `once`,
    /// only a vCPU that has no state yet. `cr4`: of CR4 in the context, the bits that the guest may set.
    ///
    /// # Errors
    /// `Exists`: the vCPU has one. `Invalid`, `Gdt`: a value that no vCPU can have, or a frame that cannot become what it
    /// is to be. The vCPU is then as it was, but for its descriptor tables. `Again`: checking tables took long; repeat.
    pub(crate) fn set_vcpu_context(
        &self,
        domain: &Arc<Domain>,
        vcpu: &Vcpu,
        context: &VcpuGuestContext,
        cr4: u64,
        once: bool,
    ) -> Result<(), LifecycleError> {
        let _filled = return_stack::fill_at_end();
        let _one_at_a_time = domain.contexts.lock();
        if once && vcpu.initialised.load(Ordering::Acquire) {
            return Err(LifecycleError::Exists);
        }
        check(context)?;
        let mut debug = [0; 8];
        for index in [0, 1, 2, 3, 6, 7] {
            debug[index] = checked_debug_value(index as u64, context.debugreg[index], context.ctrlreg[4])
                .map_err(|_| LifecycleError::Invalid)?;
        }
        let gdt_frames = (context.gdt_ents as usize).div_ceil(512);
        let frames = context.gdt_frames.map(Mfn::new);
        self.set_gdt(domain, vcpu, &frames[..gdt_frames], context.gdt_ents as u32)
            .map_err(LifecycleError::Gdt)?;
        let frame = |cr3: u64| Mfn::new(cr3 >> PAGE_SHIFT);
        let kernel = frame(context.ctrlreg[3]);
        let user = (context.ctrlreg[1] != 0).then(|| frame(context.ctrlreg[1]));
        self.install_bases(domain, vcpu, kernel, user).map_err(|error| match error {
            MemError::Restart => LifecycleError::Again,
            _ => LifecycleError::Invalid,
        })?;

        let in_kernel = context.flags & VGCF_IN_KERNEL != 0;
        vcpu.user_mode.store(!in_kernel, Ordering::Relaxed);
        vcpu.iopl.store(context.user_regs.rflags & Vcpu::IOPL, Ordering::Relaxed);
        vcpu.set_saved_regs(&safe_registers(&context.user_regs));
        vcpu.kernel_stack.set(context.kernel_ss, context.kernel_sp);
        if context.flags & VGCF_I387_VALID != 0 {
            vcpu.fpu.set_legacy(&context.fpu_ctxt);
        }
        if vcpu.id.raw() == 0 {
            domain.assist.fetch_or(context.vm_assist & VALID_ASSISTS, Ordering::Relaxed);
        }
        let entries = &vcpu.entries;
        for (gate, info) in entries.traps.iter().zip(&context.trap_ctxt) {
            gate.set(TrapGate::from_abi(info));
        }
        let callback = |address, flag| Callback { address, masks_events: context.flags & flag != 0 };
        entries.event.set(Callback { address: context.event_callback_eip, masks_events: true });
        entries.failsafe.set(callback(context.failsafe_callback_eip, VGCF_FAILSAFE_DISABLES_EVENTS));
        entries.syscall.set(callback(context.syscall_callback_eip, VGCF_SYSCALL_DISABLES_EVENTS));
        {
            let mut cpu = vcpu.cpu.lock();
            let cpu = &mut *cpu;
            cpu.cr0 = GuestCpu::CR0 | context.ctrlreg[0] & GuestCpu::CR0_TS;
            cpu.cr4 = cr4;
            cpu.fs_base = context.fs_base;
            cpu.gs_base_kernel = context.gs_base_kernel;
            cpu.gs_base_user = context.gs_base_user;
            cpu.debug = debug;
        }
        self.set_checked_ldt(domain, vcpu, context.ldt_base, context.ldt_ents as u32);
        // A builder has cleared `shared_info` since the domain was made, clocks included.
        vcpu.time.lock().published = 0;
        publish_time(&self.platform, vcpu);
        if vcpu.id.raw() == 0 {
            self.publish_wall_clock(domain);
        }
        vcpu.initialised.store(true, Ordering::Release);
        Ok(())
    }
}

/// The whole state of a vCPU that does not run.
pub(crate) fn fill_context(domain: &Domain, vcpu: &Vcpu, context: &mut VcpuGuestContext) {
    let kernel = !vcpu.user_mode.load(Ordering::Relaxed);
    context.user_regs = vcpu.saved_regs();
    context.user_regs.rflags |= vcpu.iopl.load(Ordering::Relaxed);
    context.fpu_ctxt = vcpu.fpu.legacy();
    context.vm_assist = domain.assist.load(Ordering::Relaxed);
    let base = |l4: Option<Mfn>| l4.map_or(0, |l4| l4.raw() << PAGE_SHIFT);
    let cpu = vcpu.cpu.lock();
    context.flags = VGCF_I387_VALID;
    for (set, flag) in [
        (kernel, VGCF_IN_KERNEL),
        (vcpu.entries.failsafe.get().masks_events, VGCF_FAILSAFE_DISABLES_EVENTS),
        (vcpu.entries.syscall.get().masks_events, VGCF_SYSCALL_DISABLES_EVENTS),
        (vcpu.pause_flags.load(Ordering::Relaxed) & PauseFlags::DOWN == 0, VGCF_ONLINE),
    ] {
        context.flags |= if set { flag } else { 0 };
    }
    for (vector, (info, gate)) in
        context.trap_ctxt.iter_mut().zip(vcpu.entries.traps.iter().map(GateCell::get)).enumerate()
    {
        info.vector = vector as u8;
        info.flags = gate.dpl | u8::from(gate.masks_events) << 2;
        info.cs = gate.cs;
        info.address = gate.address;
    }
    (context.ldt_base, context.ldt_ents) = (cpu.ldt_base, u64::from(cpu.ldt_entries));
    for (raw, frame) in context.gdt_frames.iter_mut().zip(cpu.gdt_frames.iter()) {
        *raw = frame.map_or(0, Mfn::raw);
    }
    context.gdt_ents = u64::from(cpu.gdt_entries);
    (context.kernel_ss, context.kernel_sp) = (vcpu.kernel_stack.ss().into(), vcpu.kernel_stack.sp());
    context.ctrlreg[0] = cpu.cr0;
    context.ctrlreg[1] = base(vcpu.cr3_user.get());
    context.ctrlreg[3] = base(vcpu.cr3_kernel.get());
    context.ctrlreg[4] = cpu.cr4;
    context.debugreg = cpu.debug;
    context.event_callback_eip = vcpu.entries.event.get().address;
    context.failsafe_callback_eip = vcpu.entries.failsafe.get().address;
    context.syscall_callback_eip = vcpu.entries.syscall.get().address;
    (context.fs_base, context.gs_base_kernel, context.gs_base_user) =
        (cpu.fs_base, cpu.gs_base_kernel, cpu.gs_base_user);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_are_made_harmless() {
        let wanted =
            CpuUserRegs { cs: 0xe008, ss: 0, rflags: u64::MAX, entry_vector: 7, ..CpuUserRegs::default() };
        let safe = safe_registers(&wanted);
        assert_eq!((safe.cs & 3, safe.ss & 3, safe.entry_vector), (3, 3, 0));
        assert_eq!(safe.rflags & 0x3000, 0, "IOPL");
        assert_eq!(safe.rflags & 0x2_0000, 0, "VM");
        assert_eq!(safe_registers(&CpuUserRegs::default()).rflags, 0x202);
    }

    #[test]
    fn impossible_contexts_are_refused() {
        type Change = fn(&mut VcpuGuestContext);
        let bad: [Change; 12] = [
            |c| c.user_regs.rip = 1 << 63,
            |c| c.event_callback_eip = 0x8000_0000_0000,
            |c| c.gs_base_user = 1 << 62,
            |c| c.trap_ctxt[255].address = 1 << 60,
            |c| c.gdt_ents = u64::from(MAX_GDT_ENTRIES) + 1,
            |c| c.gdt_ents = u64::MAX,
            |c| c.ldt_ents = 8193,
            |c| c.ldt_ents = u64::MAX,
            |c| (c.ldt_base, c.ldt_ents) = (0u64.wrapping_sub(4096), 513), // beyond the address space
            |c| (c.ldt_base, c.ldt_ents) = (0xffff_87ff_ffff_f000, 1),     // the hypervisor's
            |c| c.ldt_base = 8,
            |c| c.flags = 0, // user mode without user tables
        ];
        let good = VcpuGuestContext { flags: VGCF_IN_KERNEL, ..VcpuGuestContext::default() };
        assert_eq!(check(&good), Ok(()));
        for (index, change) in bad.into_iter().enumerate() {
            let mut context = good;
            change(&mut context);
            assert_eq!(check(&context), Err(LifecycleError::Invalid), "case {index}");
        }
    }
}
