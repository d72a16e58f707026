//! The network protocol: a transmit ring, a receive ring and an optional control ring.

use crate::layout::{constants, wire};

constants! { "io/netif.h";
    XEN_NETIF_NR_SLOTS_MIN: u32 = 18 => "XEN_NETIF_NR_SLOTS_MIN";
    XEN_NETIF_CTRL_HASH_TYPE_IPV4: u32 = 1 => "XEN_NETIF_CTRL_HASH_TYPE_IPV4";
    XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: u32 = 2 => "XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP";
    XEN_NETIF_CTRL_HASH_TYPE_IPV6: u32 = 4 => "XEN_NETIF_CTRL_HASH_TYPE_IPV6";
    XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: u32 = 8 => "XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP";
    XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: u32 = 0 => "XEN_NETIF_CTRL_HASH_ALGORITHM_NONE";
    XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: u32 = 1 => "XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ";
    XEN_NETIF_CTRL_TYPE_INVALID: u16 = 0 => "XEN_NETIF_CTRL_TYPE_INVALID";
    XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: u16 = 1 => "XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS";
    XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: u16 = 2 => "XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS";
    XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: u16 = 3 => "XEN_NETIF_CTRL_TYPE_SET_HASH_KEY";
    XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: u16 = 4 => "XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE";
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: u16 = 5 => "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE";
    XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: u16 = 6 => "XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING";
    XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: u16 = 7 => "XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM";
    XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: u16 = 8 => "XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE";
    XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: u16 = 9 => "XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING";
    XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: u16 = 10 => "XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING";
    XEN_NETIF_CTRL_STATUS_SUCCESS: u32 = 0 => "XEN_NETIF_CTRL_STATUS_SUCCESS";
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: u32 = 1 => "XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED";
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: u32 = 2 => "XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER";
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: u32 = 3 => "XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW";
    XEN_NETIF_CTRLF_GREF_READONLY: u16 = 1 => "XEN_NETIF_CTRLF_GREF_readonly";
    NETTXF_CSUM_BLANK: u16 = 1 => "NETTXF_csum_blank";
    NETTXF_DATA_VALIDATED: u16 = 2 => "NETTXF_data_validated";
    NETTXF_MORE_DATA: u16 = 4 => "NETTXF_more_data";
    NETTXF_EXTRA_INFO: u16 = 8 => "NETTXF_extra_info";
    XEN_NETIF_MAX_TX_SIZE: u32 = 0xffff => "XEN_NETIF_MAX_TX_SIZE";
    XEN_NETIF_EXTRA_TYPE_NONE: u8 = 0 => "XEN_NETIF_EXTRA_TYPE_NONE";
    XEN_NETIF_EXTRA_TYPE_GSO: u8 = 1 => "XEN_NETIF_EXTRA_TYPE_GSO";
    XEN_NETIF_EXTRA_TYPE_MCAST_ADD: u8 = 2 => "XEN_NETIF_EXTRA_TYPE_MCAST_ADD";
    XEN_NETIF_EXTRA_TYPE_MCAST_DEL: u8 = 3 => "XEN_NETIF_EXTRA_TYPE_MCAST_DEL";
    XEN_NETIF_EXTRA_TYPE_HASH: u8 = 4 => "XEN_NETIF_EXTRA_TYPE_HASH";
    XEN_NETIF_EXTRA_TYPE_MAX: u8 = 5 => "XEN_NETIF_EXTRA_TYPE_MAX";
    XEN_NETIF_EXTRA_FLAG_MORE: u8 = 1 => "XEN_NETIF_EXTRA_FLAG_MORE";
    XEN_NETIF_GSO_TYPE_NONE: u8 = 0 => "XEN_NETIF_GSO_TYPE_NONE";
    XEN_NETIF_GSO_TYPE_TCPV4: u8 = 1 => "XEN_NETIF_GSO_TYPE_TCPV4";
    XEN_NETIF_GSO_TYPE_TCPV6: u8 = 2 => "XEN_NETIF_GSO_TYPE_TCPV6";
    NETRXF_DATA_VALIDATED: u16 = 1 => "NETRXF_data_validated";
    NETRXF_CSUM_BLANK: u16 = 2 => "NETRXF_csum_blank";
    NETRXF_MORE_DATA: u16 = 4 => "NETRXF_more_data";
    NETRXF_EXTRA_INFO: u16 = 8 => "NETRXF_extra_info";
    NETRXF_GSO_PREFIX: u16 = 0x10 => "NETRXF_gso_prefix";
    NETIF_RSP_DROPPED: i16 = -2 => "NETIF_RSP_DROPPED";
    NETIF_RSP_ERROR: i16 = -1 => "NETIF_RSP_ERROR";
    NETIF_RSP_OKAY: i16 = 0 => "NETIF_RSP_OKAY";
    NETIF_RSP_NULL: i16 = 1 => "NETIF_RSP_NULL";
}

