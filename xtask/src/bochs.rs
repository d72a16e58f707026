//! Runs the machine in Bochs. Bochs has CPU models that QEMU lacks, and its TLB keeps each entry until a flush.
//!
//! Bochs boots the CD image. There is neither virtio nor isa-debug-exit: the hypervisor and dom0 report their end
//! through the second serial port, which Bochs writes to a file. No guest may access that port.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::{Boot, Machine};
use crate::qemu::{self, RunDirectory};
use crate::session::{Log, Outcome, copy_output, with_log};
use crate::terminal::SavedTerminal;
use crate::{images, iso, lines, usage};

/// The emulator.
pub const PROGRAM: &str = "bochs";
/// The BIOS of Bochs.
pub const BIOS: &str = "/usr/share/bochs/BIOS-bochs-latest";
/// The BIOS of its screen.
pub const SCREEN_BIOS: &str = "/usr/share/vgabios/vgabios.bin";
/// The screen that takes a terminal and no more.
pub const SCREEN: &str = "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so";
/// The program that gives Bochs a terminal.
pub const TERMINAL: &str = "script";

/// The second serial port's data register.
pub const REPORT_PORT: u16 = 0x2f8;
/// Instructions in a second of the machine's clocks. The fewer, the fewer instructions a byte on the serial
/// line takes.
const INSTRUCTIONS_A_SECOND: u32 = 50_000_000;
/// After a report, the machine powers off within this time or is ended.
const GOES_OFF: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What Bochs says when its debugger gives the machine's screen a terminal of its own, whose name follows in quotes.
const SCREEN_IS: &str = "connected to screen \"";
/// Linux's flag for a terminal that is opened and does not become the process's own.
const O_NOCTTY: i32 = 0o400;
/// What the serial line's reader waits for at most before it looks whether the machine has ended.
const READ_EVERY: Duration = Duration::from_millis(100);

/// Bochs's CPU models without 64-bit mode.
const MODELS_OF_32_BITS: [&str; 8] = [
    "pentium",
    "pentium_mmx",
    "amd_k6_2_chomper",
    "p2_klamath",
    "p3_katmai",
    "p4_willamette",
    "core_duo_t2400_yonah",
    "atom_n270",
];

/// Refuses options that Bochs cannot serve.
///
/// # Errors
/// Wrong usage: disks, UEFI, ports that lead to guests, a CPU without 64-bit mode, or QEMU's own arguments.
pub fn check(machine: &Machine) -> Result<()> {
    if !machine.disks.is_empty() {
        return Err(usage("Bochs has no virtio disks"));
    }
    if machine.boot.is_by_uefi() {
        return Err(usage("--boot uefi: Bochs has a BIOS"));
    }
    if machine.boot == Boot::Disk {
        return Err(usage("--boot disk: Bochs boots from a CD image"));
    }
    if machine.capture.is_some() {
        return Err(usage("--capture: Bochs has no port for that"));
    }
    if let Some(forward) = machine.forwards.first() {
        return Err(usage(format!("--forward {}: Bochs has no network", forward.host)));
    }
    if MODELS_OF_32_BITS.contains(&machine.cpu_model.as_str()) {
        return Err(usage(format!("CPU {} lacks what microhv needs: lm (64-bit mode)", machine.cpu_model)));
    }
    if !machine.qemu_arguments.is_empty() {
        return Err(usage("Bochs takes no arguments of QEMU's"));
    }
    Ok(())
}

/// Asks Bochs, before the boot, whether Bochs has a CPU model: one that does not know its model ends without a reason.
///
/// # Errors
/// Wrong usage: Bochs has no such model, and the message names those that serve. Or Bochs cannot be run.
pub fn check_model(model: &str) -> Result<()> {
    let output = Command::new(PROGRAM).args(["--help", "cpu"]).stdin(Stdio::null()).output();
    model_in(model, &String::from_utf8_lossy(&output.context("cannot run Bochs")?.stdout))
}

/// Looks for a model in what Bochs says of its models: a heading, and then a line for each, up to an empty one.
fn model_in(model: &str, said: &str) -> Result<()> {
    let lines = said.lines().skip_while(|line| !line.starts_with("Supported CPU models")).skip(1);
    let models = lines.map(str::trim).skip_while(|line| line.is_empty()).take_while(|line| !line.is_empty());
    let models: Vec<&str> = models.filter(|model| !MODELS_OF_32_BITS.contains(model)).collect();
    // A Bochs that answers otherwise is not asked: whether the model serves shows when the machine boots.
    if models.is_empty() || models.contains(&model) {
        return Ok(());
    }
    Err(usage(format!("CPU {model}: Bochs has {}", models.join(", "))))
}

