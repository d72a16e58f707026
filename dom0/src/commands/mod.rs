//! What the shell's lines do.
//!
//! A line is one command. Its outcome is success or one text, which the shell prints; a script ends at the first
//! line that fails.
#![forbid(unsafe_code)]

mod files;
mod help;
mod machine;
mod store;
mod terminal;
mod xl;
mod xl_info;

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::Future;
use core::pin::Pin;

use pvrt::executor::{Either, select};
use pvrt::println;

use crate::blkdev::Disks;
use crate::bundle::{Bundle, File, SCRIPT};
use crate::shell::{Word, split};
use crate::toolstack::Toolstack;
use crate::xenstore::Xenstore;

pub use machine::Ending;
pub use terminal::{PROMPT, Terminal};

/// What a command comes to: nothing more to say, or what is wrong.
pub type Outcome = Result<(), String>;

/// A command under way.
type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// What commands work on.
pub struct Shell {
    /// The files of `/boot`.
    pub bundle: Bundle,
    /// The store.
    pub store: Xenstore,
    /// The disks.
    pub disks: Arc<Disks>,
    /// The terminal.
    pub terminal: Terminal,
    /// What makes and ends domains.
    pub toolstack: Toolstack,
    /// When dom0 started: system time in nanoseconds.
    pub started_ns: u64,
    /// How the machine goes off.
    pub ending: Ending,
}

impl Shell {
    /// Runs the lines of the bundle's script, then powers off, or shows the prompt if `keep`. Without a script, shows
    /// the prompt.
    pub async fn run(&self, keep: bool) {
        if let Some(script) = self.bundle.find(SCRIPT) {
            match self.run_script(script).await {
                Ok(()) if keep => {}
                Ok(()) => self.ending.power_off(true),
                Err(()) if keep => {}
                Err(()) => self.ending.power_off(false),
            }
        }
        self.interact().await;
    }

    /// Runs lines one at a time up to the first that fails: that line and its error are then the last thing printed.
    async fn run_script(&self, script: File) -> Result<(), ()> {
        let Ok(text) = core::str::from_utf8(script.bytes) else {
            println!("error: {} is not UTF-8", script.name);
            return Err(());
        };
        for line in text.lines() {
            println!("{PROMPT}{line}");
            if let Err(error) = self.run_line(line).await {
                println!("{PROMPT}{line}\nerror: {error}");
                return Err(());
            }
        }
        Ok(())
    }

    /// Reads lines and runs them, for ever.
    async fn interact(&self) {
        loop {
            let Some(line) = self.terminal.read_line(|before| self.candidates(before)).await else {
                println!("`poweroff` ends the machine");
                continue;
            };
            match select(self.run_line(&line), self.terminal.interrupted()).await {
                Either::Left(Ok(())) => {}
                Either::Left(Err(error)) => println!("error: {error}"),
                Either::Right(()) => println!("^C"),
            }
        }
    }

    /// Runs a line.
    pub fn run_line<'a>(&'a self, line: &'a str) -> Running<'a> {
        Box::pin(async move {
            let words = split(line).map_err(|error| error.to_string())?;
            let Some((command, arguments)) = words.split_first() else { return Ok(()) };
            let texts: Vec<&str> = arguments.iter().map(|word| word.text.as_str()).collect();
            match command.text.as_str() {
                "xl" => self.xl(&texts).await,
                "wait" => self.wait(&texts).await,
                "help" | "?" => help::run(&texts),
                "ls" => self.ls(&texts),
                "cat" => self.cat(&texts),
                "sleep" => machine::sleep(&texts).await,
                "repeat" => self.repeat(line, arguments).await,
                "poweroff" | "halt" => {
                    no_more(&texts)?;
                    self.ending.power_off(true)
                }
                "reboot" => {
                    no_more(&texts)?;
                    self.ending.reboot()
                }
                "xenstore-ls" => self.xenstore_ls(&texts),
                "xenstore-read" => self.xenstore_read(&texts),
                "xenstore-write" => self.xenstore_write(&texts),
                "xenstore-rm" => self.xenstore_rm(&texts),
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
        for round in 1..=count {
            self.run_line(repeated).await.map_err(|error| format!("round {round}: {error}"))?;
        }
        Ok(())
    }

    /// What the text before the cursor could go on with: a command, a file, a disk.
    fn candidates(&self, before: &str) -> Vec<String> {
        let start = before.rfind(' ').map_or(0, |blank| blank + 1);
        if before[..start].trim().is_empty() {
            return help::COMMANDS.iter().map(|command| command.0.into()).collect();
        }
        if before[..start].trim() == "xl" {
            return help::XL.iter().map(|command| command.0.into()).collect();
        }
        let files = self.bundle.files().iter().map(|file| format!("/boot/{}", file.name));
        files.chain(self.disks.paths()).collect()
    }
}

/// Fails if there is any argument.
fn no_more(arguments: &[&str]) -> Outcome {
    match arguments.first() {
        None => Ok(()),
        Some(word) => Err(format!("`{word}`: nothing is expected here")),
    }
}
