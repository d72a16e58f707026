//! Figures of networks.

mod rust;

use anyhow::Result;

use super::BenchOptions;

/// The names of all figures.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    rust::names()
}

/// Measures and prints; `false`: a figure is missing.
///
/// # Errors
/// A tool is missing, or a machine did not run to its end.
pub(super) fn bench(options: &BenchOptions) -> Result<bool> {
    rust::bench(options)
}
