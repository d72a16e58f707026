//! The records of `tests/configs`, taken anew from Debian's `xl`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::machine::Module;
use xtask::session::Outcome;
use xtask::xen::{self, Options};

use crate::Case;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::from(crate::cases![configs: xl_says_what_is_recorded]);
    for case in &mut cases {
        // It makes Debian's Xen first.
        case.soak = true;
    }
    cases
}

/// What comes before each verdict on the console.
const SAYS: &str = "XL-SAYS ";

fn xl_says_what_is_recorded() -> Result<()> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    let text = std::fs::read_to_string(directory.join("verdicts.txt")).context("verdicts.txt")?;
    let mut recorded = BTreeMap::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let mut words = line.split(' ');
        recorded.insert(words.next().unwrap_or_default(), words.next().unwrap_or_default());
    }
    let module = |name: &&str| {
        let file = format!("{name}.cfg");
        Module { path: directory.join(&file), name: file }
    };
    let modules: Vec<Module> = recorded.keys().map(module).collect();
    let script = format!(
        "for file in *.cfg; do\n\
         if xl create -n $file > /dev/null 2>&1; then says=accepted; else says=refused; fi\n\
         echo \"{SAYS}${{file%.cfg}} $says\"\n\
         done\n"
    );
    let options = Options { timeout: Duration::from_secs(1800), ..Options::default() };
    let output = xen::prepare()?.run(&script, &modules, &options)?;
    ensure!(output.outcome == Outcome::Succeeded, "it ended with {:?}: {}", output.outcome, output.console);
    let mut wrong = String::new();
    for line in output.console.lines() {
        let Some((_, says)) = line.trim_end().split_once(SAYS) else { continue };
        let (name, says) = says.split_once(' ').unwrap_or((says, ""));
        match recorded.remove(name) {
            Some(record) if record == says => {}
            record => writeln!(wrong, "{name}: {says}, recorded: {}", record.unwrap_or("nothing"))?,
        }
    }
    for name in recorded.keys() {
        writeln!(wrong, "{name}: xl said nothing")?;
    }
    ensure!(wrong.is_empty(), "{wrong}");
    Ok(())
}
