//! Memory that a domain may not even read: other domains' frames that are not granted to it, and the
//! hypervisor's memory.

hypercall_cases! {
    "mmu.unreadable-frames" = frames {
        title: "read-only entries for frames all over the machine that are not the domain's",
        rule: "update_va_mapping maps no frame of others, not for reading either.",
        source: "xen.h, HYPERVISOR_update_va_mapping()",
        also: [DomU],
    }
    "mmu.unreadable-frames-by-update" = frames_by_update {
        title: "the same entries, and an old mapping in their place",
        rule: "mmu_update maps no frame of others, not for reading either, and a refused request leaves the entry.",
        source: "xen.h, HYPERVISOR_mmu_update(), MMU_NORMAL_PT_UPDATE",
        also: [DomU],
    }
    "mmu.unreadable-in-a-table" = in_a_table {
        title: "a page table to be that maps a frame of others for reading",
        rule: "A page with an entry for a frame of others becomes no page table.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE",
        also: [DomU],
    }
    "mmu.unreadable-tables" = others_as_tables {
        title: "frames of others as page tables",
        rule: "A frame of others becomes no page table of the domain's, at whatever level.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE to MMUEXT_PIN_L4_TABLE, MMUEXT_NEW_BASEPTR, MMUEXT_NEW_USER_BASEPTR",
        also: [DomU],
    }
    "mmu.unreadable-in-anothers-name" = in_anothers_name {
        title: "the frames in the name of dom0, of DOMID_IO and of DOMID_XEN",
        rule: "A domain without privileges over another maps none of its frames.",
        source: "xen.h, HYPERVISOR_mmu_update(), foreigndom; DOMID_IO, DOMID_XEN",
        also: [DomU],
    }
    "mmu.unreadable-hypervisor" = hypervisor {
        title: "reads of the hypervisor's addresses",
        rule: "Of the addresses from HYPERVISOR_VIRT_START on a guest can read the M2P alone.",
        source: "arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START, 'Virtual address space layout'",
    }
    "calls.unreadable-argument" = argument {
        title: "arguments at addresses of the hypervisor's",
        rule: "An argument that the guest itself cannot read gives EFAULT.",
        source: "xen.h, HYPERVISOR_* with a pointer; arch-x86/xen-x86_64.h, HYPERVISOR_VIRT_START",
    }
    "mmuext.copy-unreadable" = copy_page {
        title: "a page from frames of others",
        rule: "MMUEXT_COPY_PAGE refuses a source that is not the domain's, and copies nothing.",
        source: "xen.h, MMUEXT_COPY_PAGE",
        also: [DomU],
    }
    "grant.copy-unreadable-frame" = copy_frame {
        title: "copies from frames of others, by their numbers",
        rule: "Without GNTCOPY_source_gref the source is a frame of the domain's own.",
        source: "grant_table.h, GNTTABOP_copy, GNTCOPY_source_gref",
        also: [DomU],
    }
    "grant.copy-anothers-frame" = copy_anothers {
        title: "a copy from a frame in dom0's name",
        rule: "A frame of another domain is copied by a reference alone, else GNTST_permission_denied.",
        source: "grant_table.h, GNTTABOP_copy; GNTST_permission_denied",
        also: [DomU],
    }
    "grant.copy-not-for-us" = copy_not_for_us {
        title: "a copy from a page that is granted to another domain",
        rule: "A reference is good for the domain that it names.",
        source: "grant_table.h, struct grant_entry_v1, domid",
    }
    "grant.copy-ended" = copy_ended {
        title: "a copy from a reference after its grant has ended",
        rule: "An entry without GTF_permit_access grants nothing.",
        source: "grant_table.h, GTF_invalid, GTF_permit_access",
    }
    "grant.unreadable-references" = references {
        title: "the first references of dom0, mapped for reading and copied from",
        rule: "What a domain has not granted is neither mapped nor copied.",
        source: "grant_table.h, GNTTABOP_map_grant_ref, GNTMAP_readonly; GNTTABOP_copy",
        also: [DomU],
    }
}

#[cfg(freestanding)]
mod body {
    use crate::hypercall::grant::granted::*;
    use crate::hypercall::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::evtchn::EVTCHNOP_SEND;
    use ring_abi::grant::*;
    use ring_abi::mmu::*;
    use ring_abi::sched::SCHEDOP_POLL;
    use ring_abi::types::{DOMID_IO, DOMID_XEN};
    use ring_abi::vcpu::VCPUOP_SET_PERIODIC_TIMER;

    const REFUSED: &[Errno] = &[EINVAL, EPERM, EBUSY, ENXIO, ESRCH];
    const OWN: u64 = 0x4f57_4e4f_574e_4f57;
    /// Addresses of the hypervisor's: its image, its direct map, one of its tables.
    const HYPERVISORS: [u64; 4] =
        [0xffff_82d0_8020_0000, 0xffff_8300_0000_0000, 0xffff_8300_0010_0000, 0xffff_82d0_8030_0000];

