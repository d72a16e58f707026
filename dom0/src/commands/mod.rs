//! The shell's commands.
//!
//! A line is one command. The command succeeds or fails with a text, which the shell prints; a script ends at
//! the first line that fails.
#![forbid(unsafe_code)]

mod accounts;
mod console_log;
mod files;
mod help;
mod hypervisor_log;
mod input;
mod machine;
mod net;
#[cfg(test)]
mod shell_tests;
mod simple;
mod store;
#[cfg(test)]
mod tests;
mod xl;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use pvrt::executor::{Either, select};
use pvrt::{println, yield_now};

use crate::blkdev::Disks;
use crate::bundle::{Bundle, File, SCRIPT};
use crate::netback::Network;
use crate::shell::print::shown;
use crate::shell::{LINE_BYTES_MAX, PROMPT, Terminal, Word, split};
use crate::toolstack::Toolstack;
use crate::xenstore::Xenstore;

pub use hypervisor_log::SideChannels;
pub use machine::Ending;
pub use net::CaptureFile;

/// The result of a command: success, or the text of the error.
pub type Outcome = Result<(), String>;

/// A running command.
type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// How deep `repeat` and `try` may be nested.
const REPEATS_MAX: usize = 4;

/// What the commands use.
pub struct Shell {
    /// The files of `/boot`.
    pub bundle: Bundle,
    /// The store.
    pub store: Xenstore,
    /// The disks.
    pub disks: Arc<Disks>,
    /// The networks.
    pub network: Arc<Network>,
    /// Where captured packets go.
    pub capture: Arc<CaptureFile>,
    /// The terminal.
    pub terminal: Terminal,
    /// The toolstack, which makes and ends domains.
    pub toolstack: Toolstack,
    /// When dom0 started: system time in nanoseconds.
    pub started_ns: u64,
    /// What the hypervisor does against the CPU's side channels.
    pub side_channels: SideChannels,
    /// How the machine goes off.
    pub ending: Ending,
}

impl Shell {
    /// Runs the lines of the bundle's script, then powers off, or shows the prompt if `keep`. Without a script, shows
    /// the prompt. With the port `input`, lines come from there instead of the prompt.
    pub async fn run(&self, keep: bool, input: Option<u16>) {
        let keep = keep || input.is_some();
        if let Some(script) = self.bundle.find(SCRIPT) {
            match self.run_script(script).await {
                Ok(()) if keep => {}
                Ok(()) => self.power_off(true).await,
                // Nobody sits at the prompt: the machine's end tells of the failure.
                Err(()) if input.is_some() => self.ending.note_failure(),
                Err(()) if keep => {}
                Err(()) => self.power_off(false).await,
            }
        }
        if let Some(port) = input {
            self.run_input(port).await
        }
        self.interact().await;
    }

    /// Powers the machine off, when all that was captured is in its file.
    async fn power_off(&self, success: bool) -> ! {
        self.capture.finish(&self.network).await;
        self.ending.power_off(success)
    }

    /// Runs lines one at a time up to the first that fails: that line and its error are then the last thing printed.
    async fn run_script(&self, script: File) -> Result<(), ()> {
        let mut rest = script.bytes;
        while !rest.is_empty() {
            // The script is read line by line, since it may be of any length.
            let Some(line) = first_line(&mut rest) else {
                println!("error: {}: a line has more than {LINE_BYTES_MAX} bytes", shown(script.name));
                return Err(());
            };
            let Ok(line) = core::str::from_utf8(line) else {
                println!("error: {} is not UTF-8", shown(script.name));
                return Err(());
            };
            self.ending.note_line();
            println!("{PROMPT}{}", shown(line));
            let outcome = match self.interruptible(line).await {
                Some(Ok(())) => continue,
                Some(Err(error)) => error,
                None => "interrupted".into(),
            };
            println!("{PROMPT}{}\nerror: {}", shown(line), shown(&outcome));
            return Err(());
        }
        Ok(())
    }

    /// Runs a line; `None`: `^C` interrupted it.
    async fn interruptible(&self, line: &str) -> Option<Outcome> {
        self.terminal.forget_interrupt().await;
        match select(self.run_line(line), self.terminal.interrupted()).await {
            Either::Left(outcome) => Some(outcome),
            Either::Right(()) => None,
        }
    }

    /// Reads lines and runs them, for ever.
    async fn interact(&self) {
        loop {
            let Some(line) = self.terminal.read_line(|before| self.candidates(before)).await else {
                println!("`poweroff` ends the machine");
                continue;
            };
            match self.interruptible(&line).await {
                Some(Ok(())) => {}
                Some(Err(error)) => println!("error: {}", shown(&error)),
                None => println!("^C"),
            }
        }
    }

