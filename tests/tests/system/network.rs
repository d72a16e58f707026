//! dom0's network cards, and the way from the world to a guest.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::Machine;
use xtask::network::Forward;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![network: cards_are_found_and_named, the_world_gets_a_guests_page])
}

/// The standard card, and three more: one for long packets, one whose address is no station's, and one of another make.
fn cards_are_found_and_named() -> Result<()> {
    let more = [
        "-netdev",
        "user,id=net1",
        "-device",
        "virtio-net-pci,netdev=net1,disable-legacy=on,romfile=,mac=02:00:00:00:00:01,host_mtu=9000",
        "-netdev",
        "user,id=net2",
        "-device",
        "virtio-net-pci,netdev=net2,disable-legacy=on,romfile=,mac=01:00:00:00:00:02",
        "-netdev",
        "user,id=net3",
        "-device",
        "e1000e,netdev=net3,romfile=,mac=02:00:00:00:00:03",
    ];
    Machine::new("network-cards")
        .network()
        .with(|machine| machine.qemu_arguments.extend(more.map(str::to_string)))
        .line("xl info")
        .run()?
        .succeeded()?
        .says("eth0: PCI 00:02.0: 52:54:00:12:34:56, MTU 1500, link up")?
        .says("eth1: PCI 00:03.0: 02:00:00:00:00:01, MTU 9000, link up")?
        .says("error: eth2: PCI 00:04.0: its registers give a bad Ethernet address")?
        .says("eth3: PCI 00:05.0: 02:00:00:00:00:03, MTU 1500, checksums, link up")?;
    Ok(())
}

/// How long a guest may take until the guest answers.
const ANSWER: Duration = Duration::from_secs(60);

/// A connection from the host goes by QEMU's NAT, dom0's card and dom0's forward to the web guest, and the page comes back.
fn the_world_gets_a_guests_page() -> Result<()> {
    let host = free_port()?;
    let forward = Forward { host, guest: "web".into(), port: 80 };
    let mut machine =
        Machine::new("network-web").network().with(|machine| machine.forwards.push(forward)).start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create /boot/web.cfg")?;
    machine.expect("dom0# ", 60)?;
    let page = page(host)?;
    machine.type_line("xl destroy web")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    run.require(page.starts_with("HTTP/1.1 200 OK\r\n") && page.contains("<!doctype html>"), &page)
}

/// A port of this host that nobody has, and that dom0 forwards: dom0 keeps those from 32768 on for guests' own connections.
fn free_port() -> Result<u16> {
    let first = 20_000 + (std::process::id() % 10_000) as u16;
    let free = (first..32_768).find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.context("no port of this host is free")
}

/// What `/` of the server behind a port of this host is. Until the guest has its address, connections end without an answer.
fn page(port: u16) -> Result<String> {
    let end = Instant::now() + ANSWER;
    while Instant::now() < end {
        if let Ok(answer) = ask(port)
            && !answer.is_empty()
        {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    bail!("no answer at port {port} in {ANSWER:?}")
}

fn ask(port: u16) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    // What came before an error is an answer, too: the test says what is wrong with it.
    match stream.read_to_end(&mut answer) {
        Err(error) if answer.is_empty() => Err(error),
        _ => Ok(answer),
    }
}
