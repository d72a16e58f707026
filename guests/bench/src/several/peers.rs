//! Two domains that lend each other a page and agree on a start: `peer=N` on each other's command line.

use alloc::format;
use alloc::string::String;

use frontends::xenbus::{Nodes, Xenstore};
use pvrt::event::Port;
use pvrt::grant::Granted;
use pvrt::hypercall::event::own_domid;
use pvrt::mem::Pages;
use pvrt::time;
use ring_abi::io::xs_wire::XS_SET_PERMS;
use ring_abi::types::DomId;

use super::number;

/// Where each says what it lent.
const NODE: &str = "data/several";
/// From the moment when the later of the two was ready until both begin.
const READY_NS: u64 = 3_000_000_000;
/// How often a peer looks for the other's node.
const TRIES: u32 = 600;
const TRY_NS: u64 = 100_000_000;

/// The other domain, and the page that it lent.
pub(super) struct Peer {
    pub(super) dom: DomId,
    pub(super) gref: u32,
    /// When both begin.
    pub(super) start: u64,
}

/// Lends the peer a page, and waits until the peer did; `None`: the command line names no peer.
///
/// # Errors
/// xenstore refuses, or the peer never came.
pub(super) async fn meet(boot: &pvrt::BootInfo) -> Result<Option<Peer>, String> {
    let Some(number) = number(boot, "peer") else { return Ok(None) };
    let dom = DomId::new(number as u16);
    let info = boot.store.ok_or("no xenstore")?;
    let store = Xenstore::connect(info.page, Port::adopt(info.port)).map_err(|error| format!("{error}"))?;
    let pages = Pages::zeroed(1).map_err(|_| "no memory")?;
    let lent = Granted::whole(pages, dom, false).map_err(|errno| format!("grant: {errno}"))?;
    let own = own_domid().map_err(|errno| format!("own number: {errno}"))?;
    let rights = format!("n{}\0r{}\0", own.raw(), dom.raw());
    let failed = |error| format!("xenstore: {error}");
    // Permissions are set before the value, so that a partner who sees the node can read all of it.
    store.write(NODE, "").await.map_err(failed)?;
    store.request(XS_SET_PERMS, &[NODE.as_bytes(), b"\0", rights.as_bytes()]).await.map_err(failed)?;
    let ready = time::now_ns();
    store.write(NODE, &format!("{} {ready}", lent.gref(0).raw())).await.map_err(failed)?;
    // Lent for as long as the domain lives.
    core::mem::forget(lent);
    let path = format!("/local/domain/{number}/{NODE}");
    for _ in 0..TRIES {
        let text = store.read_str(&path).await.unwrap_or_default();
        if let Some((gref, its)) = text.split_once(' ')
            && let (Ok(gref), Ok(its)) = (gref.parse(), its.parse())
        {
            return Ok(Some(Peer { dom, gref, start: READY_NS + ready.max(its) }));
        }
        time::sleep(TRY_NS).await;
    }
    Err("the peer lent nothing".into())
}
