//! Domains begin, pause and end.

use core::sync::atomic::Ordering;

use ring_abi::domctl::*;
use ring_abi::types::{DomId, Port};

use super::Operation;
use crate::domain::{Current, DomainConfig, FIRST_RESERVED, MAX_GRANT_FRAMES, MAX_MAPTRACK_FRAMES};
use crate::hypercall::{Answer, HypercallError};
use crate::platform::Platform;

/// Pauses of a domain by the toolstack at most.
const MAX_PAUSES: u32 = 255;

/// `XEN_DOMCTL_createdomain`: op.domain 0 or reserved asks for any number.
pub(super) fn create<P: Platform>(cur: &Current<'_, P>, op: &mut XenDomctl) -> Answer {
    let wanted: XenDomctlCreatedomain = op.payload();
    HypercallError::Invalid.when(
        wanted.flags & !XEN_DOMCTL_CDF_XS_DOMAIN != 0 || wanted.iommu_opts != 0 || wanted.vmtrace_size != 0,
    )?;
    let or_default = |value: i32, default: u32| u32::try_from(value).unwrap_or(default);
    let default = DomainConfig::default();
    let config = DomainConfig {
        handle: wanted.handle,
        ssidref: wanted.ssidref,
        max_vcpus: wanted.max_vcpus,
        max_evtchn_port: (wanted.max_evtchn_port != 0).then(|| Port::new(wanted.max_evtchn_port)),
        max_grant_frames: or_default(wanted.max_grant_frames, default.max_grant_frames),
        max_grant_version: match wanted.grant_opts {
            0 => default.max_grant_version,
            version @ 1..=2 => version,
            _ => return Err(HypercallError::Invalid),
        },
        max_maptrack_frames: or_default(wanted.max_maptrack_frames, default.max_maptrack_frames),
        flags: wanted.flags,
        pool: wanted.cpupool_id,
        ..default
    };
    // The bounds keep tables small enough to be freed, and to be copied as they grow, in pieces of bounded
    // size.
    HypercallError::Invalid.when(
        config.max_grant_frames > MAX_GRANT_FRAMES || config.max_maptrack_frames > MAX_MAPTRACK_FRAMES,
    )?;
    let id = (op.domain != 0 && op.domain < FIRST_RESERVED).then(|| DomId::new(op.domain));
    let domain = cur.hv.make_domain(Some((cur.vcpu.domain_id, cur.vcpu.id)), id, config)?;
    op.domain = domain.id.raw();
    Ok(())
}

impl<P: Platform> Operation<'_, '_, P> {
    pub(super) fn destroy(&self) -> Answer {
        self.not_own()?;
        Ok(self.cur.hv.kill_domain(self.domain)?)
    }

    pub(super) fn resume(&self) -> Answer {
        self.not_own()?;
        self.cur.hv.resume_domain(self.domain);
        Ok(())
    }

    /// Changes how often the toolstack paused a domain.
    fn count_pause(&self, change: impl Fn(u32) -> Option<u32>, otherwise: HypercallError) -> Answer {
        let count = &self.domain.controller_pause_count;
        let counted = count.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        otherwise.when(counted.is_err())
    }

    /// Pauses the domain until `unpause_domain`.
    ///
    /// # Errors
    /// `Again`: this CPU is wanted, and nothing has changed.
    pub(super) fn hold(&self) -> Answer {
        HypercallError::Again.when(!self.cur.hv.pause_domain(self.domain))
    }

    pub(super) fn pause(&self) -> Answer {
        self.not_own()?;
        // The count is the last: until then nobody can take back a pause that is not there yet.
        self.hold()?;
        let counted =
            self.count_pause(|count| (count < MAX_PAUSES).then_some(count + 1), HypercallError::Overflow);
        if counted.is_err() {
            self.cur.hv.unpause_domain(self.domain);
        }
        counted
    }

    pub(super) fn unpause(&self) -> Answer {
        self.count_pause(|count| count.checked_sub(1), HypercallError::Invalid)?;
        self.cur.hv.unpause_domain(self.domain);
        Ok(())
    }
}
