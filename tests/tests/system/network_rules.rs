//! What keeps guests apart on the switch, with two guests that talk to each other and the administrator between them.

use anyhow::{Context, Result};
use tests::Machine;
use xtask::qemu::ICOUNT;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![network_rules:
        bridges_and_vlans_are_apart, nobody_speaks_as_another, rules_hold, a_rate_is_kept, packets_are_captured,
    ])
}

/// A guest that answers: `name`, its last byte of both addresses, and more of its interface.
fn listens(name: &str, byte: u8, vif: &str) -> String {
    format!(
        "xl create /boot/talk.cfg name='{name}' vif=['mac=00:16:3e:00:00:{byte:02x}{vif}'] extra='ip=10.9.0.{byte}'"
    )
}

/// A guest that says something to the guest of that byte, and ends. Its interface's other words, too.
fn says(name: &str, byte: u8, vif: &str, to: u8, words: &str) -> String {
    let peer = format!("00:16:3e:00:00:{to:02x}/10.9.0.{to}");
    format!(
        "xl create -c /boot/talk.cfg name='{name}' vif=['mac=00:16:3e:00:00:{byte:02x}{vif}'] extra='ip=10.9.0.{byte} \
         peer={peer} say={words}'"
    )
}

/// What the console says from `from` on, to the end of that guest's talk.
fn part<'a>(console: &'a str, from: &str) -> Result<&'a str> {
    let begin = console.find(from).with_context(|| format!("no {from:?}"))?;
    let rest = &console[begin..];
    Ok(&rest[..rest.find("talk: done").unwrap_or(rest.len())])
}

fn bridges_and_vlans_are_apart() -> Result<()> {
    let run = Machine::new("network-apart")
        .line("net bridge add lan")
        .line(&listens("here", 2, ""))
        .line(&listens("there", 3, ",bridge=lan"))
        .line(&listens("ten", 4, ",bridge=xenbr0.10"))
        .line("sleep 1")
        .line(&says("first", 1, "", 2, "ask:21"))
        .line(&says("second", 1, "", 3, "ask:22"))
        .line(&says("third", 1, "", 4, "ask:23"))
        .line(&says("fourth", 1, ",vlan=10", 4, "ask:24"))
        .line(&says("fifth", 1, ",bridge=lan", 3, "ask:25"))
        .line("net")
        .run()?
        .succeeded()?
        .says("talk: ask 21: answered")?
        .says("talk: ask 22: no answer")?
        .says("talk: ask 23: no answer")?
        .says("talk: ask 24: answered")?
        .says("talk: ask 25: answered")?;
    let heard = |port: u16| run.console().contains(&format!("10.9.0.1 asks {port}"));
    // What is there to be heard is heard: else the listeners' consoles would say nothing at all.
    run.require(heard(21) && heard(24) && heard(25), "the listeners tell of what comes")?;
    run.require(!heard(22) && !heard(23), "nothing came through")
}

fn nobody_speaks_as_another() -> Result<()> {
    let run = Machine::new("network-spoofed")
        .line(&listens("b", 2, ""))
        .line("sleep 1")
        // The first three frames are lies, and the last is the guest's own. It stays long enough to be looked at.
        .line(&says("a", 1, ",ip=10.9.0.1", 2, "mac,ip,arp,ask:31,wait:4000").replace("create -c", "create"))
        .line("sleep 3")
        .line("net")
        .line("xl console --log a")
        .run()?
        .succeeded()?
        .says("dropped, spoofed MAC: 1; dropped, spoofed IP: 1; dropped, spoofed ARP: 1")?
        .says("talk: ask 31: answered")?;
    let heard = |port: &str| run.console().contains(&format!("asks {port}"));
    run.require(heard("31"), "the listener tells of what comes")?;
    run.require(!heard("7"), "a lie was heard")
}

