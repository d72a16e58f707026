//! `xl sched-credit2`: scheduler weights and caps.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::hypercall::domctl;
use ring_abi::domctl::{XEN_SCHEDULER_CREDIT2 as CREDIT2, XenDomctlGetdomaininfo};
use ring_abi::errno::Errno;
use ring_abi::types::DomId;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::shell::print::{Printer, shown};
use crate::toolstack::scheduler_name;

/// The greatest cap that the hypercall can set. The next number leaves a cap as it is.
const MOST_CAP: u16 = 65534;

impl Shell {
    /// `xl sched-credit2 [-d DOMAIN [-w WEIGHT] [-c CAP]] [-p POOL]`.
    pub(super) async fn xl_shares(&self, line: &Line<'_>) -> Outcome {
        let (weight, cap) = (number(line, "w", 1, u16::MAX)?, number(line, "c", 0, MOST_CAP)?);
        let sets = weight.is_some() || cap.is_some();
        let pool = line.value("p");
        let names = line.value("d");
        match (names, sets) {
            (None, true) => return Err(line.wrong("-w and -c need a domain, -d")),
            (Some(_), _) if pool.is_some() => return Err(line.wrong("-d and -p exclude each other")),
            _ => {}
        }
        let list = self.selected(names.as_slice())?;
        if sets {
            for info in list {
                let id = DomId::new(info.domain);
                let name = self.toolstack.name(id);
                check_cap(cap, info.max_vcpu_id + 1).map_err(|why| format!("{name}: {why}"))?;
                let (old_weight, old_cap) =
                    domctl::share(id, CREDIT2).map_err(|errno| format!("{name}: {}", refused(errno)))?;
                let (weight, cap) = (weight.unwrap_or(old_weight), cap.unwrap_or(old_cap));
                domctl::set_share(id, CREDIT2, weight, cap).map_err(|errno| format!("{name}: {errno}"))?;
                self.toolstack.keep_share(id, weight, cap);
            }
            return Ok(());
        }
        let mut printer = Printer::default();
        if names.is_some() {
            self.show_shares(&mut printer, &list).await?;
        } else {
            let pools = match pool {
                Some(name) => Vec::from([self.toolstack.find_pool(name)?]),
                None => self.toolstack.pools()?,
            };
            if let [only] = &pools[..]
                && only.scheduler != CREDIT2
            {
                let (name, scheduler) = (self.toolstack.pool_name(only.id), scheduler_name(only.scheduler));
                return Err(format!("{name}: the CPU pool's scheduler is {scheduler}, not credit2"));
            }
            for pool in pools.iter().filter(|pool| pool.scheduler == CREDIT2) {
                let name = self.toolstack.pool_name(pool.id);
                printer.line(&format!("Cpupool {}: sched=credit2", shown(&name))).await;
                let inside: Vec<_> = list.iter().filter(|info| info.cpupool == pool.id).copied().collect();
                self.show_shares(&mut printer, &inside).await?;
            }
        }
        printer.end().await;
        Ok(())
    }

    async fn show_shares(&self, printer: &mut Printer, list: &[XenDomctlGetdomaininfo]) -> Outcome {
        printer.line(&format!("{:<33} {:>4} {:>6} {:>4}", "Name", "ID", "Weight", "Cap")).await;
        for info in list {
            let id = DomId::new(info.domain);
            let name = self.toolstack.name(id);
            let (weight, cap) =
                domctl::share(id, CREDIT2).map_err(|errno| format!("{name}: {}", refused(errno)))?;
            printer.line(&format!("{name:<33} {:>4} {weight:>6} {cap:>4}", info.domain)).await;
        }
        Ok(())
    }
}

/// As libxl has it, a cap above what all vCPUs can use is a slip.
fn check_cap(cap: Option<u16>, vcpus: u32) -> Outcome {
    match (cap, vcpus * 100) {
        (Some(cap), most) if u32::from(cap) > most => {
            Err(format!("cap {cap}: expected 0 to {most}, 100 for each vCPU"))
        }
        _ => Ok(()),
    }
}

/// Why the hypervisor refuses a domain's share.
fn refused(errno: Errno) -> String {
    match errno {
        Errno::EINVAL => "the domain's CPU pool has another scheduler than credit2".into(),
        other => format!("{other}"),
    }
}

/// The number to set, `least` to `most`.
fn number(line: &Line<'_>, option: &str, least: u16, most: u16) -> Result<Option<u16>, String> {
    let Some(text) = line.value(option) else { return Ok(None) };
    match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
        _ => Err(line.wrong(&format!("-{option}: `{text}`: expected {least} to {most}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::check_cap;
    use crate::commands::tests::failure;

    #[test]
    fn a_cap_is_at_most_what_all_vcpus_can_use() {
        for cap in [None, Some(0), Some(200)] {
            assert_eq!(check_cap(cap, 2), Ok(()), "{cap:?}");
        }
        assert_eq!(check_cap(Some(201), 2), Err("cap 201: expected 0 to 200, 100 for each vCPU".into()));
    }

    #[test]
    fn shares_are_numbers_of_one_domain() {
        pvrt::host::Machine::install();
        for (line, part) in [
            ("xl sched-credit2 -w 512", "-w and -c need a domain"),
            ("xl sched-credit2 -c 50", "-w and -c need a domain"),
            ("xl sched-credit2 -d x -w 0", "-w: `0`: expected 1 to 65535"),
            ("xl sched-credit2 -d x -w 65535", "x: no such domain"),
            ("xl sched-credit2 -d x -c 65535", "-c: `65535`: expected 0 to 65534"),
            ("xl sched-credit2 -d x -w -1", "-w: `-1`: expected"),
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