/// Boots `machine` in Bochs and waits for its end. The images must have been built. The machine's output is also
/// shown, if `shown`. A person's input goes to the serial line. The second result is how many lines of its
/// script the machine took.
///
/// # Errors
/// The boot files cannot be made or Bochs cannot be started.
pub fn run(machine: &Machine, shown: bool) -> Result<(Outcome, String, usize)> {
    let files = RunDirectory::new()?;
    let (bundle, image) = (files.file("boot.cpio"), files.file("microhv.iso"));
    images::write(&bundle, &machine.bundle()?.archive())?;
    let hypervisor = images::find("microhv")?.bootable();
    let boot = iso::Files { hypervisor: &hypervisor, dom0: &machine.dom0, bundle: &bundle };
    iso::make(&image, &boot, &machine.hypervisor_line(), &machine.dom0_line())?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("no port for the serial line")?;
    let port = listener.local_addr()?.port();
    images::write(&files.file("bochsrc"), configuration(machine, &files, port).as_bytes())?;
    images::write(&files.file("go"), b"c\n")?;
    let mut log = Log::of(machine)?;

    let terminal = (shown && machine.interactive()).then(SavedTerminal::save).flatten();
    if terminal.is_some() {
        SavedTerminal::make_raw();
    }
    let started = Instant::now();
    let mut child = Ended(command(&files).spawn().context("cannot run Bochs")?);
    let said = child.0.stdout.take().context("Bochs's output is not piped")?;
    std::thread::spawn(move || watch_screen(said));
    listener.set_nonblocking(true)?;
    let text = Arc::new(Mutex::new(Vec::new()));
    let mut reader = None;
    let limit = machine.timeout.map(|limit| started + limit);
    let mut reported = None;
    let outcome = loop {
        if reader.is_none()
            && let Ok((line, _)) = listener.accept()
        {
            line.set_nonblocking(false)?;
            line.set_read_timeout(Some(READ_EVERY))?;
            if terminal.is_some() {
                forward_input(line.try_clone()?);
            }
            let (text, log) = (text.clone(), log.take());
            let keep = move |bytes: &[u8]| {
                text.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
            };
            reader = Some(std::thread::spawn(move || copy_output(line, shown, log, keep)));
        }
        if reported.is_none()
            && let Some(outcome) = report(&files.file("report"))
        {
            reported = Some((outcome, Instant::now()));
        }
        let ended = child.0.try_wait()?;
        match reported.take() {
            // Bochs would restart the machine by itself, from the script's beginning.
            Some((Outcome::Restarts, _)) => break Outcome::Restarts,
            Some((outcome, at)) if ended.is_some() || at.elapsed() > GOES_OFF => break outcome,
            other => reported = other,
        }
        if let Some(status) = ended {
            // The machine may have written the report after the last look.
            break report(&files.file("report")).unwrap_or_else(|| without_report(&files, status.success()));
        }
        if limit.is_some_and(|limit| Instant::now() > limit) {
            break Outcome::TimedOut;
        }
        std::thread::sleep(LOOK_EVERY);
    };
    drop(child);
    let log_error = reader.and_then(|reader| reader.join().ok().flatten());
    if let Some(terminal) = terminal {
        terminal.restore();
    }
    let text = text.lock().unwrap_or_else(PoisonError::into_inner);
    let (taken, _) = reports(&files.file("report"));
    Ok((with_log(outcome, log_error), String::from_utf8_lossy(&text).into_owned(), taken))
}

/// A running Bochs and the program that gives it a terminal; drop ends both.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both calls fail when Bochs has ended before, which is no error.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The machine for Bochs.
fn configuration(machine: &Machine, files: &RunDirectory, port: u16) -> String {
    let file = |name: &str| files.file(name).display().to_string();
    format!(
        "megs: {memory}\n\
         cpu: model={model}, count={cpus}, ips={INSTRUCTIONS_A_SECOND}, reset_on_triple_fault=0\n\
         romimage: file={BIOS}\n\
         vgaromimage: file={SCREEN_BIOS}\n\
         ata0-master: type=cdrom, path={image}, status=inserted\n\
         boot: cdrom\n\
         com1: enabled=1, mode=socket-client, dev=127.0.0.1:{port}\n\
         com2: enabled=1, mode=file, dev={report}\n\
         sound: waveoutdrv=dummy\n\
         log: {log}\n\
         panic: action=fatal\n\
         error: action=report\n\
         info: action=report\n\
         debug: action=ignore\n\
         display_library: term\n\
         clock: sync=none\n",
        memory = machine.memory_mib,
        cpus = machine.cpus,
        model = machine.cpu_model,
        image = file("microhv.iso"),
        report = file("report"),
        log = file("log"),
    )
}

/// Debian's Bochs starts in its debugger, which continues by the file `go`, and needs a terminal. Bochs ends with
/// the process that gives it a terminal, and that process ends with this thread.
fn command(files: &RunDirectory) -> Command {
    let inner = format!(
        "exec {}{PROGRAM} -q -f '{}' -rc '{}'",
        if qemu::ends_with_parent() { "setpriv --pdeathsig KILL -- " } else { "" },
        files.file("bochsrc").display(),
        files.file("go").display()
    );
    let mut command = qemu::contained(TERMINAL);
    command.args(["-qec", &inner, "/dev/null"]).env("TERM", "xterm");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command
}

