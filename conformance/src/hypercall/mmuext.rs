//! `mmuext_op`: pins and base pointers.

hypercall_cases! {
    "mmuext.pin" = pin {
        title: "a pinned L1 stays a table, unpinned it is a page again",
        rule: "MMUEXT_PIN_L1_TABLE makes a frame a page table that cannot be written until MMUEXT_UNPIN_TABLE.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE",
    }
    "mmuext.pin-twice" = pin_twice {
        title: "a second pin, and a second unpin",
        rule: "Pinning what is pinned and unpinning what is not gives EINVAL.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE",
    }
    "mmuext.pin-other-level" = pin_other_level {
        title: "an L1 pinned as something else",
        rule: "A frame pinned at one level is refused at another.",
        source: "xen.h, MMUEXT_PIN_L2_TABLE",
    }
    "mmuext.pin-writable" = pin_writable {
        title: "a page that is writable",
        rule: "A frame with a writable mapping is not pinned.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "mmuext.pin-bad-entry" = pin_bad_entry {
        title: "a table with one bad entry",
        rule: "A table with an entry that mmu_update would refuse is not pinned, and nothing of it stays taken.",
        source: "xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "mmuext.pin-tree" = pin_tree {
        title: "a tree of four levels",
        rule: "MMUEXT_PIN_L4_TABLE makes tables of all that it leads to; after MMUEXT_UNPIN_TABLE all are pages again.",
        source: "xen.h, MMUEXT_PIN_L4_TABLE",
    }
    "mmuext.new-baseptr" = new_baseptr {
        title: "another top table, and back",
        rule: "MMUEXT_NEW_BASEPTR makes an L4 the one in use: cr3 names it, and its entries count.",
        source: "xen.h, MMUEXT_NEW_BASEPTR",
    }
    "mmuext.baseptr-in-use" = baseptr_in_use {
        title: "the top table in use is unpinned",
        rule: "A table stays one while it is the base pointer, pinned or not.",
        source: "xen.h, MMUEXT_NEW_BASEPTR, MMUEXT_UNPIN_TABLE",
    }
    "mmuext.new-baseptr-bad" = new_baseptr_bad {
        title: "what is no L4",
        rule: "MMUEXT_NEW_BASEPTR refuses a frame that is not an L4, and the old one stays.",
        source: "xen.h, MMUEXT_NEW_BASEPTR",
    }
    "mmuext.user-baseptr" = user_baseptr {
        title: "the user's top table is set and taken away",
        rule: "MMUEXT_NEW_USER_BASEPTR takes an L4 for user mode, and 0 for none.",
        source: "xen.h, MMUEXT_NEW_USER_BASEPTR",
    }
    "mmuext.user-baseptr-bad" = user_baseptr_bad {
        title: "what is no L4, for the user",
        rule: "MMUEXT_NEW_USER_BASEPTR refuses a frame that is not an L4.",
        source: "xen.h, MMUEXT_NEW_USER_BASEPTR",
    }

}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::mmu::*;

    /// Makes a page that no mapping can write, as a page table must be.
    fn table() -> Verdict<Scratch> {
        let scratch = Scratch::new(1);
        given("read-only", scratch.protect(0))?;
        Ok(scratch)
    }

    pub(super) fn pin(_: &Env) -> Verdict {
        let scratch = table()?;
        let mfn = scratch.mfn(0);
        done("pin", extended(MMUEXT_PIN_L1_TABLE, mfn, 0))?;
        let writable = scratch.unprotect(0);
        done("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0))?;
        refused("writable while pinned", writable, &[EBUSY, EINVAL])?;
        done("writable after", scratch.unprotect(0))?;
        store("writing to it", scratch.page(0), 1)
    }

    pub(super) fn pin_twice(_: &Env) -> Verdict {
        let scratch = table()?;
        let mfn = scratch.mfn(0);
        refused("unpin before", extended(MMUEXT_UNPIN_TABLE, mfn, 0), &[EINVAL])?;
        done("pin", extended(MMUEXT_PIN_L1_TABLE, mfn, 0))?;
        let again = extended(MMUEXT_PIN_L1_TABLE, mfn, 0);
        done("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0))?;
        refused("pin again", again, &[EINVAL])?;
        refused("unpin again", extended(MMUEXT_UNPIN_TABLE, mfn, 0), &[EINVAL])
    }

    pub(super) fn pin_other_level(_: &Env) -> Verdict {
        let scratch = table()?;
        let mfn = scratch.mfn(0);
        done("pin", extended(MMUEXT_PIN_L1_TABLE, mfn, 0))?;
        let others =
            [MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE].map(|cmd| extended(cmd, mfn, 0));
        done("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0))?;
        for got in others {
            refused("another level", got, &[EINVAL, EBUSY])?;
        }
        done("as an L2 after", extended(MMUEXT_PIN_L2_TABLE, mfn, 0))?;
        done("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0))
    }

    pub(super) fn pin_writable(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for cmd in [MMUEXT_PIN_L1_TABLE, MMUEXT_PIN_L2_TABLE, MMUEXT_PIN_L3_TABLE, MMUEXT_PIN_L4_TABLE] {
            refused("pin", extended(cmd, scratch.mfn(0), 0), &[EINVAL, EBUSY])?;
        }
        store("writing to it", scratch.page(0), 1)
    }

    pub(super) fn pin_bad_entry(_: &Env) -> Verdict {
        let scratch = Scratch::new(2);
        for slot in 0..511 {
            store("an entry", scratch.page(0) + slot * 8, scratch.mfn(1) << 12 | RW)?;
        }
        store("the last", scratch.page(0) + 511 * 8, base() << 12 | RW)?;
        done("read-only", scratch.protect(0))?;
        refused("pin", extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(0), 0), &[EINVAL, EBUSY, EPERM])?;
        done("writable", scratch.unprotect(0))?;
        // Only its own mapping holds the other page as writable.
        done("read-only", scratch.protect(1))?;
        done("pin of what it led to", extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(1), 0))?;
        done("unpin", extended(MMUEXT_UNPIN_TABLE, scratch.mfn(1), 0))
    }

    pub(super) fn pin_tree(_: &Env) -> Verdict {
        let scratch = Scratch::new(5);
        store("a word", scratch.page(4), 0x77)?;
        for level in 0..4 {
            // L4, L3, L2, L1, page.
            let bits = if level < 3 { RW | pte::US } else { RW };
            store("an entry", scratch.page(level) + 3 * 8, scratch.mfn(level + 1) << 12 | bits)?;
        }
        for level in 0..4 {
            done("read-only", scratch.protect(level))?;
        }
        done("pin", extended(MMUEXT_PIN_L4_TABLE, scratch.mfn(0), 0))?;
        let writable = [0, 1, 2, 3].map(|level| scratch.unprotect(level));
        let unpin = [1, 2, 3].map(|level| extended(MMUEXT_UNPIN_TABLE, scratch.mfn(level), 0));
        let page = scratch.protect(4);
        let pin_page = extended(MMUEXT_PIN_L1_TABLE, scratch.mfn(4), 0);
        done("unpin", extended(MMUEXT_UNPIN_TABLE, scratch.mfn(0), 0))?;
        for got in writable {
            refused("a table of the tree is writable", got, &[EBUSY, EINVAL])?;
        }
        for got in unpin {
            refused("the unpin of what was not pinned itself", got, &[EINVAL])?;
        }
        done("the page read-only elsewhere", page)?;
        refused("pin of a page that the tree can write", pin_page, &[EBUSY, EINVAL])?;
        for level in 0..5 {
            done("writable after", scratch.unprotect(level))?;
        }
        Ok(())
    }

    /// Makes a copy of the L4 in use, and pins the copy.
    fn other_base() -> Verdict<Scratch> {
        let scratch = Scratch::new(1);
        for slot in (0..512).filter(|slot| !(256..272).contains(slot)) {
            store("an entry", scratch.page(0) + slot as u64 * 8, entry(base(), slot))?;
        }
        given("read-only", scratch.protect(0))?;
        given("pin", extended(MMUEXT_PIN_L4_TABLE, scratch.mfn(0), 0))?;
        Ok(scratch)
    }

    pub(super) fn new_baseptr(_: &Env) -> Verdict {
        let scratch = other_base()?;
        let old = base();
        let got = extended(MMUEXT_NEW_BASEPTR, scratch.mfn(0), 0);
        let cr3 = base();
        let m2p = probe::read(M2P);
        let back = extended(MMUEXT_NEW_BASEPTR, old, 0);
        let unpin = extended(MMUEXT_UNPIN_TABLE, scratch.mfn(0), 0);
        done("the new base", got)?;
        ensure_eq!(cr3, scratch.mfn(0), "cr3");
        ensure!(m2p.is_ok(), "the M2P under the new base: {m2p:x?}");
        done("the old base", back)?;
        ensure_eq!(base(), old, "cr3 at last");
        done("unpin", unpin)?;
        done("writable", scratch.unprotect(0))
    }

    pub(super) fn baseptr_in_use(_: &Env) -> Verdict {
        let scratch = other_base()?;
        let old = base();
        let got = extended(MMUEXT_NEW_BASEPTR, scratch.mfn(0), 0);
        let unpin = extended(MMUEXT_UNPIN_TABLE, scratch.mfn(0), 0);
        let writable = scratch.unprotect(0);
        let back = extended(MMUEXT_NEW_BASEPTR, old, 0);
        done("the new base", got)?;
        done("unpin", unpin)?;
        refused("writable while in use", writable, &[EBUSY, EINVAL])?;
        done("the old base", back)?;
        done("writable", scratch.unprotect(0))
    }

    pub(super) fn new_baseptr_bad(_: &Env) -> Verdict {
        bad_base(MMUEXT_NEW_BASEPTR)
    }

    fn bad_base(cmd: u32) -> Verdict {
        let scratch = Scratch::new(1);
        let old = base();
        let [_, l3, l2, l1] = tables(scratch.at(0));
        for mfn in [scratch.mfn(0), l1, l2, l3, end_of_memory() + 1] {
            refused("a new base", extended(cmd, mfn, 0), &[EINVAL, EBUSY, EPERM])?;
            ensure_eq!(base(), old, "cr3");
        }
        Ok(())
    }

    pub(super) fn user_baseptr(_: &Env) -> Verdict {
        for _ in 0..3 {
            done("the user's base", extended(MMUEXT_NEW_USER_BASEPTR, base(), 0))?;
            done("the same again", extended(MMUEXT_NEW_USER_BASEPTR, base(), 0))?;
            done("none", extended(MMUEXT_NEW_USER_BASEPTR, 0, 0))?;
        }
        let scratch = other_base()?;
        done("another", extended(MMUEXT_NEW_USER_BASEPTR, scratch.mfn(0), 0))?;
        done("unpin", extended(MMUEXT_UNPIN_TABLE, scratch.mfn(0), 0))?;
        let writable = scratch.unprotect(0);
        done("none", extended(MMUEXT_NEW_USER_BASEPTR, 0, 0))?;
        refused("writable while in use", writable, &[EBUSY, EINVAL])?;
        done("writable", scratch.unprotect(0))
    }

    pub(super) fn user_baseptr_bad(_: &Env) -> Verdict {
        bad_base(MMUEXT_NEW_USER_BASEPTR)
    }
}
