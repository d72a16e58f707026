//! A program of Linux user space that drives the kernel's own block frontend for the conformance cases, which are the
//! backend, in a driver domain: `conformance::blkfront::orders` has the protocol between both.
//!
//! The kernel starts the program as its first, by `rdinit=/bin/blk-agent`, and the program never ends. Each order has
//! a thread of its own, since a request that a hostile backend does not answer holds its thread for ever. The program
//! polls the store without a watch: the kernel delivers watches from the thread that also reads a new disk's
//! partitions, and that thread waits for the very backend under test.

mod disk;
mod store;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use conformance::blkfront::orders::{self, DIRECTORY, Order};

use crate::store::Store;

/// How often the program polls the store.
const LOOK: Duration = Duration::from_millis(2);

fn busybox(words: &[&str]) {
    match Command::new("/bin/busybox").args(words).status() {
        Ok(status) if status.success() => {}
        other => println!("blk-agent: {words:?}: {other:?}"),
    }
}

/// Loads the ramdisk's modules, the block frontend among them. Loading the frontend waits for its devices to
/// connect, up to five minutes, and a hostile backend may never connect.
fn load_modules() {
    for module in fs::read_to_string("/modules/order").unwrap_or_default().lines() {
        busybox(&["insmod", &format!("/modules/{module}")]);
    }
}

fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        busybox(&["mount", "-t", kind, kind, at]);
    }
    thread::spawn(load_modules);
    let store = Arc::new(Store::open().expect("/dev/xen/xenbus"));
    println!("blk-agent: waits for a device");
    let server = loop {
        match server(&store) {
            Some(server) => break server,
            None => thread::sleep(50 * LOOK),
        }
    };
    println!("blk-agent: takes orders of domain {server}");
    let directory = format!("/local/domain/{server}/{DIRECTORY}");
    let mut last = 0;
    loop {
        let mut new: Vec<u32> = store.list(&directory).iter().filter_map(|name| name.parse().ok()).collect();
        new.retain(|number| *number > last);
        new.sort_unstable();
        for number in new {
            last = number;
            let (store, path) = (store.clone(), format!("{directory}/{number}"));
            let Some(Ok(order)) = store.read(&path).map(|text| text.parse::<Order>()) else { continue };
            thread::spawn(move || store.write(&path, &orders::answer(disk::carry_out(order))));
        }
        thread::sleep(LOOK);
    }
}

/// The domain whose backend serves the first disk.
fn server(store: &Store) -> Option<String> {
    let device = store.list("device/vbd").into_iter().next()?;
    store.read(&format!("device/vbd/{device}/backend-id"))
}
