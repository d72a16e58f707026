//! `console_io`.

use crate::layout::constants;

constants! { "xen.h";
    CONSOLEIO_WRITE: u32 = 0 => "CONSOLEIO_write";
    CONSOLEIO_READ: u32 = 1 => "CONSOLEIO_read";
}
