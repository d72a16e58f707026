//! How domains stop: a shutdown, a crash, or the end of the last vCPU.

use alloc::sync::Arc;
use core::fmt;

use ring_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};
use ring_abi::types::DomId;

use crate::Hypervisor;
use crate::domain::{Current, Domain, Vcpu};
use crate::platform::{Platform, PowerAction};
use crate::return_stack;
use ring_abi::evtchn::VIRQ_DOM_EXC;

impl<P: Platform> Hypervisor<P> {
    /// Stops the domain for `reason` (`SHUTDOWN_*`), and sends `VIRQ_DOM_EXC` to dom0. When dom0 itself stops, so
    /// does the machine.
    pub fn shutdown_domain(&self, domain: &Arc<Domain>, reason: u32) {
        let _filled = return_stack::fill_at_end();
        {
            let mut state = domain.shutdown.lock();
            if state.is_shut_down {
                return;
            }
            state.is_shut_down = true;
            state.code.get_or_insert(reason);
            // Under the lock: who resumes the domain finds the hold. (I56)
            self.hold_domain(domain);
        }
        if domain.id == DomId::new(0) {
            log::info!("dom0 shut down: reason {reason}");
            self.platform.power(match reason {
                SHUTDOWN_POWEROFF => PowerAction::Off,
                SHUTDOWN_REBOOT => PowerAction::Reboot,
                _ => PowerAction::Crash,
            });
        }
        self.send_global_virq(VIRQ_DOM_EXC);
    }

    /// Lets a domain that was shut down go on, as after a cancelled suspend.
    pub(crate) fn resume_domain(&self, domain: &Arc<Domain>) {
        let mut state = domain.shutdown.lock();
        let was_down = core::mem::take(&mut *state).is_shut_down;
        drop(state);
        if was_down {
            self.unpause_domain(domain);
        }
    }

    /// Ends a domain that did what no domain must do: the domain stops as crashed, and no other domain is touched.
    pub fn crash_domain(&self, domain: &Arc<Domain>, reason: fmt::Arguments<'_>) {
        if domain.shutdown.lock().is_shut_down || domain.is_dying() {
            return;
        }
        if domain.id == DomId::DOM0 || self.may_report() {
            log::error!("d{}: crashed: {reason}", domain.id.raw());
        }
        self.shutdown_domain(domain, SHUTDOWN_CRASH);
    }

    /// Whether there may be another report about a guest in the log. Says how many were held back before.
    pub(crate) fn may_report(&self) -> bool {
        let held_back = self.console.reports.allow(self.platform.now_ns());
        if let Some(count @ 1..) = held_back {
            log::warn!("{count} reports about guests were held back");
        }
        held_back.is_some()
    }

    /// `VCPUOP_down`: stops the vCPU. The last vCPU to stop powers the domain off.
    pub(crate) fn vcpu_down(&self, domain: &Arc<Domain>, vcpu: &Vcpu) {
        self.take_down(domain, vcpu);
        if !domain.vcpus.iter().any(Vcpu::is_up) {
            self.shutdown_domain(domain, SHUTDOWN_POWEROFF);
        }
    }
}

impl<P: Platform> Current<'_, P> {
    /// Crashes the caller's domain, with its registers in the log.
    #[cold]
    pub fn crash(&self, reason: fmt::Arguments<'_>) {
        if self.domain.id == DomId::DOM0 || self.hv.may_report() {
            self.vcpu.log_registers(log::Level::Error, self.regs);
        }
        self.hv.crash_domain(self.domain, reason);
    }
}
