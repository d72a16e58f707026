//! I/O ports. The kernel raises its I/O privilege at start. A port to which the domain has no right reads as all ones,
//! and a write to such a port is lost. On the host every port behaves so.
#![cfg_attr(freestanding, allow(unsafe_code))] // `in` and `out` instructions

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $in:literal, $out:literal) => {
        #[doc = concat!("Reads a `", stringify!($type), "` from `port`.")]
        pub fn $read(port: u16) -> $type {
            #[cfg(freestanding)]
            {
                let value: $type;
                // SAFETY: the instruction changes no memory of this kernel. A device writes memory where its driver
                // tells the device, and the driver owns that memory.
                unsafe {
                    core::arch::asm!($in, out("rax") value, in("dx") port, options(nomem, nostack, preserves_flags));
                }
                value
            }
            #[cfg(not(freestanding))]
            {
                let _ = port;
                <$type>::MAX
            }
        }

        #[doc = concat!("Writes a `", stringify!($type), "` to `port`.")]
        pub fn $write(port: u16, value: $type) {
            #[cfg(freestanding)]
            // SAFETY: as for reading.
            unsafe {
                core::arch::asm!($out, in("dx") port, in("rax") value, options(nomem, nostack, preserves_flags));
            }
            #[cfg(not(freestanding))]
            let _ = (port, value);
        }
    };
}

port_access!(read_u16, write_u16, u16, "in ax, dx", "out dx, ax");
port_access!(read_u32, write_u32, u32, "in eax, dx", "out dx, eax");

/// Reads a byte from `port`.
pub fn read_u8(port: u16) -> u8 {
    #[cfg(freestanding)]
    {
        let value: u8;
        // SAFETY: as for the wider accesses.
        unsafe {
            core::arch::asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags));
        }
        value
    }
    #[cfg(not(freestanding))]
    {
        let _ = port;
        u8::MAX
    }
}

/// Writes a byte to `port`.
pub fn write_u8(port: u16, value: u8) {
    #[cfg(freestanding)]
    // SAFETY: as for the wider accesses.
    unsafe {
        core::arch::asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(freestanding))]
    crate::host::note_port_write(port, value);
}
