//! A frontend's ring, mapped and served by a task of its own.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};

use backends::Client;
use backends::blk::{BlkBack, Disconnect, Next, Stats};
use backends::vbd;
use pvrt::event::Port;
use pvrt::executor::sync::Receiver;
use pvrt::executor::{select, spawn_join};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::ring::BackRing;
use ring_abi::types::DomId;

use super::grants::{DomainGrants, SharedStage};
use crate::blkdev::{Quiet, SharedDevice};
use crate::xenbus::{self, Bell};

/// How a connection ended.
pub(super) struct Ended {
    /// Why the connection ended; `None` when the instance asked for the end.
    reason: Option<Disconnect>,
    stats: Stats,
}

impl xenbus::Ended for Ended {
    fn reason(&self) -> Option<String> {
        self.reason.as_ref().map(ToString::to_string)
    }

    fn summary(&self) -> String {
        let Stats { requests, errors, read_bytes, written_bytes, .. } = self.stats;
        format!("{requests} requests, {errors} failed, {read_bytes} bytes read, {written_bytes} written")
    }
}

/// A connected frontend. The task that serves the frontend never looks into xenstore: a request costs no access to the
/// store.
pub(super) struct Connection {
    stop: Arc<AtomicBool>,
    client: Arc<Client>,
    ended: Receiver<Ended>,
}

/// What the serving task owns.
struct Service {
    engine: BlkBack<GrantMap, DomainGrants, Bell, SharedDevice>,
    port: Arc<Port>,
    stop: Arc<AtomicBool>,
    quiet: Arc<Quiet>,
}

impl Connection {
    /// Maps the ring, binds the event channel that the frontend has published, and begins to serve.
    pub(super) fn open(
        domain: DomId,
        parameters: &vbd::Connection,
        device: SharedDevice,
        stage: SharedStage,
        quiet: Arc<Quiet>,
    ) -> Result<Self, String> {
        let pages = map_grants(domain, &parameters.ring, true)
            .map_err(|status| format!("mapping the ring: {status}"))?;
        let ring = BackRing::attach(pages).map_err(|error| format!("attaching to the ring: {error}"))?;
        let port = Port::bind_interdomain(domain, parameters.port)
            .map_err(|errno| format!("binding port {}: {errno}", parameters.port))?;
        let port = Arc::new(port);
        let engine = BlkBack::new(ring, DomainGrants::new(domain, stage), Bell(port.clone()), device)
            .map_err(|_| "no memory to serve it")?;
        let client = engine.client().clone();
        let stop = Arc::new(AtomicBool::new(false));
        quiet.connect(Some(client.clone()));
        let ended = spawn_join(Service { engine, port, stop: stop.clone(), quiet }.run());
        Ok(Self { stop, client, ended })
    }
}

impl xenbus::Connection for Connection {
    type Ended = Ended;

    fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.client.room();
    }

    /// The end comes when the device has returned everything.
    fn ended(&mut self) -> &mut Receiver<Ended> {
        &mut self.ended
    }
}

impl Service {
    async fn run(mut self) -> Ended {
        let reason = self.serve().await;
        self.engine.close();
        while let Some(next) = self.engine.poll_closed() {
            match next {
                Next::Again => pvrt::yield_now().await,
                Next::Wait => self.engine.client().ready().await,
            }
        }
        self.quiet.connect(None);
        Ended { reason, stats: self.engine.stats() }
    }

    async fn serve(&mut self) -> Option<Disconnect> {
        while !self.stop.load(Ordering::Relaxed) {
            let question = self.quiet.question();
            match self.engine.poll() {
                Ok(Next::Again) => pvrt::yield_now().await,
                Ok(Next::Wait) => {
                    if self.engine.in_flight() == 0 {
                        self.quiet.answer(question);
                    }
                    select(self.engine.client().ready(), self.port.wait()).await;
                }
                Err(disconnect) => return Some(disconnect),
            }
        }
        None
    }
}
