//! A second vCPU: bringing it up and down, and events between the two vCPUs.
//!
//! A vCPU is initialised once in a domain's life, so the order of the cases matters: first those that need an
//! uninitialised vCPU, then those that run it, and last the case that moves its `vcpu_info` for good. Each case
//! leaves the vCPU down.

hypercall_cases! {
    "smp.before" = before {
        title: "a vCPU that has no registers yet",
        rule: "A vCPU that was not initialised is not up, and VCPUOP_up gives EINVAL.",
        source: "vcpu.h, VCPUOP_up, VCPUOP_is_up",
    }
    "smp.initialise-bad" = initialise_bad {
        title: "registers that no vCPU can have",
        rule: "VCPUOP_initialise refuses a top table that is none, and a handler that is not canonical, with EINVAL; the vCPU can still be initialised.",
        source: "vcpu.h, VCPUOP_initialise; arch-x86/xen.h, struct vcpu_guest_context",
    }
    "smp.initialise" = initialise {
        title: "a vCPU begins where it is told to",
        rule: "VCPUOP_initialise gives a vCPU its registers, and VCPUOP_up lets it run from there.",
        source: "vcpu.h, VCPUOP_initialise, VCPUOP_up",
    }
    "smp.initialise-again" = initialise_again {
        title: "a vCPU that has its registers, down",
        rule: "VCPUOP_initialise gives EEXIST for a vCPU that is initialised, whether it is up or down.",
        source: "vcpu.h, VCPUOP_initialise",
    }
    "smp.down-and-up" = down_and_up {
        title: "down, and on where it was",
        rule: "After VCPUOP_down a vCPU does not run; after VCPUOP_up it goes on behind the call.",
        source: "vcpu.h, VCPUOP_down, VCPUOP_up",
    }
    "smp.runstate" = runstate {
        title: "the times of a vCPU that is down",
        rule: "A vCPU that is down is in RUNSTATE_offline, and the time it spends there is counted.",
        source: "vcpu.h, VCPUOP_get_runstate_info, RUNSTATE_offline",
    }
    "smp.ipi" = ipi {
        title: "an event to the other vCPU",
        rule: "An event on a port bound by EVTCHNOP_bind_ipi to another vCPU is announced in that one's vcpu_info, not in the sender's.",
        source: "event_channel.h, EVTCHNOP_bind_ipi; xen.h, struct vcpu_info",
    }
    "smp.ipi-wakes" = ipi_wakes {
        title: "an event for a vCPU that is blocked",
        rule: "An event ends SCHEDOP_block of the vCPU that it notifies.",
        source: "sched.h, SCHEDOP_block; event_channel.h, EVTCHNOP_send",
    }
    "smp.bind-vcpu" = bind_vcpu {
        title: "a port that changes its vCPU",
        rule: "After EVTCHNOP_bind_vcpu the events of a port are announced to the vCPU named, and the status says so.",
        source: "event_channel.h, EVTCHNOP_bind_vcpu, EVTCHNOP_status",
    }
    "smp.virq" = virq {
        title: "a virtual interrupt of each vCPU",
        rule: "A VIRQ of the vCPU is bound on each by itself.",
        source: "xen.h, 'Virtual interrupts'; event_channel.h, EVTCHNOP_bind_virq",
    }
    "smp.others-timer" = others_timer {
        title: "the one-shot timer of another vCPU",
        rule: "A vCPU sets and stops its own one-shot timer alone: EINVAL for another's.",
        source: "vcpu.h, VCPUOP_set_singleshot_timer, VCPUOP_stop_singleshot_timer",
    }
    "smp.flush" = flush {
        title: "a mapping changed under both",
        rule: "A flush of all vCPUs, or of a set with the other in it, makes the new mapping count on the other vCPU before the call returns.",
        source: "xen.h, UVMF_ALL, UVMF_MULTI, MMUEXT_TLB_FLUSH_ALL, MMUEXT_INVLPG_ALL",
    }
    "smp.register-info-up" = register_info_up {
        title: "the vcpu_info of another vCPU that is up",
        rule: "VCPUOP_register_vcpu_info is for the caller itself, or for a vCPU that is down.",
        source: "vcpu.h, VCPUOP_register_vcpu_info",
    }
    "smp.register-info" = register_info {
        title: "a vcpu_info in a page of the guest's",
        rule: "VCPUOP_register_vcpu_info moves the vcpu_info there, with an event announced so that none is lost, once in a vCPU's life; from then on events are announced there.",
        source: "vcpu.h, VCPUOP_register_vcpu_info",
    }
}

