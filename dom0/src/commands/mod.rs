//! What the shell's lines do.
//!
//! A line is one command. Its outcome is success or one text, which the shell prints; a script ends at the first
//! line that fails.
#![forbid(unsafe_code)]

mod accounts;
mod files;
mod help;
mod machine;
mod store;
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
use pvrt::{println, yield_now};

use crate::blkdev::Disks;
use crate::bundle::{Bundle, File, SCRIPT};
use crate::shell::print::shown;
use crate::shell::{LINE_BYTES_MAX, PROMPT, Terminal, Word, split};
use crate::toolstack::Toolstack;
use crate::xenstore::Xenstore;

pub use machine::Ending;

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
        let mut rest = script.bytes;
        while !rest.is_empty() {
            // Line by line: a script may be of any length.
            let Some(line) = first_line(&mut rest) else {
                println!("error: {}: a line has more than {LINE_BYTES_MAX} bytes", shown(script.name));
                return Err(());
            };
            let Ok(line) = core::str::from_utf8(line) else {
                println!("error: {} is not UTF-8", shown(script.name));
                return Err(());
            };
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

    /// Runs a line until `^C`; `None`: that came.
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

    /// Runs a line. Others run before it, so that lines in a row do not keep them waiting, whatever the lines do.
    pub fn run_line<'a>(&'a self, line: &'a str) -> Running<'a> {
        Box::pin(async move {
            yield_now().await;
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
                "xenstore-write" => self.xenstore_write(&texts).await,
                "xenstore-rm" => self.xenstore_rm(&texts).await,
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
            println!("error: {}", shown(&error));
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
        // A name with control characters would go to the terminal with the line.
        files.chain(self.disks.paths()).filter(|path| !path.contains(char::is_control)).collect()
    }
}

/// Takes the first line off `rest`, without its end; `None`: it is longer than a line may be.
fn first_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    // With its end, of one byte or two.
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
        let toolstack =
            Toolstack::new(store.clone(), Arc::new(Disks::new()), Bundle::default(), Terminal::new());
        shell_with(toolstack, store)
    }

    fn shell_with(toolstack: Toolstack, store: Xenstore) -> Shell {
        let (disks, terminal, bundle) = (Arc::new(Disks::new()), Terminal::new(), Bundle::default());
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

    /// How many turns others had while a line ran, on a machine of its own.
    fn turns_during(line: &'static str) -> usize {
        std::thread::spawn(move || turns_here(line)).join().unwrap()
    }

    fn turns_here(line: &'static str) -> usize {
        turns_of(shell(), line)
    }

    /// How many turns others had while `shell` ran a line that succeeds.
    fn turns_of(shell: Shell, line: &'static str) -> usize {
        use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
        let turns = Arc::new(AtomicUsize::new(0));
        let others = turns.clone();
        block_on_test(async move {
            pvrt::spawn(async move {
                loop {
                    others.fetch_add(1, Relaxed);
                    pvrt::yield_now().await;
                }
            });
            shell.run_line(line).await.unwrap();
        });
        turns.load(Relaxed)
    }

    #[test]
    fn others_run_between_rounds_and_arguments() {
        for line in [
            "repeat 100 xenstore-write /a 1",
            "repeat 100 sleep 0",
            "repeat 100 try frob",
            "repeat 10 xenstore-write /a 1 /b 2 /c 3 /d 4 /e 5 /f 6 /g 7 /h 8 /i 9 /j 10",
            "repeat 20 try xenstore-read /a /b /c",
        ] {
            let turns = turns_during(line);
            assert!(turns >= 20, "{line}: {turns}");
        }
        assert!(
            turns_during("repeat 10 xenstore-write /a 1 /b 2 /c 3 /d 4 /e 5 /f 6 /g 7 /h 8 /i 9 /j 10")
                >= 100
        );
    }

    #[test]
    fn an_endless_script_lets_others_run_and_is_interrupted() {
        let shell = shell();
        take_console_output();
        let terminal = shell.terminal.clone();
        block_on_test(async move {
            pvrt::spawn(async move {
                for _ in 0..100 {
                    pvrt::yield_now().await;
                }
                terminal.interrupt();
            });
            let script = File { name: SCRIPT, bytes: b"repeat 100000000 xenstore-write /a 1\nhelp\n" };
            assert_eq!(shell.run_script(script).await, Err(()));
            // What came too late for one line is not for the next.
            shell.terminal.interrupt();
            assert_eq!(shell.interruptible("xenstore-read /a").await, Some(Ok(())));
        });
        let output = String::from_utf8(take_console_output()).unwrap();
        assert!(output.contains("error: interrupted\n"), "{output}");
    }

    #[test]
    fn lines_of_scripts_have_a_limit() {
        let line = |bytes: usize, end: &str| [vec![b'#'; bytes], end.as_bytes().to_vec()].concat();
        for (bytes, fits) in [
            (line(LINE_BYTES_MAX, "\n"), true),
            (line(LINE_BYTES_MAX, "\r\n"), true),
            (line(LINE_BYTES_MAX, ""), true),
            (line(LINE_BYTES_MAX + 1, "\n"), false),
            (line(LINE_BYTES_MAX + 1, ""), false),
            (line(10 * LINE_BYTES_MAX, "\n"), false),
        ] {
            let script = File { name: SCRIPT, bytes: bytes.leak() };
            let outcome = block_on_test(async { shell().run_script(script).await });
            assert_eq!(outcome.is_ok(), fits, "{script:?}");
        }
        let mut rest = &b"a\n\nb\r\nc"[..];
        let mut lines = Vec::new();
        while !rest.is_empty() {
            lines.push(first_line(&mut rest).unwrap());
        }
        assert_eq!(lines, [&b"a"[..], b"", b"b", b"c"]);
    }

    #[test]
    fn errors_do_not_drive_the_terminal() {
        for line in ["'\x1b[2J' x", "xl create name='x' kernel='\x1b[Hk' memory=8", "xl create '\x1b]0;x'"] {
            let script = File { name: SCRIPT, bytes: line.as_bytes() };
            take_console_output();
            block_on_test(async { shell().run_script(script).await }).unwrap_err();
            let output = String::from_utf8(take_console_output()).unwrap();
            assert!(output.contains("^[") && !output.contains('\x1b'), "{output:?}");
        }
    }

    /// A domain may fill the store: to list it all at once would take dom0 from everybody for tens of milliseconds.
    #[test]
    fn others_run_while_a_full_store_is_listed() {
        const NODES: usize = 500;
        let shell = shell();
        let client = shell.store.client();
        for at in 0..NODES {
            client.write(&format!("/d/{at}/x"), [b'v'; 40]).unwrap();
        }
        take_console_output();
        let turns = turns_of(shell, "xenstore-ls -p /d");
        let output = String::from_utf8(take_console_output()).unwrap();
        assert_eq!(output.lines().count(), 2 * NODES);
        assert!(output.contains("\n499 = \"\"  (n0)\n x = \"vv"), "{output}");
        assert!(turns >= 2 * NODES, "{turns}");
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
            ("xl top -d 0", "0.1"),
            ("xl top -d 0.099999999", "0.1"),
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

    /// Of two domains one writes what is no text, and does nothing: the other is waited for all the same, and so is what
    /// follows in a script.
    #[test]
    fn one_domain_that_does_wrong_is_noted_and_the_others_waited_for() {
        use pvrt::executor::time;
        let (toolstack, client) = crate::toolstack::start_for_tests();
        take_console_output();
        block_on_test(async move {
            let all = toolstack.clone();
            pvrt::spawn(async move {
                time::sleep(1_000_000_000).await;
                client.write("/local/domain/1/control/shutdown", b"\xff").unwrap();
                client.write("/local/domain/2/control/shutdown", b"").unwrap();
                time::sleep(100_000_000_000).await;
                all.destroy(&all.find("two").unwrap()).await.unwrap();
            });
            let shell = shell_with(toolstack, Xenstore::new(Quotas::XEN));
            let begun = time::now_ns();
            let outcome = shell.run_line("xl shutdown -a -w").await;
            assert_eq!(outcome.unwrap_err(), "one: no acknowledgement of the request within a minute");
            assert!(time::now_ns() - begun > 100_000_000_000, "the other was waited for");
        });
        let output = String::from_utf8(take_console_output()).unwrap();
        assert!(output.contains("Domain 2 has been destroyed"), "{output}");
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
