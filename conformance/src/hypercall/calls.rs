//! What all hypercalls have in common, calls in lists, and small calls that stand alone.

hypercall_cases! {
    "calls.registers" = registers {
        title: "a call of two arguments changes rax, rcx, r11, rdi and rsi at most",
        rule: "A hypercall keeps every general register but rax, which has the result, rcx and r11, which SYSCALL takes, and those of its arguments.",
        source: "arch-x86/xen-x86_64.h, 'Hypercall interface'",
    }
    "calls.unknown" = unknown {
        title: "numbers that no call has",
        rule: "A number without a call gives ENOSYS.",
        source: "xen.h, 'HYPERCALLS'",
    }
    "calls.multicall-results" = multicall_results {
        title: "each entry has its own result",
        rule: "multicall gives 0, and puts what each call gave into its entry's result.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-goes-on" = multicall_goes_on {
        title: "a refused entry does not end the list",
        rule: "An entry that fails has its error in its result, and those behind it are done.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-order" = multicall_order {
        title: "an entry sees what those before it did",
        rule: "The calls of a list are done in order, each complete before the next.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-keeps-arguments" = multicall_keeps_arguments {
        title: "only results are written",
        rule: "multicall writes the result of an entry and nothing else of the list.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-empty" = multicall_empty {
        title: "a list without entries",
        rule: "A multicall of no entries gives 0.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-nested" = multicall_nested {
        title: "a list within a list",
        rule: "A multicall among a multicall's entries is refused with EINVAL, and the rest of the list is done.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.multicall-fault" = multicall_fault {
        title: "a list that runs into unmapped memory",
        rule: "A list that cannot be read gives EFAULT.",
        source: "xen.h, struct multicall_entry",
    }
    "calls.vm-assist" = vm_assist {
        title: "each assist is switched on and off",
        rule: "vm_assist enables and disables the assists writable_pagetables, pae_extended_cr3, architectural_iopl and runstate_update_flag.",
        source: "xen.h, 'Commands to HYPERVISOR_vm_assist()'",
    }
    "calls.vm-assist-unknown" = vm_assist_unknown {
        title: "assists and commands that there are not",
        rule: "vm_assist refuses an unknown type with EINVAL and an unknown command with ENOSYS.",
        source: "xen.h, 'Commands to HYPERVISOR_vm_assist()'",
    }
    "calls.segment-base-fs" = segment_base_fs {
        title: "FS has the base that was set",
        rule: "SEGBASE_FS sets the base that accesses by FS use.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_set_segment_base",
    }
    "calls.segment-base-gs" = segment_base_gs {
        title: "GS of the kernel has the base that was set, that of user mode is kept apart",
        rule: "SEGBASE_GS_KERNEL sets the base that the kernel's accesses by GS use; SEGBASE_GS_USER does not.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_set_segment_base",
    }
    "calls.segment-base-bad" = segment_base_bad {
        title: "bases and segments that there are not",
        rule: "set_segment_base refuses an unknown segment and a base that is not canonical with EINVAL.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_set_segment_base",
    }
    "calls.console-write" = console_write {
        title: "the control domain writes to the console",
        rule: "CONSOLEIO_write of the control domain gives 0.",
        source: "xen.h, 'Commands to HYPERVISOR_console_io()'",
        also: [Dom0],
    }
    "calls.console-read-nothing" = console_read_nothing {
        title: "a read of no bytes",
        rule: "CONSOLEIO_read gives the number of bytes read, at most as many as asked for.",
        source: "xen.h, 'Commands to HYPERVISOR_console_io()'",
        also: [Dom0],
    }
    "calls.console-unknown" = console_unknown {
        title: "a console command that there is not",
        rule: "console_io gives ENOSYS for an unknown command, or EPERM to a domain that may not use it at all.",
        source: "xen.h, 'Commands to HYPERVISOR_console_io()'",
    }
    "calls.console-fault" = console_fault {
        title: "text that cannot be read",
        rule: "CONSOLEIO_write of unmapped memory gives EFAULT.",
        source: "xen.h, 'Commands to HYPERVISOR_console_io()'",
        also: [Dom0],
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // reads by segment registers

    use super::super::asm;
    use super::super::kit::*;
    use ring_abi::hypercall::MulticallEntry;
    use ring_abi::segment::*;
    use ring_abi::version::XENVER_PAGESIZE;
    use ring_abi::vm_assist::*;

    pub(super) fn registers(_: &Env) -> Verdict {
        const NAMES: [&str; 13] =
            ["rdi", "rsi", "rdx", "rbx", "rbp", "r8", "r9", "r10", "r12", "r13", "r14", "r15", "rsp"];
        const ARGUMENTS: u64 = 0b11; // rdi and rsi
        let changed = asm::changed_registers() & !ARGUMENTS;
        let names: Vec<_> = (0..13).filter(|bit| changed & 1 << bit != 0).map(|bit| NAMES[bit]).collect();
        ensure!(changed == 0, "changed: {names:?}");
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for number in [11, 43, 47, 56, 63, 64, 255, 0x7fff_ffff, u32::MAX] {
            refused("a call without meaning", call(number, [0; 5]), &[ENOSYS])?;
        }
        Ok(())
    }

    fn entry(number: u32, args: [u64; 6]) -> MulticallEntry {
        MulticallEntry { op: number.into(), result: 0x5555, args }
    }

    fn page_size() -> MulticallEntry {
        entry(__HYPERVISOR_XEN_VERSION, [XENVER_PAGESIZE.into(), 0, 0, 0, 0, 0])
    }

    fn multicall(list: &mut [MulticallEntry]) -> i64 {
        call(__HYPERVISOR_MULTICALL, [list.as_mut_ptr() as u64, list.len() as u64, 0, 0, 0])
    }

    pub(super) fn multicall_results(_: &Env) -> Verdict {
        let version = nothing() as u64;
        let mut list =
            [entry(__HYPERVISOR_XEN_VERSION, [0; 6]), page_size(), entry(__HYPERVISOR_XEN_VERSION, [0; 6])];
        done("multicall", multicall(&mut list))?;
        ensure_eq!(list.map(|entry| entry.result), [version, 4096, version], "the results");
        let mut list = [page_size(); 64];
        done("multicall of 64", multicall(&mut list))?;
        ensure!(list.iter().all(|entry| entry.result == 4096), "results of 64 calls");
        Ok(())
    }

    pub(super) fn multicall_goes_on(_: &Env) -> Verdict {
        let mut list = [
            page_size(),
            entry(63, [0; 6]),
            page_size(),
            entry(__HYPERVISOR_XEN_VERSION, [57, 0, 0, 0, 0, 0]),
            page_size(),
        ];
        done("multicall", multicall(&mut list))?;
        let nosys = ENOSYS.negated() as u64;
        ensure_eq!(list.map(|entry| entry.result), [4096, nosys, 4096, nosys, 4096], "the results");
        Ok(())
    }

    pub(super) fn multicall_order(_: &Env) -> Verdict {
        let scratch = Scratch::new(2);
        let map =
            |n| entry(__HYPERVISOR_UPDATE_VA_MAPPING, [scratch.at(0), scratch.mfn(n) << 12 | RW, 2, 0, 0, 0]);
        // The second call of the list writes to an address, so the write must go to the page that the first
        // call mapped there.
        let write = entry(__HYPERVISOR_XEN_VERSION, [5, scratch.at(0), 0, 0, 0, 0]);
        let mut list = [map(0), write, map(1)];
        done("multicall", multicall(&mut list))?;
        ensure_eq!(list.map(|entry| entry.result), [0; 3], "the results");
        ensure_eq!(load("the first page", scratch.page(0))?, HYPERVISOR_VIRT_START, "the page mapped first");
        ensure_eq!(load("the second page", scratch.page(1))?, 0, "the page mapped after");
        Ok(())
    }

    pub(super) fn multicall_keeps_arguments(_: &Env) -> Verdict {
        let mut list = [entry(__HYPERVISOR_XEN_VERSION, [7, 11, 12, 13, 14, 15])];
        done("multicall", multicall(&mut list))?;
        ensure_eq!(list[0].args, [7, 11, 12, 13, 14, 15], "the arguments");
        ensure_eq!(list[0].op, u64::from(__HYPERVISOR_XEN_VERSION), "the number");
        Ok(())
    }

    pub(super) fn multicall_empty(_: &Env) -> Verdict {
        done("multicall", call(__HYPERVISOR_MULTICALL, [0x1000, 0, 0, 0, 0]))
    }

    pub(super) fn multicall_nested(_: &Env) -> Verdict {
        let mut inner = [page_size()];
        let nested = entry(__HYPERVISOR_MULTICALL, [inner.as_mut_ptr() as u64, 1, 0, 0, 0, 0]);
        let mut list = [nested, page_size()];
        done("multicall", multicall(&mut list))?;
        ensure_eq!(list[0].result as i64, EINVAL.negated(), "the list within");
        ensure_eq!(list[1].result, 4096, "the entry behind");
        ensure_eq!(inner[0].result, 0x5555, "the entry within");
        Ok(())
    }

    pub(super) fn multicall_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("multicall", call(__HYPERVISOR_MULTICALL, [scratch.at(0), 1, 0, 0, 0]), &[EFAULT])
    }

    fn assist(command: u32, kind: u32) -> i64 {
        call(__HYPERVISOR_VM_ASSIST, [command.into(), kind.into(), 0, 0, 0])
    }

    pub(super) fn vm_assist(_: &Env) -> Verdict {
        for kind in [
            VMASST_TYPE_WRITABLE_PAGETABLES,
            VMASST_TYPE_PAE_EXTENDED_CR3,
            VMASST_TYPE_ARCHITECTURAL_IOPL,
            VMASST_TYPE_RUNSTATE_UPDATE_FLAG,
        ] {
            done("enable", assist(VMASST_CMD_ENABLE, kind))?;
            done("enable again", assist(VMASST_CMD_ENABLE, kind))?;
            done("disable", assist(VMASST_CMD_DISABLE, kind))?;
        }
        Ok(())
    }

    pub(super) fn vm_assist_unknown(_: &Env) -> Verdict {
        for kind in [6, 31, 63, 64, u32::MAX] {
            refused("an unknown type", assist(VMASST_CMD_ENABLE, kind), &[EINVAL])?;
        }
        refused("an unknown command", assist(2, VMASST_TYPE_WRITABLE_PAGETABLES), &[ENOSYS])
    }

    fn set_base(which: u64, base: u64) -> i64 {
        call(__HYPERVISOR_SET_SEGMENT_BASE, [which, base, 0, 0, 0])
    }

    fn through_fs() -> Result<u64, Trap> {
        let mut value = 0;
        // SAFETY: reads a word; a trap is caught.
        match attempt(|| unsafe { core::arch::asm!("mov {}, fs:[0]", out(reg) value) }) {
            Some(trap) => Err(trap),
            None => Ok(value),
        }
    }

    fn through_gs() -> Result<u64, Trap> {
        let mut value = 0;
        // SAFETY: reads a word; a trap is caught.
        match attempt(|| unsafe { core::arch::asm!("mov {}, gs:[0]", out(reg) value) }) {
            Some(trap) => Err(trap),
            None => Ok(value),
        }
    }

    pub(super) fn segment_base_fs(_: &Env) -> Verdict {
        let scratch = Scratch::new(2);
        store("first", scratch.page(0), 0x1122)?;
        store("second", scratch.page(1), 0x3344)?;
        for (n, wanted) in [(0, 0x1122), (1, 0x3344)] {
            done("set_segment_base", set_base(SEGBASE_FS.into(), scratch.page(n)))?;
            ensure_eq!(through_fs(), Ok(wanted), "by FS");
            nothing();
            ensure_eq!(through_fs(), Ok(wanted), "by FS after another call");
        }
        done("base 0", set_base(SEGBASE_FS.into(), 0))
    }

    pub(super) fn segment_base_gs(_: &Env) -> Verdict {
        let scratch = Scratch::new(2);
        store("first", scratch.page(0), 0x1122)?;
        store("second", scratch.page(1), 0x3344)?;
        done("GS_KERNEL", set_base(SEGBASE_GS_KERNEL.into(), scratch.page(0)))?;
        ensure_eq!(through_gs(), Ok(0x1122), "by GS");
        done("GS_USER", set_base(SEGBASE_GS_USER.into(), scratch.page(1)))?;
        ensure_eq!(through_gs(), Ok(0x1122), "by GS after the user's was set");
        done("GS_USER 0", set_base(SEGBASE_GS_USER.into(), 0))?;
        done("GS_KERNEL 0", set_base(SEGBASE_GS_KERNEL.into(), 0))
    }

    pub(super) fn segment_base_bad(_: &Env) -> Verdict {
        for which in [4, 100, u64::from(u32::MAX)] {
            refused("an unknown segment", set_base(which, 0), &[EINVAL])?;
        }
        for which in [SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL] {
            for base in [1 << 62, 0x0000_8000_0000_0000, 0xffff_7fff_ffff_ffff] {
                refused("a base that is not canonical", set_base(which.into(), base), &[EINVAL])?;
            }
        }
        Ok(())
    }

    fn console(command: u64, count: u64, at: u64) -> i64 {
        call(__HYPERVISOR_CONSOLE_IO, [command, count, at, 0, 0])
    }

    pub(super) fn console_write(_: &Env) -> Verdict {
        let text = b"\n";
        done("a line", console(0, 1, text.as_ptr() as u64))?;
        done("nothing", console(0, 0, text.as_ptr() as u64))
    }

    pub(super) fn console_read_nothing(_: &Env) -> Verdict {
        let mut byte = [0u8; 1];
        done("a read of no bytes", console(1, 0, byte.as_mut_ptr() as u64))
    }

    pub(super) fn console_unknown(env: &Env) -> Verdict {
        let wanted: &[Errno] = if env.privileged { &[ENOSYS] } else { &[ENOSYS, EPERM] };
        refused("command 7", console(7, 0, 0), wanted)
    }

    pub(super) fn console_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("a write from nowhere", console(0, 4, scratch.at(0)), &[EFAULT])
    }
}
