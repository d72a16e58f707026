//! Page table entries changed by the address that they map: `update_va_mapping`, and emulated writes to page
//! tables.

hypercall_cases! {
    "mmu.va-mapping" = va_mapping {
        title: "the entry of an address",
        rule: "update_va_mapping sets the L1 entry that maps an address, and UVMF_INVLPG makes it count at once.",
        source: "xen.h, 'Commands to HYPERVISOR_update_va_mapping()', UVMF_INVLPG",
    }
    "mmu.va-mapping-flushes" = va_mapping_flushes {
        title: "every kind of flush",
        rule: "UVMF_INVLPG and UVMF_TLB_FLUSH, each with UVMF_LOCAL, UVMF_ALL or a set of vCPUs, make the new entry count at once.",
        source: "xen.h, UVMF_TLB_FLUSH, UVMF_INVLPG, UVMF_MULTI, UVMF_LOCAL, UVMF_ALL",
    }
    "mmu.va-mapping-no-table" = va_mapping_no_table {
        title: "an address without a page table",
        rule: "update_va_mapping of an address without an L1 gives EINVAL.",
        source: "xen.h, HYPERVISOR_update_va_mapping()",
    }
    "mmu.va-mapping-hypervisor" = va_mapping_hypervisor {
        title: "an address of the hypervisor's",
        rule: "update_va_mapping of an address between HYPERVISOR_VIRT_START and HYPERVISOR_VIRT_END is refused.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START",
    }
    "mmu.va-mapping-self" = va_mapping_self {
        title: "frames of the domain itself, by name",
        rule: "update_va_mapping_otherdomain with DOMID_SELF does what update_va_mapping does.",
        source: "xen.h, HYPERVISOR_update_va_mapping_otherdomain()",
    }
    "mmu.va-mapping-other" = va_mapping_other {
        title: "frames of a domain that there is not, or not for this one",
        rule: "update_va_mapping_otherdomain gives ESRCH for a domain that does not exist, and EPERM or ESRCH to a domain that may not.",
        source: "xen.h, HYPERVISOR_update_va_mapping_otherdomain()",
    }
    "mmu.direct-write" = direct_write {
        title: "an L1 entry written by an instruction",
        rule: "With VMASST_TYPE_writable_pagetables a write to an L1 that is mapped read-only is done as mmu_update would do it.",
        source: "xen.h, VMASST_TYPE_writable_pagetables",
    }
    "mmu.direct-write-refused" = direct_write_refused {
        title: "an L1 entry written by an instruction, and refused",
        rule: "A write by instruction that mmu_update would refuse leaves the entry without the refused mapping.",
        source: "xen.h, VMASST_TYPE_writable_pagetables",
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // instructions on page tables

    use super::super::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::mmu::*;
    use ring_abi::vm_assist::*;

    pub(super) fn va_mapping(_: &Env) -> Verdict {
        let scratch = two()?;
        for n in [0, 1, 0] {
            done("update_va_mapping", map(scratch.at(0), scratch.mfn(n) << 12 | RW))?;
            ensure_eq!(load("the address", scratch.at(0))?, n as u64 + 1, "what it shows");
        }
        done("update_va_mapping", map(scratch.at(0), 0))?;
        let trap = probe::read(scratch.at(0)).err();
        let trap = trapped("what is not mapped", trap, 14)?;
        ensure_eq!((trap.error, trap.cr2), (0, scratch.at(0)), "error code and cr2");
        Ok(())
    }

    pub(super) fn va_mapping_flushes(_: &Env) -> Verdict {
        let scratch = two()?;
        let everyone = u64::MAX;
        let set = (&raw const everyone) as u64;
        let kinds = [
            ("INVLPG LOCAL", UVMF_INVLPG | UVMF_LOCAL),
            ("INVLPG ALL", UVMF_INVLPG | UVMF_ALL),
            ("INVLPG MULTI", UVMF_INVLPG | set),
            ("TLB_FLUSH LOCAL", UVMF_TLB_FLUSH | UVMF_LOCAL),
            ("TLB_FLUSH ALL", UVMF_TLB_FLUSH | UVMF_ALL),
            ("TLB_FLUSH MULTI", UVMF_TLB_FLUSH | set),
        ];
        for (name, flags) in kinds {
            for n in [0, 1] {
                let entry = scratch.mfn(n) << 12 | RW;
                done(name, call(__HYPERVISOR_UPDATE_VA_MAPPING, [scratch.at(0), entry, flags, 0, 0]))?;
                ensure_eq!(load(name, scratch.at(0))?, n as u64 + 1, "after {name}");
            }
        }
        Ok(())
    }

    pub(super) fn va_mapping_no_table(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for va in [0x0000_5555_5555_5000, 0xffff_c000_0000_0000] {
            refused("update_va_mapping", map(va, scratch.mfn(0) << 12 | RW), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn va_mapping_hypervisor(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for va in [M2P, 0xffff_82d0_8000_0000, 0xffff_8300_0000_0000, 0xffff_87ff_ffff_f000] {
            refused("update_va_mapping", map(va, scratch.mfn(0) << 12 | RW), &[EINVAL, EPERM])?;
        }
        Ok(())
    }

    fn map_other(va: u64, entry: u64, domain: u16) -> i64 {
        call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, [va, entry, UVMF_INVLPG, domain.into(), 0])
    }

    pub(super) fn va_mapping_self(_: &Env) -> Verdict {
        let scratch = two()?;
        done(
            "update_va_mapping_otherdomain",
            map_other(scratch.at(0), scratch.mfn(1) << 12 | RW, DOMID_SELF),
        )?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows");
        Ok(())
    }

    pub(super) fn va_mapping_other(env: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let entry = scratch.mfn(0) << 12 | RW;
        refused("a domain that is not", map_other(scratch.at(0), entry, NO_DOMAIN), &[ESRCH, EPERM])?;
        if !env.privileged {
            refused("the control domain", map_other(scratch.at(0), entry, 0), &[ESRCH, EPERM])?;
        }
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry");
        Ok(())
    }

    /// The assist for writable page tables, switched off on drop.
    struct Assist;

    impl Assist {
        fn new() -> Verdict<Self> {
            given(
                "vm_assist",
                call(
                    __HYPERVISOR_VM_ASSIST,
                    [VMASST_CMD_ENABLE.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into(), 0, 0, 0],
                ),
            )?;
            Ok(Self)
        }
    }

    impl Drop for Assist {
        fn drop(&mut self) {
            call(
                __HYPERVISOR_VM_ASSIST,
                [VMASST_CMD_DISABLE.into(), VMASST_TYPE_WRITABLE_PAGETABLES.into(), 0, 0, 0],
            );
        }
    }

    /// The virtual address, in the kernel's linear map, of the L1 entry that maps `scratch.at(0)`.
    fn entry_va(scratch: &Scratch) -> u64 {
        let at = scratch.entry_address(0);
        linear(at >> 12) + (at & 0xfff)
    }

    pub(super) fn direct_write(_: &Env) -> Verdict {
        let scratch = two()?;
        let assist = Assist::new()?;
        let at = entry_va(&scratch);
        store("mov", at, scratch.mfn(1) << 12 | RW)?;
        ensure_eq!(load("the address", scratch.at(0))?, 2, "what it shows after mov");
        let mut old = 0u64;
        // SAFETY: an entry of an address that is this case's.
        let trap = attempt(|| unsafe { core::arch::asm!("xchg [{}], {}", in(reg) at, inout(reg) old) });
        untrapped("xchg", trap)?;
        ensure_eq!((old & pte::FRAME) >> 12, scratch.mfn(1), "what xchg gives");
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry after xchg");
        store("mov again", at, scratch.mfn(0) << 12 | RW)?;
        // SAFETY: as above: clears the writable bit.
        let trap = attempt(|| unsafe { core::arch::asm!("lock and byte ptr [{}], 0xfd", in(reg) at) });
        untrapped("lock and", trap)?;
        ensure_eq!(leaf(scratch.at(0)) & (pte::P | pte::RW), pte::P, "the entry after and");
        let now = leaf(scratch.at(0));
        let mut seen = now;
        // SAFETY: as above.
        let trap = attempt(|| unsafe {
            core::arch::asm!("lock cmpxchg [{}], {}", in(reg) at, in(reg) 0u64, inout("rax") seen);
        });
        untrapped("cmpxchg", trap)?;
        ensure_eq!((seen, leaf(scratch.at(0))), (now, 0), "what cmpxchg gives, and the entry");
        drop(assist);
        Ok(())
    }

    pub(super) fn direct_write_refused(_: &Env) -> Verdict {
        let scratch = two()?;
        let _assist = Assist::new()?;
        let at = entry_va(&scratch);
        let table = tables(scratch.at(0))[3];
        let _ = probe::write(at, table << 12 | RW);
        let now = leaf(scratch.at(0));
        let writable = now & (pte::P | pte::RW) == pte::P | pte::RW && (now & pte::FRAME) >> 12 == table;
        let _ = probe::write(at, 0);
        ensure!(!writable, "the table is writable: {now:#x}");
        ensure_eq!(leaf(scratch.at(0)), 0, "the entry cleared");
        Ok(())
    }
}
