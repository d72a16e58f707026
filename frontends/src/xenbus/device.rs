//! The frontend's half of a device's directories and state.

use alloc::format;
use alloc::string::{String, ToString};
use pvrt::executor::{Either, select, spawn};
use ring_abi::errno::Errno;
use ring_abi::io::xenbus::XenbusState;
use ring_abi::types::DomId;

use super::{Nodes, Result, StoreError, Watch, Xenstore};

/// A device as the toolstack laid out its nodes: two directories, each with a `state`.
pub struct Device {
    store: Xenstore,
    path: String,
    backend: String,
    backend_dom: DomId,
    watch: Watch,
}

impl Device {
    /// Opens `path`, for example `device/vbd/51712`.
    ///
    /// # Errors
    /// [`StoreError`]: a node is missing or wrong.
    pub async fn open(store: &Xenstore, path: &str) -> Result<Self> {
        let backend = store.read_str(&format!("{path}/backend")).await?;
        let backend_dom = DomId::new(store.read_as(&format!("{path}/backend-id")).await?);
        let watch = store.watch(&format!("{backend}/state")).await?;
        Ok(Self { store: store.clone(), path: path.to_string(), backend, backend_dom, watch })
    }

    /// The devices of a class, for example of `vbd`: the devices' paths, in the order of the devices' numbers.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused to list the directory, or the connection broke. A class without devices is no
    /// error.
    pub async fn list(store: &Xenstore, class: &str) -> Result<alloc::vec::Vec<String>> {
        let mut names = match store.directory(&format!("device/{class}")).await {
            Ok(names) => names,
            Err(error) if error.is_missing() => return Ok(alloc::vec::Vec::new()),
            Err(error) => return Err(error),
        };
        names.sort_by_key(|name| name.parse::<u64>().unwrap_or(u64::MAX));
        Ok(names.into_iter().map(|name| format!("device/{class}/{name}")).collect())
    }

    /// The connection this device was found by.
    pub fn store(&self) -> &Xenstore {
        &self.store
    }

    /// The frontend's directory.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The domain in which the backend runs.
    pub fn backend_dom(&self) -> DomId {
        self.backend_dom
    }

    /// Path of a node in the frontend's directory.
    pub fn front(&self, node: &str) -> String {
        format!("{}/{node}", self.path)
    }

    /// Path of a node in the backend's directory.
    pub fn back(&self, node: &str) -> String {
        format!("{}/{node}", self.backend)
    }

    /// Tells the backend this end's state.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused to write the node, or the connection broke.
    pub async fn set_state(&self, state: XenbusState) -> Result<()> {
        self.store.write(&self.front("state"), state.to_string()).await
    }

