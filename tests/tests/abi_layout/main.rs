//! Compares `ring-abi` with the installed public headers of Xen.
//!
//! For each header a C program is generated from the layouts that `ring-abi` lists of itself, compiled with gcc and
//! run; it prints what the compiler says of each structure, member and constant. Each of these is one row here.
//! Further rows look the other way: constants of the headers that `ring-abi` ought to have and has not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use ring_abi::layout::{Constant, MODULES, Module};

/// Families of constants that must be complete: header and prefix of the names.
const COMPLETE: &[(&str, &str)] = &[
    ("xen.h", "__HYPERVISOR_"),
    ("xen.h", "MMUEXT_"),
    ("xen.h", "MMU_"),
    ("xen.h", "UVMF_"),
    ("xen.h", "DOMID_"),
    ("xen.h", "SIF_"),
    ("xen.h", "VIRQ_"),
    ("xen.h", "VMASST_"),
    ("xen.h", "CONSOLEIO_"),
    ("arch-x86/xen.h", "VGCF_"),
    ("arch-x86/xen-x86_64.h", "FLAT_"),
    ("arch-x86/xen-x86_64.h", "SEGBASE_"),
    ("elfnote.h", "XEN_ELFNOTE_"),
    ("features.h", "XENFEAT_"),
    ("callback.h", "CALLBACK"),
    ("event_channel.h", "EVTCHN"),
    ("grant_table.h", "GNTTABOP_"),
    ("grant_table.h", "GNTMAP_"),
    ("grant_table.h", "GNTST_"),
    ("grant_table.h", "GNTCOPY_"),
    ("grant_table.h", "GTF_"),
    ("memory.h", "XENMEM_"),
    ("memory.h", "XENMEMF_"),
    ("memory.h", "XENMAPSPACE_"),
    ("physdev.h", "PHYSDEVOP_"),
    ("physdev.h", "MAP_PIRQ_"),
    ("platform.h", "XENPF_"),
    ("sched.h", "SCHEDOP_"),
    ("sched.h", "SHUTDOWN_"),
    ("vcpu.h", "VCPUOP_"),
    ("vcpu.h", "RUNSTATE_"),
    ("version.h", "XENVER_"),
    ("domctl.h", "XEN_DOMCTL_"),
    ("domctl.h", "XEN_DOMINF_"),
    ("sysctl.h", "XEN_SYSCTL_"),
    ("io/blkif.h", "BLKIF_"),
    ("io/netif.h", "XEN_NETIF_"),
    ("io/netif.h", "NETTXF_"),
    ("io/netif.h", "NETRXF_"),
    ("io/netif.h", "NETIF_RSP_"),
    ("io/xs_wire.h", "XENSTORE_"),
];

/// Names with a complete prefix that are left out: a table of texts, and three markers of memory sharing (a flag and
/// two negative handles) that nothing here sends.
const LEFT_OUT: &[&str] = &[
    "GNTTABOP_error_msgs",
    "XENMEM_SHARING_OP_FIELD_IS_GREF_FLAG",
    "XENMEM_SHARING_OP_S_HANDLE_INVALID",
    "XENMEM_SHARING_OP_C_HANDLE_INVALID",
];

const INSTALL: &str =
    "the C compiler and Xen's headers are needed: apt-get install --yes gcc libc6-dev libxen-dev";

/// The answers for one header, by row: made once, when its first row runs.
struct Probe {
    header: &'static str,
    modules: Vec<&'static Module>,
    answers: OnceLock<Result<Answers, String>>,
}