#[cfg(freestanding)]
mod body {
    use core::sync::atomic::Ordering;

    use super::super::asm::second::{self, BLOCK, READ};
    use super::super::kit::*;
    use super::super::second::*;
    use ring_abi::evtchn::*;
    use ring_abi::mmu::*;
    use ring_abi::shared_info::{PENDING_SEL_OFFSET, UPCALL_MASK_OFFSET, UPCALL_PENDING_OFFSET};
    use ring_abi::vcpu::*;

    pub(super) fn before(_: &Env) -> Verdict {
        untouched()?;
        ensure_eq!(vcpu_op(VCPUOP_IS_UP, SECOND, 0), 0, "is_up");
        refused("up", vcpu_op(VCPUOP_UP, SECOND, 0), &[EINVAL])
    }

    pub(super) fn initialise_bad(_: &Env) -> Verdict {
        untouched()?;
        let scratch = Scratch::new(1);
        let mut bad = context();
        bad.ctrlreg[3] = scratch.mfn(0) << 12;
        refused("a writable page for a top table", initialise_with(&bad), &[EINVAL, EBUSY])?;
        let mut bad = context();
        bad.user_regs.rip = 1 << 62;
        refused("rip", initialise_with(&bad), &[EINVAL])?;
        let mut bad = context();
        bad.event_callback_eip = 1 << 62;
        refused("the event callback", initialise_with(&bad), &[EINVAL])?;
        ensure_eq!(vcpu_op(VCPUOP_IS_UP, SECOND, 0), 0, "is_up");
        refused("up", vcpu_op(VCPUOP_UP, SECOND, 0), &[EINVAL])
    }

    pub(super) fn initialise(_: &Env) -> Verdict {
        untouched()?;
        done("initialise", initialise_with(&context()))?;
        INITIALISED.store(true, Ordering::Relaxed);
        ensure!(!is_up(), "it is up before VCPUOP_up");
        let second = Second::up()?;
        ensure!(is_up(), "it is not up");
        ensure_eq!(second::argument().load(Ordering::SeqCst), 0x1234_5678, "rdi");
        drop(second);
        ensure!(!is_up(), "it does not go down");
        Ok(())
    }

    pub(super) fn initialise_again(_: &Env) -> Verdict {
        let second = Second::up()?;
        refused("while it is up", initialise_with(&context()), &[EEXIST])?;
        drop(second);
        refused("while it is down", initialise_with(&context()), &[EEXIST])
    }

    pub(super) fn down_and_up(_: &Env) -> Verdict {
        for _ in 0..3 {
            let second = Second::up()?;
            drop(second);
            ensure!(!is_up(), "it does not go down");
            let before = second::rounds().load(Ordering::SeqCst);
            for _ in 0..20 {
                call(__HYPERVISOR_SCHED_OP, [0; 5]);
            }
            ensure_eq!(second::rounds().load(Ordering::SeqCst), before, "its rounds while it is down");
        }
        done("down again", vcpu_op(VCPUOP_DOWN, SECOND, 0))
    }

    fn times() -> Verdict<VcpuRunstateInfo> {
        let mut info = VcpuRunstateInfo::default();
        done("get_runstate_info", vcpu_op(VCPUOP_GET_RUNSTATE_INFO, SECOND, (&raw mut info) as u64))?;
        Ok(info)
    }

    pub(super) fn runstate(_: &Env) -> Verdict {
        drop(Second::up()?);
        // The other CPU may still be on its way out of the call that took the second vCPU down.
        ensure!(until(|| times().is_ok_and(|times| times.state == RUNSTATE_OFFLINE)), "{:?}", times()?);
        let first = times()?;
        wait_until(3, || false);
        let second = times()?;
        let offline = RUNSTATE_OFFLINE as usize;
        ensure!(second.time[offline] >= first.time[offline] + 2_000_000, "{first:?}, then {second:?}");
        ensure_eq!(first.time[..offline], second.time[..offline], "the other times");
        Ok(())
    }