    /// The backend's state now; `Unknown` when the backend's directory is gone.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused to read the node, or the connection broke.
    pub async fn backend_state(&self) -> Result<XenbusState> {
        match self.store.read_str(&self.back("state")).await {
            Ok(text) => Ok(XenbusState::parse(&text)),
            // Of a directory that is gone, a domain that may not look at the directory above learns only that.
            Err(StoreError::Refused(Errno::ENOENT | Errno::EACCES)) => Ok(XenbusState::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Waits until the backend's state satisfies `wanted`, and returns the state.
    ///
    /// # Errors
    /// [`StoreError`]: xenstored refused to read the node, or the connection broke.
    pub async fn wait_backend(&self, wanted: impl Fn(XenbusState) -> bool + Send) -> Result<XenbusState> {
        loop {
            let state = self.backend_state().await?;
            if wanted(state) {
                return Ok(state);
            }
            self.watch.changed().await.ok_or(StoreError::Broken)?;
        }
    }

    /// Waits until the backend has written what it offers; `false`: the device is gone instead.
    ///
    /// # Errors
    /// The errors of [`Self::wait_backend`] and [`Self::change_state`].
    pub async fn offered(&self) -> Result<bool> {
        use XenbusState::{Closed, Connected, InitWait, Initialised, Initialising, Unknown};
        let mut closed = false;
        loop {
            // After a connection that has ended, a backend offers again only to a frontend that says that it begins. The end
            // of that connection may come while this one waits.
            self.change_state(|state| state == Closed, Initialising).await?;
            let offers = |state| matches!(state, InitWait | Initialised | Connected | Unknown);
            match self.wait_backend(|state| offers(state) || state == Closed && !closed).await? {
                Closed => closed = true,
                state => return Ok(state != Unknown),
            }
        }
    }

    /// Waits until the backend is connected; `false`: the backend has ended instead.
    ///
    /// # Errors
    /// The errors of [`Self::wait_backend`].
    pub async fn connected(&self) -> Result<bool> {
        let state = self.wait_backend(|state| state == XenbusState::Connected || is_over(state)).await?;
        Ok(state == XenbusState::Connected)
    }

    /// Changes this end's state, if the state is one that `from` accepts.
    ///
    /// The toolstack may remove the device meanwhile. Without the transaction the write would make the node again.
    ///
    /// # Errors
    /// [`StoreError`]: the device is gone, or xenstore is.
    pub async fn change_state(&self, from: impl Fn(XenbusState) -> bool, to: XenbusState) -> Result<()> {
        let state = self.front("state");
        loop {
            let transaction = self.store.begin().await?;
            if !from(XenbusState::parse(&transaction.read_str(&state).await?)) {
                return Ok(());
            }
            transaction.write(&state, to.to_string()).await?;
            if transaction.commit().await? {
                return Ok(());
            }
        }
    }

    /// Follows a connected backend in a task of its own: when the backend ends, `shut` ends this end, too, and says whether
    /// this end had not ended before. `ended` completes when this end closes first.
    ///
    /// # Errors
    /// [`StoreError`]: a node is missing or wrong.
    pub async fn follow(
        &self,
        ended: impl Future<Output = ()> + Send + 'static,
        shut: impl FnOnce() -> bool + Send + 'static,
    ) -> Result<()> {
        let device = Self::open(&self.store, &self.path).await?;
        spawn(async move {
            if let Either::Left(state) = select(device.wait_backend(is_over), ended).await
                // Else this end closed first, and the node may belong to a new connection already.
                && shut()
                && matches!(state, Ok(XenbusState::Closing | XenbusState::Closed))
            {
                // The backend waits for this end's state. An error means that xenstore is gone, and this end ends all the
                // same.
                let _ = device.change_state(|_| true, XenbusState::Closed).await;
            }
        });
        Ok(())
    }
}

/// Whether a backend in this state serves nobody any more.
fn is_over(state: XenbusState) -> bool {
    matches!(state, XenbusState::Closing | XenbusState::Closed | XenbusState::Unknown)
}

#[cfg(test)]
mod tests {
    use super::super::testing::TestStore;
    use super::*;
    use pvrt::executor::{block_on_test, spawn, time};

    #[test]
    fn states_are_waited_for() {
        let store = TestStore::new();
        store.set("device/vbd/768/backend", "/back/vbd/1/768");
        store.set("device/vbd/768/backend-id", "0");
        store.set("/back/vbd/1/768/state", "1");
        store.set("device/vbd/51712/x", "");
        block_on_test(async {
            let client = store.connect();
            let list = Device::list(&client, "vbd").await.expect("listed");
            assert_eq!(list, ["device/vbd/768", "device/vbd/51712"]);
            assert!(Device::list(&client, "vif").await.expect("none").is_empty());
            let device = Device::open(&client, &list[0]).await.expect("opened");
            assert!(Device::open(&client, &list[1]).await.is_err());
            let other = store.clone();
            spawn(async move {
                time::sleep(1000).await;
                other.set("/back/vbd/1/768/state", "2");
                time::sleep(1000).await;
                other.set("/back/vbd/1/768/state", "4");
            });
            let state = device.wait_backend(|state| state >= XenbusState::Connected).await;
            assert_eq!(state, Ok(XenbusState::Connected));
            device.set_state(XenbusState::Connected).await.expect("written");
            assert_eq!(store.get("device/vbd/768/state").as_deref(), Some("4"));
        });
    }

    /// The toolstack takes a device away that its backend has not offered yet: nobody waits for an offer for ever.
    #[test]
    fn a_device_that_goes_before_the_offer_is_not_waited_for() {
        let store = TestStore::new();
        store.set("device/vbd/768/backend", "/back/vbd/1/768");
        store.set("device/vbd/768/backend-id", "0");
        store.set("device/vbd/768/state", "1");
        store.set("/back/vbd/1/768/state", "1");
        block_on_test(async {
            let client = store.connect();
            let device = Device::open(&client, "device/vbd/768").await.expect("opened");
            let other = store.clone();
            spawn(async move {
                for state in ["5", "2"] {
                    time::sleep(1000).await;
                    other.set("/back/vbd/1/768/state", state);
                }
            });
            assert_eq!(device.offered().await, Ok(true));
            store.set("/back/vbd/1/768/state", "1");
            spawn(async move {
                time::sleep(1000).await;
                store.remove("/back/vbd/1/768");
            });
            assert_eq!(device.offered().await, Ok(false));
        });
    }

    /// A backend's domain may write its state as often as it likes, whether this end looks or not.
    #[test]
    fn events_that_nobody_takes_do_not_pile_up() {
        let store = TestStore::new();
        store.set("device/vbd/768/backend", "/back/vbd/1/768");
        store.set("device/vbd/768/backend-id", "7");
        store.set("/back/vbd/1/768/state", "4");
        block_on_test(async {
            let client = store.connect();
            let device = Device::open(&client, "device/vbd/768").await.expect("opened");
            assert_eq!(device.wait_backend(|_| true).await, Ok(XenbusState::Connected));
            for _ in 0..1000 {
                store.set("/back/vbd/1/768/state", "4");
                // The connection is used for something else.
                client.read_str("device/vbd/768/backend").await.expect("read");
            }
            assert!(device.watch.waiting() <= 1, "{} events", device.watch.waiting());
        });
    }
}
