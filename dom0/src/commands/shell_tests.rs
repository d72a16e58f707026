//! The shell's own commands: their help, their end at `^C`, and the small ones.

use pvrt::executor::{block_on_test, time, yield_now};
use pvrt::host::take_console_output;

use super::tests::{run, shell};
use super::{Outcome, help};

#[test]
fn each_command_has_its_help() {
    for (name, arguments, text) in help::COMMANDS {
        // A command that ends the machine is not tried without an argument.
        for line in [format!("{name} -h"), format!("{name} --help"), format!("help {name}")] {
            let (outcome, output) = run(&line);
            assert_eq!(outcome, Ok(()), "{line}");
            if *name == "xl" {
                assert!(output.contains("xl create"), "{output}");
                continue;
            }
            let usage = format!("{name} {arguments}");
            assert!(output.contains(usage.trim_end()) && output.contains(text), "{line}: {output}");
            assert_eq!(output.lines().count(), 1, "{line}: {output}");
        }
    }
    let (_, all) = run("help");
    assert_eq!(all.lines().count(), help::COMMANDS.len());
    assert!(run("help frobnicate").0.is_err_and(|error| error.contains("frobnicate")));
}

#[test]
fn every_command_of_the_help_is_there() {
    // The watch goes on until `^C`; the test below covers it.
    for (name, ..) in help::COMMANDS.iter().filter(|command| command.0 != "xenstore-watch") {
        if let (Err(error), _) = run(&format!("{name} a b c d e f g")) {
            assert!(!error.starts_with(&format!("{name}: no such command")), "{error}");
        }
    }
}

#[test]
fn the_stores_daemon_is_asked() {
    let (outcome, output) = run("xenstore-control help");
    assert!(
        outcome == Ok(()) && output.contains("check\t\n") && output.contains("log\ton|off\n"),
        "{output}"
    );
    let (outcome, output) = run("xenstore-control quota");
    assert!(outcome == Ok(()) && output.contains("watches: 128\n"), "{output}");
    for line in ["xenstore-control check", "xenstore-control log on", "xenstore-control print 'a b'"] {
        assert_eq!(run(line), (Ok(()), String::new()), "{line}");
    }
    assert_eq!(run("xenstore-control").0, Err("usage: xenstore-control COMMAND ...".into()));
    assert_eq!(run("xenstore-control frobnicate").0, Err("frobnicate: EINVAL".into()));
    assert_eq!(run("xenstore-control print").0, Err("print: EINVAL".into()));
}

#[test]
fn echo_date_and_clear() {
    assert_eq!(run("echo"), (Ok(()), "\n".into()));
    assert_eq!(run("echo a 'b  c'"), (Ok(()), "a b  c\n".into()));
    assert_eq!(run("echo '\x1b[2J'"), (Ok(()), "^[[2J\n".into()));
    assert_eq!(run("clear"), (Ok(()), "\x1b[H\x1b[2J".into()));
    let (outcome, output) = run("date");
    assert_eq!(outcome, Ok(()));
    let shape: String = output.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
    assert_eq!(shape, "9999-99-99T99:99:99Z\n");
    assert!(run("date x").0.is_err() && run("clear x").0.is_err());
}

/// Runs a line, presses `^C` after some turns, and returns how the line ends. Turns are counted, since the clock of a
/// test stands still as long as a task can run.
fn interrupted(line: &'static str) -> Option<Outcome> {
    let shell = shell();
    let terminal = shell.terminal.clone();
    let outcome = block_on_test(async move {
        pvrt::spawn(async move {
            for _ in 0..1000 {
                yield_now().await;
            }
            terminal.interrupt();
        });
        time::timeout(60_000_000_000, shell.interruptible(line)).await
    });
    take_console_output();
    outcome.expect("it ends within a minute")
}

#[test]
fn what_goes_on_for_ever_ends_at_an_interrupt() {
    for line in [
        "sleep 1000000",
        "xenstore-watch /",
        "repeat 100000000000 echo x",
        "repeat 100000000000 try sleep 0",
        "try repeat 100000000000 clear",
    ] {
        assert_eq!(interrupted(line), None, "{line}");
    }
}