    /// Runs a line. The function yields first, so that lines in a row cannot keep other tasks waiting.
    pub fn run_line<'a>(&'a self, line: &'a str) -> Running<'a> {
        Box::pin(async move {
            yield_now().await;
            let words = split(line).map_err(|error| error.to_string())?;
            let Some((command, arguments)) = words.split_first() else { return Ok(()) };
            let texts: Vec<&str> = arguments.iter().map(|word| word.text.as_str()).collect();
            if let ["-h" | "--help"] = *texts
                && help::COMMANDS.iter().any(|known| known.0 == command.text)
            {
                return help::run(&[command.text.as_str()]).await;
            }
            match command.text.as_str() {
                "xl" => self.xl(&texts).await,
                "wait" => self.wait(&texts).await,
                "help" | "?" => help::run(&texts).await,
                "ls" => self.ls(&texts).await,
                "cat" => self.cat(&texts).await,
                "accounts" => self.accounts(&texts).await,
                "net" => net::run(&self.network, &self.capture, &texts).await,
                "echo" => simple::echo(&texts).await,
                "date" => simple::date(&texts),
                "clear" => simple::clear(&texts),
                "sleep" => machine::sleep(&texts).await,
                "repeat" => self.repeat(line, arguments).await,
                "try" => self.try_line(line, arguments).await,
                "poweroff" | "halt" => {
                    no_more(&texts)?;
                    self.power_off(true).await
                }
                "reboot" => {
                    no_more(&texts)?;
                    self.capture.finish(&self.network).await;
                    self.ending.reboot()
                }
                "xenstore-ls" => self.xenstore_ls(&texts).await,
                "xenstore-read" => self.xenstore_read(&texts).await,
                "xenstore-write" => self.xenstore_write(&texts).await,
                "xenstore-rm" => self.xenstore_rm(&texts).await,
                "xenstore-control" => self.xenstore_control(&texts),
                "xenstore-watch" => self.xenstore_watch(&texts).await,
                other => Err(format!("{other}: no such command; `help` lists them")),
            }
        })
    }

    /// `repeat N LINE`: runs the line again and again, up to the first failure.
    async fn repeat(&self, line: &str, arguments: &[Word]) -> Outcome {
        let [count, first, ..] = arguments else { return Err("usage: repeat N LINE".into()) };
        let count: u64 = count.text.parse().map_err(|_| format!("repeat: `{}` is no number", count.text))?;
        let repeated = &line[first.at..];
        nested(arguments)?;
        for round in 1..=count {
            self.run_line(repeated).await.map_err(|error| format!("round {round}: {error}"))?;
        }
        Ok(())
    }

    /// `try LINE`: runs the line and prints its failure, but itself succeeds, so that a script goes on.
    async fn try_line(&self, line: &str, arguments: &[Word]) -> Outcome {
        let [first, ..] = arguments else { return Err("usage: try LINE".into()) };
        nested(arguments)?;
        if let Err(error) = self.run_line(&line[first.at..]).await {
            println!("error: {}", shown(&error));
        }
        Ok(())
    }

    /// The completions of the text before the cursor: commands, files, disks.
    fn candidates(&self, before: &str) -> Vec<String> {
        let start = before.rfind(' ').map_or(0, |blank| blank + 1);
        if before[..start].trim().is_empty() {
            return help::COMMANDS.iter().map(|command| command.0.into()).collect();
        }
        if before[..start].trim() == "xl" {
            return xl::table::all().map(|command| command.name.into()).collect();
        }
        let files = self.bundle.files().iter().map(|file| format!("/boot/{}", file.name));
        // A name with control characters is left out, since the editor would send it to the terminal with the
        // line.
        files.chain(self.disks.paths()).filter(|path| !path.contains(char::is_control)).collect()
    }
}

/// Takes the first line off `rest`, without its line end; `None`: the line is too long.
fn first_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    // The window includes the line end, of one byte or two.
    let window = &rest[..rest.len().min(LINE_BYTES_MAX + 2)];
    let end = window.iter().position(|&byte| byte == b'\n');
    if end.is_none() && rest.len() > LINE_BYTES_MAX {
        return None;
    }
    let line = &window[..end.unwrap_or(window.len())];
    *rest = &rest[(line.len() + 1).min(rest.len())..];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    (line.len() <= LINE_BYTES_MAX).then_some(line)
}

/// Fails if lines are nested too deep, since each level uses stack.
fn nested(arguments: &[Word]) -> Outcome {
    let deeper = |word: &&Word| matches!(word.text.as_str(), "repeat" | "try");
    if arguments.iter().filter(deeper).count() > REPEATS_MAX {
        return Err(format!("more than {REPEATS_MAX} lines within each other"));
    }
    Ok(())
}

/// Fails if there is any argument.
fn no_more(arguments: &[&str]) -> Outcome {
    match arguments.first() {
        None => Ok(()),
        Some(word) => Err(format!("`{word}`: nothing is expected here")),
    }
}
