//! `xl console --log`: the kept output of a domain's console.

use alloc::format;
use alloc::string::String;

use super::{Outcome, Shell};
use crate::consoled::Kept;
use crate::shell::print::Printer;

impl Shell {
    /// Shows a domain's output, each line with its time; before that, the last output of the domain of that name that
    /// ended last.
    pub(in crate::commands) async fn console_log(&self, domain: &str) -> Outcome {
        let name = self.toolstack.find(domain).map_or_else(|_| String::from(domain), |domain| domain.name);
        let [ended, live] = self.toolstack.consoles().kept(&name);
        if ended.is_none() && live.is_none() {
            return Err(format!("{domain}: no such domain, and no log of one"));
        }
        let mut printer = Printer::default();
        if let Some(ended) = ended {
            show(&mut printer, &ended).await;
            printer
                .line(&format!(
                    "--- {name} has ended{}",
                    if live.is_some() { "; the one of now:" } else { "" }
                ))
                .await;
        }
        if let Some(live) = live {
            show(&mut printer, &live).await;
        }
        printer.end().await;
        Ok(())
    }
}

/// Prints lines, with yields between them.
async fn show(printer: &mut Printer, kept: &Kept) {
    for (time, line) in kept.lines() {
        printer.line(&format!("[{time}] {}", String::from_utf8_lossy(line))).await;
    }
}
