//! Ports of other vCPUs, and more ports than two levels have.

hypercall_cases! {
    "fifo.vcpu" = vcpu {
        title: "a port that notifies the second vCPU",
        rule: "An event goes to the queues of the vCPU that its port notifies.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu, EVTCHNOP_bind_ipi",
    }
    "fifo.vcpu-linked" = vcpu_linked {
        title: "a linked port moved to another vCPU",
        rule: "A linked port stays on its queue when it is bound to another vCPU: the next event goes there.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu, EVTCHN_FIFO_LINKED",
    }
    "fifo.vcpu-masked" = vcpu_masked {
        title: "a masked port moved to another vCPU",
        rule: "A pending, masked port goes to the queue of the vCPU that it notifies at the unmask.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu, EVTCHNOP_unmask",
    }
    "fifo.vcpu-left" = vcpu_left {
        title: "another event on a queue of the vCPU that a port has left",
        rule: "When a queue's last port moves to another vCPU, the queue is empty: its next event is its head.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu, struct evtchn_fifo_control_block",
    }
    "fifo.no-control" = no_control {
        title: "a vCPU without a control block",
        rule: "An event for a vCPU without a control block is neither linked nor announced.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.no-control-yet" = no_control_yet {
        title: "the control block comes later",
        rule: "Once the vCPU has its control block, the next event of the port is linked there.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "fifo.beyond-two-levels" = beyond {
        title: "ports beyond those of two levels",
        rule: "With the FIFO a domain has ports from 4,096 on, as many as the toolstack lets it, and events on them.",
        source: "event_channel.h, EVTCHN_FIFO_NR_CHANNELS",
    }
    "fifo.beyond-no-word" = beyond_no_word {
        title: "an event beyond the last word",
        rule: "An event of a port whose word is missing is kept for the page of words, beyond those of two levels too.",
        source: "event_channel.h, EVTCHNOP_expand_array",
    }
    "fifo.twenty-thousand" = twenty_thousand {
        title: "twenty thousand ports",
        rule: "Events of 20,000 ports come each once, in the order of the sends.",
        source: "event_channel.h, EVTCHN_FIFO_NR_CHANNELS, 'Ports FIFO-based ABI'",
    }
    "fifo.beyond-reset" = beyond_reset {
        title: "ports beyond two levels after a reset",
        rule: "After EVTCHNOP_reset no port from 4,096 on can be used or opened.",
        source: "event_channel.h, EVTCHNOP_reset, EVTCHN_2L_NR_CHANNELS",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::super::kit::*;
    use super::super::kit::*;
    use ring_abi::evtchn::fifo::*;
    use ring_abi::evtchn::*;

    /// Gives two vCPUs control blocks, and opens a pair of ports.
    fn scene() -> Verdict<(Fifo, u32, u32)> {
        let mut fifo = Fifo::new(1)?;
        fifo.second()?;
        fifo.grow()?;
        let (first, second) = fifo.pair()?;
        Ok((fifo, first, second))
    }

    /// Head and ready bits of queue 7, for vCPU 0 and vCPU 1.
    fn heads(fifo: &Fifo) -> [(u32, u32); 2] {
        let second = fifo.second_block();
        let theirs = (second.load_u32(HEAD_OFFSET + 7 * 4), second.load_u32(READY_OFFSET));
        [(fifo.head(7), fifo.ready_bits()), theirs]
    }

    fn forget_heads(fifo: &Fifo) {
        fifo.block().fill(0, SECOND_BLOCK + 72, 0);
    }

    pub(super) fn vcpu(_: &Env) -> Verdict {
        let (fifo, first, second) = scene()?;
        to_vcpu(first, 1)?;
        forget_heads(&fifo);
        send(second)?;
        ensure_eq!(heads(&fifo), [(0, 0), (first, 1 << 7)], "the heads");
        let ipi = fifo.ipi_to(1)?;
        send(ipi)?;
        ensure_eq!(fifo.word(first), PENDING | LINKED | ipi, "the word");
        Ok(())
    }

    pub(super) fn vcpu_linked(_: &Env) -> Verdict {
        let (fifo, first, second) = scene()?;
        forget_heads(&fifo);
        send(second)?;
        to_vcpu(first, 1)?;
        send(second)?;
        ensure_eq!(heads(&fifo), [(first, 1 << 7), (0, 0)], "the heads");
        ensure_eq!(fifo.events(), [first], "the events of vCPU 0");
        forget_heads(&fifo);
        send(second)?;
        ensure_eq!(heads(&fifo), [(0, 0), (first, 1 << 7)], "the heads after the second event");
        Ok(())
    }

    pub(super) fn vcpu_masked(_: &Env) -> Verdict {
        let (fifo, first, second) = scene()?;
        fifo.array().mask(first);
        forget_heads(&fifo);
        send(second)?;
        to_vcpu(first, 1)?;
        unmask(first)?;
        ensure_eq!(heads(&fifo), [(0, 0), (first, 1 << 7)], "the heads");
        Ok(())
    }

    pub(super) fn vcpu_left(_: &Env) -> Verdict {
        let (fifo, first, second) = scene()?;
        let other = fifo.ipi()?;
        send(second)?;
        ensure_eq!(fifo.events(), [first], "the events");
        to_vcpu(first, 1)?;
        send(second)?;
        forget_heads(&fifo);
        send(other)?;
        ensure_eq!(heads(&fifo), [(other, 1 << 7), (0, 0)], "the heads");
        ensure_eq!(fifo.word(first), PENDING | LINKED, "the word of the port that left");
        Ok(())
    }

    pub(super) fn no_control(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        require!(has_vcpu(1), "one vCPU alone");
        let port = fifo.ipi_to(1)?;
        fifo.events();
        clear_upcall();
        send(port)?;
        let word = fifo.word(port);
        ensure!(word & !PENDING == 0, "the word: {word:#x}");
        ensure_eq!((fifo.ready_bits(), upcall_pending()), (0, false), "what is announced");
        Ok(())
    }

    pub(super) fn no_control_yet(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        require!(has_vcpu(1), "one vCPU alone");
        let port = fifo.ipi_to(1)?;
        send(port)?;
        fifo.second()?;
        send(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure_eq!(heads(&fifo)[1], (port, 1 << 7), "the head");
        Ok(())
    }

    /// Opens ports up to `count`.
    fn open(fifo: &Fifo, count: usize) -> Verdict<Vec<u32>> {
        let mut ports = Vec::new();
        for _ in 0..count {
            let mut arg = EvtchnBindIpi { vcpu: 0, port: 0 };
            let got = channel(EVTCHNOP_BIND_IPI, &mut arg);
            require!(got != ENOSPC.negated(), "the toolstack allows {} ports alone", ports.len());
            given("bind_ipi", got)?;
            ports.push(arg.port);
        }
        fifo.events();
        Ok(ports)
    }

    /// Switches to the FIFO, with `pages` pages of words.
    fn wide(pages: usize) -> Verdict<Fifo> {
        let mut fifo = Fifo::new(pages)?;
        (0..pages).try_for_each(|_| fifo.grow())?;
        Ok(fifo)
    }

    pub(super) fn beyond(_: &Env) -> Verdict {
        let fifo = wide(5)?;
        let ports = open(&fifo, 4500)?;
        let (low, high) = (ports[0], ports[4400]);
        ensure!(high > 4096, "port {high}");
        send(high)?;
        send(low)?;
        ensure_eq!(fifo.word(high), PENDING | LINKED | low, "the word");
        ensure_eq!(fifo.events(), [high, low], "the events");
        close(high)?;
        refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port: high }), &[EINVAL])
    }

    pub(super) fn beyond_no_word(_: &Env) -> Verdict {
        let mut fifo = Fifo::new(5)?;
        (0..4).try_for_each(|_| fifo.grow())?;
        let ports = open(&fifo, 4200)?;
        let high = ports[4190];
        ensure!(high >= 4096, "port {high}");
        send(high)?;
        ensure_eq!((fifo.word(high), fifo.events()), (0, Vec::new()), "word and events before the page");
        fifo.grow()?;
        ensure_eq!(fifo.events(), [high], "the events");
        Ok(())
    }

    pub(super) fn twenty_thousand(_: &Env) -> Verdict {
        let fifo = wide(20)?;
        let ports = open(&fifo, 20_000)?;
        // The order of sends is scattered, so that links lead from page to page.
        let sent: Vec<u32> = (0..ports.len()).map(|n| ports[n * 7919 % ports.len()]).collect();
        sent.iter().try_for_each(|port| send(*port))?;
        let events = fifo.events();
        ensure_eq!(events.len(), sent.len(), "the number of events");
        let wrong = events.iter().zip(&sent).position(|(got, sent)| got != sent);
        ensure!(wrong.is_none(), "event {wrong:?} is of another port");
        Ok(())
    }

    pub(super) fn beyond_reset(_: &Env) -> Verdict {
        let fifo = wide(5)?;
        let ports = open(&fifo, 4200)?;
        done("reset", channel(EVTCHNOP_RESET, &mut EvtchnReset { dom: DOMID_SELF }))?;
        for port in [ports[4199], 4096, 5000] {
            refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port }), &[EINVAL])?;
            refused("close", channel(EVTCHNOP_CLOSE, &mut EvtchnClose { port }), &[EINVAL])?;
        }
        let mut last = 0;
        let end = loop {
            let mut arg = EvtchnBindIpi { vcpu: 0, port: 0 };
            let got = channel(EVTCHNOP_BIND_IPI, &mut arg);
            if got != 0 {
                break got;
            }
            last = arg.port;
        };
        refused("one more", end, &[ENOSPC])?;
        ensure_eq!(last, 4095, "the last port");
        Ok(())
    }
}
