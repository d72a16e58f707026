//! Xen's error numbers. A hypercall returns such a number negated.
//!
//! The numbers are Xen's own, equal to Linux's on x86, whatever operating system the guest runs.

use core::fmt;

use crate::layout::constants;

constants! { "errno.h";
    EPERM: i32 = 1 => "XEN_EPERM";
    ENOENT: i32 = 2 => "XEN_ENOENT";
    ESRCH: i32 = 3 => "XEN_ESRCH";
    EINTR: i32 = 4 => "XEN_EINTR";
    EIO: i32 = 5 => "XEN_EIO";
    ENXIO: i32 = 6 => "XEN_ENXIO";
    E2BIG: i32 = 7 => "XEN_E2BIG";
    ENOEXEC: i32 = 8 => "XEN_ENOEXEC";
    EBADF: i32 = 9 => "XEN_EBADF";
    ECHILD: i32 = 10 => "XEN_ECHILD";
    EAGAIN: i32 = 11 => "XEN_EAGAIN";
    ENOMEM: i32 = 12 => "XEN_ENOMEM";
    EACCES: i32 = 13 => "XEN_EACCES";
    EFAULT: i32 = 14 => "XEN_EFAULT";
    EBUSY: i32 = 16 => "XEN_EBUSY";
    EEXIST: i32 = 17 => "XEN_EEXIST";
    EXDEV: i32 = 18 => "XEN_EXDEV";
    ENODEV: i32 = 19 => "XEN_ENODEV";
    ENOTDIR: i32 = 20 => "XEN_ENOTDIR";
    EISDIR: i32 = 21 => "XEN_EISDIR";
    EINVAL: i32 = 22 => "XEN_EINVAL";
    ENFILE: i32 = 23 => "XEN_ENFILE";
    EMFILE: i32 = 24 => "XEN_EMFILE";
    ENOSPC: i32 = 28 => "XEN_ENOSPC";
    EROFS: i32 = 30 => "XEN_EROFS";
    EMLINK: i32 = 31 => "XEN_EMLINK";
    EDOM: i32 = 33 => "XEN_EDOM";
    ERANGE: i32 = 34 => "XEN_ERANGE";
    EDEADLK: i32 = 35 => "XEN_EDEADLK";
    ENAMETOOLONG: i32 = 36 => "XEN_ENAMETOOLONG";
    ENOLCK: i32 = 37 => "XEN_ENOLCK";
    ENOSYS: i32 = 38 => "XEN_ENOSYS";
    ENOTEMPTY: i32 = 39 => "XEN_ENOTEMPTY";
    ENODATA: i32 = 61 => "XEN_ENODATA";
    ETIME: i32 = 62 => "XEN_ETIME";
    EBADMSG: i32 = 74 => "XEN_EBADMSG";
    EOVERFLOW: i32 = 75 => "XEN_EOVERFLOW";
    EILSEQ: i32 = 84 => "XEN_EILSEQ";
    ERESTART: i32 = 85 => "XEN_ERESTART";
    ENOTSOCK: i32 = 88 => "XEN_ENOTSOCK";
    EMSGSIZE: i32 = 90 => "XEN_EMSGSIZE";
    EOPNOTSUPP: i32 = 95 => "XEN_EOPNOTSUPP";
    EADDRINUSE: i32 = 98 => "XEN_EADDRINUSE";
    EADDRNOTAVAIL: i32 = 99 => "XEN_EADDRNOTAVAIL";
    ENOBUFS: i32 = 105 => "XEN_ENOBUFS";
    EISCONN: i32 = 106 => "XEN_EISCONN";
    ENOTCONN: i32 = 107 => "XEN_ENOTCONN";
    ETIMEDOUT: i32 = 110 => "XEN_ETIMEDOUT";
    ECONNREFUSED: i32 = 111 => "XEN_ECONNREFUSED";
    EWOULDBLOCK: i32 = EAGAIN => "XEN_EWOULDBLOCK";
    EDEADLOCK: i32 = EDEADLK => "XEN_EDEADLOCK";
}

