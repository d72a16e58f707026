//! The device of a frontend that a case tries: the backend's side of the nodes, whatever kind of device it is.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use core::fmt::Display;

use pvrt::event::Port;
use pvrt::executor::sync::Receiver;
use pvrt::executor::time;
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};

use crate::ends::{FrontError, Frontends};
use crate::env::{BackendDevice, Devices};
use crate::{Env, Problem, Verdict};

/// How long a frontend may take for anything.
pub const PATIENCE_NS: u64 = 5_000_000_000;

/// A running operation of the frontend's.
pub type Asked<T> = Receiver<Result<T, FrontError>>;

/// The device's nodes, and the frontend that may be started for the device.
pub struct Served {
    devices: Arc<dyn Devices>,
    /// The frontends of the domain that the device is of.
    pub frontends: Arc<dyn Frontends>,
    /// The frontend's directory.
    pub front: String,
    back: String,
    /// The frontend's domain.
    pub dom: DomId,
    /// The frontend must also do what the ABI leaves open.
    pub strict: bool,
}

impl Served {
    /// A device of the kind that `fresh` makes, whose backend is `Initialising`, as a toolstack leaves it.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env, fresh: impl FnOnce(&dyn Devices) -> Verdict<BackendDevice>) -> Verdict<Self> {
        let place = env.frontend_under_test.clone();
        let Some(place) = place else { return Err(Problem::Skip("no frontend to try".into())) };
        let BackendDevice { front, back } = fresh(&*place.devices)?;
        let (devices, frontends, strict) = (place.devices, place.frontends, place.strict);
        Ok(Self { devices, frontends, front, back, dom: DomId::new(place.dom), strict })
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

    /// The number in a node of the frontend's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the node is missing or holds no number.
    pub fn number(&self, key: &str) -> Verdict<u32> {
        let text = self.key(key);
        let value = text.as_ref().and_then(|text| text.parse().ok());
        value.ok_or_else(|| Problem::Fail(format!("the frontend's {key} is {text:?}")))
    }

    /// Binds the event channel that a node of the frontend's names.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the node names no port that can be bound.
    pub fn bind(&self, key: &str) -> Verdict<Port> {
        Port::bind_interdomain(self.dom, PortNumber::new(self.number(key)?))
            .map_err(|errno| Problem::Fail(format!("binding the frontend's {key}: {errno}")))
    }

    /// Maps the ring that a node of the frontend's names.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the node names no grant that can be mapped.
    pub fn map_ring(&self, key: &str) -> Verdict<GrantMap> {
        map_grants(self.dom, &[GrantRef::new(self.number(key)?)], true)
            .map_err(|status| Problem::Fail(format!("mapping the frontend's {key}: {status}")))
    }

    /// The frontend's state.
    pub fn front_state(&self) -> XenbusState {
        self.key("state").map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
    }

    /// Waits until the frontend's state is one of `wanted`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend reaches none of the states.
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

    /// Waits for the result of an operation of the frontend's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the operation does not end.
    pub async fn end<T>(&self, asked: Asked<T>) -> Verdict<Result<T, FrontError>> {
        match time::timeout(PATIENCE_NS, asked).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Problem::Fail("the frontend dropped an operation".into())),
            Err(_) => Err(Problem::Fail("an operation of the frontend's does not end".into())),
        }
    }
}