    /// Frames that are not this domain's; every machine has some.
    fn others() -> Verdict<Vec<u64>> {
        let frames = foreign_frames();
        if frames.len() < 16 {
            return Err(Problem::Error(alloc::format!("{} frames of others", frames.len())));
        }
        Ok(frames)
    }

    /// Makes pages of which the first holds [`OWN`] everywhere.
    fn marked(count: usize) -> Verdict<Scratch> {
        let scratch = Scratch::new(count);
        fill(&scratch)?;
        Ok(scratch)
    }

    fn fill(scratch: &Scratch) -> Verdict {
        (0..512).try_for_each(|word| store("filling", scratch.page(0) + word * 8, OWN))
    }

    fn is_unchanged(scratch: &Scratch, what: &str) -> Verdict {
        for word in 0..512 {
            ensure_eq!(load(what, scratch.page(0) + word * 8)?, OWN, "{what}: word {word} of the target");
        }
        Ok(())
    }

    pub(super) fn frames(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for mfn in others()? {
            refused("update_va_mapping", map(scratch.at(0), mfn << 12 | RO), REFUSED)?;
            ensure_eq!(leaf(scratch.at(0)), 0, "the entry after frame {mfn:#x} was refused");
            trapped("a read", probe::read(scratch.at(0)).err(), 14)?;
        }
        Ok(())
    }

    pub(super) fn frames_by_update(_: &Env) -> Verdict {
        let scratch = marked(1)?;
        done("update_va_mapping", map(scratch.at(0), scratch.mfn(0) << 12 | RO))?;
        let at = scratch.entry_address(0);
        for mfn in others()? {
            for command in [MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_PRESERVE_AD] {
                refused("mmu_update", update(at | command, mfn << 12 | RO), REFUSED)?;
            }
            ensure_eq!(
                (leaf(scratch.at(0)) & pte::FRAME) >> 12,
                scratch.mfn(0),
                "the entry's frame after {mfn:#x} was refused"
            );
            ensure_eq!(load("the address", scratch.at(0))?, OWN, "what the address shows");
        }
        Ok(())
    }

