//! A domain's console over the host stand-in, whose grants and events lead back to the test itself.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use pvrt::event::Port;
use pvrt::executor::{block_on_test, spawn_join, time};
use pvrt::grant::map_grants;
use pvrt::mem::{Pages, map_foreign};
use ring_abi::grant::GTF_PERMIT_ACCESS;
use ring_abi::io::console::{IN, OUT, frontend};
use ring_abi::ring::bytes::ByteRing;
use ring_abi::types::{DomId, GrantRef};
use spin::Mutex;

use super::{ConsoleError, Consoles};

pub(crate) const DOMAIN: DomId = DomId::new(3);

/// A domain with a console, whose page the domain grants by the reserved entry.
pub(crate) struct Guest {
    pub(super) ring: ByteRing<Arc<Pages>>,
    pub(crate) port: Port,
    page: Arc<Pages>,
}

pub(crate) fn guest() -> Guest {
    let page = Arc::new(Pages::zeroed(1).unwrap());
    // The entry that a domain builder would write, in the stand-in's own table.
    let mut frames = [0];
    pvrt::hypercall::grant::setup_table(&mut frames).unwrap();
    let table = map_foreign(DomId::SELF, &[ring_abi::types::Mfn::new(frames[0])], true).unwrap();
    table.bytes().store_u32(4, page.mfn(0).raw() as u32);
    table.bytes().store_u32(0, u32::from(GTF_PERMIT_ACCESS));
    assert!(map_grants(DOMAIN, &[GrantRef::new(0)], true).is_ok());
    let port = Port::alloc_unbound(DomId::DOM0).unwrap();
    Guest { ring: frontend(page.clone()).unwrap(), port, page }
}

impl Guest {
    pub(super) fn say(&mut self, text: &str) {
        assert_eq!(self.ring.write(text.as_bytes()), Ok(text.len()));
        self.port.notify();
    }
}

pub(super) fn consoles() -> (Consoles, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let log = lines.clone();
    let print = move |text: &str| {
        log.lock().extend(text.split('\n').map(ToString::to_string));
        text.len() + 1
    };
    (Consoles::new(Arc::new(print)), lines)
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
        // The domain writes and sends no event.
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

/// A domain ruins its input ring and sends no event. A reader that types finds the error, and can leave.
#[test]
fn a_ruined_input_ends_the_console_when_somebody_types() {
    let (consoles, _) = consoles();
    let guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        time::sleep(1000).await;
        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        guest.page.bytes().store_u32(IN.cons, 5000);
        time::sleep(1000).await;
        assert!(!attached.is_over(), "nobody has looked");
        assert_eq!(attached.write(b"x"), 0);
        assert!(attached.is_over() && attached.is_ruined());
        assert_eq!(attached.read(&mut [0; 4]).await, 0);
        time::sleep(1000).await;
        assert_eq!(pvrt::executor::live_tasks(), 1, "the task that served it has ended");
        consoles.remove(DOMAIN);
    });
}

/// A domain that reads nothing, and one that ruins its ring: `^]` works behind any number of keys.
#[test]
fn the_way_out_of_a_console_is_always_heard() {
    use super::{Left, look};
    use crate::shell::Terminal;
    for (keys, ruined, want) in [(9000, false, Left::ByKey), (0, false, Left::ByKey), (1, true, Left::Ruined)]
    {
        let (consoles, _) = consoles();
        let guest = guest();
        let terminal = Terminal::new();
        block_on_test(async {
            consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
            time::sleep(1000).await;
            let mut attached = consoles.attach(DOMAIN, true).unwrap();
            if ruined {
                guest.page.bytes().store_u32(IN.cons, 5000);
            }
            let typing = terminal.clone();
            let looking = spawn_join(async move { look(&terminal, &mut attached).await });
            for at in 0..keys {
                typing.type_key(b'x');
                if at % 1000 == 0 {
                    time::sleep(1_000_000).await;
                }
            }
            time::sleep(1_000_000).await;
            typing.type_key(0x1d);
            assert_eq!(time::timeout(1_000_000_000, looking).await, Ok(Ok(want)), "{keys} keys");
            consoles.remove(DOMAIN);
            time::sleep(1_000_000).await;
        });
    }
}

