//! Queues: order, links, tails and ready bits, and what happens when a guest overwrites them.

hypercall_cases! {
    "fifo.order" = order {
        title: "three events of one queue",
        rule: "Ports are linked in the order of their events: the head names the first, each word the next, the last none.",
        source: "event_channel.h, EVTCHN_FIFO_LINK_MASK, struct evtchn_fifo_control_block, head",
    }
    "fifo.one-upcall" = one_upcall {
        title: "more events behind the first",
        rule: "An event that is linked behind another sets neither the ready bit nor evtchn_upcall_pending.",
        source: "event_channel.h, struct evtchn_fifo_control_block, ready",
    }
    "fifo.ready-set" = ready_set {
        title: "a new head while the ready bit stands",
        rule: "An event of an empty queue whose ready bit is set makes no upcall.",
        source: "event_channel.h, struct evtchn_fifo_control_block, ready",
    }
    "fifo.emptied" = emptied {
        title: "an event of another port after all were taken",
        rule: "When all events of a queue were taken, the next is its head, and is announced.",
        source: "event_channel.h, struct evtchn_fifo_control_block, head",
    }
    "fifo.emptied-same" = emptied_same {
        title: "the port again that was the last",
        rule: "The port that was taken last from a queue may be its next head.",
        source: "event_channel.h, struct evtchn_fifo_control_block, head",
    }
    "fifo.taken-in-part" = taken_in_part {
        title: "an event while two of three are taken",
        rule: "A port is linked behind the tail as long as the tail is linked, however many before it were taken.",
        source: "event_channel.h, EVTCHN_FIFO_LINKED, EVTCHN_FIFO_LINK_MASK",
    }
    "fifo.taken-again" = taken_again {
        title: "a port that was taken while others wait",
        rule: "A port that was taken off its queue and has a new event is linked behind those that wait.",
        source: "event_channel.h, EVTCHN_FIFO_LINKED",
    }
    "fifo.round" = round {
        title: "a hundred rounds of twenty ports",
        rule: "No event is lost and none comes twice, in whatever order the ports are sent.",
        source: "event_channel.h, 'Ports FIFO-based ABI'",
    }
    "fifo.priority-two-levels" = priority_two_levels {
        title: "a priority with two levels",
        rule: "EVTCHNOP_set_priority gives ENOSYS while the domain has two levels.",
        source: "event_channel.h, EVTCHNOP_set_priority",
    }
    "fifo.priority-bad" = priority_bad {
        title: "a priority that there is not",
        rule: "EVTCHNOP_set_priority gives EINVAL beyond EVTCHN_FIFO_PRIORITY_MIN.",
        source: "event_channel.h, EVTCHNOP_set_priority, EVTCHN_FIFO_PRIORITY_MIN",
    }
    "fifo.priority-closed" = priority_closed {
        title: "the priority of a port that is not open",
        rule: "EVTCHNOP_set_priority is refused for a closed port, and gives EINVAL for one that there cannot be.",
        source: "event_channel.h, EVTCHNOP_set_priority",
    }
    "fifo.priorities" = priorities {
        title: "each of the sixteen priorities",
        rule: "An event goes to the queue of its port's priority: its head and its ready bit.",
        source: "event_channel.h, EVTCHNOP_set_priority, EVTCHN_FIFO_MAX_QUEUES",
    }
    "fifo.priority-order" = priority_order {
        title: "events of several priorities",
        rule: "Each priority has its own queue: ports of different ones are not linked.",
        source: "event_channel.h, EVTCHNOP_set_priority, struct evtchn_fifo_control_block",
    }
    "fifo.priority-linked" = priority_linked {
        title: "a priority changed while the port is linked",
        rule: "A linked port stays on its queue when its priority changes: the next event goes to the new one.",
        source: "event_channel.h, EVTCHNOP_set_priority",
    }
    "fifo.priority-masked" = priority_masked {
        title: "a priority changed while the port is masked",
        rule: "A pending, masked port goes to the queue that its priority names at the unmask.",
        source: "event_channel.h, EVTCHNOP_set_priority, EVTCHNOP_unmask",
    }
    "fifo.priority-left" = priority_left {
        title: "another event on a queue that its tail has left",
        rule: "When a port that was a queue's last moves to another queue, the first is empty: its next event is its head.",
        source: "event_channel.h, EVTCHNOP_set_priority, struct evtchn_fifo_control_block",
    }
    "fifo.priority-opened" = priority_opened {
        title: "the priority of a port opened again",
        rule: "A port begins with EVTCHN_FIFO_PRIORITY_DEFAULT, whatever it had before it was closed.",
        source: "event_channel.h, EVTCHN_FIFO_PRIORITY_DEFAULT",
    }
    "fifo.rubbish-link" = rubbish_link {
        title: "a link that the guest wrote",
        rule: "The hypervisor sets the whole link of a queue's tail, whatever the guest wrote there, and clears BUSY.",
        source: "event_channel.h, EVTCHN_FIFO_LINK_MASK, EVTCHN_FIFO_BUSY",
    }
    "fifo.rubbish-tail" = rubbish_tail {
        title: "a tail that the guest took off by itself",
        rule: "A queue whose tail is not linked is empty: its next event is its head.",
        source: "event_channel.h, EVTCHN_FIFO_LINKED",
    }
    "fifo.rubbish-head" = rubbish_head {
        title: "a head that the guest wrote",
        rule: "The hypervisor writes the head of an empty queue alone, and reads none.",
        source: "event_channel.h, struct evtchn_fifo_control_block, head",
    }
    "fifo.rubbish-all" = rubbish_all {
        title: "words and control block all ones",
        rule: "Whatever a guest writes, each call on its ports ends, and later events come when the words are put right.",
        source: "event_channel.h, 'Ports FIFO-based ABI'",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::super::kit::*;
    use super::super::kit::*;
    use ring_abi::evtchn::fifo::*;
    use ring_abi::evtchn::*;

    /// Switches to the FIFO, and opens `N` ports by which this vCPU can send itself events.
    fn scene<const N: usize>() -> Verdict<(Fifo, [u32; N])> {
        let fifo = Fifo::ready()?;
        let mut ports = [0; N];
        for port in &mut ports {
            *port = fifo.ipi()?;
        }
        fifo.events();
        clear_upcall();
        Ok((fifo, ports))
    }

    fn all(ports: &[u32]) -> Verdict {
        ports.iter().try_for_each(|port| send(*port))
    }

    pub(super) fn order(_: &Env) -> Verdict {
        let (fifo, [a, b, c]) = scene()?;
        all(&[c, a, b])?;
        ensure_eq!(fifo.head(7), c, "the head");
        let set = PENDING | LINKED;
        ensure_eq!([fifo.word(c), fifo.word(a), fifo.word(b)], [set | a, set | b, set], "the words");
        ensure_eq!(fifo.events(), [c, a, b], "the events");
        Ok(())
    }

    pub(super) fn one_upcall(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        ensure!(take_upcall(), "no upcall for the first");
        fifo.block().store_u32(READY_OFFSET, 0);
        send(b)?;
        ensure_eq!((fifo.ready_bits(), upcall_pending()), (0, false), "ready bits and upcall");
        ensure_eq!((fifo.word(a) & EVTCHN_FIFO_LINK_MASK, fifo.head(7)), (b, a), "link and head");
        Ok(())
    }

    pub(super) fn ready_set(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        fifo.block().store_u32(READY_OFFSET, 1 << 7);
        send(a)?;
        ensure_eq!((fifo.head(7), fifo.ready_bits()), (a, 1 << 7), "head and ready bits");
        ensure!(!upcall_pending(), "an upcall");
        Ok(())
    }

    pub(super) fn emptied(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        ensure_eq!(fifo.events(), [a], "the first event");
        clear_upcall();
        send(b)?;
        ensure_eq!((fifo.head(7), fifo.word(a)), (b, 0), "the head, and the word of the last");
        ensure!(upcall_pending(), "no upcall");
        Ok(())
    }

    pub(super) fn emptied_same(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        for _ in 0..3 {
            clear_upcall();
            send(a)?;
            ensure!(upcall_pending(), "no upcall");
            ensure_eq!((fifo.head(7), fifo.word(a)), (a, PENDING | LINKED), "head and word");
            ensure_eq!(fifo.events(), [a], "the events");
        }
        Ok(())
    }

    pub(super) fn taken_in_part(_: &Env) -> Verdict {
        let (fifo, [a, b, c, d]) = scene()?;
        all(&[a, b, c])?;
        let (array, mut queues) = (fifo.array(), EventQueues::new(fifo.block()));
        ensure_eq!((queues.next(&array), queues.next(&array)), (Some(a), Some(b)), "the first two");
        send(d)?;
        ensure_eq!(fifo.word(c), PENDING | LINKED | d, "the word of the tail");
        ensure_eq!((queues.next(&array), queues.next(&array)), (Some(c), Some(d)), "the others");
        ensure_eq!(queues.next(&array), None, "one more");
        Ok(())
    }

    pub(super) fn taken_again(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        all(&[a, b])?;
        let (array, mut queues) = (fifo.array(), EventQueues::new(fifo.block()));
        ensure_eq!(queues.next(&array), Some(a), "the first");
        send(a)?;
        ensure_eq!(fifo.word(b), PENDING | LINKED | a, "the word of the tail");
        ensure_eq!((queues.next(&array), queues.next(&array)), (Some(b), Some(a)), "the others");
        Ok(())
    }

    pub(super) fn round(_: &Env) -> Verdict {
        let (fifo, ports) = scene::<20>()?;
        for round in 0..100 {
            let sent: Vec<u32> = (0..20 - round % 7).map(|n| ports[(n * 7 + round) % 20]).collect();
            all(&sent)?;
            ensure_eq!(fifo.events(), sent, "the events of round {round}");
        }
        Ok(())
    }

    pub(super) fn priority_two_levels(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        refused("set_priority", priority(port.0, 3), &[ENOSYS])
    }

    pub(super) fn priority_bad(_: &Env) -> Verdict {
        let (_fifo, [a]) = scene()?;
        for level in [EVTCHN_FIFO_PRIORITY_MIN + 1, 255, 256, u32::MAX] {
            refused("set_priority", priority(a, level), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn priority_closed(_: &Env) -> Verdict {
        let (_fifo, [a]) = scene()?;
        close(a)?;
        refused("a closed port", priority(a, 3), &[EACCES, EINVAL])?;
        for port in [1 << 17, u32::MAX] {
            refused("no port", priority(port, 3), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn priorities(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        for level in 0..16 {
            done("set_priority", priority(a, level))?;
            send(a)?;
            ensure_eq!((fifo.head(level), fifo.ready_bits()), (a, 1 << level), "queue {level}");
            ensure!(take_upcall(), "no upcall for queue {level}");
            ensure_eq!(fifo.events(), [a], "the events of queue {level}");
        }
        Ok(())
    }

    pub(super) fn priority_order(_: &Env) -> Verdict {
        let (fifo, [a, b, c]) = scene()?;
        done("set_priority", priority(b, 0))?;
        done("set_priority", priority(c, 15))?;
        all(&[c, a, b])?;
        ensure_eq!(fifo.ready_bits(), 1 << 15 | 1 << 7 | 1, "the ready bits");
        let links = [a, b, c].map(|port| fifo.word(port) & EVTCHN_FIFO_LINK_MASK);
        ensure_eq!(links, [0; 3], "the links");
        ensure_eq!(fifo.events(), [b, a, c], "the events");
        Ok(())
    }

    pub(super) fn priority_linked(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        send(a)?;
        done("set_priority", priority(a, 2))?;
        send(a)?;
        ensure_eq!(fifo.ready_bits(), 1 << 7, "the ready bits");
        ensure_eq!(fifo.events(), [a], "the events");
        send(a)?;
        ensure_eq!((fifo.ready_bits(), fifo.head(2)), (1 << 2, a), "ready bits and head");
        Ok(())
    }

    pub(super) fn priority_masked(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        fifo.array().mask(a);
        send(a)?;
        done("set_priority", priority(a, 1))?;
        unmask(a)?;
        ensure_eq!((fifo.ready_bits(), fifo.head(1)), (1 << 1, a), "ready bits and head");
        Ok(())
    }

    pub(super) fn priority_left(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        fifo.events();
        done("set_priority", priority(a, 2))?;
        all(&[a, b])?;
        ensure_eq!((fifo.head(7), fifo.word(a) & EVTCHN_FIFO_LINK_MASK), (b, 0), "head and link");
        ensure_eq!(fifo.events(), [a, b], "the events");
        Ok(())
    }

    pub(super) fn priority_opened(_: &Env) -> Verdict {
        let (fifo, [a]) = scene()?;
        done("set_priority", priority(a, 0))?;
        close(a)?;
        let again = fifo.ipi()?;
        ensure_eq!(again, a, "the lowest port that is free");
        send(again)?;
        ensure_eq!(fifo.ready_bits(), 1 << 7, "the ready bits");
        Ok(())
    }

    pub(super) fn rubbish_link(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        fifo.array().set_word(a, PENDING | LINKED | BUSY | EVTCHN_FIFO_LINK_MASK);
        send(b)?;
        ensure_eq!(fifo.word(a), PENDING | LINKED | b, "the word");
        ensure_eq!(fifo.events(), [a, b], "the events");
        Ok(())
    }

    pub(super) fn rubbish_tail(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        fifo.array().set_word(a, 0);
        fifo.block().store_u32(READY_OFFSET, 0);
        clear_upcall();
        send(b)?;
        ensure_eq!((fifo.head(7), fifo.word(a), fifo.ready_bits()), (b, 0, 1 << 7), "head, word, ready bits");
        ensure!(upcall_pending(), "no upcall");
        Ok(())
    }

    pub(super) fn rubbish_head(_: &Env) -> Verdict {
        let (fifo, [a, b]) = scene()?;
        send(a)?;
        fifo.block().store_u32(HEAD_OFFSET + 7 * 4, u32::MAX);
        send(b)?;
        ensure_eq!((fifo.head(7), fifo.word(a)), (u32::MAX, PENDING | LINKED | b), "head and word");
        Ok(())
    }

    pub(super) fn rubbish_all(_: &Env) -> Verdict {
        let (fifo, ports) = scene::<8>()?;
        for word in [u32::MAX, LINKED | 7, PENDING | LINKED | BUSY, BUSY, EVTCHN_FIFO_LINK_MASK, !MASKED] {
            fifo.block().fill(0, 72, 0xff);
            (0..1024).for_each(|port| fifo.array().set_word(port, word));
            all(&ports)?;
            ports.iter().try_for_each(|port| unmask(*port))?;
        }
        (0..1024).for_each(|port| fifo.array().set_word(port, 0));
        fifo.block().fill(0, 72, 0);
        for port in ports {
            send(port)?;
            let events = fifo.events();
            ensure_eq!(events, [port], "the events");
        }
        Ok(())
    }
}
