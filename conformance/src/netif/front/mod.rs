//! Two network frontends on one bridge, with no will of their own: every word on the rings and in xenstore is the
//! case's. What the first sends, the second receives.

mod end;
pub mod frames;
mod made;
mod ring;
mod traffic;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use ring_abi::io::mac::MacAddr;
use ring_abi::io::xenbus::XenbusState;

use crate::device::Device;
use crate::env::FoundVif;
use crate::{Env, Problem, Verdict};
pub use end::{End, Got, Queue};
pub use made::{Made, gso, hash, multicast};
pub use ring::Ring;
pub use traffic::same;

/// How long a response may take.
pub const PATIENCE_MS: u64 = 8_000;
/// Receive requests of a frontend that is not about receiving.
const STOCK: u32 = 64;

/// How to connect one end.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pairs of rings.
    pub queues: u32,
    /// An event channel for each ring.
    pub split: bool,
    /// Where the rings' indices start.
    pub index: u32,
    /// A control ring.
    pub control: bool,
    /// Receive requests that are posted at once, and kept up.
    pub post: u32,
    /// Nodes with other values than usual, or without a value: left out.
    pub changed: Vec<(String, Option<String>)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { queues: 1, split: false, index: 0, control: false, post: STOCK, changed: Vec::new() }
    }
}

impl Options {
    /// The usual ones, with a node that has another value.
    pub fn with(key: &str, value: impl ToString) -> Self {
        Self::default().and(key, value)
    }

    /// The usual ones, without a node.
    pub fn without(key: &str) -> Self {
        Self { changed: alloc::vec![(key.to_string(), None)], ..Self::default() }
    }

    /// These, with a node that has another value.
    pub fn and(mut self, key: &str, value: impl ToString) -> Self {
        self.changed.push((key.to_string(), Some(value.to_string())));
        self
    }

    /// The node's value where it is usually `value`.
    fn value(&self, key: &str, value: String) -> Option<String> {
        let changed = self.changed.iter().find(|(changed, _)| changed == key);
        changed.map_or(Some(value), |(_, value)| value.clone())
    }
}

/// Which of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one that sends.
    Sender,
    /// The one that receives.
    Receiver,
}

/// Both ends, connected.
pub struct Net<'a> {
    /// The place.
    pub env: &'a mut Env,
    /// The end that sends.
    pub sender: End,
    /// The end that receives.
    pub receiver: End,
    /// Numbers the frames that show that the rest went through.
    marks: u8,
}

