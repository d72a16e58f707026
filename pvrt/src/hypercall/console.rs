//! `console_io`: the hypervisor's own console. ABI: `xen/include/public/xen.h`.

use super::{Result, check, raw};
use ring_abi::console_io::{ASKS_WHETHER_BUSY, CONSOLEIO_READ, CONSOLEIO_WRITE};
use ring_abi::errno::Errno;
use ring_abi::hypercall::__HYPERVISOR_CONSOLE_IO;

/// Prints bytes on the hypervisor's console.
///
/// # Errors
/// `EPERM`: the domain may not write there (release builds of Xen refuse unprivileged domains).
pub fn write(bytes: &[u8]) -> Result<()> {
    let args = [u64::from(CONSOLEIO_WRITE), bytes.len() as u64, bytes.as_ptr() as u64, 0, 0];
    // SAFETY: the hypervisor reads `bytes` only.
    check(unsafe { raw(__HYPERVISOR_CONSOLE_IO, args) }).map(|_| ())
}

/// Whether so much waits for the serial line that a write may block. On Xen the answer is always no.
pub fn is_busy() -> bool {
    let args = [u64::from(CONSOLEIO_WRITE), 0, ASKS_WHETHER_BUSY, 0, 0];
    // SAFETY: nothing is read or written.
    check(unsafe { raw(__HYPERVISOR_CONSOLE_IO, args) }) == Err(Errno::EAGAIN)
}

/// Takes typed bytes from the hypervisor's console. The result is the number of bytes.
///
/// # Errors
/// `EPERM`: another domain owns the console.
pub fn read(buffer: &mut [u8]) -> Result<usize> {
    let args = [u64::from(CONSOLEIO_READ), buffer.len() as u64, buffer.as_mut_ptr() as u64, 0, 0];
    // SAFETY: the hypervisor writes at most `buffer.len()` bytes to `buffer`.
    check(unsafe { raw(__HYPERVISOR_CONSOLE_IO, args) }).map(|count| (count as usize).min(buffer.len()))
}
