//! The negotiation: the backend offers, and the frontend answers with its rings and what it can do.

use alloc::string::ToString;
use alloc::sync::Arc;

use pvrt::event::Port;
use pvrt::executor::sync::Notify;
use pvrt::executor::{Either, select, spawn};
use pvrt::grant::Granted;
use pvrt::mem::Pages;
use ring_abi::errno::Errno;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::ring::{FrontRing, RingProtocol};
use ring_abi::types::DomId;
use spin::Mutex;

use super::receive::{self, Receiver};
use super::transmit::{self, Transmitter};
use super::{NetError, Properties, Rings, Shared, Statistics};
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

/// Connects: rings and features, `Connected`, and then waits until the backend is `Connected`, too.
pub(super) async fn connect(device: &Device) -> Result<(Arc<Shared>, Properties), NetError> {
    wait_for_offer(device).await?;
    let properties = properties(device).await?;
    let dom = device.backend_dom();
    let (transmit, transmit_gref) = ring(dom)?;
    let (receive, receive_gref) = ring(dom)?;
    let transmit = Transmitter::new(transmit, buffers(dom, transmit::BUFFERS, true)?);
    let receive =
        Receiver::new(receive, buffers(dom, receive::BUFFERS, false)?).map_err(|_| NetError::Disconnected)?;
    let port = Port::alloc_unbound(dom).map_err(NetError::Resources)?;
    let nodes = [
        ("tx-ring-ref", transmit_gref.to_string()),
        ("rx-ring-ref", receive_gref.to_string()),
        ("event-channel", port.number().to_string()),
    ];
    let mut rings = Rings { transmit, receive, statistics: Statistics::default() };
    // The buffers are there before the backend looks, and the backend looks by itself when it connects.
    let _ = rings.receive.publish();
    let shared = Arc::new(Shared {
        port,
        rings: Mutex::new(Some(rings)),
        at_end: Mutex::default(),
        ended: Notify::new(),
        followed: Notify::new(),
    });
    let negotiated = negotiate(device, &shared, &nodes).await;
    if negotiated.is_err() {
        shared.shut();
        // A backend that is on its way out waits for this end's state. The first error is the one to tell.
        let _ = change_state(device, |_| true, XenbusState::Closed).await;
    }
    negotiated.map(|()| (shared, properties))
}

/// Waits until the backend says what it offers.
async fn wait_for_offer(device: &Device) -> Result<(), NetError> {
    use XenbusState::{Closed, Connected, InitWait, Initialised, Initialising, Unknown};
    let mut closed = false;
    loop {
        // After a connection that has ended, a backend offers again only to a frontend that says that it begins. The end of
        // that connection may come while this one waits.
        change_state(device, |state| state == Closed, Initialising).await?;
        let offers = |state| matches!(state, InitWait | Initialised | Connected | Unknown);
        let state = device.wait_backend(|state| offers(state) || state == Closed && !closed).await?;
        match state {
            Closed => closed = true,
            Unknown => return Err(NetError::Disconnected),
            _ => return Ok(()),
        }
    }
}

/// Changes this end's state, if the state is one that `from` accepts.
///
/// The toolstack may remove the device meanwhile. Without the transaction the write would make the node again.
async fn change_state(
    device: &Device,
    from: impl Fn(XenbusState) -> bool,
    to: XenbusState,
) -> Result<(), StoreError> {
    let state = device.front("state");
    loop {
        let transaction = device.store().begin().await?;
        if !from(XenbusState::parse(&transaction.read_str(&state).await?)) {
            return Ok(());
        }
        transaction.write(&state, to.to_string()).await?;
        if transaction.commit().await? {
            return Ok(());
        }
    }
}

/// An empty ring that the backend may use, and its reference.
fn ring<P: RingProtocol>(dom: DomId) -> Result<(FrontRing<P, Granted>, u32), NetError> {
    let page = buffers(dom, 1, false)?;
    let gref = page.gref(0).raw();
    let ring = FrontRing::new(page).map_err(|_| NetError::Disconnected)?;
    Ok((ring, gref))
}

/// Zeroed pages that the backend may use.
fn buffers(dom: DomId, count: usize, readonly: bool) -> Result<Granted, NetError> {
    let pages = Pages::zeroed(count).map_err(|_| NetError::Resources(Errno::ENOMEM))?;
    Granted::whole(pages, dom, readonly).map_err(NetError::Resources)
}

async fn negotiate(
    device: &Device,
    shared: &Arc<Shared>,
    nodes: &[(&str, alloc::string::String)],
) -> Result<(), NetError> {
    loop {
        let transaction = device.store().begin().await?;
        for (name, value) in nodes {
            transaction.write(&device.front(name), value).await?;
        }
        for (name, value) in FEATURES {
            transaction.write(&device.front(name), value).await?;
        }
        transaction.write(&device.front("state"), XenbusState::Connected.to_string()).await?;
        if transaction.commit().await? {
            break;
        }
    }
    let state = device
        .wait_backend(|state| {
            matches!(
                state,
                XenbusState::Connected | XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown
            )
        })
        .await?;
    if state != XenbusState::Connected {
        return Err(NetError::Disconnected);
    }
    let watched = Device::open(device.store(), device.path()).await?;
    spawn(follow(watched, shared.clone()));
    Ok(())
}

/// Ends the interface when the backend ends.
async fn follow(device: Device, shared: Arc<Shared>) {
    let gone = device.wait_backend(|state| {
        matches!(state, XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown)
    });
    if let Either::Left(state) = select(gone, shared.followed.notified()).await
        // Else this end closed first, and the node may belong to a new connection already.
        && shared.shut()
        && matches!(state, Ok(XenbusState::Closing | XenbusState::Closed))
    {
        // The backend waits for this end's state. An error means that xenstore is gone, and the interface ends all the
        // same.
        let _ = change_state(&device, |_| true, XenbusState::Closed).await;
    }
}

/// Reads and checks what the toolstack and the backend say of the interface.
async fn properties(device: &Device) -> Result<Properties, NetError> {
    let store = device.store();
    let bad = |path: alloc::string::String| NetError::Store(StoreError::BadValue(path));
    let path = device.front("mac");
    let mac = parse_mac(&store.read_str(&path).await?).ok_or_else(|| bad(path))?;
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
        mac,
        mtu: if scatter_gather { mtu } else { mtu.min(MTU) },
        scatter_gather,
        checksum_ipv4: !flag("feature-no-csum-offload").await?,
        checksum_ipv6: flag("feature-ipv6-csum-offload").await?,
        gso_tcpv4: scatter_gather && flag("feature-gso-tcpv4").await?,
        gso_tcpv6: scatter_gather && flag("feature-gso-tcpv6").await?,
    })
}

/// Six pairs of hexadecimal digits with colons between: the address of one station.
pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        // The parser of numbers would take a sign.
        let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+'))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0).then_some(mac)
}
