//! Saving running domains, and restoring them.
//!
//! [`suspend`] has a guest stop, [`memory`] reads where the guest's memory is, [`send`] writes memory and vCPUs into a stream, and
//! [`place`] says where streams are. What restores a domain is the builder's.

mod bits;
mod link;
mod live;
mod memory;
mod migrate;
mod place;
mod send;
mod suspend;
#[cfg(test)]
mod tests;
mod tracked;

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

use migration::{Reader, Sink, StreamError, Writer};
use pvrt::hypercall::domctl;
use ring_abi::domctl::XEN_DOMCTL_SHADOW_OP_OFF;

use super::{Domain, Toolstack};
use crate::config::DomainConfig;

pub use live::{Goals, Round};
pub use migrate::{Arrival, Moved};
pub(super) use place::SavedSource;
use send::Sender;
pub(super) use suspend::Saving;
pub use tracked::Tracked;

/// What becomes of a domain that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The domain is destroyed: it lives on in the stream alone.
    Destroy,
    /// The domain goes on.
    GoOn,
    /// The domain goes on when it is unpaused.
    Pause,
}

/// A saved domain, of which the configuration was read.
pub struct Saved {
    /// The configuration: JSON as of `libxl_domain_config`.
    pub config: String,
    reader: Reader<SavedSource>,
    _claim: Option<super::claims::Claim>,
}

/// Writes all of a suspended domain behind the headers.
async fn send<S: Sink + Send>(domain: &Domain, writer: Writer<S>) -> Result<Writer<S>, String> {
    // Entries of page tables are the guest's own again: nobody else's look at what the guest writes goes on beside a save.
    domctl::shadow_op(domain.id, XEN_DOMCTL_SHADOW_OP_OFF, None)
        .map_err(|errno| format!("shadow_op: {errno}"))?;
    let mut sender = Sender::begin(domain, writer).await?;
    let all = sender.all()?;
    sender.pages(&all, None).await?;
    sender.state().await
}

impl Toolstack {
    /// Saves a domain to the place called `path`; `config` is its configuration as JSON. Gives the stream's bytes. After a failure the
    /// domain goes on as if nothing had happened. So it does if the future is dropped.
    ///
    /// # Errors
    /// In words.
    pub async fn save(&self, domain: &Domain, path: &str, config: &str, after: After) -> Result<u64, String> {
        let (_claim, device) = self.claim_place(domain, path)?;
        let has_room_for_two = place::has_room(domain, &device, 2).is_ok();
        let sink = place::begin(path, device).await?;
        let at = |error: StreamError| format!("{path}: {error}");
        let why = |why: String| format!("{path}: {why}");
        let writer = Writer::begin(sink, config).await.map_err(at)?;
        let (writer, suspended, _tracked) = if after == After::GoOn && has_room_for_two {
            // The domain runs while its pages are written, and is stopped for those alone that it writes meanwhile.
            let goals = Goals { downtime_ns: 0, rounds: 1 };
            let sent = self.send_live(domain, writer, goals, |_| {}).await.map_err(why)?;
            (sent.writer, sent.suspended, Some(sent.tracked))
        } else {
            let suspended = self.suspend(domain).await?;
            (send(domain, writer).await.map_err(why)?, suspended, None)
        };
        let bytes = writer.offset();
        let sink = writer.end().await.map_err(at)?;
        sink.finish().await.map_err(|failure| format!("{path}: {failure}"))?;
        match after {
            After::Destroy => {
                suspended.keep_down();
                self.destroy(domain).await?;
            }
            After::GoOn => suspended.go_on()?,
            After::Pause => {
                domctl::pause(domain.id).map_err(|errno| format!("{}: pausing it: {errno}", domain.name))?;
                suspended.go_on()?;
            }
        }
        Ok(bytes)
    }

    /// Opens the saved domain at the place called `path`, and reads its configuration.
    ///
    /// # Errors
    /// In words.
    pub async fn open_saved(&self, path: &str) -> Result<Saved, String> {
        let (_claim, source) = self.saved_source(path)?;
        let (config, reader) = Reader::open(source).await.map_err(|error| format!("{path}: {error}"))?;
        Ok(Saved { config, reader, _claim })
    }

    /// Restores a domain, paused.
    ///
    /// # Errors
    /// In words. Nothing of the domain is left.
    pub async fn restore(&self, saved: Saved, config: DomainConfig) -> Result<Domain, String> {
        let made = self.ask_saved(Arc::new(config), saved.reader).await;
        made.map_err(|error| format!("{error}"))
    }
}