    pub(super) fn ipi(_: &Env) -> Verdict {
        not_moved()?;
        let _second = Second::up()?;
        let port = Opened::ipi_to(SECOND)?;
        ensure_eq!(port.status()?.vcpu, SECOND, "the vCPU in the status");
        clear_upcall();
        clear_record();
        done("send", port.send())?;
        ensure!(port.is_pending() && is_announced(), "the event is not announced to it");
        ensure!(!port.is_selected(), "the event is announced to the sender");
        let before = second::upcalls().load(Ordering::SeqCst);
        set_mask(0);
        ensure!(until(|| second::upcalls().load(Ordering::SeqCst) != before), "no upcall");
        Ok(())
    }

    pub(super) fn ipi_wakes(_: &Env) -> Verdict {
        not_moved()?;
        let second = Second::up()?;
        let port = Opened::ipi_to(SECOND)?;
        for _ in 0..3 {
            clear_record();
            second.tell(BLOCK);
            // The second vCPU reaches its block, and stays blocked.
            for _ in 0..50 {
                call(__HYPERVISOR_SCHED_OP, [0; 5]);
            }
            wait_until(2, || false);
            ensure!(!second.is_done(), "it does not block");
            let before = second::upcalls().load(Ordering::SeqCst);
            port.clear();
            done("send", port.send())?;
            ensure!(until(|| second.is_done()), "the event does not wake it");
            ensure_eq!(second::upcalls().load(Ordering::SeqCst) - before, 1, "upcalls");
        }
        Ok(())
    }

    pub(super) fn bind_vcpu(_: &Env) -> Verdict {
        not_moved()?;
        let _second = Second::up()?;
        let (from, to) = Opened::pair()?;
        for (vcpu, name) in [(SECOND, "the second"), (0, "the first"), (SECOND, "the second again")] {
            let mut arg = EvtchnBindVcpu { port: to.0, vcpu };
            done(name, channel(EVTCHNOP_BIND_VCPU, &mut arg))?;
            ensure_eq!(to.status()?.vcpu, vcpu, "the vCPU in the status");
            to.clear();
            clear_record();
            done("send", from.send())?;
            ensure!(to.is_pending(), "{name}: no event");
            ensure_eq!(
                (is_announced(), to.is_selected()),
                (vcpu == SECOND, vcpu == 0),
                "where it is announced, {name}"
            );
        }
        Ok(())
    }

    pub(super) fn virq(_: &Env) -> Verdict {
        there()?;
        let mut both = Vec::new();
        for vcpu in [0, SECOND] {
            let mut arg = EvtchnBindVirq { virq: VIRQ_DEBUG, vcpu, port: 0 };
            done("bind_virq", channel(EVTCHNOP_BIND_VIRQ, &mut arg))?;
            let port = Opened(arg.port);
            ensure_eq!(port.status()?.vcpu, vcpu, "the vCPU in the status");
            both.push(port);
        }
        let mut arg = EvtchnBindVirq { virq: VIRQ_DEBUG, vcpu: SECOND, port: 0 };
        refused("bind_virq again", channel(EVTCHNOP_BIND_VIRQ, &mut arg), &[EEXIST])
    }

    pub(super) fn others_timer(_: &Env) -> Verdict {
        there()?;
        let arg = VcpuSetSingleshotTimer { timeout_abs_ns: now() + 1_000_000_000, ..Default::default() };
        let at = (&raw const arg) as u64;
        refused("setting it", vcpu_op(VCPUOP_SET_SINGLESHOT_TIMER, SECOND, at), &[EINVAL])?;
        refused("stopping it", vcpu_op(VCPUOP_STOP_SINGLESHOT_TIMER, SECOND, 0), &[EINVAL])
    }