wire! { "io/netif.h";
    /// Transmit request: one piece of a packet.
    struct NetifTxRequest = "struct netif_tx_request", 12 {
        0x0 gref: u32,
        /// First byte within the page.
        0x4 offset: u16,
        /// `NETTXF_*`.
        0x6 flags: u16,
        /// The frontend's own tag.
        0x8 id: u16,
        /// Bytes: of the whole packet in the first request, of the piece in the others.
        0xa size: u16,
    }

    /// Extra information: takes the slot after the first request or response of a packet.
    struct NetifExtraInfo = "struct netif_extra_info", 8 {
        /// `XEN_NETIF_EXTRA_TYPE_*`.
        0x0 r#type: u8,
        /// `XEN_NETIF_EXTRA_FLAG_*`.
        0x1 flags: u8,
        /// By type: [`NetifExtraGso`], [`NetifExtraMcast`] or [`NetifExtraHash`].
        0x2 u: [u16; 3],
    }

    /// Extra information `XEN_NETIF_EXTRA_TYPE_GSO`: the packet is to be cut into segments.
    struct NetifExtraGso = "struct netif_extra_info", 8 {
        0x0 r#type: u8,
        0x1 flags: u8,
        /// Most bytes of payload in a segment.
        0x2 size: u16 = "u.gso.size",
        /// `XEN_NETIF_GSO_TYPE_*`.
        0x4 gso_type: u8 = "u.gso.type",
        0x5 pad: u8 = "u.gso.pad",
        /// None are defined: 0.
        0x6 features: u16 = "u.gso.features",
    }

    /// Extra information `XEN_NETIF_EXTRA_TYPE_MCAST_ADD` and `..._DEL`: an address for the backend's filter.
    struct NetifExtraMcast = "struct netif_extra_info", 8 {
        0x0 r#type: u8,
        0x1 flags: u8,
        /// Ethernet address.
        0x2 addr: [u8; 6] = "u.mcast.addr",
    }

    /// Extra information `XEN_NETIF_EXTRA_TYPE_HASH`: the flow's hash.
    struct NetifExtraHash = "struct netif_extra_info", 8 {
        0x0 r#type: u8,
        0x1 flags: u8,
        /// What was hashed: the number of the bit that `XEN_NETIF_CTRL_HASH_TYPE_*` has.
        0x2 hash_type: u8 = "u.hash.type",
        /// `XEN_NETIF_CTRL_HASH_ALGORITHM_*`.
        0x3 algorithm: u8 = "u.hash.algorithm",
        /// The hash, lowest byte first.
        0x4 value: [u8; 4] = "u.hash.value",
    }

    /// Transmit response.
    struct NetifTxResponse = "struct netif_tx_response", 4 {
        0x0 id: u16,
        /// `NETIF_RSP_*`.
        0x2 status: i16,
    }

    /// Receive request: an empty page.
    struct NetifRxRequest = "struct netif_rx_request", 8 {
        0x0 id: u16,
        0x2 pad: u16,
        0x4 gref: u32,
    }

    /// Receive response: one piece of a packet.
    struct NetifRxResponse = "struct netif_rx_response", 8 {
        0x0 id: u16,
        /// First byte within the page.
        0x2 offset: u16,
        /// `NETRXF_*`.
        0x4 flags: u16,
        /// Bytes, or `NETIF_RSP_*` if negative.
        0x6 status: i16,
    }

    /// Control request.
    struct XenNetifCtrlRequest = "struct xen_netif_ctrl_request", 16 {
        0x0 id: u16,
        /// `XEN_NETIF_CTRL_TYPE_*`.
        0x2 r#type: u16,
        0x4 data: [u32; 3],
    }

    /// Control response.
    struct XenNetifCtrlResponse = "struct xen_netif_ctrl_response", 12 {
        0x0 id: u16,
        0x2 r#type: u16,
        /// `XEN_NETIF_CTRL_STATUS_*`.
        0x4 status: u32,
        0x8 data: u32,
    }

    /// One entry of a static grant mapping.
    struct XenNetifGref = "struct xen_netif_gref", 8 {
        0x0 r#ref: u32,
        /// `XEN_NETIF_CTRLF_GREF_READONLY`.
        0x4 flags: u16,
        0x6 status: u16,
    }
}

impl NetifTxRequest {
    /// The slot read as extra information.
    #[must_use]
    pub fn as_extra(&self) -> NetifExtraInfo {
        crate::payload::front(self)
    }

    /// A slot that holds extra information.
    #[must_use]
    pub fn from_extra(extra: &NetifExtraInfo) -> Self {
        crate::payload::widen(extra)
    }
}

impl NetifRxResponse {
    /// The slot read as extra information.
    #[must_use]
    pub fn as_extra(&self) -> NetifExtraInfo {
        crate::payload::front(self)
    }

    /// A slot that holds extra information.
    #[must_use]
    pub fn from_extra(extra: &NetifExtraInfo) -> Self {
        crate::payload::widen(extra)
    }
}

