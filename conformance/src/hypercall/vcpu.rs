//! `vcpu_op`: vCPUs, their timers, and the areas in which the hypervisor reports their state and time.

hypercall_cases! {
    "vcpu.is-up" = is_up {
        title: "this vCPU runs, and others that there are not do not",
        rule: "VCPUOP_is_up gives 1 for a vCPU that is up, and ENOENT for one that does not exist.",
        source: "vcpu.h, VCPUOP_is_up",
    }
    "vcpu.initialise-again" = initialise_again {
        title: "a vCPU that has its registers",
        rule: "VCPUOP_initialise gives EEXIST for a vCPU that is initialised, and ENOENT for one that does not exist.",
        source: "vcpu.h, VCPUOP_initialise",
    }
    "vcpu.up-again" = up_again {
        title: "a vCPU that is up",
        rule: "VCPUOP_up gives 0 for a vCPU that is up.",
        source: "vcpu.h, VCPUOP_up",
    }
    "vcpu.up-uninitialised" = up_uninitialised {
        title: "a vCPU without registers",
        rule: "VCPUOP_up gives EINVAL for a vCPU that is not initialised.",
        source: "vcpu.h, VCPUOP_up",
    }
    "vcpu.none" = none {
        title: "operations on a vCPU that there is not",
        rule: "Operations on a vCPU that does not exist give ENOENT.",
        source: "vcpu.h",
    }
    "vcpu.unknown" = unknown {
        title: "an operation that there is not",
        rule: "An operation without a meaning gives ENOSYS.",
        source: "vcpu.h",
    }
    "vcpu.runstate" = runstate {
        title: "how long this vCPU was in which state",
        rule: "VCPUOP_get_runstate_info of the calling vCPU says that it runs, since when, and times that add up to the time that has passed.",
        source: "vcpu.h, VCPUOP_get_runstate_info, struct vcpu_runstate_info",
    }
    "vcpu.runstate-blocked" = runstate_blocked {
        title: "time spent blocked",
        rule: "time[RUNSTATE_blocked] grows by the time that the vCPU waited.",
        source: "vcpu.h, RUNSTATE_blocked",
    }
    "vcpu.runstate-area" = runstate_area {
        title: "an area that follows",
        rule: "A registered area is written at once and whenever the state changes.",
        source: "vcpu.h, VCPUOP_register_runstate_memory_area",
    }
    "vcpu.runstate-update-flag" = runstate_update_flag {
        title: "the mark of an area being written",
        rule: "With VMASST_TYPE_runstate_update_flag bit 63 of state_entry_time is set while the area is written, and never afterwards.",
        source: "vcpu.h, XEN_RUNSTATE_UPDATE; xen.h, VMASST_TYPE_runstate_update_flag",
    }
    "vcpu.runstate-area-ends" = runstate_area_ends {
        title: "an area that is taken away",
        rule: "After a null address is registered the old area is written no more.",
        source: "vcpu.h, VCPUOP_register_runstate_memory_area",
    }
    "vcpu.singleshot" = singleshot {
        title: "one event at its time",
        rule: "VCPUOP_set_singleshot_timer makes VIRQ_TIMER pending at the absolute system time, and not before.",
        source: "vcpu.h, VCPUOP_set_singleshot_timer",
    }
    "vcpu.singleshot-past" = singleshot_past {
        title: "a time that is past",
        rule: "A timeout in the past makes the event pending at once.",
        source: "vcpu.h, VCPUOP_set_singleshot_timer",
    }
    "vcpu.singleshot-future-only" = singleshot_future_only {
        title: "a time that is past and must not be",
        rule: "With VCPU_SSHOTTMR_future a timeout in the past gives ETIME, or makes the event pending at once.",
        source: "vcpu.h, VCPU_SSHOTTMR_future",
    }
    "vcpu.singleshot-replaced" = singleshot_replaced {
        title: "a timer set twice",
        rule: "A vCPU has one such timer: a second timeout takes the place of the first.",
        source: "vcpu.h, VCPUOP_set_singleshot_timer",
    }
    "vcpu.singleshot-stopped" = singleshot_stopped {
        title: "a timer that is stopped",
        rule: "After VCPUOP_stop_singleshot_timer no event comes.",
        source: "vcpu.h, VCPUOP_stop_singleshot_timer",
    }
    "vcpu.periodic" = periodic {
        title: "event after event",
        rule: "VCPUOP_set_periodic_timer makes VIRQ_TIMER pending again and again, until VCPUOP_stop_periodic_timer.",
        source: "vcpu.h, VCPUOP_set_periodic_timer, VCPUOP_stop_periodic_timer",
    }
    "vcpu.periodic-short" = periodic_short {
        title: "periods below a millisecond",
        rule: "VCPUOP_set_periodic_timer gives EINVAL for a period below 1 ms.",
        source: "vcpu.h, VCPUOP_set_periodic_timer",
    }
    "vcpu.info-placement" = info_placement {
        title: "where a vcpu_info cannot be",
        rule: "VCPUOP_register_vcpu_info refuses an offset that leads over the end of the page.",
        source: "vcpu.h, VCPUOP_register_vcpu_info",
    }
    "vcpu.info-frame" = info_frame {
        title: "frames that cannot hold a vcpu_info",
        rule: "VCPUOP_register_vcpu_info refuses a frame that is not the domain's, or is a page table.",
        source: "vcpu.h, VCPUOP_register_vcpu_info",
    }
    "vcpu.time-area" = time_area {
        title: "the clock in an area of the guest's",
        rule: "VCPUOP_register_vcpu_time_memory_area makes the hypervisor keep a copy of the vCPU's vcpu_time_info there.",
        source: "vcpu.h, VCPUOP_register_vcpu_time_memory_area",
    }
    "vcpu.fault" = fault {
        title: "arguments that cannot be read",
        rule: "An argument that is not mapped gives EFAULT.",
        source: "vcpu.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::kit::*;
    use core::mem::offset_of;
    use ring_abi::guest_context::VcpuGuestContext;
    use ring_abi::shared_info::{TIME_OFFSET, VcpuTimeInfo};
    use ring_abi::vcpu::*;
    use ring_abi::vm_assist::*;

    pub(super) fn is_up(_: &Env) -> Verdict {
        ensure_eq!(vcpu_op(VCPUOP_IS_UP, 0, 0), 1, "vCPU 0");
        for vcpu in [NO_VCPU, u32::MAX] {
            refused("no vCPU", vcpu_op(VCPUOP_IS_UP, vcpu, 0), &[ENOENT])?;
        }
        // Each vCPU number below 64 either exists or is refused with this error.
        for vcpu in 1..64 {
            let got = vcpu_op(VCPUOP_IS_UP, vcpu, 0);
            ensure!(matches!(got, 0 | 1) || got == ENOENT.negated(), "vCPU {vcpu}: {}", Got(got));
        }
        Ok(())
    }

    pub(super) fn initialise_again(_: &Env) -> Verdict {
        let context = alloc::boxed::Box::new(VcpuGuestContext::default());
        let at = (&raw const *context) as u64;
        refused("vCPU 0", vcpu_op(VCPUOP_INITIALISE, 0, at), &[EEXIST])?;
        refused("no vCPU", vcpu_op(VCPUOP_INITIALISE, NO_VCPU, at), &[ENOENT])
    }

    pub(super) fn up_again(_: &Env) -> Verdict {
        done("up", vcpu_op(VCPUOP_UP, 0, 0))
    }

    pub(super) fn up_uninitialised(_: &Env) -> Verdict {
        let last = (1..32).rev().find(|vcpu| has_vcpu(*vcpu) && vcpu_op(VCPUOP_IS_UP, *vcpu, 0) == 0);
        let Some(vcpu) = last else {
            return Err(Problem::Skip("one vCPU alone".into()));
        };
        refused("up", vcpu_op(VCPUOP_UP, vcpu, 0), &[EINVAL])
    }

    pub(super) fn none(_: &Env) -> Verdict {
        for command in [
            VCPUOP_UP,
            VCPUOP_DOWN,
            VCPUOP_IS_UP,
            VCPUOP_GET_RUNSTATE_INFO,
            VCPUOP_STOP_PERIODIC_TIMER,
            VCPUOP_STOP_SINGLESHOT_TIMER,
        ] {
            let mut words = [0u64; 8];
            refused("vcpu_op", vcpu_op(command, NO_VCPU, words.as_mut_ptr() as u64), &[ENOENT])?;
        }
        Ok(())
    }

    pub(super) fn unknown(_: &Env) -> Verdict {
        for command in [57, 1000, 0x7fff_ffff] {
            refused("vcpu_op", vcpu_op(command, 0, 0), &[ENOSYS])?;
        }
        Ok(())
    }

    fn state() -> Verdict<VcpuRunstateInfo> {
        let mut info = VcpuRunstateInfo::default();
        done("get_runstate_info", vcpu_op(VCPUOP_GET_RUNSTATE_INFO, 0, (&raw mut info) as u64))?;
        Ok(info)
    }

    /// How far two readings of one clock may differ, in nanoseconds.
    const SLACK: u64 = 200_000;

    pub(super) fn runstate(_: &Env) -> Verdict {
        let before = now();
        let first = state()?;
        let after = now();
        ensure_eq!(first.state, RUNSTATE_RUNNING, "the state");
        ensure!(
            first.state_entry_time <= after + SLACK,
            "entered at {}, now {after}",
            first.state_entry_time
        );
        wait_until(2, || false);
        let begin = now();
        let second = state()?;
        let end = now();
        let sum = |info: &VcpuRunstateInfo| info.time.iter().sum::<u64>();
        let passed = sum(&second).wrapping_sub(sum(&first));
        ensure!(
            passed + SLACK >= begin - after && passed <= end - before + SLACK,
            "{passed} ns, and {} to {} passed",
            begin - after,
            end - before
        );
        let shrunk = (0..4).find(|state| second.time[*state] < first.time[*state]);
        ensure!(shrunk.is_none(), "time of state {shrunk:?} went back");
        Ok(())
    }

    /// Blocks for `ns`, several times: where other vCPUs run, part of the time may pass before the block
    /// begins.
    fn sleep(ns: u64) -> Verdict {
        for _ in 0..4 {
            let mut arg = ring_abi::sched::SchedPoll { timeout: now() + ns, ..Default::default() };
            given("poll", op(__HYPERVISOR_SCHED_OP, ring_abi::sched::SCHEDOP_POLL, &mut arg))?;
        }
        Ok(())
    }

    pub(super) fn runstate_blocked(_: &Env) -> Verdict {
        let first = state()?;
        sleep(5_000_000)?;
        let second = state()?;
        let blocked = RUNSTATE_BLOCKED as usize;
        let grown = second.time[blocked] - first.time[blocked];
        ensure!(grown >= 4_000_000, "blocked for {grown} ns of 5000000");
        ensure!(second.state_entry_time > first.state_entry_time, "the entry time stands");
        Ok(())
    }

    fn register(at: u64) -> i64 {
        let arg = VcpuRegisterRunstateMemoryArea { addr: at };
        vcpu_op(VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA, 0, (&raw const arg) as u64)
    }

    pub(super) fn runstate_area(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.page(0) + 64;
        let read = |offset: usize| load("the area", at + offset as u64);
        store("the area", at, u64::MAX)?;
        done("register", register(at))?;
        ensure_eq!(read(0)? as i32, RUNSTATE_RUNNING, "the state");
        let before = state()?;
        sleep(2_000_000)?;
        ensure_eq!(read(0)? as i32, RUNSTATE_RUNNING, "the state");
        let entered = read(offset_of!(VcpuRunstateInfo, state_entry_time))?;
        let blocked = read(offset_of!(VcpuRunstateInfo, time) + 8 * RUNSTATE_BLOCKED as usize)?;
        done("none", register(0))?;
        ensure!(entered > before.state_entry_time, "the entry time stands: {entered}");
        ensure!(blocked >= before.time[RUNSTATE_BLOCKED as usize] + 1_000_000, "the blocked time stands");
        ensure_eq!(load("beyond the area", at + 48)?, 0, "the word behind");
        Ok(())
    }

    pub(super) fn runstate_update_flag(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.page(0);
        let assist = |command: u32| {
            call(__HYPERVISOR_VM_ASSIST, [command.into(), VMASST_TYPE_RUNSTATE_UPDATE_FLAG.into(), 0, 0, 0])
        };
        done("vm_assist", assist(VMASST_CMD_ENABLE))?;
        done("register", register(at))?;
        let mut wrong = None;
        for _ in 0..5 {
            sleep(200_000)?;
            let entered = load("the area", at + 8)?;
            if entered & XEN_RUNSTATE_UPDATE != 0 || entered == 0 || entered > now() + SLACK {
                wrong = Some(entered);
            }
        }
        done("none", register(0))?;
        done("vm_assist", assist(VMASST_CMD_DISABLE))?;
        ensure!(wrong.is_none(), "state_entry_time {wrong:x?}");
        Ok(())
    }

    pub(super) fn runstate_area_ends(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        done("register", register(scratch.page(0)))?;
        done("none", register(0))?;
        for word in 0..6 {
            store("the area", scratch.page(0) + word * 8, 0x5555)?;
        }
        sleep(1_000_000)?;
        for word in 0..6 {
            ensure_eq!(load("the area", scratch.page(0) + word * 8)?, 0x5555, "word {word}");
        }
        Ok(())
    }

    pub(super) fn singleshot(_: &Env) -> Verdict {
        let port = timer_port()?;
        let deadline = now() + 2_000_000;
        done("set_singleshot_timer", fire_at(deadline))?;
        ensure!(wait_until(5_000, || port.is_pending()), "no event within 5 s");
        let at = now();
        ensure!(at + SLACK / 2 >= deadline, "{} ns too early", deadline - at);
        // The timer fires once.
        port.clear();
        ensure!(!wait_until(5, || port.is_pending()), "a second event");
        Ok(())
    }

    pub(super) fn singleshot_past(_: &Env) -> Verdict {
        let port = timer_port()?;
        for deadline in [1, now() - 1_000_000] {
            port.clear();
            done("set_singleshot_timer", fire_at(deadline))?;
            ensure!(wait_until(2_000, || port.is_pending()), "no event for {deadline}");
        }
        Ok(())
    }

    pub(super) fn singleshot_future_only(_: &Env) -> Verdict {
        let port = timer_port()?;
        let arg =
            VcpuSetSingleshotTimer { timeout_abs_ns: 1, flags: VCPU_SSHOTTMR_FUTURE, ..Default::default() };
        let got = vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, 0, (&raw const arg) as u64);
        if got == 0 {
            ensure!(wait_until(2_000, || port.is_pending()), "0, and no event");
            return Ok(());
        }
        refused("a past timeout", got, &[ETIME])?;
        ensure!(!wait_until(5, || port.is_pending()), "ETIME, and an event");
        Ok(())
    }

    pub(super) fn singleshot_replaced(_: &Env) -> Verdict {
        let port = timer_port()?;
        done("a near timeout", fire_at(now() + 3_000_000))?;
        done("a far timeout", fire_at(now() + 3_600_000_000_000))?;
        // On a busy machine the first timer may have fired before the second replaced it.
        port.clear();
        ensure!(!wait_until(20, || port.is_pending()), "the first timeout counts");
        let deadline = now() + 1_000_000;
        done("a near timeout", fire_at(deadline))?;
        ensure!(wait_until(5_000, || port.is_pending()), "the last timeout does not count");
        Ok(())
    }

    pub(super) fn singleshot_stopped(_: &Env) -> Verdict {
        let port = timer_port()?;
        done("set_singleshot_timer", fire_at(now() + 10_000_000))?;
        done("stop_singleshot_timer", vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0))?;
        port.clear();
        ensure!(!wait_until(30, || port.is_pending()), "an event");
        done("stop again", vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, 0, 0))
    }

    fn period(period_ns: u64) -> i64 {
        let arg = VcpuSetPeriodicTimer { period_ns };
        vcpu_op(VCPUOP_SET_PERIODIC_TIMER, 0, (&raw const arg) as u64)
    }

    pub(super) fn periodic(_: &Env) -> Verdict {
        let port = timer_port()?;
        done("set_periodic_timer", period(2_000_000))?;
        let mut count = 0;
        while count < 4 && wait_until(2_000, || port.is_pending()) {
            port.clear();
            count += 1;
        }
        done("stop_periodic_timer", vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, 0, 0))?;
        ensure_eq!(count, 4, "events");
        port.clear();
        ensure!(!wait_until(20, || port.is_pending()), "an event after the stop");
        Ok(())
    }

    pub(super) fn periodic_short(_: &Env) -> Verdict {
        for ns in [1, 1000, 999_999] {
            let got = period(ns);
            if got == 0 {
                vcpu_op(VCPUOP_STOP_PERIODIC_TIMER, 0, 0);
            }
            refused("a short period", got, &[EINVAL])?;
        }
        Ok(())
    }

    fn place(mfn: u64, offset: u32) -> i64 {
        let arg = VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 };
        vcpu_op(VCPUOP_REGISTER_VCPU_INFO, 0, (&raw const arg) as u64)
    }

    pub(super) fn info_placement(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for offset in [4096 - 56, 4096, u32::MAX - 63] {
            refused("over the end", place(scratch.mfn(0), offset), &[EINVAL, ENXIO])?;
        }
        Ok(())
    }

    pub(super) fn info_frame(_: &Env) -> Verdict {
        refused("a page table", place(base(), 0), &[EINVAL, EBUSY])?;
        refused("no frame", place(end_of_memory() + 1, 0), &[EINVAL])
    }

    pub(super) fn time_area(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        let at = scratch.page(0) + 32;
        let arg = VcpuRegisterTimeMemoryArea { addr: at };
        let none = VcpuRegisterTimeMemoryArea { addr: 0 };
        let set = |arg: &VcpuRegisterTimeMemoryArea| {
            vcpu_op(VCPUOP_REGISTER_VCPU_TIME_MEMORY_AREA, 0, (&raw const *arg) as u64)
        };
        let got = set(&arg);
        require!(got != ENOSYS.negated(), "no such operation here");
        done("register", got)?;
        sleep(2_000_000)?;
        let bytes = scratch.pages.page(0);
        let record = || -> VcpuTimeInfo { pvrt::shared_info().read_value(TIME_OFFSET) };
        let (mut kept, mut copy): (_, VcpuTimeInfo) = (record(), bytes.read_value(32));
        // The hypervisor may write both anew at any time.
        while record() != kept {
            (kept, copy) = (record(), bytes.read_value(32));
        }
        done("none", set(&none))?;
        ensure!(copy.version & 1 == 0 && copy.tsc_to_system_mul != 0, "{copy:?}");
        ensure_eq!(
            (copy.tsc_to_system_mul, copy.tsc_shift),
            (kept.tsc_to_system_mul, kept.tsc_shift),
            "the scale"
        );
        let tsc = pvrt::time::tsc();
        let (by_copy, by_record) = (copy.nanoseconds_at(tsc), kept.nanoseconds_at(tsc));
        ensure!(by_copy.abs_diff(by_record) < 1_000_000, "{by_copy} and {by_record} ns");
        ensure_eq!(load("beyond", at + 32)?, 0, "the word behind");
        Ok(())
    }

    pub(super) fn fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for command in [
            VCPUOP_GET_RUNSTATE_INFO,
            VCPUOP_REGISTER_RUNSTATE_MEMORY_AREA,
            VCPUOP_SET_PERIODIC_TIMER,
            VCPUOP_SET_SINGLESHOT_TIMER,
            VCPUOP_REGISTER_VCPU_INFO,
        ] {
            refused("vcpu_op", vcpu_op(command, 0, scratch.at(0)), &[EFAULT])?;
        }
        Ok(())
    }
}
