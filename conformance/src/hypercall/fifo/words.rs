//! What an event does to the word of its port: pending, masked, closed.

hypercall_cases! {
    "fifo.send" = sent {
        title: "what an event sets",
        rule: "An event makes its port pending and linked, sets the head and the ready bit of an empty queue, and evtchn_upcall_pending.",
        source: "event_channel.h, EVTCHN_FIFO_PENDING, EVTCHN_FIFO_LINKED, struct evtchn_fifo_control_block",
    }
    "fifo.send-two-levels" = send_two_levels {
        title: "the bits of two levels",
        rule: "An event of the FIFO sets neither a bit of evtchn_pending nor one of evtchn_pending_sel.",
        source: "event_channel.h, EVTCHN_FIFO_PENDING; xen.h, struct shared_info",
    }
    "fifo.send-other-end" = send_other_end {
        title: "an event reaches the other end alone",
        rule: "EVTCHNOP_send makes the remote port pending, and not the local one.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "fifo.send-unbound" = send_unbound {
        title: "a port that nobody has bound swallows",
        rule: "EVTCHNOP_send on an unbound port gives 0, and no word changes.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "fifo.send-closed" = send_closed {
        title: "a port that is not open",
        rule: "EVTCHNOP_send on a closed port, or one that there cannot be, gives EINVAL.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "fifo.send-again" = send_again {
        title: "a second event before the first is taken",
        rule: "An event on a port that is pending and linked changes nothing.",
        source: "event_channel.h, EVTCHN_FIFO_PENDING, EVTCHN_FIFO_LINKED",
    }
    "fifo.send-unlinked" = send_unlinked {
        title: "a port that was taken off with its event",
        rule: "An event on a port that is pending and not linked links the port.",
        source: "event_channel.h, EVTCHN_FIFO_LINKED",
    }
    "fifo.send-masked" = send_masked {
        title: "an event on a masked port",
        rule: "An event on a masked port makes the port pending, and neither links nor announces it.",
        source: "event_channel.h, EVTCHN_FIFO_MASKED",
    }
    "fifo.bind-pending" = bind_pending {
        title: "a port just bound has an event",
        rule: "EVTCHNOP_bind_interdomain makes the local port pending, in the FIFO too.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain",
    }
    "fifo.timer" = timer {
        title: "an event of the timer",
        rule: "A VIRQ that was bound with two levels sends its events to the FIFO after the turn.",
        source: "event_channel.h, EVTCHNOP_bind_virq, EVTCHNOP_init_control",
    }
    "fifo.unmask" = unmask_pending {
        title: "a masked event comes with the unmask",
        rule: "EVTCHNOP_unmask clears MASKED, and links and announces a port that is pending.",
        source: "event_channel.h, EVTCHNOP_unmask, EVTCHN_FIFO_MASKED",
    }
    "fifo.unmask-quiet" = unmask_quiet {
        title: "nothing waits behind the mask",
        rule: "EVTCHNOP_unmask of a port that is not pending clears MASKED and does no more.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "fifo.unmask-linked" = unmask_linked {
        title: "the unmask of a port that is on its queue",
        rule: "EVTCHNOP_unmask of a port that is linked leaves it where it is: its event comes once.",
        source: "event_channel.h, EVTCHNOP_unmask, EVTCHN_FIFO_LINKED",
    }
    "fifo.unmask-bad" = unmask_bad {
        title: "the unmask of a port that there cannot be",
        rule: "EVTCHNOP_unmask gives EINVAL for a port beyond the last.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "fifo.masked-while-linked" = masked_while_linked {
        title: "a port masked after it was linked",
        rule: "A linked port that the guest masks leaves the queue without its event, which stays pending until the unmask.",
        source: "event_channel.h, EVTCHN_FIFO_MASKED, EVTCHN_FIFO_LINKED",
    }
    "fifo.close-clears" = close_clears {
        title: "a closed port is not pending",
        rule: "EVTCHNOP_close clears PENDING; a port that is linked stays so until the guest takes it off.",
        source: "event_channel.h, EVTCHNOP_close",
    }
    "fifo.close-linked" = close_linked {
        title: "a closed port that is still linked",
        rule: "A port whose word is linked is not given out again before the guest has taken it off its queue.",
        source: "event_channel.h, EVTCHNOP_close, EVTCHN_FIFO_LINKED",
    }
    "fifo.close-open" = close_open {
        title: "a port opened again has no old event",
        rule: "A port that is opened again has no event of before.",
        source: "event_channel.h, EVTCHNOP_close",
    }
    "fifo.poll" = poll {
        title: "a poll for a masked port that is pending",
        rule: "SCHEDOP_poll returns at once if one of its ports is pending, masked or not.",
        source: "sched.h, SCHEDOP_poll",
    }
    "fifo.poll-beyond" = poll_beyond {
        title: "a poll for a port that there cannot be",
        rule: "SCHEDOP_poll gives EINVAL for a port beyond the last.",
        source: "sched.h, SCHEDOP_poll",
    }
    "fifo.status" = status {
        title: "the status of ports",
        rule: "EVTCHNOP_status says the same of a port as with two levels, and gives EINVAL beyond the last.",
        source: "event_channel.h, EVTCHNOP_status",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::super::kit::*;
    use super::super::kit::*;
    use ring_abi::evtchn::fifo::*;
    use ring_abi::evtchn::*;
    use ring_abi::sched::{SCHEDOP_POLL, SchedPoll};
    use ring_abi::shared_info::PENDING_SEL_OFFSET;

    /// Switches to the FIFO, and opens a port by which this vCPU can send itself events; no event is pending.
    fn scene() -> Verdict<(Fifo, u32)> {
        let fifo = Fifo::ready()?;
        let port = fifo.ipi()?;
        fifo.events();
        clear_upcall();
        Ok((fifo, port))
    }

    pub(super) fn sent(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure_eq!((fifo.head(7), fifo.ready_bits()), (port, 1 << 7), "head and ready bits");
        ensure!(upcall_pending(), "no upcall");
        ensure_eq!(fifo.events(), [port], "the events");
        Ok(())
    }

    pub(super) fn send_two_levels(_: &Env) -> Verdict {
        let (_fifo, port) = scene()?;
        send(port)?;
        ensure!(!is_two_level_pending(port), "its bit of evtchn_pending");
        ensure_eq!(pvrt::shared_info().load_u64(PENDING_SEL_OFFSET), 0, "evtchn_pending_sel");
        Ok(())
    }

    pub(super) fn send_other_end(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        let (first, second) = fifo.pair()?;
        for (from, to) in [(first, second), (second, first)] {
            send(from)?;
            ensure_eq!((fifo.word(from), fifo.word(to)), (0, PENDING | LINKED), "the words");
            ensure_eq!(fifo.events(), [to], "the events");
        }
        Ok(())
    }

    pub(super) fn send_unbound(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, port: 0 };
        given("alloc_unbound", channel(EVTCHNOP_ALLOC_UNBOUND, &mut op))?;
        send(op.port)?;
        ensure_eq!(fifo.word(op.port), 0, "the word");
        Ok(())
    }

    pub(super) fn send_closed(_: &Env) -> Verdict {
        let (_fifo, port) = scene()?;
        close(port)?;
        for port in [0, port, 131_071, 131_072, u32::MAX] {
            refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port }), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn send_again(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        clear_upcall();
        send(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure!(!upcall_pending(), "a second upcall");
        ensure_eq!(fifo.events(), [port], "the events");
        Ok(())
    }

    pub(super) fn send_unlinked(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        fifo.events();
        fifo.array().set_word(port, PENDING);
        clear_upcall();
        send(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure!(upcall_pending(), "no upcall");
        Ok(())
    }

    pub(super) fn send_masked(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        fifo.array().mask(port);
        send(port)?;
        ensure_eq!(fifo.word(port), PENDING | MASKED, "the word");
        ensure_eq!((fifo.head(7), fifo.ready_bits(), upcall_pending()), (0, 0, false), "what is announced");
        Ok(())
    }

    pub(super) fn bind_pending(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        let mut op = EvtchnAllocUnbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, port: 0 };
        given("alloc_unbound", channel(EVTCHNOP_ALLOC_UNBOUND, &mut op))?;
        let port = bind(op.port)?;
        ensure_eq!((fifo.word(port), fifo.word(op.port)), (PENDING | LINKED, 0), "the words");
        ensure!(fifo.events().contains(&port) && upcall_pending(), "the event is not announced");
        Ok(())
    }

    pub(super) fn timer(_: &Env) -> Verdict {
        let port = timer_port()?.0;
        let fifo = Fifo::ready()?;
        unmask(port)?;
        fifo.events();
        given("the timer", fire_at(1))?;
        ensure!(wait_until(2_000, || fifo.word(port) & PENDING != 0), "no event of port {port}");
        ensure!(fifo.events().contains(&port), "the event is on no queue");
        Ok(())
    }

    pub(super) fn unmask_pending(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        fifo.array().mask(port);
        send(port)?;
        unmask(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure_eq!((fifo.head(7), fifo.ready_bits()), (port, 1 << 7), "head and ready bits");
        ensure!(upcall_pending(), "no upcall");
        Ok(())
    }

    pub(super) fn unmask_quiet(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        fifo.array().mask(port);
        unmask(port)?;
        ensure_eq!(fifo.word(port), 0, "the word");
        ensure!(!upcall_pending(), "an upcall");
        unmask(port)
    }

    pub(super) fn unmask_linked(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        fifo.array().mask(port);
        unmask(port)?;
        ensure_eq!(fifo.word(port), PENDING | LINKED, "the word");
        ensure_eq!(fifo.events(), [port], "the events");
        Ok(())
    }

    pub(super) fn unmask_bad(_: &Env) -> Verdict {
        let _fifo = Fifo::ready()?;
        for port in [1 << 17, u32::MAX] {
            refused("unmask", channel(EVTCHNOP_UNMASK, &mut EvtchnUnmask { port }), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn masked_while_linked(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        fifo.array().mask(port);
        ensure!(fifo.events().is_empty(), "an event");
        ensure_eq!(fifo.word(port), PENDING | MASKED, "the word");
        ensure!(!fifo.array().unmask(port), "the guest need not call");
        unmask(port)?;
        ensure_eq!(fifo.events(), [port], "the events after the unmask");
        Ok(())
    }

    pub(super) fn close_clears(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        close(port)?;
        ensure_eq!(fifo.word(port), LINKED, "the word");
        ensure!(fifo.events().is_empty(), "an event");
        Ok(())
    }

    pub(super) fn close_linked(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        send(port)?;
        close(port)?;
        let other = fifo.ipi()?;
        ensure!(other != port, "port {port} is given out, linked");
        fifo.events();
        let again = fifo.ipi()?;
        ensure_eq!(again, port, "the lowest port that is free");
        Ok(())
    }

    pub(super) fn close_open(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        fifo.array().mask(port);
        send(port)?;
        close(port)?;
        let again = fifo.ipi()?;
        ensure_eq!((again, fifo.word(again) & PENDING), (port, 0), "the port and its event");
        Ok(())
    }

    fn poll_of(port: u32, timeout: u64) -> i64 {
        let poll = SchedPoll { ports: (&raw const port) as u64, nr_ports: 1, timeout, ..Default::default() };
        call(__HYPERVISOR_SCHED_OP, [SCHEDOP_POLL.into(), (&raw const poll) as u64, 0, 0, 0])
    }

    pub(super) fn poll(_: &Env) -> Verdict {
        let (fifo, port) = scene()?;
        fifo.array().mask(port);
        send(port)?;
        clear_upcall();
        let before = now();
        done("poll", poll_of(port, before + 10_000_000_000))?;
        ensure!(now() - before < 5_000_000_000, "it waited");
        Ok(())
    }

    pub(super) fn poll_beyond(_: &Env) -> Verdict {
        let _fifo = Fifo::ready()?;
        for port in [1 << 17, u32::MAX] {
            refused("poll", poll_of(port, 1), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn status(_: &Env) -> Verdict {
        let fifo = Fifo::ready()?;
        let (first, second) = fifo.pair()?;
        let status = |port| {
            let mut op = EvtchnStatus { dom: DOMID_SELF, port, ..Default::default() };
            (channel(EVTCHNOP_STATUS, &mut op), op)
        };
        let (got, op) = status(first);
        done("status", got)?;
        ensure_eq!((op.status, op.u[1], op.vcpu), (EVTCHNSTAT_INTERDOMAIN, second, 0), "the status");
        for port in [1 << 17, u32::MAX] {
            refused("beyond the last", status(port).0, &[EINVAL])?;
        }
        Ok(())
    }
}
