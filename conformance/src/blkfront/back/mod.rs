//! A block backend that does only what a case tells it to: the case decides what the backend announces, answers and
//! writes to the ring. The backend checks each request closely (`ring`): a frontend that asks for more than the
//! backend announced has failed.

mod ring;

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Deref;

use pvrt::event::Port;
use pvrt::executor::{spawn_join, time};
use pvrt::grant::GrantMap;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::shared::SharedBytes;

use super::{BlockFrontend, FrontError, Later};
pub use crate::served::Asked;
use crate::served::{PATIENCE_NS, Served};
use crate::{Env, Problem, Verdict};

/// An operation that takes longer waits on a connection that the frontend has given up.
const GIVEN_UP_NS: u64 = 1_000_000_000;
/// A frontend's pause that counts as doing nothing.
const SILENCE_NS: u64 = 100_000_000;

/// What the backend announces.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// `sectors`.
    pub sectors: u64,
    /// `sector-size`.
    pub sector_size: u32,
    /// `info`: `VDISK_*`.
    pub info: u32,
    /// `feature-flush-cache`.
    pub flush: bool,
    /// `feature-discard`.
    pub discard: bool,
    /// `feature-max-indirect-segments`; 0 is not written.
    pub indirect: usize,
}

impl Default for Disk {
    fn default() -> Self {
        Self { sectors: 1024, sector_size: 512, info: 0, flush: false, discard: false, indirect: 0 }
    }
}

/// The mapped ring.
struct Attached {
    ring: GrantMap,
    port: Port,
    req_cons: u32,
    rsp_prod: u32,
}

/// The backend, with the device's nodes.
pub struct Back {
    served: Served,
    attached: Option<Attached>,
    /// What is announced.
    pub disk: Disk,
    /// The disk's content.
    pub data: Vec<u8>,
}

impl Deref for Back {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl Back {
    /// A device whose backend is `Initialising`, as a toolstack leaves it.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env, disk: Disk) -> Verdict<Self> {
        let served = Served::new(env, |devices| devices.fresh())?;
        let mut data = Vec::with_capacity(disk.sectors as usize * 512);
        // Fills a sector at a time: in a build without optimization, single bytes would take most of a case's
        // time.
        let mut bytes: [u8; 512] = core::array::from_fn(|at| (at / 7 + 1) as u8);
        for sector in 0..disk.sectors as usize {
            bytes[..8].copy_from_slice(&(sector as u64).to_le_bytes());
            data.extend_from_slice(&bytes);
        }
        Ok(Self { served, attached: None, disk, data })
    }

    /// Starts the frontend.
    pub fn start(&self) -> Asked<Arc<dyn BlockFrontend>> {
        run(self.frontends.connect(&self.front))
    }

    /// Writes the features that a backend announces before `InitWait`, and goes to `InitWait`.
    pub fn announce(&self) {
        if self.disk.indirect > 0 {
            self.set("feature-max-indirect-segments", self.disk.indirect);
        }
        self.set("feature-flush-cache", u32::from(self.disk.flush));
        self.set("feature-discard", u32::from(self.disk.discard));
        self.set_state(XenbusState::InitWait);
    }

    /// Maps the ring and binds the event channel that the frontend names.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend's nodes are missing or name no usable ring or port.
    pub fn attach(&mut self) -> Verdict {
        let (ring, port) = (self.map_ring("ring-ref")?, self.bind("event-channel")?);
        self.attached = Some(Attached { ring, port, req_cons: 0, rsp_prod: 0 });
        Ok(())
    }

    /// Writes the disk's properties and goes to `Connected`.
    pub fn properties(&self) {
        self.set("sectors", self.disk.sectors);
        self.set("sector-size", self.disk.sector_size);
        self.set("info", self.disk.info);
        self.set_state(XenbusState::Connected);
    }

    /// Does all steps until the frontend is connected.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend does not connect.
    pub async fn connect(&mut self) -> Verdict<Arc<dyn BlockFrontend>> {
        let front = self.start();
        self.announce();
        self.wait_front(&[XenbusState::Initialised, XenbusState::Connected]).await?;
        self.attach()?;
        self.properties();
        // The frontend's kernel may read the partition table at once.
        match self.serve(front).await? {
            Ok(front) => Ok(front),
            Err(error) => Err(Problem::Fail(format!("the frontend does not connect: {error:?}"))),
        }
    }

    /// Waits for the result of an operation whose connection the frontend may have given up. The ABI does not
    /// say that such an operation ends, so `None` says that the operation still waits. Where frontends are
    /// tried strictly, the operation must end.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend dropped the operation, or the operation must end and does not.
    pub async fn given_up<T>(&self, asked: Asked<T>) -> Verdict<Option<Result<T, FrontError>>> {
        if self.strict {
            return self.end(asked).await.map(Some);
        }
        match time::timeout(GIVEN_UP_NS, asked).await {
            Ok(Ok(result)) => Ok(Some(result)),
            Ok(Err(_)) => Err(Problem::Fail("the frontend dropped an operation".into())),
            Err(_) => Ok(None),
        }
    }

    fn ring(&self) -> SharedBytes<'_> {
        self.attached.as_ref().expect("a connected case").ring.bytes()
    }

    fn attached(&mut self) -> &mut Attached {
        self.attached.as_mut().expect("a connected case")
    }

    /// Lets go of the ring and the event channel.
    pub fn detach(&mut self) {
        self.attached = None;
    }
}

/// Starts an operation.
pub fn run<T: Send + 'static>(operation: Later<T>) -> Asked<T> {
    spawn_join(operation)
}
