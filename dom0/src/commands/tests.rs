use super::*;
use crate::netback::Network;
use crate::xenstore::{Nodes, Quotas};
use pvrt::executor::block_on_test;
use pvrt::host::take_console_output;

pub(super) fn shell() -> Shell {
    let store = Xenstore::new(Quotas::XEN);
    let toolstack = toolstack_of(store.clone(), Arc::new(Disks::new()), Bundle::default());
    shell_with(toolstack, store)
}

pub(super) fn toolstack_of(store: Xenstore, disks: Arc<Disks>, bundle: Bundle) -> Toolstack {
    Toolstack::new(store, disks, Arc::new(Network::new()), bundle, Terminal::new())
}

pub(super) fn shell_with(toolstack: Toolstack, store: Xenstore) -> Shell {
    let (disks, terminal, bundle) = (Arc::new(Disks::new()), Terminal::new(), Bundle::default());
    let network = Arc::new(Network::new());
    let (capture, ending) = (CaptureFile::new(None), Ending::default());
    let side_channels = SideChannels::default();
    Shell {
        bundle,
        store,
        disks,
        network,
        capture,
        terminal,
        toolstack,
        started_ns: 0,
        side_channels,
        ending,
    }
}

/// The outcome of a line, and what it printed.
pub(super) fn run(line: &str) -> (Outcome, String) {
    take_console_output();
    let outcome = block_on_test(async { shell().run_line(line).await });
    (outcome, String::from_utf8(take_console_output()).unwrap())
}

pub(super) fn failure(line: &str) -> String {
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
        turns_during("repeat 10 xenstore-write /a 1 /b 2 /c 3 /d 4 /e 5 /f 6 /g 7 /h 8 /i 9 /j 10") >= 100
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
        // A `^C` that came too late for one line must not interrupt the next.
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

/// A domain may fill the store. To list all of it in one poll would stop dom0's other tasks for tens of
/// milliseconds.
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
        ("xl top -i x", "-i: `x` is no number"),
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

/// One of two domains writes bytes that are no text and does not shut down. The command must still wait for the
/// other, and the script must go on.
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
    assert!(output.ends_with("dom0# frob x\nerror: frob: no such command; `help` lists them\n"), "{output}");
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
