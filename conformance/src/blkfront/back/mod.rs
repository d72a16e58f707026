//! A block backend that does only what a case tells it to: the case decides what the backend announces, answers and
//! writes to the ring. The backend checks each request closely (`ring`): a frontend that asks for more than the
//! backend announced has failed.

mod ring;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Display;

use pvrt::event::Port;
use pvrt::executor::sync::Receiver;
use pvrt::executor::{spawn_join, time};
use pvrt::grant::{GrantMap, map_grants};
use ring_abi::io::xenbus::XenbusState;
use ring_abi::shared::SharedBytes;
use ring_abi::types::{DomId, GrantRef, Port as PortNumber};

use super::{BlockFrontend, FrontError, Later};
use crate::env::{BackendDevice, Devices};
use crate::{Env, Problem, Verdict};

/// How long a frontend may take for anything.
const PATIENCE_NS: u64 = 5_000_000_000;
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

/// A running operation of the frontend's.
pub type Asked<T> = Receiver<Result<T, FrontError>>;

/// The backend, with the device's nodes.
pub struct Back {
    devices: Arc<dyn Devices>,
    frontends: Arc<dyn super::Frontends>,
    front: String,
    back: String,
    dom: DomId,
    /// The frontend must also do what the ABI leaves open.
    pub strict: bool,
    attached: Option<Attached>,
    /// What is announced.
    pub disk: Disk,
    /// The disk's content.
    pub data: Vec<u8>,
}

impl Back {
    /// A device whose backend is `Initialising`, as a toolstack leaves it.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there is no frontend to try.
    pub fn new(env: &Env, disk: Disk) -> Verdict<Self> {
        let place = env.frontend_under_test.clone();
        let Some(place) = place else { return Err(Problem::Skip("no frontend to try".into())) };
        let mut data = Vec::with_capacity(disk.sectors as usize * 512);
        // Fills a sector at a time: in a build without optimization, single bytes would take most of a case's
        // time.
        let mut bytes: [u8; 512] = core::array::from_fn(|at| (at / 7 + 1) as u8);
        for sector in 0..disk.sectors as usize {
            bytes[..8].copy_from_slice(&(sector as u64).to_le_bytes());
            data.extend_from_slice(&bytes);
        }
        let BackendDevice { front, back } = place.devices.fresh()?;
        Ok(Self {
            devices: place.devices,
            frontends: place.frontends,
            front,
            back,
            dom: DomId::new(place.dom),
            strict: place.strict,
            attached: None,
            disk,
            data,
        })
    }

    /// Sets a node of the backend's.
    pub fn set(&self, key: &str, value: impl Display) {
        self.devices.write(&format!("{}/{key}", self.back), value.to_string().as_bytes());
    }

    /// Removes the backend's directory.
    pub fn vanish(&self) {
        self.devices.remove(&self.back);
    }

    /// Sets the backend's state.
    pub fn set_state(&self, state: XenbusState) {
        self.set("state", state.raw());
    }

    /// A node of the frontend's.
    pub fn key(&self, key: &str) -> Option<String> {
        let value = self.devices.read(&format!("{}/{key}", self.front))?;
        Some(String::from_utf8_lossy(&value).into_owned())
    }

    /// The frontend's state.
    pub fn front_state(&self) -> XenbusState {
        self.key("state").map_or(XenbusState::Unknown, |text| XenbusState::parse(&text))
    }

    /// Waits until the frontend's state is one of `wanted`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the frontend reaches none of the states.
    pub async fn wait_front(&self, wanted: &[XenbusState]) -> Verdict<XenbusState> {
        let end = time::now_ns() + PATIENCE_NS;
        loop {
            let state = self.front_state();
            if wanted.contains(&state) {
                return Ok(state);
            }
            ensure!(time::now_ns() < end, "the frontend stays in state {state:?}, is to reach {wanted:?}");
            time::sleep(100_000).await;
        }
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
        let number = |key: &str| -> Verdict<u32> {
            let text = self.key(key);
            let value = text.as_ref().and_then(|text| text.parse().ok());
            value.ok_or_else(|| Problem::Fail(format!("the frontend's {key} is {text:?}")))
        };
        let (gref, port) = (number("ring-ref")?, number("event-channel")?);
        let ring = map_grants(self.dom, &[GrantRef::new(gref)], true)
            .map_err(|status| Problem::Fail(format!("mapping the frontend's ring: {status}")))?;
        let port = Port::bind_interdomain(self.dom, PortNumber::new(port))
            .map_err(|errno| Problem::Fail(format!("binding the frontend's event channel: {errno}")))?;
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

    /// Waits for the result of an operation of the frontend's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the operation does not end.
    pub async fn end<T>(&self, asked: Asked<T>) -> Verdict<Result<T, FrontError>> {
        match time::timeout(PATIENCE_NS, asked).await {
            Ok(Ok(result)) => Ok(result),
            Ok(Err(_)) => Err(Problem::Fail("the frontend dropped an operation".into())),
            Err(_) => Err(Problem::Fail("an operation of the frontend's does not end".into())),
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
