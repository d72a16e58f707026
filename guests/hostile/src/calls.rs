//! Hypercall numbers that do not exist, calls that a guest may not make, and every call with every bad
//! pointer.

use alloc::format;

use ring_abi::callback::CallbackRegister;
use ring_abi::errno::Errno::{EACCES, EFAULT, EINVAL, ENODEV, ENOSYS, EPERM, ESRCH};
use ring_abi::hypercall::*;
use ring_abi::types::{DOMID_SELF, PAGE_SIZE};

use crate::ground::{KERNEL, probe, space::*};
use crate::report::{Got, Report};

/// The argument that is replaced by the bad pointer.
const BAD: u64 = 0x4d4b_0bad;

/// Calls that read or write through a pointer before they do anything else: name, number, arguments.
const POINTERS: &[(&str, u32, [u64; 5])] = &[
    ("mmu_update", __HYPERVISOR_MMU_UPDATE, [BAD, 1, 0, DOMID_SELF as u64, 0]),
    ("mmuext_op", __HYPERVISOR_MMUEXT_OP, [BAD, 1, 0, DOMID_SELF as u64, 0]),
    ("set_trap_table", __HYPERVISOR_SET_TRAP_TABLE, [BAD, 0, 0, 0, 0]),
    ("set_gdt", __HYPERVISOR_SET_GDT, [BAD, 1, 0, 0, 0]),
    ("multicall", __HYPERVISOR_MULTICALL, [BAD, 1, 0, 0, 0]),
    ("version extra", __HYPERVISOR_XEN_VERSION, [1, BAD, 0, 0, 0]),
    ("version compile", __HYPERVISOR_XEN_VERSION, [2, BAD, 0, 0, 0]),
    ("version capabilities", __HYPERVISOR_XEN_VERSION, [3, BAD, 0, 0, 0]),
    ("version features", __HYPERVISOR_XEN_VERSION, [6, BAD, 0, 0, 0]),
    ("callback_op", __HYPERVISOR_CALLBACK_OP, [0, BAD, 0, 0, 0]),
    ("poll", __HYPERVISOR_SCHED_OP, [3, BAD, 0, 0, 0]),
    ("shutdown", __HYPERVISOR_SCHED_OP, [2, BAD, 0, 0, 0]),
    ("shutdown_code", __HYPERVISOR_SCHED_OP, [5, BAD, 0, 0, 0]),
    ("runstate area", __HYPERVISOR_VCPU_OP, [5, 0, BAD, 0, 0]),
    ("periodic timer", __HYPERVISOR_VCPU_OP, [6, 0, BAD, 0, 0]),
    ("singleshot timer", __HYPERVISOR_VCPU_OP, [8, 0, BAD, 0, 0]),
    ("vcpu_info", __HYPERVISOR_VCPU_OP, [10, 0, BAD, 0, 0]),
    ("time area", __HYPERVISOR_VCPU_OP, [13, 0, BAD, 0, 0]),
    ("bind_interdomain", __HYPERVISOR_EVENT_CHANNEL_OP, [0, BAD, 0, 0, 0]),
    ("bind_virq", __HYPERVISOR_EVENT_CHANNEL_OP, [1, BAD, 0, 0, 0]),
    ("close", __HYPERVISOR_EVENT_CHANNEL_OP, [3, BAD, 0, 0, 0]),
    ("send", __HYPERVISOR_EVENT_CHANNEL_OP, [4, BAD, 0, 0, 0]),
    ("status", __HYPERVISOR_EVENT_CHANNEL_OP, [5, BAD, 0, 0, 0]),
    ("alloc_unbound", __HYPERVISOR_EVENT_CHANNEL_OP, [6, BAD, 0, 0, 0]),
    ("bind_ipi", __HYPERVISOR_EVENT_CHANNEL_OP, [7, BAD, 0, 0, 0]),
    ("bind_vcpu", __HYPERVISOR_EVENT_CHANNEL_OP, [8, BAD, 0, 0, 0]),
    ("unmask", __HYPERVISOR_EVENT_CHANNEL_OP, [9, BAD, 0, 0, 0]),
    ("reset", __HYPERVISOR_EVENT_CHANNEL_OP, [10, BAD, 0, 0, 0]),
    ("map_grant_ref", __HYPERVISOR_GRANT_TABLE_OP, [0, BAD, 1, 0, 0]),
    ("unmap_grant_ref", __HYPERVISOR_GRANT_TABLE_OP, [1, BAD, 1, 0, 0]),
    ("setup_table", __HYPERVISOR_GRANT_TABLE_OP, [2, BAD, 1, 0, 0]),
    ("grant copy", __HYPERVISOR_GRANT_TABLE_OP, [5, BAD, 1, 0, 0]),
    ("query_size", __HYPERVISOR_GRANT_TABLE_OP, [6, BAD, 1, 0, 0]),
    ("set_version", __HYPERVISOR_GRANT_TABLE_OP, [8, BAD, 1, 0, 0]),
    ("get_version", __HYPERVISOR_GRANT_TABLE_OP, [10, BAD, 1, 0, 0]),
    ("increase_reservation", __HYPERVISOR_MEMORY_OP, [0, BAD, 0, 0, 0]),
    ("decrease_reservation", __HYPERVISOR_MEMORY_OP, [1, BAD, 0, 0, 0]),
    ("current_reservation", __HYPERVISOR_MEMORY_OP, [3, BAD, 0, 0, 0]),
    ("maximum_reservation", __HYPERVISOR_MEMORY_OP, [4, BAD, 0, 0, 0]),
    ("populate_physmap", __HYPERVISOR_MEMORY_OP, [6, BAD, 0, 0, 0]),
    ("exchange", __HYPERVISOR_MEMORY_OP, [11, BAD, 0, 0, 0]),
    ("machphys_mapping", __HYPERVISOR_MEMORY_OP, [12, BAD, 0, 0, 0]),
    ("physdev eoi", __HYPERVISOR_PHYSDEV_OP, [12, BAD, 0, 0, 0]),
    ("set_iopl", __HYPERVISOR_PHYSDEV_OP, [6, BAD, 0, 0, 0]),
    ("set_iobitmap", __HYPERVISOR_PHYSDEV_OP, [7, BAD, 0, 0, 0]),
    ("map_pirq", __HYPERVISOR_PHYSDEV_OP, [13, BAD, 0, 0, 0]),
    ("domctl", __HYPERVISOR_DOMCTL, [BAD, 0, 0, 0, 0]),
    ("sysctl", __HYPERVISOR_SYSCTL, [BAD, 0, 0, 0, 0]),
    ("platform_op", __HYPERVISOR_PLATFORM_OP, [BAD, 0, 0, 0, 0]),
];

