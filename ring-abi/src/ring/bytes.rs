//! Byte rings with a producer and a consumer index: console and xenstore.
//!
//! A page holds two rings, one in each direction. There is no suppression of events: after an end has read or written
//! anything, the end notifies its peer.

use super::{RingError, RingPage};

/// Where one byte ring is in its page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// Offset of the bytes.
    pub data: usize,
    /// Number of bytes, a power of two.
    pub size: usize,
    /// Offset of the consumer index (u32).
    pub cons: usize,
    /// Offset of the producer index (u32).
    pub prod: usize,
}

/// One end of a page with two byte rings.
pub struct ByteRing<M> {
    page: M,
    rx: Channel,
    tx: Channel,
    /// Our own truth about where we read.
    rx_cons: u32,
    /// Our own truth about where we write.
    tx_prod: u32,
}

impl<M: RingPage> ByteRing<M> {
    /// Attaches to the rings, going on where the page's indices say that this end stopped.
    ///
    /// # Errors
    /// [`RingError::TooSmall`] if the page does not hold both channels.
    pub fn attach(page: M, rx: Channel, tx: Channel) -> Result<Self, RingError> {
        for channel in [rx, tx] {
            let ends = [channel.data + channel.size, channel.cons + 4, channel.prod + 4];
            if !channel.size.is_power_of_two() || ends.into_iter().any(|end| end > page.ring_bytes()) {
                return Err(RingError::TooSmall);
            }
        }
        let rx_cons = page.load_index(rx.cons);
        let tx_prod = page.load_index(tx.prod);
        Ok(Self { page, rx, tx, rx_cons, tx_prod })
    }

    /// Bytes that can be read now.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the peer claims to have written more than the ring holds.
    pub fn readable(&self) -> Result<usize, RingError> {
        let prod = self.page.load_index(self.rx.prod);
        let waiting = prod.wrapping_sub(self.rx_cons) as usize;
        if waiting > self.rx.size {
            return Err(RingError::ProducerOverrun { prod, cons: self.rx_cons });
        }
        Ok(waiting)
    }

    /// Bytes that can be written now.
    ///
    /// # Errors
    /// [`RingError::ConsumerOverrun`]: the peer claims to have read what this end never wrote.
    pub fn writable(&self) -> Result<usize, RingError> {
        let cons = self.page.load_index(self.tx.cons);
        let waiting = self.tx_prod.wrapping_sub(cons) as usize;
        if waiting > self.tx.size {
            return Err(RingError::ConsumerOverrun { cons, prod: self.tx_prod });
        }
        Ok(self.tx.size - waiting)
    }

    /// Whether the peer has taken everything that this end wrote.
    ///
    /// # Errors
    /// [`RingError::ConsumerOverrun`]: the peer claims to have read what this end never wrote.
    pub fn is_drained(&self) -> Result<bool, RingError> {
        Ok(self.writable()? == self.tx.size)
    }

    /// Reads what is there, up to the length of `target`. The result is the number of bytes read, 0 if none wait.
    ///
    /// # Errors
    /// [`RingError::ProducerOverrun`]: the peer claims to have written more than the ring holds.
    pub fn read(&mut self, target: &mut [u8]) -> Result<usize, RingError> {
        let count = self.readable()?.min(target.len());
        if count == 0 {
            return Ok(0);
        }
        let start = self.rx_cons as usize & (self.rx.size - 1);
        let (first, second) = target[..count].split_at_mut(count.min(self.rx.size - start));
        self.page.copy_out(self.rx.data + start, first);
        self.page.copy_out(self.rx.data, second);
        self.rx_cons = self.rx_cons.wrapping_add(count as u32);
        // The bytes are read before this store, because the peer may overwrite the bytes from now on.
        self.page.store_index(self.rx.cons, self.rx_cons);
        Ok(count)
    }

    /// Writes as much of `source` as fits. The result is the number of bytes written, 0 if there is no room.
    ///
    /// # Errors
    /// [`RingError::ConsumerOverrun`]: the peer claims to have read what this end never wrote.
    pub fn write(&mut self, source: &[u8]) -> Result<usize, RingError> {
        let count = self.writable()?.min(source.len());
        if count == 0 {
            return Ok(0);
        }
        let start = self.tx_prod as usize & (self.tx.size - 1);
        let (first, second) = source[..count].split_at(count.min(self.tx.size - start));
        self.page.copy_in(self.tx.data + start, first);
        self.page.copy_in(self.tx.data, second);
        self.tx_prod = self.tx_prod.wrapping_add(count as u32);
        self.page.store_index(self.tx.prod, self.tx_prod);
        Ok(count)
    }