/// Reads what Bochs says, and what it draws on the terminal of the machine's screen: Bochs stops when a terminal that nobody
/// reads is full, which takes some hundred lines of a console.
fn watch_screen(said: impl Read) {
    let mut lines = BufReader::new(said).split(b'\n');
    while let Some(Ok(line)) = lines.next() {
        let Some(screen) = screen_in(&String::from_utf8_lossy(&line)).map(str::to_string) else { continue };
        std::thread::spawn(move || {
            // Without its terminal the screen is not drawn, which harms nothing but a long run.
            let opened = OpenOptions::new().read(true).custom_flags(O_NOCTTY).open(screen);
            let _ = opened.and_then(|mut screen| std::io::copy(&mut screen, &mut std::io::sink()));
        });
    }
}

/// The terminal of the machine's screen, if the line names one.
fn screen_in(line: &str) -> Option<&str> {
    line.split_once(SCREEN_IS)?.1.split('"').next().filter(|name| name.starts_with("/dev/pts/"))
}

/// The report in its file, if there is one.
fn report(path: &Path) -> Option<Outcome> {
    reports(path).1
}

/// How many lines dom0 reported to have taken, and the report behind those.
fn reports(path: &Path) -> (usize, Option<Outcome>) {
    let bytes = std::fs::read(path).unwrap_or_default();
    let taken = bytes.iter().take_while(|&&byte| byte == lines::NEXT).count();
    (taken, bytes.get(taken).and_then(|&code| Outcome::reported(code)))
}

/// How a machine ended that wrote no report: by power-off, by a reset, or because Bochs did not start.
fn without_report(files: &RunDirectory, success: bool) -> Outcome {
    let log = std::fs::read_to_string(files.file("log")).unwrap_or_default();
    let last = log.lines().rev().find(|line| line.contains("PANIC") || line.get(11..13) == Some("p["));
    if success || log.contains("soft power off") || last.is_some_and(|line| line.contains("triple fault")) {
        return Outcome::Silent;
    }
    Outcome::Broken(format!("Bochs ended: {}", last.or(log.lines().last()).unwrap_or("it said nothing")))
}

/// A person's keys go to the machine for as long as there is one.
fn forward_input(mut line: TcpStream) {
    if !std::io::stdin().is_terminal() {
        return;
    }
    std::thread::spawn(move || {
        let mut key = [0; 64];
        while let Ok(count @ 1..) = std::io::stdin().read(&mut key) {
            if line.write_all(&key[..count]).is_err() {
                break;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Emulator;

    #[test]
    fn the_report_goes_where_no_guest_writes() {
        let machine = Machine { emulator: Emulator::Bochs, ..Machine::default() };
        assert!(machine.hypervisor_line().contains("debug-exit=0x2f8"));
        assert!(machine.dom0_line().contains("debug-exit=0x2f8"));
        let files = RunDirectory::new().expect("a directory");
        let text = configuration(&machine, &files, 4321);
        assert!(text.contains("com1: enabled=1, mode=socket-client, dev=127.0.0.1:4321\n"), "{text}");
        assert!(text.contains("com2: enabled=1, mode=file"), "{text}");
        std::fs::write(files.file("report"), [0x11, 0x10]).expect("writable");
        assert_eq!(report(&files.file("report")), Some(Outcome::LineFailed), "the first word counts");
        assert_eq!(report(&files.file("none")), None);
        std::fs::write(files.file("report"), b"\x1f\x1f\x12").expect("writable");
        assert_eq!(reports(&files.file("report")), (2, Some(Outcome::Restarts)));
        std::fs::write(files.file("report"), b"\x1f").expect("writable");
        assert_eq!(reports(&files.file("report")), (1, None));
    }

    #[test]
    fn the_screens_terminal_is_found() {
        assert_eq!(screen_in("Bochs connected to screen \"/dev/pts/7\"\r"), Some("/dev/pts/7"));
        assert_eq!(screen_in("Bochs connected to screen \"/etc/passwd\""), None);
        assert_eq!(screen_in("connected"), None);
    }

    #[test]
    fn a_model_that_bochs_has_not_is_refused() {
        let said =
            "000i[ ] LTDL\nSupported CPU models:\n\nbx_generic\np3_katmai\nryzen\n\n000i[SIM ] quit_sim\n";
        assert!(model_in("ryzen", said).is_ok() && model_in("ryzen", "no such option").is_ok());
        let error = model_in("Haswell", said).expect_err("a model of QEMU's");
        assert!(error.is::<crate::Usage>());
        assert_eq!(error.to_string(), "CPU Haswell: Bochs has bx_generic, ryzen");
        assert!(model_in("000i[SIM ] quit_sim", said).is_err());
    }

    #[test]
    fn what_it_has_not_is_refused() {
        let with_disk = Machine { disks: vec!["d".parse().expect("a disk")], ..Machine::default() };
        assert!(check(&with_disk).is_err());
        assert!(check(&Machine::default()).is_ok());
        let forwards = vec!["8080:web:80".parse().expect("sound")];
        assert!(check(&Machine { forwards, ..Machine::default() }).is_err());
        let model = |name: &str| check(&Machine { cpu_model: name.into(), ..Machine::default() });
        assert!(model("ryzen").is_ok());
        assert!(model("p3_katmai").is_err_and(|error| error.to_string().contains("64-bit mode")));
    }
}
