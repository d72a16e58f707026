//! Asks QEMU, before the boot, whether a CPU model has what microhv needs: on a CPU without long mode, microhv could
//! not even print an error.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::{qemu, usage};

/// What the hypervisor and its guests use on every CPU: QEMU's names for features, and what they are.
const NEEDED: &[(&str, &str)] = &[
    ("lm", "64-bit mode"),
    ("nx", "pages without execution"),
    ("syscall", "the instruction syscall"),
    ("pae", "page tables of 64-bit entries"),
    ("msr", "model-specific registers"),
    ("tsc", "the time-stamp counter"),
    ("apic", "a local APIC"),
    ("cx8", "the instruction cmpxchg8b"),
    ("fxsr", "the instruction fxsave"),
    ("sse2", "SSE2 for guests"),
];

/// Checks a model, written as for `-cpu`: `NAME[,+FEATURE][,-FEATURE][,FEATURE=on|off]`.
///
/// # Errors
/// Wrong usage: QEMU does not know the model, or the model lacks a feature, which the message names. Or QEMU cannot be run.
pub fn check(model: &str) -> Result<()> {
    let output = ask(model)?;
    let answers = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    for answer in answers {
        if let Some(why) = answer.pointer("/error/desc").and_then(Value::as_str) {
            return Err(usage(format!("CPU {model}: {why}")));
        }
        if let Some(features) = answer.pointer("/return/model/props").and_then(Value::as_object) {
            return match missing(features).as_slice() {
                [] => Ok(()),
                lacks => Err(usage(format!("CPU {model} lacks what microhv needs: {}", lacks.join(", ")))),
            };
        }
    }
    // This QEMU cannot answer: whether the model serves shows when the machine boots.
    Ok(())
}

/// The features that are needed and not there.
fn missing(features: &Map<String, Value>) -> Vec<String> {
    let has = |name: &str| features.get(name).is_none_or(|value| value.as_bool() != Some(false));
    let lacking = NEEDED.iter().filter(|(name, _)| !has(name));
    lacking.map(|(name, what)| format!("{name} ({what})")).collect()
}

/// The model's name and the features that were set by hand.
fn parts(model: &str) -> (&str, Map<String, Value>) {
    let mut words = model.split(',');
    let name = words.next().unwrap_or_default();
    let setting = |word: &str| {
        let (name, value) = match (word.as_bytes().first()?, word.split_once('=')) {
            (b'+', _) => (&word[1..], Value::Bool(true)),
            (b'-', _) => (&word[1..], Value::Bool(false)),
            (_, Some((name, "on" | "true" | "yes"))) => (name, Value::Bool(true)),
            (_, Some((name, "off" | "false" | "no"))) => (name, Value::Bool(false)),
            // Only QEMU can judge properties that are not on or off.
            (_, Some(_)) => return None,
            (_, None) => (word, Value::Bool(true)),
        };
        Some((name.to_string(), value))
    };
    (name, words.filter_map(setting).collect())
}

/// What QEMU's monitor answers when it is asked for all of a model's features.
fn ask(model: &str) -> Result<String> {
    let (name, props) = parts(model);
    let question = json!({
        "execute": "query-cpu-model-expansion",
        "arguments": {"type": "full", "model": {"name": name, "props": props}},
    });
    let mut child = Command::new(qemu::program())
        .args(["-machine", "none", "-accel", "tcg", "-nodefaults", "-display", "none", "-qmp", "stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run QEMU")?;
    let text =
        format!("{}\n{question}\n{}\n", json!({"execute": "qmp_capabilities"}), json!({"execute": "quit"}));
    // A QEMU that ended before it read this has printed the reason.
    let _ = child.stdin.take().context("QEMU's input is not piped")?.write_all(text.as_bytes());
    let output = child.wait_with_output().context("QEMU cannot be waited for")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_feature_that_is_missing_is_named() {
        for model in ["qemu64", "qemu64,+pdpe1gb", "Nehalem-v1", "max"] {
            check(model).expect(model);
        }
        for (model, lacks) in [
            ("qemu32", "lm (64-bit mode)"),
            ("pentium3", "lm (64-bit mode)"),
            ("qemu64,-nx", "nx ("),
            ("qemu64,nx=off,+lm", "nx ("),
            ("qemu64,-fxsr", "fxsr ("),
        ] {
            let error = check(model).expect_err(model);
            assert!(error.is::<crate::Usage>() && error.to_string().contains(lacks), "{model}: {error}");
        }
        let error = check("nosuch").expect_err("QEMU has none");
        assert!(error.is::<crate::Usage>() && error.to_string().contains("nosuch"), "{error}");
    }
}
