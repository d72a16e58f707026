//! The nodes of network interfaces.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::types::DomId;

use super::devices::number;
use super::{INITIALISING, put};
use crate::config::{DEFAULT_MTU, VifConfig};
use crate::toolstack::AttachedVif;
use crate::toolstack::devices::{Device, Kind};
use crate::xenstore::{Nodes, Perms, Transaction, Xenstore, XsError};

/// Where the reference toolstack has its scripts, and the one that it names if nobody names one. dom0 runs none.
const SCRIPTS: &str = "/etc/xen/scripts";
const SCRIPT: &str = "vif-bridge";

/// The interfaces that a domain has, in the order of their numbers.
pub(in crate::toolstack) fn vifs(store: &Xenstore, id: DomId) -> Vec<AttachedVif> {
    let client = store.client();
    let vif = |device: Device| {
        let server = device.server(store);
        let front = device.frontend();
        // A frontend with several queues has a directory for each.
        let of_queue = |node: &str| {
            number(&client, &front, node).or_else(|| number(&client, &format!("{front}/queue-0"), node))
        };
        AttachedVif {
            devid: device.devid,
            backend_id: server.raw().into(),
            mac: client.read_str(&format!("{}/mac", device.record())).unwrap_or_default(),
            state: number(&client, &front, "state"),
            port: of_queue("event-channel").or_else(|| of_queue("event-channel-tx")),
            tx_ring: of_queue("tx-ring-ref"),
            rx_ring: of_queue("rx-ring-ref"),
            backend: device.backend(server),
        }
    };
    Device::all(store, Kind::Vif, id).into_iter().map(vif).collect()
}

/// Each end's directory is its domain's own, and the other may read it. The MTU is for the domain to read alone.
///
/// # Errors
/// The store's; `EINVAL`: nobody chose the interface's address.
pub(in crate::toolstack) fn put_vif(
    tx: &Transaction<'_>,
    device: Device,
    vif: &VifConfig,
    server: DomId,
) -> Result<(), XsError> {
    let (front, back) = device.put_record(tx, server)?;
    let mac = vif.mac.ok_or(XsError::Inval)?.to_string();
    tx.write(&format!("{}/mac", device.record()), &mac)?;
    let (id, server, handle) = (device.domain.raw(), server.raw(), device.devid.to_string());
    put(tx, &front, "", &Perms::shared_with(id, server))?;
    for (node, value) in [
        ("backend", back.as_str()),
        ("backend-id", &server.to_string()),
        ("state", INITIALISING),
        ("handle", &handle),
        ("mac", &mac),
    ] {
        tx.write(&format!("{front}/{node}"), value)?;
    }
    put(tx, &format!("{front}/mtu"), &vif.mtu().to_string(), &Perms::shared_with(0, id))?;
    // A frontend that reads nothing trusts its backend.
    if !vif.trusted {
        tx.write(&format!("{front}/trusted"), "0")?;
    }
    put(tx, &back, "", &Perms::shared_with(server, id))?;
    let rate = vif.rate.map(|rate| format!("{},{}", rate.bytes, rate.interval_us));
    let mtu = Some(vif.mtu()).filter(|mtu| *mtu != DEFAULT_MTU).map(|mtu| mtu.to_string());
    let rules: Vec<String> = vif.rules.iter().map(ToString::to_string).collect();
    let rules = Some(rules.join("; ")).filter(|rules| !rules.is_empty());
    let script = script(vif.script.as_deref().unwrap_or(SCRIPT));
    for (node, value) in [
        ("frontend", Some(front.as_str())),
        ("frontend-id", Some(&id.to_string())),
        ("online", Some("1")),
        ("script", Some(&script)),
        ("vifname", vif.vifname.as_deref()),
        ("mac", Some(&mac)),
        ("ip", vif.ip.as_deref()),
        ("gatewaydev", vif.gatewaydev.as_deref()),
        ("rate", rate.as_deref()),
        ("mtu", mtu.as_deref()),
        ("bridge", Some(vif.bridge())),
        ("vlan", vif.vlan.as_deref()),
        ("rules", rules.as_deref()),
        ("handle", Some(&handle)),
        ("type", Some("vif")),
        ("hotplug-status", Some("")),
        ("state", Some(INITIALISING)),
    ] {
        value.map_or(Ok(()), |value| tx.write(&format!("{back}/{node}"), value))?;
    }
    Ok(())
}

/// A script's whole path.
fn script(name: &str) -> String {
    if name.starts_with('/') { name.to_string() } else { format!("{SCRIPTS}/{name}") }
}
