//! A domain's console over the host stand-in, whose grants and events lead back to the test itself.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::{block_on_test, spawn_join, time};
use pvrt::grant::map_grants;
use pvrt::mem::{Pages, map_foreign};
use ring_abi::grant::GTF_PERMIT_ACCESS;
use ring_abi::io::console::{OUT, frontend};
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, GrantRef};
use spin::Mutex;

use super::{ConsoleError, Consoles};

const DOMAIN: DomId = DomId::new(3);

/// A domain with a console: its page is granted by the reserved entry.
struct Guest {
    ring: ByteRing<SharedBytes>,
    port: Port,
    page: Pages,
}

fn guest() -> Guest {
    let page = Pages::zeroed(1).unwrap();
    // The entry that a domain builder would write, in the stand-in's own table.
    let mut frames = [0];
    pvrt::hypercall::grant::setup_table(&mut frames).unwrap();
    let table = map_foreign(DomId::SELF, &[ring_abi::types::Mfn::new(frames[0])], true).unwrap();
    table.bytes().store_u32(4, page.mfn(0).raw() as u32);
    table.bytes().store_u32(0, u32::from(GTF_PERMIT_ACCESS));
    assert!(map_grants(DOMAIN, &[GrantRef::new(0)], true).is_ok());
    let port = Port::alloc_unbound(DomId::DOM0).unwrap();
    Guest { ring: frontend(page.bytes()).unwrap(), port, page }
}

impl Guest {
    fn say(&mut self, text: &str) {
        assert_eq!(self.ring.write(text.as_bytes()), Ok(text.len()));
        self.port.notify();
    }
}

fn consoles() -> (Consoles, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = lines.clone();
    (Consoles::new(Arc::new(move |line: &str| log.lock().push(line.to_string()))), lines)
}

#[test]
fn lines_are_printed_until_somebody_attaches() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "web", guest.port.number()).unwrap();
        guest.say("booting\r\nlogin: ");
        time::sleep(1000).await;
        assert_eq!(*lines.lock(), ["(d3 web) booting"]);

        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        assert_eq!(lines.lock().len(), 2, "the line begun is shown");
        let mut buffer = [0; 64];
        let count = attached.read(&mut buffer).await;
        assert_eq!(&buffer[..count], b"booting\r\nlogin: ");
        assert_eq!(attached.write(b"root\n"), 5);
        let count = guest.ring.read(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], b"root\n");
        guest.say("secret");
        let count = attached.read(&mut buffer).await;
        assert_eq!(&buffer[..count], b"secret");
        drop(attached);

        guest.say("bye\n");
        time::sleep(1000).await;
        assert_eq!(lines.lock()[2..], ["(d3 web) bye"]);
        let mut later = consoles.attach(DOMAIN, false).unwrap();
        guest.say("new");
        let count = later.read(&mut buffer).await;
        assert_eq!(&buffer[..count], b"new");
    });
}

#[test]
fn the_last_words_of_a_domain_are_kept_for_those_attached() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        let reading = spawn_join(async move {
            let mut all = Vec::new();
            let mut buffer = [0; 7];
            loop {
                match attached.read(&mut buffer).await {
                    0 => return (all, attached.is_over(), attached.write(b"x")),
                    count => all.extend_from_slice(&buffer[..count]),
                }
            }
        });
        time::sleep(1000).await;
        // Written and never notified.
        guest.ring.write(b"panic: the end").unwrap();
        consoles.remove(DOMAIN);
        consoles.remove(DOMAIN);
        assert_eq!(reading.await, Ok((b"panic: the end".to_vec(), true, 0)));
        assert_eq!(consoles.attach(DOMAIN, true).err(), Some(ConsoleError::NoConsole(DOMAIN)));
        assert_eq!(consoles.count(), 0);
        assert!(lines.lock().is_empty());
        time::sleep(1000).await;
        assert_eq!(pvrt::executor::live_tasks(), 1, "the task that served it has ended");
    });
}

#[test]
fn a_ruined_ring_ends_the_console_only() {
    let (consoles, _) = consoles();
    let guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        time::sleep(1000).await;
        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        guest.page.bytes().store_u32(OUT.prod, 5000);
        guest.port.notify();
        assert_eq!(attached.read(&mut [0; 4]).await, 0);
        assert!(attached.is_over());
        consoles.remove(DOMAIN);
    });
}

#[test]
fn no_grant_or_no_port() {
    let (consoles, _) = consoles();
    let unbound = Port::alloc_unbound(DomId::DOM0).unwrap();
    assert!(matches!(consoles.add(DOMAIN, "x", unbound.number()), Err(ConsoleError::Refused(_))));
    let _guest = guest();
    let none = ring_abi::types::Port::new(4000);
    assert!(matches!(consoles.add(DOMAIN, "x", none), Err(ConsoleError::Refused(_))));
    assert_eq!(consoles.count(), 0);
}

#[test]
fn a_flood_is_held_back() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        let line = [&[b'y'; 1023][..], b"\n"].concat();
        let start = time::now_ns();
        let mut sent = 0;
        while sent < 1024 {
            // As much as there is room for, without a pause.
            while sent < 1024 && guest.ring.write(&line) == Ok(line.len()) {
                sent += 1;
            }
            guest.port.notify();
            time::sleep(1000).await;
        }
        let took = time::now_ns() - start;
        assert!(took > 2_000_000_000, "{took} ns for a megabyte");
        time::sleep(1_000_000_000).await;
        assert_eq!(lines.lock().len(), 1024, "nothing is lost");
    });
}
