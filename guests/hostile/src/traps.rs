//! Privileged instructions and segments, ports, MSRs, addresses: what ring 3 must not reach.
#![allow(unsafe_code)] // each attempt is an instruction that must trap

use alloc::format;
use core::arch::asm;

use ring_abi::errno::Errno::EINVAL;
use ring_abi::guest_context::TrapInfo;
use ring_abi::hypercall::*;

use crate::report::Report;
use pvrt::probe::{self, Trap, attempt};
use pvrt::space::*;

/// The flag AC.
const AC: u64 = 1 << 18;

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    instructions(report);
    addresses(report);
    segments(report);
    flags(report);
    access_flag(report);
    registers(report);
    ports(report);
    tables_of_gates(report);
}

/// Tries one instruction that must trap with a vector.
macro_rules! must_trap {
    ($report:expr, $name:expr, $vector:pat, $($asm:tt)*) => {
        // SAFETY: must trap, and a trap is caught.
        let trap = attempt(|| unsafe { asm!($($asm)*) });
        $report.case($name, trap.is_some_and(|trap| matches!(trap.vector, $vector)), trap);
    };
}

fn instructions(report: &mut Report) {
    let area = [0u64; 2];
    must_trap!(report, "hlt", 13, "hlt");
    must_trap!(report, "lgdt", 13, "lgdt [{}]", in(reg) &area);
    must_trap!(report, "lidt", 13, "lidt [{}]", in(reg) &area);
    must_trap!(report, "lldt", 13, "lldt {0:x}", in(reg) 0);
    must_trap!(report, "ltr", 13, "ltr {0:x}", in(reg) 0x40);
    must_trap!(report, "invlpg", 13, "invlpg [{}]", in(reg) &area);
    must_trap!(report, "invd", 13, "invd");
    must_trap!(report, "swapgs", 13, "swapgs");
    must_trap!(report, "sysret", 13, "sysretq");
    // AMD's processors do not have the instruction in 64-bit mode.
    must_trap!(report, "sysexit", 6 | 13, "sysexit");
    must_trap!(report, "mov cr8", 13, "mov cr8, {}", in(reg) 0u64);
    must_trap!(report, "ud2", 6, "ud2");
    must_trap!(report, "int3", 3, "int3");
    must_trap!(report, "division", 0, "div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _);
    must_trap!(report, "int 0x20", 13, "int 0x20");
    must_trap!(report, "int 0x80 without a gate", 13, "int 0x80");
    must_trap!(report, "int 0xff", 13, "int 0xff");
    must_trap!(report, "int 8", 13, "int 8");
    must_trap!(report, "int 14", 13, "int 14");
    must_trap!(report, "CR3 to nowhere", 13, "mov cr3, {}", in(reg) 0xffff_f000u64);
    must_trap!(report, "CR0 without paging", 13, "mov cr0, {}", in(reg) 0x11u64);
    // The emulation prefix without its instruction is an undefined instruction.
    must_trap!(report, "the prefix alone", 6, ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x90");
    // A processor without XSAVE does not have the instruction.
    must_trap!(report, "xsetbv of nonsense", 6 | 13, "xsetbv", in("ecx") 0, in("eax") 0, in("edx") 0xffff_ffffu32);
}

fn is_page_fault(trap: Option<Trap>, at: u64) -> bool {
    trap.is_some_and(|trap| trap.vector == 14 && trap.cr2 == at)
}

fn addresses(report: &mut Report) {
    report.case("the M2P can be read", probe::read(M2P).is_ok(), ());
    for at in
        [M2P, 0xffff_8200_0000_0000, 0xffff_82d0_4020_0000, 0xffff_8300_0000_0000, 0xffff_8300_0010_0000]
    {
        let trap = probe::write(at, 0);
        report.case(&format!("a write to {at:#x}"), is_page_fault(trap, at), trap);
    }
    for at in (0xffff_8040_0000_0000..0xffff_8800_0000_0000u64).step_by(0x0000_0040_4000_0000) {
        if let Ok(value) = probe::read(at) {
            report.case(&format!("a read at {at:#x}"), false, value);
        }
    }
    for slot in 256..272u64 {
        let at = 0xffff_0000_0000_0000 | slot << 39;
        if slot > 256 && probe::read(at).is_ok() {
            report.case(&format!("a read of slot {slot}"), false, at);
        }
    }
    let hole = 0xffff_803f_ffff_f000;
    let got = probe::read(hole);
    report.case("a hole in the M2P", got.is_err_and(|trap| trap.vector == 14 && trap.cr2 == hole), got);
    for at in [1 << 63, 0x0000_8000_0000_0000] {
        let got = probe::read(at);
        report.case(&format!("a read at {at:#x}"), got.is_err_and(|trap| trap.vector == 13), got);
    }
    for at in [0u64, 0xffff_8300_0000_0000, M2P] {
        // SAFETY: nothing there can be executed; the trap is caught.
        let trap = attempt(|| unsafe { asm!("jmp {}", in(reg) at) });
        report.case(&format!("a jump to {at:#x}"), is_page_fault(trap, at), trap);
    }
}

fn segments(report: &mut Report) {
    // The hypervisor's code, data and TSS selectors, with several privilege levels.
    for selector in [0xe008u32, 0xe009, 0xe010, 0xe00b, 0xe013, 0xe038, 0xe040, 0xe043, 0xfff8, 0xfffb] {
        // SAFETY: must trap; the segment is not used.
        let trap = attempt(|| unsafe { asm!("mov es, {0:e}", in(reg) selector) });
        report.case(&format!("ES = {selector:#x}"), trap.is_some_and(|t| matches!(t.vector, 10..=13)), trap);
        // SAFETY: as above: refused selectors leave the stack segment.
        let trap = attempt(|| unsafe { asm!("mov ss, {0:e}", in(reg) selector) });
        report.case(&format!("SS = {selector:#x}"), trap.is_some_and(|t| matches!(t.vector, 10..=13)), trap);
        // SAFETY: must trap before it goes anywhere.
        let trap = attempt(|| unsafe {
            asm!("push {0}", "lea {0}, [rip + 2f]", "push {0}", "retfq", "2:", inout(reg) u64::from(selector) => _)
        });
        report.case(&format!("CS = {selector:#x}"), trap.is_some_and(|t| matches!(t.vector, 10..=14)), trap);
    }
    // SAFETY: a frame for iretq whose code segment is the hypervisor's: must trap.
    let trap = attempt(|| unsafe {
        asm!(
            "mov {0}, rsp", "push 0xe02b", "push {0}", "push 0x202", "push 0xe008", "lea {0}, [rip + 2f]",
            "push {0}", "iretq", "2:", out(reg) _,
        );
    });
    report.case("iretq to the hypervisor's segment", trap.is_some(), trap);
}

fn flags(report: &mut Report) {
    // The guest makes a hypercall with AC, NT, DF, RF and a wrong IOPL. The call must work, and the flags must
    // not affect the hypervisor.
    for (name, bits) in
        [("AC", 1u64 << 18), ("NT", 1 << 14), ("DF", 1 << 10), ("ID", 1 << 21), ("IOPL", 3 << 12)]
    {
        let mut result: i64 = 0;
        // SAFETY: the flags come back before anything else runs.
        let trap = attempt(|| unsafe {
            asm!(
                "pushfq", "pop {old}", "mov {new}, {old}", "or {new}, {bits}", "push {new}", "popfq", "syscall",
                "push {old}", "popfq", old = out(reg) _, new = out(reg) _, bits = in(reg) bits,
                inlateout("rax") u64::from(__HYPERVISOR_XEN_VERSION) => result, in("rdi") 0, in("rsi") 0,
                lateout("rcx") _, lateout("r11") _,
            );
        });
        report.case(&format!("a call with {name} set"), trap.is_none() && result > 0, (trap, result));
    }
    let mut result: i64 = 0;
    // SAFETY: single step over a call: a debug trap in this kernel, never in the hypervisor; it is caught.
    let trap = attempt(|| unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], 0x100", "popfq", "syscall", "nop", "nop",
            inlateout("rax") u64::from(__HYPERVISOR_XEN_VERSION) => result, in("rdi") 0, in("rsi") 0,
            lateout("rcx") _, lateout("r11") _,
        );
    });
    report.case("a call in single steps", trap.is_some_and(|trap| trap.vector == 1), (trap, result));
    // SAFETY: the trap clears the flag again.
    let trap = attempt(|| unsafe {
        asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq", "ud2");
    });
    report.case("a fault in single steps", trap.is_some_and(|trap| matches!(trap.vector, 1 | 6)), trap);
}

