//! The layout of every wire item, as data.
//!
//! The ABI test compiles the installed Xen headers with a C compiler and compares each item listed here. The macros
//! below both define and list an item, so the comparison cannot miss an item that the macros define.

/// One member of a wire structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name in Rust.
    pub name: &'static str,
    /// Member designator in C (`arg1.mfn` for a member of a union); empty for padding that C leaves unnamed.
    pub c_path: &'static str,
    /// Byte offset.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// One wire structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Name in Rust.
    pub name: &'static str,
    /// Type name in C; empty when the C type is anonymous and only reachable through its container.
    pub c_name: &'static str,
    /// Size in bytes.
    pub size: usize,
    /// Alignment in bytes.
    pub align: usize,
    /// Members in order, padding included.
    pub fields: &'static [Field],
}

/// One constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Name in Rust.
    pub name: &'static str,
    /// Name in C.
    pub c_name: &'static str,
    /// Value, wide enough for every `u64` and every negative.
    pub value: i128,
    /// Size of the Rust constant's type: C macros have none, so values compare in this width.
    pub size: usize,
}

/// The items taken from one header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Header below `xen/include/public/`.
    pub header: &'static str,
    /// Structures in the order of the source.
    pub structs: &'static [Struct],
    /// Constants in the order of the source.
    pub constants: &'static [Constant],
}

macro_rules! modules {
    ($( $header:literal: [$( $structs:path ),*] [$( $constants:path ),*]; )*) => {
        /// Everything that this crate takes from the public headers.
        pub const MODULES: &[Module] = &[$(
            Module { header: $header, structs: &[], constants: &[] },
            $( Module { header: $header, structs: $structs, constants: &[] }, )*
            $( Module { header: $header, structs: &[], constants: $constants }, )*
        )*];
    };
}

modules! {
    "errno.h": [] [crate::errno::CONSTANTS];
    "xen.h":
        [crate::start_info::STRUCTS, crate::shared_info::STRUCTS, crate::hypercall::STRUCTS, crate::mmu::STRUCTS]
        [
            crate::types::CONSTANTS, crate::start_info::CONSTANTS, crate::shared_info::CONSTANTS,
            crate::hypercall::CONSTANTS, crate::mmu::CONSTANTS, crate::evtchn::virq::CONSTANTS,
            crate::vm_assist::CONSTANTS, crate::console_io::CONSTANTS
        ];
    "arch-x86/xen.h": [crate::guest_context::STRUCTS] [crate::guest_context::CONSTANTS];
    "arch-x86/xen-x86_64.h": [] [crate::segment::CONSTANTS];
    "elfnote.h": [] [crate::elfnote::CONSTANTS];
    "features.h": [] [crate::version::features::CONSTANTS];
    "callback.h": [crate::callback::STRUCTS] [crate::callback::CONSTANTS];
    "event_channel.h": [crate::evtchn::STRUCTS] [crate::evtchn::CONSTANTS];
    "grant_table.h": [crate::grant::STRUCTS] [crate::grant::CONSTANTS];
    "memory.h": [crate::memory::STRUCTS] [crate::memory::CONSTANTS];
    "nmi.h": [crate::nmi::STRUCTS] [crate::nmi::CONSTANTS];
    "physdev.h": [crate::physdev::STRUCTS] [crate::physdev::CONSTANTS];
    "platform.h": [crate::platform::STRUCTS] [crate::platform::CONSTANTS];
    "sched.h": [crate::sched::STRUCTS] [crate::sched::CONSTANTS];
    "vcpu.h": [crate::vcpu::STRUCTS] [crate::vcpu::CONSTANTS];
    "version.h": [crate::version::STRUCTS] [crate::version::CONSTANTS];
    "domctl.h": [crate::domctl::STRUCTS] [crate::domctl::CONSTANTS];
    "sysctl.h": [crate::sysctl::STRUCTS] [crate::sysctl::CONSTANTS];
    "io/blkif.h": [crate::io::blkif::STRUCTS]
        [crate::ring::CONSTANTS, crate::io::blkif::CONSTANTS, crate::io::blkif::ring::CONSTANTS];
    "io/netif.h": [crate::io::netif::STRUCTS] [crate::io::netif::CONSTANTS, crate::io::netif::ring::CONSTANTS];
    "io/console.h": [crate::io::console::STRUCTS] [];
    "io/protocols.h": [] [];
    "io/xenbus.h": [] [crate::io::xenbus::CONSTANTS];
    "io/xs_wire.h": [crate::io::xs_wire::STRUCTS] [crate::io::xs_wire::CONSTANTS];
}

