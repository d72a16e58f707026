//! One vif: its port on a bridge, and connections of frontends to the port.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;

use backends::net::vif;
use backends::net::{Credit, Intake};
use pvrt::executor::time;

use super::connection::Connection;
use super::{MAX_QUEUES, Network, OpenPort};
use crate::net::MacAddr;
use crate::net::switch::{Guard, PlaceError, PortConfig, Rules};
use crate::xenbus::{Backend, Device};

/// A network backend.
pub(super) struct Instance {
    network: Arc<Network>,
    port: Option<Arc<OpenPort>>,
}

impl Instance {
    pub(super) fn new(network: Arc<Network>) -> Self {
        Self { network, port: None }
    }

    /// Makes the vif's port, as the toolstack's nodes say.
    fn open_port(&self, device: &Device) -> Result<OpenPort, String> {
        let bridge = device.read("bridge").unwrap_or_default();
        let found = self.network.find_place(&bridge, device.read("vlan").as_deref());
        let (id, vlans) = found.map_err(|error| match error {
            PlaceError::NoBridge => {
                format!("bridge `{bridge}`: {error} (there are {})", self.network.bridges().join(", "))
            }
            error => format!("bridge `{bridge}`: {error}"),
        })?;
        let mac = device.read("mac").unwrap_or_default();
        let mac = MacAddr::parse(&mac).ok_or_else(|| format!("mac `{mac}`: no address of a station"))?;
        let usual = format!("vif{}.{}", device.id.domain, device.id.device);
        let usual = PortConfig::vif(device.read("vifname").unwrap_or(usual), id, mac);
        let mut config = PortConfig { vlans, ..usual };
        if let Some(ip) = device.read("ip").filter(|ip| !ip.trim().is_empty()) {
            config.guard = Some(Guard::parse(&ip).map_err(|error| error.to_string())?);
        }
        let rules = device.read("rules").map(|text| Rules::read(&text)).transpose()?;
        OpenPort::new(&self.network, config, rules).map_err(|error| error.to_string())
    }
}

impl Backend for Instance {
    type Connection = Connection;

    const WATCHED: &'static [&'static str] = &[vif::REQUEST_MULTICAST_CONTROL];

    /// Finds the bridge and tells the frontend what the backend can do.
    fn announce(&mut self, device: &Device) -> Result<(), String> {
        if self.port.is_none() {
            self.port = Some(Arc::new(self.open_port(device)?));
        }
        if let Some(port) = &self.port {
            // Of several addresses, the gateway gives the first of IPv4.
            let ip = device.read("ip").unwrap_or_default();
            let first = ip.split([' ', ',']).find_map(|word| word.split('/').next()?.parse().ok());
            port.introduce(device.domain_name(), first)?;
        }
        for (name, value) in vif::features(MAX_QUEUES) {
            device.write(name, &value);
        }
        Ok(())
    }

    fn connect(&mut self, device: &Device) -> Result<Connection, String> {
        let port = self.port.as_ref().ok_or("no port")?;
        let parameters = vif::Connection::read(|name| device.read_front(name), MAX_QUEUES)
            .map_err(|error| error.to_string())?;
        let mut intake = Intake { credit: rate(device)?, ..Intake::default() };
        intake.filter.ask(parameters.multicast_control);
        let connection = Connection::open(device.id.domain, port, &parameters, intake)?;
        log::debug!("{}: connected, {} queues", device.named(), parameters.queues.len());
        Ok(connection)
    }

    /// Follows the frontend's wish for the filter of multicast packets (`feature-dynamic-multicast-control`).
    fn follow(&mut self, device: &Device, _: &Connection) {
        let asked = device.read_front(vif::REQUEST_MULTICAST_CONTROL);
        // What is no number asks for nothing.
        let asked = asked.and_then(|text| text.trim().parse::<u32>().ok()).is_some_and(|value| value != 0);
        if let Some(port) = &self.port {
            port.network.0.lock().way.ask_multicast(port.id, asked);
        }
    }
}

/// The bound on what the frontend sends, of which the toolstack notes bytes and microseconds.
fn rate(device: &Device) -> Result<Option<Credit>, String> {
    let Some(text) = device.read("rate") else { return Ok(None) };
    let read = text.split_once(',').and_then(|(bytes, us)| Some((bytes.parse().ok()?, us.parse().ok()?)));
    let (bytes, interval_us) = read.ok_or_else(|| format!("rate `{text}`: no bytes and microseconds"))?;
    Ok(Credit::new(bytes, interval_us, time::now_ns()))
}