/// Tries one instruction with AC set, which must trap with a vector.
macro_rules! must_trap_with_ac {
    ($report:expr, $name:expr, $vector:pat, $asm:literal $(, $($operand:tt)*)?) => {
        must_trap!(
            $report, concat!($name, " with AC set"), $vector,
            "pushfq", "or dword ptr [rsp], 0x40000", "popfq", $asm, $($($operand)*)?
        );
    };
}

/// The guest enters the hypervisor with AC set, in all ways. With SMAP, AC would let the hypervisor use guests' pages unasked.
fn access_flag(report: &mut Report) {
    must_trap_with_ac!(report, "division", 0, "div {0:e}", in(reg) 0, inout("eax") 1 => _, inout("edx") 0 => _);
    must_trap_with_ac!(report, "int3", 3, "int3");
    must_trap_with_ac!(report, "ud2", 6, "ud2");
    must_trap_with_ac!(report, "hlt", 13, "hlt");
    must_trap_with_ac!(report, "int 0x80", 13, "int 0x80");
    must_trap_with_ac!(report, "a page fault", 14, "mov {0}, [{0}]", inout(reg) 0xffff_8300_0000_0000u64 => _);
    // SAFETY: single step: a debug trap, which is caught.
    let trap = attempt(|| unsafe { asm!("pushfq", "or dword ptr [rsp], 0x40100", "popfq", "nop", "nop") });
    report.case(
        "a step with AC set",
        trap.is_some_and(|trap| trap.vector == 1 && trap.rflags & AC != 0),
        trap,
    );
    pvrt::time::interrupt_in(2_000_000);
    // SAFETY: a loop for so many ticks, within which the timer interrupts; the flags come back before anything else runs.
    let trap = attempt(|| unsafe {
        asm!(
            "pushfq", "pushfq", "or dword ptr [rsp], 0x40000", "popfq",
            "rdtsc", "mov {began:e}, eax", "2: rdtsc", "sub eax, {began:e}", "cmp eax, {ticks:e}", "jb 2b", "popfq",
            began = out(reg) _, ticks = in(reg) 300_000_000, out("eax") _, out("edx") _,
        );
    });
    report.case("an interrupt with AC set", trap.is_none(), trap);
}

