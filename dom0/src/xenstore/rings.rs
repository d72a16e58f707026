//! Domains' rings: maps each ring's page, binds its port, and has a task for each.

use alloc::collections::BTreeMap;
use alloc::string::String;

use pvrt::Account;
use pvrt::event::Port;
use pvrt::executor::sync::{Receiver, Sender, oneshot};
use pvrt::executor::{Either, select, spawn_for, yield_now};
use pvrt::mem::map_foreign;
use ring_abi::io::xs_wire;
use ring_abi::ring::RingError;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedMemory;
use ring_abi::types::{DomId, Mfn, Port as Number};

use super::client::{Held, Xenstore};
use super::connection::ConnId;
use super::named::domain_named;
use super::server::Effect;

/// Serves the rings of all domains that are introduced, and never ends. One task runs this function.
///
/// A domain whose page cannot be mapped or whose port cannot be bound is not served, and the log says so. The domain
/// stays introduced, and watches fire for its release as usual.
pub async fn serve_rings(store: Xenstore) {
    let mut served: BTreeMap<u16, Sender<()>> = BTreeMap::new();
    loop {
        match store.next_effect().await {
            Effect::Introduced { conn, domid, mfn, port, .. } => {
                // The old task goes before the new one: a domain may come back with the same page.
                served.remove(&domid);
                let (stop, stopped) = oneshot();
                let dom = DomId::new(domid);
                let page = match map_foreign(dom, &[Mfn::new(mfn)], true) {
                    Ok(page) => page,
                    Err(error) => {
                        log::warn!(
                            "xenstored: {}: cannot map frame {mfn:#x}: {}",
                            who(&store, domid),
                            error.errno
                        );
                        continue;
                    }
                };
                let port = match Port::bind_interdomain(dom, Number::new(port)) {
                    Ok(port) => port,
                    Err(errno) => {
                        log::warn!("xenstored: {}: cannot bind port {port}: {errno}", who(&store, domid));
                        continue;
                    }
                };
                served.insert(domid, stop);
                let store = store.clone();
                spawn_for(&Account::of(dom), async move {
                    if let Err(error) = serve_ring(store.clone(), conn, page, port, stopped).await {
                        let who = who(&store, domid);
                        log::warn!("xenstored: {who}: the page is no xenstore page: {error}");
                    }
                });
            }
            Effect::Released { domid, .. } => drop(served.remove(&domid)),
        }
    }
}

/// The domain in its user's words.
fn who(store: &Xenstore, domid: u16) -> String {
    domain_named(&store.client(), DomId::new(domid))
}

/// Serves one ring until the other end of `stop` is dropped; then lets the page and the port go.
///
/// # Errors
/// [`RingError`]: the page is too small.
async fn serve_ring(
    store: Xenstore,
    conn: ConnId,
    page: impl SharedMemory,
    port: Port,
    mut stop: Receiver<()>,
) -> Result<(), RingError> {
    let mut ring = xs_wire::server(page)?;
    let features = xs_wire::XENSTORE_SERVER_FEATURE_RECONNECTION | xs_wire::XENSTORE_SERVER_FEATURE_ERROR;
    ring.page().shared().store_u32(xs_wire::SERVER_FEATURES_OFFSET, features);
    ring.page().shared().store_u32(xs_wire::ERROR_OFFSET, xs_wire::XENSTORE_ERROR_NONE);
    let mut held = Held::for_current();
    loop {
        if ring.page().shared().load_u32(xs_wire::CONNECTION_OFFSET) == xs_wire::XENSTORE_RECONNECT {
            reconnect(&store, conn, &mut ring);
            port.notify();
        }
        let failed = match store.exchange_held(conn, &mut ring, &mut held) {
            Ok(exchange) => {
                if exchange.notify {
                    port.notify();
                }
                if exchange.again {
                    yield_now().await;
                    continue;
                }
                false
            }
            Err(failure) => {
                ring.page().shared().store_u32(xs_wire::ERROR_OFFSET, failure.ring_error());
                port.notify();
                true
            }
        };
        // A failed connection has nothing more to say until the domain asks for a new one.
        let idle = async {
            if failed {
                port.wait().await;
            } else {
                select(port.wait(), store.output_ready(conn)).await;
            }
        };
        if let Either::Left(_) = select(&mut stop, idle).await {
            return Ok(());
        }
    }
}

/// Does what a domain asks for by `XENSTORE_RECONNECT`: an empty ring, no watches, no transactions.
fn reconnect(store: &Xenstore, conn: ConnId, ring: &mut ByteRing<impl SharedMemory>) {
    store.reconnect(conn);
    ring.reset();
    let page = ring.page().shared();
    page.store_u32(xs_wire::ERROR_OFFSET, xs_wire::XENSTORE_ERROR_NONE);
    page.store_u32(xs_wire::CONNECTION_OFFSET, xs_wire::XENSTORE_CONNECTED);
}

