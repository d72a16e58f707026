//! What a block backend writes to its nodes, and what the backend reads of its frontend's. The states are those of
//! [`xenbus`](crate::xenbus).
//!
//! ABI: `xen/include/public/io/blkif.h`.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::io::blkif::{VDISK_CDROM, VDISK_READONLY};
use ring_abi::types::{GrantRef, Port};

use crate::blk::MAX_INDIRECT_SEGMENTS;
use crate::traits::{Geometry, SECTOR_SIZE};
use crate::xenbus::{self, BadParameter};

/// Largest `ring-page-order` accepted: 4 pages, 128 requests.
pub const MAX_RING_PAGE_ORDER: u32 = 2;

/// What a frontend says of its ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Grants of the ring's pages, in order; a power of two of them.
    pub ring: Vec<GrantRef>,
    /// The frontend's event channel.
    pub port: Port,
}

impl Connection {
    /// Reads a frontend's parameters by `read`, which gives the value of a node in the frontend's directory.
    ///
    /// # Errors
    /// [`BadParameter`]: a node is missing, not a number, out of range, or names another protocol.
    pub fn read(mut read: impl FnMut(&str) -> Option<String>) -> Result<Self, BadParameter> {
        xenbus::protocol(&mut read)?;
        let order = match xenbus::optional_number(&mut read, "ring-page-order")? {
            Some(order) if order > MAX_RING_PAGE_ORDER => {
                return Err(BadParameter::bad("ring-page-order", order.to_string()));
            }
            order => order,
        };
        let port = Port::new(xenbus::number(&mut read, "event-channel")?);
        let mut gref = |node: &str| xenbus::number(&mut read, node).map(GrantRef::new);
        let ring = match order {
            None => alloc::vec![gref("ring-ref")?],
            Some(order) => (0..1 << order)
                .map(|page| gref(&format!("ring-ref{page}")))
                .collect::<Result<_, _>>()
                .or_else(|error| {
                    // Some frontends write an order of 0 and the old node.
                    if order != 0 {
                        return Err(error);
                    }
                    gref("ring-ref").map(|gref| alloc::vec![gref])
                })?,
        };
        Ok(Self { ring, port })
    }
}

/// The nodes to write before `InitWait`: name and value.
pub fn features(geometry: &Geometry) -> Vec<(&'static str, String)> {
    let flag = |on: bool| if on { "1" } else { "0" }.to_string();
    let mut nodes = alloc::vec![
        ("max-ring-page-order", MAX_RING_PAGE_ORDER.to_string()),
        ("feature-flush-cache", flag(geometry.flush && !geometry.read_only)),
        ("feature-barrier", flag(geometry.flush && !geometry.read_only)),
        ("feature-max-indirect-segments", MAX_INDIRECT_SEGMENTS.to_string()),
        ("feature-persistent", flag(false)),
    ];
    let discard = geometry.discard.filter(|_| !geometry.read_only);
    nodes.push(("feature-discard", flag(discard.is_some())));
    if let Some(limits) = discard {
        let bytes = |sectors: u32| (u64::from(sectors) * u64::from(SECTOR_SIZE)).to_string();
        nodes.push(("discard-granularity", bytes(limits.granularity)));
        nodes.push(("discard-alignment", bytes(limits.alignment)));
        nodes.push(("discard-secure", flag(false)));
    }
    nodes
}

/// The nodes that the owner writes before `Connected`: name and value. `cdrom`: the toolstack asked for that type of
/// device.
pub fn properties(geometry: &Geometry, cdrom: bool) -> Vec<(&'static str, String)> {
    let info = if geometry.read_only { VDISK_READONLY } else { 0 } | if cdrom { VDISK_CDROM } else { 0 };
    alloc::vec![
        // The unit is 512 bytes whatever the sector size, as Linux's blkback writes the node and Linux's blkfront reads
        // the node.
        ("sectors", geometry.sectors.to_string()),
        ("info", info.to_string()),
        ("sector-size", geometry.sector_size.to_string()),
        ("physical-sector-size", geometry.physical_sector_size.to_string()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    fn read(nodes: &[(&str, &str)]) -> Result<Connection, String> {
        let nodes: BTreeMap<_, _> = nodes.iter().copied().collect();
        Connection::read(|node| nodes.get(node).map(ToString::to_string)).map_err(|e| e.to_string())
    }

    #[test]
    fn connection_parameters() {
        let one = read(&[("ring-ref", "8"), ("event-channel", "4294967295"), ("protocol", "x86_64-abi")]);
        let expected = Connection { ring: alloc::vec![GrantRef::new(8)], port: Port::new(u32::MAX) };
        assert_eq!(one, Ok(expected));
        let two =
            read(&[("ring-page-order", "1"), ("ring-ref0", "8"), ("ring-ref1", "9"), ("event-channel", "3")]);
        assert_eq!(two.map(|c| c.ring.len()), Ok(2));
        let zero = read(&[("ring-page-order", "0"), ("ring-ref", "8"), ("event-channel", "3")]);
        assert_eq!(zero.map(|c| c.ring.len()), Ok(1));
        assert_eq!(read(&[("event-channel", "3")]), Err("no ring-ref".into()));
        assert_eq!(read(&[("ring-ref", "8")]), Err("no event-channel".into()));
        let wide = read(&[("ring-ref", "4294967296"), ("event-channel", "3")]);
        assert_eq!(wide, Err("bad ring-ref \"4294967296\"".into()));
        let order = read(&[("ring-page-order", "3"), ("event-channel", "3")]);
        assert_eq!(order, Err("bad ring-page-order \"3\"".into()));
        let long = "\x1b".repeat(2048);
        let long = read(&[("ring-ref", &long), ("event-channel", "3")]);
        assert_eq!(long, Err("bad ring-ref, 2048 bytes long".into()));
        let protocol = read(&[("protocol", "x86_32-abi"), ("ring-ref", "1"), ("event-channel", "3")]);
        assert_eq!(protocol, Err("bad protocol \"x86_32-abi\"".into()));
    }
}
