//! The network backend: an instance for each vif that the toolstack makes in xenstore.
//!
//! [`xenbus`] knows what all backends have in common, the `backends` crate has the rings' protocol, and [`crate::net`]
//! decides where a packet goes. This module ties the three together:
//!
//! - `instance`: a vif and its port on a bridge, while the toolstack wants the vif;
//! - `connection`: a connected frontend, and the task that carries what the frontend sends;
//! - `sender`: the task's rings;
//! - `fabric`, `way`: the way of a batch to the rings of others, which stand behind an `end`; `run`: of packets that are alike;
//! - `changes`: what an administrator changes;
//! - `tagging`: packets that get a VLAN's tag, or lose it;
//! - `finisher`: packets whose receiver does not take them as they are;
//! - `outside`, `passage`: dom0's own place, and the way from and to network cards;
//! - `card`, `lending`: a card, and the packets that it reads out of guests' pages;
//! - `stream`: TCP of dom0's own;
//! - `copier`: the hypervisor copies;
//! - `control`: what a frontend sets by its control ring.
#![forbid(unsafe_code)]

mod card;
mod changes;
mod connection;
mod control;
mod copier;
mod end;
mod fabric;
mod finisher;
mod instance;
mod lending;
mod lent;
mod outside;
mod passage;
mod run;
mod sender;
mod setup;
mod stream;
mod tagging;
#[cfg(test)]
mod tests;
mod view;
mod way;

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use backends::net::{HEADS_PER_PAGE, max_bytes};
use pvrt::Account;
use pvrt::executor::time;
use pvrt::grant::{CopyPages, GrantPage};
use spin::Mutex;

pub use self::changes::CaptureState;
use self::fabric::Fabric;
use self::finisher::Finisher;
use self::instance::Instance;
use self::stream::Streams;
pub use self::stream::{TcpListener, TcpStream};
use crate::net::router::Guest;
use crate::net::switch::{BridgeId, PlaceError, PortConfig, PortId, Rules, Switch, SwitchError, Vlans};
use crate::xenbus::{self, Device, Id};
use crate::xenstore::Xenstore;

/// Most network interfaces that a domain can have from this backend.
pub const MAX_VIFS: usize = 16;
/// Most queues of a vif in each direction.
const MAX_QUEUES: usize = 4;
/// Pages for the heads of a vif's packets, shared by its queues.
const HEAD_PAGES: usize = 4;

/// Most bytes of heap that a frontend can make one vif keep, whatever the frontend does: the heads of its packets, what is
/// known of each packet, the pages that it lends, and what an instance has in any case (its tasks, its watches, its paths,
/// its mappings).
pub const BYTES_PER_VIF: usize = max_bytes(size_of::<GrantPage>()) + (16 << 10);
const _: () = assert!(BYTES_PER_VIF <= 96 << 10 && backends::net::MAX_HEADS == HEAD_PAGES * HEADS_PER_PAGE);

/// The bridge that every network has: the one that configurations mean if they name none.
const FIRST_BRIDGE: &str = "xenbr0";

/// The networks that dom0 carries: bridges, and the interfaces on them.
pub struct Network(Mutex<Fabric>, Streams);

impl Network {
    /// A network with one bridge.
    ///
    /// # Panics
    /// There is no memory: dom0 has just started.
    pub fn new() -> Self {
        // Nobody outside knows both clocks to the last digit.
        let mut switch = Switch::new([time::tsc(), time::wall_ns()]);
        if let Err(error) = switch.add_bridge(FIRST_BRIDGE) {
            log::error!("bridge {FIRST_BRIDGE}: {error}");
        }
        let finisher = Finisher::new().expect("a hundred KiB when dom0 starts");
        let control_page = CopyPages::new(1).expect("a page when dom0 starts");
        Self(Mutex::new(Fabric::new(switch, finisher, control_page)), Streams::default())
    }

    /// A domain is called otherwise from now on.
    pub fn rename(&self, from: &str, to: &str) {
        if let Some(outside) = &mut self.0.lock().outside {
            Account::own().charge(|| outside.gateway.rename(from, to));
            // Forwards are looked at anew.
            outside.task.notify_one();
        }
    }

    /// The names of all bridges.
    pub fn bridges(&self) -> Vec<String> {
        self.0.lock().switch.bridges().map(|(_, name)| name.to_owned()).collect()
    }

    /// Where a network interface is, by the words `bridge=` and `vlan=`.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn find_place(&self, bridge: &str, vlan: Option<&str>) -> Result<(BridgeId, Vlans), PlaceError> {
        self.0.lock().switch.place_in(bridge, vlan)
    }
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

/// A port of a bridge, as long as the value lives.
struct OpenPort {
    network: Arc<Network>,
    id: PortId,
}

impl OpenPort {
    fn new(network: &Arc<Network>, config: PortConfig, rules: Option<Rules>) -> Result<Self, SwitchError> {
        let switch = &mut network.0.lock().switch;
        // What the switch keeps is dom0's own, whose ports are limited.
        let id = Account::own().charge(|| {
            let id = switch.add_port(config)?;
            switch.set_rules(id, rules).map(|()| id)
        })?;
        Ok(Self { network: network.clone(), id })
    }

    /// Tells the gateway whose interface is behind the port, with its address if the gateway is in the interface's VLAN.
    fn introduce(&self, name: String, fixed: Option<Ipv4Addr>) -> Result<(), String> {
        let fabric = &mut *self.network.0.lock();
        let Some(config) = fabric.switch.config(self.id) else { return Ok(()) };
        let (network, is_near) = (config.bridge, config.vlans.has_untagged());
        let Some(outside) = &mut fabric.outside else { return Ok(()) };
        Account::own().charge(|| outside.introduce(self.id, Guest { name, network, fixed }, is_near))
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        let mut fabric = self.network.0.lock();
        fabric.way.disconnect(self.id);
        if let Some(outside) = &mut fabric.outside {
            outside.forget(time::now_ns(), self.id);
        }
        fabric.switch.remove_port(self.id);
    }
}

/// Serves network backends for ever.
pub async fn run(store: Xenstore, network: Arc<Network>) {
    let start = |id: Id| {
        let (store, instance) = (store.clone(), Instance::new(network.clone()));
        async move {
            if let Some(device) = Device::open(&store, "vif", id, format!("vif {}", id.device)) {
                xenbus::run(device, instance).await;
            }
        }
    };
    xenbus::serve(&store, "vif", start).await;
}
