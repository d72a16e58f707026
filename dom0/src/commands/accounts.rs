//! `accounts`: the memory that dom0 keeps for its domains.

use alloc::format;
use alloc::string::ToString;

use pvrt::account::{self, RESERVE_BYTES};
use pvrt::mem;

use super::{Outcome, Shell, no_more};
use crate::shell::print::Printer;

impl Shell {
    /// Prints a line for each account: the bytes promised, used, and used at most; then what dom0 itself
    /// uses.
    pub(super) async fn accounts(&self, arguments: &[&str]) -> Outcome {
        no_more(arguments)?;
        let mut printer = Printer::default();
        let [id, name, budget, used, peak, tasks] = ["ID", "Name", "Budget", "Used", "Peak", "Tasks"];
        printer.line(&format!("{id:<8} {name:<20} {budget:>12} {used:>12} {peak:>12} {tasks:>6}")).await;
        let mut charged = 0;
        for figures in account::all() {
            let id = figures.domain.map_or("-".to_string(), |id| id.to_string());
            let name = match figures.domain {
                Some(domain) if figures.open => self.toolstack.name(domain),
                Some(_) => "(ended)".to_string(),
                None => "(being made)".to_string(),
            };
            let (budget, used, peak) = (figures.budget, figures.used, figures.peak);
            let tasks = figures.tasks;
            printer.line(&format!("{id:<8} {name:<20} {budget:>12} {used:>12} {peak:>12} {tasks:>6}")).await;
            charged += used;
        }
        let own = mem::usage().heap_bytes.saturating_sub(charged);
        let reserve = format!("+{RESERVE_BYTES}");
        printer.line(&format!("{:<8} {:<20} {reserve:>12} {own:>12}", 0, "dom0")).await;
        printer.end().await;
        Ok(())
    }
}
