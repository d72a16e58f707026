//! The driver domain's side. The toolstack gives this kernel devices to serve as backend. An agent in user space of
//! the frontends' domain drives the frontends, by [`orders`](super::orders).
//!
//! Each connection gets a device of its own, and no device is used twice, so a frontend that hangs after one
//! case disturbs no other case. The toolstack attaches any number of devices, before the cases run or
//! meanwhile:
//!
//! ```text
//! xl block-attach linux vdev=xvdb,backend=conformance,target=conformance
//! ```

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use pvrt::executor::time;
use ring_abi::io::xs_wire::{XS_DIRECTORY, XS_MKDIR, XS_READ, XS_RM, XS_SET_PERMS, XS_WRITE};
use spin::Mutex;

use super::orders::{self, Came, DIRECTORY, Order};
use super::{BlockFrontend, FrontError, Frontends, Later, Sum};
use crate::env::{BackendDevice, Devices, FrontendPlace};
use crate::store::{Store, nul, strings};
use crate::{Env, Problem, Verdict};

/// How long the toolstack may take for the first device, and the agent to start.
const START_NS: u64 = 240_000_000_000;
/// How long a case waits for another device.
const DEVICE_NS: u64 = 10_000_000_000;
/// How often the cases read the store while they wait.
const LOOK_NS: u64 = 3_000_000;
/// The agent is taken for dead when an order has no answer after this time: no case waits so long.
const ORDER_NS: u64 = 15_000_000_000;

/// The xenstore connection that everything here shares. A wait for an answer on this connection holds the
/// vCPU.
#[derive(Clone)]
struct Shared(Arc<Mutex<Store>>);

impl Shared {
    fn ask(&self, kind: u32, payload: &[u8]) -> Verdict<Option<Vec<u8>>> {
        Ok(self.0.lock().ask_at_once(kind, payload)?.ok())
    }

    fn text(&self, path: &str) -> Verdict<Option<String>> {
        let value = self.ask(XS_READ, &nul(path))?;
        Ok(value.map(|value| String::from_utf8_lossy(&value).into_owned()))
    }

    fn list(&self, path: &str) -> Verdict<Vec<String>> {
        Ok(strings(&self.ask(XS_DIRECTORY, &nul(path))?.unwrap_or_default()))
    }

    fn put(&self, path: &str, value: &[u8]) -> Verdict {
        let answer = self.ask(XS_WRITE, &[&nul(path), value].concat())?;
        answer.map(drop).ok_or_else(|| Problem::Error(format!("writing {path}")))
    }
}

/// The devices of the frontend's domain whose backend is this domain.
struct Served {
    store: Shared,
    /// This domain's directory in xenstore, `/local/domain/N`.
    home: String,
    /// The frontend's domain.
    dom: u16,
    used: Mutex<Vec<u32>>,
}

impl Served {
    /// The next device that no case has used yet.
    fn next(&self) -> Verdict<Option<u32>> {
        let names = self.store.list(&format!("{}/backend/vbd/{}", self.home, self.dom))?;
        let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        let used = self.used.lock();
        Ok(numbers.into_iter().find(|number| !used.contains(number)))
    }
}

impl Devices for Served {
    fn fresh(&self) -> Verdict<BackendDevice> {
        let base = format!("{}/backend/vbd/{}", self.home, self.dom);
        // Removes the nodes of used devices: a domain may own a thousand nodes.
        for number in self.used.lock().iter() {
            self.remove(&format!("{base}/{number}"));
        }
        let end = time::now_ns() + DEVICE_NS;
        let number = loop {
            if let Some(number) = self.next()? {
                break number;
            }
            if time::now_ns() > end {
                return Err(Problem::Error("the toolstack gave too few devices".into()));
            }
        };
        self.used.lock().push(number);
        let back = format!("{base}/{number}");
        let front = self.store.text(&format!("{back}/frontend"))?;
        let front = front.ok_or_else(|| Problem::Error(format!("{back}: no frontend")))?;
        Ok(BackendDevice { front, back })
    }

    fn read(&self, path: &str) -> Option<Vec<u8>> {
        self.store.ask(XS_READ, &nul(path)).ok().flatten()
    }

    fn write(&self, path: &str, value: &[u8]) {
        if let Err(problem) = self.store.put(path, value) {
            log::error!("{problem}");
        }
    }

    fn remove(&self, path: &str) {
        // A node that is missing already is no error.
        let _ = self.store.ask(XS_RM, &nul(path));
    }
}

/// The channel to the agent: orders written as nodes.
struct Agent {
    store: Shared,
    next: AtomicU32,
}