struct Answers {
    /// What the compiler says, by expression.
    values: BTreeMap<String, i128>,
    /// Object-like macros that the header defines itself.
    macros: BTreeSet<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let mut probes: Vec<Arc<Probe>> = Vec::new();
    for module in MODULES {
        match probes.iter_mut().find(|probe| probe.header == module.header) {
            Some(probe) => Arc::get_mut(probe).expect("not shared yet").modules.push(module),
            None => probes.push(Arc::new(Probe {
                header: module.header,
                modules: vec![module],
                answers: OnceLock::new(),
            })),
        }
    }
    let mut trials = Vec::new();
    for probe in &probes {
        for row in rows(&probe.modules) {
            let probe = Arc::clone(probe);
            trials.push(Trial::test(format!("{}: {}", probe.header, row.name), move || probe.compare(&row)));
        }
    }
    for &(header, prefix) in COMPLETE {
        let probe = probes.iter().find(|probe| probe.header == header).expect("a header that is probed");
        let probe = Arc::clone(probe);
        trials.push(Trial::test(format!("{header}: all of {prefix}*"), move || probe.complete(prefix)));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// One comparison: a C expression and what it must be.
struct Row {
    name: String,
    expression: String,
    value: i128,
    /// Bits of the Rust type, in which a negative C value may stand for a positive one (`1 << 31`, `~0`).
    bits: u32,
}

fn rows(modules: &[&Module]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut push = |name: String, expression: String, value: usize| {
        rows.push(Row { name, expression, value: value as i128, bits: 64 });
    };
    for structure in modules.iter().flat_map(|module| module.structs) {
        let c = structure.c_name;
        push(format!("{c}: size"), format!("sizeof({c})"), structure.size);
        push(format!("{c}: alignment"), format!("_Alignof({c})"), structure.align);
        for field in structure.fields.iter().filter(|field| !field.c_path.is_empty()) {
            let path = field.c_path;
            push(format!("{c}.{path}: offset"), format!("offsetof({c}, {path})"), field.offset);
            push(format!("{c}.{path}: size"), format!("sizeof((({c} *)0)->{path})"), field.size);
        }
    }
    for Constant { c_name, value, size, .. } in modules.iter().flat_map(|module| module.constants) {
        rows.push(Row {
            name: (*c_name).to_owned(),
            expression: (*c_name).to_owned(),
            value: *value,
            bits: *size as u32 * 8,
        });
    }
    rows
}

impl Probe {
    fn answers(&self) -> Result<&Answers, Failed> {
        self.answers.get_or_init(|| self.ask()).as_ref().map_err(Failed::from)
    }

    fn compare(&self, row: &Row) -> Result<(), Failed> {
        let answers = self.answers()?;
        let &found = answers.values.get(&row.expression).ok_or("the probe did not print this row")?;
        let same = found == row.value
            || (found < 0
                && row.value >= 0
                && found.rem_euclid(1 << row.bits) == row.value
                && row.bits <= 64);
        if same { Ok(()) } else { Err(format!("header {found:#x}, ring-abi {:#x}", row.value).into()) }
    }

    fn complete(&self, prefix: &str) -> Result<(), Failed> {
        let answers = self.answers()?;
        // Some headers have a name in two spellings (`VGCF_in_kernel`, `VGCF_IN_KERNEL`); in Rust they are one.
        let known: BTreeSet<String> = self
            .modules
            .iter()
            .flat_map(|module| module.constants)
            .map(|constant| constant.c_name.to_ascii_uppercase())
            .collect();
        let missing: Vec<&str> = answers
            .macros
            .iter()
            .map(String::as_str)
            .filter(|name| name.starts_with(prefix) && !known.contains(&name.to_ascii_uppercase()))
            .filter(|name| !LEFT_OUT.contains(name))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", ")).into()) }
    }

    /// Generates, compiles and runs the program of this header.
    fn ask(&self) -> Result<Answers, String> {
        let stem = self.header.replace(['/', '.'], "_");
        let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}.c"));
        let program = source.with_extension("probe");
        let rows = rows(&self.modules);
        std::fs::write(&source, self.program(&rows))
            .map_err(|error| format!("{}: {error}", source.display()))?;

        run(Command::new("gcc").args(["-std=gnu11", "-w", "-o"]).arg(&program).arg(&source))?;
        let printed = run(&mut Command::new(&program))?;
        let mut values = BTreeMap::new();
        for (row, line) in rows.iter().zip(printed.lines()) {
            values.insert(row.expression.clone(), line.parse().map_err(|_| format!("bad line {line:?}"))?);
        }
        if printed.lines().count() != rows.len() {
            return Err(format!("{} rows asked, {} printed", rows.len(), printed.lines().count()));
        }

        let listing = run(Command::new("gcc").args(["-std=gnu11", "-dD", "-E"]).arg(&source))?;
        Ok(Answers { values, macros: own_macros(&listing, self.header) })
    }

    fn program(&self, rows: &[Row]) -> String {
        let mut text = String::from("#include <stddef.h>\n#include <stdint.h>\n#include <stdio.h>\n");
        if self.header == "errno.h" {
            // Two of the numbers are shown to the hypervisor alone.
            text.push_str("#define __XEN__\nenum {\n#define XEN_ERRNO(name, value) XEN_##name = value,\n");
            text.push_str("#include <xen/errno.h>\n};\n");
        } else {
            let header = self.header;
            let _ = write!(text, "#define __XEN_TOOLS__ 1\n#include <xen/xen.h>\n#include <xen/{header}>\n");
        }
        text.push_str("#define ROW(x) printf((x) < 0 ? \"%lld\\n\" : \"%llu\\n\", (long long)(x))\n");
        text.push_str("int main(void)\n{\n");
        for row in rows {
            let _ = writeln!(text, "    ROW({});", row.expression);
        }
        text.push_str("    return 0;\n}\n");
        text
    }
}

/// Names of the object-like macros that a preprocessed listing shows as defined in `header` and not undefined.
fn own_macros(listing: &str, header: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    let ending = format!("/xen/{header}\"");
    for line in listing.lines() {
        if line.starts_with("# ") {
            inside = line.split_inclusive('"').take(2).collect::<String>().ends_with(&ending);
        } else if let Some(definition) = line.strip_prefix("#define ").filter(|_| inside) {
            let name: String =
                definition.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            let rest = &definition[name.len()..];
            if !rest.starts_with('(') && !rest.trim().is_empty() {
                names.insert(name);
            }
        } else if let Some(name) = line.strip_prefix("#undef ") {
            names.remove(name.trim());
        }
    }
    names
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}; {INSTALL}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let hint = if errors.contains("xen/") && errors.contains("No such file") { INSTALL } else { "" };
        return Err(format!("{command:?}: {}\n{errors}{hint}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}
