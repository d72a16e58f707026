//! The negotiation: the backend offers, and the frontend answers with its rings and what it can do.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::io::mac::MacAddr;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::ring::{FrontRing, RingProtocol};
use ring_abi::types::DomId;
use spin::Mutex;

use super::control::{Buffers, Control};
use super::receive::{self, Receiver};
use super::transmit::{self, Transmitter};
use super::{Arrangement, NetError, Properties, Queue, Rings, Shared, Statistics};
use crate::xenbus::{Device, Nodes, StoreError};

/// What this frontend says of itself: it takes packets in pieces, long TCP packets, and incomplete checksums.
const FEATURES: [(&str, &str); 7] = [
    ("request-rx-copy", "1"),
    ("feature-rx-notify", "1"),
    ("feature-sg", "1"),
    ("feature-gso-tcpv4", "1"),
    ("feature-gso-tcpv6", "1"),
    ("feature-no-csum-offload", "0"),
    ("feature-ipv6-csum-offload", "1"),
];
/// The MTU where the toolstack writes none, and the longest MTU without `feature-sg`.
const MTU: u16 = 1500;
/// The least MTU that IPv4 allows.
const MTU_MIN: u16 = 68;

/// What this end has ready for the backend.
struct Ready {
    queues: Vec<Queue>,
    ports: Vec<Port>,
    /// The pages of each queue that may be lent.
    buffers: Vec<Buffers>,
    control: Option<Control>,
    nodes: Vec<(String, u32)>,
}

/// Connects with at most `most` queues: rings and features, `Connected`, and then waits until the backend is `Connected`, too,
/// and arranges with the backend what the control ring can.
pub(super) async fn connect(
    device: &Device,
    most: usize,
    lends: bool,
) -> Result<(Arc<Shared>, Properties, Arrangement), NetError> {
    if !device.offered().await? {
        return Err(NetError::Disconnected);
    }
    let properties = properties(device).await?;
    // One queue needs no leave.
    let offered: usize = match most {
        0 | 1 => 1,
        _ => device.store().read_or(&device.back("multi-queue-max-queues"), 1).await?,
    };
    let has_control: u32 = device.store().read_or(&device.back("feature-ctrl-ring"), 0).await?;
    let Ready { queues, ports, buffers, mut control, nodes } =
        make(device.backend_dom(), most.min(offered).max(1), has_control != 0)?;
    let rings = Rings { queues, next: 0, control: None, statistics: Statistics::default() };
    let shared = Arc::new(Shared {
        ports,
        rings: Mutex::new(Some(rings)),
        at_end: Mutex::default(),
        ended: Notify::new(),
        followed: Notify::new(),
    });
    let negotiated = negotiate(device, &shared, &nodes).await;
    let arrangement = match (&negotiated, &mut control) {
        (Ok(()), Some(control)) => control.arrange(&buffers, lends).await,
        _ => Arrangement { queues: shared.ports.len(), ..Arrangement::default() },
    };
    if let Some(rings) = &mut *shared.rings.lock() {
        // The backend may use the ring for as long as the interface is connected.
        rings.control = control;
    }
    if negotiated.is_err() {
        shared.shut();
        // A backend that is on its way out waits for this end's state. The first error is the one to tell.
        let _ = device.change_state(|_| true, XenbusState::Closed).await;
    }
    negotiated.map(|()| (shared, properties, arrangement))
}

