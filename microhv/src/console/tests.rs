//! The output's policy against a transmitter that is fast, slow, or none.

use alloc::vec::Vec;

use proptest::prelude::*;

use super::output::{BUFFER_BYTES, BUSY_BYTES, GO_BYTES, LOG_BYTES, Output, STUCK_NS, Uart};

/// A transmitter that takes `fifo` bytes, and has room again when the test lets it.
#[derive(Default)]
struct Line {
    fifo: usize,
    /// How often the transmitter will say that it has room.
    fills: usize,
    got: Vec<u8>,
    /// Bytes since the transmitter last said that it has room.
    since: usize,
    looks: usize,
    interrupt: bool,
}

impl Line {
    fn new(fifo: usize, fills: usize) -> Self {
        Self { fifo, fills, ..Self::default() }
    }
}

impl Uart for Line {
    fn room(&mut self) -> usize {
        self.looks += 1;
        if self.fills == 0 {
            return 0;
        }
        self.fills -= 1;
        self.since = 0;
        self.fifo
    }

    fn put(&mut self, bytes: &[u8]) {
        self.since += bytes.len();
        assert!(self.since <= self.fifo, "more than there is room for");
        self.got.extend_from_slice(bytes);
    }

    fn set_interrupt(&mut self, on: bool) {
        self.interrupt = on;
    }
}

fn started() -> Output {
    let mut output = Output::new();
    output.set_synchronous(false);
    output
}

/// What the line must get.
fn with_returns(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().flat_map(|&byte| [b'\r', byte].into_iter().skip(usize::from(byte != b'\n'))).collect()
}

#[test]
fn a_fast_line_gets_a_line_at_once_and_no_interrupt() {
    let (mut output, mut line) = (started(), Line::new(16, usize::MAX));
    output.push(b"a line of more than sixteen bytes\n");
    output.pump(&mut line, || 0);
    assert_eq!(line.got, b"a line of more than sixteen bytes\r\n");
    assert!(!line.interrupt && !output.has_more());
}

#[test]
fn a_slow_line_gets_what_fits_and_interrupts_for_the_rest() {
    let (mut output, mut line) = (started(), Line::new(16, 1));
    output.push(b"123456789012345\nnext");
    output.pump(&mut line, || 0);
    assert_eq!(line.got, b"123456789012345\r");
    assert_eq!(line.looks, 2, "nobody waits");
    assert!(line.interrupt);
    line.fills = 1;
    output.pump(&mut line, || 0);
    assert_eq!(line.got, b"123456789012345\r\nnext");
    assert!(!line.interrupt);
}

#[test]
fn one_call_is_bounded_on_the_fastest_line() {
    let (mut output, mut line) = (started(), Line::new(16, usize::MAX));
    output.push(&[b'\n'; 1000]);
    output.pump(&mut line, || 0);
    assert_eq!(line.got.len(), GO_BYTES);
    assert!(line.interrupt);
    while output.has_more() {
        output.pump(&mut line, || 0);
    }
    assert_eq!(line.got, with_returns(&[b'\n'; 1000]));
}

#[test]
fn a_domain_finds_it_full_and_the_hypervisor_never() {
    let (mut output, mut line) = (started(), Line::new(16, 0));
    output.push(&[b'd'; BUSY_BYTES]);
    assert!(!output.is_busy());
    output.push(b"d");
    assert!(output.is_busy());
    output.push(&[b'd'; BUFFER_BYTES - BUSY_BYTES - 1]);
    assert_eq!(output.domain_room(), 0);
    output.push(&[b'h'; LOG_BYTES - BUFFER_BYTES]);
    assert_eq!((output.waiting(), output.domain_room()), (LOG_BYTES, 0));
    output.push(b"12345");
    line.fills = usize::MAX;
    output.drain(&mut line);
    let note = b"\r\n(microhv) 5 bytes skipped\r\n";
    assert_eq!(&line.got[..note.len()], note);
    assert_eq!(line.got.len(), note.len() + LOG_BYTES);
    assert_eq!(line.got[note.len()], b'd');
    assert!(line.got.ends_with(b"h12345"));
}

