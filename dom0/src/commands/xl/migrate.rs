//! `xl migrate`, `xl migrate-receive` and `xl resume`.

use alloc::format;
use alloc::string::String;
use core::net::{Ipv4Addr, SocketAddrV4};

use pvrt::println;

use super::{Line, json, saved_config};
use crate::commands::{Outcome, Shell};
use crate::netback::{TcpListener, TcpStream};
use crate::shell::print::shown;
use crate::toolstack::{Goals, Round};

/// The port at which a machine takes domains, as with Xen's relocation server.
const PORT: u16 = 8002;
/// A domain may stand still for so many milliseconds, as with QEMU.
const DOWNTIME_MS: u64 = 300;
const MS: u64 = 1_000_000;
const ROUNDS: u32 = 30;
/// Most milliseconds, and most rounds, that a line may ask for.
const MOST_MS: u64 = 60_000;
const MOST_ROUNDS: u32 = 1000;

impl Shell {
    /// `xl migrate [-C CONFIG] [-r ROUNDS] [-t MS] DOMAIN ADDRESS[:PORT]`.
    pub(super) async fn xl_migrate(&self, line: &Line<'_>) -> Outcome {
        let (name, to) = (line.operands[0], line.operands[1]);
        let domain = self.toolstack.find(name)?;
        let to = address(to).ok_or_else(|| format!("`{to}`: expected ADDRESS[:PORT], such as 192.0.2.2"))?;
        let goals = goals(line)?;
        let config = match line.value("C") {
            Some(file) => self.configuration_file(file).await?,
            None => (*domain.config).clone(),
        };
        let text = json::of_domain(&config, &domain.name, &domain.uuid)?;
        // What cannot be read again is said while nothing has been sent.
        saved_config::read(&text).map_err(|why| format!("{name}: its configuration: {why}"))?;
        let stream = TcpStream::connect(&self.network, to).await.map_err(|error| format!("{to}: {error}"))?;
        println!("migration target: {to}");
        let told = |round: &Round| println!("migration sender: {}", row(round));
        let moved = self.toolstack.move_away(&domain, stream, &text, goals, told).await?;
        let (mib, ms) = (moved.bytes >> 20, moved.downtime_ns / MS);
        println!("migration sender: {mib} MiB sent, {ms} ms between suspend and start");
        println!("Migration successful.");
        Ok(())
    }

    /// `xl migrate-receive [-p] [-P PORT]`: takes one domain.
    pub(super) async fn xl_migrate_receive(&self, line: &Line<'_>) -> Outcome {
        let port = match line.value("P") {
            Some(text) => text.parse().ok().filter(|port| *port != 0),
            None => Some(PORT),
        };
        let port = port.ok_or_else(|| line.wrong("PORT is 1 to 65535"))?;
        println!("migration receiver: waiting at port {port}");
        let listener = TcpListener::new(&self.network, port);
        let (stream, peer) = listener.accept().await.map_err(|error| format!("port {port}: {error}"))?;
        println!("migration receiver: {peer} sends");
        let wrong = |why: String| format!("{peer}: {why}");
        let arrival = self.toolstack.arriving(stream).await.map_err(wrong)?;
        let (config, warnings) = match saved_config::read(arrival.config()) {
            Ok(read) => read,
            Err(why) => {
                arrival.refuse(&why).await;
                return Err(wrong(why));
            }
        };
        for warning in warnings {
            println!("warning: {}", shown(&warning));
        }
        let domain = self.toolstack.receive(arrival, config, line.has("p")).await.map_err(wrong)?;
        let state = if line.has("p") { "paused" } else { "running" };
        println!("migration receiver: {} is here, {state}", shown(&domain.name));
        Ok(())
    }

    /// `xl resume DOMAIN`.
    pub(super) fn xl_resume(&self, line: &Line<'_>) -> Outcome {
        self.toolstack.resume(&self.toolstack.find(line.one()?)?)
    }
}

/// `ADDRESS[:PORT]`.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = match text.split_once(':') {
        Some((address, port)) => (address, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, PORT),
    };
    let address: Ipv4Addr = address.parse().ok()?;
    Some(SocketAddrV4::new(address, port))
}

fn goals(line: &Line<'_>) -> Result<Goals, String> {
    let number = |option: &str, least: u64, most: u64, usual: u64| match line.value(option) {
        None => Ok(usual),
        Some(text) => {
            let number = text.parse().ok().filter(|number| (least..=most).contains(number));
            number.ok_or_else(|| line.wrong(&format!("-{option}: `{text}`: expected {least} to {most}")))
        }
    };
    let ms = number("t", 0, MOST_MS, DOWNTIME_MS)?;
    let rounds = number("r", 1, MOST_ROUNDS.into(), ROUNDS.into())?;
    Ok(Goals { downtime_ns: ms * MS, rounds: rounds as u32 })
}

fn row(round: &Round) -> String {
    let &Round { number, pages, bytes, ns, left, faults } = round;
    let (kib, ms) = (bytes >> 10, ns / MS);
    match number {
        0 => format!("suspended: {pages} pages, {kib} KiB in {ms} ms"),
        _ => format!(
            "round {number}: {pages} pages, {kib} KiB in {ms} ms; {left} written meanwhile, {faults} faults"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::failure;
    use super::*;

    #[test]
    fn addresses_have_a_port_or_the_usual_one() {
        let at = |port| Some(SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), port));
        assert_eq!(address("192.0.2.2"), at(8002));
        assert_eq!(address("192.0.2.2:99"), at(99));
        for wrong in ["", "host", "192.0.2.2:", "192.0.2.2:0", "192.0.2.2:70000", "192.0.2:1"] {
            assert_eq!(address(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_line_is_named() {
        for (line, want) in [
            ("xl migrate nobody 192.0.2.2", "no such domain"),
            ("xl migrate-receive -P 0", "PORT is 1 to 65535"),
            ("xl migrate-receive -P x", "PORT is 1 to 65535"),
            ("xl migrate-receive", "there is no way there"),
            ("xl resume nobody", "no such domain"),
        ] {
            let said = failure(line);
            assert!(said.contains(want), "{line}: {said}");
        }
    }

    #[test]
    fn rounds_are_shown() {
        let round = Round { number: 2, pages: 300, bytes: 1 << 20, ns: 25 * MS, left: 7, faults: 5 };
        assert_eq!(row(&round), "round 2: 300 pages, 1024 KiB in 25 ms; 7 written meanwhile, 5 faults");
        assert_eq!(row(&Round { number: 0, ..round }), "suspended: 300 pages, 1024 KiB in 25 ms");
    }
}
