//! The back end of a console ring.

use alloc::collections::VecDeque;

use ring_abi::io::console::backend;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::ring::{RingError, RingPage};

use super::Scrollback;
use crate::traits::Notifier;

/// Most input bytes that the back end keeps for a domain that does not read.
const INPUT_LIMIT: usize = 4096;
/// Most output bytes that are taken from the ring at a time.
const BUFFER_BYTES: usize = 512;

/// The back end of one console ring, with the last of the output.
pub struct ConsoleBack<P, N> {
    ring: ByteRing<P>,
    notifier: N,
    scrollback: Scrollback,
    input: VecDeque<u8>,
    /// Bytes on their way out of the ring: room that no poll has to clear.
    buffer: [u8; BUFFER_BYTES],
}

impl<P: RingPage, N: Notifier> ConsoleBack<P, N> {
    /// Serves the console page `page`; keeps at most `scrollback` bytes of output.
    ///
    /// # Errors
    /// [`RingError::TooSmall`]: `page` is shorter than a page.
    pub fn new(page: P, notifier: N, scrollback: usize) -> Result<Self, RingError> {
        Ok(Self {
            ring: backend(page)?,
            notifier,
            scrollback: Scrollback::new(scrollback),
            input: VecDeque::new(),
            buffer: [0; BUFFER_BYTES],
        })
    }

    /// The output so far.
    pub fn scrollback(&self) -> &Scrollback {
        &self.scrollback
    }

    /// Lets the ring go and keeps the output.
    pub fn into_scrollback(self) -> Scrollback {
        self.scrollback
    }

    /// Queues `bytes` for the domain and delivers what fits into the ring. The result is the number of bytes taken:
    /// fewer than offered when the domain does not read.
    ///
    /// # Errors
    /// [`RingError`]: the domain broke the ring's indices.
    pub fn input(&mut self, bytes: &[u8]) -> Result<usize, RingError> {
        let taken = bytes.len().min(INPUT_LIMIT - self.input.len());
        self.input.extend(&bytes[..taken]);
        if self.deliver()? {
            self.notifier.notify();
        }
        Ok(taken)
    }

    /// Takes what the domain wrote, shows `output` the bytes piece by piece, and delivers waiting input. The first
    /// piece has at most `most` bytes; `output` returns how long the next piece may be, 0 to end here. Bytes that
    /// `poll` does not take stay in the ring.
    ///
    /// `true`: the limit ended the call, and the ring may hold more. `false`: the caller waits for an event, which a
    /// domain sends after the domain has written.
    ///
    /// # Errors
    /// [`RingError`]: the domain broke the ring's indices.
    pub fn poll(
        &mut self,
        mut most: usize,
        mut output: impl FnMut(&[u8]) -> usize,
    ) -> Result<bool, RingError> {
        let buffer = &mut self.buffer;
        let mut any = false;
        let more = loop {
            if most == 0 {
                break self.ring.readable()? > 0;
            }
            let most_now = most.min(buffer.len());
            let count = self.ring.read(&mut buffer[..most_now])?;
            if count == 0 {
                break false;
            }
            any = true;
            self.scrollback.push(&buffer[..count]);
            most = output(&buffer[..count]);
            if count < most_now {
                break false;
            }
        };
        let delivered = self.deliver()?;
        // The domain may be waiting for room, or for input.
        if any || delivered {
            self.notifier.notify();
        }
        Ok(more)
    }

    fn deliver(&mut self) -> Result<bool, RingError> {
        let mut any = false;
        while !self.input.is_empty() {
            let count = self.ring.write(self.input.as_slices().0)?;
            if count == 0 {
                break;
            }
            self.input.drain(..count);
            any = true;
        }
        Ok(any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::rc::Rc;
    use alloc::vec::Vec;
    use core::cell::Cell;
    use ring_abi::io::console::{OUT, frontend};
    use ring_abi::shared::leaked_pages;

    #[derive(Clone, Default)]
    struct Count(Rc<Cell<u32>>);

    impl Notifier for Count {
        fn notify(&mut self) {
            self.0.set(self.0.get() + 1);
        }
    }

    #[test]
    fn output_is_kept_and_shown_with_one_event() {
        let page = leaked_pages(1);
        let count = Count::default();
        let mut back = ConsoleBack::new(page, count.clone(), 1000).unwrap();
        let mut front = frontend(page).unwrap();
        assert_eq!(back.poll(512, |_| panic!("nothing was written")), Ok(false));
        assert_eq!(front.write(&[b'a'; 2048]), Ok(2048));
        let mut seen = Vec::new();
        let see = |bytes: &[u8]| {
            seen.extend_from_slice(bytes);
            700
        };
        assert_eq!(back.poll(2048, see), Ok(false));
        assert_eq!((seen.len(), count.0.get()), (2048, 1));
        assert_eq!((back.scrollback().start(), back.scrollback().end()), (1048, 2048));
        assert_eq!(front.is_drained(), Ok(true));
    }

    #[test]
    fn what_is_not_taken_stays_in_the_ring() {
        let page = leaked_pages(1);
        let count = Count::default();
        let mut back = ConsoleBack::new(page, count.clone(), 1000).unwrap();
        let mut front = frontend(page).unwrap();
        assert_eq!(front.write(b"0123456789"), Ok(10));
        assert_eq!(back.poll(0, |_| panic!("nothing may be taken")), Ok(true));
        assert_eq!(count.0.get(), 0);
        let mut pieces = Vec::new();
        let mut next = 3;
        let see = |bytes: &[u8]| {
            pieces.push(bytes.to_vec());
            next -= 1;
            next
        };
        assert_eq!(back.poll(4, see), Ok(true));
        assert_eq!(pieces, [&b"0123"[..], b"45", b"6"]);
        assert_eq!((front.is_drained(), front.writable()), (Ok(false), Ok(2045)));
        assert_eq!(back.poll(3, |_| 0), Ok(false), "all of it was just taken");
    }

    #[test]
    fn input_waits_for_a_reader_and_is_bounded() {
        let page = leaked_pages(1);
        let count = Count::default();
        let mut back = ConsoleBack::new(page, count.clone(), 0).unwrap();
        let mut front = frontend(page).unwrap();
        assert_eq!(back.input(&[7; INPUT_LIMIT]), Ok(INPUT_LIMIT));
        assert_eq!(back.input(&[8; INPUT_LIMIT]), Ok(1024), "the ring took as many");
        assert_eq!(back.input(b"x"), Ok(0));
        let mut got = Vec::new();
        let mut piece = [0; 100];
        loop {
            let n = front.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..n]);
            let _ = back.poll(1, |_| 0);
            if n == 0 && front.readable() == Ok(0) {
                break;
            }
        }
        assert_eq!(got.len(), INPUT_LIMIT + 1024);
        assert_eq!(got[INPUT_LIMIT], 8);
    }

    #[test]
    fn overrun_is_an_error() {
        let page = leaked_pages(1);
        let mut back = ConsoleBack::new(page, Count::default(), 10).unwrap();
        page.store_u32(OUT.prod, 2049);
        assert!(matches!(back.poll(1, |_| 0), Err(RingError::ProducerOverrun { prod: 2049, cons: 0 })));
    }
}
