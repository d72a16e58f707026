//! `event_channel_op`: ports, what they are bound to, and the words that an event sets.

hypercall_cases! {
    "event.alloc-unbound" = alloc_unbound {
        title: "a port that another domain may bind",
        rule: "EVTCHNOP_alloc_unbound opens a port in state unbound, for the domain remote_dom.",
        source: "event_channel.h, EVTCHNOP_alloc_unbound",
    }
    "event.port-zero" = port_zero {
        title: "ports begin at 1",
        rule: "No port has the number 0, and operations on it give EINVAL.",
        source: "event_channel.h, evtchn_port_t",
    }
    "event.distinct" = distinct {
        title: "each port is another",
        rule: "A port that is open is not given again.",
        source: "event_channel.h, EVTCHNOP_alloc_unbound",
    }
    "event.bind-interdomain" = bind_interdomain {
        title: "both ends know each other",
        rule: "EVTCHNOP_bind_interdomain joins a new port to the remote one: the status of each names the other.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain, EVTCHNOP_status",
    }
    "event.bind-interdomain-pending" = bind_interdomain_pending {
        title: "a port just bound has an event",
        rule: "EVTCHNOP_bind_interdomain makes the local port pending, since what was sent to the unbound one is lost.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain; io/xenbus.h",
    }
    "event.bind-interdomain-taken" = bind_interdomain_taken {
        title: "a port that is bound is not bound again",
        rule: "EVTCHNOP_bind_interdomain gives EINVAL unless the remote port is unbound and for the caller.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain",
    }
    "event.bind-interdomain-others" = bind_interdomain_others {
        title: "a port for another domain",
        rule: "EVTCHNOP_bind_interdomain gives EINVAL for a port that was opened for another domain.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain",
    }
    "event.bind-interdomain-nobody" = bind_interdomain_nobody {
        title: "a port of a domain that there is not",
        rule: "EVTCHNOP_bind_interdomain gives ESRCH for a domain that does not exist.",
        source: "event_channel.h, EVTCHNOP_bind_interdomain",
    }
    "event.send" = send {
        title: "an event reaches the other end alone",
        rule: "EVTCHNOP_send makes the remote port pending, and not the local one.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "event.send-both-ways" = send_both_ways {
        title: "either end sends",
        rule: "A channel between domains carries events both ways.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "event.send-unbound" = send_unbound {
        title: "a port that nobody has bound swallows",
        rule: "EVTCHNOP_send on an unbound port gives 0, and no port becomes pending.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "event.send-closed" = send_closed {
        title: "a port that is not open",
        rule: "EVTCHNOP_send on a closed port, or one that there cannot be, gives EINVAL.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "event.send-virq" = send_virq {
        title: "a port of a virtual interrupt does not send",
        rule: "EVTCHNOP_send on a port bound to a VIRQ gives EINVAL.",
        source: "event_channel.h, EVTCHNOP_send",
    }
    "event.close" = close {
        title: "a closed port is no more",
        rule: "EVTCHNOP_close closes a port: its status is closed, and a second close gives EINVAL.",
        source: "event_channel.h, EVTCHNOP_close",
    }
    "event.close-peer" = close_peer {
        title: "the other end becomes unbound",
        rule: "When one end of a channel is closed the other is unbound, for the same domain, and can be bound again.",
        source: "event_channel.h, EVTCHNOP_close",
    }
    "event.close-clears" = close_clears {
        title: "a port opened again has no old event",
        rule: "EVTCHNOP_close clears the port's pending bit.",
        source: "event_channel.h, EVTCHNOP_close",
    }
    "event.virq" = virq {
        title: "a virtual interrupt",
        rule: "EVTCHNOP_bind_virq binds a port to a VIRQ of a vCPU, and the status says so.",
        source: "event_channel.h, EVTCHNOP_bind_virq, EVTCHNOP_status",
    }
    "event.virq-twice" = virq_twice {
        title: "a virtual interrupt that is bound",
        rule: "EVTCHNOP_bind_virq gives EEXIST for a VIRQ that has a port, until that is closed.",
        source: "event_channel.h, EVTCHNOP_bind_virq",
    }
    "event.virq-bad" = virq_bad {
        title: "virtual interrupts and vCPUs that there are not",
        rule: "EVTCHNOP_bind_virq gives EINVAL from NR_VIRQS on, and ENOENT for a vCPU that does not exist.",
        source: "event_channel.h, EVTCHNOP_bind_virq; xen.h, NR_VIRQS",
    }
    "event.virq-global" = virq_global {
        title: "a virtual interrupt of the domain, on another vCPU",
        rule: "A global VIRQ is bound on vCPU 0 first: EVTCHNOP_bind_virq gives EINVAL for another.",
        source: "event_channel.h, EVTCHNOP_bind_virq; xen.h, 'Virtual interrupts'",
    }
    "event.ipi" = ipi {
        title: "an event to itself",
        rule: "EVTCHNOP_bind_ipi opens a port on which EVTCHNOP_send notifies the named vCPU.",
        source: "event_channel.h, EVTCHNOP_bind_ipi",
    }
    "event.ipi-bad" = ipi_bad {
        title: "a vCPU that there is not",
        rule: "EVTCHNOP_bind_ipi gives ENOENT for a vCPU that does not exist.",
        source: "event_channel.h, EVTCHNOP_bind_ipi",
    }
    "event.bind-vcpu" = bind_vcpu {
        title: "which vCPU a port notifies",
        rule: "EVTCHNOP_bind_vcpu takes ports between domains and gives ENOENT for a vCPU that does not exist; IPIs stay where they are: EINVAL.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu",
    }
    "event.status-unknown" = status_unknown {
        title: "ports and domains that there are not",
        rule: "EVTCHNOP_status gives EINVAL for a port beyond the last, and ESRCH for a domain that does not exist.",
        source: "event_channel.h, EVTCHNOP_status",
    }
    "event.alloc-for-others" = alloc_for_others {
        title: "a port in another domain",
        rule: "EVTCHNOP_alloc_unbound in another domain is for the privileged: EPERM; in one that does not exist: ESRCH.",
        source: "event_channel.h, EVTCHNOP_alloc_unbound, 'NOTES'",
    }
    "event.priority-bad" = priority_bad {
        title: "a priority that there is not",
        rule: "EVTCHNOP_set_priority refuses priorities beyond EVTCHN_FIFO_PRIORITY_MIN.",
        source: "event_channel.h, EVTCHNOP_set_priority",
    }
    "event.control-bad" = control_bad {
        title: "a control block that cannot be",
        rule: "EVTCHNOP_init_control, where the FIFO ABI is there, refuses a bad frame, offset or vCPU.",
        source: "event_channel.h, EVTCHNOP_init_control",
    }
    "event.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "event_channel.h",
    }
    "event.fault" = fault {
        title: "an argument that cannot be read",
        rule: "An argument that is not mapped gives EFAULT.",
        source: "event_channel.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::evtchn::*;

    pub(super) fn alloc_unbound(_: &Env) -> Verdict {
        let me = own_domid()?;
        let other = if me == 0 { 7 } else { 0 };
        for (remote, wanted) in [(DOMID_SELF, me), (other, other)] {
            let port = Opened::unbound(remote)?;
            let status = port.status()?;
            ensure_eq!(status.status, EVTCHNSTAT_UNBOUND, "the status");
            ensure_eq!(status.u[0] as u16, wanted, "the domain that may bind it");
            ensure!(!port.is_pending(), "it has an event");
        }
        Ok(())
    }

    pub(super) fn port_zero(_: &Env) -> Verdict {
        refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port: 0 }), &[EINVAL])?;
        refused("close", channel(EVTCHNOP_CLOSE, &mut EvtchnClose { port: 0 }), &[EINVAL])
    }

    pub(super) fn distinct(_: &Env) -> Verdict {
        let mut ports = Vec::new();
        for _ in 0..20 {
            ports.push(Opened::unbound(DOMID_SELF)?);
            ports.push(Opened::ipi()?);
        }
        let mut numbers: Vec<_> = ports.iter().map(|port| port.0).collect();
        numbers.sort_unstable();
        ensure!(numbers.windows(2).all(|pair| pair[0] != pair[1]) && numbers[0] != 0, "{numbers:?}");
        Ok(())
    }

    fn bind(remote_dom: u16, remote_port: u32) -> (i64, u32) {
        let mut arg = EvtchnBindInterdomain { remote_dom, remote_port, ..Default::default() };
        (channel(EVTCHNOP_BIND_INTERDOMAIN, &mut arg), arg.local_port)
    }

    pub(super) fn bind_interdomain(_: &Env) -> Verdict {
        let me = own_domid()?;
        let first = Opened::unbound(DOMID_SELF)?;
        let (got, port) = bind(me, first.0);
        done("bind_interdomain", got)?;
        let second = Opened(port);
        for (port, peer) in [(&first, &second), (&second, &first)] {
            let status = port.status()?;
            ensure_eq!(status.status, EVTCHNSTAT_INTERDOMAIN, "the status");
            ensure_eq!((status.u[0] as u16, status.u[1]), (me, peer.0), "the other end");
        }
        Ok(())
    }

    pub(super) fn bind_interdomain_pending(_: &Env) -> Verdict {
        let first = Opened::unbound(DOMID_SELF)?;
        let (got, port) = bind(DOMID_SELF, first.0);
        done("bind_interdomain", got)?;
        let second = Opened(port);
        ensure!(second.is_pending(), "the local port is not pending");
        ensure!(second.is_selected() && upcall_pending(), "the event is not announced");
        ensure!(!first.is_pending(), "the remote port is pending");
        Ok(())
    }

    pub(super) fn bind_interdomain_taken(_: &Env) -> Verdict {
        let (first, second) = Opened::pair()?;
        let ipi = Opened::ipi()?;
        for port in [first.0, second.0, ipi.0, 0, 4000] {
            refused("bind_interdomain", bind(DOMID_SELF, port).0, &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn bind_interdomain_others(_: &Env) -> Verdict {
        let other = if own_domid()? == 0 { 7 } else { 0 };
        let port = Opened::unbound(other)?;
        refused("bind_interdomain", bind(DOMID_SELF, port.0).0, &[EINVAL])?;
        ensure_eq!(port.status()?.status, EVTCHNSTAT_UNBOUND, "the status");
        Ok(())
    }

    pub(super) fn bind_interdomain_nobody(_: &Env) -> Verdict {
        refused("bind_interdomain", bind(NO_DOMAIN, 1).0, &[ESRCH])
    }

    pub(super) fn send(_: &Env) -> Verdict {
        let (first, second) = Opened::pair()?;
        done("send", first.send())?;
        ensure!(second.is_pending(), "the remote port is not pending");
        ensure!(!first.is_pending(), "the local port is pending");
        Ok(())
    }

    pub(super) fn send_both_ways(_: &Env) -> Verdict {
        let (first, second) = Opened::pair()?;
        for (from, to) in [(&first, &second), (&second, &first), (&first, &second)] {
            done("send", from.send())?;
            ensure!(to.is_pending() && !from.is_pending(), "port {} to {}", from.0, to.0);
            to.clear();
        }
        Ok(())
    }

    pub(super) fn send_unbound(_: &Env) -> Verdict {
        let port = Opened::unbound(DOMID_SELF)?;
        done("send", port.send())?;
        ensure!(!port.is_pending(), "the port is pending");
        Ok(())
    }

    pub(super) fn send_closed(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        done("close", port.close())?;
        refused("send", port.send(), &[EINVAL])?;
        for port in [4096, 1 << 17, u32::MAX] {
            refused("send", channel(EVTCHNOP_SEND, &mut EvtchnSend { port }), &[EINVAL])?;
        }
        Ok(())
    }

    fn bind_virq(virq: u32, vcpu: u32) -> (i64, Opened) {
        let mut arg = EvtchnBindVirq { virq, vcpu, port: 0 };
        let got = channel(EVTCHNOP_BIND_VIRQ, &mut arg);
        (got, Opened(arg.port))
    }

    pub(super) fn send_virq(_: &Env) -> Verdict {
        let (got, port) = bind_virq(VIRQ_DEBUG, 0);
        given("bind_virq", got)?;
        refused("send", port.send(), &[EINVAL])?;
        ensure!(!port.is_pending(), "the port is pending");
        Ok(())
    }

    pub(super) fn close(_: &Env) -> Verdict {
        for port in [Opened::ipi()?, Opened::unbound(DOMID_SELF)?, Opened::pair()?.0] {
            done("close", port.close())?;
            ensure_eq!(port.status()?.status, EVTCHNSTAT_CLOSED, "the status");
            refused("close", port.close(), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn close_peer(_: &Env) -> Verdict {
        let me = own_domid()?;
        let (first, second) = Opened::pair()?;
        done("close", second.close())?;
        let status = first.status()?;
        ensure_eq!((status.status, status.u[0] as u16), (EVTCHNSTAT_UNBOUND, me), "the other end");
        done("send", first.send())?;
        let (got, port) = bind(DOMID_SELF, first.0);
        done("bind_interdomain", got)?;
        let third = Opened(port);
        first.clear();
        done("send", third.send())?;
        ensure!(first.is_pending(), "no event by the new channel");
        Ok(())
    }

    pub(super) fn close_clears(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        done("send", port.send())?;
        done("close", port.close())?;
        ensure!(!port.is_pending(), "the closed port is pending");
        let again = Opened::unbound(DOMID_SELF)?;
        ensure!(!again.is_pending(), "port {} is pending as it is opened", again.0);
        Ok(())
    }

    pub(super) fn virq(_: &Env) -> Verdict {
        let (got, port) = bind_virq(VIRQ_DEBUG, 0);
        done("bind_virq", got)?;
        let status = port.status()?;
        ensure_eq!((status.status, status.vcpu, status.u[0]), (EVTCHNSTAT_VIRQ, 0, VIRQ_DEBUG), "the status");
        Ok(())
    }

    pub(super) fn virq_twice(_: &Env) -> Verdict {
        let (got, port) = bind_virq(VIRQ_DEBUG, 0);
        done("bind_virq", got)?;
        refused("bind_virq", bind_virq(VIRQ_DEBUG, 0).0, &[EEXIST])?;
        done("close", port.close())?;
        let (got, _port) = bind_virq(VIRQ_DEBUG, 0);
        done("bind_virq after the close", got)
    }

    pub(super) fn virq_bad(_: &Env) -> Verdict {
        for virq in [NR_VIRQS, 255, u32::MAX] {
            refused("no VIRQ", bind_virq(virq, 0).0, &[EINVAL])?;
        }
        refused("no vCPU", bind_virq(VIRQ_DEBUG, NO_VCPU).0, &[ENOENT])
    }

    pub(super) fn virq_global(_: &Env) -> Verdict {
        // The refusal does not depend on whether vCPU 1 exists, nor on whether the domain may bind the VIRQ.
        refused("a global VIRQ on vCPU 1", bind_virq(VIRQ_ARGO, 1).0, &[EINVAL])
    }

    pub(super) fn ipi(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        let status = port.status()?;
        ensure_eq!((status.status, status.vcpu), (EVTCHNSTAT_IPI, 0), "the status");
        ensure!(!port.is_pending(), "it has an event before one was sent");
        done("send", port.send())?;
        ensure!(port.is_pending(), "it has no event");
        Ok(())
    }

    pub(super) fn ipi_bad(_: &Env) -> Verdict {
        for vcpu in [NO_VCPU, u32::MAX] {
            refused("bind_ipi", channel(EVTCHNOP_BIND_IPI, &mut EvtchnBindIpi { vcpu, port: 0 }), &[ENOENT])?;
        }
        Ok(())
    }

    pub(super) fn bind_vcpu(_: &Env) -> Verdict {
        let (first, _second) = Opened::pair()?;
        let to = |port, vcpu| channel(EVTCHNOP_BIND_VCPU, &mut EvtchnBindVcpu { port, vcpu });
        done("vCPU 0", to(first.0, 0))?;
        ensure_eq!(first.status()?.vcpu, 0, "the vCPU");
        refused("no vCPU", to(first.0, NO_VCPU), &[ENOENT])?;
        let ipi = Opened::ipi()?;
        refused("an IPI", to(ipi.0, 0), &[EINVAL])?;
        done("close", ipi.close())?;
        refused("a closed port", to(ipi.0, 0), &[EINVAL])
    }

    pub(super) fn status_unknown(_: &Env) -> Verdict {
        let status =
            |dom, port| channel(EVTCHNOP_STATUS, &mut EvtchnStatus { dom, port, ..Default::default() });
        for port in [1 << 17, u32::MAX] {
            refused("no port", status(DOMID_SELF, port), &[EINVAL])?;
        }
        refused("no domain", status(NO_DOMAIN, 1), &[ESRCH])
    }

    pub(super) fn alloc_for_others(env: &Env) -> Verdict {
        let alloc =
            |dom| channel(EVTCHNOP_ALLOC_UNBOUND, &mut EvtchnAllocUnbound { dom, remote_dom: 0, port: 0 });
        refused("a domain that is not", alloc(NO_DOMAIN), &[ESRCH])?;
        if !env.privileged {
            refused("the control domain", alloc(0), &[EPERM])?;
        }
        Ok(())
    }

    pub(super) fn priority_bad(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        for priority in [EVTCHN_FIFO_PRIORITY_MIN + 1, u32::MAX] {
            let mut arg = EvtchnSetPriority { port: port.0, priority };
            refused("set_priority", channel(EVTCHNOP_SET_PRIORITY, &mut arg), &[EINVAL, ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn control_bad(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let init = |control_gfn, offset, vcpu| {
            let mut arg = EvtchnInitControl { control_gfn, offset, vcpu, ..Default::default() };
            channel(EVTCHNOP_INIT_CONTROL, &mut arg)
        };
        let got = init(scratch.mfn(0), 0, NO_VCPU);
        require!(got != ENOSYS.negated(), "no FIFO ABI");
        refused("no vCPU", got, &[ENOENT])?;
        refused("off by bytes", init(scratch.mfn(0), 4, 0), &[EINVAL])?;
        refused("over the end", init(scratch.mfn(0), 4096 - 64, 0), &[EINVAL])?;
        refused("no frame", init(end_of_memory() + 1, 0, 0), &[EINVAL])
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [15, 99, u32::MAX] {
            refused("event_channel_op", channel(command, &mut [0u64; 4]), &[ENOSYS])?;
        }
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [
            EVTCHNOP_BIND_INTERDOMAIN,
            EVTCHNOP_BIND_VIRQ,
            EVTCHNOP_CLOSE,
            EVTCHNOP_SEND,
            EVTCHNOP_STATUS,
            EVTCHNOP_ALLOC_UNBOUND,
            EVTCHNOP_BIND_IPI,
            EVTCHNOP_BIND_VCPU,
            EVTCHNOP_UNMASK,
        ] {
            let got = call(__HYPERVISOR_EVENT_CHANNEL_OP, [command.into(), scratch.at(0), 0, 0, 0]);
            refused("event_channel_op", got, &[EFAULT])?;
        }
        Ok(())
    }
}
