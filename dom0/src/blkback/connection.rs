//! A frontend's ring, mapped and served.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use backends::blk::{BlkBack, Disconnect, Next, Stats};
use backends::vbd;
use pvrt::event::Port;
use pvrt::executor::select;
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::ring::BackRing;
use ring_abi::types::DomId;

use super::grants::{Bell, DomainGrants};
use crate::blkdev::SharedDevice;

/// A connected frontend. [`Self::close`] before dropping it.
pub(super) struct Connection {
    engine: BlkBack<GrantMap, DomainGrants, Bell, SharedDevice>,
    port: Arc<Port>,
}

impl Connection {
    /// Maps the ring and binds the event channel that the frontend has published.
    pub(super) fn open(
        domain: DomId,
        parameters: &vbd::Connection,
        device: SharedDevice,
    ) -> Result<Self, String> {
        let pages = map_grants(domain, &parameters.ring, true)
            .map_err(|status| format!("mapping the ring: {status}"))?;
        let ring = BackRing::attach(pages).map_err(|error| format!("attaching to the ring: {error}"))?;
        let port = Port::bind_interdomain(domain, parameters.port)
            .map_err(|errno| format!("binding port {}: {errno}", parameters.port))?;
        let port = Arc::new(port);
        let engine = BlkBack::new(ring, DomainGrants::new(domain), Bell(port.clone()), device);
        Ok(Self { engine, port })
    }

    /// Serves the ring until it is ruined. May be dropped and called again at any time.
    pub(super) async fn serve(&mut self) -> Disconnect {
        loop {
            match self.engine.poll() {
                Ok(Next::Again) => pvrt::yield_now().await,
                Ok(Next::Wait) => {
                    select(self.engine.client().ready(), self.port.wait()).await;
                }
                Err(disconnect) => return disconnect,
            }
        }
    }

    /// Ends the connection once the device has returned everything.
    pub(super) async fn close(mut self) -> Stats {
        self.engine.close();
        while !self.engine.poll_closed() {
            self.engine.client().ready().await;
        }
        self.engine.stats()
    }
}
