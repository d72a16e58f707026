//! Debian's network frontend: what it is offered, and packets of all kinds to dom0, to another guest and to the world.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use tests::linux::{command, machine_with, network_machine, no_complaints, program};
use tests::{Live, Scratch};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_network:
        debian_moves_packets_of_all_kinds,
        interfaces_of_debian_come_and_go_under_load,
    ]);
    for case in &mut cases {
        // They fetch Debian's packages first.
        case.soak = true;
    }
    cases
}

/// How long one check may take, in seconds: some move 200 MiB.
pub(crate) const CHECK: u64 = 600;

/// How long dom0 and a guest may take for anything else: an echo of a long line alone is much for a busy host.
pub(crate) const WAIT: u64 = 240;

/// Both guests' interfaces: one as usual, and one for long packets.
fn interfaces(number: u8) -> String {
    let mac = |last: u8| format!("mac=00:16:3e:00:00:{last:02x}");
    let (usual, long) = (mac(number), mac(number + 1));
    format!("vif=['bridge=xenbr0,{usual}','bridge=xenbr0,{long},mtu=9000']")
}

fn debian_moves_packets_of_all_kinds() -> Result<()> {
    let scratch = Scratch::new("debian-packets")?;
    let stream = program(&scratch, "stream")?;
    let host = Server::start(&scratch.path("stream"))?;
    let files = [
        ("peer.sh", include_bytes!("linux_network/peer.sh").as_slice()),
        ("main.sh", include_bytes!("linux_network/main.sh")),
        ("stream", &stream),
    ];
    let machine = network_machine("debian-packets", &scratch, &files)?;
    let create = |name: &str, number, command: &str| {
        let interfaces = interfaces(number);
        format!("/boot/debian-ramdisk.cfg name='{name}' {interfaces} extra='quiet run=\"{command}\"'")
    };
    let mut machine = machine.network().seconds(3000).start()?;
    machine.expect("dom0# ", WAIT)?;
    command(&mut machine, &format!("xl create {}", create("peer", 0x21, "sh /peer.sh")), WAIT)?;
    let main = create("main", 0x11, &format!("sh /main.sh {}", host.port));
    command(&mut machine, &format!("xl create {main}"), WAIT)?;
    loop {
        let line = next_line(&mut machine).inspect_err(|_| tell(&mut machine))?;
        println!("{line}");
        if line.starts_with("all is well") {
            break;
        }
        if line.starts_with("FAILED") {
            tell(&mut machine);
            bail!("{line}");
        }
    }
    tell(&mut machine);
    command(&mut machine, "xl destroy peer", WAIT)?;
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}

/// Linux's frontend loses its interface while it fetches, and gets another, again and again.
fn interfaces_of_debian_come_and_go_under_load() -> Result<()> {
    const ROUNDS: u32 = 20;
    const CARRIES: &str = "hotplug: eth0 carries";
    const GONE: &str = "hotplug: none is left";
    let scratch = Scratch::new("debian-interfaces")?;
    let script = include_bytes!("linux_network/hotplug.sh").as_slice();
    let mut machine =
        machine_with("debian-interfaces", &scratch, &[("hotplug.sh", script)])?.seconds(1800).start()?;
    machine.expect("dom0# ", WAIT)?;
    command(&mut machine, "xl create /boot/web.cfg name='server' extra='ip=10.88.0.2/24'", WAIT)?;
    let create = "xl create /boot/debian-ramdisk.cfg name='d' vif=['bridge=xenbr0'] \
                  extra='quiet run=\"sh /hotplug.sh\"'";
    command(&mut machine, create, WAIT)?;
    machine.expect(CARRIES, CHECK)?;
    for _ in 0..ROUNDS {
        command(&mut machine, "sleep 1", WAIT)?;
        // Linux that finds another interface in place of one before Linux has seen that one go takes both for the same, and never
        // connects: its own fault, which scripts on any Xen run into.
        run_until(&mut machine, "xl network-detach d 0", GONE)?;
        run_until(&mut machine, "xl network-attach d bridge=xenbr0", CARRIES)?;
    }
    let listed = command(&mut machine, "xl network-list d", WAIT)?;
    ensure!(listed.matches("/backend/vif/").count() == 1, "it has one interface: {listed}");
    for name in ["d", "server"] {
        command(&mut machine, &format!("xl destroy {name}"), WAIT)?;
    }
    machine.type_line("poweroff")?;
    no_complaints(&machine.finish().succeeded()?)
}

/// The next thing that the guest says of its checks.
fn next_line(machine: &mut Live) -> Result<String> {
    machine.expect(") network: ", CHECK)?;
    Ok(machine.expect("\n", 20)?.trim_end().to_string())
}

/// Prints what dom0 knows of its networks, for a reader of the test's output.
fn tell(machine: &mut Live) {
    for line in ["net", "accounts", "xl vcpu-list"] {
        match command(machine, line, WAIT) {
            Ok(said) => println!("{said}"),
            Err(error) => println!("{line}: {error:#}"),
        }
    }
}

/// Runs a line that succeeds, and waits until the guest has said `text` since.
fn run_until(machine: &mut Live, line: &str, text: &str) -> Result<()> {
    let said = command(machine, line, WAIT)?;
    // One is of the line that ends the command.
    ensure!(said.matches("error: ").count() == 1, "`{line}` failed: {said}");
    if !said.contains(text) {
        machine.expect(text, WAIT)?;
    }
    Ok(())
}

/// `stream serve` on this host, which the guests reach as 10.0.2.2. Drop ends the server.
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
}

impl Server {
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let mut process = Command::new(program).args(["serve", "0"]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(process.stdout.take().context("a pipe")?).read_line(&mut line)?;
        let port = line.trim().parse();
        Ok(Self { process, port: port.context("the server's port")? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A server that has ended by itself is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