/// Keys for a domain that reads slowly arrive later, all and in order.
#[test]
fn keys_wait_for_a_domain_that_reads_late() {
    use super::look;
    use crate::shell::Terminal;
    let (consoles, _) = consoles();
    let mut guest = guest();
    let terminal = Terminal::new();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        let typing = terminal.clone();
        pvrt::spawn(async move {
            look(&terminal, &mut attached).await;
        });
        for at in 0..7000u32 {
            typing.type_key(b'a' + (at % 20) as u8);
            if at % 100 == 0 {
                time::sleep(1_000_000).await;
            }
        }
        let (mut got, mut buffer) = (Vec::new(), [0; 256]);
        for _ in 0..200 {
            let count = guest.ring.read(&mut buffer).unwrap();
            got.extend_from_slice(&buffer[..count]);
            guest.port.notify();
            time::sleep(20_000_000).await;
        }
        assert_eq!(got.len(), 7000);
        assert!(got.iter().zip(0u32..).all(|(&key, at)| key == b'a' + (at % 20) as u8));
        consoles.remove(DOMAIN);
        time::sleep(1_000_000).await;
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

/// The most bytes that one poll may print: three for each of 1,023 bytes, and 16 line ends with their prefixes.
const SLICE_BYTES: usize = 3 * 1023 + 16 * ("(d3 web) ".len() + 5);
const MS: u64 = 1_000_000;

impl Guest {
    /// Writes `bytes` again and again, as there is room, until `total` are written; goes on from `done`.
    fn go_on(&mut self, bytes: &[u8], done: &mut usize, total: usize) {
        while *done < total {
            let from = *done % bytes.len();
            let to = bytes.len().min(from + total - *done);
            let count = self.ring.write(&bytes[from..to]).unwrap();
            if count == 0 {
                break;
            }
            *done += count;
        }
        self.port.notify();
    }
}

/// The time and the length of each print, with the serial line's carriage returns.
type Prints = Arc<Mutex<Vec<(u64, usize)>>>;

/// Consoles whose prints are counted; also how often a line of each domain was printed.
fn counted() -> (Consoles, Prints, Arc<Mutex<[usize; 8]>>) {
    let (prints, lines) = (Prints::default(), Arc::new(Mutex::new([0; 8])));
    let (to, by_domain) = (prints.clone(), lines.clone());
    let print = move |text: &str| {
        let ends = text.matches('\n').count() + 1;
        to.lock().push((time::now_ns(), text.len() + 1 + ends));
        for line in text.split('\n') {
            by_domain.lock()[usize::from(line.as_bytes()[2] - b'0')] += 1;
        }
        text.len() + 1
    };
    (Consoles::new(Arc::new(print)), prints, lines)
}

#[test]
fn a_flood_of_newlines_prints_no_more_than_its_budget_and_loses_nothing() {
    const TOTAL: usize = 20_000;
    let (consoles, prints, lines) = counted();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "web", guest.port.number()).unwrap();
        let mut done = 0;
        while done < TOTAL {
            guest.go_on(b"\n", &mut done, TOTAL);
            time::sleep(5 * MS).await;
        }
        time::sleep(1000 * MS).await;
        assert_eq!(lines.lock()[3], TOTAL, "nothing is lost");
        let prints = prints.lock();
        assert!(prints.iter().all(|&(_, bytes)| bytes <= SLICE_BYTES));
        for (first, &(start, _)) in prints.iter().enumerate() {
            let mut sum = 0;
            for &(end, bytes) in &prints[first..] {
                sum += bytes as u64;
                let most = (64 << 10) + (end - start) * (64 << 10) / 1_000_000_000 + 1;
                assert!(sum <= most, "{sum} bytes from {start} to {end}");
            }
        }
    });
}