impl NetifExtraInfo {
    /// Read as segmentation offload.
    #[must_use]
    pub fn as_gso(&self) -> NetifExtraGso {
        crate::payload::front(self)
    }

    /// Read as a multicast address.
    #[must_use]
    pub fn as_mcast(&self) -> NetifExtraMcast {
        crate::payload::front(self)
    }

    /// Read as a hash.
    #[must_use]
    pub fn as_hash(&self) -> NetifExtraHash {
        crate::payload::front(self)
    }
}

impl From<NetifExtraGso> for NetifExtraInfo {
    fn from(extra: NetifExtraGso) -> Self {
        crate::payload::widen(&extra)
    }
}

impl From<NetifExtraMcast> for NetifExtraInfo {
    fn from(extra: NetifExtraMcast) -> Self {
        crate::payload::widen(&extra)
    }
}

impl From<NetifExtraHash> for NetifExtraInfo {
    fn from(extra: NetifExtraHash) -> Self {
        crate::payload::widen(&extra)
    }
}

/// The transmit ring, frontend to backend.
#[derive(Clone, Copy, Debug)]
pub struct NetifTxRing;

impl crate::ring::RingProtocol for NetifTxRing {
    type Request = NetifTxRequest;
    type Response = NetifTxResponse;
}

/// The receive ring, backend to frontend.
#[derive(Clone, Copy, Debug)]
pub struct NetifRxRing;

impl crate::ring::RingProtocol for NetifRxRing {
    type Request = NetifRxRequest;
    type Response = NetifRxResponse;
}

/// The control ring.
#[derive(Clone, Copy, Debug)]
pub struct NetifCtrlRing;

impl crate::ring::RingProtocol for NetifCtrlRing {
    type Request = XenNetifCtrlRequest;
    type Response = XenNetifCtrlResponse;
}

/// Geometry of the rings, one page each.
pub mod ring {
    use super::{NetifCtrlRing, NetifRxRing, NetifTxRing};
    use crate::layout::constants;
    use crate::ring::{RingProtocol, SLOTS, slots};

    constants! { "io/netif.h";
        /// Bytes of a transmit slot.
        TX_SLOT_BYTES: usize = NetifTxRing::SLOT_BYTES => "sizeof(union netif_tx_sring_entry)";
        /// Bytes of a receive slot.
        RX_SLOT_BYTES: usize = NetifRxRing::SLOT_BYTES => "sizeof(union netif_rx_sring_entry)";
        /// Bytes of a control slot.
        CTRL_SLOT_BYTES: usize = NetifCtrlRing::SLOT_BYTES => "sizeof(union xen_netif_ctrl_sring_entry)";
        /// Slots for transmission.
        TX_SLOTS: u32 = slots::<NetifTxRing>(4096) => "__CONST_RING_SIZE(netif_tx, 4096)";
        /// Slots for reception.
        RX_SLOTS: u32 = slots::<NetifRxRing>(4096) => "__CONST_RING_SIZE(netif_rx, 4096)";
        /// Slots for control.
        CTRL_SLOTS: u32 = slots::<NetifCtrlRing>(4096) => "__CONST_RING_SIZE(xen_netif_ctrl, 4096)";
        /// Offset of the first transmit slot.
        TX_SLOTS_OFFSET: usize = SLOTS => "offsetof(struct netif_tx_sring, ring)";
        /// Offset of the first receive slot.
        RX_SLOTS_OFFSET: usize = SLOTS => "offsetof(struct netif_rx_sring, ring)";
        /// Offset of the first control slot.
        CTRL_SLOTS_OFFSET: usize = SLOTS => "offsetof(struct xen_netif_ctrl_sring, ring)";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_information_shares_slots_of_both_rings() {
        let gso = NetifExtraGso {
            r#type: XEN_NETIF_EXTRA_TYPE_GSO,
            flags: XEN_NETIF_EXTRA_FLAG_MORE,
            size: 1448,
            gso_type: XEN_NETIF_GSO_TYPE_TCPV6,
            ..Default::default()
        };
        let extra = NetifExtraInfo::from(gso);
        assert_eq!((extra.r#type, extra.flags, extra.u), (1, 1, [1448, 2, 0]));
        assert_eq!(NetifTxRequest::from_extra(&extra).as_extra().as_gso(), gso);
        assert_eq!(NetifRxResponse::from_extra(&extra).as_extra().as_gso(), gso);

        let mcast = NetifExtraMcast { addr: [1, 2, 3, 4, 5, 6], ..Default::default() };
        assert_eq!(NetifExtraInfo::from(mcast).as_mcast(), mcast);
        let hash = NetifExtraHash { hash_type: 2, algorithm: 1, value: [9, 8, 7, 6], ..Default::default() };
        assert_eq!(NetifExtraInfo::from(hash).as_hash(), hash);
        assert_eq!(NetifExtraInfo::from(hash).u[0], 0x102);
    }
}
