//! How events reach the guest: the callback and its registration, the mask, the frame.

hypercall_cases! {
    "upcall.delivered" = delivered {
        title: "an event with the mask clear",
        rule: "With an event pending and evtchn_upcall_mask clear the vCPU enters the event callback on its way back into the guest.",
        source: "xen.h, struct vcpu_info; callback.h, CALLBACKTYPE_event",
    }
    "upcall.masked" = masked {
        title: "an event with the mask set",
        rule: "With evtchn_upcall_mask set no event callback is entered; the event stays pending.",
        source: "xen.h, struct vcpu_info, evtchn_upcall_mask",
    }
    "upcall.sets-mask" = sets_mask {
        title: "the callback is entered with events masked",
        rule: "evtchn_upcall_mask is set as the event callback is entered, and the frame says that it was clear.",
        source: "xen.h, struct vcpu_info, evtchn_upcall_mask; arch-x86/xen.h, struct cpu_user_regs, saved_upcall_mask",
    }
    "upcall.frame" = frame {
        title: "the frame of an upcall",
        rule: "The callback finds rcx, r11, rip, cs, rflags, rsp and ss on an aligned stack, the privilege level of the kernel being 0 and the interrupt flag the inverse of the mask.",
        source: "arch-x86/xen-x86_64.h; callback.h",
    }
    "upcall.keeps-pending" = keeps_pending {
        title: "what the callback is to look at",
        rule: "Delivery does not clear the pending bits, the selector or evtchn_upcall_pending: the guest does.",
        source: "xen.h, struct vcpu_info, evtchn_upcall_pending",
    }
    "upcall.once" = once {
        title: "several events, one upcall",
        rule: "However many events are pending, the callback is entered once while the mask stays set.",
        source: "xen.h, struct vcpu_info",
    }
    "upcall.after-clearing" = after_clearing {
        title: "an event that came while the mask was set",
        rule: "An event that came under the mask is delivered on the way back from the next hypercall after the mask is cleared.",
        source: "xen.h, struct vcpu_info, evtchn_upcall_mask",
    }
    "upcall.resumes" = resumes {
        title: "the callback returns to where it came from",
        rule: "A callback that returns by its frame resumes the guest with all registers as they were.",
        source: "arch-x86/xen-x86_64.h, struct iret_context",
    }
    "upcall.unmask-delivers" = unmask_delivers {
        title: "an event behind a port's mask, unmasked",
        rule: "EVTCHNOP_unmask of a pending port delivers at once where the vCPU's mask is clear.",
        source: "event_channel.h, EVTCHNOP_unmask",
    }
    "upcall.callback-event" = callback_event {
        title: "another callback for events",
        rule: "CALLBACKOP_register replaces the event callback.",
        source: "callback.h, CALLBACKOP_register, CALLBACKTYPE_event",
    }
    "upcall.callback-bad-address" = callback_bad_address {
        title: "callbacks that nobody could enter",
        rule: "CALLBACKOP_register refuses an address that is not canonical with EINVAL.",
        source: "callback.h, CALLBACKOP_register",
    }
    "upcall.callback-unknown" = callback_unknown {
        title: "types and operations that there are not",
        rule: "callback_op refuses an unknown type and an unknown operation with ENOSYS or EINVAL.",
        source: "callback.h, 'Callback types', 'Commands'",
    }
    "upcall.callback-unregister" = callback_unregister {
        title: "what cannot be given up",
        rule: "CALLBACKOP_unregister gives EINVAL for the event, failsafe and system call callbacks.",
        source: "callback.h, CALLBACKOP_unregister",
    }
    "upcall.callback-fault" = callback_fault {
        title: "an argument that cannot be read",
        rule: "callback_op gives EFAULT where it cannot read its argument.",
        source: "callback.h",
    }
}

#[cfg(freestanding)]
mod body {
    use super::super::asm;
    use super::super::kit::*;
    use ring_abi::callback::*;
    use ring_abi::evtchn::{EVTCHNOP_UNMASK, EvtchnUnmask};
    use ring_abi::segment::{FLAT_KERNEL_CS, FLAT_KERNEL_SS};

    fn register(kind: u16, flags: u16, address: u64) -> i64 {
        let mut arg = CallbackRegister { r#type: kind, flags, address, ..Default::default() };
        op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_REGISTER, &mut arg)
    }

    /// Registers a callback that ends the attempt which an upcall interrupts.
    fn catch_upcalls() -> Verdict {
        given("event callback", register(CALLBACKTYPE_EVENT, 0, probe::entry(probe::EVENT))).map(|_| ())
    }

    /// Registers a callback that counts upcalls and returns.
    fn count_upcalls() -> Verdict {
        given("event callback", register(CALLBACKTYPE_EVENT, 0, asm::upcall())).map(|_| ())
    }

    /// Clears the event mask and makes a hypercall; returns the upcall, if one came.
    fn open() -> Option<Trap> {
        let trap = attempt(|| {
            set_upcall_mask(0);
            nothing();
        });
        set_upcall_mask(1);
        trap
    }

    /// Sends an event with the event mask clear; returns the upcall, if one came.
    fn send_open(port: &Opened) -> Option<Trap> {
        clear_upcall();
        attempt(|| {
            set_upcall_mask(0);
            port.send();
        })
    }

    pub(super) fn delivered(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        trapped("the event", send_open(&port), probe::EVENT).map(|_| ())
    }

    pub(super) fn masked(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        let trap = attempt(|| {
            port.send();
            for _ in 0..100 {
                nothing();
            }
        });
        untrapped("under the mask", trap)?;
        ensure!(port.is_pending() && upcall_pending(), "the event is gone");
        Ok(())
    }

