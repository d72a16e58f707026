//! The guest's xenstore client against a hostile xenstored.

use frontends::xenbus::{Nodes, Xenstore};
use pvrt::event::Port;
use pvrt::executor::time::{sleep, timeout};
use pvrt::executor::{block_on_test, join_all};
use pvrt::mem::Pages;
use ring_abi::io::xs_wire::{REQ, RSP, XENSTORE_RING_SIZE, XsdSockmsg};
use ring_abi::shared::SharedBytes;
use ring_abi::types::DomId;
use zerocopy::IntoBytes;

use crate::input::Input;

/// What the daemon writes to the ring.
struct Daemon {
    page: SharedBytes<'static>,
    port: Port,
    input: Input,
}

impl Daemon {
    /// Puts bytes in the ring where the client will look for them.
    fn write(&self, bytes: &[u8]) {
        let page = self.page;
        let prod = page.load_u32(RSP.prod);
        for (index, byte) in bytes.iter().enumerate() {
            page.store_u8(RSP.data + (prod as usize + index) % XENSTORE_RING_SIZE, *byte);
        }
        page.store_u32(RSP.prod, prod.wrapping_add(bytes.len() as u32));
        self.port.notify();
    }

    async fn run(&self) {
        while !self.input.is_empty() {
            match self.input.below(8) {
                0 => self.write(&self.input.take(self.input.below(200))),
                1 => {
                    let which = [REQ.cons, REQ.prod, RSP.cons, RSP.prod][self.input.below(4)];
                    self.page.store_u32(which, self.input.u32());
                    self.port.notify();
                }
                2 => sleep(self.input.u32().into()).await,
                3 => {
                    // It takes what the client wrote.
                    let page = self.page;
                    page.store_u32(REQ.cons, page.load_u32(REQ.prod));
                    self.port.notify();
                }
                _ => {
                    let payload = self.input.take(self.input.below(64));
                    let header = XsdSockmsg {
                        r#type: u32::from(self.input.u8() % 24),
                        req_id: u32::from(self.input.u8() % 10),
                        tx_id: 0,
                        len: payload.len() as u32 + u32::from(self.input.u8() == 255),
                    };
                    self.write(&[header.as_bytes(), &payload].concat());
                }
            }
            pvrt::yield_now().await;
        }
    }
}

// Every run's, since a client has its page for ever.
thread_local!(static PAGE: SharedBytes<'static> = Pages::zeroed(1).expect("a page").leak());

/// Answers of any kind to requests of every kind: each request ends, with an answer or when the ring breaks.
pub(crate) fn run(data: &[u8]) {
    let page = PAGE.with(|page| *page);
    page.fill(0, page.len(), 0);
    let port = Port::alloc_unbound(DomId::new(1)).expect("a port");
    let client = Port::bind_interdomain(DomId::new(0), port.number()).expect("bound");
    let daemon = Daemon { page, port, input: Input::new(data) };
    let store = Xenstore::connect(page, client).expect("a page is enough");
    block_on_test(async {
        let requests = async {
            let _ = store.read("data/a").await;
            let _ = store.directory("device").await;
            if let Ok(watch) = store.watch("data").await {
                let _ = timeout(1_000_000, watch.changed()).await;
            }
            if let Ok(transaction) = store.begin().await {
                let _ = transaction.write("data/b", "1").await;
                let _ = transaction.commit().await;
            }
            let _ = store.read_as::<u32>("data/c").await;
            let _ = store.home().await;
        };
        let parts: [std::pin::Pin<Box<dyn Future<Output = ()>>>; 2] =
            [Box::pin(async { timeout(1 << 40, requests).await.unwrap_or(()) }), Box::pin(daemon.run())];
        join_all(parts).await;
        // A broken ring ends the client's task and whatever still waits.
        page.store_u32(RSP.prod, page.load_u32(RSP.cons).wrapping_add(0x8000_0000));
        daemon.port.notify();
        let answer = timeout(1_000_000_000, store.read("data/a")).await;
        assert!(matches!(answer, Ok(Err(_))), "{answer:?}");
    });
}
