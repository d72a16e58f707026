//! The list of cases in `docs/CONFORMANCE.md`. `MICROHV_BLESS=1 cargo test -p conformance document` writes it anew.

use std::fmt::Write;
use std::path::PathBuf;

use conformance::registry;

/// What stands in front of the list; all behind it is generated.
const MARK: &str = "<!-- generated from here on: MICROHV_BLESS=1 cargo test -p conformance document -->\n";

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/CONFORMANCE.md")
}

/// The list as it is to be.
fn list() -> String {
    let mut text = String::new();
    let mut area = "";
    let count = |area: &str| registry().filter(|case| case.area() == area).count();
    let _ = writeln!(text, "\n{} cases.", registry().count());
    let mut cases: Vec<_> = registry().collect();
    // Stable: within an area the order of the lists stays.
    cases.sort_by_key(|case| case.area());
    for case in cases {
        if case.area() != area {
            area = case.area();
            let _ = writeln!(text, "\n### {area} ({})\n", count(area));
            let _ = writeln!(text, "| case | what is tried | rule | source | needs |");
            let _ = writeln!(text, "| --- | --- | --- | --- | --- |");
        }
        let needs: Vec<_> = case.needs.iter().map(|need| need.word()).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} |",
            case.id,
            case.title,
            case.rule,
            case.source,
            needs.join(", ")
        );
    }
    text
}

/// Looks whether the document has the list as it is to be.
pub(crate) fn check() -> Result<(), String> {
    let text = std::fs::read_to_string(path()).map_err(|error| error.to_string())?;
    let Some((front, old)) = text.split_once(MARK) else {
        return Err("docs/CONFORMANCE.md has no mark".into());
    };
    let new = list();
    if old == new {
        return Ok(());
    }
    if std::env::var_os("MICROHV_BLESS").is_some() {
        return std::fs::write(path(), format!("{front}{MARK}{new}")).map_err(|error| error.to_string());
    }
    Err("docs/CONFORMANCE.md lists other cases: MICROHV_BLESS=1 cargo test -p conformance document".into())
}
