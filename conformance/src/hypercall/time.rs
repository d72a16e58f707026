//! The clocks of shared_info, and `set_timer_op`.

hypercall_cases! {
    "time.record" = record {
        title: "a record of the clock",
        rule: "vcpu_time_info has an even version outside updates, a scale, and no flags but those defined.",
        source: "xen.h, struct vcpu_time_info",
    }
    "time.monotonic" = monotonic {
        title: "system time does not go back",
        rule: "System time, computed from the record and the TSC, never goes back on one vCPU.",
        source: "xen.h, struct vcpu_time_info",
    }
    "time.consistent" = consistent {
        title: "an old record and a new one",
        rule: "Records of the clock agree: what an older one gives for a TSC is what a newer one gives for it.",
        source: "xen.h, struct vcpu_time_info",
    }
    "time.not-after-now" = not_after_now {
        title: "the record is of the past",
        rule: "tsc_timestamp of a record is not after the TSC that the guest reads.",
        source: "xen.h, struct vcpu_time_info, tsc_timestamp",
    }
    "time.tsc" = tsc {
        title: "the TSC goes on",
        rule: "The TSC that a guest reads never goes back on one vCPU, across hypercalls and waits.",
        source: "xen.h, struct vcpu_time_info; arch-x86/cpuid.h, leaf 4",
    }
    "time.wall-clock" = wall_clock {
        title: "the wall clock",
        rule: "wc_version is even outside updates, wc_nsec is below a second, and the time is one of these years.",
        source: "xen.h, struct shared_info, wc_version, wc_sec, wc_nsec",
    }
    "time.wall-clock-base" = wall_clock_base {
        title: "the wall clock at system time 0",
        rule: "wc_sec and wc_nsec are the wall clock at system time 0, and stay while nobody sets the clock.",
        source: "xen.h, struct shared_info, 'Wallclock time: updated only by control software'",
    }
    "time.set-timer" = set_timer {
        title: "an event at a time",
        rule: "set_timer_op makes VIRQ_TIMER pending at the absolute system time, and not before.",
        source: "xen.h, HYPERVISOR_set_timer_op",
    }
    "time.set-timer-past" = set_timer_past {
        title: "a time that is past",
        rule: "set_timer_op with a time in the past makes the event pending at once.",
        source: "xen.h, HYPERVISOR_set_timer_op",
    }
    "time.set-timer-stop" = set_timer_stop {
        title: "a timer that is stopped",
        rule: "set_timer_op with 0 stops the timer.",
        source: "xen.h, HYPERVISOR_set_timer_op",
    }
    "time.set-timer-shared" = set_timer_shared {
        title: "the one timer of a vCPU",
        rule: "set_timer_op and VCPUOP_set_singleshot_timer set the same timer.",
        source: "xen.h, HYPERVISOR_set_timer_op; vcpu.h, VCPUOP_set_singleshot_timer",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use ring_abi::shared_info::*;

    fn read() -> Verdict<VcpuTimeInfo> {
        let info = pvrt::shared_info();
        for _ in 0..1000 {
            let first: VcpuTimeInfo = info.read_value(TIME_OFFSET);
            let second: VcpuTimeInfo = info.read_value(TIME_OFFSET);
            if first == second && first.version & 1 == 0 {
                return Ok(first);
            }
        }
        Err(Problem::Fail("the record is always being written".into()))
    }

    pub(super) fn record(_: &Env) -> Verdict {
        let time = read()?;
        ensure!(time.version & 1 == 0, "version {}", time.version);
        ensure!(time.tsc_to_system_mul != 0, "no scale");
        ensure!((-32..32).contains(&time.tsc_shift), "a shift of {}", time.tsc_shift);
        let defined = XEN_PVCLOCK_TSC_STABLE_BIT | XEN_PVCLOCK_GUEST_STOPPED;
        ensure!(time.flags & !defined == 0, "flags {:#x}", time.flags);
        Ok(())
    }

    pub(super) fn monotonic(_: &Env) -> Verdict {
        let mut last = now();
        for round in 0..20_000 {
            if round % 100 == 0 {
                nothing();
            }
            let next = now();
            ensure!(next >= last, "{next} after {last}");
            last = next;
        }
        Ok(())
    }

    pub(super) fn consistent(_: &Env) -> Verdict {
        let old = read()?;
        // The hypervisor may write another version meanwhile, but need not.
        wait_until(50, || false);
        let new = read()?;
        let tsc = pvrt::time::tsc();
        let (by_old, by_new) = (old.nanoseconds_at(tsc), new.nanoseconds_at(tsc));
        ensure!(by_old.abs_diff(by_new) < 1_000_000, "{by_old} and {by_new} ns");
        Ok(())
    }

    pub(super) fn not_after_now(_: &Env) -> Verdict {
        for _ in 0..200 {
            let time = read()?;
            let tsc = pvrt::time::tsc();
            ensure!(time.tsc_timestamp <= tsc, "{} after {tsc}", time.tsc_timestamp);
            call(__HYPERVISOR_SCHED_OP, [0; 5]);
        }
        Ok(())
    }

    pub(super) fn tsc(_: &Env) -> Verdict {
        let mut last = pvrt::time::tsc();
        for round in 0..5_000 {
            if round % 64 == 0 {
                call(__HYPERVISOR_SCHED_OP, [0; 5]);
            }
            let next = pvrt::time::tsc();
            ensure!(next >= last, "{next} after {last}");
            last = next;
        }
        Ok(())
    }

    /// Version, seconds and nanoseconds of the wall clock, of one moment: the hypervisor may write them at any time.
    fn wall() -> (u32, u64, u32) {
        let info = pvrt::shared_info();
        let word = |offset| info.load_u32(offset);
        let read = || {
            let seconds = u64::from(word(WC_SEC_HI_OFFSET)) << 32 | u64::from(word(WC_SEC_OFFSET));
            (word(WC_VERSION_OFFSET), seconds, word(WC_NSEC_OFFSET))
        };
        let mut last = read();
        for _ in 0..1000 {
            let next = read();
            if next == last && next.0 & 1 == 0 {
                break;
            }
            last = next;
        }
        last
    }

    pub(super) fn wall_clock(_: &Env) -> Verdict {
        let (version, seconds, ns) = wall();
        ensure!(version & 1 == 0, "version {version}");
        ensure!(ns < 1_000_000_000, "{ns} ns");
        let today = seconds + now() / 1_000_000_000;
        // The years 2001 to 2100.
        ensure!((978_307_200..4_102_444_800).contains(&today), "{today} s since 1970");
        Ok(())
    }

    pub(super) fn wall_clock_base(_: &Env) -> Verdict {
        let before = wall();
        wait_until(30, || false);
        let after = wall();
        let ns = |(_, seconds, ns): (u32, u64, u32)| seconds * 1_000_000_000 + u64::from(ns);
        ensure!(ns(before).abs_diff(ns(after)) < 5_000_000, "{before:?} became {after:?}");
        Ok(())
    }

    fn set(at: u64) -> i64 {
        call(__HYPERVISOR_SET_TIMER_OP, [at, 0, 0, 0, 0])
    }

    pub(super) fn set_timer(_: &Env) -> Verdict {
        let port = timer_port()?;
        let deadline = now() + 2_000_000;
        done("set_timer_op", set(deadline))?;
        ensure!(wait_until(5_000, || port.is_pending()), "no event within 5 s");
        let at = now();
        ensure!(at + 100_000 >= deadline, "{} ns too early", deadline - at);
        port.clear();
        ensure!(!wait_until(5, || port.is_pending()), "a second event");
        Ok(())
    }

    pub(super) fn set_timer_past(_: &Env) -> Verdict {
        let port = timer_port()?;
        for at in [1, now() - 1_000_000] {
            port.clear();
            done("set_timer_op", set(at))?;
            ensure!(wait_until(2_000, || port.is_pending()), "no event for {at}");
        }
        Ok(())
    }

    pub(super) fn set_timer_stop(_: &Env) -> Verdict {
        let port = timer_port()?;
        done("set_timer_op", set(now() + 10_000_000))?;
        done("stop", set(0))?;
        port.clear();
        ensure!(!wait_until(30, || port.is_pending()), "an event");
        Ok(())
    }

    pub(super) fn set_timer_shared(_: &Env) -> Verdict {
        let port = timer_port()?;
        done("set_timer_op", set(now() + 10_000_000))?;
        done("set_singleshot_timer", fire_at(now() + 3_600_000_000_000))?;
        port.clear();
        ensure!(!wait_until(30, || port.is_pending()), "the first timeout counts");
        done("stop", set(0))
    }
}
