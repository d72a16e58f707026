//! Long packets of Debian's leave by a network card that reads them in the guest's own pages: QEMU's tap interface does what a
//! sender left to others, which QEMU's user network does not.

use anyhow::{Context, Result, ensure};
use tests::Scratch;
use tests::linux::{command, network_machine, no_complaints, program};
use xtask::network::Net;
use xtask::tap::Tap;

use crate::Case;
use crate::linux_network::{CHECK, Server, WAIT};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_tap: a_card_reads_long_packets_in_the_guests_pages]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// The host's address on the tap interface, and the guest's.
const HOST: &str = "10.97.0.1";
const GUEST: &str = "10.97.0.2";

fn a_card_reads_long_packets_in_the_guests_pages() -> Result<()> {
    let tap = match Tap::make(&format!("{HOST}/24"), None) {
        Ok(tap) => tap,
        Err(error) => {
            eprintln!("SKIPPED a_card_reads_long_packets_in_the_guests_pages: {error:#}");
            return Ok(());
        }
    };
    let scratch = Scratch::new("debian-tap")?;
    let stream = program(&scratch, "stream")?;
    let host = Server::start(&scratch.path("stream"))?;
    let files = [("tap.sh", include_bytes!("linux_network/tap.sh").as_slice()), ("stream", &stream)];
    let machine = network_machine("debian-tap", &scratch, &files)?;
    let net = Net::Tap(tap.name.clone());
    let mut machine = machine.with(|machine| machine.net = net).seconds(1800).start()?;
    machine.expect("dom0# ", WAIT)?;
    let create = format!(
        "xl create /boot/debian-ramdisk.cfg name='d' vif=['bridge=eth0'] \
         extra='quiet run=\"sh /tap.sh {GUEST} {HOST} {}\"'",
        host.port
    );
    command(&mut machine, &create, WAIT)?;
    let before = sent(&command(&mut machine, "net", WAIT)?)?;
    loop {
        machine.expect(") network: ", CHECK)?;
        let line = machine.expect("\n", 20)?.trim_end().to_string();
        println!("{line}");
        if line.starts_with("all is well") {
            break;
        }
        ensure!(!line.starts_with("FAILED"), "{line}");
    }
    let net = command(&mut machine, "net", WAIT)?;
    println!("{net}");
    let after = sent(&net)?;
    // 100 MiB went to the host with the segments left to the card, and as many without.
    let lent = after.lent - before.lent;
    ensure!(lent > (100 << 20) / (64 << 10), "{lent} packets were lent: {net}");
    ensure!(after.copied - before.copied > (100 << 20) / 1500 / 2, "short packets are copied: {net}");
    // dom0's own are few: of a guest's packet whose segments dom0 makes there would be forty times as many.
    ensure!(after.made - before.made < 100, "the card does what guests leave to others: {net}");
    command(&mut machine, "xl destroy d", WAIT)?;
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}

/// How a card has sent packets of guests.
struct Sent {
    lent: u64,
    copied: u64,
    made: u64,
}

/// Reads what `net` says of the first card.
fn sent(net: &str) -> Result<Sent> {
    let said = net.lines().find_map(|line| line.split_once("eth0.card").map(|(_, said)| said));
    let said = said.with_context(|| format!("a card: {net}"))?;
    let number = |before: &str| -> Result<u64> {
        let words = said.split_once(before).with_context(|| format!("`{before}` of the card: {net}"))?.0;
        let word = words.split_whitespace().next_back().context("a number")?;
        word.parse().with_context(|| format!("`{word}`: {net}"))
    };
    Ok(Sent { lent: number(" lent")?, copied: number(" copied")?, made: number(" made by dom0")? })
}
