//! Packets between two Rust guests (`guests/netload`), in instructions for each packet, by whose they are.
//!
//! The guests and dom0 are linked at addresses of their own, so that the blocks which the counting plugin lists tell them
//! apart. On Debian's Xen the same guests run, and all kernel code that is not theirs is the control domain's.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result};
use object::{Object, ObjectSection, SectionKind};

use super::super::{BenchOptions, On, counting_machine, run};
use crate::image_check;
use crate::images;
use crate::network::Net;
use crate::plugin::{self, Block};
use crate::qemu::RunDirectory;
use crate::tap::Tap;
use crate::xen;

/// The marks between which packets count.
const MARKS: (u16, u16) = (220, 221);
/// The guests: the one that counts, and the other end.
const GUESTS: [&str; 2] = ["netload", "netload-peer"];
/// The guests' Ethernet addresses, as the configurations have them, and the gateway's.
const MACS: [&str; 2] = ["00:16:3e:7f:00:01", "00:16:3e:7f:00:02"];
const GATEWAY: &str = "02:16:3e:00:00:01";

/// Where Xen's machine is certainly stuck: with the plugin on a loaded host, 300 s were too short for its control domain.
const LIMIT: Duration = Duration::from_secs(900);

/// What stands behind a network card of the tap kind: the host, with an address that `netload` makes of its Ethernet address.
const HOST: (&str, &str) = ("02:16:3e:7f:00:09", "10.88.0.9/24");

/// Where a load goes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    /// To another guest.
    Peer,
    /// To dom0.
    Gateway,
    /// To the host, by a card on a tap interface.
    Card,
}

/// A load.
struct Case {
    name: &'static str,
    title: &'static str,
    /// The counting guest's words.
    words: &'static str,
    to: To,
    /// Packets that count.
    count: u64,
    /// Most instructions of the hypervisor and dom0 for a packet.
    aim: Option<u64>,
}

const fn case(name: &'static str, title: &'static str, words: &'static str, aim: Option<u64>) -> Case {
    Case { name, title, words, to: To::Peer, count: 20_000, aim }
}

const CASES: &[Case] = &[
    case("64", "64 bytes", "role=sink size=64", Some(900)),
    case("1500", "1,500 bytes", "role=sink size=1514", Some(1_100)),
    Case {
        count: 2_000,
        ..case("64k", "64 KiB to be cut", "role=sink size=65535 segment=1448 warm=200", Some(12_000))
    },
    case("64-both", "64 bytes, both ways", "role=both size=64", Some(900)),
    case("1500-both", "1,500 bytes, both ways", "role=both size=1514", Some(1_100)),
    case("64-unlent", "64 bytes, no page lent", "role=sink size=64 lend=no", None),
    case("1500-unlent", "1,500 bytes, no page lent", "role=sink size=1514 lend=no", None),
    Case {
        count: 2_000,
        ..case(
            "64k-unlent",
            "64 KiB, no page lent",
            "role=sink size=65535 segment=1448 warm=200 lend=no",
            None,
        )
    },
    Case { to: To::Gateway, ..case("64-gateway", "64 bytes to dom0", "role=pour size=64", None) },
    Case { to: To::Gateway, ..case("1500-gateway", "1,500 bytes to dom0", "role=pour size=1514", None) },
    to_card("64-card", "64 bytes to a card", "role=pour size=64"),
    to_card("1500-card", "1,500 bytes to a card", "role=pour size=1514"),
    to_card("2900-card", "2,900 bytes to be cut, to a card", "role=pour size=2900 segment=1400"),
    to_card("4000-card", "4,000 bytes to be cut, to a card", "role=pour size=4000 segment=1400"),
    to_card("4200-card", "4,200 bytes to be cut, to a card", "role=pour size=4200 segment=1400"),
    to_card("8000-card", "8,000 bytes to be cut, to a card", "role=pour size=8000 segment=1400"),
    to_card("64k-card", "64 KiB to be cut, to a card", "role=pour size=65535 segment=1400"),
];

/// A load that leaves the machine: only where the host lets the user make a tap interface.
const fn to_card(name: &'static str, title: &'static str, words: &'static str) -> Case {
    Case { to: To::Card, count: 4_000, ..case(name, title, words, None) }
}

/// The names of all cases.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    CASES.iter().map(|case| case.name)
}