/// Makes rings, buffers and event channels, one of these for each queue.
fn make(dom: DomId, count: usize, has_control: bool) -> Result<Ready, NetError> {
    let (mut queues, mut ports, mut lists, mut nodes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..count {
        let (transmit, transmit_gref) = ring(dom)?;
        let (receive, receive_gref) = ring(dom)?;
        let port = Port::alloc_unbound(dom).map_err(NetError::Resources)?;
        let directory = if count > 1 { format!("queue-{number}/") } else { String::new() };
        for (name, value) in [
            ("tx-ring-ref", transmit_gref),
            ("rx-ring-ref", receive_gref),
            ("event-channel", port.number().raw()),
        ] {
            nodes.push((format!("{directory}{name}"), value));
        }
        let to_send = buffers(dom, transmit::BUFFERS, true)?;
        let to_receive = buffers(dom, receive::BUFFERS, false)?;
        lists.push([to_receive.refs().collect(), to_send.refs().collect()]);
        let transmit = Transmitter::new(transmit, to_send);
        let mut receive = Receiver::new(receive, to_receive).map_err(|_| NetError::Disconnected)?;
        // The buffers are there before the backend looks, and the backend looks by itself when it connects.
        let _ = receive.publish();
        queues.push(Queue { transmit, receive });
        ports.push(port);
    }
    if count > 1 {
        nodes.push(("multi-queue-num-queues".into(), count as u32));
    }
    let control = if has_control { Some(Control::new(dom)?) } else { None };
    for (name, value) in control.iter().flat_map(Control::nodes) {
        nodes.push((name.into(), value));
    }
    Ok(Ready { queues, ports, buffers: lists, control, nodes })
}

/// An empty ring that the backend may use, and its reference.
pub(super) fn ring<P: RingProtocol>(dom: DomId) -> Result<(FrontRing<P, Granted>, u32), NetError> {
    let page = buffers(dom, 1, false)?;
    let gref = page.gref(0).raw();
    let ring = FrontRing::new(page).map_err(|_| NetError::Disconnected)?;
    Ok((ring, gref))
}

/// Zeroed pages that the backend may use.
pub(super) fn buffers(dom: DomId, count: usize, readonly: bool) -> Result<Granted, NetError> {
    let pages = Pages::zeroed(count).map_err(|_| NetError::Resources(Errno::ENOMEM))?;
    Granted::whole(pages, dom, readonly).map_err(NetError::Resources)
}

async fn negotiate(device: &Device, shared: &Arc<Shared>, nodes: &[(String, u32)]) -> Result<(), NetError> {
    loop {
        let transaction = device.store().begin().await?;
        for (name, value) in nodes {
            transaction.write(&device.front(name), value.to_string()).await?;
        }
        for (name, value) in FEATURES {
            transaction.write(&device.front(name), value).await?;
        }
        transaction.write(&device.front("state"), XenbusState::Connected.to_string()).await?;
        if transaction.commit().await? {
            break;
        }
    }
    if !device.connected().await? {
        return Err(NetError::Disconnected);
    }
    let (followed, ending) = (shared.clone(), shared.clone());
    device.follow(async move { followed.followed.notified().await }, move || ending.shut()).await?;
    Ok(())
}

/// Reads and checks what the toolstack and the backend say of the interface.
async fn properties(device: &Device) -> Result<Properties, NetError> {
    let store = device.store();
    let bad = |path: String| NetError::Store(StoreError::BadValue(path));
    let path = device.front("mac");
    let mac = MacAddr::parse(store.read_str(&path).await?.trim()).ok_or_else(|| bad(path))?;
    // The toolstack writes the MTU to both directories, if the configuration has one.
    let mtu: u16 = store.read_or(&device.front("mtu"), MTU).await?;
    if mtu < MTU_MIN {
        return Err(bad(device.front("mtu")));
    }
    let flag = async |name: &str| Ok::<_, NetError>(store.read_or::<u32>(&device.back(name), 0).await? != 0);
    if !flag("feature-rx-copy").await? {
        return Err(NetError::Unsupported("feature-rx-copy"));
    }
    let scatter_gather = flag("feature-sg").await?;
    Ok(Properties {
        mac: mac.0,
        mtu: if scatter_gather { mtu } else { mtu.min(MTU) },
        scatter_gather,
        checksum_ipv4: !flag("feature-no-csum-offload").await?,
        checksum_ipv6: flag("feature-ipv6-csum-offload").await?,
        gso_tcpv4: scatter_gather && flag("feature-gso-tcpv4").await?,
        gso_tcpv6: scatter_gather && flag("feature-gso-tcpv6").await?,
    })
}
