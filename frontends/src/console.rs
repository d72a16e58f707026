//! A console ring as a stream of bytes, for consoles beside the kernel's own (which `pvrt::console` runs).

use pvrt::event::Port;
use ring_abi::io::console::frontend;
use ring_abi::ring::RingError;
use ring_abi::ring::bytes::ByteRing;
use ring_abi::shared::SharedMemory;

/// One console: its ring page and event channel.
pub struct Console<M> {
    ring: ByteRing<M>,
    port: Port,
}

impl<M: SharedMemory> Console<M> {
    /// Takes over a ring page.
    ///
    /// # Errors
    /// [`RingError::TooSmall`]: `page` is shorter than a page.
    pub fn new(page: M, port: Port) -> Result<Self, RingError> {
        Ok(Self { ring: frontend(page)?, port })
    }

    /// Writes all bytes, waiting for space.
    ///
    /// # Errors
    /// [`RingError`]: the other side's index is nonsense.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), RingError> {
        while !bytes.is_empty() {
            let count = self.ring.write(bytes)?;
            bytes = &bytes[count..];
            if count > 0 {
                self.port.notify();
            } else {
                self.port.wait().await;
            }
        }
        Ok(())
    }

    /// Reads at least one byte; returns the number of bytes read.
    ///
    /// # Errors
    /// [`RingError`]: the other side's index is nonsense.
    pub async fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RingError> {
        loop {
            let count = self.ring.read(buffer)?;
            if count > 0 {
                self.port.notify();
                return Ok(count);
            }
            if buffer.is_empty() {
                return Ok(0);
            }
            self.port.wait().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use pvrt::executor::{block_on_test, spawn_join};
    use pvrt::mem::Pages;
    use ring_abi::io::console::{OUT, backend};
    use ring_abi::types::DomId;

    fn pair() -> (Arc<Pages>, Port, Console<Arc<Pages>>) {
        let page = Arc::new(Pages::zeroed(1).expect("a page"));
        let theirs = Port::alloc_unbound(DomId::new(1)).expect("a port");
        let ours = Port::bind_interdomain(DomId::new(0), theirs.number()).expect("bound");
        let console = Console::new(page.clone(), ours).expect("a page is enough");
        (page, theirs, console)
    }

    #[test]
    fn more_bytes_than_the_ring_holds() {
        let (page, port, mut console) = pair();
        let text: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        let sent = text.clone();
        block_on_test(async {
            let writer = spawn_join(async move { console.write(&sent).await });
            let mut ring = backend(page).expect("a page is enough");
            let mut got = Vec::new();
            while got.len() < text.len() {
                let mut piece = [0; 700];
                match ring.read(&mut piece).expect("a sane ring") {
                    0 => port.wait().await,
                    count => {
                        got.extend_from_slice(&piece[..count]);
                        port.notify();
                    }
                }
            }
            assert_eq!(got, text);
            assert_eq!(writer.await, Ok(Ok(())));
        });
    }

    #[test]
    fn input_wakes_the_reader_and_nonsense_is_an_error() {
        let (page, port, mut console) = pair();
        block_on_test(async {
            let reader = spawn_join(async move {
                let mut byte = [0; 8];
                let count = console.read(&mut byte).await;
                (count, byte[0], console)
            });
            let mut ring = backend(page.clone()).expect("a page is enough");
            ring.write(b"k").expect("a sane ring");
            port.notify();
            let (count, byte, mut console) = reader.await.expect("it ends");
            assert_eq!((count, byte), (Ok(1), b'k'));
            page.bytes().store_u32(OUT.cons, 77);
            assert!(console.write(b"x").await.is_err());
        });
    }
}
