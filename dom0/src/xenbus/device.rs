//! The nodes of one device: its two ends' directories, as the backend sees them.

use alloc::format;
use alloc::string::{String, ToString};

use backends::xenbus::Observed;
use ring_abi::io::xenbus::XenbusState;

use super::Id;
use crate::xenstore::{Client, Nodes, Xenstore, XsError, domain_named};

/// Number of faults of one frontend that the log tells: a frontend may go on to break connections for ever.
const FAULTS_LOGGED: u32 = 8;

/// A device as its backend sees the device: the nodes of both ends.
pub struct Device {
    /// Which one.
    pub id: Id,
    /// What messages call the device, such as `disk xvda`.
    name: String,
    client: Client,
    /// The backend's directory.
    back: String,
    /// The frontend's directory.
    front: String,
    /// Faults so far.
    faults: u32,
}

impl Device {
    /// The device `id` of a kind, which messages call `name`. From now on changes of its nodes are [`Self::changed`].
    /// `None`: there is no frontend, or the store refuses; the log tells.
    pub fn open(store: &Xenstore, kind: &str, id: Id, name: String) -> Option<Self> {
        let (client, back) = (store.client(), id.path(kind));
        let front = client.read_str(&format!("{back}/frontend"));
        let device = Self { id, name, client, back, front: front.unwrap_or_default(), faults: 0 };
        if device.front.is_empty() {
            log::warn!("{}: it has no frontend node", device.named());
            return None;
        }
        let (back, state) = (&device.back, format!("{}/state", device.front));
        let watched = device.client.watch(back, "back").and_then(|()| device.client.watch(&state, "front"));
        match watched {
            Ok(()) => Some(device),
            Err(error) => {
                log::error!("{}: watching: {}", device.named(), error.name());
                None
            }
        }
    }

    /// From now on changes of a node in the frontend's directory are [`Self::changed`], too.
    pub(super) fn watch_front(&self, name: &str) {
        if let Err(error) = self.client.watch(&format!("{}/{name}", self.front), name) {
            log::error!("{}: watching {name}: {}", self.named(), error.name());
        }
    }

    /// The value of a node in the backend's directory.
    pub fn read(&self, name: &str) -> Option<String> {
        self.client.read_str(&format!("{}/{name}", self.back)).ok()
    }

    /// The value of a node in the frontend's directory.
    pub fn read_front(&self, name: &str) -> Option<String> {
        self.client.read_str(&format!("{}/{name}", self.front)).ok()
    }

    /// The number in a node of the backend's directory.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.client.read_as(&format!("{}/{name}", self.back)).ok()
    }

    /// The domain's name now; empty if the store has none.
    pub fn domain_name(&self) -> String {
        self.client.read_str(&format!("/local/domain/{}/name", self.id.domain)).unwrap_or_default()
    }

    /// The device in its user's words.
    pub fn named(&self) -> String {
        format!("{}: {}", domain_named(&self.client, self.id.domain), self.name)
    }

    pub(super) fn observe(&self) -> Observed {
        Observed {
            frontend: self.read_front("state").map(|state| XenbusState::parse(&state)),
            online: self.number("online").is_some_and(|online| online != 0),
            present: self.client.exists(&format!("{}/frontend", self.back)),
        }
    }

    /// Waits for a change of the nodes.
    pub(super) async fn changed(&self) {
        self.client.next_event().await;
        // One look at the nodes serves all events that have come.
        while self.client.try_event().is_some() {}
    }

    /// What is behind the device cannot be had: the toolstack is told why.
    pub(super) fn refuse(&mut self, error: &str) {
        self.complain(error);
        self.write("hotplug-error", error);
        self.write("hotplug-status", "error");
        self.set_state(XenbusState::Closed);
    }

    /// Tells of a fault: in the log, and in the node where xenbus drivers put errors.
    pub(super) fn complain(&mut self, error: &str) {
        self.faults = self.faults.saturating_add(1);
        if self.faults == FAULTS_LOGGED {
            log::warn!("{}: further faults are not logged", self.named());
        }
        if self.faults < FAULTS_LOGGED {
            log::error!("{}: {error}", self.named());
        }
        self.write("error", error);
    }

    pub(super) fn set_state(&self, state: XenbusState) {
        self.write("state", &state.to_string());
    }

    /// Writes a node of the backend's directory, unless the toolstack removed the directory: a write would make the
    /// directory again.
    pub fn write(&self, name: &str, value: &str) {
        if !self.client.exists(&self.back) {
            return;
        }
        match self.client.write(&format!("{}/{name}", self.back), value) {
            Ok(()) | Err(XsError::NoEnt) => {}
            Err(error) => log::warn!("{}: writing {name}: {}", self.named(), error.name()),
        }
    }
}
