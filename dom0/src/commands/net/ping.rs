//! `net ping`.

use alloc::format;
use core::net::Ipv4Addr;

use pvrt::executor::time;
use pvrt::println;

use crate::commands::Outcome;
use crate::netback::Network;

/// Pings that `net ping` sends, and the time between them.
const PINGS: u16 = 4;
const PAUSE_NS: u64 = 1_000_000_000;
/// How often an answer is looked for.
const LOOK_NS: u64 = 1_000_000;

/// Asks an address, or a guest by name, and fails if no answer comes.
pub(super) async fn run(network: &Network, text: &str) -> Outcome {
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
                if sequence < PINGS {
                    time::sleep_until(sent_ns + PAUSE_NS).await;
                }
            }
            None => println!("{address}: no answer to {sequence}"),
        }
    }
    println!("{address}: {answered} of {PINGS} answered");
    if answered == 0 { Err(format!("{address}: no answer")) } else { Ok(()) }
}
