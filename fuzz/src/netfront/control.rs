//! The backend's side of the control ring: mostly an answer that helps, now and then a lie.

use dom0::xenstore::Client;
use pvrt::event::Port;
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::netif::*;
use ring_abi::ring::{REQ_PROD, RSP_PROD, RingProtocol, SLOTS};
use ring_abi::types::GrantRef;

use super::PATHS;
use crate::devices::GUEST;
use crate::input::Input;

/// Entries of the table of queues, pages of each queue that the backend keeps.
const ROOM: u32 = 128;
/// Slots of the ring.
const RING_SLOTS: u32 = 128;

pub(super) struct Control {
    page: GrantMap,
    port: Port,
    queues: u32,
    answered: u32,
    /// What the frontend wrote into the ring is there.
    is_sound: bool,
}

/// A page that a request names; `None`: the frontend has ended meanwhile.
fn named(gref: u32) -> Option<GrantMap> {
    map_grants(GUEST, &[GrantRef::new(gref)], false).ok()
}

/// A sound backend's data for the request.
fn answer(request: &XenNetifCtrlRequest) -> u32 {
    match request.r#type {
        XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS => 15,
        XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE | XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE => ROOM,
        _ => 0,
    }
}

/// What the request names is sound, whatever the answers before were.
fn check(request: &XenNetifCtrlRequest, queues: u32) {
    let [first, second, third] = request.data;
    match request.r#type {
        XEN_NETIF_CTRL_TYPE_SET_HASH_KEY => {
            assert_eq!(second, 40);
            drop(named(first));
        }
        XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING => {
            assert!((1..=ROOM).contains(&second) && third == 0);
            let Some(page) = named(first) else { return };
            assert!((0..second as usize).all(|at| page.bytes().load_u32(at * 4) < queues));
        }
        XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING => {
            assert!(first < queues);
            let Some(list) = named(second) else { return };
            for at in 0..third as usize {
                let entry: XenNetifGref = list.bytes().read_value(at * size_of::<XenNetifGref>());
                let is_writable = entry.flags & XEN_NETIF_CTRLF_GREF_READONLY == 0;
                assert!(map_grants(GUEST, &[GrantRef::new(entry.r#ref)], is_writable).is_ok());
            }
        }
        _ => {}
    }
}

impl Control {
    /// Takes the ring, if the frontend has made one.
    pub(super) fn attach(dom0: &Client, queues: u32) -> Option<Control> {
        let ([page], port) = PATHS.take(dom0, ["ctrl-ring-ref"], "event-channel-ctrl")?;
        Some(Control { page, port, queues, answered: 0, is_sound: true })
    }

    /// Answers the next request, or does something wrong. What is not asked costs no byte of the input.
    pub(super) fn serve(&mut self, input: &Input) {
        let page = self.page.bytes();
        if page.load_u32(REQ_PROD) == self.answered {
            return;
        }
        let at = SLOTS + (self.answered % RING_SLOTS) as usize * NetifCtrlRing::SLOT_BYTES;
        let request: XenNetifCtrlRequest = page.read_value(at);
        if self.is_sound {
            check(&request, self.queues);
        }
        let mut response = XenNetifCtrlResponse {
            id: request.id,
            r#type: request.r#type,
            status: XEN_NETIF_CTRL_STATUS_SUCCESS,
            data: answer(&request),
        };
        let how = input.u8();
        self.is_sound &= !matches!(how, 0xf0..=0xf7);
        match how {
            0..=0xcf => {}
            0xd0..=0xd7 => response.data = input.u32(),
            0xd8..=0xdf => response.data = input.u8().into(),
            0xe0..=0xe7 => response.status = input.u8().into(),
            0xe8..=0xeb => response.id = input.u16(),
            0xec..=0xef => response.r#type = input.u16(),
            0xf0..=0xf3 => page.store_u32(input.below(4) * 4, input.u32()),
            0xf4..=0xf7 => page.write(SLOTS + usize::from(input.u8()) * 8, &input.take(8)),
            // Not yet.
            _ => return,
        }
        page.write_value(at, &response);
        self.answered = self.answered.wrapping_add(1);
        page.store_u32(RSP_PROD, self.answered);
        self.port.notify();
    }
}
