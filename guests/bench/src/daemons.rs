//! Times the control domain's daemons: xenstore's and the console's.

use frontends::xenbus::{Nodes, Xenstore};
use pvrt::{console, time};

use crate::measure::{Bench, Clock, WARM_UP, report};

/// A console daemon may read the ring only some 30 times in 200 ms.
const LINES: u64 = 16;
const PAUSE_NS: u64 = 500_000_000;
/// A line of 64 bytes.
const LINE: &[u8; 64] = b"bench line ....................................................\n";

/// Times a read of a short node, and a line on the console until the daemon has taken the line.
pub(crate) async fn run(bench: &Bench, store: &Xenstore) {
    if let Some(count) = bench.count("xenstore_read", u64::MAX) {
        let mut failed = None;
        for _ in 0..WARM_UP {
            failed = failed.or(store.read("domid").await.err());
        }
        let clock = Clock::start();
        for _ in 0..count {
            failed = failed.or(store.read("domid").await.err());
        }
        let ticks = clock.stop();
        match failed {
            None => report("xenstore_read", ticks, count),
            Some(error) => bench.skip("xenstore_read", error),
        }
    }
    if let Some(count) = bench.count("console_line", LINES) {
        console::drain();
        time::sleep(PAUSE_NS).await;
        let line = || {
            console::write(LINE);
            console::drain();
        };
        line();
        let clock = Clock::start();
        for _ in 0..count {
            line();
        }
        report("console_line", clock.stop(), count);
    }
}
