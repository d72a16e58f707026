//! The guest itself.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use frontends::netfront::{Interface, NetError, Statistics};
use frontends::xenbus::{self, Xenstore};
use pvrt::event::Port;
use pvrt::executor::{select, yield_now};
use pvrt::hypercall::sched;
use pvrt::marker::mark;
use pvrt::{BootInfo, println, time};
use ring_abi::io::mac::MacAddr;
use ring_abi::sched::SHUTDOWN_CRASH;

use crate::frame::{self, Kind, Packets, Seen};

/// How often the other end is asked for a load, until the load comes.
const ASK_NS: u64 = 50_000_000;
/// How long the end waits for the rest of a load.
const SILENCE_NS: u64 = 2_000_000_000;

/// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
pub async fn start(boot: BootInfo) {
    if let Err(error) = run(boot).await {
        println!("netload: FAILED: {error}");
        pvrt::console::flush().await;
        sched::shutdown(SHUTDOWN_CRASH);
    }
}

/// What the guest does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Send,
    Sink,
    Both,
    Pour,
}

/// One end of a load.
struct End<'a> {
    net: &'a Interface,
    role: Role,
    packets: Packets,
    batch: u64,
    /// Number of the next packet of the load that is sent.
    next: u64,
    seen: Seen,
    received: Vec<u8>,
    /// Packets that count, and those before.
    warm: u64,
    count: u64,
    /// What had been done when counting began: time, and the interface's figures.
    begun: Option<(u64, Statistics, Figures)>,
    figures: Figures,
}

/// What the end has done.
#[derive(Clone, Copy, Default)]
struct Figures {
    /// How often the end waited.
    waits: u64,
}

async fn run(boot: BootInfo) -> Result<(), String> {
    let number = |key: &str, usual: u64| match boot.option(key) {
        None => Ok(usual),
        Some(word) => word.parse().map_err(|_| format!("{key}={word}: expected a number")),
    };
    let role = match boot.option("role") {
        Some("send") => Role::Send,
        Some("sink") => Role::Sink,
        Some("both") => Role::Both,
        Some("pour") => Role::Pour,
        _ => return Err("role=: expected send, sink, both or pour".into()),
    };
    let to = boot.option("to").and_then(MacAddr::parse).ok_or("to=: expected an Ethernet address")?;
    let segment = match number("segment", 0)? {
        0 => None,
        size => Some(u16::try_from(size).map_err(|_| "segment=: too large")?),
    };
    let (size, batch) = (number("size", 64)? as usize, number("batch", 32)?.max(1));
    let (warm, count) = (number("warm", 2_000)?, number("count", 20_000)?);
    let info = boot.store.ok_or("no xenstore, so no network")?;
    let store = Xenstore::connect(info.page, Port::adopt(info.port)).map_err(|error| error.to_string())?;
    let vifs = xenbus::Device::list(&store, "vif").await.map_err(|error| error.to_string())?;
    let path = vifs.first().ok_or("no network interface: the configuration has no vif=")?;
    let lends = match boot.option("lend") {
        None | Some("yes") => true,
        Some("no") => false,
        Some(_) => return Err("lend=: expected yes or no".into()),
    };
    let net =
        Interface::connect_as(&store, path, 1, lends).await.map_err(|error| format!("{path}: {error}"))?;
    let packets = Packets::new(net.properties().mac, to.0, size, segment).ok_or("size=: out of range")?;
    let (seen, figures) = (Seen::new(size), Figures::default());
    let received = Vec::new();
    let end =
        End { net: &net, role, packets, batch, next: 0, seen, received, warm, count, begun: None, figures };
    end.run().await.map_err(|error| format!("{path}: {error}"))
}

