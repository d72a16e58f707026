//! Domains of Debian's `xl` under its Xen, and their consoles' text.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use super::{Options, Output, XenHost};
use crate::machine::Module;
use crate::session::Outcome;

/// A domain to be created.
#[derive(Clone, Debug)]
pub struct Domain {
    /// The domain's name: letters, digits and hyphens.
    pub name: String,
    /// A PV kernel.
    pub kernel: PathBuf,
    /// A ramdisk.
    pub ramdisk: Option<PathBuf>,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The kernel's command line.
    pub extra: String,
    /// More lines of the configuration: `disk=['phy:/dev/vda,xvda,w']`, `vcpus=2`.
    pub lines: Vec<String>,
}

/// What the control domain does besides.
#[derive(Clone, Debug, Default)]
pub struct Control {
    /// Files for the directory that the script starts in.
    pub files: Vec<Module>,
    /// Lines of the shell before the first domain is created, when the bridge of vifs is there.
    pub before: String,
    /// Lines of the shell when the last domain has shut down: the domains are still there.
    pub after: String,
}

/// The result of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The text of its console.
    pub console: String,
    /// Why the domain shut down: a `SHUTDOWN_*` of the ABI's `sched.h`; `None` when the domain did not shut down
    /// within its time, or was never created.
    pub reason: Option<u32>,
    /// What `xl create` printed.
    pub xl: String,
}

/// In the machine's console, the text between a domain's name and a line of the domain's console; the same
/// for lines of `xl create`.
const CONSOLE: &str = "| ";
const XL: &str = "! ";

/// The bridge of vifs that name none, as `xl` has it.
const BRIDGE: &str = "xenbr0";

/// Shell functions for the generated script.
const FUNCTIONS: &str = include_str!("domains.sh");

impl XenHost {
    /// Creates `domains` in their order and waits until the last one has shut down, for `limit` of the control
    /// domain's time. Returns each domain's result, and the machine's output.
    ///
    /// The other domains are then destroyed. No process in the control domain polls meanwhile, so that a
    /// domain which counts instructions is not disturbed.
    ///
    /// # Errors
    /// The errors of [`XenHost::run`]; or the machine did not run to its end.
    pub fn run_domains(
        &self,
        domains: &[Domain],
        limit: Duration,
        options: &Options,
    ) -> Result<(Vec<Ran>, Output)> {
        self.run_domains_beside(domains, limit, options, &Control::default())
    }

    /// The same, with more work for the control domain.
    ///
    /// # Errors
    /// The errors of [`XenHost::run_domains`].
    pub fn run_domains_beside(
        &self,
        domains: &[Domain],
        limit: Duration,
        options: &Options,
        control: &Control,
    ) -> Result<(Vec<Ran>, Output)> {
        let mut files = control.files.clone();
        let mut add = |path: &PathBuf, name: String| files.push(Module { path: path.clone(), name });
        for domain in domains {
            add(&domain.kernel, format!("{}.kernel", domain.name));
            if let Some(ramdisk) = &domain.ramdisk {
                add(ramdisk, format!("{}.ramdisk", domain.name));
            }
        }
        let output = self.run(&script(domains, limit, control), &files, options)?;
        if output.outcome != Outcome::Succeeded {
            let lines: Vec<&str> = output.console.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            bail!("the machine {}; the console's end:\n{end}", output.outcome);
        }
        let ran = domains.iter().map(|domain| ran(&domain.name, &output.console)).collect();
        Ok((ran, output))
    }
}

/// The script that creates the domains, waits and prints.
fn script(domains: &[Domain], limit: Duration, control: &Control) -> String {
    let mut script = FUNCTIONS.to_string();
    if domains.iter().flat_map(|domain| &domain.lines).any(|line| line.starts_with("vif")) {
        let _ = writeln!(script, "quick_vifs\nbridge {BRIDGE}");
    }
    script.push_str(&control.before);
    for domain in domains {
        let _ = write!(
            script,
            "cat > {0}.cfg <<'END'\n{1}END\ncreate {0} {2}\n",
            domain.name,
            domain.configuration(),
            limit.as_secs()
        );
    }
    script.push_str("wait $last\nsleep 1\n");
    script.push_str(&control.after);
    for domain in domains {
        let _ = writeln!(script, "tell {}", domain.name);
    }
    script
}

impl Domain {
    /// The domain's `xl.cfg`. A domain that has shut down stays, so that the end of its console can be read.
    fn configuration(&self) -> String {
        let Self { name, memory_mib, extra, .. } = self;
        let mut text = format!(
            "name=\"{name}\"\ntype=\"pv\"\nkernel=\"{name}.kernel\"\nmemory={memory_mib}\nextra='{extra}'\n\
             on_poweroff=\"preserve\"\non_reboot=\"preserve\"\non_crash=\"preserve\"\n"
        );
        if self.ramdisk.is_some() {
            let _ = writeln!(text, "ramdisk=\"{name}.ramdisk\"");
        }
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text
    }
}

/// Reads a domain's result from the machine's console.
fn ran(name: &str, console: &str) -> Ran {
    let part = |mark: &str| {
        let own = console.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(mark));
        own.map(|line| format!("{}\n", line.trim_end_matches('\r'))).collect::<String>()
    };
    let xl = part(XL);
    let reason = |line: &str| line.split_once("reason code ")?.1.split_whitespace().next()?.parse().ok();
    Ran { console: part(CONSOLE), reason: xl.lines().find_map(reason), xl }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> Domain {
        Domain {
            name: name.into(),
            kernel: "/k".into(),
            ramdisk: None,
            memory_mib: 16,
            extra: "a=\"b c\"".into(),
            lines: vec!["vcpus=2".into()],
        }
    }

    #[test]
    fn a_domains_console_is_taken_out_of_the_machines() {
        let console = "dom0: ready\r\na| one\r\r\nab| other\r\na| \r\n(XEN) a| no\r\na! Domain 1 has shut down, \
                       reason code 3 0x3\r\n";
        let ran = ran("a", console);
        assert_eq!(ran.console, "one\n\n");
        assert_eq!(ran.reason, Some(3));
        assert_eq!(super::ran("c", console), Ran { console: String::new(), reason: None, xl: String::new() });
    }

    #[test]
    fn the_script_creates_in_order_and_tells_of_each() {
        let control = Control { files: Vec::new(), before: "first\n".into(), after: "then\n".into() };
        let script = script(&[domain("one"), domain("two")], Duration::from_secs(7), &control);
        let at = |text: &str| script.find(text).unwrap_or_else(|| panic!("{text:?} is not in {script}"));
        assert!(at("create one 7") < at("create two 7"));
        assert!(at("create two 7") < at("wait $last"));
        assert!(at("tell one") < at("tell two"));
        assert!(at("\nfirst\n") < at("create one 7"));
        assert!(at("wait $last") < at("\nthen\n") && at("\nthen\n") < at("tell one"));
        assert!(script.contains("extra='a=\"b c\"'\n"));
        assert!(script.contains("kernel=\"two.kernel\"\n"));
        assert!(script.contains("vcpus=2\n"));
        assert!(!script.contains("ramdisk") && !script.contains("\nbridge xenbr0"));
    }

    #[test]
    fn domains_with_a_vif_have_a_bridge_and_a_quick_script() {
        let mut domain = domain("one");
        domain.lines.push("vif=['bridge=xenbr0']".into());
        let script = script(&[domain], Duration::from_secs(7), &Control::default());
        assert!(script.contains("\nquick_vifs\nbridge xenbr0\ncat > one.cfg"), "{script}");
    }
}
