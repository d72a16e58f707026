//! What a network interface moves between two markers, and datagrams for it.

use std::net::UdpSocket;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use crate::libc::mark;

/// The interface's counters that are read, in the order they are printed in.
const COUNTERS: [&str; 4] = ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"];

/// Waits between the markers 300 and 301, and prints `window NANOSECONDS` and what each counter of the interface grew by.
pub(crate) fn run(interface: Option<&str>, milliseconds: Option<&str>) -> i32 {
    let milliseconds = milliseconds.and_then(|text| text.parse().ok());
    let (Some(interface), Some(milliseconds)) = (interface, milliseconds) else {
        println!("usage: costs window INTERFACE MILLISECONDS");
        return 2;
    };
    match measure(interface, Duration::from_millis(milliseconds)) {
        Ok((nanoseconds, moved)) => {
            let moved = moved.map(|count| count.to_string()).join(" ");
            println!("window {nanoseconds} {moved}");
            0
        }
        Err(error) => {
            println!("costs: {interface}: {error}");
            1
        }
    }
}

fn measure(interface: &str, time: Duration) -> io::Result<(u128, [u64; 4])> {
    let before = counters(interface)?;
    let begin = Instant::now();
    mark::<300>();
    thread::sleep(time);
    mark::<301>();
    let nanoseconds = begin.elapsed().as_nanos();
    let mut moved = counters(interface)?;
    for (after, before) in moved.iter_mut().zip(before) {
        *after = after.saturating_sub(before);
    }
    Ok((nanoseconds, moved))
}

fn counters(interface: &str) -> io::Result<[u64; 4]> {
    let mut values = [0; 4];
    for (value, name) in values.iter_mut().zip(COUNTERS) {
        let text = fs::read_to_string(format!("/sys/class/net/{interface}/statistics/{name}"))?;
        *value = text.trim().parse().map_err(io::Error::other)?;
    }
    Ok(values)
}

/// Sends datagrams of `bytes` to `address`, a host and its port, until the process is ended.
pub(crate) fn flood(address: Option<&str>, bytes: Option<&str>) -> i32 {
    let (Some(address), Some(bytes)) = (address, bytes.and_then(|text| text.parse().ok())) else {
        println!("usage: costs flood ADDRESS:PORT BYTES");
        return 2;
    };
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect(address).map(|()| socket));
    match socket {
        Ok(socket) => {
            let datagram = vec![0; bytes];
            loop {
                // An error is that of an earlier datagram: nobody takes them there.
                let _ = socket.send(&datagram);
            }
        }
        Err(error) => {
            println!("costs: {address}: {error}");
            1
        }
    }
}