/// Rules of the configuration hold for what begins, and let answers pass; rules that come later hold for what goes on.
fn rules_hold() -> Result<()> {
    let asks = ["ask:41"; 40].join(",wait:150,");
    let run = Machine::new("network-rules")
        .line(&listens("b", 2, ",rule=in accept udp port 40-41,rule=in drop"))
        .line("sleep 1")
        .line(&says("a", 1, ",rule=in drop", 2, "ask:40,ask:50,wait:10"))
        .line(&says("c", 3, "", 2, &asks).replace("create -c", "create"))
        .line("sleep 1")
        .line("net rule add b 1 in drop udp from 10.9.0.3")
        .line("net rules")
        .line("sleep 3")
        .line("net rule remove b 1")
        .line("wait c")
        .line("xl console --log c")
        .line("net")
        .run()?
        .succeeded()?
        .says("talk: ask 40: answered")?
        .says("talk: ask 50: no answer")?
        .says("1  in drop udp from 10.9.0.3")?
        .says("; 2 rules; dropped, rule, in:")?;
    let log = part(run.console(), "xl console --log c")?;
    let said: Vec<bool> =
        log.lines().filter(|line| line.contains("ask 41")).map(|line| line.contains("answered")).collect();
    let (first, last) = (said.iter().position(|said| !said), said.iter().rposition(|said| !said));
    let (first, last) = (first.context("the rule did not hold")?, last.context("the rule did not hold")?);
    run.require(
        first > 0 && last + 1 < said.len() && last > first && said[first..=last].iter().all(|said| !said),
        "a conversation ends when a rule comes, and goes on when the rule is gone",
    )
}

/// Under an emulator that counts instructions, so that the host's own speed does not count.
fn a_rate_is_kept() -> Result<()> {
    const BYTES_A_SECOND: u64 = 1_000_000;
    let run = Machine::new("network-rate")
        .with(|machine| machine.qemu_arguments.extend(ICOUNT.map(str::to_string)))
        .line(&listens("b", 2, ""))
        .line("sleep 1")
        .line(&says("a", 1, ",rate=8Mb/s", 2, "flood:8000000"))
        .run()?
        .succeeded()?;
    let said = run.console().split("talk: flood: ").nth(1).context("no flood")?;
    let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).take(2).collect();
    let [bytes, us] = numbers[..] else { anyhow::bail!("no numbers") };
    let percent = bytes * 1_000_000 / us * 100 / BYTES_A_SECOND;
    run.require(
        (95..=105).contains(&percent),
        &format!("{bytes} bytes in {us} us are {percent} % of the rate"),
    )
}

/// The file holds what was said, and tshark reads the file where there is one.
fn packets_are_captured() -> Result<()> {
    let file = xtask::paths::target().join("tmp").join("network-capture.pcap");
    let run = Machine::new("network-capture")
        .with(|machine| machine.capture = Some(file.clone()))
        .line(&listens("b", 2, ""))
        .line("sleep 1")
        .line(&says("a", 1, "", 2, "ask:51"))
        .line("net capture stop")
        .line(&says("a", 1, "", 2, "ask:52"))
        .line("net capture start b")
        .line(&says("a", 1, "", 2, "ask:53"))
        .line("net capture")
        .run()?
        .succeeded()?
        .says("captured at all ports: ")?
        .says("captured so far at vif1.0: 2 packets, none missed")?;
    let bytes = std::fs::read(&file).context("the capture")?;
    let ports: Vec<[u16; 2]> = datagrams(&bytes)?;
    let said = |port| ports.contains(&[4000, port]) && ports.contains(&[port, 4000]);
    run.require(said(51) && !said(52) && said(53), &format!("captured: {ports:?}"))?;
    match std::process::Command::new("tshark").arg("-r").arg(&file).output() {
        Ok(output) => run.require(
            output.status.success() && String::from_utf8_lossy(&output.stdout).contains("4000 → 53"),
            "tshark does not read the file",
        ),
        // Not every host has one.
        Err(_) => Ok(()),
    }
}

/// The ports of all datagrams of a file of packets.
fn datagrams(mut bytes: &[u8]) -> Result<Vec<[u16; 2]>> {
    const HEADER: [u8; 8] = [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0];
    bytes = bytes.strip_prefix(&HEADER[..]).context("no file of packets")?.get(16..).context("no header")?;
    let mut ports = Vec::new();
    while !bytes.is_empty() {
        let len = bytes.get(8..12).and_then(|len| len.first_chunk()).context("half a record")?;
        let len = u32::from_le_bytes(*len) as usize;
        let frame = bytes.get(16..16 + len).context("half a packet")?;
        bytes = &bytes[16 + len..];
        if frame.len() >= 38 && frame[12..14] == [8, 0] && frame[23] == 17 {
            ports.push([34, 36].map(|at| u16::from_be_bytes([frame[at], frame[at + 1]])));
        }
    }
    Ok(ports)
}