    pub(super) fn sets_mask(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        let trap = send_open(&port);
        let mask = upcall_mask();
        let trap = trapped("the event", trap, probe::EVENT)?;
        ensure_eq!(mask, 1, "the mask in the callback");
        ensure_eq!(trap.mask, 0, "the mask in the frame");
        Ok(())
    }

    pub(super) fn frame(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        let trap = trapped("the event", send_open(&port), probe::EVENT)?;
        ensure_eq!(trap.cs, FLAT_KERNEL_CS & !3, "cs");
        ensure_eq!(trap.ss & !3, FLAT_KERNEL_SS & !3, "ss");
        ensure!(trap.rflags & 1 << 9 != 0, "the interrupt flag of {:#x}", trap.rflags);
        ensure_eq!(trap.handler.cs, FLAT_KERNEL_CS, "cs of the callback");
        ensure_eq!(trap.handler.ss, FLAT_KERNEL_SS, "ss of the callback");
        // rcx, r11, rip, cs, rflags, rsp, ss.
        ensure_eq!((trap.handler.rsp + 7 * 8) % 16, 0, "the end of the frame");
        ensure!(trap.handler.rsp < trap.rsp && trap.rsp - trap.handler.rsp < 128, "the stack: {trap:x?}");
        Ok(())
    }

    pub(super) fn keeps_pending(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        trapped("the event", send_open(&port), probe::EVENT)?;
        ensure!(port.is_pending() && port.is_selected() && upcall_pending(), "the words were cleared");
        Ok(())
    }

    pub(super) fn once(_: &Env) -> Verdict {
        let ports = [Opened::ipi()?, Opened::ipi()?, Opened::ipi()?];
        count_upcalls()?;
        for port in &ports {
            done("send", port.send())?;
        }
        let before = asm::upcalls();
        set_upcall_mask(0);
        for _ in 0..10 {
            nothing();
        }
        let mask = upcall_mask();
        set_upcall_mask(1);
        ensure_eq!(asm::upcalls() - before, 1, "upcalls");
        ensure_eq!(mask, 1, "the mask after them");
        Ok(())
    }

    pub(super) fn after_clearing(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        clear_upcall();
        done("send", port.send())?;
        trapped("the next call", open(), probe::EVENT).map(|_| ())
    }

    pub(super) fn resumes(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        count_upcalls()?;
        let before = asm::upcalls();
        done("send", port.send())?;
        set_upcall_mask(0);
        let changed = asm::changed_registers();
        set_upcall_mask(1);
        ensure_eq!(asm::upcalls() - before, 1, "upcalls");
        ensure_eq!(changed, 0, "registers that changed");
        Ok(())
    }

    pub(super) fn unmask_delivers(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        catch_upcalls()?;
        port.set_mask(true);
        clear_upcall();
        done("send", port.send())?;
        port.clear();
        done("send", port.send())?;
        let mut arg = EvtchnUnmask { port: port.0 };
        clear_upcall();
        let trap = attempt(|| {
            set_upcall_mask(0);
            channel(EVTCHNOP_UNMASK, &mut arg);
        });
        trapped("unmask", trap, probe::EVENT).map(|_| ())
    }

    pub(super) fn callback_event(_: &Env) -> Verdict {
        let port = Opened::ipi()?;
        done("register", register(CALLBACKTYPE_EVENT, 0, asm::upcall()))?;
        let before = asm::upcalls();
        untrapped("the first callback", send_open(&port))?;
        set_upcall_mask(1);
        ensure_eq!(asm::upcalls() - before, 1, "upcalls");
        done("register", register(CALLBACKTYPE_EVENT, 0, probe::entry(probe::EVENT)))?;
        port.clear();
        trapped("the second callback", send_open(&port), probe::EVENT)?;
        ensure_eq!(asm::upcalls() - before, 1, "upcalls of the first");
        Ok(())
    }

    pub(super) fn callback_bad_address(_: &Env) -> Verdict {
        for kind in [
            CALLBACKTYPE_EVENT,
            CALLBACKTYPE_FAILSAFE,
            CALLBACKTYPE_SYSCALL,
            CALLBACKTYPE_SYSENTER,
            CALLBACKTYPE_SYSCALL32,
        ] {
            for address in [1 << 63, 0x0000_8000_0000_0000] {
                refused("register", register(kind, 0, address), &[EINVAL])?;
            }
        }
        Ok(())
    }

    pub(super) fn callback_unknown(_: &Env) -> Verdict {
        for kind in [6, 8, 100, u16::MAX] {
            refused("an unknown type", register(kind, 0, asm::upcall()), &[ENOSYS, EINVAL])?;
        }
        let mut arg = CallbackRegister::default();
        refused("an unknown operation", op(__HYPERVISOR_CALLBACK_OP, 2, &mut arg), &[ENOSYS])
    }

    pub(super) fn callback_unregister(_: &Env) -> Verdict {
        for kind in [CALLBACKTYPE_EVENT, CALLBACKTYPE_FAILSAFE, CALLBACKTYPE_SYSCALL] {
            let mut arg = CallbackUnregister { r#type: kind, ..Default::default() };
            refused("unregister", op(__HYPERVISOR_CALLBACK_OP, CALLBACKOP_UNREGISTER, &mut arg), &[EINVAL])?;
        }
        Ok(())
    }

    pub(super) fn callback_fault(_: &Env) -> Verdict {
        let scratch = Scratch::new(1);
        for operation in [CALLBACKOP_REGISTER, CALLBACKOP_UNREGISTER] {
            let got = call(__HYPERVISOR_CALLBACK_OP, [operation.into(), scratch.at(0), 0, 0, 0]);
            refused("callback_op", got, &[EFAULT])?;
        }
        Ok(())
    }
}
