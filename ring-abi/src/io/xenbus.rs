//! States by which the two ends of a device find each other.

use core::fmt;

macro_rules! states {
    ($( $name:ident = $value:literal, $c:literal, $doc:literal; )*) => {
        /// Value of a device's `state` node, in decimal.
        ///
        /// ABI: `enum xenbus_state`, `xen/include/public/io/xenbus.h`.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum XenbusState {
            $( #[doc = $doc] $name = $value, )*
        }

        impl XenbusState {
            /// The state with this number.
            #[must_use]
            pub const fn from_raw(raw: u32) -> Option<Self> {
                match raw {
                    $( $value => Some(Self::$name), )*
                    _ => None,
                }
            }
        }

        /// This module's constants.
        #[doc(hidden)]
        pub const CONSTANTS: &[crate::layout::Constant] = &[$(
            crate::layout::Constant { name: stringify!($name), c_name: $c, value: $value, size: 4 },
        )*];
    };
}

states! {
    Unknown = 0, "XenbusStateUnknown", "No such node, or not a number.";
    Initialising = 1, "XenbusStateInitialising", "Made by the toolstack.";
    InitWait = 2, "XenbusStateInitWait", "Backend: waiting for the frontend's details.";
    Initialised = 3, "XenbusStateInitialised", "Frontend: details written; waiting for the backend.";
    Connected = 4, "XenbusStateConnected", "In use.";
    Closing = 5, "XenbusStateClosing", "One end wants to stop.";
    Closed = 6, "XenbusStateClosed", "Nothing shared any more.";
    Reconfiguring = 7, "XenbusStateReconfiguring", "A sub-device is changing.";
    Reconfigured = 8, "XenbusStateReconfigured", "The change is done.";
}

impl XenbusState {
    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self as u32
    }

    /// The state written in a node: decimal digits; anything else is [`XenbusState::Unknown`].
    #[must_use]
    pub fn parse(text: &str) -> Self {
        text.trim().parse().ok().and_then(Self::from_raw).unwrap_or(Self::Unknown)
    }
}

impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse() {
        assert_eq!(XenbusState::parse("4"), XenbusState::Connected);
        assert_eq!(XenbusState::parse("8\n"), XenbusState::Reconfigured);
        for bad in ["", "9", "-1", "x", "4294967296"] {
            assert_eq!(XenbusState::parse(bad), XenbusState::Unknown, "{bad:?}");
        }
    }
}