fn registers(report: &mut Report) {
    // The hypervisor may drop a write to a register that it emulates, but must not pass the write to the
    // machine.
    for (name, msr) in [
        ("EFER", 0xc000_0080u32),
        ("STAR", 0xc000_0081),
        ("LSTAR", 0xc000_0082),
        ("CSTAR", 0xc000_0083),
        ("SFMASK", 0xc000_0084),
        ("SYSENTER_CS", 0x174),
        ("SYSENTER_ESP", 0x175),
        ("SYSENTER_EIP", 0x176),
        ("APIC_BASE", 0x1b),
        ("TSC", 0x10),
        ("MTRR", 0x200),
        ("PAT", 0x277),
        ("DEBUGCTL", 0x1d9),
        ("SMM", 0xc001_0111),
        ("none", 0x4d4b_0000),
    ] {
        // SAFETY: refused or dropped: no register of the machine changes.
        let trap = attempt(|| unsafe { asm!("wrmsr", in("ecx") msr, in("eax") 0x1234u32, in("edx") 0) });
        let alive = call(__HYPERVISOR_XEN_VERSION, [0, 0, 0, 0, 0]) > 0;
        report.case(&format!("wrmsr {name}"), alive && trap.is_none_or(|trap| trap.vector == 13), trap);
    }
    // SAFETY: refused.
    let trap =
        attempt(|| unsafe { asm!("wrmsr", in("ecx") 0xc000_0101u32, in("eax") 0, in("edx") 0x8000_0000u32) });
    report.case("a non-canonical GS base", trap.is_some_and(|trap| trap.vector == 13), trap);
    // SAFETY: CR4 of the guest; bits that it may not have are refused or dropped.
    let trap = attempt(|| unsafe { asm!("mov cr4, {}", in(reg) 0u64) });
    report.case("CR4 = 0", trap.is_none_or(|trap| trap.vector == 13), trap);
    // SAFETY: as above.
    let trap = attempt(|| unsafe { asm!("mov cr4, {}", in(reg) u64::MAX) });
    report.case("CR4 = -1", trap.is_none_or(|trap| trap.vector == 13), trap);
    // SAFETY: a breakpoint in the hypervisor is refused; the trap is caught.
    let trap = attempt(|| unsafe { asm!("mov dr0, {}", in(reg) 0xffff_82d0_4020_0000u64) });
    report.case("DR0 in the hypervisor", trap.is_some(), trap);
    // SAFETY: cli and sti are refused or do nothing.
    let trap = attempt(|| unsafe { asm!("cli", "sti") });
    report.case("cli and sti", trap.is_none_or(|trap| trap.vector == 13), trap);
}

