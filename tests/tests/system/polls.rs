//! No task of dom0 keeps the others waiting: each poll is counted in instructions.

use anyhow::Result;
use tests::{Machine, Run, Scratch};

use crate::{Case, cases};

const MIB: usize = 1024 * 1024;

pub(crate) fn cases() -> Vec<Case> {
    cases![
        polls: no_poll_takes_a_millisecond,
        no_file_and_no_line_takes_a_millisecond,
        no_request_of_the_store_takes_a_millisecond,
    ]
    .into()
}

/// Instructions that a poll may take: 1 ms at one a nanosecond, which is what QEMU's TSC counts here.
const LIMIT: u32 = 1_000_000;

/// Configurations as long as they may be, longer ones, and lines that are done at once, many times.
fn no_file_and_no_line_takes_a_millisecond() -> Result<()> {
    const LENGTH: usize = 64 << 10;
    let scratch = Scratch::new("polls-files")?;
    let entries = |entry: &str, count: usize| format!("a=[{}]\n", entry.repeat(count));
    let fill = |mut text: String| {
        let rest = LENGTH - text.len();
        text.push_str(&"#".repeat(rest.min(1)));
        text.push_str(&"x".repeat(rest.saturating_sub(1)));
        text
    };
    let keys = (0..510).fold("name='n'\nkernel='k'\n".to_string(), |all, at| format!("{all}k{at}=1\n"));
    let files = [
        ("long", "a=[1,1]\n#".to_string() + &"x".repeat(2 << 20)),
        ("values", entries("1,", 600)),
        ("lists", fill(entries("[[[[[[1]]]]]],", 72))),
        ("lines", "\n".repeat(LENGTH)),
        ("same", fill("a=1\n".repeat(512))),
        ("keys", fill(keys)),
        (
            "texts",
            fill(format!("name='n'\nkernel='k'\ndisk=[{}]", "'a,raw,xvda,w,=,,,,,,,,,,,,,,,',".repeat(1000))),
        ),
        ("text", format!("name='{}'\n", "\\x1b".repeat((LENGTH - 8) / 4))),
        ("cpus", format!("name='n'\nkernel='k'\ncpus='{}0'\n", "0-255,^all,".repeat(5900))),
    ];
    let mut machine = Machine::new("polls-files").seconds(600).with(|machine| {
        machine.qemu_arguments.extend(xtask::qemu::ICOUNT.map(String::from));
        machine.dom0_arguments = format!("poll-limit={LIMIT}");
    });
    for (name, text) in &files {
        machine = machine.module(&scratch.file(name, text.as_bytes())?, &format!("{name}.cfg"));
        machine = machine.line(&format!("try xl create /boot/{name}.cfg"));
    }
    let run = machine
        .line("repeat 3000 xenstore-write /a 1")
        .line("repeat 300 sleep 0")
        .line("repeat 300 try frob")
        .line("cat /boot/values.cfg")
        .run()?
        .succeeded()?
        .says("long.cfg: 2097161 bytes: a configuration has at most 65536")?
        .says("values.cfg: more than 512 values")?
        .says("and 478 keys more that are ignored")?;
    no_long_polls(&run)
}

/// Requests of guests for which much is to be looked at, or compared.
fn no_request_of_the_store_takes_a_millisecond() -> Result<()> {
    const CASES: [&str; 8] = [
        "directories",
        "transactions",
        "subtrees",
        "quotas",
        "prefixes",
        "removals",
        "long-commits",
        "long-perms",
    ];
    let mut machine = Machine::new("polls-store").seconds(600).with(|machine| {
        machine.qemu_arguments.extend(xtask::qemu::ICOUNT.map(String::from));
        machine.dom0_arguments = format!("poll-limit={LIMIT}");
    });
    for case in CASES {
        machine = machine
            .line(&format!("xl create /boot/hostile.cfg name='{case}' extra='case={case}'"))
            .line("sleep 2")
            .line(&format!("xl destroy {case}"));
    }
    let run = machine.run()?.succeeded()?;
    for case in CASES {
        run.require(run.console().contains(&format!("hostile: {case} from now on")), case)?;
    }
    no_long_polls(&run)
}

/// The usual life of domains: with a disk that is read and written, with storms of the store, restarted, destroyed. And one
/// with as much as there may be: vCPUs, and disks of a driver domain.
fn no_poll_takes_a_millisecond() -> Result<()> {
    let disks = ('a'..='p').map(|at| format!("'phy:/d,xvd{at},w,backend=server'"));
    let big = format!("vcpus=1 maxvcpus=128 disk=[{}]", disks.collect::<Vec<_>>().join(","));
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
        .line(&format!("xl create -p /boot/hello.cfg name=\"big\" {big}"))
        .line("xl vcpu-set big 128")
        .line("xl destroy big")
        .line("xl destroy server")
        .line("xl create -c /boot/hello.cfg memory=128")
        .line("xenstore-ls")
        .line("xl info")
        .run()?
        .succeeded()?;
    no_long_polls(&run)
}

fn no_long_polls(run: &Run) -> Result<()> {
    let long: Vec<&str> =
        run.console().lines().filter(|line| line.contains("pvrt::executor: poll: ")).collect();
    run.require(long.is_empty(), &format!("polls that take too long:\n{}", long.join("\n")))
}
