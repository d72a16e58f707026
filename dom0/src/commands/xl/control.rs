//! `xl`: the sub-commands that send requests to a running domain.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use pvrt::executor::join_all;
use pvrt::{println, yield_now};
use ring_abi::domctl::*;

use super::Line;
use crate::commands::{Outcome, Shell};
use crate::toolstack::{Domain, End};

/// What `xl trigger` can send. ABI: `XEN_DOMCTL_SENDTRIGGER_*`, `xen/include/public/domctl.h`.
const TRIGGERS: &[(&str, u32)] = &[
    ("nmi", XEN_DOMCTL_SENDTRIGGER_NMI),
    ("reset", XEN_DOMCTL_SENDTRIGGER_RESET),
    ("init", XEN_DOMCTL_SENDTRIGGER_INIT),
    ("power", XEN_DOMCTL_SENDTRIGGER_POWER),
    ("sleep", XEN_DOMCTL_SENDTRIGGER_SLEEP),
];

/// Which of the two requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// `xl shutdown`
    Shutdown,
    /// `xl reboot`
    Reboot,
}

impl Request {
    /// The value that the domain reads.
    fn reason(self) -> &'static str {
        match self {
            Self::Shutdown => "poweroff",
            Self::Reboot => "reboot",
        }
    }

    fn doing(self) -> &'static str {
        match self {
            Self::Shutdown => "Shutting down",
            Self::Reboot => "Rebooting",
        }
    }
}

impl Shell {
    /// `xl shutdown|reboot [-w] [-F] DOMAIN...|-a`: returns when the domain has acknowledged the request, as Xen's
    /// `xl` does; with `-w` when the domain has ended, with `-ww` when it is gone.
    pub(super) async fn xl_request(&self, line: &Line<'_>, request: Request) -> Outcome {
        let (waits, all) = (line.count("w"), line.has("a"));
        let find = |name: &&str| self.toolstack.find(name);
        let mut domains = line.operands.iter().map(find).collect::<Result<Vec<Domain>, String>>()?;
        if all != domains.is_empty() {
            return Err(line.command.usage());
        }
        if all {
            domains = self.toolstack.domains();
            domains.retain(|domain| domain.fate.lock().end.is_none());
        }
        // An error of one domain is noted, and the others are still asked.
        let mut failed: Vec<String> = Vec::new();
        let mut asked = Vec::new();
        for domain in domains {
            println!("{} domain {}", request.doing(), domain.id);
            match self.toolstack.request(&domain, request.reason()) {
                Ok(()) => asked.push(domain),
                Err(error) => failed.push(error),
            }
            yield_now().await;
        }
        // All domains have the same minute to acknowledge.
        let taken = join_all(asked.iter().map(|domain| self.toolstack.acknowledged(domain))).await;
        let mut following = Vec::new();
        for (domain, taken) in asked.iter().zip(taken) {
            match taken {
                Ok(()) => following.push(domain),
                Err(error) => failed.push(error),
            }
        }
        if waits > 0 {
            println!("Waiting for {} domains", following.len());
            for domain in following {
                self.toolstack.wait_until(|_| domain.fate.lock().over).await;
                if waits > 1 {
                    // A domain that is kept dead is gone only when it is destroyed.
                    self.toolstack.wait_until(|all| !all.is_there(domain)).await;
                }
                println!("{}", ended(domain));
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join(", ")) }
    }

    /// `xl sysrq DOMAIN KEY`.
    pub(super) fn xl_sysrq(&self, line: &Line<'_>) -> Outcome {
        let (name, key) = line.two()?;
        let domain = self.toolstack.find(name)?;
        let mut characters = key.chars();
        match (characters.next(), characters.next()) {
            (Some(key), None) if key.is_ascii_graphic() => self.toolstack.sysrq(&domain, key),
            _ => Err(format!("`{key}`: a SysRq key is one character")),
        }
    }

