//! The guest's life.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use frontends::control::shutdown_request;
use frontends::netfront::{Interface, NetError, Offload};
use frontends::xenbus::{Device, Xenstore};
use pvrt::event::Port;
use pvrt::executor::{select, spawn};
use pvrt::hypercall::sched;
use pvrt::{BootInfo, println, time};
use ring_abi::io::mac::MacAddr;
use ring_abi::sched::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF};

use crate::frames::{self, End};

/// How long an answer may take.
const ANSWER_NS: u64 = 500_000_000;
/// The port from which the guest asks.
const OWN_PORT: u16 = 4000;
/// A station that nobody is, and its address.
const NOBODY: End = End { mac: MacAddr([0x02, 0, 0, 0, 0, 0x66]), ip: Ipv4Addr::new(10, 9, 0, 66) };
/// Payload of a frame of a flood: the frame has 1514 bytes.
const FLOOD_BYTES: usize = 1514 - frames::HEADERS;

/// Runs everything; a failure ends the domain as crashed, so that the toolstack sees it.
pub(crate) async fn start(boot: BootInfo) {
    let reason = match run(boot).await {
        Ok(()) => SHUTDOWN_POWEROFF,
        Err(error) => {
            println!("talk: FAILED: {error}");
            SHUTDOWN_CRASH
        }
    };
    pvrt::console::flush().await;
    sched::shutdown(reason);
}

async fn run(boot: BootInfo) -> Result<(), String> {
    let ip = boot.option("ip").and_then(|ip| ip.parse().ok()).ok_or("ip=: expected an address")?;
    let peer = boot.option("peer").map(|text| peer(text).ok_or("peer=: expected MAC/ADDRESS")).transpose()?;
    let say = boot.option("say").unwrap_or_default().to_string();
    let info = boot.store.ok_or("no xenstore, so no network")?;
    let store = Xenstore::connect(info.page, Port::adopt(info.port)).map_err(|error| error.to_string())?;
    spawn(stop_when_asked(store.clone()));
    let vifs = Device::list(&store, "vif").await.map_err(|error| error.to_string())?;
    let path = vifs.first().ok_or("no network interface")?;
    let net = Interface::connect(&store, path).await.map_err(|error| format!("{path}: {error}"))?;
    let own = End { mac: MacAddr(net.properties().mac), ip };
    println!("talk: {} {ip}", own.mac);
    let mut talk = Talk { net, own, peer: peer.unwrap_or(NOBODY), heard: None };
    for word in say.split(',').filter(|word| !word.is_empty()) {
        talk.say(word).await.map_err(|error| format!("{word}: {error}"))?;
    }
    if say.is_empty() {
        talk.listen(u64::MAX).await.map_err(|error| error.to_string())?;
    }
    println!("talk: done");
    Ok(())
}

async fn stop_when_asked(store: Xenstore) {
    match shutdown_request(&store).await {
        Ok(request) => sched::shutdown(request.reason()),
        Err(error) => log::warn!("waiting for a request to stop: {error}"),
    }
}

/// Reads `MAC/ADDRESS`.
fn peer(text: &str) -> Option<End> {
    let (mac, ip) = text.split_once('/')?;
    Some(End { mac: MacAddr::parse(mac)?, ip: ip.parse().ok()? })
}

struct Talk {
    net: Interface,
    own: End,
    peer: End,
    /// The port of the last answer.
    heard: Option<u16>,
}

impl Talk {
    async fn say(&mut self, word: &str) -> Result<(), String> {
        let (verb, number) = word.split_once(':').unwrap_or((word, "0"));
        let number: u64 = number.parse().map_err(|_| "no number")?;
        let text = |error: NetError| error.to_string();
        let (own, peer) = (self.own, self.peer);
        let ports = [OWN_PORT, 7];
        match verb {
            "ask" => return self.ask(number as u16).await.map_err(text),
            "wait" => return self.listen(time::now_ns() + number * 1_000_000).await.map_err(text),
            "flood" => return self.flood(number).await.map_err(text),
            "mac" => self.send(&frames::udp(End { mac: NOBODY.mac, ..own }, peer, ports, b"mac")).await,
            "ip" => self.send(&frames::udp(End { ip: NOBODY.ip, ..own }, peer, ports, b"ip")).await,
            "arp" => self.send(&frames::arp(own.mac, own.mac, NOBODY.ip)).await,
            _ => return Err("no such word".into()),
        }
        .map_err(text)?;
        println!("talk: sent {verb}");
        Ok(())
    }

    /// Asks the peer, and says whether the peer answered.
    async fn ask(&mut self, port: u16) -> Result<(), NetError> {
        self.heard = None;
        self.send(&frames::udp(self.own, self.peer, [OWN_PORT, port], b"hello")).await?;
        let until_ns = time::now_ns() + ANSWER_NS;
        while self.heard != Some(port) && time::now_ns() < until_ns {
            self.hear(until_ns).await?;
        }
        let what = if self.heard == Some(port) { "answered" } else { "no answer" };
        println!("talk: ask {port}: {what}");
        Ok(())
    }

    /// Sends so many bytes as fast as netback takes them, and says how long that took.
    async fn flood(&mut self, bytes: u64) -> Result<(), NetError> {
        let frame = frames::udp(self.own, self.peer, [OWN_PORT, 9], &[0x55; FLOOD_BYTES]);
        let (begun_ns, mut sent) = (time::now_ns(), 0);
        while sent < bytes {
            self.send(&frame).await?;
            sent += frame.len() as u64;
        }
        // What is answered has been charged.
        while self.net.ring_state().transmit_used > 0 {
            self.net.has_room(frame.len())?;
            self.net.flush()?;
            time::sleep(1_000_000).await;
        }
        println!("talk: flood: {sent} bytes in {} us", (time::now_ns() - begun_ns) / 1000);
        Ok(())
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), NetError> {
        loop {
            match self.net.send(frame, Offload::default()) {
                Ok(()) => return self.net.flush(),
                Err(NetError::Full) => self.net.ready().await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers until that time.
    async fn listen(&mut self, until_ns: u64) -> Result<(), NetError> {
        while time::now_ns() < until_ns {
            self.hear(until_ns).await?;
        }
        Ok(())
    }

    /// Takes what has come, answers questions, and waits for more.
    async fn hear(&mut self, until_ns: u64) -> Result<(), NetError> {
        let mut frame = Vec::new();
        while self.net.receive(&mut frame)?.is_some() {
            self.take(&frame).await?;
            frame.clear();
        }
        select(self.net.ready(), time::sleep_until(until_ns)).await;
        Ok(())
    }

    async fn take(&mut self, frame: &[u8]) -> Result<(), NetError> {
        let Some((from, to, [from_port, to_port])) = frames::read(frame) else { return Ok(()) };
        if to.ip != self.own.ip {
            return Ok(());
        }
        if to_port == OWN_PORT {
            self.heard = Some(from_port);
        } else if to_port != 9 {
            println!("talk: {} asks {to_port}", from.ip);
            self.send(&frames::udp(self.own, from, [to_port, from_port], b"hello")).await?;
        }
        Ok(())
    }
}
