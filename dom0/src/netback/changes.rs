//! What an administrator changes at the networks: bridges, VLANs, rules, forwards, captures.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use pvrt::Account;
use pvrt::executor::time;

use super::fabric::Fabric;
use super::{FIRST_BRIDGE, Network};
use crate::net::capture::Capture;
use smoltcp::wire::Ipv4Cidr;

use crate::net::headers::protocol;
use crate::net::router::Forward;
use crate::net::switch::{Action, PortId, PortKind, Rule, Rules, Tap, VlanId, Vlans};

/// How many bytes of each packet dom0 sees, and so a capture has at most.
const SNAP_BYTES: u32 = backends::net::HEAD_BYTES as u32;
/// Memory of a capture.
const CAPTURE_BYTES: usize = 1 << 20;

/// How a capture goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureState {
    /// The names of the ports; none: all.
    pub ports: Vec<String>,
    /// Packets so far.
    pub packets: u64,
    /// Packets of these that gave way before anybody took them.
    pub missed: u64,
}

impl Network {
    /// Makes a bridge, which leads nowhere until interfaces are on it.
    ///
    /// # Errors
    /// The name is taken or none; there are too many.
    pub fn add_bridge(&self, name: &str) -> Result<(), String> {
        self.0.lock().switch.add_bridge(name).map(|_| ()).map_err(|error| error.to_string())
    }

    /// Takes a bridge away.
    ///
    /// # Errors
    /// There is none, or somebody is on it.
    pub fn remove_bridge(&self, name: &str) -> Result<(), String> {
        let switch = &mut self.0.lock().switch;
        let id = switch.find_bridge(name).ok_or_else(|| format!("`{name}`: no such bridge"))?;
        if name == FIRST_BRIDGE {
            return Err(format!("`{name}`: configurations that name no bridge mean this one"));
        }
        switch.remove_bridge(id).map_err(|error| format!("`{name}`: {error}"))
    }

