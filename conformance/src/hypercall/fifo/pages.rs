//! Control blocks and pages of words: which pages the hypervisor accepts, which events the switch carries
//! over, and the way back to two levels.

hypercall_cases! {
    "fifo.control" = control {
        title: "the first control block",
        rule: "EVTCHNOP_init_control gives 0 and the number of bits of a link, 17.",
        source: "event_channel.h, EVTCHNOP_init_control, EVTCHN_FIFO_LINK_BITS",
    }
    "fifo.control-twice" = control_twice {
        title: "a second control block for a vCPU",
        rule: "EVTCHNOP_init_control gives EINVAL for a vCPU that has its control block.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.control-no-vcpu" = control_no_vcpu {
        title: "a control block for a vCPU that there is not",
        rule: "EVTCHNOP_init_control gives ENOENT for a vCPU that does not exist.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.control-misaligned" = control_misaligned {
        title: "a control block off by bytes",
        rule: "The offset of a control block is a multiple of 8: EINVAL for another.",
        source: "event_channel.h, EVTCHNOP_init_control, 'offset'",
    }
    "fifo.control-over-end" = control_over_end {
        title: "a control block over the end of its page",
        rule: "A control block does not cross the end of its page: EINVAL, for offsets beyond the page too.",
        source: "event_channel.h, EVTCHNOP_init_control, 'offset'",
    }
    "fifo.control-at-end" = control_at_end {
        title: "a control block that ends with its page",
        rule: "The last offset that a control block fits behind is taken, and events are announced there.",
        source: "event_channel.h, EVTCHNOP_init_control, struct evtchn_fifo_control_block",
    }
    "fifo.control-no-frame" = control_no_frame {
        title: "a control block nowhere",
        rule: "EVTCHNOP_init_control gives EINVAL for a frame that there is not, or that is another's.",
        source: "event_channel.h, EVTCHNOP_init_control, 'control_gfn'",
    }
    "fifo.control-in-table" = control_in_table {
        title: "a control block in a page table",
        rule: "EVTCHNOP_init_control gives EINVAL for a frame that may not be written.",
        source: "event_channel.h, EVTCHNOP_init_control, 'control_gfn'",
    }
    "fifo.control-refused" = control_refused {
        title: "nothing comes of a refused control block",
        rule: "After an EVTCHNOP_init_control that is refused, the domain still has two levels.",
        source: "event_channel.h, EVTCHNOP_init_control; 'Ports 2-level ABI'",
    }
    "fifo.control-fault" = control_fault {
        title: "arguments that cannot be read",
        rule: "An argument that is not mapped gives EFAULT.",
        source: "event_channel.h, EVTCHNOP_init_control, EVTCHNOP_expand_array, EVTCHNOP_set_priority",
    }
    "fifo.control-second" = control_second {
        title: "control blocks of two vCPUs in one page",
        rule: "Each vCPU has a control block, of a vCPU that is down too; several may be in one page.",
        source: "event_channel.h, EVTCHNOP_init_control, 'vcpu', 'offset'",
    }
    "fifo.control-untouched" = control_untouched {
        title: "what is in a control block as it is given",
        rule: "EVTCHNOP_init_control writes nothing into the page.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.control-held" = control_held {
        title: "a control block's page made a page table",
        rule: "A page with a control block stays writable memory: it cannot be a page table before a reset.",
        source: "event_channel.h, EVTCHNOP_init_control; xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "fifo.expand-two-levels" = expand_two_levels {
        title: "words without a control block",
        rule: "EVTCHNOP_expand_array gives EOPNOTSUPP while the domain has two levels.",
        source: "event_channel.h, EVTCHNOP_expand_array",
    }
    "fifo.expand-no-frame" = expand_no_frame {
        title: "words nowhere",
        rule: "EVTCHNOP_expand_array gives EINVAL for a frame that there is not, or that may not be written.",
        source: "event_channel.h, EVTCHNOP_expand_array, 'array_gfn'",
    }
    "fifo.expand-all" = expand_all {
        title: "words for all ports, and a page more",
        rule: "128 pages have the words of all 131,072 ports: the next gives ENOSPC.",
        source: "event_channel.h, EVTCHNOP_expand_array, EVTCHN_FIFO_NR_CHANNELS",
    }
    "fifo.expand-untouched" = expand_untouched {
        title: "words of ports without events",
        rule: "EVTCHNOP_expand_array leaves words as they are whose ports have no event.",
        source: "event_channel.h, EVTCHNOP_expand_array",
    }
    "fifo.expand-held" = expand_held {
        title: "a page of words made a page table",
        rule: "A page of words stays writable memory: it cannot be a page table before a reset.",
        source: "event_channel.h, EVTCHNOP_expand_array; xen.h, MMUEXT_PIN_L1_TABLE",
    }
    "fifo.carry-pending" = carry_pending {
        title: "a port that was pending with two levels",
        rule: "A port that is pending as the domain turns to the FIFO is pending there: its page of words comes with the event.",
        source: "event_channel.h, EVTCHNOP_init_control, EVTCHNOP_expand_array",
    }
    "fifo.carry-not-pending" = carry_not_pending {
        title: "a port that was not pending",
        rule: "A port that is not pending as the domain turns to the FIFO has no event there.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.carry-mask" = carry_mask {
        title: "a port that was masked with two levels",
        rule: "Masks are not carried over: the word that the guest gives says whether a port is masked.",
        source: "event_channel.h, EVTCHN_FIFO_MASKED; xen.h, struct shared_info, evtchn_mask",
    }
    "fifo.carry-early" = carry_early {
        title: "an event before there is a word for the port",
        rule: "An event of a port without a word is kept, and set when the port's page of words comes.",
        source: "event_channel.h, EVTCHNOP_expand_array",
    }
    "fifo.carry-early-masked" = carry_early_masked {
        title: "the same, for a port that its word masks",
        rule: "A kept event of a port whose word is masked is pending and not linked.",
        source: "event_channel.h, EVTCHNOP_expand_array, EVTCHN_FIFO_MASKED",
    }
    "fifo.reset" = reset_ends {
        title: "a reset ends the FIFO",
        rule: "EVTCHNOP_reset closes all ports and brings the domain back to two levels.",
        source: "event_channel.h, EVTCHNOP_reset",
    }
    "fifo.reset-again" = reset_again {
        title: "the FIFO after a reset",
        rule: "After EVTCHNOP_reset a domain can turn to the FIFO again, with the same pages.",
        source: "event_channel.h, EVTCHNOP_reset, EVTCHNOP_init_control",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::super::kit::*;
    use super::super::kit::*;
    use ring_abi::evtchn::fifo::*;
    use ring_abi::evtchn::*;
    use ring_abi::mmu::{MMUEXT_PIN_L1_TABLE, MMUEXT_UNPIN_TABLE};

    pub(super) fn control(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        let (got, bits) = init(fifo.scratch.mfn(0), 0, 0);
        require!(got != ENOSYS.negated(), "no FIFO ABI");
        done("init_control", got)?;
        ensure_eq!(u32::from(bits), EVTCHN_FIFO_LINK_BITS, "link_bits");
        Ok(())
    }

    pub(super) fn control_twice(_: &Env) -> Verdict {
        let fifo = Fifo::new(1)?;
        for (page, offset) in [(0, 0), (0, 256), (1, 0)] {
            refused("again", init(fifo.scratch.mfn(page), offset, 0).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn control_no_vcpu(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        for vcpu in [NO_VCPU, u32::MAX] {
            refused("no vCPU", init(fifo.scratch.mfn(0), 0, vcpu).0, &[ENOENT])?;
        }
        Ok(())
    }

    pub(super) fn control_misaligned(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        for offset in [1, 4, 1001, 4020] {
            refused("off by bytes", init(fifo.scratch.mfn(0), offset, 0).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn control_over_end(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        for offset in [4096 - 64, 4096, 1 << 31, u32::MAX - 7] {
            refused("over the end", init(fifo.scratch.mfn(0), offset, 0).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn control_at_end(_: &Env) -> Verdict {
        let mut fifo = Fifo::off(1)?;
        done("init_control", init(fifo.scratch.mfn(0), 4096 - 72, 0).0)?;
        fifo.grow()?;
        let port = fifo.ipi()?;
        send(port)?;
        ensure_eq!(fifo.block().load_u32(4096 - 72 + READY_OFFSET), 1 << 7, "the ready bits");
        ensure_eq!(fifo.block().load_u32(4096 - 72 + HEAD_OFFSET + 7 * 4), port, "the head");
        Ok(())
    }

    pub(super) fn control_no_frame(_: &Env) -> Verdict {
        let _fifo = Fifo::off(0)?;
        for mfn in [end_of_memory() + 1, u64::MAX >> 12, 1 << 40] {
            refused("no frame", init(mfn, 0, 0).0, &[EINVAL])?;
        }
        for mfn in foreign_frames() {
            refused("another's frame", init(mfn, 0, 0).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn control_in_table(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        for table in tables(fifo.scratch.page(0)) {
            refused("a page table", init(table, 0, 0).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn control_refused(_: &Env) -> Verdict {
        let fifo = Fifo::off(1)?;
        refused("no frame", init(end_of_memory() + 1, 0, 0).0, &[EINVAL])?;
        refused("no vCPU", init(fifo.scratch.mfn(0), 0, NO_VCPU).0, &[ENOENT])?;
        refused("expand_array", expand(fifo.scratch.mfn(1)), &[EOPNOTSUPP])?;
        let port = Opened::ipi()?;
        done("send", port.send())?;
        ensure!(port.is_pending(), "no bit of two levels");
        done("init_control", init(fifo.scratch.mfn(0), 0, 0).0)
    }

    pub(super) fn control_fault(_: &Env) -> Verdict {
        let fifo = Fifo::new(0)?;
        for command in [EVTCHNOP_INIT_CONTROL, EVTCHNOP_EXPAND_ARRAY, EVTCHNOP_SET_PRIORITY] {
            let got = call(__HYPERVISOR_EVENT_CHANNEL_OP, [command.into(), fifo.scratch.at(0), 0, 0, 0]);
            refused("event_channel_op", got, &[EFAULT])?;
        }
        Ok(())
    }

    pub(super) fn control_second(_: &Env) -> Verdict {
        let mut fifo = Fifo::new(1)?;
        fifo.second()?;
        fifo.grow()?;
        let (first, second) = (fifo.ipi()?, fifo.ipi_to(1)?);
        send(first)?;
        send(second)?;
        ensure_eq!(fifo.head(7), first, "the head of vCPU 0");
        ensure_eq!(fifo.second_block().load_u32(HEAD_OFFSET + 7 * 4), second, "the head of vCPU 1");
        Ok(())
    }

    pub(super) fn control_untouched(_: &Env) -> Verdict {
        let fifo = Fifo::off(0)?;
        fifo.block().fill(0, 4096, 0xa5);
        done("init_control", init(fifo.scratch.mfn(0), 64, 0).0)?;
        let changed = (0..512).find(|n| fifo.block().load_u64(n * 8) != 0xa5a5_a5a5_a5a5_a5a5);
        ensure!(changed.is_none(), "word {changed:?} is another");
        Ok(())
    }

    /// Checks that page `n` cannot become a page table while the FIFO uses it, and can after a reset.
    fn held(fifo: Fifo, n: usize) -> Verdict {
        fifo.scratch.pages.page(n).fill(0, 4096, 0);
        let mfn = fifo.scratch.mfn(n);
        given("read-only", fifo.scratch.protect(n))?;
        refused("the pin", extended(MMUEXT_PIN_L1_TABLE, mfn, 0), &[EINVAL, EBUSY])?;
        done("reset", channel(EVTCHNOP_RESET, &mut EvtchnReset { dom: DOMID_SELF }))?;
        done("the pin after a reset", extended(MMUEXT_PIN_L1_TABLE, mfn, 0))?;
        done("unpin", extended(MMUEXT_UNPIN_TABLE, mfn, 0))
    }

    pub(super) fn control_held(_: &Env) -> Verdict {
        held(Fifo::ready()?, 0)
    }

    pub(super) fn expand_held(_: &Env) -> Verdict {
        held(Fifo::ready()?, 1)
    }

    pub(super) fn expand_two_levels(_: &Env) -> Verdict {
        let fifo = Fifo::off(1)?;
        for mfn in [fifo.scratch.mfn(1), end_of_memory() + 1] {
            refused("expand_array", expand(mfn), &[EOPNOTSUPP])?;
        }
        Ok(())
    }

    pub(super) fn expand_no_frame(_: &Env) -> Verdict {
        let fifo = Fifo::new(1)?;
        for mfn in [end_of_memory() + 1, u64::MAX >> 12].into_iter().chain(foreign_frames()) {
            refused("no frame", expand(mfn), &[EINVAL])?;
        }
        refused("a page table", expand(tables(fifo.scratch.page(0))[3]), &[EINVAL])?;
        done("a frame", expand(fifo.scratch.mfn(1)))
    }

    pub(super) fn expand_all(_: &Env) -> Verdict {
        let fifo = Fifo::new(1)?;
        for _ in 0..128 {
            done("expand_array", expand(fifo.scratch.mfn(1)))?;
        }
        refused("one more", expand(fifo.scratch.mfn(1)), &[ENOSPC])
    }

    pub(super) fn expand_untouched(_: &Env) -> Verdict {
        let mut fifo = Fifo::new(2)?;
        fifo.grow()?;
        (0..1024).for_each(|n| fifo.array().set_word(1024 + n, MASKED | n));
        fifo.grow()?;
        let changed = (0..1024).find(|n| fifo.word(1024 + n) != MASKED | n);
        ensure!(changed.is_none(), "word {changed:?} is another");
        Ok(())
    }

    /// A port to which no case sends an event before there is a word for it: Xen never forgets such an event.
    const UNUSED: u32 = 600;

    /// Opens a port while the domain has two levels, with or without an event, masked or not. Then switches
    /// to the FIFO and returns the port's word.
    fn carried(event: bool, masked: bool) -> Verdict<(Fifo, u32, u32)> {
        let mut fifo = Fifo::off(1)?;
        let lowest = if event { 1 } else { UNUSED };
        let port = loop {
            let port = fifo.ipi()?;
            if port >= lowest {
                break port;
            }
        };
        let opened = core::mem::ManuallyDrop::new(Opened(port));
        opened.set_mask(masked);
        if event {
            done("send", opened.send())?;
            ensure!(opened.is_pending(), "not pending with two levels");
        }
        done("init_control", init(fifo.scratch.mfn(0), 0, 0).0)?;
        opened.set_mask(false);
        fifo.grow()?;
        let word = fifo.word(port);
        Ok((fifo, port, word))
    }

    pub(super) fn carry_pending(_: &Env) -> Verdict {
        let (fifo, port, word) = carried(true, false)?;
        ensure_eq!(word & (PENDING | MASKED | LINKED), PENDING | LINKED, "the word");
        ensure!(upcall_pending(), "no upcall");
        let events = fifo.events();
        ensure!(events.contains(&port), "the events: {events:?}");
        Ok(())
    }

    pub(super) fn carry_not_pending(_: &Env) -> Verdict {
        let (_fifo, _, word) = carried(false, false)?;
        ensure_eq!(word, 0, "the word");
        Ok(())
    }

    pub(super) fn carry_mask(_: &Env) -> Verdict {
        let (_fifo, _, word) = carried(true, true)?;
        ensure_eq!(word & (PENDING | MASKED | LINKED), PENDING | LINKED, "the word");
        Ok(())
    }

    /// Sends an event to a port that has no word yet. Then the guest adds the page with `given` in that word;
    /// returns the word afterwards.
    fn early(given: u32) -> Verdict<u32> {
        let mut fifo = Fifo::new(1)?;
        let port = fifo.ipi()?;
        send(port)?;
        ensure!(!is_two_level_pending(port), "the bit of two levels is set");
        fifo.array().set_word(port, given);
        fifo.grow()?;
        Ok(fifo.word(port))
    }

    pub(super) fn carry_early(_: &Env) -> Verdict {
        ensure_eq!(early(0)? & (PENDING | MASKED | LINKED), PENDING | LINKED, "the word");
        Ok(())
    }

    pub(super) fn carry_early_masked(_: &Env) -> Verdict {
        ensure_eq!(early(MASKED)?, PENDING | MASKED, "the word");
        Ok(())
    }

    pub(super) fn reset_ends(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        let port = fifo.ipi()?;
        done("reset", channel(EVTCHNOP_RESET, &mut EvtchnReset { dom: DOMID_SELF }))?;
        refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port }), &[EINVAL])?;
        refused("expand_array", expand(fifo.scratch.mfn(1)), &[EOPNOTSUPP])?;
        fifo.scratch.pages.bytes().fill(0, 8192, 0);
        let port = Opened::ipi()?;
        // The port has the number of the runtime's first port, whose mask bit is set.
        port.set_mask(false);
        clear_upcall();
        done("send", port.send())?;
        ensure!(port.is_pending() && port.is_selected(), "no bits of two levels");
        ensure_eq!((fifo.word(port.0), fifo.ready_bits()), (0, 0), "word and ready bits");
        Ok(())
    }

    pub(super) fn reset_again(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        send(fifo.ipi()?)?;
        done("reset", channel(EVTCHNOP_RESET, &mut EvtchnReset { dom: DOMID_SELF }))?;
        fifo.scratch.pages.bytes().fill(0, 8192, 0);
        done("init_control", init(fifo.scratch.mfn(0), 0, 0).0)?;
        done("expand_array", expand(fifo.scratch.mfn(1)))?;
        fifo.forget_closed()?;
        let port = fifo.ipi()?;
        send(port)?;
        ensure_eq!(fifo.head(7), port, "the head");
        ensure_eq!(fifo.events(), [port], "the events");
        Ok(())
    }
}