    /// Empties both rings and sets all four indices to 0, as a xenstore server does when it accepts a reconnection.
    pub fn reset(&mut self) {
        self.rx_cons = 0;
        self.tx_prod = 0;
        for channel in [self.rx, self.tx] {
            self.page.store_index(channel.cons, 0);
            self.page.store_index(channel.prod, 0);
        }
        self.page.full_barrier();
    }

    /// The page.
    pub const fn page(&self) -> &M {
        &self.page
    }

    /// Gives the page back.
    pub fn into_page(self) -> M {
        self.page
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{console, xs_wire};
    use crate::shared::leaked_pages;
    use alloc::vec::Vec;

    #[test]
    fn messages_wrap_and_arrive_in_pieces() {
        let page = leaked_pages(1);
        let mut guest = console::frontend(page).unwrap();
        let mut host = console::backend(page).unwrap();
        let text: Vec<u8> = (0..5000u32).map(|i| (i % 251) as u8).collect();
        let (mut sent, mut got) = (0, Vec::new());
        while got.len() < text.len() {
            sent += guest.write(&text[sent..]).unwrap();
            let mut piece = [0; 777];
            let count = host.read(&mut piece).unwrap();
            got.extend_from_slice(&piece[..count]);
        }
        assert_eq!(got, text);
        assert!(guest.is_drained().unwrap());
        assert_eq!(host.read(&mut [0; 8]), Ok(0));
    }

    #[test]
    fn full_ring_takes_no_more() {
        let page = leaked_pages(1);
        let mut client = xs_wire::client(page).unwrap();
        let mut server = xs_wire::server(page).unwrap();
        assert_eq!(client.write(&[1; 2000]), Ok(1024));
        assert_eq!(client.write(&[1; 1]), Ok(0));
        assert_eq!(server.readable(), Ok(1024));
        assert_eq!(server.read(&mut [0; 1]), Ok(1));
        assert_eq!(client.writable(), Ok(1));
    }

    #[test]
    fn indices_wrap_at_32_bits() {
        let page = leaked_pages(1);
        for offset in [xs_wire::REQ.cons, xs_wire::REQ.prod] {
            page.store_u32(offset, u32::MAX - 2);
        }
        let mut client = xs_wire::client(page).unwrap();
        let mut server = xs_wire::server(page).unwrap();
        assert_eq!(client.write(b"across the edge"), Ok(15));
        let mut got = [0; 15];
        assert_eq!(server.read(&mut got), Ok(15));
        assert_eq!(&got, b"across the edge");
    }

    #[test]
    fn lying_indices_are_errors() {
        let page = leaked_pages(1);
        let mut server = xs_wire::server(page).unwrap();
        page.store_u32(xs_wire::REQ.prod, 1025);
        assert_eq!(server.read(&mut [0; 8]), Err(RingError::ProducerOverrun { prod: 1025, cons: 0 }));
        page.store_u32(xs_wire::RSP.cons, 1);
        assert_eq!(server.write(b"x"), Err(RingError::ConsumerOverrun { cons: 1, prod: 0 }));
    }

    #[test]
    fn a_peer_cannot_move_our_own_index() {
        let page = leaked_pages(1);
        let mut client = xs_wire::client(page).unwrap();
        let mut server = xs_wire::server(page).unwrap();
        client.write(b"abcdef").unwrap();
        page.store_u32(xs_wire::REQ.cons, 3);
        let mut got = [0; 6];
        assert_eq!(server.read(&mut got), Ok(6));
        assert_eq!(&got, b"abcdef");
        assert_eq!(page.load_u32(xs_wire::REQ.cons), 6);
    }

    #[test]
    fn a_small_page_is_refused() {
        let page = leaked_pages(1);
        let small = page.slice(0, 0x808).unwrap();
        assert!(matches!(xs_wire::server(small), Err(RingError::TooSmall)));
    }

    #[test]
    fn reset_starts_again() {
        let page = leaked_pages(1);
        let mut client = xs_wire::client(page).unwrap();
        let mut server = xs_wire::server(page).unwrap();
        client.write(b"old").unwrap();
        server.reset();
        let mut client = xs_wire::client(page).unwrap();
        client.write(b"new").unwrap();
        let mut got = [0; 8];
        assert_eq!(server.read(&mut got), Ok(3));
        assert_eq!(&got[..3], b"new");
    }
}
