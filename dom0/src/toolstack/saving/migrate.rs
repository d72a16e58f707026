//! A running domain moves to another machine. Both ends say what Xen's `xl` says to `xl migrate-receive`: the target that it is ready, the
//! source the stream, the target that it has the domain, the source that the domain is the target's from now on, the target how
//! that went.
//!
//! Nobody can say in one step that a domain runs there and no longer here. The source keeps the domain suspended from its permission on
//! until the target has said how it went: if nothing comes, an administrator decides, and nothing is lost.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use migration::{IoFailure, Reader, Sink, Source, Writer};
use pvrt::executor::time;

use super::super::{Domain, Toolstack};
use super::link::Link;
use super::live::{Goals, Round};
use super::place::SavedSource;
use super::{Saved, suspend};
use crate::config::DomainConfig;
use crate::netback::TcpStream;

/// The target: it waits for the stream.
const BANNER: &[u8] = b"xl migration receiver ready, send binary domain data.\n";
/// The target: the domain is there, paused.
const RECEIVED: &[u8] = b"domain received, ready to unpause";
/// The source: the domain is the target's. The target, after its copy did not start: the domain is the source's again.
const YOURS: &[u8] = b"domain is yours, you are cleared to unpause";
/// The target: what follows is 0 if the domain runs there.
const REPORT: &[u8] = b"my copy unpause results are as follows";

/// A target of microhv's that does not take the domain: the reason follows, to the connection's end.
const REFUSED: &str = "microhv: ";
const NOT_TAKEN: &str = "the target does not take the domain";
/// Most bytes of a reason, and how long the source waits for it.
const REASON_BYTES: usize = 400;
const REASON_NS: u64 = 2_000_000_000;

/// How long a disk may take for what was asked of it.
const SETTLE_NS: u64 = 60_000_000_000;

/// What a migration took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of the stream.
    pub bytes: u64,
    /// How long the domain ran nowhere.
    pub downtime_ns: u64,
}

async fn say<L: Sink>(link: &mut L, words: &[u8]) -> Result<(), String> {
    link.write(words).await.map_err(|failure| failure.to_string())
}

/// Waits for these words of the peer's.
async fn hear<L: Source>(link: &mut L, words: &[u8]) -> Result<(), String> {
    let mut heard = alloc::vec![0; words.len()];
    link.read(&mut heard).await.map_err(|failure| match failure {
        IoFailure::End => "the peer has ended the connection".to_string(),
        failure => failure.to_string(),
    })?;
    if heard != words {
        let meant = String::from_utf8_lossy(words);
        return Err(format!("the peer says something else than `{}`", meant.trim_end()));
    }
    Ok(())
}

/// Tells the source why the target does not take the domain. The source may be gone.
async fn refuse(mut link: Link, why: &str) {
    let end = why.floor_char_boundary(REASON_BYTES - REFUSED.len());
    if say(&mut link, [REFUSED, &why[..end]].concat().as_bytes()).await.is_ok() {
        link.end().await;
    }
}

/// What a target says to the connection's end.
async fn rest<L: Source>(link: &mut L) -> String {
    let mut said = Vec::new();
    let reading = async {
        let mut byte = [0];
        while said.len() < REASON_BYTES && link.read(&mut byte).await.is_ok() {
            said.push(byte[0]);
        }
    };
    // What has come until then counts.
    let _ = time::timeout(REASON_NS, reading).await;
    String::from_utf8_lossy(&said).chars().filter(|letter| !letter.is_control()).collect()
}

/// Why a domain cannot be sent: the target's words if it says any, otherwise `why`.
async fn reason<L: Source>(link: &mut L, why: String) -> String {
    let said = rest(link).await;
    said.strip_prefix(REFUSED).map_or(why, |reason| format!("{NOT_TAKEN}: {reason}"))
}

/// Waits for the target's word that the domain is there.
async fn received<L: Source>(link: &mut L) -> Result<(), String> {
    let mut first = [0; REFUSED.len()];
    link.read(&mut first).await.map_err(|failure| format!("{NOT_TAKEN}: {failure}"))?;
    if first == REFUSED.as_bytes() {
        return Err(format!("{NOT_TAKEN}: {}", rest(link).await));
    }
    let is_begin = first == RECEIVED[..REFUSED.len()];
    let heard = hear(link, &RECEIVED[REFUSED.len()..]).await;
    let heard = if is_begin { heard } else { Err("it says something else".into()) };
    heard.map_err(|why| format!("{NOT_TAKEN}: {why}"))
}

/// What became of a domain that the target was cleared to run.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The domain runs there.
    There,
    /// The target could not start the domain, and has it no longer.
    Here,
    /// Nobody here knows.
    Unknown(String),
}

