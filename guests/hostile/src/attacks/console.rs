//! Output without end.

use ring_abi::io::console::frontend;

/// Writes newlines to the console's ring whenever there is room, and sends events all the time.
pub(super) fn newlines() {
    fill(&[b'\n'; 2048]);
}

/// Writes lines half as long as the ring.
pub(super) fn lines() {
    let mut bytes = [b'x'; 1024];
    bytes[1023] = b'\n';
    fill(&bytes);
}

/// Writes one byte at a time, with an event for each.
pub(super) fn bytes() {
    fill(b"x");
}

/// Writes these bytes to the console's ring, for ever.
fn fill(bytes: &[u8]) {
    let Some(ring) = pvrt::console::ring() else { return };
    let _ours = pvrt::console::pause();
    let Ok(mut out) = frontend(ring.page) else { return };
    let mut at = 0;
    while let Ok(written) = out.write(&bytes[at..]) {
        at = (at + written) % bytes.len();
        ring.port.notify();
    }
}

/// Sets the input ring's consumer index beyond the producer index, and never sends an event again. An administrator
/// who types there must still be able to leave the console.
pub(super) fn ruined_input() {
    use ring_abi::io::console::IN;
    let Some(ring) = pvrt::console::ring() else { return };
    pvrt::println!("hostile: ruining its input");
    pvrt::console::drain();
    let _ours = pvrt::console::pause();
    ring.page.store_u32(IN.cons, 5000);
    loop {
        pvrt::hypercall::sched::yield_cpu();
    }
}
