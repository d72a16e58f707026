//! The nodes by which a vif's two ends agree on queues and features.
//!
//! ABI: `xen/include/public/io/netif.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::types::{GrantRef, Port};

use super::packet::{Checksum, GsoKind, Offload};
use crate::xenbus::{BadParameter, number, optional_number, protocol};

/// The rings of one queue, and how the frontend is notified of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueParameters {
    /// The ring for what the frontend sends.
    pub tx_ring: GrantRef,
    /// The ring for what the frontend receives.
    pub rx_ring: GrantRef,
    /// The frontend's event channel of the first ring.
    pub tx_port: Port,
    /// The frontend's event channel of the second ring; `None`: both rings have one.
    pub rx_port: Option<Port>,
}

/// What a frontend takes of what others would otherwise do for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Packets of several slots.
    pub sg: bool,
    /// TCP over IPv4 that is not cut into segments.
    pub gso_tcpv4: bool,
    /// TCP over IPv6 that is not cut into segments.
    pub gso_tcpv6: bool,
    /// Packets without a whole checksum, over IPv4.
    pub checksum_ipv4: bool,
    /// Packets without a whole checksum, over IPv6.
    pub checksum_ipv6: bool,
}

impl Abilities {
    /// Whether the frontend takes a packet as its sender left the packet.
    #[must_use]
    pub fn take(&self, offload: &Offload, is_ipv6: bool) -> bool {
        let gso = match offload.gso.map(|gso| gso.kind) {
            None => true,
            Some(GsoKind::TcpV4) => self.sg && self.gso_tcpv4,
            Some(GsoKind::TcpV6) => self.sg && self.gso_tcpv6,
        };
        let checksum = if is_ipv6 { self.checksum_ipv6 } else { self.checksum_ipv4 };
        gso && (checksum || offload.checksum != Checksum::Partial)
    }
}

/// What a frontend says of its queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The queues, at least one.
    pub queues: Vec<QueueParameters>,
    /// What the frontend takes.
    pub abilities: Abilities,
    /// The frontend names the multicast addresses that it wants.
    pub multicast_control: bool,
    /// The control ring and the frontend's event channel for the ring, if there is one.
    pub control: Option<(GrantRef, Port)>,
}

/// The node by which a frontend asks for the filter of multicast packets, at any time.
pub const REQUEST_MULTICAST_CONTROL: &str = "request-multicast-control";

impl Connection {
    /// Reads a frontend's parameters by `read`, which gives the value of a node in the frontend's directory. The frontend may
    /// have `max_queues` queues.
    ///
    /// # Errors
    /// [`BadParameter`]: a node is missing, not a number, out of range, or says that the frontend wants pages to change
    /// hands, or another protocol.
    pub fn read(
        mut read: impl FnMut(&str) -> Option<String>,
        max_queues: usize,
    ) -> Result<Self, BadParameter> {
        protocol(&mut read)?;
        let copy = "request-rx-copy";
        if number(&mut read, copy)? == 0 {
            return Err(BadParameter::bad(copy, "0".to_string()));
        }
        let mut flag = |node: &str| Ok(optional_number(&mut read, node)?.is_some_and(|value| value != 0));
        let abilities = Abilities {
            sg: flag("feature-sg")?,
            gso_tcpv4: flag("feature-gso-tcpv4")?,
            gso_tcpv6: flag("feature-gso-tcpv6")?,
            checksum_ipv4: !flag("feature-no-csum-offload")?,
            checksum_ipv6: flag("feature-ipv6-csum-offload")?,
        };
        let multicast_control = flag(REQUEST_MULTICAST_CONTROL)?;
        let control = match optional_number(&mut read, "ctrl-ring-ref")? {
            None => None,
            Some(ring) => {
                let port = number(&mut read, "event-channel-ctrl")?;
                Some((GrantRef::new(ring), Port::new(port)))
            }
        };
        let count = "multi-queue-num-queues";
        let queues = match optional_number(&mut read, count)? {
            None | Some(1) => Vec::from([queue(&mut read, "")?]),
            Some(queues) if queues != 0 && queues as usize <= max_queues => {
                (0..queues).map(|n| queue(&mut read, &format!("queue-{n}/"))).collect::<Result<_, _>>()?
            }
            Some(queues) => return Err(BadParameter::bad(count, queues.to_string())),
        };
        Ok(Self { queues, abilities, multicast_control, control })
    }
}