#[cfg(test)]
mod tests {
    use pvrt::executor::{block_on_test, spawn_join};
    use ring_abi::io::xs_wire::XsdSockmsg;
    use ring_abi::shared::{SharedBytes, leaked_pages};
    use zerocopy::{FromBytes, IntoBytes};

    use super::super::{Nodes, Quotas};
    use super::*;

    /// A domain's end.
    struct Guest {
        ring: ByteRing<SharedBytes<'static>>,
        port: Port,
    }

    impl Guest {
        async fn send(&mut self, kind: u32, payload: &[u8]) {
            let header = XsdSockmsg { r#type: kind, req_id: 1, tx_id: 0, len: payload.len() as u32 };
            let bytes = [header.as_bytes(), payload].concat();
            let mut sent = 0;
            loop {
                sent += self.ring.write(&bytes[sent..]).unwrap();
                self.port.notify();
                if sent == bytes.len() {
                    return;
                }
                self.port.wait().await;
            }
        }

        async fn receive(&mut self) -> (u32, Vec<u8>) {
            let header = self.take(16).await;
            let header = XsdSockmsg::read_from_bytes(&header).unwrap();
            (header.r#type, self.take(header.len as usize).await)
        }

        async fn take(&mut self, count: usize) -> Vec<u8> {
            let mut got = vec![0; count];
            let mut at = 0;
            while at < count {
                let read = self.ring.read(&mut got[at..]).unwrap();
                at += read;
                if read > 0 {
                    self.port.notify();
                } else {
                    self.port.wait().await;
                }
            }
            got
        }
    }

    #[test]
    fn a_domain_talks_fails_reconnects_and_goes() {
        block_on_test(async {
            let store = Xenstore::new(Quotas::XEN);
            let client = store.client();
            client.write("/local/domain/3", "").unwrap();
            client
                .set_perms("/local/domain/3", super::super::Perms::owned_by(3, super::super::Access::None))
                .unwrap();
            client.introduce(3, 1, 1).unwrap();
            let Effect::Introduced { conn, .. } = store.next_effect().await else { panic!() };
            let page = leaked_pages(1);
            let guest_port = Port::alloc_unbound(DomId::new(0)).unwrap();
            let port = Port::bind_interdomain(DomId::new(3), guest_port.number()).unwrap();
            let mut guest = Guest { ring: xs_wire::client(page).unwrap(), port: guest_port };
            let (stop, stopped) = oneshot();
            let served = spawn_join({
                let store = store.clone();
                async move { serve_ring(store, conn, page, port, stopped).await }
            });

            let value = [b'v'; 2000];
            guest.send(xs_wire::XS_WRITE, &[&b"x\0"[..], &value].concat()).await;
            assert_eq!(guest.receive().await, (xs_wire::XS_WRITE, b"OK\0".to_vec()));
            guest.send(xs_wire::XS_READ, b"x\0").await;
            assert_eq!(guest.receive().await, (xs_wire::XS_READ, value.to_vec()));
            guest.send(xs_wire::XS_WATCH, b"x\0t\0").await;
            assert_eq!(guest.receive().await.0, xs_wire::XS_WATCH);
            assert_eq!(guest.receive().await.1, b"x\0t\0");
            // A change by another domain reaches a ring that rests.
            client.write("/local/domain/3/x", "new").unwrap();
            assert_eq!(guest.receive().await, (xs_wire::XS_WATCH_EVENT, b"x\0t\0".to_vec()));

            let header = XsdSockmsg { r#type: 2, req_id: 1, tx_id: 0, len: 4097 };
            guest.ring.write(header.as_bytes()).unwrap();
            guest.port.notify();
            while page.load_u32(xs_wire::ERROR_OFFSET) != xs_wire::XENSTORE_ERROR_PROTO {
                guest.port.wait().await;
            }
            page.store_u32(xs_wire::CONNECTION_OFFSET, xs_wire::XENSTORE_RECONNECT);
            guest.port.notify();
            while page.load_u32(xs_wire::CONNECTION_OFFSET) != xs_wire::XENSTORE_CONNECTED {
                guest.port.wait().await;
            }
            guest.ring = xs_wire::client(page).unwrap();
            guest.send(xs_wire::XS_READ, b"x\0").await;
            assert_eq!(guest.receive().await.1, b"new");
            assert_eq!(store.figures().watches, 0);

            client.release(3).unwrap();
            drop(stop);
            assert_eq!(served.await, Ok(Ok(())));
            assert_eq!(store.figures().connections, 1);
        });
    }
}
