//! GDT, LDT and single descriptors.

hypercall_cases! {
    "descriptors.set-gdt" = set_gdt {
        title: "a GDT of the guest's, and its data segment",
        rule: "set_gdt makes the listed frames the GDT, whose segments can be loaded.",
        source: "xen.h, HYPERVISOR_set_gdt; arch-x86/xen.h",
    }
    "descriptors.gdt-not-writable" = gdt_not_writable {
        title: "a GDT cannot be written, and can once it is none",
        rule: "A frame of the GDT cannot have a writable mapping while it is one.",
        source: "arch-x86/xen.h, HYPERVISOR_set_gdt",
    }
    "descriptors.gdt-writable-frame" = gdt_writable_frame {
        title: "a writable page is no GDT",
        rule: "set_gdt refuses a frame that has a writable mapping.",
        source: "arch-x86/xen.h, HYPERVISOR_set_gdt",
    }
    "descriptors.gdt-too-large" = gdt_too_large {
        title: "more entries than are the guest's",
        rule: "set_gdt refuses more than FIRST_RESERVED_GDT_ENTRY entries with EINVAL.",
        source: "arch-x86/xen.h, FIRST_RESERVED_GDT_ENTRY",
    }
    "descriptors.gdt-fault" = gdt_fault {
        title: "a list of frames that cannot be read",
        rule: "set_gdt gives EFAULT where it cannot read the list.",
        source: "xen.h, HYPERVISOR_set_gdt",
    }
    "descriptors.flat-selectors" = flat_selectors {
        title: "the hypervisor's flat segments are there",
        rule: "FLAT_KERNEL_SS and the flat 32-bit data segment can be loaded whatever the guest's GDT.",
        source: "arch-x86/xen-x86_64.h, FLAT_RING3_SS64, FLAT_RING3_DS32",
    }
    "descriptors.update" = update_one {
        title: "a descriptor in the GDT",
        rule: "update_descriptor writes one descriptor at its machine address, and it counts at the next load.",
        source: "xen.h, HYPERVISOR_update_descriptor",
    }
    "descriptors.update-dpl" = update_dpl {
        title: "a segment for level 0",
        rule: "A descriptor of code or data never has a privilege level of the hypervisor's.",
        source: "arch-x86/xen.h",
    }
    "descriptors.update-system" = update_system {
        title: "gates, TSS and LDT descriptors",
        rule: "update_descriptor refuses a system descriptor other than a call gate with EINVAL.",
        source: "xen.h, HYPERVISOR_update_descriptor",
    }
    "descriptors.update-misaligned" = update_misaligned {
        title: "addresses that no descriptor has",
        rule: "update_descriptor refuses an address that is not a multiple of 8 or not the domain's.",
        source: "xen.h, HYPERVISOR_update_descriptor",
    }
    "descriptors.update-plain" = update_plain {
        title: "a descriptor in a plain page",
        rule: "update_descriptor of a page that is no descriptor table writes the page.",
        source: "xen.h, HYPERVISOR_update_descriptor",
    }
    "descriptors.ldt" = ldt {
        title: "an LDT, and its data segment",
        rule: "MMUEXT_SET_LDT makes read-only memory the LDT, whose segments can be loaded; 0 entries take it away.",
        source: "xen.h, MMUEXT_SET_LDT",
    }
    "descriptors.ldt-bad" = ldt_bad {
        title: "LDTs that cannot be",
        rule: "MMUEXT_SET_LDT refuses an address off a page and more than 8192 entries with EINVAL.",
        source: "xen.h, MMUEXT_SET_LDT",
    }
    "descriptors.null-selector" = null_selector {
        title: "empty entries and selectors beyond the end",
        rule: "The load of an empty descriptor or one beyond the table is a general protection fault with the selector as its error code.",
        source: "arch-x86/xen.h, HYPERVISOR_set_gdt",
    }
}

#[cfg(freestanding)]
mod body {
    #![allow(unsafe_code)] // loads of segment registers

    use super::super::kit::*;
    use core::arch::asm;
    use ring_abi::mmu::MMUEXT_SET_LDT;
    use ring_abi::segment::FIRST_RESERVED_GDT_ENTRY;

