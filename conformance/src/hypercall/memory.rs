//! `memory_op`: reservations, exchange, the M2P, memory maps.

hypercall_cases! {
    "memory.current-reservation" = current_reservation {
        title: "the count follows what is taken and given back",
        rule: "XENMEM_current_reservation gives the pages that the domain has.",
        source: "memory.h, XENMEM_current_reservation",
    }
    "memory.maximum-reservation" = maximum_reservation {
        title: "the limit is not below what there is",
        rule: "XENMEM_maximum_reservation gives the pages that the domain may have, which are at least those it has.",
        source: "memory.h, XENMEM_maximum_reservation",
    }
    "memory.populate" = populate {
        title: "a page for a number of the guest's choice",
        rule: "XENMEM_populate_physmap gives the number of extents done, replaces each number by the frame taken for it, and enters it in the M2P.",
        source: "memory.h, XENMEM_populate_physmap",
    }
    "memory.populate-order" = populate_order {
        title: "an extent of four pages",
        rule: "An extent of order n is 2^n frames in a row, for as many page numbers in a row.",
        source: "memory.h, struct xen_memory_reservation, extent_order",
    }
    "memory.populate-several" = populate_several {
        title: "eight extents in one call",
        rule: "All extents of a list are done, each frame another.",
        source: "memory.h, struct xen_memory_reservation, nr_extents",
    }
    "memory.populate-address-bits" = populate_address_bits {
        title: "frames within a number of address bits",
        rule: "XENMEMF_address_bits(n) bounds the machine addresses of what is taken to n bits; what cannot be had is not done.",
        source: "memory.h, XENMEMF_address_bits",
    }
    "memory.populate-beyond-limit" = populate_beyond_limit {
        title: "more than the domain may have",
        rule: "Beyond the domain's limit XENMEM_populate_physmap does as many extents as it can and says how many.",
        source: "memory.h, XENMEM_populate_physmap",
        also: [DomU],
    }
    "memory.decrease" = decrease {
        title: "pages go back, and are the domain's no longer",
        rule: "XENMEM_decrease_reservation gives the number of extents freed, and their frames can be mapped no more.",
        source: "memory.h, XENMEM_decrease_reservation",
    }
    "memory.decrease-not-own" = decrease_not_own {
        title: "frames that are not the domain's",
        rule: "XENMEM_decrease_reservation stops at a frame that the domain does not own.",
        source: "memory.h, XENMEM_decrease_reservation",
    }
    "memory.increase" = increase {
        title: "pages without a number",
        rule: "XENMEM_increase_reservation gives the number of extents allocated and writes their frames to the list.",
        source: "memory.h, XENMEM_increase_reservation",
    }
    "memory.exchange" = exchange {
        title: "a page for another",
        rule: "XENMEM_exchange takes the frames of `in`, gives as many for the page numbers of `out`, counts them in nr_exchanged, and gives 0.",
        source: "memory.h, struct xen_memory_exchange",
    }
    "memory.exchange-contiguous" = exchange_contiguous {
        title: "four scattered pages for four in a row",
        rule: "Extents of different order may be exchanged where both sides hold the same number of pages.",
        source: "memory.h, struct xen_memory_exchange",
    }
    "memory.exchange-sizes" = exchange_sizes {
        title: "sides that hold different numbers of pages",
        rule: "XENMEM_exchange gives EINVAL unless both sides hold the same number of pages.",
        source: "memory.h, struct xen_memory_exchange",
    }
    "memory.exchange-mapped" = exchange_mapped {
        title: "a page that is mapped is not exchanged",
        rule: "XENMEM_exchange refuses frames that are in use, and the domain keeps them.",
        source: "memory.h, XENMEM_exchange",
    }
    "memory.order-too-large" = order_too_large {
        title: "extents larger than any machine",
        rule: "An extent order beyond what the domain may have is an error, or no extent done.",
        source: "memory.h, struct xen_memory_reservation, extent_order",
    }
    "memory.other-domain" = other_domain {
        title: "a domain that there is not",
        rule: "Nothing is allocated or freed for a domain that does not exist; what is asked of it gives ESRCH.",
        source: "memory.h, struct xen_memory_reservation, domid",
    }
    "memory.domain-zero" = domain_zero {
        title: "the control domain's reservation is not a guest's to see",
        rule: "An unprivileged domain may name itself alone: nothing is allocated for another, and what is asked of it gives EPERM.",
        source: "memory.h, struct xen_memory_reservation, domid",
        also: [DomU],
    }
    "memory.fault" = fault {
        title: "an argument that cannot be read",
        rule: "An argument that is not mapped gives EFAULT, or no extent done.",
        source: "memory.h",
    }
    "memory.extents-fault" = extents_fault {
        title: "a list of extents that runs into unmapped memory",
        rule: "The extents before the fault are done and counted.",
        source: "memory.h, struct xen_memory_reservation, extent_start",
    }
    "memory.unknown" = unknown {
        title: "a sub-operation that there is not",
        rule: "A sub-operation without a meaning gives ENOSYS.",
        source: "memory.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::memory::*;

    /// A page number beyond every other of this domain's.
    const FREE_PFN: u64 = 0x3_0000;

    fn ask<T>(command: u32, arg: &mut T) -> i64 {
        op(__HYPERVISOR_MEMORY_OP, command, arg)
    }

    fn reservation(extents: &mut [u64], order: u32) -> XenMemoryReservation {
        XenMemoryReservation {
            extent_start: extents.as_mut_ptr() as u64,
            nr_extents: extents.len() as u64,
            extent_order: order,
            domid: DOMID_SELF,
            ..Default::default()
        }
    }

    /// Frames taken for a case, given back on drop.
    struct Taken {
        frames: Vec<u64>,
        order: u32,
    }

    impl Taken {
        fn new(extents: &mut [u64], order: u32) -> Verdict<Self> {
            let got = ask(XENMEM_POPULATE_PHYSMAP, &mut reservation(extents, order));
            ensure!(got == extents.len() as i64, "populate_physmap of {}: {}", extents.len(), Got(got));
            Ok(Self { frames: extents.to_vec(), order })
        }
    }

    impl Drop for Taken {
        fn drop(&mut self) {
            ask(XENMEM_DECREASE_RESERVATION, &mut reservation(&mut self.frames, self.order));
        }
    }

    fn current() -> Verdict<u64> {
        value(
            "current_reservation",
            ask(XENMEM_CURRENT_RESERVATION, &mut XenMemoryDomain { domid: DOMID_SELF }),
        )
    }

    pub(super) fn current_reservation(_: &Env) -> Verdict {
        let before = current()?;
        ensure!(before > 256 && before >= pvrt::mem::usage().total_pages as u64 / 2, "{before} pages");
        let taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1, FREE_PFN + 2], 0)?;
        ensure_eq!(current()?, before + 3, "with three more");
        drop(taken);
        ensure_eq!(current()?, before, "without them");
        Ok(())
    }

    pub(super) fn maximum_reservation(_: &Env) -> Verdict {
        let arg = &mut XenMemoryDomain { domid: DOMID_SELF };
        let maximum = value("maximum_reservation", ask(XENMEM_MAXIMUM_RESERVATION, arg))?;
        ensure!(maximum >= current()?, "{maximum} pages, and there are {}", current()?);
        Ok(())
    }

    fn m2p_of(mfn: u64) -> Verdict<u64> {
        load("the M2P", M2P + mfn * 8)
    }

    /// Checks that a frame belongs to the domain: the frame can be mapped and written.
    fn works(mfn: u64) -> Verdict {
        let scratch = Scratch::new(1);
        done("mapping what was taken", map(scratch.at(0), mfn << 12 | RW))?;
        store("writing to it", scratch.at(0), mfn)?;
        ensure_eq!(load("reading it", scratch.at(0))?, mfn, "what it holds");
        Ok(())
    }

    pub(super) fn populate(_: &Env) -> Verdict {
        let taken = Taken::new(&mut [FREE_PFN + 7], 0)?;
        ensure!(
            taken.frames[0] != FREE_PFN + 7 || m2p_of(taken.frames[0])? == FREE_PFN + 7,
            "no frame was written"
        );
        ensure_eq!(m2p_of(taken.frames[0])?, FREE_PFN + 7, "its entry in the M2P");
        works(taken.frames[0])
    }

    pub(super) fn populate_order(_: &Env) -> Verdict {
        let taken = Taken::new(&mut [FREE_PFN], 2)?;
        for n in 0..4 {
            ensure_eq!(m2p_of(taken.frames[0] + n)?, FREE_PFN + n, "page {n}");
            works(taken.frames[0] + n)?;
        }
        Ok(())
    }

    pub(super) fn populate_several(_: &Env) -> Verdict {
        let mut list: Vec<u64> = (0..8).map(|n| FREE_PFN + n * 3).collect();
        let taken = Taken::new(&mut list, 0)?;
        for (n, mfn) in (0..).zip(&taken.frames) {
            ensure_eq!(m2p_of(*mfn)?, FREE_PFN + n * 3, "page {n}");
        }
        Ok(())
    }

    pub(super) fn populate_address_bits(_: &Env) -> Verdict {
        for bits in [24, 28, 32] {
            let mut list = [FREE_PFN, FREE_PFN + 1];
            let mut arg = XenMemoryReservation { mem_flags: bits, ..reservation(&mut list, 0) };
            let count = value("populate_physmap", ask(XENMEM_POPULATE_PHYSMAP, &mut arg))? as usize;
            ensure!(count <= 2, "{count} extents of two");
            let taken = Taken { frames: list[..count].to_vec(), order: 0 };
            for mfn in &taken.frames {
                ensure!(*mfn < 1 << (bits - 12), "{mfn:#x} for {bits} bits");
            }
        }
        Ok(())
    }

    pub(super) fn populate_beyond_limit(_: &Env) -> Verdict {
        let arg = &mut XenMemoryDomain { domid: DOMID_SELF };
        let room =
            value("maximum_reservation", ask(XENMEM_MAXIMUM_RESERVATION, arg))?.saturating_sub(current()?);
        require!(room < 4096, "the limit is {room} pages away");
        let mut list: Vec<u64> = (0..room + 8).map(|n| FREE_PFN + n).collect();
        let got = value("populate_physmap", ask(XENMEM_POPULATE_PHYSMAP, &mut reservation(&mut list, 0)))?;
        let taken = Taken { frames: list[..got as usize].to_vec(), order: 0 };
        ensure!(got <= room, "{got} pages, with room for {room}");
        drop(taken);
        Ok(())
    }

    pub(super) fn decrease(_: &Env) -> Verdict {
        let before = current()?;
        let mut taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1], 0)?;
        let mut frames = core::mem::take(&mut taken.frames);
        let got = ask(XENMEM_DECREASE_RESERVATION, &mut reservation(&mut frames, 0));
        ensure_eq!(value("decrease_reservation", got)?, 2, "the extents freed");
        ensure_eq!(current()?, before, "the pages that are left");
        let scratch = Scratch::new(1);
        for mfn in frames {
            let got = map(scratch.at(0), mfn << 12 | RW);
            ensure!(got < 0, "a page given back could be mapped: {mfn:#x}");
        }
        Ok(())
    }

    pub(super) fn decrease_not_own(_: &Env) -> Verdict {
        let taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1], 0)?;
        let mut list = [taken.frames[0], end_of_memory() + 1, taken.frames[1]];
        let got = ask(XENMEM_DECREASE_RESERVATION, &mut reservation(&mut list, 0));
        ensure_eq!(value("decrease_reservation", got)?, 1, "the extents freed");
        works(taken.frames[1])
    }

    pub(super) fn increase(_: &Env) -> Verdict {
        let before = current()?;
        let mut list = [u64::MAX; 2];
        let got = ask(XENMEM_INCREASE_RESERVATION, &mut reservation(&mut list, 0));
        ensure_eq!(value("increase_reservation", got)?, 2, "the extents allocated");
        let taken = Taken { frames: list.to_vec(), order: 0 };
        ensure_eq!(current()?, before + 2, "the pages");
        ensure!(list[0] != list[1] && list.iter().all(|mfn| *mfn < end_of_memory() + 1), "frames {list:x?}");
        works(taken.frames[0])?;
        works(taken.frames[1])
    }

    fn pair(give: &mut [u64], order_in: u32, take: &mut [u64], order_out: u32) -> XenMemoryExchange {
        XenMemoryExchange {
            r#in: reservation(give, order_in),
            out: reservation(take, order_out),
            nr_exchanged: 0,
        }
    }

    pub(super) fn exchange(_: &Env) -> Verdict {
        let before = current()?;
        let mut taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1], 0)?;
        let mut give = taken.frames.clone();
        let mut take = [FREE_PFN + 5, FREE_PFN + 6];
        let mut arg = pair(&mut give, 0, &mut take, 0);
        done("exchange", ask(XENMEM_EXCHANGE, &mut arg))?;
        taken.frames = take.to_vec();
        ensure_eq!(arg.nr_exchanged, 2, "nr_exchanged");
        for (n, mfn) in (5..).zip(take) {
            ensure_eq!(m2p_of(mfn)?, FREE_PFN + n, "the M2P of what was got");
            works(mfn)?;
        }
        ensure_eq!(current()?, before + 2, "the pages");
        Ok(())
    }

    pub(super) fn exchange_contiguous(_: &Env) -> Verdict {
        let mut taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1, FREE_PFN + 2, FREE_PFN + 3], 0)?;
        let mut give = taken.frames.clone();
        let mut take = [FREE_PFN];
        let mut arg = pair(&mut give, 0, &mut take, 2);
        let got = ask(XENMEM_EXCHANGE, &mut arg);
        // Free memory may be fragmented.
        require!(got != ENOMEM.negated(), "no four pages in a row are free");
        done("exchange", got)?;
        taken.frames = (0..4).map(|n| take[0] + n).collect();
        ensure_eq!(arg.nr_exchanged, 4, "nr_exchanged");
        for n in 0..4 {
            ensure_eq!(m2p_of(take[0] + n)?, FREE_PFN + n, "the M2P of page {n}");
            works(take[0] + n)?;
        }
        Ok(())
    }

    pub(super) fn exchange_sizes(_: &Env) -> Verdict {
        let taken = Taken::new(&mut [FREE_PFN, FREE_PFN + 1], 0)?;
        let mut give = taken.frames.clone();
        let mut take = [FREE_PFN, FREE_PFN + 1];
        for (count_in, order_in, count_out, order_out) in
            [(1, 0, 2, 0), (2, 0, 1, 0), (1, 1, 1, 0), (2, 0, 1, 2)]
        {
            let mut arg = pair(&mut give[..count_in], order_in, &mut take[..count_out], order_out);
            refused("exchange", ask(XENMEM_EXCHANGE, &mut arg), &[EINVAL])?;
        }
        let mut arg = pair(&mut give, 0, &mut take, 0);
        arg.nr_exchanged = 3;
        refused("more done than there is", ask(XENMEM_EXCHANGE, &mut arg), &[EINVAL])?;
        works(taken.frames[0])
    }

    pub(super) fn exchange_mapped(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        store("a mark", scratch.page(0), 0x1234)?;
        let mut give = [scratch.mfn(0)];
        let mut take = [FREE_PFN];
        let got = ask(XENMEM_EXCHANGE, &mut pair(&mut give, 0, &mut take, 0));
        ensure!(got < 0, "the exchange of a mapped page: {}", Got(got));
        ensure_eq!(load("the page", scratch.page(0))?, 0x1234, "what it holds");
        works(scratch.mfn(0))
    }

    pub(super) fn order_too_large(_: &Env) -> Verdict {
        for order in [40, 60, 63, u32::MAX] {
            for command in [XENMEM_POPULATE_PHYSMAP, XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION]
            {
                let got = ask(command, &mut reservation(&mut [FREE_PFN], order));
                ensure!(got <= 0, "operation {command} of order {order}: {}", Got(got));
            }
        }
        Ok(())
    }

    pub(super) fn other_domain(_: &Env) -> Verdict {
        for command in [XENMEM_POPULATE_PHYSMAP, XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION] {
            let mut list = [FREE_PFN];
            let mut arg = XenMemoryReservation { domid: NO_DOMAIN, ..reservation(&mut list, 0) };
            let got = ask(command, &mut arg);
            ensure!(got == 0 || got == ESRCH.negated(), "a reservation: {}", Got(got));
        }
        for command in [XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION, XENMEM_MAXIMUM_GPFN] {
            refused("a question", ask(command, &mut XenMemoryDomain { domid: NO_DOMAIN }), &[ESRCH])?;
        }
        Ok(())
    }

    pub(super) fn domain_zero(_: &Env) -> Verdict {
        for command in [XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION] {
            refused("a question", ask(command, &mut XenMemoryDomain { domid: 0 }), &[EPERM])?;
        }
        let mut list = [FREE_PFN];
        let mut arg = XenMemoryReservation { domid: 0, ..reservation(&mut list, 0) };
        let got = ask(XENMEM_POPULATE_PHYSMAP, &mut arg);
        ensure!(got == 0 || got == EPERM.negated(), "a reservation: {}", Got(got));
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [XENMEM_POPULATE_PHYSMAP, XENMEM_INCREASE_RESERVATION, XENMEM_DECREASE_RESERVATION] {
            let got = call(__HYPERVISOR_MEMORY_OP, [command.into(), scratch.at(0), 0, 0, 0]);
            ensure!(got == 0 || got == EFAULT.negated(), "a reservation: {}", Got(got));
        }
        for command in
            [XENMEM_CURRENT_RESERVATION, XENMEM_MAXIMUM_RESERVATION, XENMEM_EXCHANGE, XENMEM_MACHPHYS_MAPPING]
        {
            let got = call(__HYPERVISOR_MEMORY_OP, [command.into(), scratch.at(0), 0, 0, 0]);
            refused("memory_op", got, &[EFAULT])?;
        }
        Ok(())
    }

    pub(super) fn extents_fault(_: &Env) -> Verdict {
        let before = current()?;
        let scratch = Scratch::new(2);
        done("mapping", map(scratch.at(0), scratch.mfn(0) << 12 | RW))?;
        // The first two of the four extents end a mapped page; the others lie on an address where nothing is
        // mapped.
        let list = scratch.at(1) - 16;
        store("the first", list, FREE_PFN)?;
        store("the second", list + 8, FREE_PFN + 1)?;
        let mut arg = XenMemoryReservation { extent_start: list, nr_extents: 4, ..reservation(&mut [], 0) };
        let got = value("populate_physmap", ask(XENMEM_POPULATE_PHYSMAP, &mut arg))?;
        ensure_eq!(got, 2, "the extents done");
        ensure_eq!(current()?, before + 2, "the pages");
        let frames = alloc::vec![load("first", list)?, load("second", list + 8)?];
        drop(Taken { frames, order: 0 });
        ensure_eq!(current()?, before, "the pages after giving them back");
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [8, 40, 63] {
            refused("memory_op", ask(command, &mut [0u64; 16]), &[ENOSYS])?;
        }
        Ok(())
    }
}
