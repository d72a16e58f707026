//! Error numbers of the hypercall ABI. They are returned negated. ABI: `xen/include/public/errno.h`.

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $variant:ident;)*) => {
        $($(#[$doc])* pub const $name: i32 = $value;)*

        /// An error number as a hypercall gives it back.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        #[allow(missing_docs, reason = "the constants of the same names carry the meaning")]
        pub enum Errno { $($variant = $value,)* }

        impl Errno {
            /// The errno with the (positive) number `raw`, if the ABI has it.
            pub const fn from_raw(raw: i32) -> Option<Self> {
                match raw {
                    $($value => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its name as the header writes it, without `XEN_`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => stringify!($name),)* }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1, Perm;
    /// No such file or directory.
    ENOENT = 2, NoEnt;
    /// No such process: no such domain.
    ESRCH = 3, Srch;
    /// Interrupted.
    EINTR = 4, Intr;
    /// I/O error.
    EIO = 5, Io;
    /// No such device or address.
    ENXIO = 6, Nxio;
    /// Argument list too long.
    E2BIG = 7, TooBig;
    /// Exec format error.
    ENOEXEC = 8, NoExec;
    /// Bad file number.
    EBADF = 9, BadF;
    /// No child processes.
    ECHILD = 10, Child;
    /// Try again (also `EWOULDBLOCK`).
    EAGAIN = 11, Again;
    /// Out of memory.
    ENOMEM = 12, NoMem;
    /// Permission denied.
    EACCES = 13, Acces;
    /// Bad address.
    EFAULT = 14, Fault;
    /// Device or resource busy.
    EBUSY = 16, Busy;
    /// File exists.
    EEXIST = 17, Exist;
    /// Cross-device link.
    EXDEV = 18, Xdev;
    /// No such device.
    ENODEV = 19, NoDev;
    /// Not a directory.
    ENOTDIR = 20, NotDir;
    /// Is a directory.
    EISDIR = 21, IsDir;
    /// Invalid argument.
    EINVAL = 22, Inval;
    /// File table overflow.
    ENFILE = 23, NFile;
    /// Too many open files.
    EMFILE = 24, MFile;
    /// No space left on device.
    ENOSPC = 28, NoSpc;
    /// Read-only file system.
    EROFS = 30, RoFs;
    /// Too many links.
    EMLINK = 31, MLink;
    /// Math argument out of domain.
    EDOM = 33, Dom;
    /// Math result not representable.
    ERANGE = 34, Range;
    /// Resource deadlock would occur.
    EDEADLK = 35, DeadLk;
    /// File name too long.
    ENAMETOOLONG = 36, NameTooLong;
    /// No record locks available.
    ENOLCK = 37, NoLck;
    /// Function not implemented.
    ENOSYS = 38, NoSys;
    /// Directory not empty.
    ENOTEMPTY = 39, NotEmpty;
    /// No data available.
    ENODATA = 61, NoData;
    /// Timer expired.
    ETIME = 62, Time;
    /// Not a data message.
    EBADMSG = 74, BadMsg;
    /// Value too large for defined data type.
    EOVERFLOW = 75, Overflow;
    /// Illegal byte sequence.
    EILSEQ = 84, IlSeq;
    /// Interrupted system call should be restarted.
    ERESTART = 85, Restart;
    /// Socket operation on non-socket.
    ENOTSOCK = 88, NotSock;
    /// Message too long.
    EMSGSIZE = 90, MsgSize;
    /// Operation not supported on transport endpoint.
    EOPNOTSUPP = 95, OpNotSupp;
    /// Address already in use.
    EADDRINUSE = 98, AddrInUse;
    /// Cannot assign requested address.
    EADDRNOTAVAIL = 99, AddrNotAvail;
    /// No buffer space available.
    ENOBUFS = 105, NoBufs;
    /// Transport endpoint is already connected.
    EISCONN = 106, IsConn;
    /// Transport endpoint is not connected.
    ENOTCONN = 107, NotConn;
    /// Connection timed out.
    ETIMEDOUT = 110, TimedOut;
    /// Connection refused.
    ECONNREFUSED = 111, ConnRefused;
}

impl Errno {
    /// The number as a hypercall returns it: negative.
    pub const fn negated(self) -> i64 {
        -(self as i32 as i64)
    }
}

impl core::fmt::Display for Errno {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
