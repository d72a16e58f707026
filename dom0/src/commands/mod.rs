//! What the shell's lines do.
//!
//! A line is one command. Its outcome is success or one text, which the shell prints; a script ends at the first
//! line that fails.
#![forbid(unsafe_code)]

mod accounts;
mod files;
mod help;
mod machine;
mod print;
mod store;
mod terminal;
mod xl;
mod xl_block;
mod xl_control;
mod xl_info;
mod xl_top;

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

/// How many `repeat` and `try` one may hold.
const REPEATS_MAX: usize = 4;

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
                "ls" => self.ls(&texts).await,
                "cat" => self.cat(&texts).await,
                "accounts" => self.accounts(&texts).await,
                "sleep" => machine::sleep(&texts).await,
                "repeat" => self.repeat(line, arguments).await,
                "try" => self.try_line(line, arguments).await,
                "poweroff" | "halt" => {
                    no_more(&texts)?;
                    self.ending.power_off(true)
                }
                "reboot" => {
                    no_more(&texts)?;
                    self.ending.reboot()
                }
                "xenstore-ls" => self.xenstore_ls(&texts).await,
                "xenstore-read" => self.xenstore_read(&texts).await,
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
        nested(arguments)?;
        for round in 1..=count {
            self.run_line(repeated).await.map_err(|error| format!("round {round}: {error}"))?;
        }
        Ok(())
    }

    /// `try LINE`: runs the line, whose failure is printed and is none of this line's, so that a script goes on.
    async fn try_line(&self, line: &str, arguments: &[Word]) -> Outcome {
        let [first, ..] = arguments else { return Err("usage: try LINE".into()) };
        nested(arguments)?;
        if let Err(error) = self.run_line(&line[first.at..]).await {
            println!("error: {error}");
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

/// Fails if lines are within each other too often: each level stands on the stack of the one around it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenstore::{Nodes, Quotas};
    use pvrt::executor::block_on_test;
    use pvrt::host::take_console_output;

    fn shell() -> Shell {
        let store = Xenstore::new(Quotas::XEN);
        let (disks, terminal) = (Arc::new(Disks::new()), Terminal::new());
        let bundle = Bundle::default();
        let toolstack = Toolstack::new(store.clone(), disks.clone(), bundle.clone(), terminal.clone());
        Shell { bundle, store, disks, terminal, toolstack, started_ns: 0, ending: Ending::default() }
    }

    /// The outcome of a line, and what it printed.
    fn run(line: &str) -> (Outcome, String) {
        take_console_output();
        let outcome = block_on_test(async { shell().run_line(line).await });
        (outcome, String::from_utf8(take_console_output()).unwrap())
    }

    fn failure(line: &str) -> String {
        run(line).0.expect_err(line)
    }

    #[test]
    fn empty_lines_and_comments_succeed() {
        for line in ["", "   ", "# xl destroy everything"] {
            assert_eq!(run(line), (Ok(()), String::new()), "{line}");
        }
    }

    /// A domain may fill the store: to list it all at once would take dom0 from everybody for tens of milliseconds.
    #[test]
    fn others_run_while_a_full_store_is_listed() {
        use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        const NODES: usize = 500;
        let shell = shell();
        let client = shell.store.client();
        for at in 0..NODES {
            client.write(&format!("/d/{at}/x"), [b'v'; 40]).unwrap();
        }
        take_console_output();
        let turns = Arc::new(AtomicUsize::new(0));
        let others = turns.clone();
        block_on_test(async move {
            pvrt::spawn(async move {
                loop {
                    others.fetch_add(1, Relaxed);
                    pvrt::yield_now().await;
                }
            });
            shell.run_line("xenstore-ls -p /d").await.unwrap();
        });
        let output = String::from_utf8(take_console_output()).unwrap();
        assert_eq!(output.lines().count(), 2 * NODES);
        assert!(output.contains("\n499 = \"\"  (n0)\n x = \"vv"), "{output}");
        assert!(turns.load(Relaxed) >= 2 * NODES, "{turns:?}");
    }

    #[test]
    fn repeated_lines_stop_at_the_first_failure() {
        let (outcome, output) = run("repeat 2 repeat 3 xenstore-read /local/domain/0/name");
        assert_eq!((outcome, output.lines().count()), (Ok(()), 6));
        assert_eq!(run("repeat 0 frob").0, Ok(()));
        assert_eq!(failure("repeat 3 frob"), "round 1: frob: no such command; `help` lists them");
        assert!(failure("repeat x ls").contains("`x`"));
        assert!(failure("repeat 3").starts_with("usage"));
    }

    #[test]
    fn a_line_that_may_fail_is_no_failure() {
        let (outcome, output) = run("repeat 2 try frob");
        assert_eq!(outcome, Ok(()));
        assert_eq!(output.matches("error: frob: no such command").count(), 2, "{output}");
        assert!(failure("try").starts_with("usage"));
        assert!(failure("try try try try try try frob").contains("within each other"));
    }

    #[test]
    fn errors_name_what_they_are_about() {
        for (line, part) in [
            ("cat /boot/absent", "/boot/absent"),
            ("xl create /boot/absent.cfg", "/boot/absent.cfg"),
            ("xl create name='x'", "kernel"),
            ("xl create name='x' kernel='/boot/k' memory=8", "/boot/k"),
            ("xl create -x /boot/a", "-x"),
            ("xl destroy nobody", "nobody"),
            ("xl console 9", "9"),
            ("xl domname 9", "9"),
            ("xl frob", "frob"),
            ("xl block-attach nobody", "usage"),
            ("xl block-attach nobody phy:/dev/vda,xvdb,w", "nobody"),
            ("xl block-detach nobody xvdb", "nobody"),
            ("xl block-detach nobody --force", "usage"),
            ("xl block-list", "usage"),
            ("xl shutdown", "usage"),
            ("xl shutdown -a x", "x"),
            ("xl reboot -x", "usage"),
            ("xl mem-set nobody 12", "nobody"),
            ("xl mem-max nobody", "usage"),
            ("xl sysrq nobody c", "nobody"),
            ("xl trigger nobody", "usage"),
            ("xl vcpu-set nobody 2", "nobody"),
            ("xl top -d soon", "usage"),
            ("xl dmesg -x", "usage"),
            ("xl rename nobody somebody", "nobody"),
            ("xenstore-read /no/such", "/no/such: ENOENT"),
            ("sleep soon", "soon"),
            ("ls 'unclosed", "column 4"),
        ] {
            let error = failure(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn a_script_prints_its_failing_line_and_the_error_last() {
        let script = File { name: SCRIPT, bytes: b"xenstore-write /a 1\nfrob x\nhelp\n" };
        take_console_output();
        assert_eq!(block_on_test(async { shell().run_script(script).await }), Err(()));
        let output = String::from_utf8(take_console_output()).unwrap();
        assert!(
            output.ends_with("dom0# frob x\nerror: frob: no such command; `help` lists them\n"),
            "{output}"
        );
    }

    #[test]
    fn waiting_for_what_is_gone_succeeds() {
        assert_eq!(run("wait --all").0, Ok(()));
        assert_eq!(run("wait nobody").0, Ok(()));
        assert!(failure("wait").starts_with("usage"));
    }

    #[test]
    fn completion_offers_commands_then_files() {
        let shell = shell();
        assert!(shell.candidates("").contains(&"xl".to_string()));
        assert!(shell.candidates("xl ").contains(&"create".to_string()));
        assert!(shell.candidates("cat ").is_empty());
    }
}
