//! `xl vcpu-pin`.

use alloc::format;
use alloc::string::String;

use pvrt::hypercall::{domctl, sysctl};
use pvrt::{println, yield_now};
use ring_abi::types::DomId;

use super::Line;
use super::list::cpu_ranges;
use crate::commands::{Outcome, Shell};
use crate::config::{CPU_MAX, CpuSet};

/// The bitmap of all CPUs.
const ALL: [u8; CPU_MAX as usize / 8] = [0xff; CPU_MAX as usize / 8];

impl Shell {
    /// `xl vcpu-pin DOMAIN VCPU|all HARD|-|all [SOFT|-|all]`.
    pub(super) async fn xl_vcpu_pin(&self, line: &Line<'_>) -> Outcome {
        let [name, vcpu, hard, ref soft @ ..] = line.operands[..] else { return Err(line.command.usage()) };
        let soft = soft.first().copied().unwrap_or("-");
        let list = self.selected(&[name])?;
        let info = list.first().ok_or_else(|| format!("{name}: no such domain"))?;
        let id = DomId::new(info.domain);
        let vcpus = match vcpu {
            "all" => 0..=info.max_vcpu_id,
            _ => {
                let number = vcpu.parse().ok().filter(|&number: &u32| number <= info.max_vcpu_id);
                let number = number.ok_or_else(|| format!("{name}: `{vcpu}`: no such vCPU"))?;
                number..=number
            }
        };
        let map = |text| cpus(text).map_err(|error| line.wrong(&error));
        let (hard_map, soft_map) = (map(hard)?, map(soft)?);
        if hard_map.is_none() && soft_map.is_none() {
            return Ok(());
        }
        for vcpu in vcpus {
            if line.dry_run {
                let cpus = sysctl::physinfo().map_or(1, |machine| machine.max_cpu_id + 1);
                println!("cpu: {vcpu}");
                for (kind, map) in [("hard", &hard_map), ("soft", &soft_map)] {
                    if let Some(map) = map {
                        println!("{kind} affinity: {}", cpu_ranges(map, cpus));
                    }
                }
            } else {
                let (hard_map, soft_map) = (hard_map.as_ref(), soft_map.as_ref());
                domctl::set_vcpu_affinity(
                    id,
                    vcpu,
                    hard_map.map(|map| &map[..]),
                    soft_map.map(|map| &map[..]),
                )
                .map_err(|errno| {
                    let why = self.toolstack.affinity_refused(info.cpupool, errno);
                    format!("{name}: vCPU {vcpu}: CPUs {hard}, soft {soft}: {why}")
                })?;
            }
            yield_now().await;
        }
        Ok(())
    }
}

/// Reads CPUs as a bitmap; `None`: the affinity stays as it is.
fn cpus(text: &str) -> Result<Option<[u8; CPU_MAX as usize / 8]>, String> {
    Ok(match text {
        "-" => None,
        "all" => Some(ALL),
        _ => Some(match CpuSet::parse_named(text)? {
            CpuSet::Some(cpus) => cpus.bytes(),
            _ => ALL,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_as_in_a_configuration() {
        assert_eq!(cpus("-"), Ok(None));
        assert_eq!(cpus("all"), Ok(Some(ALL)));
        let map = cpus("0-3,^2,8").unwrap().unwrap();
        assert_eq!((map[0], map[1]), (0b1011, 1));
        assert!(cpus("x").is_err() && cpus("").is_err());
    }
}