impl End<'_> {
    async fn run(mut self) -> Result<(), NetError> {
        let mut is_sending = self.role == Role::Pour;
        let mut silent_since = time::now_ns();
        loop {
            let before = self.seen.packets;
            match self.receive()? {
                Some(Kind::Begin) => is_sending = true,
                Some(Kind::End) => break,
                _ => {}
            }
            if self.seen.packets != before {
                silent_since = time::now_ns();
                is_sending |= self.role == Role::Both;
            }
            let is_full = is_sending && self.fill()?;
            if self.is_over() {
                break;
            }
            if is_sending && !is_full {
                yield_now().await;
                continue;
            }
            self.wait(silent_since).await?;
        }
        self.end().await
    }

    /// Takes what has come. Returns what the other end asked for, if it asked.
    fn receive(&mut self) -> Result<Option<Kind>, NetError> {
        let mut asked = None;
        loop {
            self.received.clear();
            if self.net.receive(&mut self.received)?.is_none() {
                return Ok(asked);
            }
            match frame::label(&self.received) {
                Some(Kind::Load(number)) => {
                    self.seen.look(&self.received, number);
                    self.count(self.seen.packets);
                }
                other => asked = other.or(asked),
            }
        }
    }

    /// Sends a batch of load. `true`: the ring is full.
    fn fill(&mut self) -> Result<bool, NetError> {
        let mut is_full = false;
        for _ in 0..self.batch {
            let offload = self.packets.offload;
            match self.net.send(self.packets.get(Kind::Load(self.next)), offload) {
                Ok(()) => self.next += 1,
                Err(NetError::Full) => {
                    is_full = true;
                    break;
                }
                Err(error) => return Err(error),
            }
            if self.role == Role::Pour {
                self.count(self.next);
            }
        }
        self.net.flush()?;
        Ok(is_full)
    }

    /// `done` packets were received, or sent: counting may begin or end.
    fn count(&mut self, done: u64) {
        if self.role == Role::Send {
            return;
        }
        if done == self.warm {
            self.begun = Some((time::now_ns(), self.net.statistics(), self.figures));
            mark::<220>();
        } else if done == self.warm + self.count {
            mark::<221>();
            self.report();
        }
    }

    fn is_over(&self) -> bool {
        let done = if self.role == Role::Pour { self.next } else { self.seen.packets };
        self.role != Role::Send && done >= self.warm + self.count
    }

    /// Waits for packets or for room; asks the other end for a load until one comes.
    async fn wait(&mut self, silent_since: u64) -> Result<(), NetError> {
        self.figures.waits += 1;
        if self.role == Role::Pour || self.role == Role::Send {
            self.net.ready().await;
            return Ok(());
        }
        let is_silent = self.seen.packets == 0;
        if is_silent {
            let offload = self.packets.offload;
            match self.net.send(self.packets.get(Kind::Begin), offload) {
                Ok(()) | Err(NetError::Full) => {}
                Err(error) => return Err(error),
            }
        } else if time::now_ns().saturating_sub(silent_since) > SILENCE_NS {
            println!("netload: nothing comes any more");
            return Err(NetError::Disconnected);
        }
        let pause = if is_silent { ASK_NS } else { SILENCE_NS };
        select(self.net.ready(), time::sleep(pause)).await;
        Ok(())
    }

    /// Prints what was counted.
    fn report(&self) {
        let Some((since, before, figures)) = self.begun else { return };
        let now = self.net.statistics();
        let Seen { packets, lost, late, damaged, .. } = self.seen;
        println!(
            "netload: counted {} received {} sent {} in {} ns, {} notifications, {} waits",
            self.count,
            now.received - before.received,
            now.sent - before.sent,
            time::now_ns() - since,
            now.notifications - before.notifications,
            self.figures.waits - figures.waits
        );
        println!("netload: in all {packets} received, {lost} lost, {late} late, {damaged} damaged");
    }

    /// Ends the other end, and tells what this one did.
    async fn end(mut self) -> Result<(), NetError> {
        if matches!(self.role, Role::Sink | Role::Both) {
            let offload = self.packets.offload;
            // A ring that the load still fills has room in a moment.
            while let Err(NetError::Full) = self.net.send(self.packets.get(Kind::End), offload) {
                self.net.ready().await;
            }
            self.net.flush()?;
            time::sleep(ASK_NS).await;
        }
        let Statistics { sent, send_errors, notifications, .. } = self.net.statistics();
        println!(
            "netload: ended; {sent} sent, {send_errors} errors, {notifications} notifications, {} waits",
            self.figures.waits
        );
        Ok(())
    }
}
