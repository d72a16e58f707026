//! The serial line: who has it, what the hypervisor says on it, and how an end is told.

use anyhow::Result;
use tests::{Machine, Scratch};
use xtask::machine::Boot;
use xtask::session::Outcome;

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    Vec::from(crate::cases![console:
        debug_keys_answer_and_dom0_gets_its_input_back,
        the_frame_table_agrees_with_the_page_tables,
        a_broken_dom0_is_refused_in_one_line,
        another_kernel_in_dom0s_place_has_its_own_end,
        a_time_limit_ends_the_machine,
    ])
}

/// Switches the serial input between dom0 and the hypervisor.
const SWITCH: &str = "\x01\x01\x01";

fn debug_keys_answer_and_dom0_gets_its_input_back() -> Result<()> {
    let mut machine = Machine::new("debug-keys").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_text(SWITCH)?;
    machine.expect("serial input to microhv", 20)?;
    machine.type_text("h")?;
    machine.expect("key 'q'", 20)?;
    machine.type_text("q")?;
    machine.expect("d0:", 20)?;
    machine.type_text(SWITCH)?;
    machine.expect("serial input to dom0", 20)?;
    // Two are too few: they are dom0's.
    machine.type_text("\x01\x01")?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

fn the_frame_table_agrees_with_the_page_tables() -> Result<()> {
    let mut machine = Machine::new("frame-table").start()?;
    machine.expect("dom0# ", 60)?;
    machine.type_text(SWITCH)?;
    machine.type_text("M")?;
    machine.expect("frame table: 0 differences", 60)?;
    machine.type_text(SWITCH)?;
    machine.type_line("poweroff")?;
    machine.finish().succeeded()?;
    Ok(())
}

fn a_broken_dom0_is_refused_in_one_line() -> Result<()> {
    let scratch = Scratch::new("broken-dom0")?;
    let image = std::fs::read(xtask::images::find("hello")?.bootable())?;
    for (name, bytes) in
        [("cut", &image[..image.len() / 2]), ("text", b"#!/bin/sh\n".as_slice()), ("empty", b"")]
    {
        let kernel = scratch.file(name, bytes)?;
        let run = Machine::new(&format!("broken-dom0-{name}"))
            .with(|machine| machine.dom0 = kernel)
            .run()?
            .ended_with(&Outcome::Refused)?
            .says_at_the_end(1, "error: dom0 is refused: the first module: ")?;
        run.require(!run.console().contains("PANIC"), "the hypervisor panicked")?;
    }
    Ok(())
}

/// `hello` as the control domain.
fn another_kernel_in_dom0s_place_has_its_own_end() -> Result<()> {
    let hello = xtask::images::find("hello")?.bootable();
    for (words, outcome) in [("", Outcome::Succeeded), ("panic", Outcome::Panicked)] {
        let machine = Machine::new(&format!("other-dom0-{words}")).with(|machine| {
            machine.dom0 = hello.clone();
            machine.dom0_arguments = words.into();
        });
        machine.run()?.ended_with(&outcome)?;
    }
    Ok(())
}

fn a_time_limit_ends_the_machine() -> Result<()> {
    // Another loader may take longer than the limit, and so this test names its loader.
    Machine::new("time-limit").boot(Boot::Direct).seconds(10).run()?.timed_out()?.says("dom0# ")?;
    Ok(())
}