    pub(super) fn in_a_table(_: &Env) -> Verdict {
        let frames = others()?;
        for mfn in frames.iter().step_by(8) {
            let scratch = Scratch::new(1);
            store("an entry", scratch.page(0) + 77 * 8, mfn << 12 | RO)?;
            given("protecting", scratch.protect(0))?;
            refused("pin", extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(0), 0), REFUSED)?;
        }
        Ok(())
    }

    pub(super) fn others_as_tables(_: &Env) -> Verdict {
        let operations = [
            ("pinning as L1", MMUEXT_PIN_L1_TABLE),
            ("pinning as L2", MMUEXT_PIN_L2_TABLE),
            ("pinning as L3", MMUEXT_PIN_L3_TABLE),
            ("pinning as L4", MMUEXT_PIN_L4_TABLE),
            ("a base pointer", MMUEXT_NEW_BASEPTR),
            ("a user's base pointer", MMUEXT_NEW_USER_BASEPTR),
        ];
        // Frame 0 is left out: as user base pointer, 0 means none.
        for mfn in others()?.into_iter().filter(|mfn| *mfn != 0) {
            for (what, command) in operations {
                refused(what, extended(command, mfn, 0), REFUSED)?;
            }
        }
        Ok(())
    }

    pub(super) fn in_anothers_name(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.entry_address(0);
        for mfn in others()?.into_iter().step_by(4) {
            for domain in [0, DOMID_IO, DOMID_XEN] {
                let entry = mfn << 12 | RO;
                refused("mmu_update", update_as(at, entry, domain.into()), REFUSED)?;
                let args = [scratch.at(0), entry, UVMF_INVLPG, domain.into(), 0];
                refused(
                    "update_va_mapping_otherdomain",
                    call(__HYPERVISOR_UPDATE_VA_MAPPING_OTHERDOMAIN, args),
                    REFUSED,
                )?;
                ensure_eq!(leaf(scratch.at(0)), 0, "the entry after frame {mfn:#x} was refused");
            }
        }
        Ok(())
    }

    pub(super) fn hypervisor(_: &Env) -> Verdict {
        for at in HYPERVISORS {
            let trap = trapped("a read", probe::read(at).err(), 14)?;
            ensure_eq!(trap.cr2, at, "cr2");
        }
        // The M2P itself can be read.
        load("the M2P", M2P + base() * 8)?;
        Ok(())
    }

    pub(super) fn argument(_: &Env) -> Verdict {
        let me: u64 = DOMID_SELF.into();
        for at in HYPERVISORS {
            for (what, number, args) in [
                ("mmu_update", __HYPERVISOR_MMU_UPDATE, [at, 1, 0, me, 0]),
                ("mmuext_op", __HYPERVISOR_MMUEXT_OP, [at, 1, 0, me, 0]),
                ("set_trap_table", __HYPERVISOR_SET_TRAP_TABLE, [at, 0, 0, 0, 0]),
                ("multicall", __HYPERVISOR_MULTICALL, [at, 1, 0, 0, 0]),
                ("event_channel_op", __HYPERVISOR_EVENT_CHANNEL_OP, [EVTCHNOP_SEND.into(), at, 0, 0, 0]),
                ("sched_op", __HYPERVISOR_SCHED_OP, [SCHEDOP_POLL.into(), at, 0, 0, 0]),
                ("vcpu_op", __HYPERVISOR_VCPU_OP, [VCPUOP_SET_PERIODIC_TIMER.into(), 0, at, 0, 0]),
                ("grant_table_op", __HYPERVISOR_GRANT_TABLE_OP, [GNTTABOP_COPY.into(), at, 1, 0, 0]),
                ("a mapping", __HYPERVISOR_GRANT_TABLE_OP, [GNTTABOP_MAP_GRANT_REF.into(), at, 1, 0, 0]),
            ] {
                refused(what, call(number, args), &[EFAULT])?;
            }
        }
        Ok(())
    }

    pub(super) fn copy_page(_: &Env) -> Verdict {
        let scratch = marked(1)?;
        for mfn in others()? {
            refused("copy_page", extended(MMUEXT_COPY_PAGE, scratch.mfn(0), mfn), REFUSED)?;
            is_unchanged(&scratch, "copy_page")?;
        }
        Ok(())
    }

    /// Checks that the hypervisor refuses to copy a page to page 0 of `scratch`, with a status of `wanted` (any, if
    /// empty).
    fn no_copy(scratch: &Scratch, source: GnttabCopyPtr, flags: u16, wanted: &[i16]) -> Verdict {
        let dest = GnttabCopyPtr { u: scratch.mfn(0), domid: DOMID_SELF, ..Default::default() };
        let mut arg = GnttabCopy { source, dest, len: 4096, flags, ..Default::default() };
        done("copy", ask_one(GNTTABOP_COPY, &mut arg))?;
        let holds = arg.status < 0 && (wanted.is_empty() || wanted.contains(&arg.status));
        ensure!(holds, "a copy from {:#x} of domain {}: status {}", source.u, source.domid, arg.status);
        is_unchanged(scratch, "copy")
    }

    pub(super) fn copy_frame(_: &Env) -> Verdict {
        let scratch = marked(1)?;
        for mfn in others()? {
            let source = GnttabCopyPtr { u: mfn, domid: DOMID_SELF, ..Default::default() };
            no_copy(&scratch, source, 0, &[])?;
        }
        Ok(())
    }

    pub(super) fn copy_anothers(_: &Env) -> Verdict {
        let scratch = marked(1)?;
        for mfn in others()?.into_iter().step_by(8) {
            let source = GnttabCopyPtr { u: mfn, domid: 0, ..Default::default() };
            no_copy(&scratch, source, 0, &[GNTST_PERMISSION_DENIED])?;
        }
        Ok(())
    }

    pub(super) fn copy_not_for_us(_: &Env) -> Verdict {
        let scratch = marked(2)?;
        let me = own_domid()?;
        let other = grant(if me == 0 { NO_DOMAIN } else { 0 }, scratch.mfn(1), true)?;
        let source = GnttabCopyPtr { u: other.number().raw().into(), domid: me, ..Default::default() };
        no_copy(&scratch, source, GNTCOPY_SOURCE_GREF, &[])
    }

    pub(super) fn copy_ended(_: &Env) -> Verdict {
        let scratch = marked(2)?;
        let me = own_domid()?;
        let ended = grant(me, scratch.mfn(1), true)?;
        let number = ended.number().raw();
        drop(ended);
        let source = GnttabCopyPtr { u: number.into(), domid: me, ..Default::default() };
        no_copy(&scratch, source, GNTCOPY_SOURCE_GREF, &[])
    }

    pub(super) fn references(_: &Env) -> Verdict {
        let scratch = marked(1)?;
        for reference in 0..64 {
            let (status, _) = map_ref(0, reference, GNTMAP_HOST_MAP | GNTMAP_READONLY, scratch.at(0));
            ensure!((i16::MIN + 1..0).contains(&status), "mapping reference {reference}: status {status}");
            ensure_eq!(leaf(scratch.at(0)), 0, "the entry after reference {reference} was refused");
            let source = GnttabCopyPtr { u: reference.into(), domid: 0, ..Default::default() };
            no_copy(&scratch, source, GNTCOPY_SOURCE_GREF, &[])?;
        }
        Ok(())
    }
}
