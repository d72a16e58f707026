//! The two directories of a device, seen from the frontend's: states and keys.

use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::Display;
use core::str::FromStr;

use pvrt::executor::time;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::DomId;

use crate::store::Store;
use crate::{Env, Problem, Verdict};

/// How long the other end may take for a change of state.
pub const STATE_PATIENCE_MS: u64 = 10_000;

/// The token of the watch on the backend's state.
const TOKEN: &str = "conformance-state";

/// A device.
pub struct Device<'a> {
    /// Where the case runs.
    pub env: &'a mut Env,
    /// The frontend's directory.
    pub front: String,
    /// The backend's directory.
    pub back: String,
    /// The backend's domain.
    pub dom: DomId,
}

impl<'a> Device<'a> {
    /// Opens the device whose frontend has the directory `front`, and reads which backend the device has.
    ///
    /// # Errors
    /// [`Problem`]: the toolstack's nodes are not there.
    pub async fn open(env: &'a mut Env, front: &str) -> Verdict<Self> {
        let store = env.store()?;
        let back = expect(store, &format!("{front}/backend")).await?;
        let dom = expect(store, &format!("{front}/backend-id")).await?;
        let dom = dom.parse().map_err(|_| Problem::Error(format!("backend-id {dom:?}")))?;
        Ok(Self { env, front: front.to_string(), back, dom: DomId::new(dom) })
    }

    /// Xenstore.
    ///
    /// # Errors
    /// [`Problem`].
    pub fn store(&mut self) -> Verdict<&mut Store> {
        self.env.store()
    }

    /// Reads a node of the backend's; `None` if the node is missing.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn read_back(&mut self, key: &str) -> Verdict<Option<String>> {
        let path = format!("{}/{key}", self.back);
        Ok(self.store()?.read(&path).await?.ok())
    }

    /// Reads a number from a node of the backend's.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the node is missing or holds no number.
    pub async fn number_back<T: FromStr>(&mut self, key: &str) -> Verdict<T> {
        let text = self.read_back(key).await?;
        let number = text.as_ref().and_then(|text| text.trim().parse().ok());
        number.ok_or_else(|| Problem::Fail(format!("the backend's {key}: {text:?}")))
    }

    /// Sets a node of the frontend's.
    ///
    /// # Errors
    /// [`Problem::Error`]: xenstore refuses.
    pub async fn write_front(&mut self, key: &str, value: impl Display) -> Verdict {
        let path = format!("{}/{key}", self.front);
        let value = value.to_string();
        match self.store()?.write(&path, &value).await? {
            Ok(_) => Ok(()),
            Err(errno) => Err(Problem::Error(format!("writing {path}: {errno}"))),
        }
    }

    /// Removes a node of the frontend's, if it is there.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn remove_front(&mut self, key: &str) -> Verdict {
        let path = format!("{}/{key}", self.front);
        // A node that is missing already is no error.
        let _ = self.store()?.remove(&path).await?;
        Ok(())
    }

    /// Sets the frontend's state.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn set_state(&mut self, state: XenbusState) -> Verdict {
        self.write_front("state", state.raw()).await
    }

    /// The frontend's own state as it stands in the store.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn own_state(&mut self) -> Verdict<XenbusState> {
        let path = format!("{}/state", self.front);
        let text = self.store()?.read(&path).await?.unwrap_or_default();
        Ok(XenbusState::parse(&text))
    }

    /// The backend's state; `Unknown` if there is none.
    ///
    /// # Errors
    /// [`Problem`].
    pub async fn state(&mut self) -> Verdict<XenbusState> {
        Ok(self.read_back("state").await?.map_or(XenbusState::Unknown, |text| XenbusState::parse(&text)))
    }

    /// Waits until the backend's state is one of `wanted`, and returns that state.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend reaches none of the states within [`STATE_PATIENCE_MS`].
    pub async fn wait_state(&mut self, wanted: &[XenbusState]) -> Verdict<XenbusState> {
        let path = format!("{}/state", self.back);
        // A watch that an aborted case has left serves as well.
        let _ = self.store()?.watch(&path, TOKEN).await?;
        let end = time::now_ns() + STATE_PATIENCE_MS * 1_000_000;
        let state = loop {
            let state = self.state().await?;
            if wanted.contains(&state) || time::now_ns() > end {
                break state;
            }
            let left = end.saturating_sub(time::now_ns()) / 1_000_000 + 1;
            self.store()?.event(left).await?;
        };
        let _ = self.store()?.unwatch(&path, TOKEN).await?;
        self.store()?.drop_events().await?;
        ensure!(wanted.contains(&state), "the backend stays in state {state:?}, is to reach {wanted:?}");
        Ok(state)
    }

    /// Checks that the backend's state does not change for `ms`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the state changes.
    pub async fn stays(&mut self, ms: u64) -> Verdict {
        let before = self.state().await?;
        time::sleep(ms * 1_000_000).await;
        let after = self.state().await?;
        ensure!(before == after, "the backend went from state {before:?} to {after:?} unasked");
        Ok(())
    }

    /// Brings the device to where the toolstack left it: the frontend `Initialising`, the backend in `InitWait`.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend does not follow.
    pub async fn reset(&mut self) -> Verdict {
        use XenbusState::{Closed, InitWait, Initialising};
        if self.own_state().await? == Initialising {
            // The backend reaches `InitWait` by itself, unless the backend had closed before.
            let state = self.wait_state(&[InitWait, Closed]).await?;
            if state == InitWait {
                return Ok(());
            }
        }
        self.close().await?;
        self.set_state(Initialising).await?;
        self.wait_state(&[InitWait]).await?;
        Ok(())
    }

    /// Closes both ends, in order.
    ///
    /// # Errors
    /// [`Problem::Fail`]: the backend does not follow.
    pub async fn close(&mut self) -> Verdict {
        use XenbusState::{Closed, Closing};
        self.set_state(Closing).await?;
        self.wait_state(&[Closing, Closed]).await?;
        self.set_state(Closed).await?;
        self.wait_state(&[Closed]).await?;
        Ok(())
    }
}

async fn expect(store: &mut Store, path: &str) -> Verdict<String> {
    match store.read(path).await? {
        Ok(value) => Ok(value),
        Err(errno) => Err(Problem::Error(format!("reading {path}: {errno}"))),
    }
}
