//! dom0's own place on its networks, at dom0's start: the gateway of the first bridge, and a bridge for each card.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::net::Ipv4Addr;

use pvrt::executor::{select, spawn, time};
use smoltcp::wire::Ipv4Cidr;

use super::card::Card;
use super::outside::Outside;
use super::{FIRST_BRIDGE, Network};
use crate::net::MacAddr;
use crate::net::router::{self, DOMAIN, Gateway, Random, Role, dhcp};
use crate::net::switch::{BridgeId, PortConfig, PortId};
use crate::net::wire::Wire;

/// The gateway's station on the first bridge. No frame with this address leaves the machine.
const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x16, 0x3e, 0, 0, 1]);
/// The gateway's address, and the guests' network.
const GATEWAY: Ipv4Cidr = Ipv4Cidr::new(Ipv4Addr::new(10, 88, 0, 1), 24);
/// The addresses that guests get.
const POOL: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 88, 0, 10), Ipv4Addr::new(10, 88, 0, 250)];
/// The MTU of the guests' network, as the world's usual one, so that nothing is too long on its way there.
const MTU: u16 = 1500;

impl Network {
    /// Makes dom0 the gateway of the first bridge, makes a bridge for each card, of which the first leads to the world, and
    /// begins to serve all of them.
    pub fn set_up(self: &Arc<Self>, cards: Vec<Arc<dyn Wire>>) {
        let mut seed = [0; 16];
        // Nobody outside knows both clocks to the last digit.
        seed[..8].copy_from_slice(&time::tsc().to_le_bytes());
        seed[8..].copy_from_slice(&time::wall_ns().to_le_bytes());
        match Outside::new(Gateway::new(Random::new(&seed)), self.1.task.clone()) {
            Ok(outside) => self.0.lock().outside = Some(outside),
            Err(_) => return log::error!("network: no memory for dom0's own place"),
        }
        if let Err(error) = self.add_gateway() {
            log::error!("network: the gateway of {FIRST_BRIDGE}: {error}");
        }
        for (index, wire) in cards.into_iter().enumerate() {
            let name = wire.name().to_string();
            match self.add_card(wire, index == 0) {
                Ok(port) => _ = spawn(serve_card(self.clone(), port)),
                Err(error) => log::error!("network: {name}: {error}"),
            }
        }
        spawn(serve_gateway(self.clone()));
    }

    /// dom0's port on a bridge.
    fn add_local(&self, bridge: BridgeId, mac: MacAddr) -> Result<(), String> {
        let fabric = &mut *self.0.lock();
        let name = fabric.switch.bridges().find(|(id, _)| *id == bridge).map(|(_, name)| name.to_string());
        let config = PortConfig::local(format!("{}.dom0", name.unwrap_or_default()), bridge, mac);
        let port = fabric.switch.add_port(config).map_err(|error| error.to_string())?;
        if let Some(outside) = &mut fabric.outside {
            outside.add_local(bridge, port);
        }
        Ok(())
    }

    fn add_network(&self, bridge: BridgeId, network: router::Network, pool: Option<dhcp::Pool>) {
        if let Some(outside) = &mut self.0.lock().outside {
            outside.gateway.add_network(time::now_ns(), bridge, network, pool);
        }
    }

    fn add_gateway(&self) -> Result<(), String> {
        let bridge = self.0.lock().switch.find_bridge(FIRST_BRIDGE).ok_or("no such bridge")?;
        self.add_local(bridge, GATEWAY_MAC)?;
        let network = router::Network {
            role: Role::Inside,
            mac: GATEWAY_MAC,
            address: Some(GATEWAY),
            gateway: None,
            mtu: MTU,
        };
        let [first, last] = POOL;
        let pool = dhcp::Pool { server: GATEWAY, first, last, mtu: MTU, domain: DOMAIN.into() };
        self.add_network(bridge, network, Some(pool));
        Ok(())
    }

    /// A bridge with the card's name, on which the card is. On the way to the world dom0 is a station, with the card's own
    /// address.
    fn add_card(&self, wire: Arc<dyn Wire>, leads_to_world: bool) -> Result<PortId, String> {
        let features = wire.features();
        let name = wire.name().to_string();
        let (bridge, port) = {
            let fabric = &mut *self.0.lock();
            let bridge = fabric.switch.add_bridge(&name).map_err(|error| error.to_string())?;
            let config = PortConfig::wire(format!("{name}.card"), bridge, features.mtu);
            let port = fabric.switch.add_port(config).map_err(|error| error.to_string())?;
            let card = Card::new(port, wire).map_err(|_| "no memory for its buffers")?;
            if let Some(outside) = &mut fabric.outside {
                outside.add_card(card);
            }
            (bridge, port)
        };
        if leads_to_world {
            let mac = MacAddr(features.mac);
            self.add_local(bridge, mac)?;
            let network =
                router::Network { role: Role::Uplink, mac, address: None, gateway: None, mtu: features.mtu };
            self.add_network(bridge, network, None);
        }
        Ok(port)
    }
}

/// Has the gateway do what is due.
async fn serve_gateway(network: Arc<Network>) {
    let task = network.1.task.clone();
    loop {
        let next_ns = {
            let fabric = &mut *network.0.lock();
            if let Some(outside) = &mut fabric.outside {
                network.let_go(&mut outside.gateway);
            }
            let next_ns = fabric.flush(time::now_ns());
            if let Some(outside) = &mut fabric.outside {
                outside.sleeps_until_ns = next_ns;
            }
            next_ns
        };
        if next_ns <= time::now_ns() {
            pvrt::yield_now().await;
        } else {
            select(task.notified(), time::sleep_until(next_ns)).await;
        }
    }
}

/// Carries what comes in by a card.
async fn serve_card(network: Arc<Network>, port: PortId) {
    let wire = network.0.lock().outside.as_mut().and_then(|outside| Some(outside.card(port)?.wire.clone()));
    let Some(wire) = wire else { return };
    loop {
        if network.0.lock().receive(port, time::now_ns()) {
            pvrt::yield_now().await;
        } else {
            poll_fn(|context| wire.poll_ready(context)).await;
        }
    }
}
