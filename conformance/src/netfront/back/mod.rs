//! A network backend with no will of its own: what the backend announces, answers and gives is the case's. Requests are
//! looked at closely (`ring`): a frontend that asks for what the protocol does not have has failed.

mod ring;

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;

use pvrt::event::Port;
use pvrt::executor::{spawn_join, time};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::GrantRef;

use super::{FrontError, NetFrontend, Offload};
use crate::served::{Asked, PATIENCE_NS, Served};
use crate::{Env, Problem, Verdict};
pub use ring::{Taken, part};

/// A frontend's pause that counts as doing nothing.
pub const SILENCE_NS: u64 = 50_000_000;

/// What a backend of today announces.
const FEATURES: [(&str, &str); 5] = [
    ("feature-rx-copy", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-ipv6-csum-offload", "1"),
];

/// One mapped ring.
struct Side {
    map: GrantMap,
    port: Arc<Port>,
    /// Next request's index.
    cons: u32,
    /// Next response's index.
    prod: u32,
}

/// The mapped rings.
struct Attached {
    tx: Side,
    rx: Side,
}

/// The backend, with the device's nodes.
pub struct Back {
    served: Served,
    attached: Option<Attached>,
    /// Ids of transmit requests that were taken and not answered.
    open: Vec<u16>,
}

impl Deref for Back {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl Back {
    /// A device whose backend is `Initialising`, as a toolstack leaves it.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env) -> Verdict<Self> {
        let served = Served::new(env, |devices| devices.fresh_vif())?;
        Ok(Self { served, attached: None, open: Vec::new() })
    }

    /// Whether the frontend has a feature.
    pub fn feature(&self, key: &str) -> bool {
        self.key(key).is_some_and(|text| text.trim().parse() == Ok(1u32))
    }

    /// Starts the frontend.
    pub fn start(&self) -> Asked<Arc<dyn NetFrontend>> {
        spawn_join(self.frontends.network(&self.front))
    }

    /// Announces the usual features, or those of `changed` in their place, and goes to `InitWait`.
    pub fn announce(&self, changed: &[(&str, &str)]) {
        for (key, value) in FEATURES.iter().chain(changed) {
            self.set(key, value);
        }
        self.set_state(XenbusState::InitWait);
    }

    /// Maps the rings and binds the event channels that the frontend names.
    ///
    /// # Errors
    /// [`Problem::Fail`]: a node is missing, or a ring cannot be used.
    pub fn attach(&mut self) -> Verdict {
        let bind = |key: &str| self.bind(key).map(Arc::new);
        let side = |key: &str, port: &Arc<Port>| -> Verdict<Side> {
            Ok(Side { map: self.map_ring(key)?, port: port.clone(), cons: 0, prod: 0 })
        };
        let (tx_port, rx_port) = if self.key("event-channel-tx").is_some() {
            (bind("event-channel-tx")?, bind("event-channel-rx")?)
        } else {
            let port = bind("event-channel")?;
            (port.clone(), port)
        };
        let (tx, rx) = (side("tx-ring-ref", &tx_port)?, side("rx-ring-ref", &rx_port)?);
        self.attached = Some(Attached { tx, rx });
        Ok(())
    }

    /// Everything up to a connected frontend.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend does not connect. [`Problem::Skip`]: there is none.
    pub async fn connect(&mut self, changed: &[(&str, &str)]) -> Verdict<Arc<dyn NetFrontend>> {
        let front = self.start();
        self.announce(changed);
        self.wait_front(&[XenbusState::Initialised, XenbusState::Connected]).await?;
        self.attach()?;
        self.set_state(XenbusState::Connected);
        let front = self.end(front).await?;
        front.map_err(|error| Problem::Fail(format!("the frontend does not connect: {error:?}")))
    }

    /// A backend with a connected frontend.
    ///
    /// # Errors
    /// As [`Self::new`] and [`Self::connect`].
    pub async fn usual(env: &Env) -> Verdict<(Self, Arc<dyn NetFrontend>)> {
        let mut back = Self::new(env)?;
        let front = back.connect(&[]).await?;
        Ok((back, front))
    }

    /// What came of an operation, if it ends in a moment.
    pub async fn soon<T>(&self, asked: Asked<T>) -> Option<Result<T, FrontError>> {
        time::timeout(SILENCE_NS, asked).await.ok()?.ok()
    }

    /// Whether a frontend still grants a page.
    pub fn grants(&self, gref: u32) -> bool {
        map_grants(self.dom, &[GrantRef::new(gref)], false).is_ok()
    }

    /// Looks that the frontend stops granting a page.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what is waited for does not happen.
    pub async fn grant_ends(&self, gref: u32) -> Verdict {
        let end = time::now_ns() + PATIENCE_NS;
        while self.grants(gref) {
            ensure!(time::now_ns() < end, "a frontend that has closed still grants a page");
            time::sleep(50_000_000).await;
        }
        Ok(())
    }

    /// Lets go of the rings and the event channels.
    pub fn detach(&mut self) {
        self.attached = None;
    }
}

/// Asks the frontend for the next frame.
pub fn receive(front: &Arc<dyn NetFrontend>) -> Asked<(Vec<u8>, Offload)> {
    spawn_join(front.clone().receive())
}

/// Has the frontend send a frame.
pub fn send(front: &Arc<dyn NetFrontend>, frame: &[u8], offload: Offload) -> Asked<()> {
    spawn_join(front.clone().send(frame.to_vec(), offload))
}