#[test]
fn long_lines_are_held_back_and_come_whole() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        let line = [&[b'y'; 1000][..], b"\n"].concat();
        let (start, total, mut done) = (time::now_ns(), 400 * line.len(), 0);
        while done < total {
            guest.go_on(&line, &mut done, total);
            time::sleep(5 * MS).await;
        }
        let took = time::now_ns() - start;
        assert!(took > 4000 * MS, "{took} ns");
        time::sleep(1000 * MS).await;
        assert_eq!(lines.lock().len(), 400, "nothing is lost");
        assert!(lines.lock().iter().all(|line| line.len() == 1007));
    });
}

#[test]
fn consoles_share_the_line_and_a_line_of_an_honest_one_comes_soon() {
    let (consoles, _, lines) = counted();
    block_on_test(async {
        let mut flooders: Vec<Guest> = Vec::new();
        for id in 3..7 {
            let guest = guest();
            consoles.add(DomId::new(id), "web", guest.port.number()).unwrap();
            flooders.push(guest);
        }
        let mut honest = guest();
        consoles.add(DomId::new(7), "web", honest.port.number()).unwrap();
        let mut done = [0; 4];
        for round in 0..1000 {
            for (guest, done) in flooders.iter_mut().zip(&mut done) {
                guest.go_on(b"\n", done, usize::MAX);
            }
            if round % 100 == 50 {
                honest.say("an honest line\n");
            }
            time::sleep(5 * MS).await;
            if round % 100 == 90 {
                assert_eq!(lines.lock()[7], round / 100 + 1, "within 200 ms");
            }
        }
        let lines = *lines.lock();
        let (least, most) = (lines[3..7].iter().min().unwrap(), lines[3..7].iter().max().unwrap());
        assert!((most - least) * 10 <= *most, "{lines:?}");
        // The total that all consoles may print in five seconds.
        let bytes: usize = lines[3..7].iter().sum::<usize>() * "(d3 web) \r\n".len();
        assert!((700_000..=790_000).contains(&bytes), "{bytes}");
    });
}

#[test]
fn while_the_line_is_busy_output_stays_in_the_ring() {
    let (consoles, lines) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        pvrt::host::set_console_busy(true);
        guest.say("patience\n");
        time::sleep(1000 * MS).await;
        assert!(lines.lock().is_empty());
        assert_eq!(guest.ring.writable(), Ok(2048 - 9));
        pvrt::host::set_console_busy(false);
        time::sleep(20 * MS).await;
        assert_eq!(*lines.lock(), ["(d3 x) patience"]);
        assert_eq!(guest.ring.is_drained(), Ok(true));
    });
}

#[test]
fn a_reader_who_is_slow_misses_nothing() {
    const TOTAL: usize = 200_000;
    let (consoles, _) = consoles();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "x", guest.port.number()).unwrap();
        let mut attached = consoles.attach(DOMAIN, true).unwrap();
        let reading = spawn_join(async move {
            time::sleep(3000 * MS).await;
            let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
            while all.len() < TOTAL {
                let count = attached.read(&mut buffer).await;
                all.extend_from_slice(&buffer[..count]);
            }
            all
        });
        let mut done = 0;
        while done < TOTAL {
            guest.go_on(b"0123456789\n", &mut done, TOTAL);
            time::sleep(5 * MS).await;
        }
        let all = reading.await.unwrap();
        assert!(all.iter().zip(b"0123456789\n".iter().cycle()).all(|(got, sent)| got == sent));
    });
}

#[test]
fn a_domain_that_ends_with_a_full_ring_does_not_hold_the_executor() {
    let (consoles, prints, lines) = counted();
    let mut guest = guest();
    block_on_test(async {
        consoles.add(DOMAIN, "web", guest.port.number()).unwrap();
        time::sleep(1000).await;
        let mut done = 0;
        guest.go_on(b"\n", &mut done, usize::MAX);
        consoles.remove(DOMAIN);
        let at_once: usize = prints.lock().iter().map(|&(_, bytes)| bytes).sum();
        assert!((SLICE_BYTES / 2..=SLICE_BYTES).contains(&at_once), "{at_once}");
        time::sleep(1000 * MS).await;
        assert_eq!(lines.lock()[3], 2048);
        assert!(prints.lock().iter().all(|&(_, bytes)| bytes <= SLICE_BYTES));
        assert_eq!(pvrt::executor::live_tasks(), 1);
    });
}