    pub(super) fn flush(_: &Env) -> Verdict {
        let second = Second::up()?;
        let scratch = Scratch::new(2);
        store("page 0", scratch.page(0), 1)?;
        store("page 1", scratch.page(1), 2)?;
        let (va, at) = (scratch.at(0), scratch.entry_address(0));
        second::at().store(va, Ordering::SeqCst);
        let set = 1u64 << SECOND | 1;
        let set = (&raw const set) as u64;
        let entry = |n: usize| scratch.mfn(n) << 12 | RW;
        let map_with =
            |n: usize, flags: u64| call(__HYPERVISOR_UPDATE_VA_MAPPING, [va, entry(n), flags, 0, 0]);
        let mmuext_with = |n: usize, cmd: u32, arg1: u64, arg2: u64| match update(at, entry(n)) {
            0 => extended(cmd, arg1, arg2),
            other => other,
        };
        let ways: [(&str, &dyn Fn(usize) -> i64); 8] = [
            ("UVMF_INVLPG ALL", &|n| map_with(n, UVMF_INVLPG | UVMF_ALL)),
            ("UVMF_TLB_FLUSH ALL", &|n| map_with(n, UVMF_TLB_FLUSH | UVMF_ALL)),
            ("UVMF_INVLPG MULTI", &|n| map_with(n, UVMF_INVLPG | set)),
            ("UVMF_TLB_FLUSH MULTI", &|n| map_with(n, UVMF_TLB_FLUSH | set)),
            ("TLB_FLUSH_ALL", &|n| mmuext_with(n, MMUEXT_TLB_FLUSH_ALL, 0, 0)),
            ("INVLPG_ALL", &|n| mmuext_with(n, MMUEXT_INVLPG_ALL, va, 0)),
            ("TLB_FLUSH_MULTI", &|n| mmuext_with(n, MMUEXT_TLB_FLUSH_MULTI, 0, set)),
            ("INVLPG_MULTI", &|n| mmuext_with(n, MMUEXT_INVLPG_MULTI, va, set)),
        ];
        for (name, way) in ways {
            for n in [0, 1] {
                done(name, way(n))?;
                second.make(READ)?;
                ensure_eq!(second::value().load(Ordering::SeqCst), n as u64 + 1, "what it sees after {name}");
            }
        }
        Ok(())
    }

    fn place(mfn: u64, offset: u32) -> i64 {
        let arg = VcpuRegisterVcpuInfo { mfn, offset, rsvd: 0 };
        vcpu_op(VCPUOP_REGISTER_VCPU_INFO, SECOND, (&raw const arg) as u64)
    }

    pub(super) fn register_info_up(_: &Env) -> Verdict {
        not_moved()?;
        let _second = Second::up()?;
        let scratch = Scratch::new(1);
        refused("while it is up", place(scratch.mfn(0), 0), &[EINVAL])
    }

    pub(super) fn register_info(_: &Env) -> Verdict {
        there()?;
        not_moved()?;
        drop(Second::up()?);
        set_mask(1);
        // The page holds the `vcpu_info` from now on, so it is never freed.
        let scratch = core::mem::ManuallyDrop::new(Scratch::new(1));
        done("register_vcpu_info", place(scratch.mfn(0), 128))?;
        MOVED.store(true, Ordering::Relaxed);
        let page = scratch.pages.page(0);
        ensure_eq!(page.load_u8(128 + UPCALL_MASK_OFFSET), 1, "the mask, as it was");
        ensure_eq!(page.load_u8(128 + UPCALL_PENDING_OFFSET), 1, "evtchn_upcall_pending");
        ensure_eq!(page.load_u64(128 + PENDING_SEL_OFFSET), u64::MAX, "evtchn_pending_sel");
        refused("once more", place(scratch.mfn(0), 256), &[EINVAL])?;
        page.store_u8(128 + UPCALL_PENDING_OFFSET, 0);
        page.store_u64(128 + PENDING_SEL_OFFSET, 0);
        clear_record();
        let port = Opened::ipi_to(SECOND)?;
        done("send", port.send())?;
        ensure_eq!(page.load_u8(128 + UPCALL_PENDING_OFFSET), 1, "evtchn_upcall_pending after an event");
        ensure_eq!(
            page.load_u64(128 + PENDING_SEL_OFFSET),
            1 << (port.0 / 64),
            "evtchn_pending_sel after an event"
        );
        ensure!(!is_announced(), "the event is announced in the old place");
        Ok(())
    }
}
