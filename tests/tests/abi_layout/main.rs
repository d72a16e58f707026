//! Compares `ring-abi` with the installed public headers of Xen.
//!
//! For each header a C program is generated from the layouts that `ring-abi` lists of itself, compiled with gcc and
//! run; it prints what the compiler says of each structure, member and constant. Each of these is one row here.
//! Further rows look the other way: constants, structures and members of the headers that `ring-abi` ought to have and
//! has not.

mod header;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::mem::size_of;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};

use header::Definition;
use libtest_mimic::{Arguments, Failed, Trial};
use ring_abi::io::{protocols, xs_wire};
use ring_abi::layout::{Constant, MODULES, Module, Struct};

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
    ("event_channel.h", "BIND_PIRQ"),
    ("grant_table.h", "GNTTAB"),
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
    ("io/blkif.h", "VDISK_"),
    ("io/netif.h", "XEN_NETIF_"),
    ("io/netif.h", "NETTXF_"),
    ("io/netif.h", "NETRXF_"),
    ("io/netif.h", "NETIF_"),
    ("io/xs_wire.h", "XENSTORE_"),
];

/// Headers all of whose structures must be there, and all of whose enumerators.
const WHOLE: &[&str] = &[
    "event_channel.h",
    "grant_table.h",
    "io/blkif.h",
    "io/netif.h",
    "io/console.h",
    "io/xenbus.h",
    "io/xs_wire.h",
    "vcpu.h",
    "sched.h",
    "callback.h",
    "nmi.h",
];

/// Structures of these headers that are left out, by the end of their names: what the ring macros make (their shared
/// part is compared as constants, the rest is private to an end), the same for rings that are not spoken here, a table
/// of the host's error numbers, and arguments of operations that no PV guest makes.
const STRUCTS_LEFT_OUT: &[&str] =
    &["_sring", "_sring_entry", "_front_ring", "_back_ring", "struct xencons_data", "struct xsd_errors"];

