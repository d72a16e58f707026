//! Text on the machine's screen: what a person without a serial cable sees.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use font8x8::legacy::BASIC_LEGACY;
use tests::{Live, Machine};
use xtask::deps::{self, Need};
use xtask::machine::Boot;
use xtask::qemu::RunDirectory;

use crate::Case;
use crate::monitor::{self, Monitor};

/// How often the screen is looked at, and how soon again: the hypervisor draws what waits at ticks of its timer.
const LOOKS: usize = 100;
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// VGA's text: where, and its size in characters.
const VGA_TEXT: u64 = 0xb_8000;
const VGA_COLUMNS: usize = 80;
const VGA_BYTES: usize = VGA_COLUMNS * 25 * 2;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![screen:
        a_framebuffer_shows_the_log_dom0_and_a_panic,
        vgas_text_shows_the_log_and_dom0,
        without_vga_among_the_consoles_the_screen_stays_the_loaders,
    ])
}

/// A machine with a screen, and the way to look at that.
struct Watched {
    machine: Live,
    monitor: Monitor,
    /// The last picture, which stays beside the console's log.
    picture: PathBuf,
    text: bool,
    _files: RunDirectory,
}

fn start(name: &str, boot: Boot, words: &str) -> Result<Watched> {
    deps::ensure(&[Need::Grub, Need::Uefi])?;
    let files = RunDirectory::new()?;
    let socket = files.file("monitor");
    let machine = Machine::new(name).boot(boot).with(|machine| {
        machine.hypervisor_arguments = words.into();
        machine.qemu_arguments = monitor::arguments(&socket);
        machine.qemu_arguments.extend(["-vga", "std"].map(String::from));
    });
    let mut machine = machine.start()?;
    machine.expect("dom0# ", 200)?;
    let monitor = Monitor::connect(&socket)?;
    let picture = xtask::paths::target().join("tmp").join(format!("{name}.ppm"));
    Ok(Watched { machine, monitor, picture, text: boot == Boot::Iso, _files: files })
}

impl Watched {
    /// What the screen shows now.
    fn look(&mut self) -> Result<Vec<String>> {
        let command = if self.text {
            format!(r#""pmemsave","arguments":{{"val":{VGA_TEXT},"size":{VGA_BYTES},"#)
        } else {
            r#""screendump","arguments":{"#.into()
        };
        self.monitor.ask(&format!(r#"{{"execute":{command}"filename":"{}"}}}}"#, self.picture.display()))?;
        let picture = std::fs::read(&self.picture)?;
        let lines = if self.text { text_lines(&picture) } else { picture_lines(&picture)? };
        Ok(lines.into_iter().map(|line| line.trim_end().to_string()).collect())
    }

    /// Waits until the screen shows each of `texts` within a line.
    fn shows(&mut self, texts: &[&str]) -> Result<()> {
        let mut lines = Vec::new();
        for _ in 0..LOOKS {
            lines = self.look()?;
            if texts.iter().all(|text| lines.iter().any(|line| line.contains(text))) {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        bail!("the screen does not show {texts:?}:\n{}", lines.join("\n"))
    }
}

fn text_lines(memory: &[u8]) -> Vec<String> {
    let line = |cells: &[u8]| cells.chunks(2).map(|cell| char::from(cell[0])).collect();
    memory.chunks(VGA_COLUMNS * 2).map(line).collect()
}

/// Reads the characters of a picture (PPM) back: each is to be one of the font's, drawn at twice its height.
fn picture_lines(file: &[u8]) -> Result<Vec<String>> {
    let mut parts = file.splitn(4, |&byte| byte == b'\n');
    let mut next = || parts.next().context("no picture");
    let (format, size, _, pixels) = (next()?, next()?, next()?, next()?);
    let size = str::from_utf8(size)?.split_once(' ').context("no size")?;
    let (width, height): (usize, usize) = (size.0.parse()?, size.1.parse()?);
    if format != b"P6" || pixels.len() != width * height * 3 {
        bail!("a picture of {} bytes, {width} by {height}", file.len());
    }
    let is_lit = |x: usize, y: usize| pixels[(y * width + x) * 3] != 0;
    let character = |column: usize, row: usize| {
        let line = |y| (0..8).fold(0u8, |bits, x| bits | u8::from(is_lit(column * 8 + x, row * 16 + y)) << x);
        let picture: [u8; 16] = std::array::from_fn(line);
        let is_it = |glyph: &[u8; 8]| (0..16).all(|y| picture[y] == glyph[y / 2]);
        (b' '..=b'~').find(|&byte| is_it(&BASIC_LEGACY[usize::from(byte)])).map_or('\u{fffd}', char::from)
    };
    let line = |row| (0..width / 8).map(|column| character(column, row)).collect();
    Ok((0..height / 16).map(line).collect())
}

/// The whole way by UEFI. A panic is on the screen, too, though no timer's tick draws any more.
fn a_framebuffer_shows_the_log_dom0_and_a_panic() -> Result<()> {
    // A report port that ends no emulator, so that the machine stays to be looked at.
    let mut watched = start("screen-uefi", Boot::Uefi, "debug-exit=0x80")?;
    watched.shows(&["(microhv) microhv ", "(microhv) dom0 built", "dom0#"])?;
    watched.machine.type_line("ls /boot")?;
    watched.machine.expect("dom0# ", 20)?;
    watched.shows(&["dom0# ls /boot", "hello.cfg"])?;
    // More lines than the screen has: the text moves up.
    watched.machine.type_line("help")?;
    watched.machine.expect("dom0# ", 60)?;
    watched.machine.type_line("echo at the end")?;
    watched.shows(&["dom0# echo at the end"])?;
    watched.machine.type_text("\x01\x01\x01C")?;
    watched.shows(&["PANIC: ", "asked for by a debug key", "backtrace:"])
}

fn vgas_text_shows_the_log_and_dom0() -> Result<()> {
    let mut watched = start("screen-bios", Boot::Iso, "")?;
    watched.shows(&["(microhv) dom0 built", "dom0#"])?;
    watched.machine.type_line("ls /boot")?;
    watched.shows(&["hello.cfg"])?;
    watched.machine.type_line("poweroff")?;
    watched.machine.finish().succeeded()?;
    Ok(())
}

fn without_vga_among_the_consoles_the_screen_stays_the_loaders() -> Result<()> {
    let mut watched = start("screen-none", Boot::Iso, "console=com1")?;
    let lines = watched.look()?;
    if lines.iter().any(|line| line.contains("dom0#")) {
        bail!("the screen shows:\n{}", lines.join("\n"));
    }
    Ok(())
}