fn ports(report: &mut Report) {
    if report.privileged {
        return;
    }
    let mut value = 0u32;
    // SAFETY: without rights; caught.
    let trap = attempt(|| unsafe { asm!("in eax, dx", in("dx") 0x64u16, out("eax") value) });
    report.case("in without IOPL", trap.is_some_and(|trap| trap.vector == 13), (trap, value));
    let mut iopl = 1u64;
    let got = op(__HYPERVISOR_PHYSDEV_OP, 6, &mut iopl);
    report.succeeds("set_iopl", got);
    for port in [0x20u16, 0x40, 0x60, 0x70, 0x92, 0xf4, 0x3f8, 0x604, 0xcf9, 0xb004, 0xffff] {
        // SAFETY: a port without rights: all ones, and writes are lost.
        let trap = attempt(|| unsafe {
            asm!("out dx, al", in("dx") port, in("al") 0xfeu8);
            asm!("in eax, dx", in("dx") port, out("eax") value);
        });
        report.case(&format!("port {port:#x}"), trap.is_none(), trap);
    }
    let mut bytes = [0u8; 16];
    // SAFETY: string input fills the array.
    let trap = attempt(|| unsafe {
        asm!("rep insb", in("dx") 0x64u16, inout("rdi") bytes.as_mut_ptr() => _, inout("rcx") 16u64 => _);
    });
    report.case("rep insb", trap.is_none_or(|trap| trap.vector == 13), trap);
    // SAFETY: to hypervisor space: must fault, and must not be written by the emulation.
    let trap = attempt(|| unsafe {
        asm!("rep insb", in("dx") 0x64u16, inout("rdi") 0xffff_8300_0000_0000u64 => _, inout("rcx") 16u64 => _);
    });
    report.case("rep insb to hypervisor space", trap.is_some(), trap);
    // SAFETY: from hypervisor space: must fault.
    let trap = attempt(|| unsafe {
        asm!("rep outsb", in("dx") 0x64u16, inout("rsi") 0xffff_8300_0000_0000u64 => _, inout("rcx") 16u64 => _);
    });
    report.case("rep outsb from hypervisor space", trap.is_some(), trap);
    iopl = 4;
    report.refused("IOPL 4", op(__HYPERVISOR_PHYSDEV_OP, 6, &mut iopl), &[EINVAL]);
    iopl = 0;
    op(__HYPERVISOR_PHYSDEV_OP, 6, &mut iopl);
}

fn tables_of_gates(report: &mut Report) {
    let gate =
        |vector: u8, address: u64| TrapInfo { vector, flags: 3, cs: 0xe008, address, ..TrapInfo::default() };
    let set = |list: &[TrapInfo]| call(__HYPERVISOR_SET_TRAP_TABLE, [list.as_ptr() as u64, 0, 0, 0, 0]);
    for address in [1u64 << 63, 0x0000_8000_0000_0000] {
        report.refused(&format!("a gate to {address:#x}"), set(&[gate(6, address), gate(0, 0)]), &[EINVAL]);
    }
    // The table has more gates than there are vectors; the last gate of a vector is in force.
    let mut many = alloc::vec![gate(6, 0x1000); 4000];
    many.push(TrapInfo::default());
    report.succeeds("four thousand gates", set(&many));
    probe::install();
    // The hypervisor replaces its own selector in a gate by the guest's.
    let mut table = probe::trap_table();
    table.iter_mut().filter(|info| info.address != 0).for_each(|info| info.cs = 0xe008);
    report.succeeds("gates with the hypervisor's selector", set(&table));
    // SAFETY: caught by the gate.
    let trap = attempt(|| unsafe { asm!("ud2") });
    report.case("they lead into the guest", trap.is_some_and(|trap| trap.vector == 6), trap);
    probe::install();
}