/// Gives the domain to the target.
async fn hand_over<L: Sink + Source>(link: &mut L) -> Outcome {
    let answer = async {
        say(link, YOURS).await?;
        hear(link, REPORT).await?;
        let mut status = [0];
        link.read(&mut status).await.map_err(|failure| failure.to_string())?;
        if status == [0] {
            return Ok(Outcome::There);
        }
        hear(link, YOURS).await.map(|()| Outcome::Here)
    };
    answer.await.unwrap_or_else(Outcome::Unknown)
}

impl Toolstack {
    /// Moves a running domain to the machine behind `stream`; `config` is its configuration as JSON. `told` hears of each round. After a
    /// failure the domain goes on here. So it does if the future is dropped, but for the moment in which nobody knows where the domain
    /// runs: then the domain stays suspended here, and `xl resume` lets it go on.
    ///
    /// # Errors
    /// In words.
    pub async fn move_away(
        &self,
        domain: &Domain,
        stream: TcpStream,
        config: &str,
        goals: Goals,
        told: impl Fn(&Round),
    ) -> Result<Moved, String> {
        let mut link = Link::new(Arc::new(stream));
        hear(&mut link, BANNER).await.map_err(|why| format!("the target: {why}"))?;
        let writer = Writer::begin(link.clone(), config).await.map_err(|error| error.to_string())?;
        let sent = match self.send_live(domain, writer, goals, told).await {
            Ok(sent) => sent,
            Err(why) => return Err(reason(&mut link, why).await),
        };
        let bytes = sent.writer.offset();
        if let Err(error) = sent.writer.end().await {
            return Err(reason(&mut link, error.to_string()).await);
        }
        received(&mut link).await?;
        let name = &domain.name;
        if !self.is_wanted(domain) {
            return Err(format!("{name}: the domain ended before it was moved"));
        }
        // A write that the guest asked for here must not come after what the guest writes there.
        if time::timeout(SETTLE_NS, self.0.disks.settled(domain.id)).await.is_err() {
            return Err(format!("{name}: a disk has not done in a minute what the domain asked for"));
        }
        // From here on nobody may let the domain go on who does not know that the target does not.
        sent.suspended.keep_down();
        match hand_over(&mut link).await {
            Outcome::There => {
                let downtime_ns = time::now_ns() - sent.since_ns;
                link.end().await;
                let gone = self.destroy(domain).await;
                gone.map_err(|why| format!("{name} runs there; destroying it here: {why}"))?;
                Ok(Moved { bytes, downtime_ns })
            }
            Outcome::Here => {
                self.call_off(domain)?;
                Err("the target could not start the domain: it goes on here".into())
            }
            Outcome::Unknown(why) => Err(format!(
                "{why}: it may run there. It stays suspended here: `xl destroy {name}` if it runs there, and \
                 `xl resume {name}` if it does not"
            )),
        }
    }

    /// Lets a domain go on that is suspended since nobody knew whether another machine runs it.
    ///
    /// # Errors
    /// The domain is not suspended.
    pub fn resume(&self, domain: &Domain) -> Result<(), String> {
        if !suspend::is_suspended(domain.id) {
            return Err(format!("{}: the domain is not suspended", domain.name));
        }
        self.call_off(domain)
    }

    /// Tells the source behind `stream` to send a domain, and reads its configuration.
    ///
    /// # Errors
    /// In words.
    pub async fn arriving(&self, stream: TcpStream) -> Result<Arrival, String> {
        let mut link = Link::new(Arc::new(stream));
        say(&mut link, BANNER).await?;
        let (config, reader) =
            Reader::open(SavedSource::Link(link.clone())).await.map_err(|error| error.to_string())?;
        Ok(Arrival { saved: Saved { config, reader, _claim: None }, link })
    }

    /// Receives a domain and starts it, unless `paused`. After a failure nothing of the domain is left.
    ///
    /// # Errors
    /// In words.
    pub async fn receive(
        &self,
        arrival: Arrival,
        config: DomainConfig,
        paused: bool,
    ) -> Result<Domain, String> {
        let Arrival { saved, mut link } = arrival;
        let domain = match self.restore(saved, config).await {
            Ok(domain) => Some(domain),
            Err(why) => {
                refuse(link, &why).await;
                return Err(why);
            }
        };
        let received = Received { toolstack: self.clone(), domain };
        say(&mut link, RECEIVED).await?;
        hear(&mut link, YOURS).await.map_err(|why| format!("the source goes on with the domain: {why}"))?;
        let domain = received.keep().ok_or("the domain is gone")?;
        let started = if paused { Ok(()) } else { self.unpause(&domain) };
        let status = [u8::from(started.is_err())];
        // Whether or not the source hears of it, the domain is here.
        let told = async { say(&mut link, REPORT).await.and(say(&mut link, &status).await) }.await;
        if let Err(why) = started {
            self.destroy(&domain).await?;
            say(&mut link, YOURS).await?;
            return Err(why);
        }
        if let Err(why) = told {
            log::warn!("{}: it runs here, which the source may not know: {why}", domain.name);
        }
        link.end().await;
        Ok(domain)
    }
}