/// Runs all cases.
pub(crate) fn run(report: &mut Report) {
    numbers(report);
    pointers(report);
    privileged(report);
    multicalls(report);
}

fn version() -> i64 {
    call(__HYPERVISOR_XEN_VERSION, [0, 0, 0, 0, 0])
}

fn numbers(report: &mut Report) {
    for number in [11, 38, 43, 47, 56, 63, 64, 65, 255, 256, 1000, 0x8000_0000, 0xffff_ffff] {
        report.refused(&format!("number {number:#x}"), call(number, [1, 2, 3, 4, 5]), &[ENOSYS]);
    }
    if KERNEL {
        wide_numbers(report);
    }
    for (name, number) in [
        ("xen_version", __HYPERVISOR_XEN_VERSION),
        ("event_channel_op", __HYPERVISOR_EVENT_CHANNEL_OP),
        ("sched_op", __HYPERVISOR_SCHED_OP),
        ("vcpu_op", __HYPERVISOR_VCPU_OP),
        ("physdev_op", __HYPERVISOR_PHYSDEV_OP),
        ("callback_op", __HYPERVISOR_CALLBACK_OP),
        ("vm_assist", __HYPERVISOR_VM_ASSIST),
    ] {
        for command in [57, 0x7fff_ffff, 0xffff_ffff] {
            let got = call(number, [command, 0, 0, 0, 0]);
            report.refused(&format!("{name} command {command:#x}"), got, &[ENOSYS, EINVAL, EFAULT]);
        }
    }
    for which in [4, 5, 100, u64::MAX] {
        report.refused(
            &format!("segment base {which:#x}"),
            call(__HYPERVISOR_SET_SEGMENT_BASE, [which, 0, 0, 0, 0]),
            &[EINVAL],
        );
    }
    for which in 0..3 {
        let got = call(__HYPERVISOR_SET_SEGMENT_BASE, [which, 1 << 62, 0, 0, 0]);
        report.refused(&format!("non-canonical segment base {which}"), got, &[EINVAL]);
    }
    for register in [8, 64, u64::MAX] {
        let got = call(__HYPERVISOR_GET_DEBUGREG, [register, 0, 0, 0, 0]);
        report.refused(&format!("reading DR{register:#x}"), got, &[EINVAL, EPERM, ENODEV]);
        if register > 5 {
            let got = call(__HYPERVISOR_SET_DEBUGREG, [register, 0, 0, 0, 0]);
            report.refused(&format!("writing DR{register:#x}"), got, &[EINVAL, EPERM, ENODEV]);
        }
    }
    for at in [M2P, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_ffff, 1 << 63] {
        let got = call(__HYPERVISOR_SET_DEBUGREG, [0, at, 0, 0, 0]);
        report.refused(&format!("a breakpoint at {at:#x}"), got, &[EPERM, EINVAL]);
    }
    report.refused("general detect", call(__HYPERVISOR_SET_DEBUGREG, [7, 1 << 13, 0, 0, 0]), &[EPERM]);
    for address in [1 << 63, 0x8000_0000_0000] {
        let mut arg = CallbackRegister { address, ..Default::default() };
        let got = op(__HYPERVISOR_CALLBACK_OP, 0, &mut arg);
        report.refused(&format!("an event callback at {address:#x}"), got, &[EINVAL]);
    }
    report.case("still there", version() > 0, version());
}

