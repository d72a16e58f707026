//! `xl sched-credit2`: scheduler weights.

use alloc::format;
use alloc::string::String;

use pvrt::hypercall::{domctl, sysctl};
use ring_abi::types::DomId;

use super::{Line, pools};
use crate::commands::{Outcome, Shell};
use crate::shell::print::Printer;

impl Shell {
    /// `xl sched-credit2 [-d DOMAIN [-w WEIGHT]] [-p POOL]`.
    pub(super) async fn xl_shares(&self, line: &Line<'_>) -> Outcome {
        let wanted = weight(line)?;
        let pool = line.value("p");
        let names = line.value("d");
        match (names, wanted) {
            (None, None) => pools::check(pool)?,
            (None, Some(_)) => return Err(line.wrong("-w needs a domain, -d")),
            (Some(_), _) if pool.is_some() => return Err(line.wrong("-d and -p exclude each other")),
            (Some(_), _) => {}
        }
        let scheduler = sysctl::scheduler().map_err(|errno| format!("scheduler: {errno}"))?;
        let list = self.selected(names.as_slice())?;
        if let Some(weight) = wanted {
            for info in list {
                let id = DomId::new(info.domain);
                domctl::set_share(id, scheduler, weight, 0)
                    .map_err(|errno| format!("{}: {errno}", self.toolstack.name(id)))?;
                self.toolstack.keep_weight(id, weight);
            }
            return Ok(());
        }
        let mut printer = Printer::default();
        if names.is_none() {
            printer.line(&format!("Cpupool {}: sched=credit2", pools::ONLY)).await;
        }
        printer.line(&format!("{:<33} {:>4} {:>6} {:>4}", "Name", "ID", "Weight", "Cap")).await;
        for info in list {
            let id = DomId::new(info.domain);
            let name = self.toolstack.name(id);
            let (weight, cap) = domctl::share(id, scheduler).map_err(|errno| format!("{name}: {errno}"))?;
            printer.line(&format!("{name:<33} {:>4} {weight:>6} {cap:>4}", info.domain)).await;
        }
        printer.end().await;
        Ok(())
    }
}

/// The weight to set.
fn weight(line: &Line<'_>) -> Result<Option<u16>, String> {
    let Some(text) = line.value("w") else { return Ok(None) };
    match text.parse() {
        Ok(number @ 1..) => Ok(Some(number)),
        _ => Err(line.wrong(&format!("-w: `{text}`: expected 1 to 65535"))),
    }
}

#[cfg(test)]
mod tests {
    use crate::commands::tests::failure;

    #[test]
    fn shares_are_numbers_of_one_domain() {
        for (line, part) in [
            ("xl sched-credit2 -w 512", "-w needs a domain"),
            ("xl sched-credit2 -d x -w 0", "-w: `0`: expected 1 to 65535"),
            ("xl sched-credit2 -d x -c 50", "no vCPU from a CPU that is idle"),
            ("xl sched-credit2 -d x --weight=65536", "-w: `65536`"),
            ("xl sched-credit2 -p Pool-1", "Pool-1: no such CPU pool"),
            ("xl sched-credit2 -d x -p Pool-0", "exclude each other"),
            ("xl sched-credit2 -s", "no parameters of its own"),
        ] {
            let error = failure(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
