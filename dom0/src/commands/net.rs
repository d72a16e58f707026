//! `net`: the networks that dom0 carries.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::Ipv4Addr;

use pvrt::executor::time;
use pvrt::println;

use super::{Outcome, no_more};
use crate::netback::Network;
use crate::shell::print::Printer;

/// Pings that `net ping` sends, and the time between them.
const PINGS: u16 = 4;
const PAUSE_NS: u64 = 1_000_000_000;
/// How often an answer is looked for.
const LOOK_NS: u64 = 1_000_000;

/// `net [bridges | gateway | leases | flows | forwards | ping ADDRESS | forward PORT:GUEST:PORT]`.
pub(super) async fn run(network: &Network, arguments: &[&str]) -> Outcome {
    let lines = match arguments {
        [] | ["bridges"] => network.show_bridges(),
        ["gateway"] => network.show_gateway(),
        ["leases"] => network.show_leases(),
        ["flows"] => network.show_flows(),
        ["forwards"] => network.show_forwards(),
        ["forward", text] => return network.forward(text),
        ["ping", address] => return ping(network, address).await,
        ["ping", ..] => return Err("usage: net ping ADDRESS|GUEST".into()),
        ["forward", ..] => return Err("usage: net forward PORT:GUEST:PORT".into()),
        [word @ ("bridges" | "gateway" | "leases" | "flows" | "forwards"), more @ ..] => {
            return no_more(more).map_err(|error| format!("net {word}: {error}"));
        }
        [word, ..] => {
            return Err(format!(
                "net: no `{word}`: there are bridges, gateway, leases, flows, forwards, forward and ping"
            ));
        }
    };
    show(lines).await;
    Ok(())
}

async fn show(lines: Vec<String>) {
    let mut printer = Printer::default();
    for line in lines {
        printer.line(&line).await;
    }
    printer.end().await;
}

async fn ping(network: &Network, text: &str) -> Outcome {
    let address: Ipv4Addr = match text.parse() {
        Ok(address) => address,
        Err(_) => network
            .address_of(text)
            .ok_or_else(|| format!("{text}: no address, and no guest of that name"))?,
    };
    let mut answered = 0;
    for sequence in 1..=PINGS {
        let sent_ns = time::now_ns();
        if !network.ping(address, sequence) {
            return Err(format!("{address}: there is no way there"));
        }
        let mut came = None;
        while came.is_none() && time::now_ns() < sent_ns + PAUSE_NS {
            time::sleep(LOOK_NS).await;
            came = network.pong(sequence);
        }
        match came {
            Some(at_ns) => {
                answered += 1;
                println!("{address}: answer {sequence} after {} us", at_ns.saturating_sub(sent_ns) / 1000);
                time::sleep_until(sent_ns + PAUSE_NS).await;
            }
            None => println!("{address}: no answer to {sequence}"),
        }
    }
    if answered == 0 { Err(format!("{address}: no answer")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::failure;

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        for (line, want) in [
            ("net ping", "usage: net ping ADDRESS|GUEST"),
            ("net ping a b", "usage: net ping ADDRESS|GUEST"),
            ("net forward", "usage: net forward PORT:GUEST:PORT"),
            ("net forward 8080:web:80 more", "usage: net forward PORT:GUEST:PORT"),
            ("net leases web", "net leases: `web`: nothing is expected here"),
            ("net bridges xenbr0", "net bridges: `xenbr0`: nothing is expected here"),
            (
                "net lease",
                "net: no `lease`: there are bridges, gateway, leases, flows, forwards, forward and ping",
            ),
        ] {
            assert_eq!(failure(line), want, "{line}");
        }
    }
}