    /// `xl trigger DOMAIN TRIGGER [VCPU]`.
    pub(super) fn xl_trigger(&self, line: &Line<'_>) -> Outcome {
        let (name, trigger, vcpu) = match line.operands[..] {
            [name, trigger] => (name, trigger, "0"),
            [name, trigger, vcpu] => (name, trigger, vcpu),
            _ => return Err(line.command.usage()),
        };
        let domain = self.toolstack.find(name)?;
        let known = TRIGGERS.iter().find(|known| known.0 == trigger);
        let (_, number) = known.ok_or_else(|| format!("`{trigger}`: no such trigger"))?;
        let vcpu = vcpu.parse().map_err(|_| format!("`{vcpu}`: no number of a vCPU"))?;
        self.toolstack.trigger(&domain, *number, vcpu)
    }

    /// `xl mem-set DOMAIN SIZE`.
    pub(super) fn xl_mem_set(&self, line: &Line<'_>) -> Outcome {
        let (domain, kib) = self.domain_and_size(line)?;
        self.toolstack.set_memory(&domain, kib)
    }

    /// `xl mem-max DOMAIN SIZE`.
    pub(super) fn xl_mem_max(&self, line: &Line<'_>) -> Outcome {
        let (domain, kib) = self.domain_and_size(line)?;
        self.toolstack.set_max_memory(&domain, kib)
    }

    fn domain_and_size(&self, line: &Line<'_>) -> Result<(Domain, u64), String> {
        let (name, size) = line.two()?;
        let domain = self.toolstack.find(name)?;
        let kib = size_kib(size).ok_or_else(|| format!("invalid memory size: {size}"))?;
        Ok((domain, kib))
    }

    /// `xl vcpu-set [-i] DOMAIN COUNT`.
    pub(super) async fn xl_vcpu_set(&self, line: &Line<'_>) -> Outcome {
        let (name, count) = line.two()?;
        let domain = self.toolstack.find(name)?;
        let count = count.parse().map_err(|_| format!("`{count}`: no number of vCPUs"))?;
        self.toolstack.set_vcpus(&domain, count).await
    }

    /// `xl rename DOMAIN NAME`.
    pub(super) fn xl_rename(&self, line: &Line<'_>) -> Outcome {
        let (name, new) = line.two()?;
        self.toolstack.rename(&self.toolstack.find(name)?, new)
    }
}

/// How an awaited domain ended, in `xl`'s words.
fn ended(domain: &Domain) -> String {
    // A copy is made first: a guard in the condition would live through the whole expression.
    let end = domain.fate.lock().end;
    match end {
        Some(End::ShutDown(reason)) => {
            format!("Domain {} has been shut down, reason code {reason}", domain.id)
        }
        Some(End::Destroyed) | None => format!("Domain {} has been destroyed", domain.id),
    }
}

/// `512`, `512m`, `1g`, `131072k`: reads a size as KiB; without a unit it is in MiB.
fn size_kib(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|last: char| last.is_ascii_alphabetic());
    let number: u64 = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    let scale = |shift: u32| number.checked_mul(1 << shift);
    // Bytes must fit into 64 bits too.
    let kib = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "t" => scale(30),
        "g" => scale(20),
        "" | "m" => scale(10),
        "k" => Some(number),
        "b" => Some(number >> 10),
        _ => None,
    }?;
    (kib < 1 << 54).then_some(kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_mib_unless_they_say_otherwise() {
        for (text, kib) in [
            ("512", Some(524_288)),
            ("512m", Some(524_288)),
            ("1G", Some(1 << 20)),
            ("1t", Some(1 << 30)),
            ("131072k", Some(131_072)),
            ("4096b", Some(4)),
            ("0", Some(0)),
            ("", None),
            ("m", None),
            ("12mb", None),
            ("-1", None),
            ("+1", None),
            ("1.5g", None),
            ("99999999999999t", None),
            ("18446744073709551615", None),
        ] {
            assert_eq!(size_kib(text), kib, "{text}");
        }
    }
}
