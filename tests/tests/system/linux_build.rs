//! A C project that a Debian guest with four vCPUs builds, again and again.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tests::Scratch;

use crate::Case;
use crate::linux_storm::boot_on;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![linux_build:
        four_vcpus_build_a_project_twenty_times,
    ]);
    for case in &mut cases {
        // Some twenty minutes.
        case.soak = true;
    }
    cases
}

/// C files of the project, and so jobs of `make`.
const MODULES: u64 = 24;
const BUILDS: u32 = 20;
const MULTIPLIER: u64 = 0x5851_f42d_4c95_7f2d;

const MAKEFILE: &str = "\
objects := $(patsubst %.c,%.o,$(wildcard *.c))
program: $(objects)
\tgcc -o $@ $^
%.o: %.c
\tgcc -O2 -g -Wall -Wextra -Werror -c -o $@ $<
clean:
\trm -f program $(objects)
";

/// Module `n`: mixes a number by a table of its own, and sorts as it goes.
fn module(n: u64) -> String {
    let table: Vec<String> = (0..64).map(|at| format!("{:#x}u", entry(n, at))).collect();
    format!(
        "#include <stdint.h>\n#include <stdlib.h>\n#include <string.h>\n\
         static const uint64_t table[64] = {{ {} }};\n\
         static int less(const void *a, const void *b)\n\
         {{ uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b; return (x > y) - (x < y); }}\n\
         uint64_t mix{n}(uint64_t x)\n{{\n\
         \tuint64_t sorted[64];\n\tmemcpy(sorted, table, sizeof sorted);\n\
         \tqsort(sorted, 64, sizeof sorted[0], less);\n\
         \tfor (int at = 0; at < 64; at++)\n\t\tx = (x ^ sorted[at]) * {MULTIPLIER:#x}u + (x >> 29);\n\
         \treturn x;\n}}\n",
        table.join(", ")
    )
}

fn entry(n: u64, at: u64) -> u64 {
    (n * 64 + at + 1).wrapping_mul(MULTIPLIER).rotate_left(31)
}

fn program() -> String {
    let mut text = "#include <inttypes.h>\n#include <stdio.h>\n".to_string();
    let mut calls = String::new();
    for n in 0..MODULES {
        let _ = writeln!(text, "uint64_t mix{n}(uint64_t);");
        let _ = writeln!(calls, "\tx = mix{n}(x);");
    }
    text + &format!(
        "int main(void)\n{{\n\tuint64_t x = 1;\n{calls}\tprintf(\"result %\" PRIu64 \"\\n\", x);\n\treturn 0;\n}}\n"
    )
}

/// What the program prints, reckoned here.
fn result() -> u64 {
    (0..MODULES).fold(1, |x, n| {
        let mut sorted: Vec<u64> = (0..64).map(|at| entry(n, at)).collect();
        sorted.sort_unstable();
        sorted.iter().fold(x, |x: u64, entry| (x ^ entry).wrapping_mul(MULTIPLIER).wrapping_add(x >> 29))
    })
}

fn four_vcpus_build_a_project_twenty_times() -> Result<()> {
    let scratch = Scratch::new("debian-build")?;
    let mut files: Vec<PathBuf> = vec![scratch.file("Makefile", MAKEFILE.as_bytes())?];
    files.push(scratch.file("program.c", program().as_bytes())?);
    for n in 0..MODULES {
        files.push(scratch.file(&format!("module{n}.c"), module(n).as_bytes())?);
    }
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    let four = |machine: tests::Machine| {
        machine.with(|machine| {
            machine.cpus = 4;
            machine.hypervisor_arguments = "maxcpus=4".into();
        })
    };
    let mut debian = boot_on(four, "debian-build", &scratch, &files, "vcpus=4 memory=512")?;
    ensure!(debian.succeed("nproc", 60)?.contains('4'), "the guest has not four CPUs");
    debian
        .succeed("gcc --version", 60)
        .context("an older root image has no compiler: `cargo xtask guest debian --fresh` makes it anew")?;
    let expected = format!("result {}", result());
    let mut sums = Vec::new();
    for build in 1..=BUILDS {
        debian.succeed("cd /tmp/files && make clean && make -j4", 600)?;
        let said = debian.succeed("./program && sha256sum < program", 60)?;
        ensure!(said.contains(&expected), "build {build} gave a program that says {said}, not {expected}");
        let sum = said.split_whitespace().find(|word| word.len() == 64).context("no checksum")?;
        sums.push(sum.to_string());
        debian.silent()?;
    }
    ensure!(sums.iter().all(|sum| *sum == sums[0]), "the builds differ: {sums:?}");
    debian.power_off()?;
    Ok(())
}
