//! `sched_op`: yielding, blocking, polling.

hypercall_cases! {
    "sched.yield" = yield_cpu {
        title: "the CPU for others",
        rule: "SCHEDOP_yield gives 0, and leaves the event mask as it is.",
        source: "sched.h, SCHEDOP_yield",
    }
    "sched.block-pending" = block_pending {
        title: "an event that waits already",
        rule: "SCHEDOP_block returns at once if an event is pending, which it delivers.",
        source: "sched.h, SCHEDOP_block",
    }
    "sched.block-wakes" = block_wakes {
        title: "an event that comes later",
        rule: "SCHEDOP_block waits until an event is delivered, and clears the event mask before it does.",
        source: "sched.h, SCHEDOP_block",
    }
    "sched.poll-pending" = poll_pending {
        title: "a port that is pending already",
        rule: "SCHEDOP_poll returns 0 at once if one of its ports is pending, and leaves the bit.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.poll-masked" = poll_masked {
        title: "a port that is masked",
        rule: "SCHEDOP_poll looks at pending bits, whether the ports are masked or not.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.poll-event" = poll_event {
        title: "a port that becomes pending",
        rule: "SCHEDOP_poll waits until one of its ports is pending.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.poll-timeout" = poll_timeout {
        title: "no port, or none that becomes pending",
        rule: "SCHEDOP_poll returns 0 when its timeout, in system time, has come, and not before.",
        source: "sched.h, struct sched_poll, timeout",
    }
    "sched.poll-past" = poll_past {
        title: "a timeout that is past",
        rule: "SCHEDOP_poll with a timeout in the past returns 0 at once.",
        source: "sched.h, struct sched_poll, timeout",
    }
    "sched.poll-keeps-mask" = poll_keeps_mask {
        title: "events stay masked",
        rule: "SCHEDOP_poll leaves evtchn_upcall_mask as it is and delivers nothing while it is set.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.poll-bad-port" = poll_bad_port {
        title: "ports that there cannot be",
        rule: "SCHEDOP_poll gives EINVAL for a port beyond the last.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.poll-too-many" = poll_too_many {
        title: "more ports than are looked at",
        rule: "SCHEDOP_poll gives EINVAL for more than 128 ports.",
        source: "sched.h, struct sched_poll, nr_ports",
    }
    "sched.poll-fault" = poll_fault {
        title: "ports that cannot be read",
        rule: "SCHEDOP_poll gives EFAULT where it cannot read its argument or the ports.",
        source: "sched.h, SCHEDOP_poll",
    }
    "sched.watchdog" = watchdog {
        title: "a watchdog is made, fed and taken away",
        rule: "SCHEDOP_watchdog with id 0 gives the id of a new watchdog; with an id it sets its timeout, and 0 seconds end it.",
        source: "sched.h, SCHEDOP_watchdog",
    }
    "sched.watchdog-bad" = watchdog_bad {
        title: "watchdogs that there are not",
        rule: "SCHEDOP_watchdog gives EINVAL for an id without a watchdog.",
        source: "sched.h, SCHEDOP_watchdog",
    }
    "sched.remote-shutdown-refused" = remote_shutdown_refused {
        title: "the end of another domain",
        rule: "SCHEDOP_remote_shutdown gives ESRCH for a domain that does not exist, and EPERM to a domain without rights over the other.",
        source: "sched.h, SCHEDOP_remote_shutdown",
    }
    "sched.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "sched.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::asm;
    use super::super::kit::*;
    use ring_abi::callback::{CALLBACKOP_REGISTER, CallbackRegister};
    use ring_abi::sched::*;

    fn sched<T>(command: u32, arg: &mut T) -> i64 {
        op(__HYPERVISOR_SCHED_OP, command, arg)
    }

    fn poll(ports: &[u32], timeout: u64) -> i64 {
        let mut arg = SchedPoll {
            ports: ports.as_ptr() as u64,
            nr_ports: ports.len() as u32,
            timeout,
            ..Default::default()
        };
        sched(SCHEDOP_POLL, &mut arg)
    }

    /// Polls again until `over`, since an event of any other port, masked or not, may also end a poll.
    fn poll_through(ports: &[u32], timeout: u64, over: impl Fn() -> bool) -> Verdict {
        for _ in 0..20 {
            clear_upcall();
            done("poll", poll(ports, timeout))?;
            if over() {
                break;
            }
        }
        Ok(())
    }

    /// A timeout that is too late to end a poll in the case's time.
    fn far() -> u64 {
        now() + 5_000_000_000
    }

    pub(super) fn yield_cpu(_: &Env) -> Verdict {
        for _ in 0..10 {
            done("yield", call(__HYPERVISOR_SCHED_OP, [SCHEDOP_YIELD.into(), 0, 0, 0, 0]))?;
            ensure_eq!(upcall_mask(), 1, "the mask");
        }
        Ok(())
    }

    fn count_upcalls() -> Verdict {
        let mut arg = CallbackRegister { address: asm::upcall(), ..Default::default() };
        given("event callback", op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut arg)).map(|_| ())
    }

    fn block() -> i64 {
        call(__HYPERVISOR_SCHED_OP, [SCHEDOP_BLOCK.into(), 0, 0, 0, 0])
    }

    pub(super) fn block_pending(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        count_upcalls()?;
        done("send", port.send())?;
        let before = asm::upcalls();
        done("block", block())?;
        ensure_eq!(asm::upcalls() - before, 1, "upcalls");
        ensure_eq!(upcall_mask(), 1, "the mask that the upcall set");
        Ok(())
    }

    pub(super) fn block_wakes(_: &Env) -> Verdict {
        let port = timer_port()?;
        count_upcalls()?;
        let deadline = now() + 3_000_000;
        given("the timer", fire_at(deadline))?;
        // An event of the runtime may end a poll earlier.
        for _ in 0..100 {
            clear_upcall();
            if port.is_pending() {
                break;
            }
            let before = asm::upcalls();
            done("block", block())?;
            ensure_eq!(asm::upcalls() - before, 1, "upcalls");
        }
        ensure!(port.is_pending(), "the timer's event did not come");
        ensure!(now() + 100_000 >= deadline, "woken too early");
        Ok(())
    }

    pub(super) fn poll_pending(_: &Env) -> Verdict {
        let ports = [Opened::ipi()?, Opened::ipi()?];
        done("send", ports[1].send())?;
        let start = now();
        done("poll", poll(&[ports[0].0, ports[1].0], far()))?;
        ensure!(now() - start < 2_000_000_000, "it waited");
        ensure!(ports[1].is_pending(), "the bit is gone");
        Ok(())
    }

    pub(super) fn poll_masked(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        port.set_mask(true);
        done("send", port.send())?;
        let start = now();
        done("poll", poll(&[port.0], far()))?;
        ensure!(now() - start < 2_000_000_000, "it waited");
        Ok(())
    }

    pub(super) fn poll_event(_: &Env) -> Verdict {
        let port = timer_port()?;
        for masked in [false, true] {
            port.clear();
            port.set_mask(masked);
            let deadline = now() + 3_000_000;
            given("the timer", fire_at(deadline))?;
            let got = poll_through(&[port.0], far(), || port.is_pending());
            let (pending, late) = (port.is_pending(), now());
            port.set_mask(false);
            got?;
            ensure!(pending, "it ended without an event, masked: {masked}");
            ensure!(late + 100_000 >= deadline, "it ended too early, masked: {masked}");
        }
        Ok(())
    }

    pub(super) fn poll_timeout(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        for ports in [&[][..], &[port.0]] {
            let deadline = now() + 3_000_000;
            let over = || now() + 100_000 >= deadline;
            poll_through(ports, deadline, over)?;
            ensure!(over(), "{} ns too early", deadline.saturating_sub(now()));
        }
        Ok(())
    }

    pub(super) fn poll_past(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        for timeout in [1, now() - 1_000_000] {
            let start = now();
            done("poll", poll(&[port.0], timeout))?;
            ensure!(now() - start < 2_000_000_000, "it waited");
        }
        Ok(())
    }

    pub(super) fn poll_keeps_mask(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        count_upcalls()?;
        done("send", port.send())?;
        let before = asm::upcalls();
        done("poll", poll(&[port.0], far()))?;
        ensure_eq!(upcall_mask(), 1, "the mask");
        ensure_eq!(asm::upcalls(), before, "upcalls");
        Ok(())
    }

    pub(super) fn poll_bad_port(_: &Env) -> Verdict {
        for port in [1 << 17, u32::MAX] {
            refused("poll", poll(&[port], far()), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn poll_too_many(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        done("send", port.send())?;
        done("128 ports", poll(&[port.0; 128], far()))?;
        refused("129 ports", poll(&[port.0; 129], far()), &[EINVAL])
    }

    pub(super) fn poll_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        refused(
            "no argument",
            call(__HYPERVISOR_SCHED_OP, [SCHEDOP_POLL.into(), scratch.at(0), 0, 0, 0]),
            &[EFAULT],
        )?;
        let mut arg = SchedPoll { ports: scratch.at(0), nr_ports: 2, timeout: far(), ..Default::default() };
        refused("no ports", sched(SCHEDOP_POLL, &mut arg), &[EFAULT])
    }

    fn dog(id: u32, timeout: u32) -> i64 {
        sched(SCHEDOP_WATCHDOG, &mut SchedWatchdog { id, timeout })
    }

    pub(super) fn watchdog(_: &Env) -> Verdict {
        let id = value("a new watchdog", dog(0, 600))? as u32;
        ensure!(id != 0, "a watchdog without an id");
        done("another timeout", dog(id, 900))?;
        done("its end", dog(id, 0))?;
        refused("its end again", dog(id, 0), &[EINVAL, EEXIST])
    }

    pub(super) fn watchdog_bad(_: &Env) -> Verdict {
        refused("an id without a watchdog", dog(1, 600), &[EINVAL, EEXIST])?;
        refused("an id beyond all", dog(1000, 600), &[EINVAL])
    }

    pub(super) fn remote_shutdown_refused(env: &Env) -> Verdict {
        let end = |domain_id| {
            sched(
                SCHEDOP_REMOTE_SHUTDOWN,
                &mut SchedRemoteShutdown { domain_id, reason: SHUTDOWN_CRASH, ..Default::default() },
            )
        };
        refused("a domain that is not", end(NO_DOMAIN), &[ESRCH])?;
        if !env.privileged {
            refused("the control domain", end(0), &[EPERM])?;
        }
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [8, 99, u32::MAX] {
            refused("sched_op", sched(command, &mut [0u64; 4]), &[ENOSYS])?;
        }
        Ok(())
    }
}