/// Prints the table, and adds the figures to `figures`; `false`: a case gave none.
///
/// # Errors
/// A machine did not run to its end.
pub(super) fn bench(options: &BenchOptions, figures: &mut Vec<serde_json::Value>) -> Result<bool> {
    let systems = match options.on {
        None | Some(On::Microhv) => vec![On::Microhv],
        Some(On::Xen) => vec![On::Xen],
        Some(On::Both) => vec![On::Microhv, On::Xen],
        Some(other) => {
            return Err(crate::usage(format!("--on {}: packets go on microhv, xen or both", other.name())));
        }
    };
    println!(
        "| load | system | hypervisor | dom0 | both | aim | sender | receiver | hypercalls: dom0, sender, receiver | \
         events sent |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    let mut complete = true;
    let wanted = CASES.iter().filter(|case| super::is_wanted(options, case.name));
    let tap = if wanted.clone().any(|case| case.to == To::Card) {
        Tap::make(HOST.1, Some(HOST.0)).inspect_err(|error| eprintln!("no loads to a card: {error:#}")).ok()
    } else {
        None
    };
    for case in wanted.filter(|case| case.to != To::Card || tap.is_some()) {
        for &system in &systems {
            if system == On::Xen && case.to != To::Peer {
                continue; // the gateway and the card are dom0's of microhv
            }
            let (blocks, console) = measure(case, system, tap.as_ref())?;
            let counted = packets(&console);
            complete &= counted.is_some();
            let Some(packets) = counted else {
                println!("| {} | {} | no figures |", case.title, system.name());
                eprintln!("{}", console.trim_end());
                continue;
            };
            let functions = Functions::load(system)?;
            let sum = functions.sum(&blocks);
            row(case, system, &sum, packets);
            figures.push(json(case, system, &sum, packets));
            if options.hot {
                functions.print(&blocks, packets);
            }
        }
    }
    Ok(complete)
}

/// Runs a load; the blocks that ran while packets counted, and the console.
fn measure(case: &Case, system: On, tap: Option<&Tap>) -> Result<(Vec<Block>, String)> {
    let directory = RunDirectory::new()?;
    let counts = directory.file("counts");
    let arguments = plugin::arguments(&counts, Some(MARKS))?;
    let to = match case.to {
        To::Peer => MACS[1],
        To::Gateway => GATEWAY,
        To::Card => HOST.0,
    };
    let words = format!("to={to} count={} {}", case.count, case.words);
    let peer_words = format!("to={} role=send {}", MACS[0], of_packet(case.words));
    let console = if system == On::Xen {
        let domain = |index: usize, extra: &str| -> Result<xen::Domain> {
            Ok(xen::Domain {
                name: GUESTS[index].into(),
                kernel: images::find(GUESTS[index])?.bootable(),
                ramdisk: None,
                memory_mib: 24,
                extra: extra.into(),
                lines: vec![format!("vif=['mac={},bridge=xenbr0']", MACS[index])],
            })
        };
        let host = xen::Options {
            icount: true,
            qemu_arguments: arguments,
            timeout: LIMIT,
            ..xen::Options::default()
        };
        let domains = [domain(1, &peer_words)?, domain(0, &words)?];
        let (ran, _) = xen::prepare()?.run_domains(&domains, LIMIT, &host)?;
        ran.into_iter().map(|domain| domain.console).collect()
    } else {
        let mut machine = counting_machine();
        machine.memory_mib = xen::Options::default().memory_mib;
        machine.qemu_arguments.extend(arguments);
        let mut bridge = "";
        if let Some(tap) = tap.filter(|_| case.to == To::Card) {
            machine.net = Net::Tap(tap.name.clone());
            bridge = " vif=['mac=00:16:3e:7f:00:01,bridge=eth0']";
        }
        let create = |name: &str, flags: &str, words: &str| {
            format!("xl create {flags}/boot/{name}.cfg{bridge} extra=\"{words}\"")
        };
        let mut lines = Vec::new();
        if case.to == To::Peer {
            lines.push(create(GUESTS[1], "", &peer_words));
        }
        lines.push(create(GUESTS[0], "-c ", &words));
        if case.to == To::Peer {
            lines.push(format!("wait {}", GUESTS[1]));
        }
        lines.push("net".into());
        machine.script = Some(lines);
        run(&machine)?
    };
    Ok((plugin::blocks(&std::fs::read_to_string(&counts)?), console))
}

/// The words of a load that hold for both ends.
fn of_packet(words: &str) -> String {
    let is_of_both = |word: &&str| ["size=", "segment=", "lend="].iter().any(|key| word.starts_with(key));
    words.split(' ').filter(is_of_both).collect::<Vec<_>>().join(" ")
}

/// How many packets went both ways while they counted, by the line `netload: counted N received N sent N` of the counting
/// guest. `None`: there is no such line, or packets were damaged.
fn packets(console: &str) -> Option<u64> {
    let number = |line: &str, before: &str| -> Option<u64> {
        line.split_once(before)?.1.split_whitespace().next()?.parse().ok()
    };
    let line = console.lines().find(|line| line.contains("netload: counted "))?;
    let sound = console.lines().any(|line| line.contains("netload: in all ") && line.contains(" 0 damaged"));
    let packets = number(line, " received ")? + number(line, " sent ")?;
    (sound && packets > 0).then_some(packets)
}

/// Instructions and events by whose they are.
#[derive(Debug, Default)]
struct Sum {
    hypervisor: u64,
    dom0: u64,
    guests: [u64; 2],
    /// Of dom0 and the guests.
    hypercalls: [u64; 3],
    /// Events sent by anyone.
    events: u64,
}

fn row(case: &Case, system: On, sum: &Sum, packets: u64) {
    let each = |count: u64| count.div_ceil(packets);
    let part = |count: u64| format!("{:.3}", count as f64 / packets as f64);
    let aim = case.aim.map_or("-".into(), |aim| aim.to_string());
    let (both, [own, peer]) = (sum.hypervisor + sum.dom0, sum.guests);
    // The counting guest is the receiver, unless it is alone.
    let (sender, receiver) = if case.to == To::Peer { (peer, own) } else { (own, peer) };
    let [by_dom0, by_own, by_peer] = sum.hypercalls;
    let calls = if case.to == To::Peer { [by_dom0, by_peer, by_own] } else { [by_dom0, by_own, by_peer] };
    let on_xen = system == On::Xen;
    let calls = if on_xen { "-".into() } else { calls.map(part).join(", ") };
    let events = if on_xen { "-".into() } else { part(sum.events) };
    println!(
        "| {} | {} | {} | {} | {} | {aim} | {} | {} | {calls} | {events} |",
        case.title,
        system.name(),
        each(sum.hypervisor),
        each(sum.dom0),
        each(both),
        each(sender),
        each(receiver)
    );
}

/// The sums, of all packets that counted. The counting guest is the first of the two.
fn json(case: &Case, system: On, sum: &Sum, packets: u64) -> serde_json::Value {
    let Sum { hypervisor, dom0, guests, hypercalls, events } = sum;
    let mut value = serde_json::json!({
        "load": case.name, "system": system.name(), "packets": packets, "hypervisor": hypervisor, "dom0": dom0, "guests": guests,
    });
    if system != On::Xen {
        (value["hypercalls"], value["events"]) = (serde_json::json!(hypercalls), (*events).into());
    }
    value
}

/// One image's code.
struct Code {
    name: &'static str,
    addresses: Range<u64>,
    functions: Vec<(u64, String)>,
    /// Where the image goes on after a hypercall.
    after_calls: BTreeSet<u64>,
}

/// Whose code is where.
struct Functions {
    images: Vec<Code>,
}

/// The function that sends an event to another domain.
const SENDS: &str = "::send_locked";

impl Functions {
    fn load(system: On) -> Result<Self> {
        let ours = ["microhv", "dom0"].into_iter().filter(|_| system != On::Xen);
        let images = ours.chain(GUESTS).map(Code::load).collect::<Result<_>>()?;
        Ok(Self { images })
    }

    fn of(&self, block: &Block) -> Option<&Code> {
        self.images.iter().find(|image| image.addresses.contains(&block.address))
    }

    fn sum(&self, blocks: &[Block]) -> Sum {
        let mut sum = Sum::default();
        for block in blocks {
            let (count, code) = (block.runs * block.instructions, self.of(block));
            let index = match code.map(|code| code.name) {
                Some("netload") => Some(1),
                Some("netload-peer") => Some(2),
                _ if block.address < KERNELS => None,
                _ => Some(0),
            };
            match index {
                Some(0) => sum.dom0 += count,
                Some(guest) => sum.guests[guest - 1] += count,
                None => sum.hypervisor += count,
            }
            let Some(code) = code else { continue };
            if let Some(index) = index {
                sum.hypercalls[index] +=
                    if code.after_calls.contains(&block.address) { block.runs } else { 0 };
            } else if code
                .function(block.address)
                .is_some_and(|(start, name)| start == block.address && name.contains(SENDS))
            {
                sum.events += block.runs;
            }
        }
        sum
    }

    /// Prints the instructions for each packet by function, most first, and how often the function was called.
    fn print(&self, blocks: &[Block], packets: u64) {
        let mut by_function = BTreeMap::new();
        for block in blocks {
            let code = self.of(block);
            let (name, is_start) = match code.and_then(|code| code.function(block.address)) {
                Some((start, name)) => (name, start == block.address),
                None => ("", false),
            };
            let entry = by_function.entry((code.map_or("other", |code| code.name), name)).or_insert((0, 0));
            entry.0 += block.runs * block.instructions;
            entry.1 += if is_start { block.runs } else { 0 };
        }
        let mut sorted: Vec<_> = by_function.into_iter().collect();
        sorted.sort_by_key(|(_, (instructions, _))| std::cmp::Reverse(*instructions));
        println!("instructions for each packet, by function, and how often the function was called:");
        for ((image, name), (instructions, calls)) in sorted {
            let each = |count: u64| count as f64 / packets as f64;
            if each(instructions) >= 0.5 {
                println!("{:9.1} {:8.3} {image}: {name}", each(instructions), each(calls));
            }
        }
    }
}

/// Where kernels begin, and the hypervisor's addresses end.
const KERNELS: u64 = 0xffff_8800_0000_0000;

impl Code {
    fn load(name: &'static str) -> Result<Self> {
        let bytes = std::fs::read(images::find(name)?.linked())?;
        let file = object::File::parse(&*bytes)?;
        let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
        // The hypervisor has code for its start elsewhere.
        let text = code.max_by_key(|section| section.size()).context("no code")?;
        let (start, bytes) = (text.address(), text.data()?);
        let calls = bytes.windows(2).zip(start..).filter(|(bytes, _)| *bytes == [0x0f, 0x05]);
        let mut functions = image_check::names(&file);
        functions.retain(|(_, name)| !name.is_empty());
        Ok(Self {
            name,
            addresses: start..start + text.size(),
            functions,
            after_calls: calls.map(|(_, address)| address + 2).collect(),
        })
    }

    /// The function that an address is in, with the function's own address.
    fn function(&self, address: u64) -> Option<(u64, &str)> {
        let above = self.functions.partition_point(|(start, _)| *start <= address);
        above.checked_sub(1).map(|index| (self.functions[index].0, &*self.functions[index].1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_taken_from_the_guests_line() {
        let counted = "(d2 netload) netload: counted 9 received 9 sent 1 in 5 ns, 2 notifications, 3 waits\n";
        let sound = "netload: in all 11 received, 0 lost, 0 late, 0 damaged\n";
        assert_eq!(packets(&format!("x\n{counted}{sound}")), Some(10));
        assert_eq!(packets(counted), None);
        assert_eq!(packets(&format!("{counted}{}", sound.replace("0 damaged", "1 damaged"))), None);
        assert_eq!(packets(sound), None);
    }

    #[test]
    fn both_ends_have_the_same_packets() {
        assert_eq!(of_packet("role=sink size=64"), "size=64");
        assert_eq!(of_packet("role=both size=65535 segment=1448 warm=9"), "size=65535 segment=1448");
        assert_eq!(of_packet("role=sink size=64 lend=no"), "size=64 lend=no");
    }

    #[test]
    fn the_guests_have_the_addresses_of_their_configurations() {
        for (guest, mac) in GUESTS.into_iter().zip(MACS) {
            let path = crate::paths::root().join(format!("guests/netload/{guest}.cfg"));
            let text = std::fs::read_to_string(path).expect("a configuration");
            assert!(text.contains(&format!("mac={mac},bridge=xenbr0")), "{guest}");
        }
    }
}
