//! `echo`, `date` and `clear`.

use pvrt::executor::time;
use pvrt::println;

use super::{Outcome, no_more};
use crate::shell::print::Printer;

/// `echo [WORD...]`: prints the words, with their control characters shown.
pub(super) async fn echo(arguments: &[&str]) -> Outcome {
    let mut printer = Printer::default();
    printer.line(&arguments.join(" ")).await;
    printer.end().await;
    Ok(())
}

/// `date`: shows the date and the time, in UTC.
pub(super) fn date(arguments: &[&str]) -> Outcome {
    no_more(arguments)?;
    println!("{}", time::Utc(time::wall_ns()));
    Ok(())
}

/// `clear`: clears the screen.
pub(super) fn clear(arguments: &[&str]) -> Outcome {
    no_more(arguments)?;
    pvrt::print!("\x1b[H\x1b[2J");
    Ok(())
}