/// Reads the parameters of one queue, whose nodes' names begin so.
fn queue(
    read: &mut impl FnMut(&str) -> Option<String>,
    directory: &str,
) -> Result<QueueParameters, BadParameter> {
    let mut of_queue = |node: &str| number(read, &format!("{directory}{node}"));
    let (tx_ring, rx_ring) =
        (GrantRef::new(of_queue("tx-ring-ref")?), GrantRef::new(of_queue("rx-ring-ref")?));
    let tx = optional_number(read, &format!("{directory}event-channel-tx"))?;
    let (tx_port, rx_port) = match tx {
        Some(tx) => (tx, Some(Port::new(number(read, &format!("{directory}event-channel-rx"))?))),
        None => (number(read, &format!("{directory}event-channel"))?, None),
    };
    Ok(QueueParameters { tx_ring, rx_ring, tx_port: Port::new(tx_port), rx_port })
}

/// The nodes to write before `InitWait`: name and value. The frontend may have `max_queues` queues.
#[must_use]
pub fn features(max_queues: usize) -> Vec<(&'static str, String)> {
    let flags = [
        ("feature-sg", true),
        ("feature-gso-tcpv4", true),
        ("feature-gso-tcpv6", true),
        ("feature-ipv6-csum-offload", true),
        ("feature-rx-copy", true),
        ("feature-rx-flip", false),
        ("feature-multicast-control", true),
        ("feature-dynamic-multicast-control", true),
        ("feature-split-event-channels", true),
        ("feature-ctrl-ring", true),
    ];
    let mut nodes: Vec<_> =
        flags.into_iter().map(|(name, on)| (name, if on { "1" } else { "0" }.to_string())).collect();
    nodes.push(("multi-queue-max-queues", max_queues.to_string()));
    nodes
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use super::*;
    use crate::net::Gso;

    fn read(nodes: &[(&str, &str)]) -> Result<Connection, String> {
        let nodes: BTreeMap<_, _> = nodes.iter().copied().collect();
        Connection::read(|node| nodes.get(node).map(ToString::to_string), 2).map_err(|e| e.to_string())
    }

    const ONE: [(&str, &str); 4] =
        [("request-rx-copy", "1"), ("tx-ring-ref", "8"), ("rx-ring-ref", "9"), ("event-channel", "3")];

    fn one_and(more: &[(&'static str, &'static str)]) -> Result<Connection, String> {
        read(&[&ONE[..], more].concat())
    }

    #[test]
    fn one_queue() {
        let queue = QueueParameters {
            tx_ring: GrantRef::new(8),
            rx_ring: GrantRef::new(9),
            tx_port: Port::new(3),
            rx_port: None,
        };
        let read = one_and(&[("feature-rx-notify", "1")]).unwrap();
        assert_eq!(read.queues, [queue]);
        assert_eq!(read.abilities, Abilities { checksum_ipv4: true, ..Abilities::default() });
        assert!(!read.multicast_control);
        // A frontend that knows of several queues and has one.
        let split = [("multi-queue-num-queues", "1"), ("event-channel-tx", "5"), ("event-channel-rx", "6")];
        let split = one_and(&split).unwrap().queues[0];
        assert_eq!((split.tx_port, split.rx_port), (Port::new(5), Some(Port::new(6))));
    }

    #[test]
    fn several_queues_have_a_directory_each() {
        let mut nodes = Vec::from([("request-rx-copy", "1"), ("multi-queue-num-queues", "2")]);
        nodes.extend([
            ("queue-0/tx-ring-ref", "8"),
            ("queue-0/rx-ring-ref", "9"),
            ("queue-0/event-channel", "3"),
        ]);
        assert_eq!(read(&nodes), Err("no queue-1/tx-ring-ref".into()));
        nodes.extend([("queue-1/tx-ring-ref", "10"), ("queue-1/rx-ring-ref", "11")]);
        nodes.push(("queue-1/event-channel-tx", "4"));
        assert_eq!(read(&nodes), Err("no queue-1/event-channel-rx".into()));
        nodes.push(("queue-1/event-channel-rx", "5"));
        let queues = read(&nodes).unwrap().queues;
        assert_eq!(
            (queues.len(), queues[1].rx_ring, queues[1].rx_port),
            (2, GrantRef::new(11), Some(Port::new(5)))
        );
    }

    #[test]
    fn a_control_ring_has_a_port() {
        assert_eq!(one_and(&[]).unwrap().control, None);
        let ring = ("ctrl-ring-ref", "12");
        assert_eq!(one_and(&[ring]), Err("no event-channel-ctrl".into()));
        assert_eq!(
            one_and(&[ring, ("event-channel-ctrl", "-1")]),
            Err("bad event-channel-ctrl \"-1\"".into())
        );
        let control = one_and(&[ring, ("event-channel-ctrl", "7")]).unwrap().control;
        assert_eq!(control, Some((GrantRef::new(12), Port::new(7))));
        // A port without a ring says nothing.
        assert_eq!(one_and(&[("event-channel-ctrl", "7")]).unwrap().control, None);
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (more, error) in [
            (("request-rx-copy", "0"), "bad request-rx-copy \"0\""),
            (("multi-queue-num-queues", "0"), "bad multi-queue-num-queues \"0\""),
            (("multi-queue-num-queues", "3"), "bad multi-queue-num-queues \"3\""),
            (("multi-queue-num-queues", "x"), "bad multi-queue-num-queues \"x\""),
            (("tx-ring-ref", "4294967296"), "bad tx-ring-ref \"4294967296\""),
            (("feature-sg", "yes"), "bad feature-sg \"yes\""),
            (("protocol", "x86_32-abi"), "bad protocol \"x86_32-abi\""),
        ] {
            assert_eq!(one_and(&[more]), Err(error.into()));
        }
        assert_eq!(read(&[]), Err("no request-rx-copy".into()));
        assert_eq!(read(&ONE[..2]), Err("no rx-ring-ref".into()));
        assert_eq!(read(&ONE[..3]), Err("no event-channel".into()));
    }

    #[test]
    fn a_frontend_takes_what_it_says() {
        let gso = |kind| Offload { gso: Some(Gso { kind, size: 1448 }), ..Offload::default() };
        let partial = Offload { checksum: Checksum::Partial, ..Offload::default() };
        let none = one_and(&[("feature-no-csum-offload", "1")]).unwrap().abilities;
        for offload in [gso(GsoKind::TcpV4), gso(GsoKind::TcpV6), partial] {
            assert!(!none.take(&offload, true) && !none.take(&offload, false));
        }
        assert!(none.take(&Offload::default(), true));
        let usual = one_and(&[("feature-sg", "1"), ("feature-gso-tcpv4", "1")]).unwrap().abilities;
        assert!(usual.take(&gso(GsoKind::TcpV4), false) && !usual.take(&gso(GsoKind::TcpV6), true));
        assert!(usual.take(&partial, false) && !usual.take(&partial, true));
        let nodes = [("feature-sg", "1"), ("feature-ipv6-csum-offload", "1"), ("feature-gso-tcpv6", "1")];
        let modern = one_and(&nodes).unwrap().abilities;
        assert!(modern.take(&gso(GsoKind::TcpV6), true) && modern.take(&partial, true));
        // A long packet has several slots.
        let one_slot = one_and(&[("feature-gso-tcpv4", "1"), ("feature-gso-tcpv6", "1")]).unwrap().abilities;
        assert!(!one_slot.take(&gso(GsoKind::TcpV4), false) && !one_slot.take(&gso(GsoKind::TcpV6), true));
    }

    #[test]
    fn features_are_as_many_as_there_are() {
        let nodes = features(4);
        assert!(nodes.contains(&("multi-queue-max-queues", "4".into())));
        assert!(
            nodes.contains(&("feature-rx-flip", "0".into())) && nodes.contains(&("feature-sg", "1".into()))
        );
    }
}
