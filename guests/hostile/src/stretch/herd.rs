//! The vCPUs of a guest, each with a time area, all wake at one instant, and those of another guest too.

use pvrt::marker::mark;
use pvrt::{println, time};

use crate::herd::{self, Herd, WokenBy};

/// The timers of all guests fire at multiples of this.
const TOGETHER_NS: u64 = 1_000_000_000;
/// After this time all sleep again.
const SETTLED_NS: u64 = 300_000_000;
/// How long the members of a herd run.
const BUSY_NS: u64 = 50_000_000;

/// The cases, each between its marks.
pub(super) async fn run() {
    let Some(herd) = Herd::start(WokenBy::All).await else { return println!("stretch: no herd") };
    println!("herd: {} others", herd.members());
    case(&herd, "an event wakes 127 polling vCPUs", async {
        herd.wake(0);
        time::sleep(SETTLED_NS).await;
    })
    .await;
    case(&herd, "timers of two guests wake 127 polling vCPUs each", async {
        for _ in 0..3 {
            instant().await;
        }
    })
    .await;
    case(&herd, "127 vCPUs that yield", async {
        herd.wake(BUSY_NS);
        time::sleep(BUSY_NS + SETTLED_NS).await;
    })
    .await;
    println!("stretch: done");
}

/// Wakes the herd at each instant, for ever.
pub(super) async fn beside() {
    let _herd = Herd::start(WokenBy::All).await;
    loop {
        instant().await;
    }
}

/// Sleeps until the next instant at which all guests wake, and until all sleep again.
async fn instant() {
    herd::sleep_until_multiple_of(TOGETHER_NS).await;
    time::sleep(SETTLED_NS).await;
}

async fn case(herd: &Herd, name: &str, act: impl Future<Output = ()>) {
    let before = herd.woke();
    mark::<300>();
    act.await;
    mark::<301>();
    println!("stretch: {name}: {}", herd.woke() - before);
}
