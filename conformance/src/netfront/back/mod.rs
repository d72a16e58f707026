//! A network backend with no will of its own: what the backend announces, answers and gives is the case's. Requests are
//! looked at closely (`ring`): a frontend that asks for what the protocol does not have has failed.

mod ring;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Display;

use pvrt::event::Port;
use pvrt::executor::{spawn_join, time};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};

use super::{FrontError, NetFrontend, Offload};
use crate::blkfront::back::Asked;
use crate::env::{BackendDevice, Devices};
use crate::{Env, Problem, Verdict};
pub use ring::{Taken, part};

/// How long a frontend may take for anything.
const PATIENCE_NS: u64 = 5_000_000_000;
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
    devices: Arc<dyn Devices>,
    frontends: Arc<dyn super::Frontends>,
    front: String,
    back: String,
    dom: DomId,
    attached: Option<Attached>,
    /// Ids of transmit requests that were taken and not answered.
    open: Vec<u16>,
}

impl Back {
    /// A device whose backend is `Initialising`, as a toolstack leaves it.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env) -> Verdict<Self> {
        let place = env.frontend_under_test.clone();
        let Some(place) = place else { return Err(Problem::Skip("no frontend to try".into())) };
        let BackendDevice { front, back } = place.devices.fresh_vif()?;
        let (devices, frontends, dom) = (place.devices, place.frontends, DomId::new(place.dom));
        Ok(Self { devices, frontends, front, back, dom, attached: None, open: Vec::new() })
    }

    /// Sets a node of the backend's.
    pub fn set(&self, key: &str, value: impl Display) {
        self.devices.write(&format!("{}/{key}", self.back), value.to_string().as_bytes());
    }

    /// Sets a node of the frontend's, as a toolstack does.
    pub fn set_front(&self, key: &str, value: impl Display) {
        self.devices.write(&format!("{}/{key}", self.front), value.to_string().as_bytes());
    }

    /// Removes the backend's directory.
    pub fn vanish(&self) {
        self.devices.remove(&self.back);
    }

    /// Sets the backend's state.
    pub fn set_state(&self, state: XenbusState) {
        self.set("state", state.raw());
    }

    /// A node of the frontend's.
    pub fn key(&self, key: &str) -> Option<String> {
        let value = self.devices.read(&format!("{}/{key}", self.front))?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// Whether the frontend has a feature.
    pub fn feature(&self, key: &str) -> bool {
        self.key(key).is_some_and(|text| text.trim().parse() == Ok(1u32))
    }

    /// The frontend's state.
    pub fn front_state(&self) -> XenbusState {
        self.key("state").map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
    }

    /// Waits until the frontend's state is one of `wanted`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the wait ends without that state.
    pub async fn wait_front(&self, wanted: &[XenbusState]) -> Verdict<XenbusState> {
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            let state = self.front_state();
            if wanted.contains(&state) {
                return Ok(state);
            }
            ensure!(time::now_ns() < end, "the frontend stays in state {state:?}, is to reach {wanted:?}");
            time::sleep(100_000).await;
        }
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
        let number = |key: &str| -> Verdict<u32> {
            let text = self.key(key);
            let value = text.as_ref().and_then(|text| text.parse().ok());
            value.ok_or_else(|| Problem::Fail(format!("the frontend's {key} is {text:?}")))
        };
        let bind = |key: &str| -> Verdict<Arc<Port>> {
            let port = Port::bind_interdomain(self.dom, PortNumber::new(number(key)?));
            port.map(Arc::new)
                .map_err(|errno| Problem::Fail(format!("binding the frontend's {key}: {errno}")))
        };
        let side = |key: &str, port: &Arc<Port>| -> Verdict<Side> {
            let map = map_grants(self.dom, &[GrantRef::new(number(key)?)], true);
            let map =
                map.map_err(|status| Problem::Fail(format!("mapping the frontend's {key}: {status}")))?;
            Ok(Side { map, port: port.clone(), cons: 0, prod: 0 })
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

    /// What came of an operation of the frontend's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the connection does not end.
    pub async fn end<T>(&self, asked: Asked<T>) -> Verdict<Result<T, FrontError>> {
        match time::timeout(PATIENCE_NS, asked).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Problem::Fail("the frontend dropped an operation".into())),
            Err(_) => Err(Problem::Fail("an operation of the frontend's does not end".into())),
        }
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
