#![allow(unsafe_code)] // calls the compiled macros
//! One shape for both kinds of ends: ours, and those of the C macros.

use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use libloading::Library;
use ring_abi::io::blkif::BlkifRing;
use ring_abi::io::netif::{NetifCtrlRing, NetifRxRing, NetifTxRing};
use ring_abi::ring::{BackRing, FrontRing, RingError, RingProtocol};
use ring_abi::shared::SharedBytes;
use zerocopy::{FromZeros, IntoBytes};

/// A ring whose types `peer.c` has too.
pub(crate) trait Kind: RingProtocol + Send + 'static {
    /// What its functions begin with.
    const NAME: &'static str;
}

/// A ring of words, with as few slots as the memory is short.
pub(crate) struct Words;

impl RingProtocol for Words {
    type Request = u32;
    type Response = u32;
}

impl Kind for Words {
    const NAME: &'static str = "words";
}

impl Kind for BlkifRing {
    const NAME: &'static str = "blkif";
}

impl Kind for NetifTxRing {
    const NAME: &'static str = "netif_tx";
}

impl Kind for NetifRxRing {
    const NAME: &'static str = "netif_rx";
}

impl Kind for NetifCtrlRing {
    const NAME: &'static str = "xen_netif_ctrl";
}

/// The frontend's end.
pub(crate) trait Front<P: RingProtocol>: Send {
    fn size(&self) -> u32;
    fn room(&self) -> u32;
    /// False: the ring is full.
    fn push(&mut self, request: &P::Request) -> bool;
    /// True: the backend must be notified.
    fn publish(&mut self) -> bool;
    fn next(&mut self) -> Result<Option<P::Response>, RingError>;
    /// True: there is work.
    fn arm(&mut self) -> Result<bool, RingError>;
}

/// The backend's end.
pub(crate) trait Back<P: RingProtocol>: Send {
    fn size(&self) -> u32;
    fn in_flight(&self) -> u32;
    fn next(&mut self) -> Result<Option<P::Request>, RingError>;
    fn push(&mut self, response: &P::Response);
    /// True: the frontend must be notified.
    fn publish(&mut self) -> bool;
    /// True: there is work.
    fn arm(&mut self) -> Result<bool, RingError>;
}

impl<P: RingProtocol> Front<P> for FrontRing<P, SharedBytes<'static>> {
    fn size(&self) -> u32 {
        self.size()
    }

    fn room(&self) -> u32 {
        self.free_requests()
    }

    fn push(&mut self, request: &P::Request) -> bool {
        self.push_request(request).is_ok()
    }

    fn publish(&mut self) -> bool {
        self.publish_requests()
    }

    fn next(&mut self) -> Result<Option<P::Response>, RingError> {
        self.next_response()
    }

    fn arm(&mut self) -> Result<bool, RingError> {
        self.arm_and_recheck()
    }
}

impl<P: RingProtocol> Back<P> for BackRing<P, SharedBytes<'static>> {
    fn size(&self) -> u32 {
        self.size()
    }

    fn in_flight(&self) -> u32 {
        self.in_flight()
    }

    fn next(&mut self) -> Result<Option<P::Request>, RingError> {
        self.next_request()
    }

    fn push(&mut self, response: &P::Response) {
        self.push_response(response);
    }

    fn publish(&mut self) -> bool {
        self.publish_responses()
    }

    fn arm(&mut self) -> Result<bool, RingError> {
        self.arm_and_recheck()
    }
}

/// The end that a program in C would have: its private indices are behind `ring`.
struct InC<P> {
    ring: *mut c_void,
    calls: Calls,
    protocol: std::marker::PhantomData<fn(P)>,
}

// SAFETY: the private half of a ring is plain memory that only this value reaches; its shared half is the page, for
// which `SharedBytes` argues.
unsafe impl<P> Send for InC<P> {}

type Ask = unsafe extern "C" fn(*mut c_void) -> i32;
type Move = unsafe extern "C" fn(*mut c_void, *mut c_void) -> i32;

/// The functions of one end.
struct Calls {
    free: unsafe extern "C" fn(*mut c_void),
    size: Ask,
    count: Ask,
    push: Move,
    publish: Ask,
    next: Move,
    arm: Ask,
    overflow: Ask,
}

impl<P: Kind> InC<P> {
    fn new(end: &str, count: &str, ring: *mut c_void) -> Self {
        let name = |function: &str| format!("{}_{end}_{function}", P::NAME);
        // SAFETY: the types are those of `peer.c`; `back_push` alone returns nothing, and its result is not looked at.
        let calls = unsafe {
            Calls {
                free: symbol(&name("free")),
                size: symbol(&name("size")),
                count: symbol(&name(count)),
                push: symbol(&name("push")),
                publish: symbol(&name("publish")),
                next: symbol(&name("next")),
                arm: symbol(&name("arm")),
                overflow: symbol(&name("overflow")),
            }
        };
        Self { ring, calls, protocol: std::marker::PhantomData }
    }

    fn ask(&self, call: Ask) -> i32 {
        // SAFETY: `ring` came from this end's `new` and is freed only when dropped; the page is leaked.
        unsafe { call(self.ring) }
    }

    fn take<T: FromZeros + IntoBytes + zerocopy::FromBytes>(&self) -> Option<T> {
        let mut message = T::new_zeroed();
        // SAFETY: as in `ask`; the message is as long as C's, which the layout test compares.
        let taken = unsafe { (self.calls.next)(self.ring, message.as_mut_bytes().as_mut_ptr().cast()) };
        (taken != 0).then_some(message)
    }

