//! A domain under construction, and the destruction of domains in pieces.

use pvrt::hypercall::{Result, domctl};
use pvrt::{Account, spawn, yield_now};
use ring_abi::domctl::XenDomctlCreatedomain;
use ring_abi::types::DomId;

use crate::config::DomainConfig;

/// The highest version of grant entries that a domain may choose where its configuration names none.
const GRANT_VERSION: u32 = 2;
const DEFAULT_GRANT_FRAMES: u32 = 64;
const DEFAULT_MAPTRACK_FRAMES: u32 = 1024;
/// How long the hypervisor may go on with a domain's destruction before dom0's other tasks have their turn.
const PIECE_NS: u64 = 250_000;

/// Destroys a domain piece by piece. Memory that another domain still maps stays.
///
/// # Errors
/// `ESRCH`, `EPERM`.
pub async fn destroy(id: DomId) -> Result<()> {
    while !domctl::destroy_some(id, PIECE_NS)? {
        yield_now().await;
    }
    Ok(())
}

async fn finish(id: DomId) {
    if let Err(errno) = destroy(id).await {
        log::error!("d{id}: destroying a domain that was not built: {errno}");
    }
}

/// A domain under construction. Dropping it destroys the domain.
#[derive(Debug)]
pub struct OwnedDomain {
    id: DomId,
}

impl OwnedDomain {
    /// Makes a domain.
    ///
    /// # Errors
    /// As `domctl::create`.
    pub fn create(config: &DomainConfig, uuid: [u8; 16], pool: u32) -> Result<Self> {
        let created = domctl::create(&XenDomctlCreatedomain {
            handle: uuid,
            cpupool_id: pool,
            max_vcpus: config.maxvcpus,
            max_evtchn_port: config.max_event_channels,
            max_grant_frames: config.max_grant_frames.unwrap_or(DEFAULT_GRANT_FRAMES) as i32,
            max_maptrack_frames: config.max_maptrack_frames.unwrap_or(DEFAULT_MAPTRACK_FRAMES) as i32,
            grant_opts: config.max_grant_version.unwrap_or(GRANT_VERSION),
            ..Default::default()
        });
        created.map(|id| Self { id })
    }

    /// The domain's number.
    pub fn id(&self) -> DomId {
        self.id
    }

    /// Destroys the domain, piece by piece, and waits for the end.
    pub async fn discard(self) {
        finish(self.keep()).await;
    }

    /// Leaves the domain alive.
    pub fn keep(self) -> DomId {
        let id = self.id;
        core::mem::forget(self);
        id
    }
}

impl Drop for OwnedDomain {
    fn drop(&mut self) {
        // A drop cannot await, so a task of dom0's own account goes on with the pieces.
        let id = self.id;
        Account::own().charge(|| spawn(finish(id)));
    }
}
