//! Domains that are being made, in pieces: each vCPU takes its time, and there may be many.
//!
//! The hypervisor keeps a domain in the making with the number of the vCPU that asked, until that vCPU executes its
//! call again. A vCPU that asks for another domain instead gives up the first.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ring_abi::types::{DomId, Mfn, VcpuId};

use super::LifecycleError;
use super::ending::Ending;
use crate::Hypervisor;
use crate::domain::{Domain, DomainConfig, FIRST_RESERVED, FpuArea, MAX_VCPUS, TrapGate, Vcpu};
use crate::gnttab::GrowError;
use crate::platform::Platform;
use crate::time::publish_time;

/// Approximate bytes of the heap that a vCPU takes beside its place in the list: its trap table, its floating-point
/// state, its ports.
const VCPU_BYTES: usize = size_of::<[TrapGate; 256]>() + FpuArea::BYTES + 1024;

/// Which vCPU asked for a domain.
type Asker = (DomId, VcpuId);

/// A domain that is being made. The domain is in no list yet.
#[derive(Debug)]
pub(super) struct Making {
    pub(super) asker: Option<Asker>,
    /// The number that was asked for.
    asked: Option<DomId>,
    id: DomId,
    config: DomainConfig,
    /// The frame of the domain's `shared_info`, which is the hypervisor's own until the domain exists.
    shared_mfn: Mfn,
    /// The vCPUs made so far. The vector has room for all of them from the start, so that no vCPU is moved.
    vcpus: Vec<Vcpu>,
}

impl<P: Platform> Hypervisor<P> {
    /// Makes a domain: without memory, its vCPUs down, paused by the toolstack. `id` `None`: the next free number.
    ///
    /// # Errors
    /// `Exists`: another domain has `id`. `NoMemory`: memory for the domain is missing. `Invalid`: the id is reserved,
    /// no domain can have so many vCPUs, or the domain's grant table may have no frame.
    pub fn create_domain(
        &self,
        id: Option<DomId>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, LifecycleError> {
        self.make_domain(None, id, config)
    }

    /// Like [`Hypervisor::create_domain`], but in pieces if there is an asker.
    ///
    /// # Errors
    /// The same as of `create_domain`; and `Again`: something else waits, and the same call goes on.
    #[inline(never)]
    pub(crate) fn make_domain(
        &self,
        asker: Option<Asker>,
        id: Option<DomId>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, LifecycleError> {
        let mut making = match asker.and_then(|asker| self.unfinished.take_making(asker)) {
            Some(making) if making.asked == id && making.config == config => making,
            other => {
                if let Some(other) = other {
                    self.give_up(other);
                }
                self.begin_domain(asker, id, config)?
            }
        };
        while making.vcpus.len() < config.max_vcpus as usize {
            if !self.make_vcpu(&mut making) {
                self.give_up(making);
                return Err(LifecycleError::NoMemory);
            }
            if asker.is_some() && self.platform.work_pending() {
                self.unfinished.keep_making(making);
                return Err(LifecycleError::Again);
            }
        }
        self.finish_domain(making)
    }

    fn begin_domain(
        &self,
        asker: Option<Asker>,
        asked: Option<DomId>,
        config: DomainConfig,
    ) -> Result<Making, LifecycleError> {
        let count = config.max_vcpus as usize;
        if count == 0 || config.max_vcpus > MAX_VCPUS || config.max_grant_frames == 0 {
            return Err(LifecycleError::Invalid);
        }
        let id = match asked {
            Some(id) if id.raw() >= FIRST_RESERVED => return Err(LifecycleError::Invalid),
            Some(id) if self.domains.contains(id) => return Err(LifecycleError::Exists),
            Some(id) => id,
            None => self.domains.next_id().ok_or(LifecycleError::NoMemory)?,
        };
        let mut vcpus = Vec::new();
        if !self.may_spend(count * size_of::<Vcpu>()) || vcpus.try_reserve_exact(count).is_err() {
            return Err(LifecycleError::NoMemory);
        }
        let shared_mfn = self.alloc_zeroed().ok_or(LifecycleError::NoMemory)?;
        Ok(Making { asker, asked, id, config, shared_mfn, vcpus })
    }

    /// Makes the next vCPU. `false`: there is no memory.
    #[must_use]
    fn make_vcpu(&self, making: &mut Making) -> bool {
        if !self.may_spend(VCPU_BYTES) {
            return false;
        }
        let number = VcpuId::new(making.vcpus.len() as u32);
        making.vcpus.push(Vcpu::new(making.id, number, &self.platform.shared(making.shared_mfn)));
        let Some(vcpu) = making.vcpus.last() else { return false };
        if !self.platform.create_window(&vcpu.window) {
            making.vcpus.pop();
            return false;
        }
        if !self.create_timers(vcpu) {
            return false;
        }
        publish_time(&self.platform, vcpu);
        true
    }

    fn finish_domain(&self, making: Making) -> Result<Arc<Domain>, LifecycleError> {
        // The number may have become another domain's between two pieces: so the number is checked before the page
        // is lent under it.
        if self.domains.contains(making.id) {
            self.give_up(making);
            return Err(LifecycleError::Exists);
        }
        if let Err(error) = self.sched.enter_pool(making.config.pool) {
            self.give_up(making);
            return Err(error.into());
        }
        let Making { id, config, shared_mfn, vcpus, .. } = making;
        let shared_info = self.platform.shared(shared_mfn);
        let domain = Domain::with_vcpus(id, config, shared_mfn, shared_info, vcpus);
        self.share_with_guest(shared_mfn, id, false);
        // A grant table has its least size from the start, so that an unused reference is refused as unused,
        // not as out of range.
        let has_table = matches!(self.grow_grant_table(&domain, 1), Ok(()) | Err(GrowError::Again));
        if !has_table || !self.domains.insert(&domain) {
            self.sched.leave_pool(config.pool);
            let _ = self.disown(shared_mfn);
            self.release_grant_table(&domain);
            self.end_later(Ending::of_domain(domain));
            return Err(if has_table { LifecycleError::Exists } else { LifecycleError::NoMemory });
        }
        self.settle_in_pool(&domain);
        self.publish_wall_clock(&domain);
        Ok(domain)
    }

    fn give_up(&self, making: Making) {
        self.end_later(Ending::of_vcpus(making.vcpus, making.shared_mfn));
    }
}