/// Types that are plain numbers, and how long ours are.
const NUMBERS: &[(&str, &str, usize)] = &[
    ("event_channel.h", "evtchn_port_t", size_of::<u32>()),
    ("event_channel.h", "event_word_t", size_of::<u32>()),
    ("grant_table.h", "grant_ref_t", size_of::<u32>()),
    ("grant_table.h", "grant_handle_t", size_of::<u32>()),
    ("grant_table.h", "grant_status_t", size_of::<u16>()),
    ("io/blkif.h", "blkif_vdev_t", size_of::<u16>()),
    ("io/blkif.h", "blkif_sector_t", size_of::<u64>()),
    ("io/blkif.h", "RING_IDX", size_of::<u32>()),
    ("io/console.h", "XENCONS_RING_IDX", size_of::<u32>()),
    ("io/xs_wire.h", "XENSTORE_RING_IDX", size_of::<u32>()),
    ("xen.h", "domid_t", size_of::<u16>()),
    ("xen.h", "xen_pfn_t", size_of::<u64>()),
    ("xen.h", "xen_ulong_t", size_of::<u64>()),
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
    /// Structures that it defines.
    definitions: Vec<Definition>,
    /// Enumerators that it defines.
    enumerators: Vec<String>,
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
        for row in rows(probe.header, &probe.modules) {
            let probe = Arc::clone(probe);
            trials.push(Trial::test(format!("{}: {}", probe.header, row.name), move || probe.compare(&row)));
        }
    }
    for &(header, prefix) in COMPLETE {
        let probe = probes.iter().find(|probe| probe.header == header).expect("a header that is probed");
        let probe = Arc::clone(probe);
        trials.push(Trial::test(format!("{header}: all of {prefix}*"), move || probe.complete(prefix)));
    }
    for probe in &probes {
        let header = probe.header;
        for structure in probe.modules.iter().flat_map(|module| module.structs) {
            let probe = Arc::clone(probe);
            let name = format!("{header}: {}: every member ({})", structure.c_name, structure.name);
            trials.push(Trial::test(name, move || probe.members(structure)));
        }
        if WHOLE.contains(&header) {
            let one = Arc::clone(probe);
            trials.push(Trial::test(format!("{header}: all structures"), move || one.structures()));
            let one = Arc::clone(probe);
            trials.push(Trial::test(format!("{header}: all enumerators"), move || one.enumerators()));
        }
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

fn rows(header: &str, modules: &[&Module]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut push = |name: String, expression: String, value: usize| {
        rows.push(Row { name, expression, value: value as i128, bits: 64 });
    };
    for (_, number, size) in NUMBERS.iter().filter(|(of, ..)| *of == header) {
        push(format!("{number}: size"), format!("sizeof({number})"), *size);
    }
    for (name, expression, text) in texts(header) {
        push(format!("{name}: text"), format!("!strcmp({expression}, \"{text}\")"), 1);
    }
    for structure in modules.iter().flat_map(|module| module.structs) {
        let c = structure.c_name;
        push(format!("{c}: size ({})", structure.name), format!("sizeof({c})"), structure.size);
        // The members of a union may be structures of their own here: the strictest has C's alignment.
        let views = modules.iter().flat_map(|module| module.structs).filter(|view| view.c_name == c);
        let align = views.map(|view| view.align).max().expect("itself");
        push(format!("{c}: alignment ({})", structure.name), format!("_Alignof({c})"), align);
        for field in structure.fields.iter().filter(|field| !field.c_path.is_empty()) {
            let path = field.c_path;
            let [offset, size] = extent(c, path);
            push(format!("{c}.{path}: offset"), offset, field.offset);
            push(format!("{c}.{path}: size"), size, field.size);
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

/// Where a member is and how long, in C.
fn extent(structure: &str, member: &str) -> [String; 2] {
    [format!("offsetof({structure}, {member})"), format!("sizeof((({structure} *)0)->{member})")]
}

/// The texts of a header: what to call them, how C spells them, and what they are here.
fn texts(header: &str) -> Vec<(String, String, &'static str)> {
    let same = |name: &str, text| (name.to_owned(), name.to_owned(), text);
    match header {
        "io/protocols.h" => vec![
            same("XEN_IO_PROTO_ABI_X86_32", protocols::XEN_IO_PROTO_ABI_X86_32),
            same("XEN_IO_PROTO_ABI_X86_64", protocols::XEN_IO_PROTO_ABI_X86_64),
            same("XEN_IO_PROTO_ABI_NATIVE", protocols::XEN_IO_PROTO_ABI_NATIVE),
        ],
        "io/xs_wire.h" => xs_wire::XSD_ERRORS
            .iter()
            .enumerate()
            .map(|(index, errno)| {
                (format!("xsd_errors[{index}]"), format!("xsd_errors[{index}].errstring"), errno.name())
            })
            .collect(),
        _ => Vec::new(),
    }
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

    /// Is every structure of the header here?
    fn structures(&self) -> Result<(), Failed> {
        let known: BTreeSet<&str> =
            self.modules.iter().flat_map(|module| module.structs).map(|structure| structure.c_name).collect();
        let missing: Vec<&str> = self
            .answers()?
            .definitions
            .iter()
            .map(|definition| definition.name.as_str())
            .filter(|name| !known.contains(name) && !STRUCTS_LEFT_OUT.iter().any(|end| name.ends_with(end)))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", ")).into()) }
    }

    /// Is every enumerator of the header here?
    fn enumerators(&self) -> Result<(), Failed> {
        let known: BTreeSet<&str> =
            self.modules.iter().flat_map(|module| module.constants).map(|constant| constant.c_name).collect();
        let answers = self.answers()?;
        let missing: Vec<&str> =
            answers.enumerators.iter().map(String::as_str).filter(|name| !known.contains(name)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("missing: {}", missing.join(", ")).into()) }
    }

    /// Does `structure`, with the others that are the same in C, have a name for each byte that C has a name for?
    fn members(&self, structure: &Struct) -> Result<(), Failed> {
        let answers = self.answers()?;
        // A type may be defined in another header, or have a second name by `typedef` or `#define`.
        let Some(definition) =
            answers.definitions.iter().find(|definition| definition.name == structure.c_name)
        else {
            return Ok(());
        };
        if definition.members.is_empty() {
            return Err("no member was found in the header".into());
        }
        let all = self.modules.iter().flat_map(|module| module.structs);
        let views: Vec<&Struct> = all.filter(|view| view.c_name == structure.c_name).collect();
        for member in &definition.members {
            let [offset, size] = extent(&definition.name, member)
                .map(|expression| answers.values.get(&expression).copied().ok_or("not printed"));
            let (offset, size) = (offset? as usize, size? as usize);
            let mut named = vec![false; structure.size];
            for field in views.iter().flat_map(|view| view.fields).filter(|field| !field.c_path.is_empty()) {
                named[field.offset..][..field.size].fill(true);
            }
            if named[offset..][..size].contains(&false) {
                return Err(format!("{member} at {offset:#x} has no name here").into());
            }
        }
        Ok(())
    }

    /// Generates, compiles and runs the program of this header.
    fn ask(&self) -> Result<Answers, String> {
        let stem = self.header.replace(['/', '.'], "_");
        let source = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{stem}.c"));
        let program = source.with_extension("probe");
        let write = |text: String| {
            std::fs::write(&source, text).map_err(|error| format!("{}: {error}", source.display()))
        };
        write(self.program(&[]))?;
        let listing = run(Command::new("gcc").args(["-std=gnu11", "-dD", "-E"]).arg(&source))?;
        let text = header::own_text(&listing, self.header);
        let definitions = header::definitions(&text);

        let mut asked: Vec<String> =
            rows(self.header, &self.modules).into_iter().map(|row| row.expression).collect();
        let known: BTreeSet<&str> =
            self.modules.iter().flat_map(|module| module.structs).map(|structure| structure.c_name).collect();
        for definition in definitions.iter().filter(|definition| known.contains(definition.name.as_str())) {
            asked.extend(definition.members.iter().flat_map(|member| extent(&definition.name, member)));
        }
        write(self.program(&asked))?;
        run(Command::new("gcc").args(["-std=gnu11", "-w", "-o"]).arg(&program).arg(&source))?;
        let printed = run(&mut Command::new(&program))?;
        if printed.lines().count() != asked.len() {
            return Err(format!("{} rows asked, {} printed", asked.len(), printed.lines().count()));
        }
        let mut values = BTreeMap::new();
        for (expression, line) in asked.into_iter().zip(printed.lines()) {
            values.insert(expression, line.parse().map_err(|_| format!("bad line {line:?}"))?);
        }
        Ok(Answers {
            values,
            macros: own_macros(&listing, self.header),
            definitions,
            enumerators: header::enumerators(&text),
        })
    }

    fn program(&self, expressions: &[String]) -> String {
        let mut text = String::new();
        for header in ["errno", "stddef", "stdint", "stdio", "string"] {
            let _ = writeln!(text, "#include <{header}.h>");
        }
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
        for expression in expressions {
            let _ = writeln!(text, "    ROW({expression});");
        }
        text.push_str("    return 0;\n}\n");
        text
    }
}

/// Names of the object-like macros that a preprocessed listing shows as defined in `header` and not undefined.
fn own_macros(listing: &str, header: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut inside = false;
    for line in listing.lines() {
        if line.starts_with("# ") {
            inside = header::is_from(line, header);
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
