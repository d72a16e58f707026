//! `mmuext_op`: TLB flushes, operations on whole pages, and the results of a batch.

hypercall_cases! {
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
    use ring_abi::mmu::*;

    /// Updates an entry that the TLB holds, flushes, and checks that the new entry is in force.
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

    /// A bitmap of all vCPUs.
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
        // The source of a copy may be a page table.
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
        let scratch = Scratch::new(1);
        given("read-only", scratch.protect(0))?;
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