impl<'a> Net<'a> {
    /// Connects both ends with the usual options.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn usual(env: &'a mut Env) -> Verdict<Self> {
        Self::connect(env, &Options::default(), &Options::default()).await
    }

    /// Connects both ends, the receiver as `options` say.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn receiving(env: &'a mut Env, options: &Options) -> Verdict<Self> {
        Self::connect(env, &Options::default(), options).await
    }

    /// Connects both ends.
    ///
    /// # Errors
    /// [`Problem::Skip`]: there are no two interfaces. [`Problem::Fail`]: a backend does not connect.
    pub async fn connect(env: &'a mut Env, sender: &Options, receiver: &Options) -> Verdict<Self> {
        let mut net = Self::prepare(env).await?;
        net.join(Which::Receiver, receiver).await?;
        net.join(Which::Sender, sender).await?;
        Ok(net)
    }

    /// Both ends as the toolstack left them.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn prepare(env: &'a mut Env) -> Verdict<Self> {
        let [sender, receiver] = env.vifs().map(|pair| pair.map(FoundVif::clone))?;
        let sender = End::open(env, &sender.path).await?;
        let receiver = End::open(env, &receiver.path).await?;
        let mut net = Self { env, sender, receiver, marks: 0 };
        net.reset(Which::Receiver).await?;
        net.reset(Which::Sender).await?;
        Ok(net)
    }

    /// One of the ends.
    pub fn end(&mut self, which: Which) -> &mut End {
        match which {
            Which::Sender => &mut self.sender,
            Which::Receiver => &mut self.receiver,
        }
    }

    /// Swaps the ends: the sender becomes the receiver.
    pub fn swap(&mut self) {
        core::mem::swap(&mut self.sender, &mut self.receiver);
    }

    /// The nodes of an end.
    pub fn device(&mut self, which: Which) -> Device<'_> {
        let end = if which == Which::Sender { &self.sender } else { &self.receiver };
        let (front, back, dom) = (end.front.clone(), end.back.clone(), end.dom);
        Device { env: self.env, front, back, dom }
    }

    /// Brings an end to where the toolstack left it.
    ///
    /// # Errors
    /// [`Problem`]: the interface's backend does not follow.
    pub async fn reset(&mut self, which: Which) -> Verdict {
        let mut device = self.device(which);
        device.reset().await?;
        for key in end::NODES {
            device.remove_front(key).await?;
        }
        let end = self.end(which);
        end.queues.clear();
        end.control = None;
        Ok(())
    }

    /// Makes the rings of an end and writes the end's nodes, but not its state.
    ///
    /// # Errors
    /// [`Problem::Error`]: nothing is left, or xenstore refuses.
    pub async fn announce(&mut self, which: Which, options: &Options) -> Verdict {
        let end = self.end(which);
        let nodes = end.make(options)?;
        let mut device = self.device(which);
        let others = options.changed.iter().filter(|(key, _)| nodes.iter().all(|(node, _)| node != key));
        for (key, value) in others {
            if let Some(value) = value {
                device.write_front(key, value).await?;
            }
        }
        for (key, value) in nodes {
            if let Some(value) = options.value(&key, value) {
                device.write_front(&key, value).await?;
            }
        }
        Ok(())
    }

    /// Connects an end that was reset.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the interface's backend does not connect.
    pub async fn join(&mut self, which: Which, options: &Options) -> Verdict {
        use XenbusState::{Closed, Closing, Connected};
        self.announce(which, options).await?;
        self.end(which).post(options.post)?;
        let mut device = self.device(which);
        device.set_state(Connected).await?;
        let state = device.wait_state(&[Connected, Closing, Closed]).await?;
        if state != Connected {
            let error = device.read_back("error").await?;
            return Err(Problem::Fail(format!("the backend refuses: state {state:?}, error {error:?}")));
        }
        Ok(())
    }

    /// Looks that a backend does not serve an end with `options`, and that it connects to a good one afterwards. Linux's
    /// xen-netback says that it is Connected even so.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what must not happen happens.
    pub async fn turned_away(&mut self, options: &Options) -> Verdict {
        use XenbusState::{Connected, InitWait};
        self.reset(Which::Sender).await?;
        self.announce(Which::Sender, options).await?;
        // A state is a word: what counts is whether the backend serves.
        let frame = self.mark()?;
        self.sender.put(&frame);
        self.sender.tx().publish();
        self.device(Which::Sender).set_state(Connected).await?;
        pvrt::executor::time::sleep(super::REFUSAL_NS).await;
        self.sender.tx().notify();
        pvrt::executor::time::sleep(super::REFUSAL_NS).await;
        ensure_eq!(self.sender.tx().waiting(), 0, "answers of a backend that is not to connect");
        let mut device = self.device(Which::Sender);
        let state = device.state().await?;
        if state == InitWait {
            // A backend that waits for something better has not noticed that this one is closed, too.
            device.set_state(XenbusState::Closing).await?;
        }
        self.again(&Options::default()).await
    }

    /// Closes the sender's end, connects it anew, and looks that it works.
    ///
    /// # Errors
    /// [`Problem::Fail`]: what is waited for does not happen.
    pub async fn again(&mut self, options: &Options) -> Verdict {
        self.reset(Which::Sender).await?;
        self.join(Which::Sender, options).await?;
        self.goes_on().await
    }

    /// A feature of the sender's backend: its number, 0 where the key is missing.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn feature(&mut self, key: &str) -> Verdict<u32> {
        let text = self.device(Which::Sender).read_back(key).await?;
        Ok(text.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }

    /// Ends the case as skipped unless the sender's backend has the feature.
    ///
    /// # Errors
    /// [`Problem::Skip`]: the backend lacks the feature.
    pub async fn needs(&mut self, key: &str) -> Verdict {
        let number = self.feature(key).await?;
        require!(number > 0, "the backend has no {key}");
        Ok(())
    }

    /// Closes both ends in order, and looks that the backends give the rings back.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backends do not do that.
    pub async fn close(mut self) -> Verdict {
        for which in [Which::Sender, Which::Receiver] {
            self.device(which).close().await?;
            self.end(which).given_back().await?;
        }
        Ok(())
    }
}

/// The addresses that the toolstack gave both interfaces must differ, or nothing would be switched.
///
/// # Errors
/// [`Problem::Error`]: the node holds no address.
async fn mac_of(device: &mut Device<'_>) -> Verdict<frames::Mac> {
    let path = format!("{}/mac", device.front);
    let text = device.store()?.read(&path).await?.unwrap_or_default();
    MacAddr::parse(text.trim()).map(|mac| mac.0).ok_or_else(|| Problem::Error(format!("{path} is {text:?}")))
}