/// Numbers whose lower half is that of a call.
fn wide_numbers(report: &mut Report) {
    for number in [1u64 << 32 | 17, 1 << 63 | 17, u64::MAX] {
        let result: i64;
        // SAFETY: a number beyond all calls.
        #[allow(unsafe_code)]
        unsafe {
            core::arch::asm!(
                "syscall", inlateout("rax") number => result, inlateout("rdi") 0 => _, inlateout("rsi") 0 => _,
                inlateout("rdx") 0 => _, lateout("rcx") _, lateout("r11") _, options(nostack),
            );
        }
        report.refused(&format!("number {number:#x}"), result, &[ENOSYS]);
    }
}

fn pointers(report: &mut Report) {
    let scratch = Scratch::new(2);
    // The structure begins in a read-only page and ends in one that is not mapped.
    map(scratch.at(0), scratch.mfn(0) << 12 | RW);
    map(scratch.at(1), 0);
    let edge = scratch.at(1) - 1;
    probe::write(scratch.at(1) - 8, 0);
    let bad = [
        ("null page", 0x8),
        ("M2P", M2P),
        ("end of the M2P", 0xffff_803f_ffff_fff8),
        ("hypervisor text or data", 0xffff_82d0_4000_0000),
        ("direct map", 0xffff_8300_0000_0000),
        ("last hypervisor byte", 0xffff_87ff_ffff_ffff),
        ("into hypervisor space", 0xffff_7fff_ffff_fffe),
        ("first non-canonical", 0x0000_8000_0000_0000),
        ("non-canonical", 0x8000_0000_0000_0000),
        ("all ones", u64::MAX),
        ("unmapped", scratch.at(1)),
        ("over the edge", edge),
    ];
    for (name, number, args) in POINTERS {
        let mut wrong = None;
        for (which, at) in bad {
            let got = call(*number, args.map(|arg| if arg == BAD { at } else { arg }));
            // The hypervisor may refuse a call that the guest may not make before it reads through the
            // pointer.
            let early = [EPERM, EINVAL, ENOSYS, EACCES, ESRCH].iter().any(|errno| errno.negated() == got);
            // A reservation that cannot be read gives 0: no extent was done.
            let nothing = got == 0 && (name.ends_with("reservation") || *name == "populate_physmap");
            if got != EFAULT.negated() && !early && !nothing {
                wrong = Some((which, Got(got)));
            }
        }
        report.case(&format!("{name} by bad pointers"), wrong.is_none(), wrong);
    }
    probe::install(); // set_trap_table may have begun
    report.case("still there", version() > 0, version());
}

