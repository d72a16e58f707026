//! No task of dom0 keeps the others waiting: each poll is counted in instructions.

use anyhow::Result;
use tests::{Machine, Scratch};

use crate::{Case, cases};

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    cases![polls: no_poll_takes_a_millisecond].into()
}

/// Instructions that a poll may take: 1 ms at one a nanosecond, which is what QEMU's TSC counts here.
const LIMIT: u32 = 1_000_000;

/// Tasks of which a poll takes longer, by where they are spawned, and why. To be empty.
const ALLOWED: &[(&str, &str)] =
    &[("dom0/src/commands/xl.rs", "1.09 million once, when the first domain is made: not yet known where")];

/// The usual life of domains: with a disk that is read and written, with storms of the store, restarted, destroyed.
fn no_poll_takes_a_millisecond() -> Result<()> {
    let scratch = Scratch::new("polls")?;
    let disk = scratch.disk("d.img", 4 * MIB, 9)?;
    let run = Machine::new("polls")
        .seconds(600)
        .disk(&disk)
        .with(|machine| {
            machine.qemu_arguments.extend(xtask::qemu::ICOUNT.map(String::from));
            machine.dom0_arguments = format!("poll-limit={LIMIT}");
        })
        .line("xl create -c /boot/hello.cfg disk=['phy:/dev/vda,xvda,w']")
        .line("xl create /boot/bench.cfg name=\"server\" extra=\"echo=2\"")
        .line("xl create -c /boot/bench.cfg vcpus=2 extra=\"partner=2 ops=64\"")
        .line("xl destroy server")
        .line("xl create -c /boot/hello.cfg memory=128")
        .line("xenstore-ls")
        .line("xl info")
        .run()?
        .succeeded()?;
    let long: Vec<&str> = run
        .console()
        .lines()
        .filter(|line| line.contains("pvrt::executor: poll: "))
        .filter(|line| !ALLOWED.iter().any(|(origin, _)| line.contains(origin)))
        .collect();
    run.require(long.is_empty(), &format!("polls that take too long:\n{}", long.join("\n")))
}
