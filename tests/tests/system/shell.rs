//! dom0's shell and its `xl`: a domain's whole life from the prompt and from scripts.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests::linux::command;
use tests::{Live, Machine};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![shell:
        a_domain_is_created_at_the_prompt,
        every_verb_of_a_domains_life,
        a_destroyed_domain_is_gone,
        a_paused_domain_waits_for_its_turn,
        xenstore_is_read_and_written,
        keep_leaves_the_person_at_the_prompt,
        a_running_domain_is_changed,
        an_interrupted_create_leaves_nothing,
    ])
}

fn a_domain_is_created_at_the_prompt() -> Result<()> {
    let mut machine = Machine::new("create-at-prompt").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create -c /boot/hello.cfg")?;
    machine.expect("hello: goodbye", 60)?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl list")?;
    let list = machine.expect("dom0# ", 20)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    run.require(list.contains("Domain-0") && !list.contains("hello"), "the domain is not gone from the list")
}

fn every_verb_of_a_domains_life() -> Result<()> {
    Machine::new("verbs")
        .line("xl create /boot/hello.cfg name=\"w\" extra=\"wait\"")
        .line("xl list")
        .line("xl domid w")
        .line("xl domname 1")
        .line("xl vcpu-list")
        .line("xl vcpu-list w")
        .line("xl uptime")
        .line("xl pause w")
        .line("xl unpause w")
        .line("xl info")
        .line("xl dmesg")
        .line("sleep 1")
        .line("xl shutdown -w w")
        .line("wait --all")
        .run()?
        .succeeded()?
        .says("Poweroff asked for")?;
    Ok(())
}

fn a_destroyed_domain_is_gone() -> Result<()> {
    let create = "xl create /boot/hello.cfg name=\"w\" extra=\"wait\"";
    let machine = Machine::new("destroy").line(create).line("xl destroy w").line("wait --all");
    // The name is free again.
    let machine = machine.line(create).line("xl destroy w").line("xl domid w");
    machine.run()?.line_failed()?.says_at_the_end(2, "w: no such domain")?;
    Ok(())
}

fn a_paused_domain_waits_for_its_turn() -> Result<()> {
    let mut machine = Machine::new("paused").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("xl create -p /boot/hello.cfg")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("sleep 1")?;
    let before = machine.expect("dom0# ", 20)?;
    machine.type_line("xl unpause hello")?;
    machine.expect("hello: goodbye", 60)?;
    machine.type_line("wait --all")?;
    machine.expect("dom0# ", 60)?;
    machine.type_line("poweroff")?;
    let run = machine.finish().succeeded()?;
    run.require(!before.contains("a guest of"), "the domain ran while it was paused")
}

fn xenstore_is_read_and_written() -> Result<()> {
    Machine::new("xenstore")
        .line("xenstore-write /test/a one /test/b two")
        .line("xenstore-read /test/a /test/b")
        .line("xenstore-ls /test")
        .line("xenstore-rm /test")
        .line("xenstore-read /test/a")
        .run()?
        .line_failed()?
        .says("two")?
        .says_at_the_end(2, "ENOENT")?;
    Ok(())
}

fn keep_leaves_the_person_at_the_prompt() -> Result<()> {
    let mut machine = Machine::new("keep").line("ls /boot").with(|machine| machine.keep = true).start()?;
    machine.expect("hello.cfg", 60)?;
    machine.expect("dom0# ", 20)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

/// What a domain is to have and to do stands in the store, and `xl` shows it.
fn a_running_domain_is_changed() -> Result<()> {
    let run = Machine::new("changed")
        .line("xl create -p /boot/hello.cfg memory=16 maxmem=32 vcpus=1 maxvcpus=3")
        .line("xl rename hello other")
        .line("xl mem-set other 24")
        .line("xl mem-max other 48")
        .line("xl vcpu-set other 2")
        .line("xl sysrq other h")
        .line("xl trigger other nmi")
        .line("xenstore-read /local/domain/1/name /local/domain/1/memory/target /local/domain/1/memory/static-max")
        .line("xenstore-read /local/domain/1/cpu/1/availability /local/domain/1/cpu/2/availability")
        .line("xenstore-read /local/domain/1/control/sysrq")
        .line("xl top -d 0.1 -i 1")
        .line("xl dmesg -c")
        .line("xl dmesg")
        .line("xl unpause other")
        .line("wait other")
        .line("xl mem-set Domain-0 12")
        .run()?
        .line_failed()?
        .says("other\r\n24576\r\n49152\r\n")?
        .says("online\r\noffline\r\n")?
        .says("other --")?
        .says_at_the_end(2, "error: Domain-0")?;
    // What it says when it boots, in the first of the two and in the console's own.
    let calibrated = run.console().matches(" kHz, timer ").count();
    run.require(calibrated == 2, &format!("the messages were shown {calibrated} times"))
}

/// A figure of `xl info`.
fn figure(machine: &mut Live, name: &str) -> Result<String> {
    let info = command(machine, "xl info", 60)?;
    let line = info.lines().find(|line| line.starts_with(name)).context("the figure is not there")?;
    Ok(line.to_owned())
}

/// `^C` while a domain gets its memory: the memory comes back, and its name is free.
fn an_interrupted_create_leaves_nothing() -> Result<()> {
    const TRIES: usize = 16;
    const GONE_WITHIN: Duration = Duration::from_secs(60);
    let mut machine = Machine::new("interrupted-create").start()?;
    machine.expect("dom0# ", 60)?;
    let (frames, nodes) = (figure(&mut machine, "free_frames")?, figure(&mut machine, "xenstore_nodes")?);
    let mut delay = Duration::from_millis(100);
    for attempt in 1.. {
        ensure!(attempt <= TRIES, "`^C` came each time before the domain was begun, or after it was made");
        machine.type_line("xl create /boot/hello.cfg name='big' extra='wait' memory=850")?;
        machine.expect("memory=850", 20)?;
        thread::sleep(delay);
        machine.type_text("\x03")?;
        let said = machine.expect("dom0# ", 60)?;
        let list = command(&mut machine, "xl list", 60)?;
        // One that is dying has lost its name already, as on Xen.
        let is_nameless = |line: &str| line.starts_with("(null)") && !line.contains("--d");
        ensure!(!list.lines().any(is_nameless), "a domain without a name: {list}");
        if said.contains("big: given up") {
            break;
        }
        // How long the building takes depends on the host.
        if list.contains("big") {
            command(&mut machine, "xl destroy big", 60)?;
            delay /= 2;
        } else {
            delay *= 2;
        }
    }
    // What there is of the domain goes behind the prompt.
    let began = Instant::now();
    loop {
        let list = command(&mut machine, "xl list", 60)?;
        let left = (figure(&mut machine, "free_frames")?, figure(&mut machine, "xenstore_nodes")?);
        if !list.contains("big") && left == (frames.clone(), nodes.clone()) {
            break;
        }
        ensure!(began.elapsed() < GONE_WITHIN, "something is left: {left:?}, {list}");
        thread::sleep(Duration::from_millis(200));
    }
    command(&mut machine, "xl create -F /boot/hello.cfg name='big' memory=850", 180)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}