impl Agent {
    /// Gives the agent an order and waits for the result.
    async fn order(&self, order: Order) -> Result<Option<Sum>, FrontError> {
        let gone = |_| FrontError::Gone;
        let path = format!("{DIRECTORY}/{}", self.next.fetch_add(1, Ordering::Relaxed));
        self.store.put(&path, order.to_string().as_bytes()).map_err(gone)?;
        let end = time::now_ns() + ORDER_NS;
        let mut came: Came = Err(FrontError::Gone);
        while time::now_ns() < end {
            time::sleep(LOOK_NS).await;
            let node = self.store.text(&path).map_err(gone)?.unwrap_or_default();
            if let Some(answer) = orders::parse_answer(&node) {
                came = answer;
                break;
            }
        }
        let _ = self.store.ask(XS_RM, &nul(&path));
        came
    }
}

/// A frontend, by its device's number.
struct Driven {
    agent: Arc<Agent>,
    device: u32,
}

impl Driven {
    fn order(self: Arc<Self>, order: Order) -> Later<()> {
        Box::pin(async move { self.agent.order(order).await.map(drop) })
    }
}

/// The frontends that the agent drives.
struct Stock(Arc<Agent>);

impl Frontends for Stock {
    fn connect(&self, path: &str) -> Later<Arc<dyn BlockFrontend>> {
        let device = path.rsplit('/').next().and_then(|name| name.parse().ok()).unwrap_or(0);
        let agent = self.0.clone();
        Box::pin(async move {
            agent.order(Order::Connect(device)).await?;
            Ok(Arc::new(Driven { agent, device }) as Arc<dyn BlockFrontend>)
        })
    }
}

impl BlockFrontend for Driven {
    fn read(self: Arc<Self>, sector: u64, sectors: usize) -> Later<Sum> {
        Box::pin(async move {
            let read = self.agent.order(Order::Read(self.device, sector, sectors)).await?;
            read.ok_or(FrontError::Failed)
        })
    }

    fn write(self: Arc<Self>, sector: u64, sectors: usize, seed: u8) -> Later<()> {
        let order = Order::Write(self.device, sector, sectors, seed);
        self.order(order)
    }

    fn flush(self: Arc<Self>) -> Later<()> {
        let order = Order::Flush(self.device);
        self.order(order)
    }

    fn discard(self: Arc<Self>, sector: u64, sectors: u64) -> Later<()> {
        let order = Order::Discard(self.device, sector, sectors);
        self.order(order)
    }

    fn close(self: Arc<Self>) -> Later<()> {
        let order = Order::Close(self.device);
        self.order(order)
    }
}

/// Makes this kernel a driver domain: takes over the xenstore connection, and waits for the first device and for the
/// agent.
///
/// # Errors
/// [`Problem`]: the device or the agent does not come, or xenstore refuses.
pub async fn driver_domain(env: &mut Env) -> Verdict {
    env.store()?;
    let Some(store) = env.store.take() else { return Ok(()) };
    let store = Shared(Arc::new(Mutex::new(store)));
    let own = store.text("domid")?.ok_or_else(|| Problem::Error("no domid".into()))?;
    let home = format!("/local/domain/{own}");
    let end = time::now_ns() + START_NS;
    let dom: u16 = loop {
        let names = store.list(&format!("{home}/backend/vbd"))?;
        if let Some(dom) = names.iter().find_map(|name| name.parse().ok()) {
            break dom;
        }
        ensure!(time::now_ns() < end, "no device to serve");
        time::sleep(100 * LOOK_NS).await;
    };
    store.ask(XS_MKDIR, &nul(DIRECTORY))?;
    let perms = [nul(DIRECTORY), nul(&format!("n{own}")), nul(&format!("b{dom}"))].concat();
    let shared = store.ask(XS_SET_PERMS, &perms)?;
    shared.ok_or_else(|| Problem::Error(format!("sharing {DIRECTORY}")))?;
    let agent = Arc::new(Agent { store: store.clone(), next: AtomicU32::new(1) });
    // The agent refuses an order for a device that does not exist; this answer shows that the agent runs.
    loop {
        let began = time::now_ns();
        agent.order(Order::Flush(0)).await.ok();
        if time::now_ns() - began < ORDER_NS {
            break;
        }
        ensure!(time::now_ns() < end, "the agent does not answer");
    }
    env.frontend_under_test = Some(FrontendPlace {
        dom,
        devices: Arc::new(Served { store, home, dom, used: Mutex::default() }),
        frontends: Arc::new(Stock(agent)),
        strict: false,
    });
    Ok(())
}
