//! Hypercalls through the kernel's device for them.
#![allow(unsafe_code)] // a system call with an address

use std::fs::File;
use std::os::fd::AsRawFd;

use pvrt::host::Hypervisor;

/// The device.
const DEVICE: &str = "/dev/xen/privcmd";
/// `IOCTL_PRIVCMD_HYPERCALL`: `_IOC(_IOC_NONE, 'P', 0, 48)`.
const HYPERCALL: u64 = (size_of::<Call>() as u64) << 16 | (b'P' as u64) << 8;

/// `struct privcmd_hypercall`.
#[repr(C)]
struct Call {
    number: u64,
    args: [u64; 5],
}

/// The open device.
pub(super) struct Privcmd(File);

impl Privcmd {
    /// Opens the device.
    ///
    /// # Errors
    /// The device does not exist, or the caller may not open it.
    pub(super) fn open() -> Result<Self, String> {
        let file = File::options().read(true).write(true).open(DEVICE);
        file.map(Self).map_err(|error| format!("{DEVICE}: {error}"))
    }
}

impl Hypervisor for Privcmd {
    fn hypercall(&mut self, number: u32, args: [u64; 5]) -> i64 {
        let call = Call { number: number.into(), args };
        // SAFETY: the kernel reads `call`; the caller answers for what the hypercall does by its arguments.
        let result =
            unsafe { libc::syscall(libc::SYS_ioctl, self.0.as_raw_fd(), HYPERCALL, &raw const call) };
        if result == -1 {
            // The C library puts the negated error into errno.
            return -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
        result
    }
}
