//! The logger on the console.

use core::fmt::Write;

use log::{LevelFilter, Log, Metadata, Record};

use super::Line;

/// The logger: one line for each record, `level: text`; a record of level information comes without its level. The
/// source location is left out, since it does not help the reader of a line.
struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line::new();
        let level = match record.level() {
            log::Level::Info => "",
            log::Level::Error => "error: ",
            log::Level::Warn => "warning: ",
            log::Level::Debug | log::Level::Trace => "debug: ",
        };
        let _ = writeln!(line, "{level}{}", record.args());
    }

    fn flush(&self) {}
}

static LOGGER: Logger = Logger;

/// Lets the logger write to the console, at level `level`. A second call is harmless.
pub fn init_logger(level: LevelFilter) {
    // This fails when a logger is set already, as in a second test of one process.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;

    #[test]
    fn log_lines_have_a_level_and_no_path_of_the_sources() {
        init_logger(LevelFilter::Info);
        log::info!("one");
        log::warn!("two");
        log::error!("three");
        log::debug!("four");
        assert_eq!(host::take_console_output(), b"one\nwarning: two\nerror: three\n");
    }
}