#[test]
fn a_panic_sends_what_waits_first_and_all_of_it() {
    let (mut output, mut line) = (started(), Line::new(16, 1));
    output.push(&[b'x'; 100]);
    output.pump(&mut line, || 0);
    output.set_synchronous(true);
    line.fills = usize::MAX;
    output.push(b"PANIC\n");
    output.pump(&mut line, || 0);
    assert_eq!(line.got, [&[b'x'; 100][..], b"PANIC\r\n"].concat());
}

#[test]
fn a_transmitter_that_takes_nothing_is_given_up() {
    let (mut output, mut line) = (started(), Line::new(16, 0));
    output.push_own(b"kept");
    output.pump(&mut line, || 5);
    output.pump(&mut line, || 5 + STUCK_NS);
    assert!(output.has_more());
    output.pump(&mut line, || 6 + STUCK_NS);
    assert!(!output.has_more() && !line.interrupt);
    output.push_own(b" too");
    output.pump(&mut line, || 7 + STUCK_NS);
    assert_eq!(output.waiting(), 0, "not again so long");
    let mut kept = [0; 8];
    assert_eq!((output.messages.kept(0, &mut kept), &kept), ((0, 8), b"kept too"));
    // The transmitter works again.
    line.fills = usize::MAX;
    output.push(b"!");
    output.pump(&mut line, || 8 + STUCK_NS);
    assert_eq!(line.got, b"!");
    // A synchronous writer does not wait for ever either, and waits for long only once.
    line.fills = 0;
    output.set_synchronous(true);
    output.push(&[b'y'; 50]);
    output.pump(&mut line, || 0);
    let looks = line.looks;
    output.push(b"z");
    output.pump(&mut line, || 0);
    assert_eq!(line.looks, looks + 1);
    assert_eq!(output.waiting(), 0);
}

#[test]
fn what_was_cleared_is_sent_all_the_same() {
    let (mut output, mut line) = (started(), Line::new(16, 0));
    output.push_own(b"before");
    output.messages.clear();
    output.push(b"a domain's");
    output.push_own(b"after");
    let mut kept = [0; 16];
    assert_eq!((output.messages.kept(0, &mut kept), &kept[..5]), ((6, 5), &b"after"[..]), "and no domain's");
    line.fills = 10;
    output.pump(&mut line, || 0);
    assert_eq!(line.got, b"beforea domain'safter");
}

proptest! {
    /// The line gets each byte once and in order, in whatever pieces it is written, across the ring's end too.
    #[test]
    fn order_is_kept(
        pieces in proptest::collection::vec((0usize..3000, any::<u8>(), 0usize..40), 1..60),
        fifo in 1usize..20,
        start in 0usize..3,
    ) {
        let (mut output, mut line) = (started(), Line::new(fifo, usize::MAX));
        output.push(&alloc::vec![b'.'; start * (LOG_BYTES / 2 - 7)]);
        while output.has_more() {
            output.pump(&mut line, || 0);
        }
        line.got.clear();
        let mut all = Vec::new();
        for (len, byte, fills) in pieces {
            let bytes: Vec<u8> = (0..len).map(|n| if n % 7 == 0 { b'\n' } else { byte.wrapping_add(n as u8) }).collect();
            // A domain writes as much as fits.
            let fits = len.min(output.domain_room());
            output.push(&bytes[..fits]);
            all.extend_from_slice(&bytes[..fits]);
            line.fills = fills;
            let before = line.got.len();
            output.pump(&mut line, || 0);
            prop_assert!(line.got.len() - before <= GO_BYTES);
            prop_assert_eq!(line.interrupt, output.has_more());
            prop_assert!(output.waiting() <= BUFFER_BYTES);
        }
        line.fills = usize::MAX;
        output.drain(&mut line);
        prop_assert_eq!(line.got, with_returns(&all));
    }
}
