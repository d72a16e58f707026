//! The connection by which a domain moves, as streams see it.

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::sync::Arc;

use migration::{IoFailure, Sink, Source};

use crate::net::router::TcpError;
use crate::netback::TcpStream;

/// Bytes that are read at a time, where less is asked for.
const AT_A_TIME: usize = 64 << 10;

/// An end of the connection. What one clone has read ahead another does not see; a peer sends no more than it is asked for.
pub(in crate::toolstack) struct Link {
    stream: Arc<TcpStream>,
    ahead: Box<[u8]>,
    /// Where what was read ahead begins and ends.
    begin: usize,
    end: usize,
}

impl Link {
    pub(super) fn new(stream: Arc<TcpStream>) -> Self {
        Self { stream, ahead: Box::default(), begin: 0, end: 0 }
    }

    /// Waits until the peer has all, and says that nothing more comes. If the peer is gone, nobody waits for it.
    pub(super) async fn end(self) {
        if let Err(why) = self.stream.flush().await {
            log::warn!("the peer has not heard all: {why}");
        }
        self.stream.end();
    }
}

impl Clone for Link {
    fn clone(&self) -> Self {
        Self::new(self.stream.clone())
    }
}

fn failed(error: TcpError) -> IoFailure {
    IoFailure::Failed(error.to_string())
}

impl Sink for Link {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), IoFailure> {
        self.stream.write_all(bytes).await.map_err(failed)
    }
}

impl Source for Link {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), IoFailure> {
        let mut rest = bytes;
        while !rest.is_empty() {
            if self.begin == self.end {
                if self.ahead.is_empty() {
                    self.ahead = alloc::vec![0; AT_A_TIME].into_boxed_slice();
                }
                let count = self.stream.read(&mut self.ahead).await.map_err(failed)?;
                if count == 0 {
                    return Err(IoFailure::End);
                }
                (self.begin, self.end) = (0, count);
            }
            let count = rest.len().min(self.end - self.begin);
            rest[..count].copy_from_slice(&self.ahead[self.begin..self.begin + count]);
            self.begin += count;
            rest = &mut rest[count..];
        }
        Ok(())
    }
}