/// Picks the C member path: the given one, else the Rust name without `r#`.
#[doc(hidden)]
#[must_use]
pub const fn c_path(name: &'static str, given: Option<&'static str>) -> &'static str {
    if let Some(path) = given {
        return path;
    }
    match name.as_bytes() {
        [b'r', b'#', ..] => name.split_at(2).1,
        _ => name,
    }
}

/// Defines wire structures and the list `STRUCTS` of their layouts.
///
/// Each member is written `OFFSET name: Type`, with `= "c.path"` where C spells it otherwise and `= ""` where C
/// has unnamed padding. All padding is named, so that a copy to another domain cannot carry private bytes.
macro_rules! wire {
    ($header:literal; $( $(#[$meta:meta])* struct $name:ident = $c:literal, $size:literal {
        $( $(#[$fmeta:meta])* $off:literal $field:ident : $ty:ty $(= $path:literal)? ),* $(,)?
    })*) => {
        $(
            $(#[$meta])*
            ///
            #[doc = concat!("ABI: `", $c, "`, `xen/include/public/", $header, "`; ", stringify!($size), " bytes.")]
            #[repr(C)]
            #[derive(
                Clone, Copy, Debug, PartialEq, Eq,
                zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout,
            )]
            pub struct $name {
                $(
                    $(#[$fmeta])*
                    #[doc = concat!("(Byte ", stringify!($off), ".)")]
                    pub $field: $ty,
                )*
            }

            const _: () = {
                assert!(size_of::<$name>() == $size);
                $( assert!(core::mem::offset_of!($name, $field) == $off); )*
            };

            /// All bytes zero.
            impl Default for $name {
                fn default() -> Self {
                    zerocopy::FromZeros::new_zeroed()
                }
            }

            impl $name {
                /// Layout for the ABI test.
                #[doc(hidden)]
                pub const LAYOUT: $crate::layout::Struct = $crate::layout::Struct {
                    name: stringify!($name),
                    c_name: $c,
                    size: size_of::<$name>(),
                    align: align_of::<$name>(),
                    fields: &[$(
                        $crate::layout::Field {
                            name: stringify!($field),
                            c_path: $crate::layout::c_path(stringify!($field), wire!(@path $($path)?)),
                            offset: core::mem::offset_of!($name, $field),
                            size: size_of::<$ty>(),
                        },
                    )*],
                };
            }
        )*

        /// Layouts of this module's structures.
        #[doc(hidden)]
        pub const STRUCTS: &[$crate::layout::Struct] = &[$( $name::LAYOUT ),*];
    };
    (@path) => { None };
    (@path $path:literal) => { Some($path) };
}

/// Defines constants, written `NAME: type = value => "name in C";`, and the list `CONSTANTS` of them.
macro_rules! constants {
    ($header:literal; $( $(#[$meta:meta])* $name:ident : $ty:ty = $value:expr => $c:literal; )*) => {
        $(
            $(#[$meta])*
            #[doc = concat!("`", $c, "`, `xen/include/public/", $header, "`.")]
            pub const $name: $ty = $value;
        )*

        /// This module's constants.
        #[doc(hidden)]
        pub const CONSTANTS: &[$crate::layout::Constant] = &[$(
            $crate::layout::Constant {
                name: stringify!($name),
                c_name: $c,
                value: $name as i128,
                size: size_of::<$ty>(),
            },
        )*];
    };
}

pub(crate) use {constants, wire};