    /// Puts a port into VLANs: `untagged`, `.10`, `.10:20:30` or `:20:30`.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub fn set_vlans(&self, port: &str, text: &str) -> Result<(), String> {
        let fabric = &mut *self.0.lock();
        let id = find_guests_port(fabric, port)?;
        let vlans = match text {
            "untagged" => Ok(Vlans::Access(VlanId::UNTAGGED)),
            _ if text.starts_with(['.', ':']) => Vlans::parse(text),
            _ => Vlans::parse_word(text),
        };
        let vlans = vlans.map_err(|wrong| {
            format!("VLAN `{wrong}`: expected `untagged`, or such as `.10`, `:20:30` or `.10:20:30`")
        })?;
        fabric.move_port(id, vlans)
    }

    /// Adds a rule to a port: before the rule at `place`, counted from 1, or behind all others. All that goes on passes by the
    /// new rules or not at all.
    ///
    /// # Errors
    /// What is wrong with the words; there are too many rules.
    pub fn add_rule(&self, port: &str, place: Option<usize>, text: &str) -> Result<(), String> {
        let fabric = &mut *self.0.lock();
        let id = find_guests_port(fabric, port)?;
        let rule = Rule::parse(text).map_err(|error| format!("`{text}`: {error}"))?;
        let mut rules =
            fabric.switch.rules(id).cloned().unwrap_or(Rules::new(Action::Accept, Action::Accept));
        let count = rules.rules().len();
        let at = place.map_or(Some(count), |place| place.checked_sub(1)).filter(|at| *at <= count);
        let at =
            at.ok_or_else(|| format!("{port} has {count} rules: the place is from 1 to {}", count + 1))?;
        if !rules.insert(at, rule) {
            return Err(format!("{port} has {count} rules, and no more can be"));
        }
        fabric.switch.set_rules(id, Some(rules)).map_err(|error| error.to_string())
    }

    /// Takes a rule from a port, counted from 1; or all.
    ///
    /// # Errors
    /// There is no such port or rule.
    pub fn remove_rule(&self, port: &str, place: Option<usize>) -> Result<(), String> {
        let fabric = &mut *self.0.lock();
        let id = find_guests_port(fabric, port)?;
        let mut rules = fabric.switch.rules(id).cloned().ok_or_else(|| format!("{port} has no rules"))?;
        if let Some(place) = place {
            let removed = place.checked_sub(1).and_then(|at| rules.remove(at));
            removed
                .ok_or_else(|| format!("{port} has {} rules, and none at {place}", rules.rules().len()))?;
        }
        let left = Some(rules).filter(|rules| place.is_some() && !rules.rules().is_empty());
        fabric.switch.set_rules(id, left).map_err(|error| error.to_string())
    }

    /// Gives the way to the world an address, `ADDRESS/BITS`, and a way beyond its network.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub fn set_uplink(&self, address: &str, gateway: Option<&str>) -> Result<(), String> {
        let form = |text: &str| format!("`{text}`: expected an address, such as 192.0.2.2/24");
        let (host, bits) = address.split_once('/').ok_or_else(|| form(address))?;
        let host = host.parse().map_err(|_| form(address))?;
        let bits = bits.parse().ok().filter(|bits| *bits <= 32).ok_or_else(|| form(address))?;
        let wrong = |text: &str| format!("`{text}`: expected a station's address, such as 192.0.2.1");
        let gateway = gateway.map(|text| text.parse().map_err(|_| wrong(text))).transpose()?;
        let fabric = &mut *self.0.lock();
        let outside = fabric.outside.as_mut().ok_or("there is no network card")?;
        outside.gateway.set_uplink(time::now_ns(), Ipv4Cidr::new(host, bits), gateway)?;
        outside.task.notify_one();
        Ok(())
    }

    /// Lets the world reach a guest: `PORT:GUEST:GUESTPORT`, TCP.
    ///
    /// # Errors
    /// What is wrong with the words.
    pub fn forward(&self, text: &str) -> Result<(), String> {
        let form = || format!("`{text}`: expected PORT:GUEST:PORT, such as 8080:web:80");
        let (port, rest) = text.split_once(':').ok_or_else(form)?;
        let (guest, to_port) = rest.rsplit_once(':').ok_or_else(form)?;
        let port = port.parse().map_err(|_| form())?;
        let to_port = to_port.parse().map_err(|_| form())?;
        if guest.is_empty() {
            return Err(form());
        }
        let forward = Forward { protocol: protocol::TCP, port, guest: guest.into(), to: None, to_port };
        let fabric = &mut *self.0.lock();
        let outside = fabric.outside.as_mut().ok_or("there is no way to the world")?;
        outside
            .gateway
            .add_forward(time::now_ns(), forward)
            .map(|_| ())
            .map_err(|error| format!("`{text}`: {error}"))
    }

    /// Closes a port of the world's again; connections by the port are over.
    ///
    /// # Errors
    /// The port is not forwarded.
    pub fn unforward(&self, port: u16) -> Result<(), String> {
        let fabric = &mut *self.0.lock();
        let outside = fabric.outside.as_mut().ok_or("there is no way to the world")?;
        let removed = outside.gateway.remove_forward(protocol::TCP, port);
        if removed { Ok(()) } else { Err(format!("port {port} is not forwarded: `net forwards`")) }
    }

    /// Begins to capture what comes in or goes out by these ports, or by any; gives what the file begins with.
    ///
    /// # Errors
    /// There is no such port; a capture goes on; there is no memory.
    pub fn start_capture(&self, ports: &[&str]) -> Result<Vec<u8>, String> {
        let fabric = &mut *self.0.lock();
        if fabric.switch.tap().is_some() {
            return Err("a capture goes on: `net capture stop` ends it".into());
        }
        let ports = ports.iter().map(|port| find_port(fabric, port)).collect::<Result<Vec<_>, _>>()?;
        let capture = Capture::new(CAPTURE_BYTES, SNAP_BYTES).map_err(|_| "no memory for a capture")?;
        let header = capture.file_header().to_vec();
        let since_1970_ns = time::wall_ns().saturating_sub(time::now_ns());
        fabric.switch.set_tap(Some(Tap::new(capture, ports, since_1970_ns)));
        Ok(header)
    }

    /// Ends a capture; gives how the capture went, and the capture with the packets that nobody has taken yet.
    pub fn stop_capture(&self) -> Option<(CaptureState, Capture)> {
        let fabric = &mut *self.0.lock();
        let state = state(fabric)?;
        Some((state, fabric.switch.set_tap(None)?.into_capture()))
    }

    /// How the capture goes, if one does.
    pub fn capture_state(&self) -> Option<CaptureState> {
        state(&mut self.0.lock())
    }

    /// Moves captured packets to the end of `out`: about `most_bytes`. Gives their bytes; `None`: no capture goes on.
    pub fn take_captured(&self, most_bytes: usize, out: &mut Vec<u8>) -> Option<usize> {
        Some(self.0.lock().switch.tap()?.capture().take(most_bytes, out))
    }
}