    /// Data of level 3, writable, flat.
    const DATA: u64 = 0x00cf_f300_0000_ffff;
    /// The same for level 0.
    const KERNEL_DATA: u64 = 0x00cf_9300_0000_ffff;
    /// Level bits of a descriptor.
    const DPL: u32 = 45;

    fn set(list: &[u64], entries: u64) -> i64 {
        call(__HYPERVISOR_SET_GDT, [list.as_ptr() as u64, entries, 0, 0, 0])
    }

    fn descriptor(at: u64, value: u64) -> i64 {
        call(__HYPERVISOR_UPDATE_DESCRIPTOR, [at, value, 0, 0, 0])
    }

    /// Loads ES; then makes it null again.
    fn load_es(selector: u16) -> Option<Trap> {
        // SAFETY: ES is not used; a trap is caught.
        let trap = attempt(|| unsafe { asm!("mov es, {0:x}", in(reg) selector) });
        // SAFETY: the null selector can always be loaded.
        unsafe { asm!("mov es, {0:x}", in(reg) 0u16) };
        trap
    }

    /// A GDT of one page, removed on drop.
    struct Gdt(Scratch);

    impl Gdt {
        fn new(first: u64) -> Verdict<Self> {
            let scratch = Scratch::new(1);
            store("a descriptor", scratch.page(0) + 8, first)?;
            given("read-only", scratch.protect(0))?;
            given("set_gdt", set(&[scratch.mfn(0)], 512))?;
            Ok(Self(scratch))
        }
    }

    impl Drop for Gdt {
        fn drop(&mut self) {
            set(&[], 0);
        }
    }

    pub(super) fn set_gdt(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a descriptor", scratch.page(0) + 8, DATA)?;
        done("read-only", scratch.protect(0))?;
        done("set_gdt", set(&[scratch.mfn(0)], 512))?;
        let loaded = load_es(8 | 3);
        let empty = load_es(16 | 3);
        done("no GDT", set(&[], 0))?;
        untrapped("the data segment", loaded)?;
        trapped("an empty entry", empty, 13)?;
        trapped("the data segment after", load_es(8 | 3), 13).map(|_| ())
    }

    pub(super) fn gdt_not_writable(_: &Env) -> Verdict {
        let gdt = Gdt::new(DATA)?;
        refused("writable", gdt.0.unprotect(0), &[EBUSY, EINVAL])?;
        trapped("a write", probe::write(gdt.0.page(0) + 16, DATA), 14)?;
        done("no GDT", set(&[], 0))?;
        done("writable after", gdt.0.unprotect(0))
    }

    pub(super) fn gdt_writable_frame(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("set_gdt", set(&[scratch.mfn(0)], 512), &[EINVAL, EBUSY])?;
        store("the page", scratch.page(0), 1)
    }

