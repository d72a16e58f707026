//! Where streams come from and go to.

use alloc::string::String;
use core::fmt;
use core::future::Future;

/// Why bytes could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IoFailure {
    /// There are no more bytes, or there is no more room.
    End,
    /// In words.
    Failed(String),
}

impl fmt::Display for IoFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::End => f.write_str("the end is reached too early"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// Bytes in their order.
pub trait Source {
    /// Fills `bytes`.
    ///
    /// # Errors
    /// See [`IoFailure`].
    fn read(&mut self, bytes: &mut [u8]) -> impl Future<Output = Result<(), IoFailure>> + Send;
}

/// A place for bytes in their order.
pub trait Sink {
    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// See [`IoFailure`].
    fn write(&mut self, bytes: &[u8]) -> impl Future<Output = Result<(), IoFailure>> + Send;
}

impl Source for &[u8] {
    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), IoFailure> {
        let (now, later) = self.split_at_checked(bytes.len()).ok_or(IoFailure::End)?;
        bytes.copy_from_slice(now);
        *self = later;
        Ok(())
    }
}

impl Sink for alloc::vec::Vec<u8> {
    async fn write(&mut self, bytes: &[u8]) -> Result<(), IoFailure> {
        self.try_reserve(bytes.len()).map_err(|_| IoFailure::End)?;
        self.extend_from_slice(bytes);
        Ok(())
    }
}
