//! `mmuext_op`: pins, base pointers, flushes, whole pages.

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
    "mmuext.flush-local" = flush_local {
        title: "the whole TLB of this vCPU",
        rule: "After MMUEXT_TLB_FLUSH_LOCAL an updated entry counts.",
        source: "xen.h, MMUEXT_TLB_FLUSH_LOCAL",
    }
    "mmuext.invlpg-local" = invlpg_local {
        title: "one address of this vCPU",
        rule: "After MMUEXT_INVLPG_LOCAL of its address an updated entry counts.",
        source: "xen.h, MMUEXT_INVLPG_LOCAL",
    }
    "mmuext.flush-multi" = flush_multi {
        title: "the whole TLB of a set of vCPUs",
        rule: "After MMUEXT_TLB_FLUSH_MULTI for a set with this vCPU in it an updated entry counts.",
        source: "xen.h, MMUEXT_TLB_FLUSH_MULTI",
    }
    "mmuext.invlpg-multi" = invlpg_multi {
        title: "one address of a set of vCPUs",
        rule: "After MMUEXT_INVLPG_MULTI for a set with this vCPU in it an updated entry counts.",
        source: "xen.h, MMUEXT_INVLPG_MULTI",
    }
    "mmuext.flush-all" = flush_all {
        title: "the whole TLB of all vCPUs",
        rule: "After MMUEXT_TLB_FLUSH_ALL an updated entry counts.",
        source: "xen.h, MMUEXT_TLB_FLUSH_ALL",
    }
    "mmuext.invlpg-all" = invlpg_all {
        title: "one address of all vCPUs",
        rule: "After MMUEXT_INVLPG_ALL of its address an updated entry counts.",
        source: "xen.h, MMUEXT_INVLPG_ALL",
    }
    "mmuext.multi-fault" = multi_fault {
        title: "a set of vCPUs that cannot be read",
        rule: "MMUEXT_TLB_FLUSH_MULTI and MMUEXT_INVLPG_MULTI refuse a set that is not mapped.",
        source: "xen.h, MMUEXT_TLB_FLUSH_MULTI, vcpumask",
    }
    "mmuext.flush-cache" = flush_cache {
        title: "the cache",
        rule: "MMUEXT_FLUSH_CACHE gives 0 to a domain that has devices, and is refused to another.",
        source: "xen.h, MMUEXT_FLUSH_CACHE",
    }
    "mmuext.clear-page" = clear_page {
        title: "a page of zeros",
        rule: "MMUEXT_CLEAR_PAGE fills a frame of the domain with zeros, and nothing beside it.",
        source: "xen.h, MMUEXT_CLEAR_PAGE",
    }
    "mmuext.clear-table" = clear_table {
        title: "a page table is not cleared",
        rule: "MMUEXT_CLEAR_PAGE refuses a frame that is a page table.",
        source: "xen.h, MMUEXT_CLEAR_PAGE",
    }
    "mmuext.copy-page" = copy_page {
        title: "a page from another",
        rule: "MMUEXT_COPY_PAGE copies the frame src_mfn to the frame mfn.",
        source: "xen.h, MMUEXT_COPY_PAGE",
    }
    "mmuext.copy-to-table" = copy_to_table {
        title: "a page table is not copied to",
        rule: "MMUEXT_COPY_PAGE refuses a target that is a page table.",
        source: "xen.h, MMUEXT_COPY_PAGE",
    }
    "mmuext.superpages" = superpages {
        title: "superpages are marked by nobody",
        rule: "MMUEXT_MARK_SUPER and MMUEXT_UNMARK_SUPER are refused where superpages are not allowed.",
        source: "xen.h, MMUEXT_MARK_SUPER, MMUEXT_UNMARK_SUPER",
    }
    "mmuext.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "xen.h, struct mmuext_op",
    }
    "mmuext.batch" = batch {
        title: "operations in a row, until one is refused",
        rule: "mmuext_op does its operations in order, stops at the first refused, and writes the number done to success_count.",
        source: "xen.h, HYPERVISOR_mmuext_op()",
    }
    "mmuext.fault" = fault {
        title: "operations that cannot be read",
        rule: "mmuext_op gives EFAULT where it cannot read an operation.",
        source: "xen.h, HYPERVISOR_mmuext_op()",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use pvrt::hypercall::mmu::pte;
    use ring_abi::mmu::*;

    /// A page that nothing can write, which is what a table must be.
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
        // Nothing holds the other page as writable but its own mapping.
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

    /// An L4 like the one in use, pinned; and what undoes it.
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

    /// Updates an entry that the TLB has, flushes, and looks whether the new one counts.
    fn flushed(what: &str, flush: impl Fn(u64) -> i64) -> Verdict {
        let scratch = Scratch::new(2);
        store("page 0", scratch.page(0), 1)?;
        store("page 1", scratch.page(1), 2)?;
        let at = scratch.entry_address(0);
        for n in [0, 1, 0] {
            done("mmu_update", update(at, scratch.mfn(n) << 12 | RW))?;
            done(what, flush(scratch.at(0)))?;
            ensure_eq!(load("the address", scratch.at(0))?, n as u64 + 1, "what it shows");
        }
        Ok(())
    }

    /// A set of all vCPUs.
    static EVERYONE: u64 = u64::MAX;

    pub(super) fn flush_local(_: &Env) -> Verdict {
        flushed("flush", |_| extended(MMUEXT_TLB_FLUSH_LOCAL, 0, 0))
    }

    pub(super) fn invlpg_local(_: &Env) -> Verdict {
        flushed("flush", |va| extended(MMUEXT_INVLPG_LOCAL, va, 0))
    }

    pub(super) fn flush_multi(_: &Env) -> Verdict {
        flushed("flush", |_| extended(MMUEXT_TLB_FLUSH_MULTI, 0, (&raw const EVERYONE) as u64))
    }

    pub(super) fn invlpg_multi(_: &Env) -> Verdict {
        flushed("flush", |va| extended(MMUEXT_INVLPG_MULTI, va, (&raw const EVERYONE) as u64))
    }

    pub(super) fn flush_all(_: &Env) -> Verdict {
        flushed("flush", |_| extended(MMUEXT_TLB_FLUSH_ALL, 0, 0))
    }

    pub(super) fn invlpg_all(_: &Env) -> Verdict {
        flushed("flush", |va| extended(MMUEXT_INVLPG_ALL, va, 0))
    }

    pub(super) fn multi_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for cmd in [MMUEXT_TLB_FLUSH_MULTI, MMUEXT_INVLPG_MULTI] {
            refused("a set nowhere", extended(cmd, scratch.page(0), scratch.at(0)), &[EINVAL, EFAULT])?;
        }
        Ok(())
    }

    pub(super) fn flush_cache(env: &Env) -> Verdict {
        let got = extended(MMUEXT_FLUSH_CACHE, 0, 0);
        if env.privileged {
            return done("flush_cache", got);
        }
        ensure!(got == 0 || got == EACCES.negated() || got == EPERM.negated(), "flush_cache: {}", Got(got));
        Ok(())
    }

    pub(super) fn clear_page(_: &Env) -> Verdict {
        let scratch = Scratch::new(3);
        for page in 0..3 {
            for word in 0..512 {
                store("a word", scratch.page(page) + word * 8, !word)?;
            }
        }
        done("clear_page", extended(MMUEXT_CLEAR_PAGE, scratch.mfn(1), 0))?;
        for word in 0..512 {
            ensure_eq!(load("a word", scratch.page(1) + word * 8)?, 0, "word {word}");
            ensure_eq!(load("a word", scratch.page(0) + word * 8)?, !word, "word {word} of the page before");
            ensure_eq!(load("a word", scratch.page(2) + word * 8)?, !word, "word {word} of the page behind");
        }
        Ok(())
    }

    pub(super) fn clear_table(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let tables = tables(scratch.at(0));
        for mfn in tables {
            refused("clear_page", extended(MMUEXT_CLEAR_PAGE, mfn, 0), &[EINVAL, EBUSY, EPERM])?;
        }
        ensure_eq!(super::super::kit::tables(scratch.at(0)), tables, "the tables");
        Ok(())
    }

    pub(super) fn copy_page(_: &Env) -> Verdict {
        let scratch = Scratch::new(2);
        for word in 0..512 {
            store("a word", scratch.page(0) + word * 8, word * 0x0101_0101)?;
        }
        done("copy_page", extended(MMUEXT_COPY_PAGE, scratch.mfn(1), scratch.mfn(0)))?;
        for word in 0..512 {
            ensure_eq!(load("a word", scratch.page(1) + word * 8)?, word * 0x0101_0101, "word {word}");
        }
        // What is read may be a table.
        let table = tables(scratch.at(0))[3];
        done("from a table", extended(MMUEXT_COPY_PAGE, scratch.mfn(1), table))?;
        ensure_eq!(load("a word", scratch.page(1))?, entry(table, 0), "its first entry");
        Ok(())
    }

    pub(super) fn copy_to_table(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for mfn in tables(scratch.at(0)) {
            refused("copy_page", extended(MMUEXT_COPY_PAGE, mfn, scratch.mfn(0)), &[EINVAL, EBUSY, EPERM])?;
        }
        Ok(())
    }

    pub(super) fn superpages(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for cmd in [MMUEXT_MARK_SUPER, MMUEXT_UNMARK_SUPER] {
            refused(
                "superpages",
                extended(cmd, scratch.mfn(0) & !511, 0),
                &[ENOSYS, EOPNOTSUPP, EINVAL, EPERM],
            )?;
        }
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for cmd in [14, 21, 255, u32::MAX] {
            refused("mmuext_op", extended(cmd, 0, 0), &[ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn batch(_: &Env) -> Verdict {
        let scratch = table()?;
        let mfn = scratch.mfn(0);
        let one = |cmd| MmuextOp { cmd, arg1: mfn, ..MmuextOp::default() };
        let list = [
            one(MMUEXT_PIN_L1_TABLE),
            one(MMUEXT_TLB_FLUSH_LOCAL),
            one(MMUEXT_PIN_L1_TABLE),
            one(MMUEXT_UNPIN_TABLE),
        ];
        let mut count = 0x5555u32;
        let args = [list.as_ptr() as u64, 4, (&raw mut count) as u64, DOMID_SELF.into(), 0];
        let got = call(__HYPERVISOR_MMUEXT_OP, args);
        let unpin = extended(MMUEXT_UNPIN_TABLE, mfn, 0);
        refused("the list", got, &[EINVAL])?;
        ensure_eq!(count, 2, "success_count");
        done("the pin stands", unpin)?;
        let list = [one(MMUEXT_PIN_L1_TABLE), one(MMUEXT_UNPIN_TABLE)];
        let args = [list.as_ptr() as u64, 2, (&raw mut count) as u64, DOMID_SELF.into(), 0];
        done("two operations", call(__HYPERVISOR_MMUEXT_OP, args))?;
        ensure_eq!(count, 2, "success_count");
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused(
            "mmuext_op",
            call(__HYPERVISOR_MMUEXT_OP, [scratch.at(0), 1, 0, DOMID_SELF.into(), 0]),
            &[EFAULT],
        )
    }
}