macro_rules! errno_enum {
    ($( $name:ident, $text:literal; )*) => {
        /// An error a hypercall can return.
        ///
        /// ABI: `enum xen_errno`, `xen/include/public/errno.h`.
        #[repr(i32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Errno {
            $(
                #[doc = concat!("`", stringify!($name), "`: ", $text, ".")]
                $name = $name,
            )*
        }

        impl Errno {
            /// The error with this positive number, if Xen defines it.
            #[must_use]
            pub const fn from_raw(raw: i32) -> Option<Self> {
                match raw {
                    $( $name => Some(Self::$name), )*
                    _ => None,
                }
            }

            /// The symbol, for example `EINVAL`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => stringify!($name), )*
                }
            }

            /// A few words of explanation.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }

            #[cfg(test)]
            const ALL: &'static [Self] = &[$( Self::$name, )*];
        }
    };
}

errno_enum! {
    EPERM, "operation not permitted";
    ENOENT, "no such thing";
    ESRCH, "no such domain";
    EINTR, "interrupted";
    EIO, "input or output error";
    ENXIO, "no such device or address";
    E2BIG, "argument list too long";
    ENOEXEC, "not executable";
    EBADF, "bad descriptor";
    ECHILD, "no child";
    EAGAIN, "try again";
    ENOMEM, "out of memory";
    EACCES, "access denied";
    EFAULT, "bad address";
    EBUSY, "busy";
    EEXIST, "already exists";
    EXDEV, "crosses devices";
    ENODEV, "no such device";
    ENOTDIR, "not a directory";
    EISDIR, "is a directory";
    EINVAL, "invalid argument";
    ENFILE, "too many open in the system";
    EMFILE, "too many open";
    ENOSPC, "no space left";
    EROFS, "read-only";
    EMLINK, "too many links";
    EDOM, "argument out of domain";
    ERANGE, "result out of range";
    EDEADLK, "would deadlock";
    ENAMETOOLONG, "name too long";
    ENOLCK, "no locks left";
    ENOSYS, "not implemented";
    ENOTEMPTY, "not empty";
    ENODATA, "no data";
    ETIME, "time has passed";
    EBADMSG, "bad message";
    EOVERFLOW, "value too large";
    EILSEQ, "illegal byte sequence";
    ERESTART, "to be restarted";
    ENOTSOCK, "not a socket";
    EMSGSIZE, "message too long";
    EOPNOTSUPP, "operation not supported";
    EADDRINUSE, "address in use";
    EADDRNOTAVAIL, "address not available";
    ENOBUFS, "no buffer space";
    EISCONN, "already connected";
    ENOTCONN, "not connected";
    ETIMEDOUT, "timed out";
    ECONNREFUSED, "connection refused";
}

impl Errno {
    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self as i32
    }

    /// The number as a hypercall returns it.
    #[must_use]
    pub const fn negated(self) -> i64 {
        -(self as i32 as i64)
    }

    /// Splits a hypercall's return register: zero and above is the result, below is an error.
    ///
    /// # Errors
    /// The error that the hypercall returned; a number that Xen does not define reads as [`Errno::EINVAL`].
    pub const fn check(returned: i64) -> Result<u64, Self> {
        if returned >= 0 {
            return Ok(returned as u64);
        }
        if returned < -4095 {
            return Err(Self::EINVAL);
        }
        match Self::from_raw(-returned as i32) {
            Some(errno) => Err(errno),
            None => Err(Self::EINVAL),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text(), self.name())
    }
}

impl core::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_survives_the_register() {
        for &errno in Errno::ALL {
            assert_eq!(Errno::from_raw(errno.raw()), Some(errno));
            assert_eq!(Errno::check(errno.negated()), Err(errno));
        }
    }

    #[test]
    fn edges() {
        assert_eq!(Errno::check(0), Ok(0));
        assert_eq!(Errno::check(i64::MAX), Ok(i64::MAX as u64));
        assert_eq!(Errno::check(i64::MIN), Err(Errno::EINVAL));
        assert_eq!(Errno::check(-15), Err(Errno::EINVAL));
        assert_eq!(Errno::from_raw(0), None);
        assert_eq!(Errno::from_raw(-1), None);
    }
}