impl Fabric {
    /// Puts a port into VLANs. A guest that comes into the gateway's VLAN has its configured address there; of one that leaves,
    /// the gateway keeps nothing but the name.
    fn move_port(&mut self, id: PortId, vlans: Vlans) -> Result<(), String> {
        let was_near = self.switch.config(id).is_some_and(|config| config.vlans.has_untagged());
        let is_near = vlans.has_untagged();
        let guest = self.outside.as_ref().and_then(|outside| {
            let guest = outside.guest(id).filter(|_| is_near != was_near)?;
            Some(if is_near { outside.gateway.check(&guest).map(|()| guest) } else { Ok(guest) })
        });
        let guest = guest.transpose()?;
        self.switch.set_vlans(id, vlans).map_err(|error| error.to_string())?;
        let (Some(outside), Some(guest)) = (&mut self.outside, guest) else { return Ok(()) };
        outside.forget(time::now_ns(), id);
        Account::own().charge(|| outside.introduce(id, guest, is_near))
    }
}

fn state(fabric: &mut Fabric) -> Option<CaptureState> {
    let ports = fabric.switch.tap()?.ports().to_vec();
    let name =
        |port: &PortId| fabric.switch.config(*port).map_or("gone".into(), |config| config.name.clone());
    let ports = ports.iter().map(name).collect();
    let capture = fabric.switch.tap()?.capture();
    Some(CaptureState { ports, packets: capture.packets(), missed: capture.missed() })
}

/// The port that an administrator means: by the port's name, or by its domain's, if the domain has one interface.
///
/// # Errors
/// There is none, or there are several.
pub(super) fn find_port(fabric: &Fabric, text: &str) -> Result<PortId, String> {
    if let Some(id) = fabric.switch.find_port(text) {
        return Ok(id);
    }
    let ports = fabric.outside.as_ref().map(|outside| outside.gateway.ports_of(text)).unwrap_or_default();
    match ports[..] {
        [port] => Ok(port),
        [] => Err(format!("`{text}`: no port and no domain with an interface; `net` shows the ports")),
        _ => {
            let names = ports
                .iter()
                .filter_map(|port| fabric.switch.config(*port))
                .map(|config| config.name.as_str());
            Err(format!("{text} has several interfaces: {}", names.collect::<Vec<_>>().join(", ")))
        }
    }
}

/// The same for what guests alone have.
fn find_guests_port(fabric: &Fabric, text: &str) -> Result<PortId, String> {
    let id = find_port(fabric, text)?;
    let is_guests = fabric.switch.config(id).is_some_and(|config| config.kind == PortKind::Vif);
    if is_guests { Ok(id) } else { Err(format!("{text}: that is no guest's interface")) }
}