    pub(super) fn gdt_too_large(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        done("read-only", scratch.protect(0))?;
        let list = [scratch.mfn(0); 16];
        for entries in [FIRST_RESERVED_GDT_ENTRY as u64 + 1, 8192, 1 << 20] {
            refused("set_gdt", set(&list, entries), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn gdt_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("set_gdt", call(__HYPERVISOR_SET_GDT, [scratch.at(0), 512, 0, 0, 0]), &[EFAULT])
    }

    pub(super) fn flat_selectors(_: &Env) -> Verdict {
        untrapped("the flat data segment", load_es(0xe02b))?;
        let gdt = Gdt::new(DATA)?;
        untrapped("the flat data segment beside another GDT", load_es(0xe02b))?;
        drop(gdt);
        Ok(())
    }

    pub(super) fn update_one(_: &Env) -> Verdict {
        let gdt = Gdt::new(0)?;
        trapped("the empty entry", load_es(8 | 3), 13)?;
        done("update_descriptor", descriptor((gdt.0.mfn(0) << 12) + 8, DATA))?;
        ensure_eq!(load("the table", gdt.0.page(0) + 8)? & !(1 << 40), DATA & !(1 << 40), "the entry");
        untrapped("the data segment", load_es(8 | 3))?;
        done("update_descriptor", descriptor((gdt.0.mfn(0) << 12) + 8, 0))?;
        trapped("the entry emptied", load_es(8 | 3), 13).map(|_| ())
    }

    pub(super) fn update_dpl(_: &Env) -> Verdict {
        let gdt = Gdt::new(0)?;
        let got = descriptor((gdt.0.mfn(0) << 12) + 8, KERNEL_DATA);
        let value = load("the table", gdt.0.page(0) + 8)?;
        // The hypervisor either raises the descriptor's level or refuses the descriptor.
        ensure!(got == 0 && value >> DPL & 3 >= 1 || got < 0 && value == 0, "{}, {value:#x}", Got(got));
        Ok(())
    }

    pub(super) fn update_system(_: &Env) -> Verdict {
        let gdt = Gdt::new(0)?;
        for (name, value) in [
            ("TSS", 0x0000_8900_0000_0067),
            ("LDT", 0x0000_8200_0000_0fff),
            ("interrupt gate", 0x0000_ee00_e008_1000),
            ("trap gate", 0x0000_ef00_e008_1000),
            ("task gate", 0x0000_e500_0000_0000),
        ] {
            refused(name, descriptor((gdt.0.mfn(0) << 12) + 8, value), &[EINVAL])?;
            ensure_eq!(load("the table", gdt.0.page(0) + 8)?, 0, "the entry after a {name}");
        }
        Ok(())
    }

    pub(super) fn update_misaligned(_: &Env) -> Verdict {
        let gdt = Gdt::new(0)?;
        for offset in [1, 4, 12] {
            refused("off by bytes", descriptor((gdt.0.mfn(0) << 12) + offset, DATA), &[EINVAL])?;
        }
        refused("beyond memory", descriptor((end_of_memory() + 1) << 12, DATA), &[EINVAL, EPERM])?;
        let table = tables(gdt.0.at(0))[3];
        refused("in a page table", descriptor(table << 12, DATA), &[EINVAL, EBUSY])
    }

    pub(super) fn update_plain(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        done("update_descriptor", descriptor((scratch.mfn(0) << 12) + 0x18, DATA))?;
        ensure_eq!(load("the page", scratch.page(0) + 0x18)?, DATA, "the word");
        ensure_eq!(load("the page", scratch.page(0) + 0x20)?, 0, "the word behind");
        Ok(())
    }

    pub(super) fn ldt(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a descriptor", scratch.page(0) + 8, DATA)?;
        done("read-only", scratch.protect(0))?;
        done("set_ldt", extended(MMUEXT_SET_LDT, scratch.page(0), 16))?;
        let loaded = load_es(8 | 7);
        let empty = load_es(16 | 7);
        let beyond = load_es(16 * 8 | 7);
        let writable = scratch.unprotect(0);
        done("no LDT", extended(MMUEXT_SET_LDT, 0, 0))?;
        untrapped("the data segment", loaded)?;
        trapped("an empty entry", empty, 13)?;
        trapped("an entry beyond", beyond, 13)?;
        refused("writable while in use", writable, &[EBUSY, EINVAL])?;
        trapped("the data segment after", load_es(8 | 7), 13)?;
        done("writable", scratch.unprotect(0))
    }

    pub(super) fn ldt_bad(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused("off a page", extended(MMUEXT_SET_LDT, scratch.page(0) + 8, 16), &[EINVAL])?;
        for entries in [8193, 1 << 20, u64::from(u32::MAX)] {
            refused("too many entries", extended(MMUEXT_SET_LDT, scratch.page(0), entries), &[EINVAL])?;
        }
        done("8192 entries", extended(MMUEXT_SET_LDT, scratch.page(0), 8192))?;
        done("no LDT", extended(MMUEXT_SET_LDT, 0, 0))
    }

    pub(super) fn null_selector(_: &Env) -> Verdict {
        let gdt = Gdt::new(DATA)?;
        for selector in [16u16, 511 * 8] {
            let trap = trapped("an empty entry", load_es(selector | 3), 13)?;
            ensure_eq!(trap.error, u64::from(selector), "the error code");
        }
        untrapped("the null selector", load_es(0))?;
        drop(gdt);
        Ok(())
    }
}
