//! `cargo xtask xen`: Debian's Xen by hand.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Options, prepare};
use crate::machine::{Disk, Module};
use crate::session::{Attach, Outcome};

/// What to boot.
#[derive(Clone, Debug, clap::Args)]
pub struct XenOptions {
    /// The control domain's shell runs these lines, up to the first that fails; without any and without a script, a
    /// person gets a shell.
    #[arg(long = "cmd", value_name = "LINE")]
    lines: Vec<String>,
    /// A shell script to run there.
    #[arg(long, value_name = "FILE", conflicts_with = "lines")]
    script: Option<PathBuf>,
    /// Add a file to the directory that they start in.
    #[arg(long = "module", value_name = "PATH[=NAME]")]
    modules: Vec<Module>,
    /// Attach a raw file as a virtio disk.
    #[arg(long = "disk", value_name = "PATH[,ro][,id=NAME]")]
    disks: Vec<Disk>,
    /// Boot this PV ELF kernel as the control domain: no Linux, no tool stack.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["lines", "script", "modules"])]
    dom0: Option<PathBuf>,
    /// Words for the control domain's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    dom0_append: String,
    /// Words for Xen's command line.
    #[arg(long, value_name = "WORDS", default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1536)]
    mem: u32,
    /// CPUs.
    #[arg(long, value_name = "N", default_value_t = 1)]
    smp: u32,
    /// One instruction a tick.
    #[arg(long)]
    icount: bool,
    /// Passed through.
    #[arg(long = "qemu-arg", value_name = "ARG", allow_hyphen_values = true)]
    qemu_arguments: Vec<String>,
    /// A copy of all serial output.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// End the machine then.
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    timeout: u64,
}

/// Boots it; returns the exit status, as `cargo xtask run` does.
///
/// # Errors
/// The errors of [`prepare`] and of [`super::XenHost::run`].
pub fn xen(words: XenOptions) -> Result<u8> {
    let options = Options {
        memory_mib: words.mem,
        cpus: words.smp,
        disks: words.disks,
        hypervisor_arguments: words.append,
        dom0_arguments: words.dom0_append.clone(),
        qemu_arguments: words.qemu_arguments,
        icount: words.icount,
        shown: true,
        log: words.log,
        timeout: Duration::from_secs(words.timeout),
        ..Options::default()
    };
    let host = prepare()?;
    let script = match &words.script {
        Some(path) => std::fs::read_to_string(path).with_context(|| format!("script {}", path.display()))?,
        None => words.lines.iter().fold("set -e\n".to_string(), |script, line| script + line + "\n"),
    };
    let interactive = words.dom0.is_none() && words.script.is_none() && words.lines.is_empty();
    let output = match &words.dom0 {
        Some(kernel) => host.boot_kernel_as_dom0(kernel, &words.dom0_append, &options)?,
        None => {
            let attach = if interactive { Attach::Terminal } else { Attach::Nobody };
            host.run_attached(&script, &words.modules, &options, attach)?
        }
    };
    match &output.outcome {
        Outcome::TimedOut => eprintln!("\nerror: ended at the time limit"),
        Outcome::Broken(why) => eprintln!("\nerror: {why}"),
        _ => {}
    }
    Ok(output.outcome.exit_status(!interactive))
}