    fn give<T: IntoBytes + zerocopy::Immutable>(&self, message: &T) -> i32 {
        // SAFETY: as in `take`; C only reads it.
        unsafe { (self.calls.push)(self.ring, message.as_bytes().as_ptr().cast_mut().cast()) }
    }

    /// What the macro for ill-behaved peers says.
    fn checked(&self) -> Result<(), RingError> {
        if self.ask(self.calls.overflow) == 0 {
            return Ok(());
        }
        Err(RingError::ProducerOverrun { prod: 0, cons: 0 })
    }
}

impl<P> Drop for InC<P> {
    fn drop(&mut self) {
        // SAFETY: made by `malloc` in this end's `new`, and not used again.
        unsafe { (self.calls.free)(self.ring) }
    }
}

/// A frontend of macros.
struct FrontInC<P>(InC<P>);

impl<P: Kind> Front<P> for FrontInC<P> {
    fn size(&self) -> u32 {
        self.0.ask(self.0.calls.size) as u32
    }

    fn room(&self) -> u32 {
        self.0.ask(self.0.calls.count) as u32
    }

    fn push(&mut self, request: &P::Request) -> bool {
        self.0.give(request) != 0
    }

    fn publish(&mut self) -> bool {
        self.0.ask(self.0.calls.publish) != 0
    }

    fn next(&mut self) -> Result<Option<P::Response>, RingError> {
        self.0.checked()?;
        Ok(self.0.take())
    }

    fn arm(&mut self) -> Result<bool, RingError> {
        self.0.checked()?;
        Ok(self.0.ask(self.0.calls.arm) != 0)
    }
}

/// A backend of macros.
struct BackInC<P>(InC<P>);

impl<P: Kind> Back<P> for BackInC<P> {
    fn size(&self) -> u32 {
        self.0.ask(self.0.calls.size) as u32
    }

    fn in_flight(&self) -> u32 {
        self.0.ask(self.0.calls.count) as u32
    }

    fn next(&mut self) -> Result<Option<P::Request>, RingError> {
        self.0.checked()?;
        Ok(self.0.take())
    }

    fn push(&mut self, response: &P::Response) {
        self.0.give(response);
    }

    fn publish(&mut self) -> bool {
        self.0.ask(self.0.calls.publish) != 0
    }

    fn arm(&mut self) -> Result<bool, RingError> {
        self.0.checked()?;
        Ok(self.0.ask(self.0.calls.arm) != 0)
    }
}

/// Who is an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Maker {
    Ours,
    Macros,
}

/// Every pairing of the two, frontend first.
pub(crate) const PAIRINGS: [(Maker, Maker); 4] = [
    (Maker::Ours, Maker::Ours),
    (Maker::Ours, Maker::Macros),
    (Maker::Macros, Maker::Ours),
    (Maker::Macros, Maker::Macros),
];

/// A frontend on an empty ring whose indices start at `index`.
pub(crate) fn front<P: Kind>(maker: Maker, page: SharedBytes<'static>, index: u32) -> Box<dyn Front<P>> {
    match maker {
        Maker::Ours => Box::new(FrontRing::<P, _>::starting_at(page, index).expect("a slot")),
        Maker::Macros => {
            // SAFETY: the type is that of `peer.c`; the page is leaked, aligned and as long as told.
            let ring = unsafe {
                let new: unsafe extern "C" fn(*mut u8, usize, u32) -> *mut c_void =
                    symbol(&format!("{}_front_new", P::NAME));
                new(page.as_ptr(), page.len(), index)
            };
            Box::new(FrontInC(InC::<P>::new("front", "room", ring)))
        }
    }
}

/// A backend that attaches where the page says.
pub(crate) fn back<P: Kind>(maker: Maker, page: SharedBytes<'static>) -> Box<dyn Back<P>> {
    match maker {
        Maker::Ours => Box::new(BackRing::<P, _>::attach(page).expect("a slot")),
        Maker::Macros => {
            // SAFETY: as for a frontend.
            let ring = unsafe {
                let new: unsafe extern "C" fn(*mut u8, usize) -> *mut c_void =
                    symbol(&format!("{}_back_new", P::NAME));
                new(page.as_ptr(), page.len())
            };
            Box::new(BackInC(InC::<P>::new("back", "in_flight", ring)))
        }
    }
}

/// A function of the compiled macros.
///
/// # Safety
/// `F` is its type.
unsafe fn symbol<F: Copy>(name: &str) -> F {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| compile().unwrap_or_else(|error| panic!("{error}")));
    // SAFETY: the type is the caller's promise; the library is never closed.
    unsafe { *library.get::<F>(name.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}")) }
}

fn compile() -> Result<Library, String> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ring_macros/peer.c");
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("ring_macros.so");
    let mut command = Command::new("gcc");
    command
        .args(["-std=gnu11", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-Wl,-z,defs", "-o"])
        .arg(&library)
        .arg(source);
    let output = command.output().map_err(|error| format!("gcc: {error}; apt-get install gcc libc6-dev"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{command:?}\n{errors}\nXen's headers come with libxen-dev"));
    }
    // SAFETY: it has no code that runs when loaded.
    unsafe { Library::new(&library) }.map_err(|error| error.to_string())
}
