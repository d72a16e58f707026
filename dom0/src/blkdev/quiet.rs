//! Whether a domain's disks have requests under way.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use backends::Client;
use pvrt::executor::time;
use ring_abi::types::DomId;
use spin::Mutex;

use super::Disks;

/// How long after one another a connection is looked at.
const LOOK_NS: u64 = 200_000;

/// A connection of a frontend's, or none, that answers whether requests are under way.
#[derive(Default)]
pub struct Quiet {
    asked: AtomicU64,
    answered: AtomicU64,
    client: Mutex<Option<Arc<Client>>>,
}

impl Quiet {
    /// A frontend is connected by `client`, or none is.
    pub fn connect(&self, client: Option<Arc<Client>>) {
        *self.client.lock() = client;
    }

    /// The last question, which the serving task reads before it looks at its ring.
    pub fn question(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// Since `question` was read, the ring was found empty, and no request is under way.
    pub fn answer(&self, question: u64) {
        self.answered.store(question, Ordering::Release);
    }

    fn ask(&self) -> u64 {
        let question = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(client) = &*self.client.lock() {
            client.room();
        }
        question
    }

    fn is_answered(&self, question: u64) -> bool {
        self.answered.load(Ordering::Acquire) >= question || self.client.lock().is_none()
    }
}

impl Disks {
    /// Waits until nothing is under way of what a domain, which asks for nothing more, has asked of its disks.
    pub async fn settled(&self, domain: DomId) {
        let all: alloc::vec::Vec<Arc<Quiet>> = {
            let users = self.users.lock();
            users.iter().filter(|(user, _)| user.domain == domain).map(|(_, quiet)| quiet.clone()).collect()
        };
        for quiet in all {
            let question = quiet.ask();
            while !quiet.is_answered(question) {
                time::sleep(LOOK_NS).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pvrt::executor::{block_on_test, spawn};

    use super::super::User;
    use super::*;

    #[test]
    fn a_domain_is_settled_once_each_of_its_connections_has_answered_the_question() {
        block_on_test(async {
            let disks = Disks::new();
            let user = |disk: &str, domain| User {
                disk: disk.into(),
                domain: DomId::new(domain),
                device: 1,
                writable: true,
            };
            let quiets = [Arc::<Quiet>::default(), Arc::default(), Arc::default()];
            let _open = [
                disks.open(user("vda", 1), quiets[0].clone()),
                disks.open(user("vdb", 1), quiets[1].clone()),
                disks.open(user("vdc", 2), quiets[2].clone()),
            ];
            // Nobody is connected.
            disks.settled(DomId::new(1)).await;
            let client = Client::new(1);
            quiets.iter().for_each(|quiet| quiet.connect(Some(client.clone())));
            let early = quiets[0].question();
            let waiting = time::timeout(1_000_000_000, disks.settled(DomId::new(1)));
            assert!(waiting.await.is_err());
            // An answer to what was asked before says nothing.
            quiets[0].answer(early);
            assert!(time::timeout(1_000_000_000, disks.settled(DomId::new(1))).await.is_err());
            let serving = quiets.clone();
            spawn(async move {
                for quiet in &serving[..2] {
                    time::sleep(50_000_000).await;
                    quiet.answer(quiet.question());
                }
            });
            disks.settled(DomId::new(1)).await;
            assert_eq!(quiets[2].question(), 0, "of the other domain nobody asked");
        });
    }
}