/// A domain that a source offers.
pub struct Arrival {
    saved: Saved,
    link: Link,
}

impl Arrival {
    /// The domain's configuration: JSON as of `libxl_domain_config`.
    pub fn config(&self) -> &str {
        &self.saved.config
    }

    /// Tells the source why its domain is not taken.
    pub async fn refuse(self, why: &str) {
        refuse(self.link, why).await;
    }
}

/// A domain that is here, and may be the source's still. Dropped, it is destroyed.
struct Received {
    toolstack: Toolstack,
    domain: Option<Domain>,
}

impl Received {
    fn keep(mut self) -> Option<Domain> {
        self.domain.take()
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(domain) = self.domain.take() else { return };
        let toolstack = self.toolstack.clone();
        pvrt::executor::spawn(async move {
            if let Err(why) = toolstack.destroy(&domain).await {
                log::error!("{}: {why}", domain.name);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use pvrt::executor::block_on_test;

    use super::*;

    /// A peer that says what it says, and hears everything.
    struct Peer {
        says: Vec<u8>,
        heard: Vec<u8>,
    }

    impl Source for Peer {
        async fn read(&mut self, bytes: &mut [u8]) -> Result<(), IoFailure> {
            if bytes.len() > self.says.len() {
                return Err(IoFailure::End);
            }
            let rest = self.says.split_off(bytes.len());
            bytes.copy_from_slice(&self.says);
            self.says = rest;
            Ok(())
        }
    }

    impl Sink for Peer {
        async fn write(&mut self, bytes: &[u8]) -> Result<(), IoFailure> {
            self.heard.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn outcome(says: &[&[u8]]) -> Outcome {
        let mut peer = Peer { says: says.concat(), heard: Vec::new() };
        let mut found = None;
        block_on_test(async { found = Some(hand_over(&mut peer).await) });
        assert_eq!(peer.heard, YOURS);
        found.unwrap()
    }

    #[test]
    fn only_the_targets_word_says_where_a_domain_is() {
        assert_eq!(outcome(&[REPORT, &[0]]), Outcome::There);
        assert_eq!(outcome(&[REPORT, &[1], YOURS]), Outcome::Here);
        let all = [REPORT, &[1], YOURS].concat();
        for len in 0..all.len() {
            assert!(matches!(outcome(&[&all[..len]]), Outcome::Unknown(_)), "{len} bytes came");
        }
        // Started badly, and not given back; something else said.
        assert!(matches!(outcome(&[REPORT, &[2], REPORT]), Outcome::Unknown(_)));
        assert!(matches!(outcome(&[BANNER, &[0]]), Outcome::Unknown(_)));
    }

    #[test]
    fn a_target_says_why_it_does_not_take_a_domain() {
        let peer = |says: &[&str]| Peer { says: says.concat().into_bytes(), heard: Vec::new() };
        let ready = core::str::from_utf8(RECEIVED).unwrap();
        block_on_test(async {
            received(&mut peer(&[ready])).await.unwrap();
            for says in [
                "",
                "domain",
                "domain received, ready to",
                "microhv",
                "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            ] {
                let why = received(&mut peer(&[says])).await.unwrap_err();
                assert!(why.starts_with(NOT_TAKEN) && why.len() > NOT_TAKEN.len() + 2, "{says}: {why}");
            }
            let said = ["microhv: no memory\u{1b}[2J ", &"x".repeat(1000)].concat();
            let want = "the target does not take the domain: no memory[2J xxx";
            let why = received(&mut peer(&[&said])).await.unwrap_err();
            assert!(why.starts_with(want) && why.len() < 500, "{why}");
            let why = reason(&mut peer(&[&said]), "broken".into()).await;
            assert!(why.starts_with(want) && why.len() < 500, "{why}");
            assert_eq!(reason(&mut peer(&["", ready]), "broken".into()).await, "broken");
        });
    }

    #[test]
    fn words_are_those_of_xens_xl() {
        let mut peer = Peer { says: BANNER.to_vec(), heard: Vec::new() };
        block_on_test(async {
            hear(&mut peer, BANNER).await.unwrap();
            let why = hear(&mut peer, RECEIVED).await.unwrap_err();
            assert_eq!(why, "the peer has ended the connection");
            peer.says = alloc::vec![b'x'; 99];
            let why = hear(&mut peer, RECEIVED).await.unwrap_err();
            assert_eq!(why, "the peer says something else than `domain received, ready to unpause`");
        });
    }
}
