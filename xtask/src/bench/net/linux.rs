//! Packets of two guests with Debian's kernel.

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::owners::{self, Owners};
use super::table::{Figure, Figures, Unit, Way, Window};
use crate::bench::{On, machine, run};
use crate::cpio::{self, Archive};
use crate::guest::{self, DebianBoot, Iperf};
use crate::images;
use crate::machine::{Machine, Module, Net};
use crate::plugin;
use crate::qemu::{ICOUNT, RunDirectory};
use crate::xen::{self, Control, Domain};

/// The program that says what moves in a window, and the markers around it.
const PROGRAM: &str = "costs";
const MARKS: (u16, u16) = (300, 301);

/// The script of both guests.
const TRAFFIC: &str = include_str!("traffic.sh");
const CONFIGURATION: &str = include_str!("net.cfg");
const MEMORY_MIB: u32 = 256;
/// Of either emulated machine.
const MACHINE_MIB: u32 = 1536;
const SINK: &str = "net-sink";
const SOURCE: &str = "net-source";

/// dom0's addresses on the guests' bridge: microhv's own gives the guests theirs by DHCP, Xen's is given one here.
const OURS: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);
const XENS: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// Where a machine is certainly stuck.
const LIMIT: Duration = Duration::from_secs(900);

/// What Xen's control domain does before the guests are created: an address on their bridge, the card on a bridge of its
/// own, iperf3; and when they are done: the guests' pages, as `net-pages FIRST LAST`.
const BEFORE: &str = include_str!("xen-before.sh");
const AFTER: &str = include_str!("xen-after.sh");

/// A window's length and the time for traffic to rise before: at the host's speed, and where instructions are counted.
const TIMED: (u32, &str) = (3000, "1");
const COUNTED: (u32, &str) = (200, "0.3");

/// Whether packets go that way: microhv's dom0 has no TCP of its own.
pub(super) fn goes(system: On, way: &Way) -> bool {
    system == On::Xen || !matches!(way.name, "dom0_tcp" | "from_dom0_tcp")
}

/// Whether a way's instructions are counted: not where the host answers, since with one instruction a tick the machine's
/// time does not wait for the host.
pub(super) fn counts(way: &Way) -> bool {
    !is_outside(way)
}

fn is_outside(way: &Way) -> bool {
    way.name.ends_with("host_tcp")
}

/// The guests' files, and what stands on the host.
pub(super) struct Setting {
    directory: RunDirectory,
    kernel: DebianBoot,
    ramdisk: PathBuf,
    iperf: Iperf,
}

/// iperf3 on the host while a machine runs.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // A process that ended already cannot be killed, and there is nothing more to end.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// How a machine runs.
struct Mode {
    milliseconds: u32,
    seconds: &'static str,
    qemu_arguments: Vec<String>,
}

impl Setting {
    /// Makes kernel and ramdisk.
    ///
    /// # Errors
    /// A package cannot be fetched, or the program does not build.
    pub(super) fn prepare() -> Result<Self> {
        let directory = RunDirectory::new()?;
        let (kernel, iperf) = (guest::debian_boot()?, guest::iperf()?);
        let mut archive = Archive::default();
        archive.add(cpio::PROGRAM, "bin/traffic", TRAFFIC.as_bytes());
        iperf.add(&mut archive)?;
        let mut bytes = guest::ramdisk_with(&kernel, PROGRAM, &[])?;
        bytes.extend(archive.finish());
        let ramdisk = directory.file("net-initrd");
        images::write(&ramdisk, &bytes)?;
        images::write(&directory.file("net.cfg"), CONFIGURATION.as_bytes())?;
        Ok(Self { directory, kernel, ramdisk, iperf })
    }

    /// Figures at the host's speed.
    ///
    /// # Errors
    /// Xen cannot be made, QEMU cannot be started, or the machine did not run to its end.
    pub(super) fn timed(&self, system: On, ways: &[&Way]) -> Result<Figures> {
        let (milliseconds, seconds) = TIMED;
        let mode = Mode { milliseconds, seconds, qemu_arguments: Vec::new() };
        let console = self.console(system, ways, &mode)?;
        let figures = figures(ways, &console);
        // What the guests said tells why a figure is missing.
        if ways.iter().any(|way| goes(system, way) && figures.get(way.name).is_none_or(Figure::is_nothing)) {
            eprintln!("{}", console.trim_end());
        }
        Ok(figures)
    }

