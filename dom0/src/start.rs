//! From the runtime's hand-over to the prompt.
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use pvrt::{BootInfo, executor, println, spawn, time, yield_now};

use crate::blkback;
use crate::blkdev::{self, Disks};
use crate::bundle::Bundle;
use crate::commands::{CaptureFile, Ending, Shell, SideChannels};
use crate::netback::{self, Network};
use crate::netdev::{self, Cards};
use crate::shell::Terminal;
use crate::toolstack::Toolstack;
use crate::xenstore::{self, Quotas, Xenstore, serve_rings};

/// The options of dom0's command line.
const OPTIONS: [&str; 7] = ["capture", "debug-exit", "forward", "input", "keep", "lines", "poll-limit"];

/// Brings the control domain up and runs its shell, for ever.
///
/// The command line may have `debug-exit=PORT`: the port where dom0 reports success or failure to QEMU, `lines=PORT`:
/// the serial port where dom0 reports to `xtask` which lines begin, `input`: to take lines from there after the
/// script, `capture=PORT`: the port where dom0 writes packets as a pcap file, from the start on, `keep`: to show the
/// prompt after a script, `forward=PORT:GUEST:PORT`, as `net forward` takes it, and `poll-limit=TICKS`: to report polls
/// that take longer. Other words are named in a warning.
pub async fn start(boot: BootInfo) {
    let started_ns = time::now_ns();
    let port = |option| boot.option(option).and_then(port_number);
    let ending = Ending { debug_exit: port("debug-exit"), lines: port("lines") };
    if let Some(ticks) = boot.option("poll-limit").and_then(|text| text.parse().ok()) {
        executor::set_poll_limit(ticks);
    }
    println!("microhv dom0: {} MiB", boot.nr_pages / 256);
    for word in unknown_words(boot.command_line) {
        println!("warning: dom0's command line: {word} is ignored: no such option");
    }
    let side_channels = SideChannels::read().await;
    let bundle = match boot.ramdisk.map(Bundle::parse) {
        Some(Ok(bundle)) => bundle,
        Some(Err(error)) => {
            println!("boot bundle: {error}");
            Bundle::default()
        }
        None => Bundle::default(),
    };
    xenstore::set_hash_seed(time::tsc());
    let store = Xenstore::new(Quotas::XEN);
    spawn(serve_rings(store.clone()));
    spawn(store.clone().settle());
    let disks = Arc::new(Disks::new());
    blkdev::probe(&disks).await;
    let cards = Cards::new();
    netdev::probe(&cards);
    spawn(blkback::run(store.clone(), disks.clone()));
    let network = Arc::new(Network::new());
    network.set_up(cards.list());
    for word in boot.command_line.split_ascii_whitespace() {
        if let Some(forward) = word.strip_prefix("forward=")
            && let Err(error) = network.forward(forward)
        {
            println!("forward={error}");
        }
    }
    spawn(netback::run(store.clone(), network.clone()));
    let terminal = Terminal::new();
    spawn(terminal.clone().serve());
    let toolstack =
        Toolstack::new(store.clone(), disks.clone(), network.clone(), bundle.clone(), terminal.clone());
    spawn(toolstack.clone().serve());
    spawn(toolstack.clone().watch_budgets());
    // The services' tasks start before the first line runs.
    for _ in 0..4 {
        yield_now().await;
    }
    let capture = CaptureFile::new(port("capture"));
    if port("capture").is_some()
        && let Err(error) = capture.start(&network, &[])
    {
        println!("capture: {error}");
    }
    let shell = Shell {
        bundle,
        store,
        disks,
        network,
        capture,
        terminal,
        toolstack,
        started_ns,
        side_channels,
        ending,
    };
    let input = boot.option("input").and(ending.lines);
    shell.run(boot.option("keep").is_some(), input).await;
}

/// The words of `line` that are no option of dom0's.
fn unknown_words(line: &str) -> impl Iterator<Item = &str> {
    let key = |word: &str| word.split('=').next().is_some_and(|key| OPTIONS.contains(&key));
    line.split_ascii_whitespace().filter(move |word| !key(word))
}

fn port_number(text: &str) -> Option<u16> {
    match text.strip_prefix("0x") {
        Some(hex) => u16::from_str_radix(hex, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::unknown_words;

    #[test]
    fn words_that_are_no_option_are_found() {
        let line = "debug-exit=0xf4 lines=0x2f8 keeep keep forward=80:web:80 inputs=1 =";
        assert_eq!(unknown_words(line).collect::<Vec<_>>(), ["keeep", "inputs=1", "="]);
        assert_eq!(unknown_words("").count(), 0);
    }
}