/// Calls that only the control domain may make.
fn privileged(report: &mut Report) {
    if report.privileged {
        return;
    }
    let mut words = [0u64; 32];
    let wanted = [EPERM, EACCES, ENOSYS, EFAULT, EINVAL, ESRCH];
    let mut granted = None;
    for command in 0..90u64 {
        for (number, version) in [
            (__HYPERVISOR_DOMCTL, 0x15),
            (__HYPERVISOR_SYSCTL, 0x15),
            (__HYPERVISOR_PLATFORM_OP, 0x0300_0001),
        ] {
            for target in [0u64, 1, 0x7ff0] {
                words.fill(0);
                words[0] = command | version << 32;
                words[1] = target;
                let got = call(number, [words.as_mut_ptr() as u64, 0, 0, 0, 0]);
                if !wanted.iter().any(|errno| errno.negated() == got) {
                    granted = Some((number, command, Got(got)));
                }
            }
        }
    }
    report.case("domctl, sysctl, platform_op", granted.is_none(), granted);
    words.fill(0);
    let at = words.as_mut_ptr() as u64;
    let mut granted = None;
    for command in (0..32).filter(|command| !matches!(command, 5 | 6 | 7 | 9 | 12 | 17 | 22 | 28)) {
        let got = call(__HYPERVISOR_PHYSDEV_OP, [command, at, 0, 0, 0]);
        if !wanted.iter().any(|errno| errno.negated() == got) {
            granted = Some((command, Got(got)));
        }
    }
    report.case("physdev_op", granted.is_none(), granted);
    report.refused("console_io", call(__HYPERVISOR_CONSOLE_IO, [0, 8, at, 0, 0]), &[EPERM]);
    report.refused("remote shutdown of dom0", call(__HYPERVISOR_SCHED_OP, [4, at, 0, 0, 0]), &[EPERM, ESRCH]);
    for number in [__HYPERVISOR_KEXEC_OP, __HYPERVISOR_XENPMU_OP, __HYPERVISOR_ARCH_0, __HYPERVISOR_XSM_OP] {
        let got = call(number, [0, at, 0, 0, 0]);
        report.case(&format!("call {number}"), got < 0, Got(got));
    }
}

fn multicalls(report: &mut Report) {
    let at = |list: &mut [MulticallEntry]| list.as_mut_ptr() as u64;
    let mut inner = [MulticallEntry { op: 17, ..Default::default() }; 4];
    let nested = MulticallEntry {
        op: __HYPERVISOR_MULTICALL.into(),
        args: [at(&mut inner), 4, 0, 0, 0, 0],
        ..Default::default()
    };
    let mut outer = [nested; 4];
    let got = call(__HYPERVISOR_MULTICALL, [at(&mut outer), 4, 0, 0, 0]);
    report.case("a multicall in a multicall", got <= 0, Got(got));
    // A multicall that contains itself: a hypervisor that recursed would overflow its stack.
    let mut own = [nested; 1];
    own[0].args = [at(&mut own), 1, 0, 0, 0, 0];
    let got = call(__HYPERVISOR_MULTICALL, [at(&mut own), 1, 0, 0, 0]);
    report.case("a multicall of itself", got <= 0, Got(got));
    let mut bad = [MulticallEntry { op: u64::MAX, ..Default::default() }; 3];
    let got = call(__HYPERVISOR_MULTICALL, [at(&mut bad), 3, 0, 0, 0]);
    let each = bad.map(|entry| entry.result as i64);
    report.case("numbers without a meaning", got == 0 && each == [ENOSYS.negated(); 3], each);
    let scratch = Scratch::new(2);
    map(scratch.at(0), scratch.mfn(0) << 12 | RW);
    let last = scratch.at(1) - 64;
    probe::write(last, 17);
    let got = call(__HYPERVISOR_MULTICALL, [last, u64::from(u32::MAX), 0, 0, 0]);
    report.refused("the second of many entries is unmapped", got, &[EFAULT]);
    report.case(
        "the first was done",
        probe::read(last + 8).is_ok_and(|result| result > 0),
        probe::read(last + 8),
    );
    // The hypervisor refuses a list that it cannot write when it writes the first result.
    probe::write(scratch.at(0) + PAGE_SIZE as u64 / 2, 17);
    map(scratch.at(0), scratch.mfn(0) << 12 | RO);
    let got = call(__HYPERVISOR_MULTICALL, [scratch.at(0) + PAGE_SIZE as u64 / 2, 1, 0, 0, 0]);
    report.refused("a list for reading", got, &[EFAULT]);
}