    /// Figures with what was executed, where one instruction is a tick.
    ///
    /// # Errors
    /// The errors of [`Setting::timed`]; or the plugin's output does not fit to the machine's.
    pub(super) fn counted(&self, system: On, ways: &[&Way]) -> Result<Figures> {
        let ways: Vec<&Way> = ways.iter().copied().filter(|way| counts(way)).collect();
        let (milliseconds, seconds) = COUNTED;
        let output = self.directory.file("counts");
        let mut qemu_arguments = ICOUNT.map(str::to_string).to_vec();
        qemu_arguments.extend(plugin::page_arguments(&output, MARKS)?);
        let console = self.console(system, &ways, &Mode { milliseconds, seconds, qemu_arguments })?;
        let output = std::fs::read_to_string(&output).context("the counting plugin wrote nothing")?;
        let windows = plugin::windows(&output, MARKS.0.into(), MARKS.1.into());
        let owners = match system {
            On::Xen => Owners::of_pages(&console),
            _ => Owners::of_images()?,
        };
        let mut figures = figures(&ways, &console);
        let moved = ways.iter().filter(|way| way.unit != Unit::Answer).filter_map(|way| {
            let Figure::Moved(window) = figures.get(way.name)? else { return None };
            Some((way.name, *window))
        });
        let moved: Vec<(&'static str, Window)> = moved.collect();
        if moved.len() != windows.len() {
            bail!(
                "{} windows were counted, and {} are on the console:\n{console}",
                windows.len(),
                moved.len()
            );
        }
        let notify = owners::symbol(&console);
        for ((name, window), counted) in moved.into_iter().zip(&windows) {
            let executed = Some(owners.split(counted, notify));
            figures.insert(name, Figure::Moved(Window { executed, ..window }));
        }
        Ok(figures)
    }

    /// Runs both guests, and returns the source's console and, of Xen, the control domain's.
    fn console(&self, system: On, ways: &[&Way], mode: &Mode) -> Result<String> {
        let server = ways.iter().any(|way| is_outside(way)).then(|| self.server()).transpose()?;
        let ways: Vec<&str> = ways.iter().filter(|way| goes(system, way)).map(|way| way.name).collect();
        let dom0 = if system == On::Xen { XENS } else { OURS };
        let sink = format!("quiet run=traffic sink {}", mode.milliseconds);
        let source = format!(
            "quiet run=traffic source {} {} {dom0} {} {}",
            mode.milliseconds,
            mode.seconds,
            server.as_ref().map_or(0, |server| server.port),
            ways.join(" ")
        );
        let outside = server.is_some();
        match system {
            On::Xen => self.on_xen([sink, source], outside, mode),
            _ => self.on_microhv([sink, source], outside, mode),
        }
    }

    fn on_microhv(&self, [sink, source]: [String; 2], outside: bool, mode: &Mode) -> Result<String> {
        let files = [
            (self.directory.file("net.cfg"), "net.cfg"),
            (self.ramdisk.clone(), "net-initrd"),
            (self.kernel.image.clone(), "debian-vmlinuz"),
        ];
        let create = |options: &str, name: &str, words: &str, vif: &str| {
            format!("xl create {options}/boot/net.cfg name='{name}' extra=\"{words}\" {vif}")
        };
        run(&Machine {
            modules: files.map(|(path, name)| Module { path, name: name.into() }).to_vec(),
            script: Some(vec![
                create("", SINK, &sink, &vif(false, "eth0")),
                create("-c ", SOURCE, &source, &vif(outside, "eth0")),
                "net".into(),
                format!("xl destroy {SINK}"),
            ]),
            memory_mib: MACHINE_MIB,
            net: Net::User,
            qemu_arguments: mode.qemu_arguments.clone(),
            timeout: Some(LIMIT),
            ..machine()
        })
    }

    fn on_xen(&self, [sink, source]: [String; 2], outside: bool, mode: &Mode) -> Result<String> {
        let host = xen::prepare()?;
        let domain = |name: &str, extra, vif| Domain {
            name: name.into(),
            kernel: host.linux().into(),
            ramdisk: Some(self.ramdisk.clone()),
            memory_mib: MEMORY_MIB,
            extra,
            lines: vec!["vcpus=1".into(), "tsc_mode=\"native\"".into(), vif],
        };
        let domains =
            [domain(SINK, sink, vif(false, "outside")), domain(SOURCE, source, vif(outside, "outside"))];
        let control = Control {
            files: self.iperf.files(),
            before: format!("address={XENS}/24\n{BEFORE}"),
            after: format!("guests=\"{SINK} {SOURCE}\"\n{AFTER}"),
        };
        // The control domain keeps the guests' files in memory.
        let options = xen::Options {
            memory_mib: MACHINE_MIB,
            dom0_mib: 640,
            net: Net::User,
            qemu_arguments: mode.qemu_arguments.clone(),
            timeout: LIMIT + Duration::from_secs(60),
            ..xen::Options::default()
        };
        let (_, output) = host.run_domains_beside(&domains, LIMIT, &options, &control)?;
        Ok(output.console)
    }

    /// Starts iperf3 on the host, at a port that nobody has.
    fn server(&self) -> Result<Server> {
        let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("the host has no free port")?;
        let port = any.local_addr()?.port();
        drop(any);
        let mut command = self.iperf.command();
        command.args(["-s", "-B", "127.0.0.1", "-p", &port.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Server { process: command.spawn().context("cannot run iperf3")?, port })
    }
}

/// The line of a configuration that puts a guest on the guests' bridge, and on that of the card if asked for.
fn vif(outside: bool, card: &str) -> String {
    if outside { format!("vif=['bridge=xenbr0','bridge={card}']") } else { "vif=['bridge=xenbr0']".into() }
}

/// The figures on a console, in lines `net WAY window ...` and `net WAY ping ...` behind any prefix.
fn figures(ways: &[&Way], console: &str) -> Figures {
    let figure = |line: &str| {
        let mut words = line.split_whitespace().skip_while(|word| *word != "net").skip(1);
        let (name, kind) = (words.next()?, words.next()?);
        let way = ways.iter().find(|way| way.name == name)?;
        let numbers: Vec<f64> = words.map(str::parse).collect::<Result<_, _>>().ok()?;
        let figure = match (kind, &numbers[..]) {
            ("window", [nanoseconds, sent, sent_bytes, received, received_bytes]) => {
                let (packets, bytes) =
                    if is_received(way) { (received, received_bytes) } else { (sent, sent_bytes) };
                Figure::Moved(Window {
                    packets: *packets as u64,
                    bytes: *bytes as u64,
                    nanoseconds: *nanoseconds as u64,
                    executed: None,
                })
            }
            ("ping", [_, average, _]) => Figure::Answered(average * 1000.0),
            _ => return None,
        };
        Some((way.name, figure))
    };
    console.lines().filter_map(figure).collect()
}

/// Whether the window's interface is that of the receiver.
fn is_received(way: &Way) -> bool {
    way.name.starts_with("guest_") || way.name.starts_with("from_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::net::WAYS;

    #[test]
    fn figures_are_found_wherever_they_stand() {
        let console = "net-source| net guest_tcp window 1000 1 2 3 4\r\nnet host_tcp window 1000 1 2 3 4\nnet guest_ping ping 0.1 0.25 7\n\
                       net guest_udp\nnet guest_small window 1 2 3\nnet nothing window 1 2 3 4 5\nnet done\n";
        let found = figures(&WAYS.iter().collect::<Vec<_>>(), console);
        assert_eq!(found.len(), 3);
        let moved =
            |packets, bytes| Figure::Moved(Window { packets, bytes, nanoseconds: 1000, executed: None });
        assert_eq!(found["guest_tcp"], moved(3, 4), "the sink's interface");
        assert_eq!(found["host_tcp"], moved(1, 2), "the source's");
        assert_eq!(found["guest_ping"], Figure::Answered(250.0));
    }

    #[test]
    fn the_domain_is_the_same_on_both() {
        assert!(CONFIGURATION.contains(&format!("memory      = {MEMORY_MIB}\n")));
        assert!(
            CONFIGURATION.contains("vcpus       = 1\n")
                && CONFIGURATION.contains("tsc_mode    = \"native\"\n")
        );
    }

    #[test]
    fn the_script_knows_every_way() {
        for way in &WAYS {
            assert!(TRAFFIC.contains(&format!("    {}) ", way.name)), "{}", way.name);
        }
    }
}
