//! A guest that is asked to suspend, and what becomes of it.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;

use pvrt::executor::time;
use pvrt::hypercall::{domctl, saved};
use ring_abi::domctl::{XEN_DOMINF_PAUSED, XEN_DOMINF_SHUTDOWN};
use ring_abi::errno::Errno;
use ring_abi::sched::SHUTDOWN_SUSPEND;
use ring_abi::types::DomId;

use super::super::{Domain, Toolstack, nodes};

/// How long a guest may take to suspend, as with Xen's `xl`.
const SUSPEND_NS: u64 = 60_000_000_000;
/// What `sched_op(shutdown)` returns to a guest whose suspend was called off.
const CANCELLED: u64 = 1;

/// A domain that was asked to suspend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::toolstack) struct Asked {
    /// A save waits for the domain, or has it. A domain that suspends although nobody waits any more is to go on.
    is_waited_for: bool,
    /// The guest took a request that was called off, so that it may suspend at any time.
    has_taken: bool,
}

/// The domains that were asked to suspend.
pub(in crate::toolstack) type Saving = BTreeMap<DomId, Asked>;

/// A domain that was asked to suspend, or has. Dropped, it goes on.
#[must_use]
pub(super) struct Suspended {
    toolstack: Toolstack,
    domain: Domain,
    is_over: bool,
}

impl Drop for Suspended {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if let Err(why) = self.toolstack.call_off(&self.domain) {
            log::error!("{why}");
        }
    }
}

impl Suspended {
    /// The domain goes on.
    pub(super) fn go_on(mut self) -> Result<(), String> {
        self.is_over = true;
        self.toolstack.call_off(&self.domain)
    }

    /// The domain is going to be destroyed.
    pub(super) fn keep_down(mut self) {
        self.is_over = true;
    }
}

/// Whether a domain has shut down in order to be saved.
pub(in crate::toolstack) fn is_suspended(id: DomId) -> bool {
    domctl::info(id).is_ok_and(|info| {
        info.domain == id.raw()
            && info.flags & XEN_DOMINF_SHUTDOWN != 0
            && info.shutdown_code() == SHUTDOWN_SUSPEND
    })
}

/// Tells a guest that has suspended that nothing became of that, and lets it go on.
fn resume(id: DomId) -> Result<(), Errno> {
    let mut context = saved::vcpu_context(id, 0)?;
    context.user_regs.rax = CANCELLED;
    domctl::set_vcpu_context(id, 0, &context)?;
    saved::resume(id)
}

impl Toolstack {
    /// Has a guest suspend, and waits until it has.
    ///
    /// # Errors
    /// The domain is paused, is being saved already, ended, or did not suspend in time. The domain goes on.
    pub(super) async fn suspend(&self, domain: &Domain) -> Result<Suspended, String> {
        let name = &domain.name;
        if domctl::info(domain.id).is_ok_and(|info| info.flags & XEN_DOMINF_PAUSED != 0) {
            return Err(format!(
                "{name}: the domain is paused, and only one that runs can suspend: `xl unpause` it"
            ));
        }
        {
            let mut saving = self.0.saving.lock();
            if !self.is_wanted(domain) {
                return Err(format!("{name}: the domain is ending"));
            }
            let asked = saving.entry(domain.id).or_default();
            if core::mem::replace(&mut asked.is_waited_for, true) {
                return Err(format!("{name}: the domain is being saved already"));
            }
        }
        let suspended = Suspended { toolstack: self.clone(), domain: domain.clone(), is_over: false };
        self.request(domain, "suspend")?;
        let is_there = |all: &Self| is_suspended(domain.id) || !all.is_wanted(domain);
        let waited = time::timeout(SUSPEND_NS, self.wait_until(is_there)).await;
        if !self.is_wanted(domain) {
            return Err(format!("{name}: the domain ended before it was saved"));
        }
        if waited.is_err() {
            return Err(format!(
                "{name}: the domain did not suspend within a minute: does its kernel know how to?"
            ));
        }
        Ok(suspended)
    }

    /// Lets a domain go on that was asked to suspend: at once if it has, or when it does.
    pub(super) fn call_off(&self, domain: &Domain) -> Result<(), String> {
        if !self.is_there(domain) {
            self.0.saving.lock().remove(&domain.id);
            return Ok(());
        }
        // A guest that has not taken the request finds none.
        let is_taken_back = nodes::take_back_control(&self.0.store, domain.id, "shutdown", "suspend");
        let is_down = is_suspended(domain.id);
        {
            let mut saving = self.0.saving.lock();
            let asked = saving.entry(domain.id).or_default();
            asked.is_waited_for = false;
            asked.has_taken |= !is_taken_back;
            if is_down || !asked.has_taken {
                saving.remove(&domain.id);
            }
        }
        if !is_down {
            return Ok(());
        }
        resume(domain.id).map_err(|errno| format!("{}: letting it go on: {errno}", domain.name))
    }

    /// Whether a domain's shutdown is that of a save, which looks after the domain. Called when the hypervisor says that some domain
    /// has shut down.
    pub(in crate::toolstack) fn is_of_a_save(&self, domain: &Domain) -> bool {
        if !is_suspended(domain.id) {
            return false;
        }
        let asked = self.0.saving.lock().get(&domain.id).copied();
        let Some(asked) = asked else { return false };
        if asked.is_waited_for {
            self.0.changed.notify_all();
        } else if let Err(why) = self.call_off(domain) {
            log::error!("{why}");
        }
        true
    }
}
