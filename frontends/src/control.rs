//! Requests of the toolstack: `control/shutdown`.

use crate::xenbus::{Nodes, Result, StoreError, Xenstore};
use ring_abi::sched::{SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT};

/// The node that the toolstack writes.
const NODE: &str = "control/shutdown";

/// What the toolstack asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `poweroff` or `halt`.
    Poweroff,
    /// `reboot`.
    Reboot,
}

impl ShutdownRequest {
    /// The reason for `SCHEDOP_shutdown`.
    pub fn reason(self) -> u32 {
        match self {
            Self::Poweroff => SHUTDOWN_POWEROFF,
            Self::Reboot => SHUTDOWN_REBOOT,
        }
    }
}

/// Announces that this kernel follows shutdown requests, waits for a request and acknowledges the request.
///
/// # Errors
/// [`StoreError`]: xenstored refused to read or write the node, or the connection broke.
pub async fn shutdown_request(store: &Xenstore) -> Result<ShutdownRequest> {
    for feature in ["poweroff", "reboot", "halt"] {
        // A toolstack may keep the directory to itself.
        let _ = store.write(&alloc::format!("control/feature-{feature}"), "1").await;
    }
    let watch = store.watch(NODE).await?;
    loop {
        watch.changed().await.ok_or(StoreError::Broken)?;
        let request = match store.read_str(NODE).await {
            Ok(text) => text,
            Err(error) if error.is_missing() => continue,
            Err(error) => return Err(error),
        };
        let request = match request.as_str() {
            "poweroff" | "halt" => ShutdownRequest::Poweroff,
            "reboot" => ShutdownRequest::Reboot,
            "" => continue,
            other => {
                log::warn!("{NODE}: `{}` is not supported", other.escape_debug());
                store.write(NODE, "").await?;
                continue;
            }
        };
        store.write(NODE, "").await?;
        return Ok(request);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xenbus::testing::TestStore;
    use pvrt::executor::{block_on_test, spawn, time};

    #[test]
    fn a_request_is_taken_and_acknowledged() {
        let store = TestStore::new();
        let tools = store.clone();
        spawn(async move {
            for request in ["", "dance", "reboot"] {
                time::sleep(1000).await;
                tools.set(NODE, request);
            }
        });
        let got = block_on_test(async { shutdown_request(&store.connect()).await });
        assert_eq!(got, Ok(ShutdownRequest::Reboot));
        assert_eq!(store.get(NODE).as_deref(), Some(""));
        assert_eq!(store.get("control/feature-poweroff").as_deref(), Some("1"));
    }
}
