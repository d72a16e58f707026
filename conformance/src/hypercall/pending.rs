//! The pending bit, selector and upcall flag that an event sets, and the masks that hold events back.

hypercall_cases! {
    "event.words" = words {
        title: "the bits that an event sets",
        rule: "An event on an unmasked port sets its pending bit, the selector's bit of that word, and evtchn_upcall_pending.",
        source: "event_channel.h, '2-level ABI'; xen.h, struct shared_info",
    }
    "event.masked" = masked {
        title: "an event on a masked port",
        rule: "An event on a masked port sets its pending bit, and neither the selector nor evtchn_upcall_pending.",
        source: "xen.h, struct shared_info, evtchn_mask",
    }
    "event.pending-already" = pending_already {
        title: "a second event before the first is taken",
        rule: "An event on a port that is pending changes nothing.",
        source: "xen.h, struct shared_info, evtchn_pending",
    }
    "event.unmask" = unmask {
        title: "a masked event comes with the unmask",
        rule: "EVTCHNOP_unmask clears the mask bit, and for a pending port sets the selector and evtchn_upcall_pending.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "event.unmask-quiet" = unmask_quiet {
        title: "nothing waits behind the mask",
        rule: "EVTCHNOP_unmask of a port that is not pending notifies nobody.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "event.unmask-bad" = unmask_bad {
        title: "the unmask of a port that there cannot be",
        rule: "EVTCHNOP_unmask gives EINVAL for a port beyond the last.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "event.independent" = independent {
        title: "ports of different words",
        rule: "Each port has its own bit, and each word of bits its own in the selector.",
        source: "xen.h, struct shared_info, evtchn_pending; struct vcpu_info, evtchn_pending_sel",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::evtchn::*;

    pub(super) fn words(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        clear_upcall();
        done("send", port.send())?;
        ensure!(port.is_pending(), "no pending bit");
        ensure!(port.is_selected(), "no bit of the selector");
        ensure!(upcall_pending(), "no evtchn_upcall_pending");
        Ok(())
    }

    pub(super) fn masked(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        port.set_mask(true);
        clear_upcall();
        done("send", port.send())?;
        let (selected, upcall) = (port.is_selected(), upcall_pending());
        ensure!(port.is_pending(), "no pending bit");
        // Events of the runtime may come at any time, but set other bits of the selector.
        ensure!(!selected, "the selector has the bit of a masked port, upcall_pending {upcall}");
        Ok(())
    }

    pub(super) fn pending_already(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        done("send", port.send())?;
        ensure!(port.is_selected(), "no bit of the selector");
        clear_upcall();
        done("send", port.send())?;
        ensure!(port.is_pending(), "no pending bit");
        ensure!(!port.is_selected(), "the selector has the bit again");
        Ok(())
    }

    fn unmask_of(port: u32) -> i64 {
        channel(EVTCHNOP_UNMASK, &mut EvtchnUnmask { port })
    }

    pub(super) fn unmask(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        port.set_mask(true);
        clear_upcall();
        done("send", port.send())?;
        done("unmask", unmask_of(port.0))?;
        ensure!(!port.is_masked(), "the mask bit stands");
        ensure!(port.is_pending(), "no pending bit");
        ensure!(port.is_selected() && upcall_pending(), "the event is not announced");
        Ok(())
    }

    pub(super) fn unmask_quiet(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        port.set_mask(true);
        clear_upcall();
        done("unmask", unmask_of(port.0))?;
        ensure!(!port.is_masked() && !port.is_pending(), "the port's bits");
        ensure!(!port.is_selected(), "an event is announced");
        done("unmask of what is not masked", unmask_of(port.0))
    }

    pub(super) fn unmask_bad(_: &Env) -> Verdict {
        for port in [1 << 17, u32::MAX] {
            refused("unmask", unmask_of(port), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn independent(_: &Env) -> Verdict {
        let mut ports = Vec::new();
        for _ in 0..130 {
            ports.push(Opened::ipi()?);
        }
        let (low, high) = (&ports[0], &ports[129]);
        ensure!(low.0 / 64 != high.0 / 64, "ports {} and {}", low.0, high.0);
        clear_upcall();
        done("send", high.send())?;
        ensure!(high.is_pending() && high.is_selected(), "port {}", high.0);
        let wrong: Vec<_> = ports[..129].iter().filter(|port| port.is_pending()).map(|port| port.0).collect();
        ensure!(wrong.is_empty(), "other ports are pending: {wrong:?}");
        high.clear();
        done("send", low.send())?;
        ensure!(low.is_pending() && low.is_selected() && !high.is_pending(), "port {}", low.0);
        Ok(())
    }
}
